/*
 * outbox.c - exchange memory of a device between the real exchange_keeper, a worker that writes and one that reads, as
 * they die: the contract of outbox.h over CUDA's handles, on the emulated device. Test code.
 *
 * This process is the orchestrator and the worker that reads. The one that writes is a child, started before this
 * process has a context; it gets what GRANT carries.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/transport/outbox_cuda_ipc.h"
#include "tests/cuda_emu/cuda_runtime_api.h"
#include "tests/transport/keeper_fixture.h"

#define BYTES   ((uint64_t)1 << 20)
#define WAIT_US (10 * CLOCK_SECOND_US)

/* A keeper that has been welcomed. */
typedef struct farm {
    int listen_fd, fd;
    char path[300];
    pid_t keeper;
} farm;

/* What the keeper answered: device memory (handle, hold_fd), or a memfd (fds). */
typedef struct answer {
    wire_msg msg;
    outbox_grant grant;
    outbox_handle handle;
    int fds[2];
} answer;

static void welcome(farm *f)
{
    wire_msg hello;
    pid_t pid;
    assert_ok(fixture_accept(f->listen_fd, &f->fd, &pid));
    assert_ok(fixture_take(f->fd, WIRE_hello, &hello, NULL, 0));
    wire_done(&hello);
    assert_ok(fixture_say_welcome(f->fd, 1));
}

static void start(farm *f)
{
    char run_dir[256];
    snprintf(run_dir, sizeof run_dir, "%s", test_temp_dir());
    snprintf(f->path, sizeof f->path, "%s/" RUN_LIFELINE_SOCKET, run_dir);
    assert_ok(lifeline_listen(f->path, &f->listen_fd));
    assert_ok(keeper_start(run_dir, NULL, &f->keeper));
    welcome(f);
}

static void end(farm *f)
{
    kill(f->keeper, SIGKILL);
    waitpid(f->keeper, NULL, 0);
    io_close(&f->fd);
    io_close(&f->listen_fd);
}

static answer ask(farm *f, uint32_t id, int device, int reader, size_t fds_count)
{
    answer a = {.fds = {-1, -1}};
    const int32_t readers[] = {reader};
    json *m = wire_new(WIRE_alloc);
    json_put_u64(m, "outbox", id);
    json_put_u64(m, "bytes", BYTES);
    json_put_u64(m, "device", (uint64_t)device);
    json_put_i32s(m, "readers", readers, 1);
    assert_ok(lifeline_send(f->fd, m, NULL, 0));
    assert_ok(fixture_take(f->fd, WIRE_memory, &a.msg, a.fds, fds_count));
    a.grant = (outbox_grant){.outbox_id = id, .bytes = BYTES, .fd = a.fds[0]};
    if (wire_has(&a.msg, "handle"))
        assert_ok(outbox_handle_parse(wire_str(&a.msg, "handle"), &a.handle));
    return a;
}

static void done(answer *a)
{
    wire_done(&a->msg);
    io_close(&a->fds[0]);
    io_close(&a->fds[1]);
}

/* The keeper has dealt with everything that was said before. */
static void wait_until_heard(farm *f)
{
    int fds[2];
    assert_ok(keeper_alloc(f->fd, 999, 4096, fds));
    assert_ok(keeper_release(f->fd, 999));
    io_close(&fds[0]);
    io_close(&fds[1]);
}

static void wait_until_freed(const answer *a)
{
    outbox *box;
    const outbox_grant grant = {.outbox_id = a->grant.outbox_id, .bytes = BYTES, .fd = 0};
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    while (outbox_cuda_open(0, &grant, &a->handle, &box) == CF_OK) {
        outbox_close(box);
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 1);
    }
    assert_non_null(strstr(err_text(), "mapping of buffer object failed"));
}

/* The worker that writes: one slot, then half of the next, then it waits for its death. */
static int writer_fd;
static pid_t writer;

static void write_slots(int fd)
{
    wire_msg msg;
    outbox_handle handle;
    outbox *box;
    void *dev;
    int hold_fd;
    unsigned char mel[1024];
    if (fixture_take(fd, WIRE_grant, &msg, &hold_fd, 1) != CF_OK ||
        outbox_handle_parse(wire_str(&msg, "handle"), &handle) != CF_OK)
        _exit(1);
    const outbox_grant grant = {.outbox_id = 7, .bytes = BYTES, .fd = hold_fd};
    if (outbox_cuda_open(0, &grant, &handle, &box) != CF_OK || outbox_view(box, 256, sizeof mel, &dev) != CF_OK)
        _exit(2);
    memset(mel, 0x5A, sizeof mel);
    if (cudaMemcpy(dev, mel, sizeof mel, cudaMemcpyHostToDevice) != cudaSuccess || write(fd, "w", 1) != 1)
        _exit(3);
    (void)cudaMemcpy((char *)dev + 4096, mel, sizeof mel / 2, cudaMemcpyHostToDevice);
    for (;;)
        pause();
}

