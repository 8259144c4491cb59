/*
 * absent.c - what stands in for the CUDA backend where the build had no nvcc. Fails: always, CF_ERR_UNSUPPORTED.
 */
#include "common/compute/backend_impl.h"

cf_err backend_cuda_probe(int device)
{
    return err_set(CF_ERR_UNSUPPORTED,
                   "device \"cuda:%d\": this build has the CPU backend alone (device \"cpu\"): no nvcc was found, or a "
                   "sanitizer was asked for, when it was made",
                   device);
}

cf_err backend_cuda_memory(int device, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes)
{
    (void)ret_free_bytes;
    (void)ret_total_bytes;
    return backend_cuda_probe(device);
}

cf_err backend_cuda_open(const backend_config *cfg, int device, backend *be)
{
    (void)cfg;
    (void)be;
    return backend_cuda_probe(device);
}
