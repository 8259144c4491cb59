/*
 * cmd_batch.c - `cosyfarm batch`: a manifest in, a file for each row out; the same command line goes on where it
 * stopped.
 *
 *   check the manifest -> run.json: the same model as before -> ledger: what has ended before -> a farm (the running
 *   one, or one of its own) -> run -> ledger
 *
 * With a farm of its own this process is its supervisor. Interrupted, killed, out of storage: nothing accepted is lost,
 * since a row is in the ledger only when its file is in place. Fails: exit codes of tools/cmd.h.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "tools/batch.h"
#include "tools/cmd.h"
#include "tools/options.h"

#define SILENCE_US (120 * CLOCK_SECOND_US)
#define HASH_BYTES ((size_t)4 << 20)

static const char batch_help[] =
    "usage: cosyfarm batch -m MODEL MANIFEST -o DIR [options]\n\n"
    "Speaks every row of MANIFEST (.jsonl, or id|text in .csv/.txt; - is JSON lines on standard input) into\n"
    "DIR/audio/<id>.<format>, one line for each in DIR/ledger.jsonl. The same command line goes on where it stopped.\n"
    "Uses the farm of the run directory when one runs, else a farm of its own.\n\n" FARM_OPTIONS_HELP
    "  -o, --output DIR      where to\n"
    "  -v, --voice NAME      voice of rows that name none\n"
    "      --mode M, --instruct TEXT, --speed X, --raw, --priority 0..9, --audio FORMAT   likewise\n"
    "      --seed N          rows without a seed derive theirs from this number and their id (default 0)\n"
    "      --format F        jsonl, csv or txt: what MANIFEST is, if its name does not say\n"
    "      --shard I/N       only rows whose id hash is I modulo N; shards may share DIR\n"
    "      --check           look for bad rows and stop; with -m also for rows that the farm would not take (65)\n"
    "      --verify          hash the files of rows that ended before, and do changed ones again\n"
    "      --retry-failed    do rows again that failed before\n"
    "      --force-mix       go on although DIR was made with another model, precision or voice\n"
    "      --json            the summary as one JSON object\n"
    "  -q, --quiet           no progress, no summary\n";

enum {
    OPT_MODE = 1,
    OPT_INSTRUCT,
    OPT_SPEED,
    OPT_RAW,
    OPT_PRIORITY,
    OPT_AUDIO,
    OPT_SEED,
    OPT_FORMAT,
    OPT_SHARD,
    OPT_CHECK,
    OPT_VERIFY,
    OPT_RETRY_FAILED,
    OPT_FORCE_MIX,
    OPT_JSON
};

/* ---- options ---- */

static cf_err take_row_default(batch *b, int letter)
{
    cf_err err = CF_OK;
    uint64_t number = 0;
    manifest_defaults *d = &b->defaults;
    switch (letter) {
    case 'v':
        d->voice = optarg;
        break;
    case OPT_MODE:
        d->mode = optarg;
        break;
    case OPT_INSTRUCT:
        d->instruct = optarg;
        break;
    case OPT_SPEED:
        return farm_options_speed(optarg, &d->speed);
    case OPT_RAW:
        d->raw = true;
        break;
    case OPT_PRIORITY:
        err = farm_options_number("--priority", optarg, 9, &number);
        d->priority = (int)number;
        break;
    case OPT_AUDIO:
        d->format = optarg;
        break;
    case OPT_SEED:
        return farm_options_number("--seed", optarg, UINT64_MAX, &d->run_seed);
    default:
        CF_ASSERT(false); /* the table of parse has no other */
    }
    return err;
}

static cf_err take_option(batch *b, int letter)
{
    cf_err err = CF_OK;
    if (farm_options_take(&b->farm, letter, optarg, &err))
        return err;
    switch (letter) {
    case 'o':
        if ((size_t)snprintf(b->dir, sizeof b->dir, "%s", optarg) >= sizeof b->dir)
            return err_set(CF_ERR_LIMIT, "-o: path longer than %d bytes", IO_PATH_BYTES);
        break;
    case OPT_FORMAT:
        b->manifest_format = optarg;
        break;
    case OPT_SHARD:
        return shard_parse(optarg, &b->mine);
    case OPT_CHECK:
        b->check_only = true;
        break;
    case OPT_VERIFY:
        b->verify = true;
        break;
    case OPT_RETRY_FAILED:
        b->retry_failed = true;
        break;
    case OPT_FORCE_MIX:
        b->force_mix = true;
        break;
    case OPT_JSON:
        b->as_json = true;
        break;
    case 'q':
        b->quiet = true;
        break;
    default:
        return take_row_default(b, letter);
    }
    return CF_OK;
}

