/*
 * main.c - enroll: one recording in, one voice or one list of speech tokens out, then the process ends. Started by the
 * command and by the orchestrator; what it decodes comes from strangers, so it dies alone.
 *
 * One JSON object on stdout when all went well, messages on stderr otherwise; docs/INTERFACE.md has both.
 * Fails: exit 64 usage, 65 recording or transcript refused, 75 out of memory or disk, 78 model or networks unusable.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/model/model_dir.h"
#include "common/model/network_hash.h"
#include "common/model/voice_store.h"
#include "enroll/enroll.h"

#define EXIT_REFUSED      65 /* EXIT_ROWS_FAILED of the command */
#define STORE_MIB_DEFAULT 256
#define STORE_MIB_MAX     1048576

static const char HELP[] =
    "usage: enroll -m MODEL --wav FILE (--text TEXT | --no-text) (--name NAME | --out FILE | --store DIR) [options]\n"
    "       enroll -m MODEL --wav FILE --tokens [options]\n"
    "\n"
    "Makes a voice from a recording of 0.5 to 30 s, or the speech tokens of one that shall be converted.\n"
    "\n"
    "  -m, --model DIR       model directory with speech_tokenizer_v3.onnx and campplus.onnx (or COSYFARM_MODEL)\n"
    "  -w, --wav FILE        the recording: anything libsndfile reads, at least 16 kHz\n"
    "  -t, --text TEXT       what is spoken in it, word for word\n"
    "      --no-text         a voice without transcript: for cross-lingual and instructed rows\n"
    "  -n, --name NAME       into MODEL/voices\n"
    "  -o, --out FILE        to a .safetensors file\n"
    "      --store DIR       into a folder of voices named by recording, transcript and networks\n"
    "      --store-mib N     what that folder may hold (default 256); the longest unused go\n"
    "      --tokens          the speech tokens alone, as JSON\n"
    "      --force           replace a voice that exists\n"
    "      --device D        cpu (default)\n"
    "      --threads N       compute threads (default: all)\n"
    "      --naive           plain reference loops\n"
    "  -h, --help            this text\n"
    "  -V, --version         its version\n"
    "\n"
    "One JSON object on stdout. Exit: 0 done, 64 usage, 65 recording or transcript refused, 75 out of memory or disk,\n"
    "78 model unusable.\n";

typedef struct arguments {
    enroll_config config;
    const char *wav, *text, *name, *out, *store;
    uint64_t store_bytes_max;
    bool no_text, tokens, force, help, version;
} arguments;

/* Where the work stood when it failed: it decides the exit code. */
typedef enum phase { PHASE_RECORDING, PHASE_MODEL, PHASE_WORK, PHASE_SAVE } phase;

static int usage(const char *what)
{
    fprintf(stderr, "enroll: %s\n", what);
    return PROCESS_USAGE;
}

static bool parse_number(const char *text, long max, long *ret_value)
{
    char *end;
    const long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 0 || value > max)
        return false;
    *ret_value = value;
    return true;
}

enum { OPT_NO_TEXT = 256, OPT_STORE, OPT_STORE_MIB, OPT_TOKENS, OPT_FORCE, OPT_DEVICE, OPT_THREADS, OPT_NAIVE };

/* One option; false with the complaint in *ret_why. */
static bool take_option(int opt, arguments *a, const char **ret_why)
{
    long number = 0;
    switch (opt) {
    case 'm':
        a->config.model_path = optarg;
        return true;
    case 'w':
        a->wav = optarg;
        return true;
    case 't':
        a->text = optarg;
        return true;
    case 'n':
        a->name = optarg;
        return true;
    case 'o':
        a->out = optarg;
        return true;
    case OPT_NO_TEXT:
        a->no_text = true;
        return true;
    case OPT_STORE:
        a->store = optarg;
        return true;
    case OPT_STORE_MIB:
        *ret_why = "--store-mib: expected 0 to 1048576";
        if (!parse_number(optarg, STORE_MIB_MAX, &number))
            return false;
        a->store_bytes_max = (uint64_t)number << 20;
        return true;
    case OPT_TOKENS:
        a->tokens = a->config.tokens_only = true;
        return true;
    case OPT_FORCE:
        a->force = true;
        return true;
    case OPT_DEVICE:
        a->config.device = optarg;
        return true;
    case OPT_THREADS:
        *ret_why = "--threads: expected 0 (all) to 256";
        if (!parse_number(optarg, 256, &number))
            return false;
        a->config.threads = (int)number;
        return true;
    case OPT_NAIVE:
        a->config.naive = true;
        return true;
    case 'h':
        a->help = true;
        return true;
    case 'V':
        a->version = true;
        return true;
    default:
        *ret_why = NULL; /* getopt_long has said it */
        return false;
    }
}

