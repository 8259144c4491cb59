/*
 * cmd_say.c - `cosyfarm say`: one utterance, on the running farm, or on a private one that lives as long as the
 * command.
 * The client's process; with a private farm also its supervisor. Fails: exit codes of tools/cmd.h, one line on stderr.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/base/utf8.h"
#include "common/text/frontend.h"
#include "orchestrator/audio_file.h"
#include "orchestrator/farm_watch.h"
#include "tools/client.h"
#include "tools/cmd.h"
#include "tools/farm_options.h"
#include "tools/options.h"

#define SILENCE_US     (60 * CLOCK_SECOND_US)
#define ABSENT_US      (20 * CLOCK_SECOND_US) /* four times a supervisor's longest pause between two starts */
#define DEADLINE_S_MAX 100000000              /* of a submit message */
#define TEXT_STDIN_MAX TEXT_BYTES_MAX

typedef struct say {
    farm_options farm;
    client_row row;
    const char *out; /* as given; "-" is standard output */
    char path[IO_PATH_BYTES], temp_dir[IO_PATH_BYTES], prompt_wav[PATH_MAX], source_wav[PATH_MAX];
    bool is_convert;
    char **words; /* borrowed from the command line: the text, or "-" */
    int words_count;
    char *text; /* owned */
    bool as_float, as_json, quiet;
    int signal_fd, exit_code;
    uint64_t started_us, farm_up_us;
    farm_watch stages; /* of a farm that others look after */
    char gave_up[512]; /* "" as long as it need not */
} say;

static const char say_help[] =
    "usage: cosyfarm say [-m MODEL] [-v VOICE] [-o FILE] [options] TEXT...\n\n"
    "Speaks TEXT (or standard input, for -) into FILE (default cosyfarm.wav; .wav .flac .ogg .mp3; - writes WAV to\n"
    "standard output). Uses the farm of the run directory when one runs, else a private one. Without a model the demo\n"
    "voice speaks.\n\n" FARM_OPTIONS_HELP
    "  -v, --voice NAME      voice of the model directory (default: the first by name)\n"
    "  -o, --output FILE     where to\n"
    "      --mode MODE       zero_shot (default), cross_lingual, instruct\n"
    "      --instruct TEXT   how to speak; implies --mode instruct\n"
    "      --prompt-wav FILE a recording as the voice, 0.5 to 30 s, with its transcript in\n"
    "      --prompt-text TEXT\n"
    "      --seed N          same text, voice and seed give the same bytes (default 0)\n"
    "      --speed X         0.5 .. 2\n"
    "      --raw             no normalisation, one segment\n"
    "      --deadline S      seconds from when the farm has taken it until it fails instead\n"
    "      --float           32-bit float samples (.wav)\n"
    "      --json            the result as one JSON object, with -o - on standard error\n"
    "  -q, --quiet           no progress\n";

static const char convert_help[] =
    "usage: cosyfarm convert IN.wav -m MODEL [-v VOICE] [-o FILE] [options]\n\n"
    "The words and the rhythm of a recording in another voice: its speech tokens are rendered with VOICE.\n"
    "Options are those of say, without those about text. IN.wav is anything libsndfile reads, at least 16 kHz.\n";

enum {
    OPT_PROMPT_WAV = 100,
    OPT_PROMPT_TEXT,
    OPT_DEADLINE,
    OPT_MODE = 1,
    OPT_INSTRUCT,
    OPT_SEED,
    OPT_SPEED,
    OPT_RAW,
    OPT_FLOAT,
    OPT_JSON
};

/* The orchestrator has another working folder. */
static cf_err absolute_path(const char *path, char buf[PATH_MAX], const char **ret_path)
{
    if (!realpath(path, buf))
        return err_sys("%s", path);
    *ret_path = buf;
    return CF_OK;
}