static cf_err parse(batch *b, int argc, char **argv, bool *ret_help)
{
    static const struct option options[] = {FARM_LONG_OPTIONS,
                                            {"output", required_argument, NULL, 'o'},
                                            {"voice", required_argument, NULL, 'v'},
                                            {"mode", required_argument, NULL, OPT_MODE},
                                            {"instruct", required_argument, NULL, OPT_INSTRUCT},
                                            {"speed", required_argument, NULL, OPT_SPEED},
                                            {"raw", no_argument, NULL, OPT_RAW},
                                            {"priority", required_argument, NULL, OPT_PRIORITY},
                                            {"audio", required_argument, NULL, OPT_AUDIO},
                                            {"seed", required_argument, NULL, OPT_SEED},
                                            {"format", required_argument, NULL, OPT_FORMAT},
                                            {"shard", required_argument, NULL, OPT_SHARD},
                                            {"check", no_argument, NULL, OPT_CHECK},
                                            {"verify", no_argument, NULL, OPT_VERIFY},
                                            {"retry-failed", no_argument, NULL, OPT_RETRY_FAILED},
                                            {"force-mix", no_argument, NULL, OPT_FORCE_MIX},
                                            {"json", no_argument, NULL, OPT_JSON},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    cf_err err = CF_OK;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, FARM_SHORT_OPTIONS "o:v:qh", options, NULL)) != -1;) {
        if (c == 'h') {
            *ret_help = true;
            return CF_OK;
        }
        if (c == '?')
            return options_refused(argv, "batch");
        TRY(take_option(b, c));
    }
    if (optind + 1 != argc)
        FAIL(CF_ERR_INVALID,
             optind == argc ? "no manifest: give a file, or - for standard input" : "more than one manifest given");
    b->manifest_path = argv[optind];
    if (!b->dir[0] && !b->check_only)
        FAIL(CF_ERR_INVALID, "no output folder: give -o DIR");
    TRY(manifest_check_arguments(b->manifest_path, b->manifest_format, &b->defaults));
out:
    return err;
}

/* ---- what earlier runs did ---- */

/* In pieces, so that a signal is heard. */
static cf_err hash_file(const io_map *map, char ret_hex[SHA256_HEX_BYTES])
{
    cf_err err;
    sha256 *h = NULL;
    TRY(sha256_open(&h));
    for (size_t at = 0; at < map->data_bytes && !process_stop_asked(); at += HASH_BYTES) {
        const size_t left = map->data_bytes - at;
        sha256_update(h, map->data + at, left < HASH_BYTES ? left : HASH_BYTES);
    }
    sha256_finish(h, ret_hex);
out:
    return err;
}

static bool file_is_there(const batch *b, const ledger_view *v)
{
    char path[IO_PATH_BYTES], hash[SHA256_HEX_BYTES];
    struct stat st;
    io_map map = {0};
    if (io_join(path, sizeof path, b->dir, v->file) != CF_OK || stat(path, &st) != 0 ||
        (uint64_t)st.st_size != v->bytes)
        return false;
    if (!b->verify)
        return true;
    if (io_map_file(path, &map) != CF_OK)
        return false;
    const bool same = hash_file(&map, hash) == CF_OK && strcmp(hash, v->sha256) == 0;
    io_unmap(&map);
    return same || process_stop_asked(); /* the ledger's next line hears of it: nothing is dropped for it */
}

/* A line that does not count: its row is done again, and has one line in the end as every row. */
static cf_err must_be_redone(void *ctx, const ledger_view *v, bool *ret_redone)
{
    cf_err err;
    const batch *b = ctx;
    uint64_t hash;
    TRY(id_hash(v->id, &hash));
    if (!id_set_find(b->ids, id_set_key(b->ids, hash, v->id)))
        *ret_redone = false; /* not of this manifest: none of our business */
    else
        *ret_redone = v->done ? !file_is_there(b, v) : b->retry_failed;
out:
    return err;
}

/* Two passes: a row that is done in one ledger and has failed in another is done. */
typedef struct mark_pass {
    batch *b;
    bool failed;       /* the pass over failed rows */
    bool others;       /* over ledgers that other batches look after */
    bool failed_found; /* there has to be a second pass */
} mark_pass;