static int check_arguments(const arguments *a)
{
    const int places = (a->name != NULL) + (a->out != NULL) + (a->store != NULL);
    if (!a->config.model_path || !a->config.model_path[0]) {
        fputs("enroll: no model directory: give -m DIR or set COSYFARM_MODEL\n", stderr);
        return PROCESS_CONFIG;
    }
    if (!a->wav)
        return usage("no recording: --wav FILE");
    if (a->tokens && (places > 0 || a->text || a->no_text))
        return usage("--tokens makes no voice: neither transcript nor name");
    if (!a->tokens && (a->text != NULL) == a->no_text)
        return usage("expected one of --text TEXT and --no-text");
    if (!a->tokens && places != 1)
        return usage("expected one of --name, --out and --store");
    return PROCESS_DRAINED;
}

static int parse_arguments(int argc, char **argv, arguments *ret_args)
{
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"wav", required_argument, NULL, 'w'},
                                            {"text", required_argument, NULL, 't'},
                                            {"no-text", no_argument, NULL, OPT_NO_TEXT},
                                            {"name", required_argument, NULL, 'n'},
                                            {"out", required_argument, NULL, 'o'},
                                            {"store", required_argument, NULL, OPT_STORE},
                                            {"store-mib", required_argument, NULL, OPT_STORE_MIB},
                                            {"tokens", no_argument, NULL, OPT_TOKENS},
                                            {"force", no_argument, NULL, OPT_FORCE},
                                            {"device", required_argument, NULL, OPT_DEVICE},
                                            {"threads", required_argument, NULL, OPT_THREADS},
                                            {"naive", no_argument, NULL, OPT_NAIVE},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'V'},
                                            {NULL, 0, NULL, 0}};
    arguments a = {.config = {.model_path = getenv("COSYFARM_MODEL"), .device = "cpu"},
                   .store_bytes_max = (uint64_t)STORE_MIB_DEFAULT << 20};
    const char *why = NULL;
    for (int opt; (opt = getopt_long(argc, argv, "m:w:t:n:o:hV", options, NULL)) != -1;)
        if (!take_option(opt, &a, &why))
            return why ? usage(why) : PROCESS_USAGE;
    *ret_args = a;
    if (a.help || a.version)
        return PROCESS_DRAINED;
    if (optind != argc)
        return usage("unexpected argument");
    return check_arguments(&a);
}

/* ---- results ---- */

static double ms_of(uint64_t us)
{
    return (double)(us / 10) / 100.0;
}

static void put_recording(json *o, const recording *r)
{
    json *part = json_object();
    json_put_str(part, "sha256", r->sha256);
    json_put_f64(part, "seconds", r->seconds);
    json_put_u64(part, "rate_hz", (uint64_t)r->rate_hz);
    json_put_u64(part, "channels", (uint64_t)r->channels);
    json_put_f64(part, "peak", (double)r->peak);
    json_put_f64(part, "rms", r->rms);
    json_put(o, "recording", part);
}

static void put_warnings(json *o, const enroll_warnings *w)
{
    json *list = json_array();
    for (int i = 0; i < w->count; i++)
        json_push(list, json_str(w->text[i]));
    json_put(o, "warnings", list);
}

static void put_cost(json *o, const enroller *e, uint64_t start_us)
{
    char text[256];
    const enroll_times *t = enroller_times(e);
    json *ms = json_object();
    json_put_f64(ms, "features", ms_of(t->features_us));
    json_put_f64(ms, "tokens", ms_of(t->tokens_us));
    json_put_f64(ms, "speaker", ms_of(t->speaker_us));
    json_put_f64(ms, "all", ms_of(clock_now_us() - start_us));
    json_put(o, "ms", ms);
    json_put_u64(o, "peak_bytes", process_peak_bytes());
    enroller_describe(e, text, sizeof text);
    json_put_str(o, "with", text);
}

