/*
 * cmd_voice.c - `cosyfarm voice`: the voices of a model directory. One process, one thread; owns the voices at hand.
 * Fails: exit 64 usage, 75 out of memory, 78 voice, file or directory unusable (interface.md 3).
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/voice.h"
#include "tools/cmd.h"
#include "tools/options.h"
#include "tools/voice_verbs.h"

static const char HELP[] =
    "usage: cosyfarm voice ls -m MODEL [--json]                  the voices of a model directory\n"
    "       cosyfarm voice show -m MODEL NAME [--json]           one voice\n"
    "       cosyfarm voice import -m MODEL FILE [NAME] [--force] from a spk2info.pt or a voice .safetensors\n"
    "       cosyfarm voice rm -m MODEL NAME...                   delete voices\n"
    "       cosyfarm voice enroll -m MODEL FILE --text TEXT -n NAME   a voice from a recording; --help tells more\n"
    "       cosyfarm voice export -m MODEL NAME -o FILE [--spk2info]  to a file; --help tells more\n"
    "\n"
    "  -m, --model DIR       model directory (or COSYFARM_MODEL)\n"
    "      --force           import: replace voices that exist\n"
    "      --json            one JSON object a line\n"
    "  -h, --help            this text\n"
    "\n"
    "import takes every voice of the file, or NAME alone; a .safetensors holds one, which NAME renames.\n"
    "Exit: 0 done, 64 usage, 75 out of memory, 78 voice, file or directory unusable.\n";

typedef struct arguments {
    const char *model_path;
    bool json, force, help;
    char **operands; /* borrowed from argv */
    int operand_count;
} arguments;

static int usage(const char *what)
{
    fprintf(stderr, "cosyfarm voice: %s\n", what);
    return EXIT_USAGE;
}

static int parse_arguments(int argc, char **argv, arguments *ret_args)
{
    enum { OPT_JSON = 256, OPT_FORCE };
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},
        {"json", no_argument, NULL, OPT_JSON},
        {"force", no_argument, NULL, OPT_FORCE},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    arguments a = {.model_path = getenv("COSYFARM_MODEL")};
    optind = 0; /* a fresh scan: tests call this more than once */
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, "m:h", options, NULL)) != -1;) {
        switch (opt) {
        case 'm':
            a.model_path = optarg;
            break;
        case OPT_JSON:
            a.json = true;
            break;
        case OPT_FORCE:
            a.force = true;
            break;
        case 'h':
            a.help = true;
            break;
        default:
            options_refused(argv, "voice");
            return usage(err_text());
        }
    }
    if (!a.help && (!a.model_path || !a.model_path[0]))
        return options_no_model("voice");
    a.operands = argv + optind;
    a.operand_count = argc - optind;
    *ret_args = a;
    return EXIT_DONE;
}

static cf_err print_json(const voice *v)
{
    cf_err err;
    char *line = NULL;
    json *o = json_object();
    json_put_str(o, "name", v->name);
    json_put_u64(o, "prompt_tokens", v->prompt_tokens);
    json_put_u64(o, "prompt_frames", v->prompt_tokens * FRAMES_PER_TOKEN);
    json_put_f64(o, "seconds", (double)v->prompt_tokens / TOKENS_PER_SECOND);
    if (v->prompt_text)
        json_put_str(o, "prompt_text", v->prompt_text);
    if (v->prompt_text_id)
        json_put_i32s(o, "prompt_text_ids", v->prompt_text_id, v->prompt_text_ids);
    json_put_str(o, "sha256", v->sha256);
    if (v->tokenizer_sha256[0])
        json_put_str(o, "speech_tokenizer_sha256", v->tokenizer_sha256);
    if (v->speaker_sha256[0])
        json_put_str(o, "campplus_sha256", v->speaker_sha256);
    if (v->recording_sha256[0])
        json_put_str(o, "recording_sha256", v->recording_sha256);
    TRY(json_print(o, false, &line));
    puts(line);
out:
    mem_free(line);
    json_close(o);
    return err;
}

static void print_row(const voice *v)
{
    printf("%-20s %6.2f s  %.16s  ", v->name, (double)v->prompt_tokens / TOKENS_PER_SECOND, v->sha256);
    if (v->prompt_tokens == 0)
        puts("(speaker vector only)");
    else if (v->prompt_text)
        puts(v->prompt_text);
    else if (v->prompt_text_id)
        printf("(transcript of %zu token ids)\n", v->prompt_text_ids);
    else
        puts("(no transcript)");
}

static cf_err print_voice(const arguments *a, const char *name)
{
    cf_err err;
    voice *v = NULL;
    TRY(voice_load(a->model_path, name, &v));
    if (a->json)
        TRY(print_json(v));
    else
        print_row(v);
out:
    voice_close(v);
    return err;
}

static cf_err voice_ls(const arguments *a)
{
    cf_err err;
    cf_err worst = CF_OK;
    char **names = NULL;
    size_t count = 0;
    TRY(voice_names(a->model_path, &names, &count));
    for (size_t i = 0; i < count; i++) {
        err = print_voice(a, names[i]);
        if (err == CF_OK)
            continue;
        fprintf(stderr, "cosyfarm voice: %s\n", err_text());
        worst = err;
    }
    err = worst == CF_OK ? CF_OK : err_set(worst, "not every voice of %s is usable", a->model_path);
out:
    voice_names_close(names, count);
    return err;
}

