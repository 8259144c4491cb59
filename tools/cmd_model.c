/*
 * cmd_model.c - `cosyfarm model`: make a synthetic model, list the tensors of a file, say what is wrong with a
 * directory.
 * One process, one thread; owns the file at hand.
 * Fails: exit 64 usage, 75 out of memory, 78 file or directory unusable (interface.md 3).
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/recipe.h"
#include "common/model/tensor_file.h"
#include "tools/cmd.h"
#include "tools/model_check.h"
#include "tools/options.h"

static const char HELP[] =
    "usage: cosyfarm model make DIR [options]     write a synthetic model directory\n"
    "       cosyfarm model ls PATH [options]      the tensors of a file or a directory, one JSON line each\n"
    "       cosyfarm model check DIR [--verify]   what is wrong with a model directory\n"
    "\n"
    "make:\n"
    "      --size S          tiny (default, 15 MB), small (48 MB) or full (3.4 GB, the released shapes)\n"
    "      --seed N          every value follows from it (default 0)\n"
    "      --profile P       plain (default) or harsh: the Flow with the magnitudes of the released one\n"
    "      --format F        safetensors (default) or pt\n"
    "      --enroll          also the two networks that make voices (tiny 4 MB, small 22 MB, full 1 GB)\n"
    "      --force           write over the synthetic model that DIR holds\n"
    "      --tokenizer DIR   folder with vocab.json and merges.txt; a full model needs the released ones\n"
    "ls:\n"
    "      --hash            add the SHA-256 of each tensor's contiguous little-endian bytes\n"
    "      --verify          compare stored checksums first (.pt)\n"
    "      --json            accepted: the output is JSON lines in any case\n"
    "check:\n"
    "      --verify          read everything: checksums, values that are not finite, hashes of the files\n"
    "  -h, --help            this text\n"
    "\n"
    "Exit: 0 done, 64 usage, 75 out of memory, 78 file or directory unusable.\n";

enum {
    OPT_SIZE = 256,
    OPT_SEED,
    OPT_PROFILE,
    OPT_FORMAT,
    OPT_TOKENIZER,
    OPT_ENROLL,
    OPT_FORCE,
    OPT_HASH,
    OPT_VERIFY,
    OPT_JSON
};

typedef struct arguments {
    recipe recipe;
    recipe_format format;
    const char *tokenizer_path;
    const char *path;
    bool enroll, force, hash, verify, help;
} arguments;

static int usage(const char *fmt, const char *what)
{
    fprintf(stderr, "cosyfarm model: ");
    fprintf(stderr, fmt, what);
    fputc('\n', stderr);
    return EXIT_USAGE;
}

static int show_help(void)
{
    fputs(HELP, stdout);
    return EXIT_DONE;
}

static int fail(cf_err err)
{
    fprintf(stderr, "cosyfarm model: %s\n", err_text());
    return err == CF_ERR_NOMEM ? EXIT_AGAIN : EXIT_CONFIG;
}

/* Index of text among count words, or -1. */
static int word_idx(const char *text, const char *const *words, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(text, words[i]) == 0)
            return i;
    return -1;
}

static bool parse_seed(const char *text, uint64_t *ret_seed)
{
    uint64_t seed = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(seed, 10u, &seed) || __builtin_add_overflow(seed, (uint64_t)(*p - '0'), &seed))
            return false;
    *ret_seed = seed;
    return p != text && *p == '\0';
}

/* One option of `make`; EXIT_DONE or EXIT_USAGE with the complaint printed. */
static int parse_make_option(int opt, const char *text, arguments *a)
{
    static const char *const SIZES[] = {"tiny", "small", "full"};
    static const char *const PROFILES[] = {"plain", "harsh"};
    static const char *const FORMATS[] = {"safetensors", "pt"};
    int idx = 0;
    switch (opt) {
    case OPT_SIZE:
        idx = word_idx(text, SIZES, 3);
        a->recipe.size = (recipe_size)idx;
        return idx < 0 ? usage("--size: expected tiny, small or full, found \"%s\"", text) : EXIT_DONE;
    case OPT_SEED:
        return parse_seed(text, &a->recipe.seed)
                   ? EXIT_DONE
                   : usage("--seed: expected an unsigned 64-bit integer, found \"%s\"", text);
    case OPT_PROFILE:
        idx = word_idx(text, PROFILES, 2);
        a->recipe.harsh = idx == 1;
        return idx < 0 ? usage("--profile: expected plain or harsh, found \"%s\"", text) : EXIT_DONE;
    case OPT_FORMAT:
        idx = word_idx(text, FORMATS, 2);
        a->format = (recipe_format)idx;
        return idx < 0 ? usage("--format: expected safetensors or pt, found \"%s\"", text) : EXIT_DONE;
    default:
        a->tokenizer_path = text;
        return EXIT_DONE;
    }
}

/* Options of one sub-verb and its single operand. */
static int parse_arguments(int argc, char **argv, const struct option *options, arguments *ret_args)
{
    arguments a = {0};
    optind = 0; /* a fresh scan: tests call this more than once */
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        int code = EXIT_DONE;
        switch (opt) {
        case 'h':
            a.help = true;
            break;
        case OPT_ENROLL:
            a.enroll = true;
            break;
        case OPT_FORCE:
            a.force = true;
            break;
        case OPT_HASH:
            a.hash = true;
            break;
        case OPT_VERIFY:
            a.verify = true;
            break;
        case OPT_JSON:
            break;
        case '?':
            options_refused(argv, "model");
            return usage("%s", err_text());
        default:
            code = parse_make_option(opt, optarg, &a);
        }
        if (code != EXIT_DONE)
            return code;
    }
    if (!a.help && optind + 1 != argc)
        return usage("%s: expected one path", argv[0]);
    a.path = a.help ? NULL : argv[optind];
    *ret_args = a;
    return EXIT_DONE;
}