static cf_err print_object(json *o)
{
    cf_err err;
    char *line = NULL;
    TRY(json_print(o, false, &line));
    puts(line);
    if (fflush(stdout) != 0)
        err = err_sys("stdout");
out:
    mem_free(line);
    return err;
}

static void put_voice(json *o, const voice *v, const char *path, bool cached)
{
    json_put_str(o, "name", v->name);
    json_put_str(o, "file", path);
    json_put_str(o, "sha256", v->sha256);
    json_put_u64(o, "prompt_tokens", v->prompt_tokens);
    json_put_u64(o, "prompt_frames", v->prompt_tokens * FRAMES_PER_TOKEN);
    json_put_bool(o, "cached", cached);
}

/* ---- the work ---- */

typedef struct job {
    const arguments *args;
    uint64_t start_us;
    recording rec;
    enroll_warnings warnings;
    char path[IO_PATH_BYTES];            /* where the voice goes */
    char name[VOICE_NAME_BYTES_MAX + 1]; /* its name */
    phase at;
} job;

/* Path and name of the voice; for a store they follow from what it is made of. */
static cf_err place_voice(job *j)
{
    cf_err err;
    const arguments *a = j->args;
    char key[SHA256_HEX_BYTES];
    if (a->store) {
        TRY(voice_store_key_of(a->config.model_path, j->rec.sha256, a->text, key));
        snprintf(j->name, sizeof j->name, "%s", key);
        TRY(voice_store_path(a->store, key, j->path));
    } else if (a->name) {
        TRY(voice_name_check(a->name));
        snprintf(j->name, sizeof j->name, "%s", a->name);
        if (snprintf(j->path, sizeof j->path, "%s/voices/%s.safetensors", a->config.model_path, a->name) >=
            (int)sizeof j->path)
            FAIL(CF_ERR_LIMIT, "%s: path longer than %d bytes", a->config.model_path, IO_PATH_BYTES);
    } else {
        const char *slash = strrchr(a->out, '/'), *base = slash ? slash + 1 : a->out;
        const char *suffix = strstr(base, ".safetensors");
        snprintf(j->name, sizeof j->name, "%.*s", (int)(suffix ? (size_t)(suffix - base) : strlen(base)), base);
        TRY(voice_name_check(j->name));
        if (snprintf(j->path, sizeof j->path, "%s", a->out) >= (int)sizeof j->path)
            FAIL(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", a->out, IO_PATH_BYTES);
    }
    err = CF_OK;
out:
    return err;
}

static cf_err save_voice(job *j, const voice *v)
{
    cf_err err;
    char folder[IO_PATH_BYTES];
    const arguments *a = j->args;
    if (a->store || a->name) {
        snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(j->path, '/') - j->path), j->path);
        TRY(io_make_dirs(folder, 0755));
    }
    if (fault_hit("enroll.save"))
        FAIL(CF_ERR_SYS, "fault enroll.save");
    TRY(voice_save_file(j->path, v));
    if (a->store)
        TRY(voice_store_trim(a->store, a->store_bytes_max, j->path));
    err = CF_OK;
out:
    return err;
}

/* The voice that is there already, or NULL: then nothing stands in the way of a new one. */
static cf_err look_up(job *j, voice **ret_voice)
{
    cf_err err = CF_OK;
    const arguments *a = j->args;
    if (a->force || !io_exists(j->path))
        return CF_OK;
    if (!a->store)
        FAIL(CF_ERR_BUSY, "%s exists already; --force replaces it", j->path);
    if (!voice_store_has(j->path))
        return CF_OK;
    if (voice_load_file(j->path, ret_voice) != CF_OK)
        *ret_voice = NULL; /* damaged: made again */
out:
    return err;
}

