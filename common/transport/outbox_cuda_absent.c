/*
 * outbox_cuda_absent.c - outboxes in device memory, of a build without CUDA: refused. No worker of such a build runs on
 * a device, so none is ever asked for. Fails: CF_ERR_UNSUPPORTED.
 */
#include "common/transport/outbox_cuda_ipc.h"

static cf_err absent(void)
{
    return err_set(CF_ERR_UNSUPPORTED, "outbox: this build has no CUDA");
}

cf_err outbox_cuda_check_readers(int device, const int32_t *readers, size_t readers_count)
{
    (void)device;
    (void)readers;
    (void)readers_count;
    return absent();
}

cf_err outbox_cuda_make(int device, uint64_t bytes, int watch_fd, outbox_cuda_memory **ret_memory,
                        outbox_handle *ret_handle, int *ret_hold_fd)
{
    (void)device;
    (void)bytes;
    (void)watch_fd;
    (void)ret_memory;
    (void)ret_handle;
    (void)ret_hold_fd;
    return absent();
}

void outbox_cuda_free(outbox_cuda_memory *memory)
{
    (void)memory;
}

cf_err outbox_cuda_open(int device, const outbox_grant *grant, const outbox_handle *handle, outbox **ret_outbox)
{
    (void)device;
    (void)grant;
    (void)handle;
    (void)ret_outbox;
    return absent();
}

cf_err outbox_cuda_pin(int device, outbox *box, outbox_access access)
{
    (void)device;
    (void)box;
    (void)access;
    return absent();
}