static cf_err voice_show(const arguments *a)
{
    return print_voice(a, a->operands[0]);
}

static cf_err voice_rm(const arguments *a)
{
    cf_err err = CF_OK;
    for (int i = 0; i < a->operand_count; i++)
        TRY(voice_remove(a->model_path, a->operands[i]));
out:
    return err;
}

/* Ids of a transcript are only good for the vocabulary they were made with. */
static cf_err check_ids(const voice *v, const model_config *config)
{
    for (size_t i = 0; i < v->prompt_text_ids; i++)
        if (v->prompt_text_id[i] >= config->vocab_rows)
            return err_set(CF_ERR_MISMATCH,
                           "voice %s: prompt_text: id %d at index %zu, the model has %" PRId64 " text rows", v->name,
                           v->prompt_text_id[i], i, config->vocab_rows);
    return CF_OK;
}

static void warn_about(const voice *v)
{
    if (v->trimmed_tokens || v->trimmed_frames)
        fprintf(stderr,
                "cosyfarm voice: warning: %s: %zu tokens and %zu frames left out, so that 2 frames meet each token%s\n",
                v->name, v->trimmed_tokens, v->trimmed_frames,
                v->trimmed_frames > 8 ? " (a voice of CosyVoice 1 has another rate and will not sound right)" : "");
    if (v->prompt_text_id)
        fprintf(stderr,
                "cosyfarm voice: note: %s: saved voices of CosyVoice 2 look the same but do not fit this model\n",
                v->name);
    if (v->prompt_tokens == 0)
        fprintf(stderr, "cosyfarm voice: warning: %s: a speaker vector only, no prompt\n", v->name);
}

/* Renames the voice of a single-voice file, or picks one by name. */
static cf_err select_voices(const arguments *a, voice **voices, size_t count, size_t *ret_first, size_t *ret_end)
{
    *ret_first = 0;
    *ret_end = count;
    if (a->operand_count < 2)
        return CF_OK;
    const char *name = a->operands[1];
    for (size_t i = 0; i < count; i++)
        if (strcmp(voices[i]->name, name) == 0) {
            *ret_first = i;
            *ret_end = i + 1;
            return CF_OK;
        }
    if (count > 1)
        return err_set(CF_ERR_NOTFOUND, "%s: no voice %s among its %zu", a->operands[0], name, count);
    const cf_err err = voice_name_check(name);
    if (err == CF_OK)
        memcpy(voices[0]->name, name, strlen(name) + 1);
    return err;
}

static cf_err voice_import(const arguments *a)
{
    cf_err err;
    voice **voices = NULL;
    size_t count = 0;
    size_t first;
    size_t end;
    model_config config;
    TRY(model_dir_detect(a->model_path));
    TRY(model_dir_config(a->model_path, &config));
    TRY(voices_import(a->operands[0], &voices, &count));
    TRY(select_voices(a, voices, count, &first, &end));
    for (size_t i = first; i < end; i++) { /* all are checked before the first is written */
        TRY(check_ids(voices[i], &config));
        if (!a->force && voice_exists(a->model_path, voices[i]->name))
            FAIL(CF_ERR_BUSY, "voice %s exists already; --force replaces it; none was imported", voices[i]->name);
    }
    for (size_t i = first; i < end; i++) {
        warn_about(voices[i]);
        TRY(voice_save(a->model_path, voices[i], a->force));
        if (a->json)
            TRY(print_json(voices[i]));
        else
            print_row(voices[i]);
    }
out:
    voices_close(voices, count);
    return err;
}

int cmd_voice(int argc, char **argv)
{
    static const struct {
        const char *name;
        cf_err (*run)(const arguments *);
        int operands_min, operands_max;
    } VERBS[] = {
        {"ls", voice_ls, 0, 0}, {"show", voice_show, 1, 1}, {"import", voice_import, 1, 2}, {"rm", voice_rm, 1, 1000}};
    arguments a;
    if (argc < 2)
        return usage("expected ls, show, import, rm, enroll or export");
    if (strcmp(argv[1], "enroll") == 0)
        return voice_enroll(argc - 1, argv + 1);
    if (strcmp(argv[1], "export") == 0)
        return voice_export(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(HELP, stdout);
        return EXIT_DONE;
    }
    for (size_t i = 0; i < CF_COUNT(VERBS); i++) {
        if (strcmp(argv[1], VERBS[i].name) != 0)
            continue;
        const int code = parse_arguments(argc - 1, argv + 1, &a);
        if (code != EXIT_DONE)
            return code;
        if (a.help) {
            fputs(HELP, stdout);
            return EXIT_DONE;
        }
        if (a.operand_count < VERBS[i].operands_min || a.operand_count > VERBS[i].operands_max)
            return usage("wrong number of arguments for this verb");
        const cf_err err = VERBS[i].run(&a);
        if (err == CF_OK)
            return EXIT_DONE;
        fprintf(stderr, "cosyfarm voice: %s\n", err_text());
        return err == CF_ERR_NOMEM ? EXIT_AGAIN : EXIT_CONFIG;
    }
    return usage("expected ls, show, import, rm, enroll or export");
}