static cf_err take_option(say *s, int letter)
{
    cf_err err = CF_OK;
    if (farm_options_take(&s->farm, letter, optarg, &err))
        return err;
    switch (letter) {
    case 'v':
        s->row.voice = optarg;
        break;
    case 'o':
        s->out = optarg;
        break;
    case OPT_MODE:
        s->row.mode = optarg;
        break;
    case OPT_INSTRUCT:
        s->row.instruct = optarg;
        break;
    case OPT_PROMPT_WAV:
        return absolute_path(optarg, s->prompt_wav, &s->row.prompt_wav);
    case OPT_PROMPT_TEXT:
        s->row.prompt_text = optarg;
        break;
    case OPT_SEED:
        return farm_options_number("--seed", optarg, UINT64_MAX, &s->row.seed);
    case OPT_SPEED:
        return farm_options_speed(optarg, &s->row.speed);
    case OPT_DEADLINE:
        err = farm_options_number("--deadline", optarg, DEADLINE_S_MAX, &s->row.deadline_ms);
        s->row.deadline_ms *= 1000;
        return err;
    case OPT_RAW:
        s->row.raw = true;
        break;
    case OPT_FLOAT:
        s->as_float = true;
        break;
    case OPT_JSON:
        s->as_json = true;
        break;
    case 'q':
        s->quiet = true;
        break;
    default:
        CF_ASSERT(false); /* the table of parse has no other */
    }
    return CF_OK;
}

static cf_err read_stdin(char **ret_text)
{
    cf_err err;
    char *text = NULL;
    TRY(mem_alloc(TEXT_STDIN_MAX + 2, 1, &text));
    const size_t n = fread(text, 1, TEXT_STDIN_MAX + 1, stdin);
    if (ferror(stdin)) {
        err = err_sys("standard input");
        goto out;
    }
    const char *nul = memchr(text, '\0', n);
    if (n > TEXT_STDIN_MAX)
        FAIL(CF_ERR_LIMIT, "standard input: more than %d bytes of text", TEXT_STDIN_MAX);
    if (nul)
        FAIL(CF_ERR_INVALID, "text: NUL at byte %zu: a row's text ends there", (size_t)(nul - text));
    *ret_text = text;
    text = NULL;
out:
    mem_free(text);
    return err;
}

/* All words, joined by one space. */
static cf_err join_text(int argc, char **argv, char **ret_text)
{
    cf_err err;
    size_t bytes = 1;
    if (argc == 1 && strcmp(argv[0], "-") == 0)
        return read_stdin(ret_text);
    for (int i = 0; i < argc; i++)
        bytes += strlen(argv[i]) + 1;
    char *text;
    TRY(mem_alloc(bytes, 1, &text));
    size_t at = 0;
    for (int i = 0; i < argc; i++)
        at += (size_t)snprintf(text + at, bytes - at, i > 0 ? " %s" : "%s", argv[i]);
    *ret_text = text;
out:
    return err;
}

/* What goes into a message is UTF-8. */
static cf_err check_utf8(const say *s)
{
    const struct {
        const char *what, *text;
    } words[] = {{"text", s->row.text},
                 {"--voice", s->row.voice},
                 {"--instruct", s->row.instruct},
                 {"--prompt-text", s->row.prompt_text},
                 {"--prompt-wav", s->row.prompt_wav},
                 {"recording", s->row.source_wav},
                 {"--output", s->row.path}};
    size_t bad_off;
    for (size_t i = 0; i < CF_COUNT(words); i++)
        if (words[i].text && !utf8_valid(words[i].text, strlen(words[i].text), &bad_off))
            return err_set(CF_ERR_INVALID, "%s: invalid UTF-8 at byte %zu", words[i].what, bad_off);
    return CF_OK;
}

/* Everything between options and work: the configuration, and the text, for which standard input may be read. */
static cf_err prepare(say *s)
{
    cf_err err;
    TRY(farm_options_load(&s->farm));
    if (!s->is_convert) {
        TRY(join_text(s->words_count, s->words, &s->text));
        s->row.text = s->text;
    }
    err = check_utf8(s);
out:
    return err;
}

