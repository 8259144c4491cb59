/*
 * keeper.c - exchange_keeper: makes the exchange memory of one host, hands out descriptors, forgets them when told.
 * Nothing else, so that a worker's or the orchestrator's death is never the death of the memory's owner.
 *
 * One thread, one lifeline. When the orchestrator goes away, everything it asked for is forgotten (it knows nothing
 * of it any more) and the keeper connects again for RECONNECT_US. Memory of a device is different: it is freed when the
 * last descriptor of its pipe is closed, whoever held it and whatever became of them (outbox_cuda_ipc.h), so neither
 * `release` nor the orchestrator's end frees it under a worker that still computes.
 * Fails: exit codes of process.h, one log line before each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/notify.h"
#include "common/base/process.h"
#include "common/transport/lifeline.h"
#include "common/transport/outbox_cuda_ipc.h"
#include "common/transport/wire.h"

#define RECONNECT_US (60 * CLOCK_SECOND_US)
#define RETRY_NS     20000000
#define BOXES_MAX    (4 * MEMBERS_MAX)

typedef struct kept {
    uint32_t outbox_id; /* 0: free, or of a former orchestrator */
    int write_fd, read_fd;
    int watch_fd;               /* reserved at the start, while numbers are low: see outbox_cuda_make */
    outbox_cuda_memory *memory; /* owned; NULL: a memfd, or free */
} kept;

typedef struct keeper {
    char lifeline_path[IO_PATH_BYTES];
    int lifeline_fd, signal_fd, exit_code;
    int null_fd;
    kept boxes[BOXES_MAX];
    notify note;
} keeper;

/* Of a memfd. Device memory stays until its pipe hangs up; its name may be given again. */
static void forget(kept *k)
{
    if (k->memory)
        k->outbox_id = 0;
    if (k->outbox_id == 0)
        return;
    io_close(&k->write_fd);
    io_close(&k->read_fd);
    k->outbox_id = 0;
}

/* Memory of the device that the message names. CF_ERR_UNSUPPORTED: it has to be a memfd. */
static cf_err make_on_device(const wire_msg *msg, kept *box, outbox_handle *ret_handle, int *ret_hold_fd)
{
    cf_err err;
    int32_t *readers = NULL;
    size_t readers_count = 0;
    const int device = (int)wire_u64(msg, "device");
    if (wire_has(msg, "readers"))
        TRY(wire_i32s(msg, "readers", &readers, &readers_count));
    TRY(outbox_cuda_check_readers(device, readers, readers_count));
    TRY(outbox_cuda_make(device, wire_u64(msg, "bytes"), box->watch_fd, &box->memory, ret_handle, ret_hold_fd));
out:
    mem_free(readers);
    return err;
}

static kept *free_box(keeper *k)
{
    for (int i = 0; i < BOXES_MAX; i++)
        if (k->boxes[i].outbox_id == 0 && !k->boxes[i].memory)
            return &k->boxes[i];
    return NULL;
}

static json *memory_message(const wire_msg *msg, const char *error)
{
    json *m = wire_new(WIRE_memory);
    json_put_u64(m, "outbox", wire_u64(msg, "outbox"));
    json_put_u64(m, "bytes", wire_u64(msg, "bytes"));
    json_put_text(m, "error", error);
    return m;
}

static cf_err answer_memfd(keeper *k, const wire_msg *msg, kept *box, const char *fallback)
{
    const uint32_t id = (uint32_t)wire_u64(msg, "outbox");
    const cf_err err = outbox_make_memfd(id, wire_u64(msg, "bytes"), &box->write_fd, &box->read_fd);
    json *m = memory_message(msg, err == CF_OK ? "" : err_text());
    if (fallback[0])
        json_put_text(m, "fallback", fallback);
    const int fds[] = {box->write_fd, box->read_fd};
    if (err == CF_OK)
        box->outbox_id = id;
    return lifeline_send(k->lifeline_fd, m, fds, err == CF_OK ? 2 : 0);
}

