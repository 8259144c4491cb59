/*
 * cmd_parity.c - `cosyfarm parity`: does this build, on this machine, with this model, compute what the reference did?
 * One process, one thread; owns the cases while they are compared.
 * Fails: exit 64 usage, 65 a comparison failed, 75 out of memory, 78 model or case unusable (interface.md 3).
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "tools/cmd.h"
#include "tools/options.h"
#include "tools/parity_frame.h"

static const char HELP[] =
    "usage: cosyfarm parity -m MODEL_DIR [options] CASE...\n"
    "\n"
    "Runs each case (.safetensors) through the code the workers use, alone and in a batch, and compares every tensor\n"
    "with the reference's (docs/model/cases.md). The last line is `N passed, M failed`.\n"
    "\n"
    "  -m, --model DIR       model directory (or COSYFARM_MODEL)\n"
    "      --device DEV      cpu (default) or cuda:N\n"
    "      --precision P     f32 (default), bf16, int8 (the LLM's weights) or fp16; each has its bounds\n"
    "      --naive           the plain loops that are the truth of the op suite\n"
    "      --json            one JSON object per comparison on stdout; the last line goes to stderr\n"
    "      --capture DIR     also write what was computed, as case files for others to compare with\n"
    "  -h, --help            this text\n"
    "\n"
    "Exit: 0 all passed, 65 something failed, 64 usage, 78 model or case unusable.\n";

typedef struct arguments {
    parity_options options;
    const char *capture_dir;
    bool json, help;
    char **paths; /* [path_count], borrowed from argv */
    int path_count;
} arguments;

static int usage(const char *what)
{
    fprintf(stderr, "cosyfarm parity: %s\n", what);
    return EXIT_USAGE;
}

/* int8: the LLM's weights, beside bf16 operands. */
static bool parse_precision(const char *text, precision *ret_operands, bool *ret_int8)
{
    *ret_int8 = strcmp(text, "int8") == 0;
    if (*ret_int8)
        text = "bf16";
    static const char *const names[] = {"f32", "bf16", "fp16"};
    static const precision values[] = {PRECISION_F32, PRECISION_BF16, PRECISION_FP16};
    for (size_t i = 0; i < CF_COUNT(names); i++)
        if (strcmp(text, names[i]) == 0) {
            *ret_operands = values[i];
            return true;
        }
    return false;
}

/* EXIT_DONE, or EXIT_USAGE with the complaint printed. */
static int parse_arguments(int argc, char **argv, arguments *ret_args)
{
    enum { OPT_DEVICE = 256, OPT_PRECISION, OPT_NAIVE, OPT_JSON, OPT_CAPTURE };
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},
        {"device", required_argument, NULL, OPT_DEVICE},
        {"precision", required_argument, NULL, OPT_PRECISION},
        {"naive", no_argument, NULL, OPT_NAIVE},
        {"json", no_argument, NULL, OPT_JSON},
        {"capture", required_argument, NULL, OPT_CAPTURE},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    arguments a = {.options = {.model_dir = getenv("COSYFARM_MODEL"), .device = "cpu", .operands = PRECISION_F32}};
    optind = 0; /* a fresh scan: tests call this more than once */
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, "m:h", options, NULL)) != -1;) {
        switch (opt) {
        case 'm':
            a.options.model_dir = optarg;
            break;
        case OPT_DEVICE:
            a.options.device = optarg;
            break;
        case OPT_PRECISION:
            if (!parse_precision(optarg, &a.options.operands, &a.options.int8_weights))
                return usage("--precision: expected f32, bf16, int8 or fp16");
            break;
        case OPT_NAIVE:
            a.options.naive = true;
            break;
        case OPT_JSON:
            a.json = true;
            break;
        case OPT_CAPTURE:
            a.capture_dir = optarg;
            break;
        case 'h':
            a.help = true;
            break;
        default:
            options_refused(argv, "parity");
            return usage(err_text());
        }
    }
    a.paths = argv + optind;
    a.path_count = argc - optind;
    *ret_args = a;
    if (a.help)
        return EXIT_DONE;
    if (!a.options.model_dir || !a.options.model_dir[0])
        return options_no_model("parity");
    return a.path_count ? EXIT_DONE : usage("no case given");
}

/* Writing two cases to one capture file would lose one of them. */
static bool capture_names_clash(const arguments *a)
{
    for (int i = 0; a->capture_dir && i < a->path_count; i++)
        for (int j = 0; j < i; j++) {
            const char *x = strrchr(a->paths[i], '/'), *y = strrchr(a->paths[j], '/');
            if (strcmp(x ? x + 1 : a->paths[i], y ? y + 1 : a->paths[j]) == 0) {
                fprintf(stderr, "cosyfarm parity: --capture: %s and %s would become one file; give them in two runs\n",
                        a->paths[j], a->paths[i]);
                return true;
            }
        }
    return false;
}