/* Where the orchestrator writes: an absolute path, or a private file for standard output. */
static cf_err choose_path(say *s)
{
    cf_err err = CF_OK;
    char cwd[PATH_MAX];
    if (strcmp(s->out, "-") == 0) {
        TRY(io_temp_dir(NULL, "cosyfarm-out", s->temp_dir, sizeof s->temp_dir));
        TRY(io_join(s->path, sizeof s->path, s->temp_dir, "out.wav"));
        s->row.format = s->as_float ? "wav-float" : "wav";
    } else {
        TRY(audio_format_of_path(s->out, s->as_float, &s->row.format));
        if (s->out[0] == '/')
            snprintf(s->path, sizeof s->path, "%s", s->out);
        else if (!getcwd(cwd, sizeof cwd))
            err = err_sys("getcwd");
        else
            TRY(io_join(s->path, sizeof s->path, cwd, s->out));
    }
    s->row.path = s->path;
out:
    return err;
}

/* say: the words of the text. convert: the recording, and no text at all. */
static cf_err take_words(say *s, int argc, char **argv)
{
    cf_err err;
    s->words = argv;
    s->words_count = argc;
    if (!s->is_convert)
        return CF_OK;
    if (argc != 1 || s->row.instruct || s->row.prompt_wav)
        FAIL(CF_ERR_INVALID, "convert takes one recording, and no instruction or prompt");
    s->row.text = "";
    TRY(absolute_path(argv[0], s->source_wav, &s->row.source_wav));
out:
    return err;
}

static cf_err parse(say *s, int argc, char **argv, bool *ret_help)
{
    static const struct option options[] = {FARM_LONG_OPTIONS,
                                            {"voice", required_argument, NULL, 'v'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"mode", required_argument, NULL, OPT_MODE},
                                            {"instruct", required_argument, NULL, OPT_INSTRUCT},
                                            {"prompt-wav", required_argument, NULL, OPT_PROMPT_WAV},
                                            {"prompt-text", required_argument, NULL, OPT_PROMPT_TEXT},
                                            {"seed", required_argument, NULL, OPT_SEED},
                                            {"speed", required_argument, NULL, OPT_SPEED},
                                            {"deadline", required_argument, NULL, OPT_DEADLINE},
                                            {"raw", no_argument, NULL, OPT_RAW},
                                            {"float", no_argument, NULL, OPT_FLOAT},
                                            {"json", no_argument, NULL, OPT_JSON},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    cf_err err = CF_OK;
    text_mode mode;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, FARM_SHORT_OPTIONS "v:o:qh", options, NULL)) != -1;) {
        if (c == 'h') {
            *ret_help = true;
            return CF_OK;
        }
        if (c == '?')
            return options_refused(argv, argv[0]);
        TRY(take_option(s, c));
    }
    if (optind == argc)
        FAIL(CF_ERR_INVALID, s->is_convert ? "nothing to convert: give a recording"
                                           : "nothing to say: give TEXT, or - for standard input");
    if (!s->row.mode)
        s->row.mode = s->row.instruct ? "instruct" : "zero_shot";
    TRY(text_mode_from_name(s->row.mode, &mode));
    if ((mode == TEXT_INSTRUCT) != (s->row.instruct != NULL))
        FAIL(CF_ERR_INVALID, "--instruct TEXT goes with --mode instruct, and only with it");
    TRY(take_words(s, argc - optind, argv + optind));
    TRY(choose_path(s));
out:
    return err;
}

/* ---- running ---- */

static void show_queues(const say *s, const wire_msg *status)
{
    char line[160] = "";
    size_t n = 0;
    for (int i = 0; i < MODEL_STAGE_COUNT && n < sizeof line; i++) {
        uint64_t waiting = 0, running = 0;
        const char *name = model_stage_name((model_stage)i);
        const char *word = farm_workers_word(farm_workers(status, (model_stage)i));
        const json *q = json_find(wire_json(status, "queues"), name);
        if (!q || json_get_u64(q, "waiting", 0, UINT64_MAX, &waiting) != CF_OK ||
            json_get_u64(q, "running", 0, UINT64_MAX, &running) != CF_OK)
            continue;
        n += (size_t)snprintf(line + n, sizeof line - n, "  %s %" PRIu64 "+%" PRIu64 "%s%s", name, running, waiting,
                              word[0] ? " " : "", word);
    }
    fprintf(stderr, "\r%.1f s%s \033[K", (double)(clock_now_us() - s->started_us) / 1e6, line);
}