static cf_err answer_device(keeper *k, const wire_msg *msg, kept *box)
{
    outbox_handle handle;
    int hold_fd = -1;
    char text[2 * OUTBOX_HANDLE_BYTES + 1], fallback[1024];
    cf_err err = make_on_device(msg, box, &handle, &hold_fd);
    if (err == CF_ERR_UNSUPPORTED) {
        snprintf(fallback, sizeof fallback, "%s", err_text());
        return answer_memfd(k, msg, box, fallback);
    }
    if (err == CF_ERR_DEVICE) {
        log_error("keeper.device", "text=\"%s\"", err_text());
        k->exit_code = PROCESS_DEVICE_LOST;
    }
    json *m = memory_message(msg, err == CF_OK ? "" : err_text());
    if (err == CF_OK) {
        outbox_handle_format(&handle, text);
        json_put_str(m, "handle", text);
        box->outbox_id = (uint32_t)wire_u64(msg, "outbox");
    }
    err = lifeline_send(k->lifeline_fd, m, &hold_fd, err == CF_OK ? 1 : 0);
    io_close(&hold_fd); /* those who use the memory hold it, not its owner */
    return err;
}

static cf_err on_alloc(keeper *k, const wire_msg *msg)
{
    kept *box = free_box(k);
    if (fault_hit("keeper.alloc"))
        return lifeline_send(k->lifeline_fd, memory_message(msg, "fault keeper.alloc"), NULL, 0);
    if (!box) {
        char text[64];
        snprintf(text, sizeof text, "more than %d outboxes", BOXES_MAX);
        return lifeline_send(k->lifeline_fd, memory_message(msg, text), NULL, 0);
    }
    return wire_has(msg, "device") ? answer_device(k, msg, box) : answer_memfd(k, msg, box, "");
}

/* Frees the device memory that nobody holds any more. */
static void free_if_unused(keeper *k, kept *box)
{
    struct pollfd p = {.fd = box->watch_fd};
    if (!box->memory || poll(&p, 1, 0) <= 0)
        return;
    outbox_cuda_free(box->memory);
    box->memory = NULL;
    box->outbox_id = 0;
    if (dup3(k->null_fd, box->watch_fd, O_CLOEXEC) < 0) /* keeps the number */
        log_warn("keeper.watch", "text=\"%s\"", strerror(errno));
}

static cf_err on_message(keeper *k, const wire_msg *msg)
{
    if (msg->kind == WIRE_alloc)
        return on_alloc(k, msg);
    if (msg->kind == WIRE_release)
        for (int i = 0; i < BOXES_MAX; i++)
            if (k->boxes[i].outbox_id == (uint32_t)wire_u64(msg, "outbox"))
                forget(&k->boxes[i]);
    if (msg->kind == WIRE_refuse) {
        log_error("keeper.refused", "code=%s text=\"%s\"", wire_str(msg, "code"), wire_str(msg, "text"));
        k->exit_code = err_from_name(wire_str(msg, "code")) == CF_ERR_MISMATCH ? PROCESS_CONFIG : PROCESS_NO_RESOURCES;
    }
    if (msg->kind == WIRE_dismiss) {
        log_info("keeper.dismissed", "text=\"%s\"", wire_str(msg, "text"));
        k->exit_code = PROCESS_DRAINED;
    }
    if (msg->kind == WIRE_welcome)
        notify_ready(&k->note, "serving");
    return CF_OK; /* nothing in it to configure */
}

static cf_err read_lifeline(keeper *k)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    wire_msg msg = {0};
    int fds[LIFELINE_FDS_MAX] = {-1, -1};
    TRY(lifeline_recv(k->lifeline_fd, &text, &bytes, fds));
    TRY(wire_parse(text, bytes, WIRE_ORCH_LIFELINE, &msg));
    TRY(on_message(k, &msg));
out:
    wire_done(&msg);
    mem_free(text);
    for (int i = 0; i < LIFELINE_FDS_MAX; i++)
        io_close(&fds[i]);
    return err == CF_ERR_TIMEOUT ? CF_OK : err;
}

static cf_err say_hello(keeper *k)
{
    json *m = wire_new(WIRE_hello);
    json_put_str(m, "role", "keeper");
    json_put_u64(m, "instance", 0);
    json_put_u64(m, "pid", (uint64_t)getpid());
    json_put_str(m, "build", CF_VERSION);
    return lifeline_send(k->lifeline_fd, m, NULL, 0);
}

