/*
 * outbox.c - exchange memory of a device where only the emulator can tell: reads after the owner's death, refusals and
 * failures on demand, fallbacks of the keeper. The contract itself is tests/gpu/outbox.c, which runs here and on cards.
 * Test code. This process is the orchestrator and the worker that reads.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "tests/cuda_emu/cuda_runtime_api.h"
#include "tests/gpu/device_farm.h"

static unsigned char first_byte(outbox *box, uint64_t off_bytes)
{
    void *dev;
    unsigned char value;
    assert_ok(outbox_view(box, off_bytes, 1, &dev));
    assert_int_equal(cudaMemcpy(&value, dev, 1, cudaMemcpyDeviceToHost), cudaSuccess);
    return value;
}

static void test_keeper_dies(void **state)
{
    (void)state;
    device_farm f;
    outbox *box, *late;
    device_farm_start(&f);
    device_answer a = device_ask(&f, 9, 0, 0);
    assert_ok(outbox_cuda_open(0, &a.grant, &a.handle, &box));
    device_farm_end(&f);
    assert_int_equal(first_byte(box, 256), 0xFF); /* undefined in CUDA, NaN here */
    /* Drivers differ in what they say of a handle whose process is gone. */
    emu_fail_next("cudaIpcOpenMemHandle", 1, cudaErrorInvalidValue);
    assert_err(CF_ERR_GONE, "outbox 9: the exchange_keeper that owned its memory has died",
               outbox_cuda_open(0, &a.grant, &a.handle, &late));
    outbox_close(box);
    device_answer_done(&a);
}

/* A keeper in another environment: it answers with a memfd, and says why. */
static void expect_memfd(const char *variable, const char *value, int reader, const char *why)
{
    device_farm f;
    outbox *box;
    setenv(variable, value, 1);
    device_farm_start(&f);
    device_answer a = device_ask(&f, 11, 0, reader);
    unsetenv(variable);
    assert_false(wire_has(&a.msg, "handle"));
    assert_non_null(strstr(wire_str(&a.msg, "fallback"), why));
    const outbox_grant write = {.outbox_id = 11, .bytes = DEVICE_BOX_BYTES, .fd = a.fds[0]};
    assert_ok(outbox_open(&write, OUTBOX_WRITE, &box));
    assert_false(outbox_on_device(box));
    assert_ok(outbox_cuda_pin(0, box, OUTBOX_WRITE));
    assert_ok(outbox_check(box));
    outbox_close(box);
    device_answer_done(&a);
    device_farm_end(&f);
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
    device_farm f;
    outbox_cuda_memory *memory;
    outbox_handle handle;
    outbox *box;
    int hold_fd;
    const outbox_grant grant = {.outbox_id = 12, .bytes = DEVICE_BOX_BYTES, .fd = 0};
    setenv("COSYFARM_EMU_MEMORY_MIB", "1", 1);
    device_farm_start(&f);
    device_answer a = device_ask(&f, 12, 0, 0);
    unsetenv("COSYFARM_EMU_MEMORY_MIB");
    assert_string_equal(wire_str(&a.msg, "error"), "exchange memory needs 2.0 MiB, 1.0 free on cuda:0");
    device_answer_done(&a);
    device_farm_end(&f);
    emu_fail_next("cudaMalloc", 1, cudaErrorMemoryAllocation);
    assert_err(CF_ERR_NOMEM, "out of memory", outbox_cuda_make(0, DEVICE_BOX_BYTES, 0, &memory, &handle, &hold_fd));
    emu_fail_next("cudaIpcGetMemHandle", 1, cudaErrorNotSupported);
    assert_err(CF_ERR_UNSUPPORTED, "not supported",
               outbox_cuda_make(0, DEVICE_BOX_BYTES, 0, &memory, &handle, &hold_fd));
    assert_int_equal(cudaPeekAtLastError(), cudaSuccess); /* or the next launch would be blamed */
    emu_fail_next("cudaIpcGetMemHandle", 1, cudaErrorOperatingSystem);
    assert_err(CF_ERR_UNSUPPORTED, "OS call failed",
               outbox_cuda_make(0, DEVICE_BOX_BYTES, 0, &memory, &handle, &hold_fd));
    emu_fail_next("cudaIpcGetMemHandle", 1, cudaErrorInvalidConfiguration); /* of no such call: not known */
    assert_err(CF_ERR_DEVICE, "invalid configuration",
               outbox_cuda_make(0, DEVICE_BOX_BYTES, 0, &memory, &handle, &hold_fd));
    static const cudaError_t broken[] = {cudaErrorLaunchFailure, cudaErrorIllegalAddress}; /* a context, no refusal */
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        emu_fail_next("cudaMemsetAsync", 1, broken[i]);
        assert_err(CF_ERR_DEVICE, cudaGetErrorString(broken[i]),
                   outbox_cuda_make(0, DEVICE_BOX_BYTES, 0, &memory, &handle, &hold_fd));
        assert_err(CF_ERR_DEVICE, cudaGetErrorString(broken[i]),
                   outbox_cuda_make(0, DEVICE_BOX_BYTES, 0, &memory, &handle, &hold_fd)); /* and again */
        emu_reset();
    }
    assert_ok(fault_arm("outbox.make=fail,outbox.open=fail"));
    assert_err(CF_ERR_NOMEM, "outbox.make", outbox_cuda_make(0, DEVICE_BOX_BYTES, 0, &memory, &handle, &hold_fd));
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
        cmocka_unit_test(test_keeper_dies),
        cmocka_unit_test(test_fallbacks),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_handle_text),
    };
    return cmocka_run_group_tests_name("cuda outbox", tests, NULL, NULL);
}