static cf_err make_voice(job *j, json *o)
{
    cf_err err;
    enroller *e = NULL;
    voice *v = NULL;
    j->at = PHASE_RECORDING;
    TRY(enroll_check_recording(j->args->wav, &j->rec, j->args->text, &j->warnings));
    j->at = PHASE_MODEL;
    TRY(model_dir_detect(j->args->config.model_path));
    TRY(place_voice(j));
    TRY(look_up(j, &v));
    const bool cached = v != NULL;
    if (!cached) {
        TRY(enroller_open(&j->args->config, &e));
        j->at = PHASE_WORK;
        TRY(enroller_voice(e, j->name, &j->rec, j->args->text, &v));
        j->at = PHASE_SAVE;
        TRY(save_voice(j, v));
    }
    put_voice(o, v, j->path, cached);
    put_recording(o, &j->rec);
    put_warnings(o, &j->warnings);
    if (e)
        put_cost(o, e, j->start_us);
    j->at = PHASE_SAVE;
    TRY(print_object(o));
out:
    voice_close(v);
    enroller_close(e);
    return err;
}

static cf_err make_tokens(job *j, json *o)
{
    cf_err err;
    enroller *e = NULL;
    int32_t *tokens = NULL;
    size_t count = 0;
    j->at = PHASE_RECORDING;
    TRY(enroll_check_recording(j->args->wav, &j->rec, NULL, &j->warnings));
    j->at = PHASE_MODEL;
    TRY(enroller_open(&j->args->config, &e));
    j->at = PHASE_WORK;
    TRY(enroller_tokens(e, &j->rec, &tokens, &count));
    json_put_i32s(o, "tokens", tokens, count);
    put_recording(o, &j->rec);
    put_warnings(o, &j->warnings);
    put_cost(o, e, j->start_us);
    j->at = PHASE_SAVE;
    TRY(print_object(o));
out:
    mem_free(tokens);
    enroller_close(e);
    return err;
}

static int exit_code(phase at, cf_err err)
{
    if (err == CF_ERR_NOMEM)
        return PROCESS_NO_RESOURCES;
    switch (at) {
    case PHASE_RECORDING:
        return EXIT_REFUSED;
    case PHASE_MODEL:
        return PROCESS_CONFIG;
    case PHASE_WORK:
        return err == CF_ERR_INVALID || err == CF_ERR_LIMIT ? EXIT_REFUSED : err == CF_ERR_NUMERIC ? PROCESS_CONFIG : 1;
    case PHASE_SAVE:
        return err == CF_ERR_SYS || err == CF_ERR_STORAGE ? PROCESS_NO_RESOURCES : 1;
    }
    return 1;
}

static int run(const arguments *a)
{
    job *j = NULL;
    json *o = json_object();
    cf_err err = mem_alloc(1, sizeof *j, &j);
    if (err == CF_OK) {
        *j = (job){.args = a, .start_us = clock_now_us(), .at = PHASE_RECORDING};
        err = recording_read(a->wav, &j->rec);
    }
    if (err == CF_OK)
        err = a->tokens ? make_tokens(j, o) : make_voice(j, o);
    for (int i = 0; j && err == CF_OK && i < j->warnings.count; i++)
        fprintf(stderr, "enroll: warning: %s: %s\n", a->wav, j->warnings.text[i]);
    if (err != CF_OK)
        fprintf(stderr, "enroll: %s\n", err_text());
    const int code = err == CF_OK ? PROCESS_DRAINED : exit_code(j ? j->at : PHASE_WORK, err);
    if (j)
        recording_done(&j->rec);
    json_close(o);
    mem_free(j);
    return code;
}

int main(int argc, char **argv)
{
    arguments a;
    process_hold_standard();
    process_follow_parent();
    log_open("enroll", LOG_LEVEL_WARN);
    if (fault_arm(getenv("COSYFARM_FAULT")) != CF_OK) {
        fprintf(stderr, "enroll: COSYFARM_FAULT: %s\n", err_text());
        return PROCESS_USAGE;
    }
    const int code = parse_arguments(argc, argv, &a);
    if (code != PROCESS_DRAINED)
        return code;
    if (a.help || a.version) {
        fputs(a.help ? HELP : "enroll " CF_VERSION "\n", stdout);
        return process_flush_output("enroll", PROCESS_DRAINED);
    }
    return run(&a);
}
