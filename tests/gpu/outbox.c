/*
 * outbox.c - the contract of outbox.h over memory of a CUDA device: the real exchange_keeper, a worker that writes and
 * ones that read, in processes of their own, as each of them is killed. The same program runs on a card (make
 * check-gpu) and on the emulated device (make check-emu). Test code.
 *
 * Where CUDA refuses handles (WSL, some containers) its cases are skipped, with the keeper's reason. What an importer
 * reads after its exporter's death is undefined in CUDA; nothing here reads it.
 *
 *   test ── fork ──> writers and a reader, before the test has a context of its own     (they get what GRANT carries)
 *        ── spawn ─> exchange_keeper, the real one
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <cuda_runtime_api.h>
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
#include "common/base/io.h"
#include "common/base/rng.h"
#include "tests/gpu/device_farm.h"
#include "tests/transport/keeper_fixture.h"

#define SLOT_BYTES 65536u
#define WAIT_US    (60 * CLOCK_SECOND_US)
#define MEMBERS    3

/* Workers, each with its end of a socket; killed in the order of the tests. */
static struct {
    pid_t pid;
    int fd;
} member[MEMBERS];

/* Byte i of slot 0 of an outbox. */
static unsigned char pattern(uint32_t outbox_id, uint32_t i)
{
    uint32_t words[4];
    rng_philox(outbox_id, (const uint32_t[4]){i / 16, 0, 0, 0}, words);
    return (unsigned char)(words[i / 4 % 4] >> 8 * (i % 4));
}

static cf_err copy_out(outbox *box, uint64_t off_bytes, unsigned char *bytes, size_t count)
{
    void *dev;
    const cf_err err = outbox_view(box, off_bytes, count, &dev);
    if (err != CF_OK)
        return err;
    return cudaMemcpy(bytes, dev, count, cudaMemcpyDeviceToHost) == cudaSuccess ? CF_OK
                                                                                : err_set(CF_ERR_DEVICE, "copy");
}

static bool slot_is_whole(outbox *box)
{
    static unsigned char bytes[SLOT_BYTES];
    if (copy_out(box, 0, bytes, sizeof bytes) != CF_OK)
        return false;
    for (uint32_t i = 0; i < sizeof bytes; i++)
        if (bytes[i] != pattern(outbox_id(box), i))
            return false;
    return true;
}

/* ---- the workers: they never touch cmocka, end with a status, and die with the test ---- */

static outbox *take_grant(int fd)
{
    wire_msg msg;
    outbox_handle handle;
    outbox *box;
    int hold_fd;
    if (fixture_take(fd, WIRE_grant, &msg, &hold_fd, 1) != CF_OK ||
        outbox_handle_parse(wire_str(&msg, "handle"), &handle) != CF_OK)
        _exit(1);
    const outbox_grant grant = {
        .outbox_id = (uint32_t)wire_u64(&msg, "outbox"), .bytes = wire_u64(&msg, "bytes"), .fd = hold_fd};
    if (outbox_cuda_open(0, &grant, &handle, &box) != CF_OK) {
        fprintf(stderr, "worker: %s\n", err_text());
        _exit(2);
    }
    close(hold_fd);
    return box;
}

/* Told "w": commits slot 0 and scribbles on slot 1 until it is killed. Told "r": says whether slot 0 is whole, again
 * and again as it is asked. */
static void work(int fd)
{
    static unsigned char bytes[SLOT_BYTES];
    outbox *box = take_grant(fd);
    char asked, whole;
    void *dev;
    while (read(fd, &asked, 1) == 1 && asked == 'r') {
        whole = slot_is_whole(box) ? 'y' : 'n';
        if (write(fd, &whole, 1) != 1)
            _exit(3);
    }
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = pattern(outbox_id(box), i);
    if (outbox_view(box, 0, sizeof bytes, &dev) != CF_OK ||
        cudaMemcpy(dev, bytes, sizeof bytes, cudaMemcpyHostToDevice) != cudaSuccess ||
        cudaDeviceSynchronize() != cudaSuccess || write(fd, "w", 1) != 1 ||
        outbox_view(box, SLOT_BYTES, sizeof bytes, &dev) != CF_OK)
        _exit(4);
    for (;;)
        (void)cudaMemcpy(dev, bytes, sizeof bytes, cudaMemcpyHostToDevice);
}

static void start_members(void)
{
    for (int i = 0; i < MEMBERS; i++) {
        int ends[2];
        const pid_t test = getpid();
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0 || (member[i].pid = fork()) < 0)
            abort();
        if (member[i].pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (int j = 0; j < i; j++)
                close(member[j].fd);
            close(ends[0]);
            if (getppid() == test)
                work(ends[1]);
            _exit(5);
        }
        close(ends[1]);
        member[i].fd = ends[0];
    }
}

static void grant(int i, const device_answer *a)
{
    json *m = wire_new(WIRE_grant);
    json_put_u64(m, "outbox", a->grant.outbox_id);
    json_put_u64(m, "bytes", a->grant.bytes);
    json_put_str(m, "handle", wire_str(&a->msg, "handle"));
    assert_ok(lifeline_send(member[i].fd, m, a->fds, 1));
}

static char say(int i, char word)
{
    char answer = '-';
    assert_int_equal(write(member[i].fd, &word, 1), 1);
    assert_ok(fixture_wait(member[i].fd));
    assert_int_equal(read(member[i].fd, &answer, 1), 1);
    return answer;
}

static void kill_member(int i)
{
    kill(member[i].pid, SIGKILL);
    waitpid(member[i].pid, NULL, 0);
}

/* ---- the cases ---- */