static void print_text(const parity_line *line)
{
    fprintf(stdout, "%s", line->case_path);
    if (line->tensor_name)
        fprintf(stdout, " %s", line->tensor_name);
    if (line->compared) {
        char shape[ENTRY_SHAPE_BYTES], text[BOUND_TEXT_BYTES];
        entry_shape_text(line->dims, line->rank, shape);
        bound_text(line->rule, text);
        fprintf(stdout, " %s max %.3g mean %.3g rel %.3g snr %.1f dB (%s)", shape, line->stats.max_abs,
                line->stats.mean_abs, line->stats.rel, line->stats.snr_db, text);
    }
    fputs(line->pass ? " ok" : " FAIL", stdout);
    if (line->reason[0])
        fprintf(stdout, ": %s", line->reason);
    fputc('\n', stdout);
}

static void print_json(const parity_line *line)
{
    static const char *const figures[] = {"max_abs", "mean_abs", "rel", "snr_db"};
    const double values[] = {line->stats.max_abs, line->stats.mean_abs, line->stats.rel, line->stats.snr_db};
    json *obj = json_object(), *shape = json_array();
    char *text = NULL, bound_words[BOUND_TEXT_BYTES];
    json_put_str(obj, "case", line->case_path);
    json_put_str(obj, "tensor", line->tensor_name);
    for (int i = 0; i < line->rank; i++)
        json_push(shape, json_num((double)line->dims[i]));
    json_put(obj, "shape", shape);
    for (size_t i = 0; i < CF_COUNT(figures); i++) {
        if (line->compared && line->stats.finite)
            json_put_f64(obj, figures[i], values[i]);
        else
            json_put_str(obj, figures[i], NULL);
    }
    if (line->rule)
        bound_text(line->rule, bound_words);
    json_put_str(obj, "bound", line->rule ? bound_words : NULL);
    json_put_bool(obj, "pass", line->pass);
    if (line->stats.excluded_count)
        json_put_u64(obj, "excluded", line->stats.excluded_count);
    if (line->reason[0])
        json_put_str(obj, "reason", line->reason);
    if (json_print(obj, false, &text) == CF_OK)
        fprintf(stdout, "%s\n", text);
    else
        fprintf(stderr, "cosyfarm parity: %s\n", err_text());
    mem_free(text);
    json_close(obj);
}

static void print_line(void *ctx, const parity_line *line)
{
    if (((const arguments *)ctx)->json)
        print_json(line);
    else
        print_text(line);
    fflush(stdout); /* cases of a full model take minutes */
}

/* What a capture holds beside the stage's tensors is named once, never dropped in silence. */
static void note_ignored(const parity_case *c)
{
    for (size_t i = 0; i < parity_case_count(c); i++) {
        const case_tensor *t = parity_case_at(c, i);
        if (t->role == CASE_IGNORED)
            fprintf(stderr, "note: %s: %s is not compared: %s\n", parity_case_path(c), t->file_name, t->note);
    }
}

static int exit_code(cf_err err)
{
    switch (err) {
    case CF_ERR_NOMEM:
        return EXIT_AGAIN;
    case CF_ERR_DEVICE:
        return EXIT_OURS;
    default:
        return EXIT_CONFIG;
    }
}

static int run(const arguments *a)
{
    static const parity_stage *const stages[] = {&parity_llm,   &parity_flow,  &parity_hift,   &parity_stream,
                                                 &parity_speed, &parity_voice, &parity_enroll, NULL};
    const parity_run request = {.options = &a->options,
                                .stages = stages,
                                .capture_dir = a->capture_dir,
                                .report = print_line,
                                .ctx = (void *)a};
    parity_case **cases = NULL;
    parity_totals totals = {0};
    size_t count = 0;
    cf_err err;
    TRY(mem_alloc((size_t)a->path_count, sizeof *cases, &cases));
    for (; count < (size_t)a->path_count; count++) {
        TRY(parity_case_open(a->paths[count], &cases[count]));
        note_ignored(cases[count]);
    }
    if (a->capture_dir)
        TRY(io_make_dirs(a->capture_dir, 0777));
    TRY(parity_run_cases(&request, cases, count, &totals));
    fprintf(a->json ? stderr : stdout, "%zu passed, %zu failed\n", totals.passed, totals.failed);
out:
    for (size_t i = 0; cases && i < count; i++)
        parity_case_close(cases[i]);
    mem_free(cases);
    if (err == CF_OK)
        return totals.failed ? EXIT_ROWS_FAILED : EXIT_DONE;
    fprintf(stderr, "cosyfarm parity: %s\n", err_text());
    return exit_code(err);
}

int cmd_parity(int argc, char **argv)
{
    arguments a;
    const int code = parse_arguments(argc, argv, &a);
    if (code != EXIT_DONE)
        return code;
    if (a.help) {
        fputs(HELP, stdout);
        return EXIT_DONE;
    }
    return capture_names_clash(&a) ? EXIT_USAGE : run(&a);
}
