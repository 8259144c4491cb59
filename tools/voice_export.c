/*
 * voice_export.c - `cosyfarm voice export`: a voice as a file of its own, or voices as the spk2info.pt that upstream's
 * load reads. One process, one thread; owns voices and tokenizer.
 *
 * Upstream keeps the transcript as token ids, with the words before <|endofprompt|> that its examples put there; where
 * the transcript has none, they are put in front, as they are when the voice speaks here.
 * Fails: exit 64 usage, 75 out of memory, 78 voice, model or file unusable.
 * Source: cosy cosyvoice/cli/cosyvoice.py add_zero_shot_spk, save_spkinfo; cli/frontend.py frontend_zero_shot,
 * frontend_sft @ace7c47 (fields); formats.md 3.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/pt.h"
#include "common/model/voice.h"
#include "common/text/frontend.h"
#include "tools/cmd.h"
#include "tools/options.h"
#include "tools/voice_verbs.h"

#define FIELD_BYTES (VOICE_NAME_BYTES_MAX + 64)

static const char HELP[] = "usage: cosyfarm voice export -m MODEL NAME -o FILE.safetensors\n"
                           "       cosyfarm voice export -m MODEL --spk2info -o spk2info.pt [NAME...]\n"
                           "\n"
                           "  -m, --model DIR       model directory (or COSYFARM_MODEL)\n"
                           "  -o, --out FILE        where to\n"
                           "      --spk2info        in the form of upstream's save_spkinfo; without NAME all voices\n"
                           "      --force           replace FILE\n"
                           "  -h, --help            this text\n";

typedef struct arguments {
    const char *model_path, *out;
    bool spk2info, force, help;
    char **names; /* borrowed from argv */
    int name_count;
} arguments;

static int usage(const char *what)
{
    fprintf(stderr, "cosyfarm voice export: %s\n", what);
    return EXIT_USAGE;
}

static int parse_arguments(int argc, char **argv, arguments *ret_args)
{
    enum { OPT_FORCE = 256, OPT_SPK2INFO };
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},
        {"out", required_argument, NULL, 'o'},
        {"spk2info", no_argument, NULL, OPT_SPK2INFO},
        {"force", no_argument, NULL, OPT_FORCE},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    arguments a = {.model_path = getenv("COSYFARM_MODEL")};
    optind = 0; /* a fresh scan: tests call this more than once */
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, "m:o:h", options, NULL)) != -1;) {
        if (opt == 'm')
            a.model_path = optarg;
        else if (opt == 'o')
            a.out = optarg;
        else if (opt == OPT_SPK2INFO)
            a.spk2info = true;
        else if (opt == OPT_FORCE)
            a.force = true;
        else if (opt == 'h')
            a.help = true;
        else {
            options_refused(argv, "voice export");
            return usage(err_text());
        }
    }
    a.names = argv + optind;
    a.name_count = argc - optind;
    *ret_args = a;
    if (a.help)
        return EXIT_DONE;
    if (!a.model_path || !a.model_path[0])
        return options_no_model("voice export");
    if (!a.out)
        return usage("no file: -o FILE");
    if (!a.spk2info && a.name_count != 1)
        return usage("expected one voice; --spk2info takes more");
    return EXIT_DONE;
}

/* ---- upstream's form ---- */

/* A voice and the ids of its transcript. */
typedef struct exported {
    voice *v;         /* owned */
    text_plan prompt; /* owned; of voices with a prompt */
} exported;

static cf_err find_ids(const tokenizer *tok, exported *x)
{
    const voice *v = x->v;
    const text_request request = {.mode = TEXT_ZERO_SHOT,
                                  .text = "a", /* something has to be said; the prompt alone is kept */
                                  .text_bytes = 1,
                                  .prompt_text = v->prompt_text_id ? NULL
                                                 : v->prompt_text  ? v->prompt_text
                                                                   : "",
                                  .prompt_ids = v->prompt_text_id,
                                  .prompt_id_count = v->prompt_text_ids};
    const cf_err err = text_prepare(tok, &request, &x->prompt);
    return err == CF_OK ? CF_OK : err_context(err, "voice %s", v->name);
}

/* The fields of one voice, in upstream's order. data: what pt_append is given for each declaration, in that order;
 * NULL for one that shares. */
typedef struct field {
    const char *name, *same_as;
    entry_dtype type;
    int rank;
    int64_t shape[3];
    const void *data;
} field;

typedef struct lengths {
    int32_t text, tokens, frames;
} lengths;

#define FIELDS_MAX 10

static int list_fields(const exported *x, const lengths *n, field ret_fields[FIELDS_MAX])
{
    const voice *v = x->v;
    if (v->prompt_tokens == 0) {
        ret_fields[0] = (field){"embedding", NULL, ENTRY_F32, 2, {1, SPEAKER_VALUES}, v->embedding};
        return 1;
    }
    const field all[FIELDS_MAX] = {
        {"prompt_text", NULL, ENTRY_I32, 2, {1, n->text}, x->prompt.prompt_ids},
        {"prompt_text_len", NULL, ENTRY_I32, 1, {1}, &n->text},
        {"llm_prompt_speech_token", NULL, ENTRY_I32, 2, {1, n->tokens}, v->prompt_token},
        {"llm_prompt_speech_token_len", NULL, ENTRY_I32, 1, {1}, &n->tokens},
        {"flow_prompt_speech_token", "llm_prompt_speech_token", ENTRY_I32, 0, {0}, NULL},
        {"flow_prompt_speech_token_len", "llm_prompt_speech_token_len", ENTRY_I32, 0, {0}, NULL},
        {"prompt_speech_feat", NULL, ENTRY_F32, 3, {1, n->frames, MEL_BINS}, v->prompt_feat},
        {"prompt_speech_feat_len", NULL, ENTRY_I32, 1, {1}, &n->frames},
        {"llm_embedding", NULL, ENTRY_F32, 2, {1, SPEAKER_VALUES}, v->embedding},
        {"flow_embedding", "llm_embedding", ENTRY_F32, 0, {0}, NULL},
    };
    memcpy(ret_fields, all, sizeof all);
    return FIELDS_MAX;
}