/* Device memory from a fresh keeper, or the end of the case. */
static device_answer take_or_skip(device_farm *f, uint32_t outbox_id)
{
    device_farm_start(f);
    device_answer a = device_ask(f, outbox_id, 0, 0);
    if (!device_answer_is_device(&a)) {
        const char *why = wire_has(&a.msg, "fallback") ? "fallback" : "error";
        print_message("# SKIP exchange memory is the host's here: %s\n", wire_str(&a.msg, why));
        device_answer_done(&a);
        device_farm_end(f);
        skip();
    }
    return a;
}

static unsigned char first_byte(outbox *box, uint64_t off_bytes)
{
    unsigned char value = 0xEE;
    assert_ok(copy_out(box, off_bytes, &value, 1));
    return value;
}

/* [P-10] What a worker committed outlives it, in mappings that are there and in those made later; a reader's death
 * changes nothing for others. */
static void test_members_die(void **state)
{
    (void)state;
    device_farm f;
    outbox *before, *after;
    void *dev;
    device_answer a = take_or_skip(&f, 7);
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &before));
    assert_int_equal(first_byte(before, SLOT_BYTES * 2), 0); /* zeroed */
    for (int i = 0; i < MEMBERS; i++)
        grant(i, &a);
    assert_int_equal(say(0, 'w'), 'w');
    kill_member(0);
    assert_int_equal(say(1, 'r'), 'y');
    kill_member(1);
    assert_int_equal(say(2, 'r'), 'y');
    assert_true(slot_is_whole(before));
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &after)); /* counted: closing one leaves the other */
    assert_true(slot_is_whole(after));
    outbox_close(after);
    assert_ok(outbox_check(before));
    assert_true(slot_is_whole(before));
    assert_err(CF_ERR_INVALID, "not a slot", outbox_view(before, 100, 4, &dev));
    assert_err(CF_ERR_INVALID, "not a slot", outbox_view(before, DEVICE_BOX_BYTES, 1, &dev));
    kill_member(2);
    assert_true(slot_is_whole(before));
    outbox_close(before);
    device_answer_done(&a);
    device_farm_end(&f);
}

static void wait_until_freed(const device_answer *a)
{
    outbox *box;
    const outbox_grant grant = {.outbox_id = a->grant.outbox_id, .bytes = a->grant.bytes, .fd = 0};
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    while (outbox_cuda_open(0, &grant, &a->handle, &box) == CF_OK) {
        outbox_close(box);
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 1);
    }
}

/* [P-11] Neither release nor the orchestrator's end frees what somebody may still use; the last descriptor does. */
static void test_freed_by_the_last(void **state)
{
    (void)state;
    device_farm f;
    outbox *box;
    device_answer a = take_or_skip(&f, 8);
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &box));
    io_close(&a.fds[0]); /* the mapping has its own */
    assert_ok(keeper_release(f.fd, 8));
    device_farm_wait_until_heard(&f);
    assert_int_equal(first_byte(box, 512), 0);
    io_close(&f.fd);
    io_close(&f.listen_fd);
    assert_ok(lifeline_listen(f.path, &f.listen_fd));
    device_farm_welcome(&f);
    device_farm_wait_until_heard(&f);
    assert_int_equal(first_byte(box, 768), 0);
    assert_ok(outbox_check(box));
    outbox_close(box);
    wait_until_freed(&a);
    device_answer_done(&a);
    device_farm_end(&f);
}

/* The keeper's death shows at once, in mappings and at the next opening, whatever CUDA says of the handle. */
static void test_keeper_dies(void **state)
{
    (void)state;
    device_farm f;
    outbox *box, *late;
    device_answer a = take_or_skip(&f, 9);
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &box));
    struct pollfd p = {.fd = outbox_owner_fd(box)};
    assert_int_equal(poll(&p, 1, 0), 0);
    device_farm_end(&f);
    assert_int_equal(poll(&p, 1, (int)(WAIT_US / 1000)), 1);
    assert_err(CF_ERR_GONE, "outbox 9: the exchange_keeper that owned its memory has died", outbox_check(box));
    assert_err(CF_ERR_GONE, "outbox 9", outbox_cuda_open(0, &a.grant, &a.handle, &late));
    outbox_close(box);
    device_answer_done(&a);
}

static void test_own_handle_is_refused(void **state)
{
    (void)state;
    outbox_cuda_memory *memory;
    outbox_handle handle;
    outbox *box;
    int hold_fd;
    const int watch_fd = dup(0);
    const cf_err made = outbox_cuda_make(0, 1, watch_fd, &memory, &handle, &hold_fd);
    if (made == CF_ERR_UNSUPPORTED) {
        print_message("# SKIP %s\n", err_text());
        close(watch_fd);
        skip();
    }
    assert_int_equal(made, CF_OK);
    const outbox_grant grant = {.outbox_id = 10, .bytes = 1, .fd = hold_fd};
    assert_err(CF_ERR_UNSUPPORTED, "opening exchange memory", outbox_cuda_open(0, &grant, &handle, &box));
    struct pollfd p = {.fd = watch_fd};
    assert_int_equal(poll(&p, 1, 0), 0);
    close(hold_fd);
    assert_int_equal(poll(&p, 1, 0), 1);
    outbox_cuda_free(memory);
    close(watch_fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_members_die),
        cmocka_unit_test(test_freed_by_the_last),
        cmocka_unit_test(test_keeper_dies),
        cmocka_unit_test(test_own_handle_is_refused),
    };
    start_members();
    return cmocka_run_group_tests_name("device outbox", tests, NULL, NULL);
}
