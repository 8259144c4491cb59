/*
 * absent.c - what stands in for the CUDA backend where the build had no nvcc. Fails: always, CF_ERR_UNSUPPORTED.
 */
#include "common/compute/backend_impl.h"

cf_err backend_cuda_open(const backend_config *cfg, int device, backend *be)
{
    (void)device;
    (void)be;
    return err_set(CF_ERR_UNSUPPORTED,
                   "device \"%s\": this build has the CPU backend alone (device \"cpu\"): nvcc was "
                   "not found when it was made",
                   cfg->device);
}