/* A farm of its own is judged by how its processes end (spawn_check_served). A recording needs no llm, whoever else
 * waits for one. */
static bool stages_serve(say *s, const wire_msg *status)
{
    const unsigned needed = farm_awaited(status) & (s->is_convert ? ~(1u << MODEL_LLM) : FARM_ALL_STAGES);
    if (s->farm_up_us > 0 || farm_watch_hear(&s->stages, status, needed, ABSENT_US, clock_now_us()) == CF_OK)
        return true;
    snprintf(s->gave_up, sizeof s->gave_up, "%s", err_text());
    return false;
}

static client_stop on_tick(void *ctx, const wire_msg *status)
{
    say *s = ctx;
    if (process_read_signal(s->signal_fd) != 0)
        return CLIENT_STOP;
    if (status && isatty(STDERR_FILENO) && !s->quiet)
        show_queues(s, status);
    return status && !stages_serve(s, status) ? CLIENT_STOP : CLIENT_GO_ON;
}

static double f64_of(const json *obj, const char *key)
{
    double value = 0;
    return json_get_f64(obj, key, -1e300, 1e300, &value) == CF_OK ? value : 0;
}

/* Where the audio does not go. */
static FILE *report_stream(const say *s)
{
    return strcmp(s->out, "-") == 0 ? stderr : stdout;
}

static void report_done(const say *s, const wire_msg *done)
{
    const double seconds = wire_f64(done, "seconds");
    const double spent = (double)(clock_now_us() - s->started_us) / 1e6;
    const json *ms = wire_json(done, "ms");
    fprintf(report_stream(s),
            "%s: %.2f s of audio in %.2f s, %.2fx real time (llm %.2f, flow %.2f, hift %.2f s of computing; %s)\n",
            strcmp(s->out, "-") == 0 ? "standard output" : s->out, seconds, spent, seconds / spent,
            f64_of(ms, "llm") / 1e3, f64_of(ms, "flow") / 1e3, f64_of(ms, "hift") / 1e3,
            s->farm_up_us ? "cold start included" : "running farm");
}

/* Who asked for an object and gets none has to do it again. */
static void report_json(say *s, const wire_msg *done)
{
    char *text = NULL;
    if (json_print(done->root, false, &text) == CF_OK) {
        fprintf(report_stream(s), "%s\n", text);
    } else {
        fprintf(stderr, "cosyfarm: --json: %s\n", err_text());
        s->exit_code = EXIT_AGAIN;
    }
    mem_free(text);
}

static void on_ended(void *ctx, size_t row_idx, const wire_msg *done)
{
    say *s = ctx;
    (void)row_idx;
    if (isatty(STDERR_FILENO) && !s->quiet)
        fputs("\r\033[K", stderr);
    if (strcmp(wire_str(done, "status"), "done") == 0) {
        s->exit_code = EXIT_DONE;
        if (s->as_json)
            report_json(s, done);
        else if (!s->quiet)
            report_done(s, done);
        return;
    }
    const char *code = "", *stage = "", *text = "";
    const json *e = wire_has(done, "error") ? wire_json(done, "error") : NULL;
    if (e && (json_get_str(e, "code", 64, &code) != CF_OK || json_get_str(e, "stage", 64, &stage) != CF_OK ||
              json_get_str(e, "text", 4096, &text) != CF_OK))
        text = "unreadable error";
    fprintf(stderr, "cosyfarm: %s: %s: %s\n", stage, code, text);
    const bool refused = strcmp(wire_str(done, "status"), "refused") == 0;
    const cf_err err = err_from_name(code);
    s->exit_code = err == CF_ERR_STORAGE || (refused && err == CF_ERR_BUSY) ? EXIT_AGAIN
                   : refused                                                ? EXIT_CONFIG
                                                                            : EXIT_ROWS_FAILED;
}