/* A stage's file would be written over, or beside one that then no longer counts. */
static cf_err check_empty(const char *path)
{
    char found[IO_PATH_BYTES];
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++)
        if (model_dir_stage_file(path, (model_stage)stage, false, found) == CF_OK)
            return err_set(CF_ERR_BUSY, "%s is there already; choose another directory, or --force", found);
    return CF_OK;
}

static int model_make(int argc, char **argv)
{
    static const struct option options[] = {
        {"size", required_argument, NULL, OPT_SIZE},
        {"seed", required_argument, NULL, OPT_SEED},
        {"profile", required_argument, NULL, OPT_PROFILE},
        {"format", required_argument, NULL, OPT_FORMAT},
        {"tokenizer", required_argument, NULL, OPT_TOKENIZER},
        {"enroll", no_argument, NULL, OPT_ENROLL},
        {"force", no_argument, NULL, OPT_FORCE},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    arguments a;
    const int code = parse_arguments(argc, argv, options, &a);
    if (code != EXIT_DONE)
        return code;
    if (a.help)
        return show_help();
    cf_err err = a.force ? CF_OK : check_empty(a.path);
    if (err == CF_OK)
        err = recipe_make_dir(&a.recipe, a.format, a.tokenizer_path, a.path);
    if (err == CF_OK && a.enroll)
        err = recipe_make_networks(&a.recipe, a.path);
    return err == CF_OK ? EXIT_DONE : fail(err);
}

/* {"name","dtype","shape","sha256"}, with the file in front when several are listed. */
static cf_err print_entry(const tensor_entry *e, const char *file, bool hash)
{
    cf_err err = CF_OK;
    char hex[SHA256_HEX_BYTES];
    char *line = NULL;
    json *o = json_object();
    json *shape = json_array();
    for (int d = 0; d < e->rank; d++)
        json_push(shape, json_num((double)e->shape[d]));
    if (file)
        json_put_str(o, "file", file);
    json_put_str(o, "name", e->name);
    json_put_str(o, "dtype", entry_dtype_name(e->type));
    json_put(o, "shape", shape);
    if (hash) {
        TRY(entry_sha256(e, hex));
        json_put_str(o, "sha256", hex);
    }
    TRY(json_print(o, false, &line));
    puts(line);
out:
    mem_free(line);
    json_close(o);
    return err;
}

static cf_err list_file(const arguments *a, const char *path, const char *shown_file)
{
    cf_err err;
    tensor_file *f = NULL;
    TRY(tensor_file_open(path, &f));
    if (tensor_table_warning(tensor_file_table(f)))
        fprintf(stderr, "cosyfarm model: warning: %s: %s\n", path, tensor_table_warning(tensor_file_table(f)));
    if (a->verify)
        TRY(tensor_file_verify(f));
    for (size_t i = 0; i < tensor_file_count(f); i++)
        TRY(print_entry(tensor_file_at(f, i), shown_file, a->hash));
out:
    tensor_file_close(f);
    return err;
}

static cf_err list_path(const arguments *a)
{
    cf_err err = CF_OK;
    struct stat st;
    if (stat(a->path, &st) != 0 || !S_ISDIR(st.st_mode))
        return list_file(a, a->path, NULL);
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++) {
        char path[IO_PATH_BYTES];
        TRY(model_dir_stage_file(a->path, (model_stage)stage, false, path));
        TRY(list_file(a, path, strrchr(path, '/') + 1));
    }
out:
    return err;
}

static int model_ls(int argc, char **argv)
{
    static const struct option options[] = {
        {"hash", no_argument, NULL, OPT_HASH},
        {"verify", no_argument, NULL, OPT_VERIFY},
        {"json", no_argument, NULL, OPT_JSON},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    arguments a;
    const int code = parse_arguments(argc, argv, options, &a);
    if (code != EXIT_DONE)
        return code;
    if (a.help)
        return show_help();
    const cf_err err = list_path(&a);
    return err == CF_OK ? EXIT_DONE : fail(err);
}

static int model_check_verb(int argc, char **argv)
{
    static const struct option options[] = {
        {"verify", no_argument, NULL, OPT_VERIFY}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    arguments a;
    const int code = parse_arguments(argc, argv, options, &a);
    if (code != EXIT_DONE)
        return code;
    if (a.help)
        return show_help();
    size_t problems;
    const cf_err err = model_check(a.path, a.verify, stdout, stderr, &problems);
    if (err != CF_OK)
        return fail(err);
    return problems == 0 ? EXIT_DONE : EXIT_CONFIG;
}

int cmd_model(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int, char **);
    } VERBS[] = {{"make", model_make}, {"ls", model_ls}, {"check", model_check_verb}};
    if (argc < 2)
        return usage("expected make, ls or check%s", "");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return show_help();
    for (size_t i = 0; i < CF_COUNT(VERBS); i++)
        if (strcmp(argv[1], VERBS[i].name) == 0)
            return VERBS[i].run(argc - 1, argv + 1);
    return usage("expected make, ls or check, found \"%s\"", argv[1]);
}
