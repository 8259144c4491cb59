/*
 * main.c - orchestrator: takes rows, feeds the stages, writes files. `--config FILE` (conf/cosyfarm.json), `--run-dir
 * DIR`.
 * One run directory has one orchestrator: a lock held for life says so, because a second bind of its socket would
 * succeed.
 * Fails: exit codes of common/base/process.h, one log line before each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/model/model_dir.h"
#include "common/transport/lifeline.h"
#include "orchestrator/orch.h"

static cf_err take_lock(orch *o)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    TRY(io_make_dirs(o->run_dir, 0700));
    TRY(io_join(path, sizeof path, o->run_dir, RUN_LOCK));
    o->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (o->lock_fd < 0)
        return err_sys("%s: open", path);
    if (flock(o->lock_fd, LOCK_EX | LOCK_NB) != 0)
        err = errno == EWOULDBLOCK ? err_set(CF_ERR_BUSY, "%s: another orchestrator holds this run directory", path)
                                   : err_sys("%s: flock", path);
out:
    return err;
}

static cf_err open_sockets(orch *o)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    TRY(io_join(path, sizeof path, o->run_dir, RUN_BUS_SOCKET));
    snprintf(o->endpoint, sizeof o->endpoint, "ipc://%.4000s", path);
    TRY(bus_bind(o->endpoint, &o->b));
    TRY(io_join(path, sizeof path, o->run_dir, RUN_LIFELINE_SOCKET));
    TRY(lifeline_listen(path, &o->listen_fd));
out:
    return err;
}

static cf_err open_journal(orch *o)
{
    cf_err err = CF_OK;
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s", o->cfg.journal);
    if (!path[0])
        TRY(io_join(path, sizeof path, o->run_dir, "journal"));
    TRY(journal_open(path, &o->log));
out:
    return err;
}

/* Workers are told the folder, so it is a path by then. */
static cf_err resolve_store(orch *o)
{
    cf_err err = CF_OK;
    if (!o->cfg.voice_store[0])
        TRY(io_join(o->cfg.voice_store, sizeof o->cfg.voice_store, o->run_dir, "voices"));
out:
    return err;
}

static cf_err open_all(orch *o, const char *config_path)
{
    cf_err err;
    config_defaults(&o->cfg);
    if (config_path)
        TRY(config_load(&o->cfg, config_path));
    if (!o->cfg.model[0])
        FAIL(CF_ERR_INVALID, "%s: key \"model\" is empty: it names the model directory",
             config_path ? config_path : "configuration");
    TRY(fault_arm(getenv("COSYFARM_FAULT")));
    TRY(process_signal_fd(&o->signal_fd));
    TRY(process_signal_add(o->signal_fd, PROCESS_STEP_ASIDE));
    TRY(take_lock(o));
    TRY(model_dir_detect(o->cfg.model));
    TRY(tokenizer_open(o->cfg.model, &o->tok));
    TRY(resolve_store(o));
    TRY(voices_open(o->cfg.model, o->cfg.voice_store, &o->voice_table));
    TRY(writer_open(&o->cfg, &o->out));
    const bool goes_first = process_thread_goes_first(); /* before threads begin that answer messages */
    log_info("orch.scheduling", "class=%s", goes_first ? "realtime" : "normal");
    TRY(open_journal(o));
    if (getrandom(&o->boot, sizeof o->boot, 0) != (ssize_t)sizeof o->boot) {
        err = err_sys("getrandom");
        goto out;
    }
    o->boot &= (1ull << 53) - 1; /* exact in JSON numbers */
    TRY(open_sockets(o));
out:
    return err;
}

static void close_all(orch *o)
{
    writer_close(o->out);
    orch_enroll_close(o);
    for (int i = 0; i < ROWS_OPEN_MAX; i++)
        session_close(o->live[i]);
    journal_close(o->log);
    for (int i = 0; i < CONNS_MAX; i++) {
        io_close(&o->conns[i].fd);
        io_close(&o->conns[i].pid_fd);
    }
    for (int i = 0; i < BOX_TABLE_MAX; i++) {
        outbox_close(o->boxes[i].map);
        io_close(&o->boxes[i].write_fd);
        io_close(&o->boxes[i].read_fd);
    }
    bus_close(o->b);
    voices_close_all(o->voice_table);
    tokenizer_close(o->tok);
    io_close(&o->listen_fd);
    io_close(&o->signal_fd);
    io_close(&o->lock_fd);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"run-dir", required_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'V'},
                                            {0}};
    static orch o = {.lock_fd = -1, .listen_fd = -1, .signal_fd = -1, .exit_code = -1};
    const char *config_path = NULL;
    for (int i = 0; i < CONNS_MAX; i++)
        o.conns[i] = (conn){.fd = -1, .pid_fd = -1};
    for (int i = 0; i < BOX_TABLE_MAX; i++)
        o.boxes[i] = (box_entry){.write_fd = -1, .read_fd = -1};
    process_hold_standard();
    log_open("orchestrator", LOG_LEVEL_INFO);
    cf_err err = process_run_dir(o.run_dir, sizeof o.run_dir);
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, "c:r:hV", options, NULL)) != -1;) {
        if (c == 'c')
            config_path = optarg;
        else if (c == 'r')
            err = process_take_run_dir(optarg, o.run_dir, sizeof o.run_dir);
        else if (c == 'h' || c == 'V') {
            fputs(c == 'V' ? "orchestrator " CF_VERSION "\n" : "usage: orchestrator [--config FILE] [--run-dir DIR]\n",
                  stdout);
            return PROCESS_DRAINED;
        } else
            return PROCESS_USAGE; /* getopt_long has said why */
    }
    if (err == CF_OK && optind != argc)
        err = err_set(CF_ERR_INVALID, "unexpected argument \"%s\"", argv[optind]);
    if (err != CF_OK) {
        log_error("orch.start", "code=%s text=\"%s\"", err_name(err), err_text());
        return PROCESS_USAGE;
    }
    process_follow_parent();
    notify_open(&o.note);
    o.started_us = clock_now_us();
    err = open_all(&o, config_path);
    if (err != CF_OK) {
        log_error("orch.start", "code=%s text=\"%s\"", err_name(err), err_text());
        close_all(&o);
        return process_exit_code(err);
    }
    orch_core_init(&o.core, &(core_limits){.deaths_max = o.cfg.deaths_max,
                                           .parole_us = (uint64_t)o.cfg.parole_s * CLOCK_SECOND_US,
                                           .parole_max_us = (uint64_t)o.cfg.parole_max_s * CLOCK_SECOND_US});
    for (int i = 0; i < CORE_STAGES; i++)
        o.restarting[i] = o.staff[i] = -1;
    err = requests_recover(&o);
    if (err == CF_OK)
        err = kept_recover(&o);
    if (err != CF_OK) {
        log_error("orch.start", "code=%s text=\"%s\"", err_name(err), err_text());
        close_all(&o);
        return process_exit_code(err);
    }
    log_info("orch.ready", "run_dir=%s boot=%" PRIu64 " model=%s start_ms=%" PRIu64, o.run_dir, o.boot, o.cfg.model,
             (clock_now_us() - o.started_us) / 1000);
    notify_ready(&o.note, "takes rows");
    const int code = orch_run(&o);
    close_all(&o);
    return code;
}
