/*
 * outbox_cuda_ipc.h - outboxes in the memory of a CUDA device, shared between processes by CUDA's handles.
 *
 * The keeper makes and owns the memory; workers open it and see it behind outbox.h like any other, but what
 * outbox_view gives is a device pointer. The owner's life is the memory's life: a worker's death, whichever, harms
 * nobody (an importer's death is the one that CUDA defines as harmless), the keeper's death ends every worker.
 * Where handles are refused (WSL, some containers) outbox_cuda_probe says so, and exchange memory is memfd.
 *
 * Linked by workers and the keeper only.
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

/* Whether memory of this device can be shared from here. CF_ERR_UNSUPPORTED: the text says why not. */
CF_MUST_CHECK cf_err outbox_cuda_probe(int device);

/* Keeper: a zeroed allocation of its own, at least `bytes`, and its handle. */
CF_MUST_CHECK cf_err outbox_cuda_make(int device, uint64_t bytes, outbox_cuda_memory **ret_memory,
                                      outbox_handle *ret_handle);
/* Frees it. Only after every importer has closed it, or has died. NULL is fine. */
void outbox_cuda_free(outbox_cuda_memory *memory);

/* Worker: maps a handle on `device`. CF_ERR_GONE: its owner has freed it or has died; CF_ERR_DEVICE otherwise. */
CF_MUST_CHECK cf_err outbox_cuda_open(int device, uint32_t outbox_id, const outbox_handle *handle, uint64_t bytes,
                                      outbox **ret_outbox);

/* 128 hex digits and a NUL; the reverse refuses anything else with CF_ERR_INVALID. */
void outbox_handle_format(const outbox_handle *handle, char ret_text[2 * OUTBOX_HANDLE_BYTES + 1]);
CF_MUST_CHECK cf_err outbox_handle_parse(const char *text, outbox_handle *ret_handle);

#ifdef __cplusplus
}
#endif
#endif
