/*
 * backend_cuda.cu - the CUDA backend object: its device, its stream, its table of functions.
 *
 * The backend's thread. Owns one stream, on which everything runs in the order of the calls, the products' library,
 * and all device memory of the process but the exchange's. Uploads are copied, or waited for,
 * before the call returns (upload.cu), so callers may reuse what they uploaded.
 * Fails: CF_ERR_UNSUPPORTED (no such device, no driver, no cuBLASLt, operand type), CF_ERR_NOMEM, CF_ERR_DEVICE after
 * which the process must exit.
 */
#include <math.h>
#include <stdio.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/compute/cuda/cuda_impl.cuh"

cf_err cuda_status(cudaError_t status, const char *what)
{
    if (status == cudaSuccess)
        return CF_OK;
    cf_err code = CF_ERR_DEVICE;
    if (status == cudaErrorMemoryAllocation)
        code = CF_ERR_NOMEM;
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || status == cudaErrorInvalidDevice)
        code = CF_ERR_UNSUPPORTED;
    return err_set(code, "CUDA: %s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

cf_err cuda_launch_status(const char *kernel)
{
    if (fault_hit("cuda.launch"))
        return err_set(CF_ERR_DEVICE, "CUDA: %s: fault point cuda.launch", kernel);
    return cuda_status(cudaGetLastError(), kernel);
}

static cf_err cuda_sync(backend *be)
{
    return cuda_wait(cuda_of(be));
}

static cf_err cuda_upload(backend *be, const void *host, tensor *dst)
{
    return cuda_send(cuda_of(be), host, dst->data, tensor_bytes(dst));
}

static cf_err cuda_fetch(backend *be, const tensor *src, void *host)
{
    return cuda_status(cudaMemcpyAsync(host, src->data, tensor_bytes(src), cudaMemcpyDeviceToHost, cuda_of(be)->stream),
                       "copy from the device");
}

static cf_err cuda_download(backend *be, const tensor *src, void *host)
{
    const size_t bytes = tensor_bytes(src);
    if (bytes > 0)
        CUDA_TRY(cuda_fetch(be, src, host));
    return cuda_sync(be);
}

static cf_err cuda_zero(backend *be, tensor *dst)
{
    const size_t bytes = tensor_bytes(dst);
    if (bytes == 0)
        return CF_OK;
    return cuda_status(cudaMemsetAsync(dst->data, 0, bytes, cuda_of(be)->stream), "clearing device memory");
}

static cf_err cuda_copy(backend *be, const tensor *src, tensor *dst)
{
    const size_t bytes = tensor_bytes(src);
    if (bytes == 0)
        return CF_OK;
    return cuda_status(cudaMemcpyAsync(dst->data, src->data, bytes, cudaMemcpyDeviceToDevice, cuda_of(be)->stream),
                       "copy on the device");
}

static cf_err cuda_check_operands(const backend *be, precision operands)
{
    const int capability = cuda_of(be)->capability;
    if (operands == PRECISION_BF16 && capability < 80)
        return err_set(CF_ERR_UNSUPPORTED, "precision bf16 on compute capability %d.%d: expected f32 or fp16",
                       capability / 10, capability % 10);
    return CF_OK;
}

static void cuda_close(backend *be)
{
    cuda_state *cuda = cuda_of(be);
    if (!cuda)
        return;
    if (cuda->stream)
        (void)cudaStreamSynchronize(cuda->stream);
    gemm_close(cuda->products);
    for (int i = 0; i < cuda->segment_count; i++)
        (void)cudaFree(cuda->segments[i].dev);
    while (cuda->kept) {
        cuda_block *block = cuda->kept;
        cuda->kept = block->next;
        (void)cudaFree(block->dev);
        mem_free(block);
    }
    while (cuda->pinned) {
        cuda_pinned *piece = cuda->pinned;
        cuda->pinned = piece->next;
        (void)cudaFreeHost(piece->host);
        mem_free(piece);
    }
    if (cuda->stream)
        (void)cudaStreamDestroy(cuda->stream);
    mem_free(cuda);
}

static const backend_device cuda_device = {
    cuda_sync,
    cuda_upload,
    cuda_download,
    cuda_zero,
    cuda_copy,
    cuda_check_operands,
    cuda_pack_linear,
    cuda_pack_conv,
    cuda_pack_conv_f64,
    NULL, /* map: mapped weights are packed */
    NULL, /* weight_close: packed weights lie in kept memory */
    cuda_close,
    cuda_keep,
    cuda_take,
    cuda_scratch_reserve,
    cuda_scratch_reset,
    cuda_list_upload,
    cuda_keep_host,
    cuda_fetch,
    cuda_replay,
    cuda_record_close,
};

static const backend_ops cuda_ops = {
#define CUDA_SLOT(name, args) cuda_##name,
    CF_OPS(CUDA_SLOT)
#undef CUDA_SLOT
};

/* Tables of the 16-point transform. */
static cf_err open_waves(backend *be)
{
    double host[WAVES_VALUES];
    void *dev;
    for (int i = 0; i < 16; i++) {
        host[WAVES_COS + i] = cos(2.0 * 3.14159265358979323846 * i / 16.0);
        host[WAVES_SIN + i] = sin(2.0 * 3.14159265358979323846 * i / 16.0);
        host[WAVES_HANN + i] = 0.5 - 0.5 * host[WAVES_COS + i];
    }
    CUDA_TRY(cuda_keep(be, sizeof host, &dev));
    CUDA_TRY(cuda_send(cuda_of(be), host, dev, sizeof host));
    cuda_of(be)->waves = (const double *)dev;
    return CF_OK;
}

extern "C" cf_err backend_cuda_probe(int device)
{
    int count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess)
        return err_context(cuda_status(found, "looking for devices"), "device \"cuda:%d\"", device);
    if (device >= count)
        return err_set(CF_ERR_UNSUPPORTED, "device \"cuda:%d\": this host has %d, the last is cuda:%d", device, count,
                       count - 1);
    return CF_OK;
}

