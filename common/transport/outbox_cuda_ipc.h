/*
 * outbox_cuda_ipc.h - outboxes in the memory of a CUDA device, shared between processes by CUDA's handles.
 *
 * The keeper makes and owns the memory; workers open it and see it behind outbox.h like any other, but what
 * outbox_view gives is a device pointer. CUDA leaves undefined what happens to an importer when the exporter frees, so
 * each memory has a pipe: the keeper reads it, everybody else who may use the memory holds its other end (the
 * descriptor of a grant) and closes that after the mapping. The keeper frees when all are closed, by whatever end
 * their holders came to; an importer sees the keeper's death as an error of its end.
 * Where handles are refused (WSL, some containers), or a reader's device cannot reach the writer's, the keeper answers
 * CF_ERR_UNSUPPORTED, and exchange memory is a memfd, which workers pin for their devices.
 *
 * Linked by workers, the keeper and the command only. A build without CUDA has outbox_cuda_absent.c instead.
 */
#ifndef CF_TRANSPORT_OUTBOX_CUDA_IPC_H
#define CF_TRANSPORT_OUTBOX_CUDA_IPC_H

#include "common/transport/outbox.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OUTBOX_HANDLE_BYTES 64

/* What travels in a message; as text it is two hex digits a byte. */
typedef struct outbox_handle {
    unsigned char bytes[OUTBOX_HANDLE_BYTES];
} outbox_handle;

typedef struct outbox_cuda_memory outbox_cuda_memory; /* the keeper's side */

/* Keeper: whether each of these devices can read memory of `device`. CF_ERR_UNSUPPORTED names the one that cannot. */
CF_MUST_CHECK cf_err outbox_cuda_check_readers(int device, const int32_t *readers, size_t readers_count);

/* Keeper: a zeroed allocation of its own, at least `bytes`, its handle, and the pipe's end for those who use it (owned
 * by the caller, who closes it when it has been sent). watch_fd: an open descriptor that becomes the keeper's end. When
 * a process dies the kernel closes its descriptors in order: a low number, taken before CUDA opened its own, makes the
 * pipe end before the memory does. CF_ERR_UNSUPPORTED: handles are refused here; CF_ERR_NOMEM; CF_ERR_DEVICE: this
 * process must exit. */
CF_MUST_CHECK cf_err outbox_cuda_make(int device, uint64_t bytes, int watch_fd, outbox_cuda_memory **ret_memory,
                                      outbox_handle *ret_handle, int *ret_hold_fd);
/* Frees it, not watch_fd. Only when watch_fd has hung up. NULL is fine. */
void outbox_cuda_free(outbox_cuda_memory *memory);

/* Worker: maps a handle on `device`; hold_fd is copied. CF_ERR_GONE: its owner has freed it or has died;
 * CF_ERR_UNSUPPORTED: refused here; CF_ERR_DEVICE: this process must exit. */
CF_MUST_CHECK cf_err outbox_cuda_open(int device, const outbox_grant *grant, const outbox_handle *handle,
                                      outbox **ret_outbox);

/* Worker on a device whose outbox is a memfd: pins the mapping, so that the device copies without staging. A host that
 * refuses is CF_ERR_UNSUPPORTED: copies are slower, nothing else. The mapping is unpinned when the outbox closes. */
CF_MUST_CHECK cf_err outbox_cuda_pin(int device, outbox *box, outbox_access access);

/* 128 hex digits and a NUL; the reverse refuses anything else with CF_ERR_INVALID. */
void outbox_handle_format(const outbox_handle *handle, char ret_text[2 * OUTBOX_HANDLE_BYTES + 1]);
CF_MUST_CHECK cf_err outbox_handle_parse(const char *text, outbox_handle *ret_handle);

#ifdef __cplusplus
}
#endif
#endif
