/*
 * outbox.c - exchange memory of a device between processes that are killed: the contract of outbox.h over CUDA's
 * handles, on the emulated device. Test code.
 *
 * This process is the worker that reads; the keeper and a worker that writes are children, started before this process
 * has a context. They do what a byte on their pipe says.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/transport/outbox_cuda_ipc.h"
#include "tests/cuda_emu/cuda_runtime_api.h"

#define BYTES ((uint64_t)1 << 20)

typedef struct child {
    pid_t pid;
    int in, out; /* of this process */
} child;

static void say(int fd, const void *data, size_t bytes)
{
    if (write(fd, data, bytes) != (ssize_t)bytes)
        _exit(9);
}

static void hear(int fd, void *data, size_t bytes)
{
    if (read(fd, data, bytes) != (ssize_t)bytes)
        _exit(9);
}

static child start(void (*act)(int in, int out))
{
    int to[2], from[2];
    child c;
    assert_int_equal(pipe(to) | pipe(from), 0);
    c.pid = fork();
    if (c.pid == 0) {
        close(to[1]);
        close(from[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        act(to[0], from[1]);
        _exit(0);
    }
    close(to[0]);
    close(from[1]);
    c.in = from[0];
    c.out = to[1];
    return c;
}

static void end(child *c)
{
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
    close(c->in);
    close(c->out);
}

/* Makes one outbox, gives its handle, frees it when told. */
static void keep(int in, int out)
{
    outbox_cuda_memory *memory;
    outbox_handle handle;
    char byte;
    if (outbox_cuda_make(0, BYTES, &memory, &handle) != CF_OK)
        _exit(1);
    say(out, &handle, sizeof handle);
    hear(in, &byte, 1);
    outbox_cuda_free(memory);
    say(out, &byte, 1);
    hear(in, &byte, 1);
}

/* Writes one slot, says so, then writes half of the next and waits for its death. */
static void write_slots(int in, int out)
{
    outbox_handle handle;
    outbox *box;
    void *dev;
    unsigned char mel[1024];
    hear(in, &handle, sizeof handle);
    if (outbox_cuda_open(0, 7, &handle, BYTES, &box) != CF_OK || outbox_view(box, 256, sizeof mel, &dev) != CF_OK)
        _exit(1);
    memset(mel, 0x5A, sizeof mel);
    if (cudaMemcpy(dev, mel, sizeof mel, cudaMemcpyHostToDevice) != cudaSuccess)
        _exit(2);
    say(out, "w", 1);
    (void)cudaMemcpy((char *)dev + 4096, mel, sizeof mel / 2, cudaMemcpyHostToDevice);
    hear(in, mel, 1);
}

static unsigned char first_byte(outbox *box, uint64_t off_bytes)
{
    void *dev;
    unsigned char value;
    assert_ok(outbox_view(box, off_bytes, 1, &dev));
    assert_int_equal(cudaMemcpy(&value, dev, 1, cudaMemcpyDeviceToHost), cudaSuccess);
    return value;
}

static child keeper, doomed, writer;

/* What a worker committed outlives it; what it was still writing is anybody's guess and is never granted. */
static void test_writer_dies(void **state)
{
    (void)state;
    outbox_handle handle;
    outbox *box, *again;
    char byte;
    void *dev;
    hear(keeper.in, &handle, sizeof handle);
    say(writer.out, &handle, sizeof handle);
    hear(writer.in, &byte, 1);
    end(&writer);
    assert_ok(outbox_cuda_open(0, 7, &handle, BYTES, &box));
    assert_int_equal(outbox_id(box), 7);
    assert_int_equal(first_byte(box, 256), 0x5A);
    assert_int_equal(first_byte(box, 0), 0); /* zeroed */
    assert_err(CF_ERR_INVALID, "not a slot", outbox_view(box, 100, 4, &dev));
    assert_err(CF_ERR_INVALID, "not a slot", outbox_view(box, BYTES, 1, &dev));
    assert_ok(outbox_cuda_open(0, 7, &handle, BYTES, &again)); /* counted: closing one leaves the other */
    outbox_close(again);
    assert_int_equal(first_byte(box, 1024), 0x5A);
    outbox_close(box);

    say(keeper.out, "f", 1); /* free */
    hear(keeper.in, &byte, 1);
    assert_err(CF_ERR_GONE, "outbox 7", outbox_cuda_open(0, 7, &handle, BYTES, &box));
    end(&keeper);
}

static void test_keeper_dies(void **state)
{
    (void)state;
    outbox_handle handle;
    outbox *box;
    hear(doomed.in, &handle, sizeof handle);
    end(&doomed);
    assert_err(CF_ERR_GONE, "mapping of buffer object failed", outbox_cuda_open(0, 8, &handle, BYTES, &box));
}

static void test_own_handle_is_refused(void **state)
{
    (void)state;
    outbox_cuda_memory *memory;
    outbox_handle handle;
    outbox *box;
    assert_ok(outbox_cuda_make(0, 1, &memory, &handle));
    assert_err(CF_ERR_DEVICE, "invalid device context", outbox_cuda_open(0, 9, &handle, 1, &box));
    outbox_cuda_free(memory);
}

static void test_refused_hosts(void **state)
{
    (void)state;
    outbox_cuda_memory *memory;
    outbox_handle handle;
    assert_ok(outbox_cuda_probe(0));
    setenv("COSYFARM_EMU_IPC", "0", 1);
    assert_err(CF_ERR_UNSUPPORTED, "cannot share memory between processes", outbox_cuda_probe(0));
    unsetenv("COSYFARM_EMU_IPC");
    assert_err(CF_ERR_UNSUPPORTED, "cuda:5", outbox_cuda_probe(5));
    emu_fail_next("cudaMalloc", 1, cudaErrorMemoryAllocation);
    assert_err(CF_ERR_NOMEM, "out of memory", outbox_cuda_make(0, BYTES, &memory, &handle));
    assert_ok(fault_arm("outbox.make=fail"));
    assert_err(CF_ERR_NOMEM, "outbox.make", outbox_cuda_make(0, BYTES, &memory, &handle));
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
        cmocka_unit_test(test_writer_dies),           cmocka_unit_test(test_keeper_dies),
        cmocka_unit_test(test_own_handle_is_refused), cmocka_unit_test(test_refused_hosts),
        cmocka_unit_test(test_handle_text),
    };
    keeper = start(keep);
    doomed = start(keep);
    writer = start(write_slots);
    return cmocka_run_group_tests_name("cuda outbox", tests, NULL, NULL);
}