static cf_err mark_ended(void *ctx, const ledger_view *v)
{
    cf_err err = CF_OK;
    mark_pass *p = ctx;
    batch *b = p->b;
    uint64_t hash;
    p->failed_found = p->failed_found || !v->done;
    if (v->done == p->failed)
        goto out;
    TRY(id_hash(v->id, &hash));
    const uint64_t key = id_set_key(b->ids, hash, v->id);
    if (!id_set_find(b->ids, key) || id_set_is_marked(b->ids, key))
        goto out;
    /* Of our own ledger such lines have been dropped. */
    if (p->others && (v->done ? !file_is_there(b, v) : b->retry_failed))
        goto out;
    if (id_set_mark(b->ids, key)) {
        b->ended_before++;
        b->failed_before += !v->done;
    }
out:
    return err;
}

static cf_err mark_all(batch *b)
{
    cf_err err;
    mark_pass p = {.b = b};
    do {
        p.others = false;
        TRY(ledger_each(b->log, mark_ended, &p));
        p.others = true;
        TRY(ledger_each_other(b->log, mark_ended, &p));
        p.failed = !p.failed;
    } while (p.failed && p.failed_found);
out:
    return err;
}

/* The system does not let us make files in DIR: the command line names another one. */
static cf_err unusable_dir(cf_err err)
{
    return err == CF_ERR_SYS ? err_context(CF_ERR_INVALID, "-o") : err;
}

static cf_err make_dir(batch *b)
{
    char absolute[PATH_MAX];
    cf_err err = io_make_dirs(b->dir, 0777);
    if (err == CF_OK && !realpath(b->dir, absolute))
        err = err_sys("%s", b->dir);
    if (err == CF_OK)
        snprintf(b->dir, sizeof b->dir, "%s", absolute);
    return unusable_dir(err);
}

/* A first ledger that cannot be made says that DIR is no place for files. */
static cf_err open_ledger(batch *b, uint64_t *ret_torn_line)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    TRY(ledger_path(b->dir, b->mine, path));
    const bool existed = io_exists(path);
    err = ledger_open(b->dir, b->mine, &b->log, ret_torn_line);
    if (!existed)
        err = unusable_dir(err);
out:
    return err;
}

/* Without run.json nothing tells what the rows that ended were made with, and the run goes on. */
static void miss_record(const batch *b)
{
    char path[IO_PATH_BYTES];
    if (b->ended_before > 0 && io_join(path, sizeof path, b->dir, "run.json") == CF_OK && !io_exists(path))
        fprintf(stderr,
                "cosyfarm batch: %s is missing: with what the %" PRIu64
                " rows that ended before were made cannot be compared\n",
                path, b->ended_before);
}

static cf_err read_ledger(batch *b)
{
    cf_err err;
    uint64_t torn_line, dropped = 0;
    TRY(open_ledger(b, &torn_line));
    if (torn_line > 0)
        fprintf(stderr,
                "cosyfarm batch: ledger line %" PRIu64
                " was cut off by a crash and is removed; its row is done again\n",
                torn_line);
    TRY(ledger_drop(b->log, must_be_redone, b, &dropped));
    if (dropped > 0)
        fprintf(stderr, "cosyfarm batch: %" PRIu64 " rows that had ended are done again\n", dropped);
    TRY(mark_all(b));
    miss_record(b);
    b->has_begun = true;
out:
    return err;
}

/* ---- the run ---- */

static cf_err in_dir(const batch *b, const char *name, char *ret_path, size_t path_bytes)
{
    char file[64];
    if (b->mine.count > 0)
        snprintf(file, sizeof file, "%s.%u-of-%u", name, b->mine.idx, b->mine.count);
    else
        snprintf(file, sizeof file, "%s", name);
    return io_join(ret_path, path_bytes, b->dir, file);
}

/* A farm of its own keeps its journal, its log and the voices of recordings in DIR, so that they outlive it. */
static cf_err open_own_farm(batch *b, private_farm *ret_farm)
{
    cf_err err;
    TRY(farm_options_check(&b->farm));
    TRY(in_dir(b, ".journal", b->farm.cfg.journal, sizeof b->farm.cfg.journal));
    TRY(io_join(b->farm.cfg.voice_store, sizeof b->farm.cfg.voice_store, b->dir, ".voices"));
    TRY(in_dir(b, "farm.log", b->farm_log, sizeof b->farm_log));
    TRY(private_farm_open(&b->farm.cfg, b->farm_log, ret_farm));
    b->is_own_farm = true;
    if (!b->quiet && isatty(STDERR_FILENO))
        fprintf(stderr, "cosyfarm batch: a farm of its own; its log is %s\n", b->farm_log);
out:
    return err;
}