static lengths lengths_of(const exported *x)
{
    return (lengths){.text = (int32_t)x->prompt.prompt_id_count,
                     .tokens = (int32_t)x->v->prompt_tokens,
                     .frames = (int32_t)(x->v->prompt_tokens * FRAMES_PER_TOKEN)};
}

static cf_err declare_voice(pt_writer *w, const exported *x)
{
    cf_err err = CF_OK;
    field fields[FIELDS_MAX];
    char name[FIELD_BYTES], target[FIELD_BYTES];
    const lengths n = lengths_of(x);
    const int count = list_fields(x, &n, fields);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%s/%s", x->v->name, fields[i].name);
        if (fields[i].same_as) {
            snprintf(target, sizeof target, "%s/%s", x->v->name, fields[i].same_as);
            TRY(pt_declare_alias(w, name, target));
        } else {
            TRY(pt_declare_as(w, name, fields[i].type, fields[i].rank, fields[i].shape));
        }
    }
out:
    return err;
}

static size_t field_bytes(const field *f)
{
    size_t bytes = 4;
    for (int d = 0; d < f->rank; d++)
        bytes *= (size_t)f->shape[d];
    return bytes;
}

/* Data go in the order the writer asks for: declaration idx over all voices. */
static cf_err append_declared(pt_writer *w, const exported *list, size_t count, size_t idx)
{
    for (size_t i = 0; i < count; i++) {
        field fields[FIELDS_MAX];
        const lengths n = lengths_of(&list[i]);
        const size_t fields_count = (size_t)list_fields(&list[i], &n, fields);
        if (idx < fields_count)
            return pt_append(w, fields[idx].data, field_bytes(&fields[idx]));
        idx -= fields_count;
    }
    return err_set(CF_ERR_INVALID, "no voice for declaration %zu", idx);
}

static cf_err write_spk2info(const char *path, const exported *list, size_t count)
{
    cf_err err;
    pt_writer *w = NULL;
    TRY(pt_create(path, &w));
    pt_nest(w);
    for (size_t i = 0; i < count; i++)
        TRY(declare_voice(w, &list[i]));
    TRY(pt_begin(w));
    for (size_t idx; pt_next(w, &idx);)
        TRY(append_declared(w, list, count, idx));
    TRY(pt_finish(w));
out:
    pt_close(w);
    return err;
}

static cf_err export_spk2info(const arguments *a, char **names, size_t count)
{
    cf_err err;
    tokenizer *tok = NULL;
    exported *list = NULL;
    TRY(tokenizer_open(a->model_path, &tok));
    TRY(mem_alloc(count, sizeof *list, &list));
    for (size_t i = 0; i < count; i++) {
        TRY(voice_load(a->model_path, names[i], &list[i].v));
        if (list[i].v->prompt_tokens > 0)
            TRY(find_ids(tok, &list[i]));
    }
    TRY(write_spk2info(a->out, list, count));
    printf("%zu voice%s in %s\n", count, count == 1 ? "" : "s", a->out);
out:
    for (size_t i = 0; list && i < count; i++) {
        voice_close(list[i].v);
        text_plan_done(&list[i].prompt);
    }
    mem_free(list);
    tokenizer_close(tok);
    return err;
}

/* ---- the verb ---- */

static cf_err export_one(const arguments *a)
{
    cf_err err;
    voice *v = NULL;
    TRY(voice_load(a->model_path, a->names[0], &v));
    TRY(voice_save_file(a->out, v));
    printf("%s in %s\n", v->name, a->out);
out:
    voice_close(v);
    return err;
}

static cf_err run(const arguments *a)
{
    cf_err err;
    char **names = NULL;
    size_t count = 0;
    TRY(model_dir_detect(a->model_path));
    if (!a->force && io_exists(a->out))
        FAIL(CF_ERR_BUSY, "%s exists already; --force replaces it", a->out);
    if (!a->spk2info)
        return export_one(a);
    if (a->name_count > 0)
        return export_spk2info(a, a->names, (size_t)a->name_count);
    TRY(voice_names(a->model_path, &names, &count));
    if (count == 0)
        FAIL(CF_ERR_NOTFOUND, "%s/voices holds no voice", a->model_path);
    TRY(export_spk2info(a, names, count));
out:
    voice_names_close(names, count);
    return err;
}

int voice_export(int argc, char **argv)
{
    arguments a;
    const int code = parse_arguments(argc, argv, &a);
    if (code != EXIT_DONE)
        return code;
    if (a.help) {
        fputs(HELP, stdout);
        return EXIT_DONE;
    }
    const cf_err err = run(&a);
    if (err == CF_OK)
        return EXIT_DONE;
    fprintf(stderr, "cosyfarm voice export: %s\n", err_text());
    return err == CF_ERR_NOMEM ? EXIT_AGAIN : EXIT_CONFIG;
}