static cf_err copy_to_stdout(const say *s)
{
    cf_err err;
    io_map file = {0};
    TRY(io_map_file(s->path, &file));
    err = io_write_all(STDOUT_FILENO, file.data, file.data_bytes);
    if (err != CF_OK)
        err = err_context(err, "standard output");
out:
    io_unmap(&file);
    return err;
}

static cf_err run(say *s)
{
    cf_err err;
    char run_dir[IO_PATH_BYTES];
    private_farm own = {{0}, {0}, NULL, -1};
    client *c = NULL;
    bool is_own = false;
    const client_handler handler = {s, on_ended, on_tick};
    TRY(process_run_dir(run_dir, sizeof run_dir));
    if (!client_farm_runs(run_dir)) {
        const bool demo = !s->farm.cfg.model[0] && !s->is_convert;
        if (demo)
            TRY(farm_options_take_demo(&s->farm));
        TRY(farm_options_check(&s->farm));
        if (demo && !s->quiet)
            fputs("cosyfarm: no model given: the demo voice speaks, a small model of 335 words\n", stderr);
        s->farm_up_us = clock_now_us();
        TRY(private_farm_open(&s->farm.cfg, NULL, &own));
        is_own = true;
        snprintf(run_dir, sizeof run_dir, "%s", own.run_dir);
    }
    TRY(client_open(run_dir, &c));
    client_supervise(c, own.farm, 0);
    if (!is_own)
        TRY(farm_options_check_running(&s->farm, c));
    s->row.id = "say";
    err = client_run_list(c, &s->row, 1, false, SILENCE_US, &handler);
    if (err == CF_ERR_CANCELLED && s->gave_up[0])
        err = err_set(CF_ERR_GONE, "%s", s->gave_up);
    if (err != CF_OK)
        goto out;
    if (s->exit_code == EXIT_DONE && strcmp(s->out, "-") == 0)
        TRY(copy_to_stdout(s));
out:
    client_close(c);
    if (is_own) {
        private_farm_close(&own, err != CF_OK && err != CF_ERR_CANCELLED);
        if (own.log_path[0])
            fprintf(stderr, "cosyfarm: the farm's log is %s\n", own.log_path);
    }
    return err;
}

static int exit_code_of(cf_err err)
{
    switch (err) {
    case CF_ERR_CANCELLED:
    case CF_ERR_NOMEM:
    case CF_ERR_BUSY:
    case CF_ERR_STORAGE:
    case CF_ERR_GONE:
        return EXIT_AGAIN;
    case CF_ERR_TIMEOUT:
        return EXIT_NO_FARM;
    case CF_ERR_SYS:
        return EXIT_OURS;
    default:
        return EXIT_CONFIG;
    }
}

int cmd_say(int argc, char **argv)
{
    static say s; /* one per process; long paths */
    s = (say){.out = "cosyfarm.wav",
              .row = {.speed = 1, .priority = 9, .impatient = true},
              .signal_fd = -1,
              .exit_code = EXIT_OURS};
    bool help = false;
    s.is_convert = strcmp(argv[0], "convert") == 0;
    s.started_us = clock_now_us();
    farm_options_init(&s.farm);
    cf_err err = parse(&s, argc, argv, &help);
    if (help)
        fputs(s.is_convert ? convert_help : say_help, stdout);
    if (help || err != CF_OK) {
        if (!help)
            fprintf(stderr, "cosyfarm %s: %s\n", argv[0], err_text());
        mem_free(s.text);
        return help ? EXIT_DONE : EXIT_USAGE;
    }
    err = prepare(&s); /* standard input may last: ^C still ends the process here */
    if (err == CF_OK)
        err = process_signal_fd(&s.signal_fd);
    if (err == CF_OK)
        err = run(&s);
    if (err != CF_OK)
        fprintf(stderr, "cosyfarm %s: %s\n", argv[0], err_text());
    if (s.temp_dir[0]) {
        unlink(s.path);
        rmdir(s.temp_dir);
    }
    io_close(&s.signal_fd);
    mem_free(s.text);
    return err == CF_OK ? s.exit_code : exit_code_of(err);
}