static void start_writer(void)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0 || (writer = fork()) < 0)
        abort();
    if (writer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        write_slots(ends[1]);
    }
    close(ends[1]);
    writer_fd = ends[0];
}

static unsigned char first_byte(outbox *box, uint64_t off_bytes)
{
    void *dev;
    unsigned char value;
    assert_ok(outbox_view(box, off_bytes, 1, &dev));
    assert_int_equal(cudaMemcpy(&value, dev, 1, cudaMemcpyDeviceToHost), cudaSuccess);
    return value;
}

/* [P-10] What a worker committed outlives it; what it was still writing is anybody's guess and is never granted. */
static void test_writer_dies(void **state)
{
    (void)state;
    farm f;
    outbox *box, *again;
    char byte;
    void *dev;
    start(&f);
    answer a = ask(&f, 7, 0, 0, 1);
    json *m = wire_new(WIRE_grant);
    json_put_u64(m, "outbox", 7);
    json_put_u64(m, "bytes", BYTES);
    json_put_str(m, "handle", wire_str(&a.msg, "handle"));
    assert_ok(lifeline_send(writer_fd, m, a.fds, 1));
    assert_ok(fixture_wait(writer_fd));
    assert_int_equal(read(writer_fd, &byte, 1), 1);
    kill(writer, SIGKILL);
    waitpid(writer, NULL, 0);

    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &box));
    assert_int_equal(outbox_id(box), 7);
    assert_true(outbox_on_device(box));
    assert_ok(outbox_check(box));
    assert_int_equal(first_byte(box, 256), 0x5A);
    assert_int_equal(first_byte(box, 0), 0); /* zeroed */
    assert_err(CF_ERR_INVALID, "not a slot", outbox_view(box, 100, 4, &dev));
    assert_err(CF_ERR_INVALID, "not a slot", outbox_view(box, BYTES, 1, &dev));
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &again)); /* counted: closing one leaves the other */
    outbox_close(again);
    assert_int_equal(first_byte(box, 1024), 0x5A);
    outbox_close(box);
    done(&a);
    end(&f);
}

/* [P-11] Neither release nor the orchestrator's end frees what somebody may still use; the last descriptor does. */
static void test_freed_by_the_last(void **state)
{
    (void)state;
    farm f;
    outbox *box;
    start(&f);
    answer a = ask(&f, 8, 0, 0, 1);
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &box));
    io_close(&a.fds[0]); /* the mapping has its own */
    assert_ok(keeper_release(f.fd, 8));
    wait_until_heard(&f);
    assert_int_equal(first_byte(box, 512), 0);
    io_close(&f.fd);
    io_close(&f.listen_fd);
    assert_ok(lifeline_listen(f.path, &f.listen_fd));
    welcome(&f);
    wait_until_heard(&f);
    assert_int_equal(first_byte(box, 768), 0);
    assert_ok(outbox_check(box));
    outbox_close(box);
    wait_until_freed(&a);
    done(&a);
    end(&f);
}

static void test_keeper_dies(void **state)
{
    (void)state;
    farm f;
    outbox *box, *late;
    start(&f);
    answer a = ask(&f, 9, 0, 0, 1);
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &box));
    struct pollfd p = {.fd = outbox_owner_fd(box)};
    assert_int_equal(poll(&p, 1, 0), 0);
    end(&f);
    assert_int_equal(poll(&p, 1, (int)(WAIT_US / 1000)), 1);
    assert_err(CF_ERR_GONE, "outbox 9: the exchange_keeper that owned its memory has died", outbox_check(box));
    assert_int_equal(first_byte(box, 256), 0xFF); /* undefined in CUDA, NaN here */
    assert_err(CF_ERR_GONE, "outbox 9 on cuda:0", outbox_cuda_open(0, &a.grant, &a.handle, &late));
    outbox_close(box);
    done(&a);
}

static void test_own_handle_is_refused(void **state)
{
    (void)state;
    outbox_cuda_memory *memory;
    outbox_handle handle;
    outbox *box;
    int hold_fd;
    const int watch_fd = dup(0);
    assert_ok(outbox_cuda_make(0, 1, watch_fd, &memory, &handle, &hold_fd));
    const outbox_grant grant = {.outbox_id = 10, .bytes = 1, .fd = hold_fd};
    assert_err(CF_ERR_UNSUPPORTED, "invalid device context", outbox_cuda_open(0, &grant, &handle, &box));
    struct pollfd p = {.fd = watch_fd};
    assert_int_equal(poll(&p, 1, 0), 0);
    close(hold_fd);
    assert_int_equal(poll(&p, 1, 0), 1);
    outbox_cuda_free(memory);
    close(watch_fd);
}