extern "C" cf_err backend_cuda_memory(int device, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes)
{
    size_t free_bytes, total_bytes;
    CUDA_TRY(backend_cuda_probe(device));
    CUDA_CALL(cudaSetDevice(device));
    CUDA_CALL(cudaMemGetInfo(&free_bytes, &total_bytes));
    *ret_free_bytes = free_bytes;
    *ret_total_bytes = total_bytes;
    return CF_OK;
}

static cf_err open_device(int device, cuda_state *cuda, cudaDeviceProp *ret_prop)
{
    CUDA_TRY(backend_cuda_probe(device));
    CUDA_CALL(cudaSetDevice(device));
    CUDA_CALL(cudaGetDeviceProperties(ret_prop, device));
    cuda->device = device;
    cuda->capability = ret_prop->major * 10 + ret_prop->minor;
    if (cuda->capability < 75)
        return err_set(CF_ERR_UNSUPPORTED, "device cuda:%d: %s has compute capability %d.%d, at least 7.5 is needed",
                       device, ret_prop->name, ret_prop->major, ret_prop->minor);
    /* A thread that spins for the device takes a core from the other stages. */
    CUDA_CALL(cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync));
    CUDA_CALL(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    return CF_OK;
}

extern "C" cf_err backend_cuda_open(const backend_config *cfg, int device, backend *be)
{
    cudaDeviceProp prop;
    cuda_state *cuda;
    if (cfg->naive)
        return err_set(CF_ERR_UNSUPPORTED, "device \"%s\": the naive backend runs on cpu", cfg->device);
    CUDA_TRY(mem_alloc(1, sizeof *cuda, &cuda));
    be->impl = cuda;
    be->device = &cuda_device;
    be->ops = &cuda_ops;
    be->threads = 1;
    CUDA_TRY(open_device(device, cuda, &prop));
    CUDA_TRY(gemm_open(device, &cuda->products));
    CUDA_TRY(cuda_uploads_open(be));
    CUDA_TRY(open_waves(be));
    CUDA_TRY(cuda_mma_choose(cuda->capability, &cuda->mma_depth));
    snprintf(be->describe, sizeof be->describe, "cuda:%d %.48s sm_%d attention=mma.m16n8k%d, f32: plain", device,
             prop.name, cuda->capability, cuda->mma_depth);
    return cuda_sync(be);
}
