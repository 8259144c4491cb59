/*
 * upload.cu - bytes of the host on their way to the device. The backend's thread.
 *
 * CUDA says of a copy from ordinary memory only that it might be over when the call returns, and callers free or reuse
 * what they uploaded. So bytes are copied to memory that the device reads by itself, a part of a ring for each upload;
 * waiting for the device gives the ring back whole, which every step does in the end, and an upload that finds no room
 * does early. What is larger than the ring goes from where it lies and is waited for: tables, when a model is loaded.
 * Fails: CF_ERR_NOMEM (the ring), CF_ERR_DEVICE.
 */
#include <string.h>

#include "common/compute/cuda/cuda_impl.cuh"

#define RING_BYTES ((size_t)8 << 20) /* the largest upload of a step, the LLM's prefill of 1024 rows, takes 3.5 MiB */
#define RING_ALIGN ((size_t)64)

cf_err cuda_uploads_open(backend *be)
{
    void *ring;
    CUDA_TRY(cuda_keep_host(be, RING_BYTES, &ring));
    cuda_of(be)->ring = (unsigned char *)ring;
    return CF_OK;
}

cf_err cuda_wait(cuda_state *cuda)
{
    CUDA_TRY(cuda_not_recorded(cuda, "waiting for the device"));
    CUDA_TRY(cuda_status(cudaStreamSynchronize(cuda->stream), "waiting for the device"));
    cuda->ring_used_bytes = 0;
    return CF_OK;
}

cf_err cuda_send(cuda_state *cuda, const void *host, void *dev, size_t bytes)
{
    const void *from = host;
    CUDA_TRY(cuda_not_recorded(cuda, "copy to the device"));
    if (bytes == 0)
        return CF_OK;
    if (bytes <= RING_BYTES) {
        if (bytes > RING_BYTES - cuda->ring_used_bytes)
            CUDA_TRY(cuda_wait(cuda));
        from = memcpy(cuda->ring + cuda->ring_used_bytes, host, bytes);
        cuda->ring_used_bytes += (bytes + RING_ALIGN - 1) / RING_ALIGN * RING_ALIGN;
    }
    CUDA_TRY(
        cuda_status(cudaMemcpyAsync(dev, from, bytes, cudaMemcpyHostToDevice, cuda->stream), "copy to the device"));
    return from == host ? cuda_wait(cuda) : CF_OK;
}