/* A keeper in another environment: it answers with a memfd, and says why. */
static void expect_memfd(const char *variable, const char *value, int reader, const char *why)
{
    farm f;
    outbox *box;
    setenv(variable, value, 1);
    start(&f);
    answer a = ask(&f, 11, 0, reader, 2);
    unsetenv(variable);
    assert_false(wire_has(&a.msg, "handle"));
    assert_non_null(strstr(wire_str(&a.msg, "fallback"), why));
    const outbox_grant write = {.outbox_id = 11, .bytes = BYTES, .fd = a.fds[0]};
    assert_ok(outbox_open(&write, OUTBOX_WRITE, &box));
    assert_false(outbox_on_device(box));
    assert_ok(outbox_cuda_pin(0, box, OUTBOX_WRITE));
    assert_ok(outbox_check(box));
    outbox_close(box);
    done(&a);
    end(&f);
}

static void test_fallbacks(void **state)
{
    (void)state;
    expect_memfd("COSYFARM_EMU_IPC", "0", 0, "operation not supported");
    setenv("COSYFARM_EMU_DEVICES", "2", 1);
    expect_memfd("COSYFARM_EMU_PEER", "0", 1, "cuda:1 cannot read memory of cuda:0");
    unsetenv("COSYFARM_EMU_DEVICES");
    expect_memfd("COSYFARM_EMU_DEVICES", "0", 0, "no CUDA-capable device");
}

static void test_refusals(void **state)
{
    (void)state;
    farm f;
    outbox_cuda_memory *memory;
    outbox_handle handle;
    outbox *box;
    int hold_fd;
    const outbox_grant grant = {.outbox_id = 12, .bytes = BYTES, .fd = 0};
    setenv("COSYFARM_EMU_MEMORY_MIB", "1", 1);
    start(&f);
    answer a = ask(&f, 12, 0, 0, 0);
    unsetenv("COSYFARM_EMU_MEMORY_MIB");
    assert_string_equal(wire_str(&a.msg, "error"), "exchange memory needs 2.0 MiB, 1.0 free on cuda:0");
    done(&a);
    end(&f);
    emu_fail_next("cudaMalloc", 1, cudaErrorMemoryAllocation);
    assert_err(CF_ERR_NOMEM, "out of memory", outbox_cuda_make(0, BYTES, 0, &memory, &handle, &hold_fd));
    emu_fail_next("cudaIpcGetMemHandle", 1, cudaErrorNotSupported);
    assert_err(CF_ERR_UNSUPPORTED, "not supported", outbox_cuda_make(0, BYTES, 0, &memory, &handle, &hold_fd));
    emu_fail_next("cudaMemsetAsync", 1, cudaErrorLaunchFailure); /* a broken context is no refusal */
    assert_err(CF_ERR_DEVICE, "launch failure", outbox_cuda_make(0, BYTES, 0, &memory, &handle, &hold_fd));
    emu_reset();
    assert_ok(fault_arm("outbox.make=fail,outbox.open=fail"));
    assert_err(CF_ERR_NOMEM, "outbox.make", outbox_cuda_make(0, BYTES, 0, &memory, &handle, &hold_fd));
    assert_err(CF_ERR_UNSUPPORTED, "outbox.open", outbox_cuda_open(0, &grant, &handle, &box));
    assert_ok(fault_arm(""));
}

static void test_handle_text(void **state)
{
    (void)state;
    outbox_handle handle, back;
    char text[2 * OUTBOX_HANDLE_BYTES + 1];
    for (int i = 0; i < OUTBOX_HANDLE_BYTES; i++)
        handle.bytes[i] = (unsigned char)(255 - 3 * i);
    outbox_handle_format(&handle, text);
    assert_ok(outbox_handle_parse(text, &back));
    assert_memory_equal(&handle, &back, sizeof handle);
    text[5] = 'G';
    assert_err(CF_ERR_INVALID, "at 4", outbox_handle_parse(text, &back));
    text[5] = '\0';
    assert_err(CF_ERR_INVALID, "of 5 characters", outbox_handle_parse(text, &back));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writer_dies), cmocka_unit_test(test_freed_by_the_last),
        cmocka_unit_test(test_keeper_dies), cmocka_unit_test(test_own_handle_is_refused),
        cmocka_unit_test(test_fallbacks),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_handle_text),
    };
    start_writer();
    return cmocka_run_group_tests_name("cuda outbox", tests, NULL, NULL);
}