static cf_err run(batch *b)
{
    cf_err err;
    char run_dir[IO_PATH_BYTES];
    private_farm own = {{0}, {0}, NULL, -1};
    client *c = NULL;
    const client_plan plan = {.ctx = b,
                              .next = batch_next,
                              .ended = batch_ended,
                              .tick = batch_tick,
                              .in_flight_max = CLIENT_ROWS_MAX,
                              .wait_when_busy = true,
                              .silence_us = SILENCE_US,
                              .drain_us = (uint64_t)b->farm.cfg.grace_s * CLOCK_SECOND_US};
    TRY(process_run_dir(run_dir, sizeof run_dir));
    if (!client_farm_runs(run_dir)) {
        TRY(open_own_farm(b, &own));
        snprintf(run_dir, sizeof run_dir, "%s", own.run_dir);
    }
    TRY(client_open(run_dir, &c));
    client_supervise(c, own.farm, (uint64_t)b->farm.cfg.unserved_s * CLOCK_SECOND_US);
    if (!b->is_own_farm)
        TRY(farm_options_check_running(&b->farm, c));
    err = client_run(c, &plan);
    if (err == CF_ERR_CANCELLED && b->broken != CF_OK)
        err = err_set(b->broken, "%s", b->broken_text);
out:
    client_close(c);
    if (b->is_own_farm)
        private_farm_close(&own, false);
    if (b->is_own_farm && err != CF_OK && err != CF_ERR_CANCELLED && io_exists(b->farm_log))
        fprintf(stderr, "cosyfarm batch: the farm's log is %s\n", b->farm_log);
    return err;
}

/* Nothing is left to do and nothing open: what only a resume needs may go. */
static void tidy_up(const batch *b)
{
    char path[IO_PATH_BYTES];
    if (in_dir(b, ".journal", path, sizeof path) == CF_OK)
        unlink(path);
}

static void close_all(batch *b)
{
    run_record_close(b->record);
    ledger_close(b->log);
    manifest_close(b->rows);
    id_set_close(b->ids);
    for (size_t i = 0; i < b->voices_count; i++)
        mem_free(b->voices[i].name);
    for (size_t i = 0; i < b->pending_count; i++)
        json_close(b->pending[i]);
    mem_free(b->voices);
    io_close(&b->signal_fd);
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

/* Everything between options and exit code. */
static cf_err work(batch *b)
{
    cf_err err;
    TRY(farm_options_load(&b->farm));
    TRY(process_signal_fd(&b->signal_fd)); /* first: what follows may last, and looks for it (process_stop_asked) */
    TRY(batch_read_manifest(b));
    if (b->check_only)
        goto out;
    TRY(mem_alloc(BATCH_VOICES_MAX, sizeof *b->voices, &b->voices));
    TRY(make_dir(b));
    TRY(batch_check_record(b));
    TRY(read_ledger(b));
    if (b->ended_before == b->counts.own)
        goto out;
    err = run(b);
    snprintf(b->broken_text, sizeof b->broken_text, "%s", err == CF_OK ? "" : err_text());
    const cf_err settled = batch_settle(b);
    err = err == CF_OK ? settled : err_set(err, "%s", b->broken_text); /* what went wrong first is what to say */
    if (err == CF_OK && b->is_own_farm)
        tidy_up(b);
out:
    return err;
}

int cmd_batch(int argc, char **argv)
{
    static batch b; /* one per process; large tables */
    bool help = false;
    char *args[64];
    b = (batch){.defaults = {.format = "wav", .speed = 1}, .signal_fd = -1, .started_us = clock_now_us()};
    for (b.argc = 0; b.argc < argc && b.argc < 64; b.argc++)
        args[b.argc] = argv[b.argc]; /* getopt reorders argv */
    b.argv = args;
    farm_options_init(&b.farm);
    cf_err err = parse(&b, argc, argv, &help);
    if (help) {
        fputs(batch_help, stdout);
        return EXIT_DONE;
    }
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm batch: %s\n", err_text());
        return EXIT_USAGE;
    }
    err = work(&b);
    if (err != CF_OK)
        fprintf(stderr, "cosyfarm batch: %s\n", err_text());
    int code = err != CF_OK ? exit_code_of(err) : b.failed + b.failed_before > 0 ? EXIT_ROWS_FAILED : EXIT_DONE;
    err = b.has_begun ? batch_summary(&b, code) : CF_OK;
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm batch: --json: %s\n", err_text());
        code = exit_code_of(err);
    }
    close_all(&b);
    return code;
}
