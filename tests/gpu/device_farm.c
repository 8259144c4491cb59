/*
 * device_farm.c - a keeper for the tests of device memory. Test code.
 */
#define _GNU_SOURCE
#include "tests/gpu/device_farm.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

#include "common/base/io.h"
#include "common/base/process.h"
#include "tests/harness/test.h"
#include "tests/transport/keeper_fixture.h"

#define OTHER_BOX 999u

void device_farm_welcome(device_farm *f)
{
    wire_msg hello;
    pid_t pid;
    assert_ok(fixture_accept(f->listen_fd, &f->fd, &pid));
    assert_ok(fixture_take(f->fd, WIRE_hello, &hello, NULL, 0));
    wire_done(&hello);
    assert_ok(fixture_say_welcome(f->fd, 1));
}

void device_farm_start(device_farm *f)
{
    char run_dir[256];
    snprintf(run_dir, sizeof run_dir, "%s", test_temp_dir());
    snprintf(f->path, sizeof f->path, "%s/" RUN_LIFELINE_SOCKET, run_dir);
    assert_ok(lifeline_listen(f->path, &f->listen_fd));
    assert_ok(keeper_start(run_dir, NULL, &f->keeper));
    device_farm_welcome(f);
}

void device_farm_end(device_farm *f)
{
    kill(f->keeper, SIGKILL);
    waitpid(f->keeper, NULL, 0);
    io_close(&f->fd);
    io_close(&f->listen_fd);
}

device_answer device_ask(device_farm *f, uint32_t outbox_id, int device, int reader)
{
    device_answer a = {.fds = {-1, -1}};
    const int32_t readers[] = {reader};
    json *m = wire_new(WIRE_alloc);
    json_put_u64(m, "outbox", outbox_id);
    json_put_u64(m, "bytes", DEVICE_BOX_BYTES);
    json_put_u64(m, "device", (uint64_t)device);
    json_put_i32s(m, "readers", readers, 1);
    assert_ok(lifeline_send(f->fd, m, NULL, 0));
    assert_ok(fixture_take(f->fd, WIRE_memory, &a.msg, a.fds, FIXTURE_FDS_ANY));
    a.grant = (outbox_grant){.outbox_id = outbox_id, .bytes = DEVICE_BOX_BYTES, .fd = a.fds[0]};
    if (device_answer_is_device(&a))
        assert_ok(outbox_handle_parse(wire_str(&a.msg, "handle"), &a.handle));
    return a;
}

bool device_answer_is_device(const device_answer *a)
{
    return wire_has(&a->msg, "handle");
}

void device_answer_done(device_answer *a)
{
    wire_done(&a->msg);
    io_close(&a->fds[0]);
    io_close(&a->fds[1]);
}

void device_farm_wait_until_heard(device_farm *f)
{
    int fds[2];
    assert_ok(keeper_alloc(f->fd, OTHER_BOX, 4096, fds));
    assert_ok(keeper_release(f->fd, OTHER_BOX));
    io_close(&fds[0]);
    io_close(&fds[1]);
}
