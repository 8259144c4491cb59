/*
 * subjects.c - opens the backends that the op suite tests. Test code, and the only part of the suite that knows what
 * is inside a CPU backend: whatever this machine would choose, all engines that it can run are tested.
 * Fails: CF_ERR_UNSUPPORTED where a backend is not part of this build or machine.
 */
#include "tests/ops/subjects.h"

#include <stdio.h>

#include "common/base/mem.h"
#include "common/compute/cpu/cpu_impl.h"
#include "common/compute/cpu/dnnl_matmul.h"

#define SCRATCH_BYTES ((size_t)1 << 30) /* address space: pages are used when touched */

static cf_err open_device(const subject *s, int threads, backend **ret_backend)
{
    const backend_config cfg = {
        .device = s->device, .naive = s->naive, .threads = threads, .scratch_bytes = SCRATCH_BYTES};
    return backend_open(&cfg, ret_backend);
}

/* The fast variant with or without oneDNN, whatever backend_open would choose here. */
static cf_err open_engine(int threads, bool use_dnnl, backend **ret_backend)
{
    cf_err err;
    backend *be = NULL;

    TRY(mem_alloc(1, sizeof *be, &be));
    TRY(arena_open(SCRATCH_BYTES, &be->scratch));
    TRY(cpu_fast_open(be, threads, use_dnnl));
    *ret_backend = be;
    be = NULL;
out:
    backend_close(be);
    return err;
}

static cf_err open_own(const subject *s, int threads, backend **ret_backend)
{
    (void)s;
    return open_engine(threads, false, ret_backend);
}

static cf_err open_plain_c(const subject *s, int threads, backend **ret_backend)
{
    cf_err err;
    (void)s;
    TRY(open_engine(threads, false, ret_backend));
    cpu_of(*ret_backend)->vec = &vec_base;
    cpu_of(*ret_backend)->kernels = &gemm_kernels_base;
out:
    return err;
}

static cf_err open_narrow(const subject *s, int threads, backend **ret_backend)
{
    cf_err err;
    if (!onednn_has_fast_f32())
        FAIL(CF_ERR_UNSUPPORTED, "%s: oneDNN has no AVX-512 here", s->name);
    TRY(open_engine(threads, true, ret_backend));
    cpu_of(*ret_backend)->dnnl_bf16 = true;
    cpu_of(*ret_backend)->tiles = NULL;
    cpu_of(*ret_backend)->use_amx = false;
out:
    return err;
}

static cf_err open_widened(const subject *s, int threads, backend **ret_backend)
{
    cf_err err;
    if (!onednn_has_fast_f32())
        FAIL(CF_ERR_UNSUPPORTED, "%s: no AVX-512 here", s->name);
    TRY(open_engine(threads, true, ret_backend));
    cpu_of(*ret_backend)->tiles = &tile_kernels_avx512;
out:
    return err;
}

const subject subjects[] = {
    {.name = "naive", .open = open_device, .device = "cpu", .naive = true},
    {.name = "cpu", .open = open_device, .device = "cpu", .threaded = true},
    {.name = "cpu-own", .open = open_own, .threaded = true},         /* without oneDNN */
    {.name = "cpu-plain-c", .open = open_plain_c, .threaded = true}, /* without vector instructions either */
    {.name = "cpu-bf16", .open = open_narrow, .threaded = true, .bf16_only = true},   /* as on AMX: bf16 in memory */
    {.name = "cpu-tiles", .open = open_widened, .threaded = true, .bf16_only = true}, /* as without a matrix unit */
    {.name = "cuda", .open = open_device, .device = "cuda:0"},
};
const int subject_count = (int)(sizeof subjects / sizeof subjects[0]);