static void serve(keeper *k)
{
    cf_err err = say_hello(k);
    while (err == CF_OK && k->exit_code < 0) {
        struct pollfd fds[2 + BOXES_MAX];
        fds[0] = (struct pollfd){.fd = k->lifeline_fd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = k->signal_fd, .events = POLLIN};
        for (int i = 0; i < BOXES_MAX; i++) /* a negative number is passed over */
            fds[2 + i] = (struct pollfd){.fd = k->boxes[i].memory ? k->boxes[i].watch_fd : -1};
        notify_alive(&k->note, clock_now_us());
        poll(fds, 2 + BOXES_MAX, notify_wait_ms(&k->note));
        for (int i = 0; i < BOXES_MAX; i++)
            free_if_unused(k, &k->boxes[i]);
        if (fds[1].revents && process_read_signal(k->signal_fd) != 0)
            k->exit_code = PROCESS_DRAINED;
        if (fds[0].revents)
            err = read_lifeline(k);
    }
    if (err != CF_OK)
        log_warn("keeper.disconnected", "code=%s text=\"%s\"", err_name(err), err_text());
    for (int i = 0; i < BOXES_MAX; i++)
        forget(&k->boxes[i]);
    io_close(&k->lifeline_fd);
}

static void run(keeper *k)
{
    uint64_t deadline_us = clock_now_us() + RECONNECT_US;
    while (k->exit_code < 0) {
        notify_alive(&k->note, clock_now_us());
        const cf_err err = lifeline_connect(k->lifeline_path, &k->lifeline_fd);
        if (err == CF_OK) {
            serve(k);
            deadline_us = clock_now_us() + RECONNECT_US;
        } else if (err != CF_ERR_GONE) {
            log_error("keeper.connect", "text=\"%s\"", err_text());
            k->exit_code = err == CF_ERR_LIMIT ? PROCESS_CONFIG : PROCESS_NO_RESOURCES;
        } else if (clock_now_us() > deadline_us) {
            log_error("keeper.alone", "text=\"no orchestrator at %s\"", k->lifeline_path);
            k->exit_code = PROCESS_ORCHESTRATOR_GONE;
        } else if (process_read_signal(k->signal_fd) != 0) {
            k->exit_code = PROCESS_DRAINED;
        } else {
            nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
        }
    }
}

/* A descriptor for the pipe of each box. */
static cf_err reserve_watches(keeper *k)
{
    k->null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (k->null_fd < 0)
        return err_sys("/dev/null");
    for (int i = 0; i < BOXES_MAX; i++)
        if ((k->boxes[i].watch_fd = fcntl(k->null_fd, F_DUPFD_CLOEXEC, 0)) < 0)
            return err_sys("reserving %d descriptors", BOXES_MAX);
    return CF_OK;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"run-dir", required_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'V'},
                                            {0}};
    static keeper k = {.lifeline_fd = -1, .signal_fd = -1, .exit_code = -1};
    char run_dir[IO_PATH_BYTES];
    process_hold_standard();
    log_open("keeper", LOG_LEVEL_INFO);
    cf_err err = process_run_dir(run_dir, sizeof run_dir);
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, "r:hV", options, NULL)) != -1;) {
        if (c == 'r') {
            err = process_take_run_dir(optarg, run_dir, sizeof run_dir);
        } else if (c == 'h' || c == 'V') {
            fputs(c == 'V' ? "exchange_keeper " CF_VERSION "\n" : "usage: exchange_keeper [--run-dir DIR]\n", stdout);
            return PROCESS_DRAINED;
        } else {
            return PROCESS_USAGE;
        }
    }
    notify_open(&k.note);
    process_follow_parent();
    if (err != CF_OK || optind != argc ||
        io_join(k.lifeline_path, sizeof k.lifeline_path, run_dir, RUN_LIFELINE_SOCKET) != CF_OK ||
        fault_arm(getenv("COSYFARM_FAULT")) != CF_OK || process_signal_fd(&k.signal_fd) != CF_OK ||
        reserve_watches(&k) != CF_OK) {
        log_error("keeper.start", "text=\"%s\"", err == CF_OK && optind != argc ? "unexpected argument" : err_text());
        return PROCESS_USAGE;
    }
    run(&k);
    io_close(&k.signal_fd);
    return k.exit_code;
}
