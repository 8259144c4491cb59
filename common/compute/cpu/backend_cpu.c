/*
 * backend_cpu.c - the CPU backend object: its two variants, its threads, its memory (the host's).
 *
 * Owns the pool, the threads' buffers, oneDNN's context. The backend's thread.
 * Fails: CF_ERR_UNSUPPORTED for operand types without arithmetic here, CF_ERR_NOMEM, CF_ERR_SYS (threads).
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/gemm.h"

static cf_err cpu_sync(backend *be)
{
    (void)be;
    return CF_OK;
}

static cf_err cpu_upload(backend *be, const void *host, tensor *dst)
{
    (void)be;
    const size_t bytes = tensor_bytes(dst);
    if (bytes)
        memcpy(dst->data, host, bytes);
    return CF_OK;
}

static cf_err cpu_download(backend *be, const tensor *src, void *host)
{
    (void)be;
    const size_t bytes = tensor_bytes(src);
    if (bytes)
        memcpy(host, src->data, bytes);
    return CF_OK;
}

static cf_err cpu_zero(backend *be, tensor *dst)
{
    (void)be;
    const size_t bytes = tensor_bytes(dst);
    if (bytes)
        memset(dst->data, 0, bytes);
    return CF_OK;
}

static cf_err cpu_copy(backend *be, const tensor *src, tensor *dst)
{
    (void)be;
    const size_t bytes = tensor_bytes(src);
    if (bytes)
        memmove(dst->data, src->data, bytes);
    return CF_OK;
}

static cf_err cpu_check_operands(const backend *be, precision operands)
{
    (void)be;
    if (operands == PRECISION_FP16)
        return err_set(CF_ERR_UNSUPPORTED, "precision fp16 on the CPU: expected f32 or bf16");
    return CF_OK;
}

static bool naive_has_int8(const backend *be)
{
    (void)be;
    return true;
}

static bool fast_has_int8(const backend *be)
{
    return cpu_of(be)->tiles != NULL;
}

static void naive_close(backend *be)
{
    (void)be;
}

static void fast_weight_close(backend *be, weight *w)
{
    (void)be;
    gemm_dnnl_weight_close(w);
}

static void fast_close(backend *be)
{
    cpu_state *cpu = cpu_of(be);
    pool_close(cpu->threads);
    if (cpu->workers)
        gemm_dnnl_close(cpu, be->threads);
    mem_free(cpu->workers);
    mem_free(cpu);
}

static const backend_device naive_device = {
    .sync = cpu_sync,
    .upload = cpu_upload,
    .download = cpu_download,
    .zero = cpu_zero,
    .copy = cpu_copy,
    .check_operands = cpu_check_operands,
    .pack_linear = naive_pack,
    .pack_conv = naive_pack,
    .pack_conv_f64 = naive_pack_conv_f64,
    .close = naive_close,
    .has_int8 = naive_has_int8,
};

static const backend_device fast_device = {
    .sync = cpu_sync,
    .upload = cpu_upload,
    .download = cpu_download,
    .zero = cpu_zero,
    .copy = cpu_copy,
    .check_operands = cpu_check_operands,
    .pack_linear = gemm_pack,
    .pack_conv = gemm_pack,
    .pack_conv_f64 = gemm_pack_f64,
    .map = gemm_map,
    .weight_close = fast_weight_close,
    .close = fast_close,
    .has_int8 = fast_has_int8,
};

static const backend_ops naive_ops = {
#define CF_OP_SLOT(name, args) .name = naive_##name,
    CF_OPS(CF_OP_SLOT)
#undef CF_OP_SLOT
};

/* Copies of rows are bound by memory and small, segments are few: the plain loops serve. */
static const backend_ops fast_ops = {
    .linear = fast_linear,
    .conv1d = fast_conv1d,
    .conv2d = fast_conv2d,
    .embedding = naive_embedding,
    .act = fast_act,
    .add = fast_add,
    .mean3 = fast_mean3,
    .snake = fast_snake,
    .swiglu = fast_swiglu,
    .rms_norm = fast_rms_norm,
    .layer_norm = fast_layer_norm,
    .affine = fast_affine,
    .fsmn = fast_fsmn,
    .segment_mean = naive_segment_mean,
    .segment_gate = naive_segment_gate,
    .layer_norm_mod = fast_layer_norm_mod,
    .rope = fast_rope,
    .attn_block = fast_attn_block,
    .attn_cache = fast_attn_cache,
    .step_rows = naive_step_rows,
    .attn_step = naive_attn_step,
    .ras = fast_ras,
    .dit_input = naive_dit_input,
    .cfg_euler = fast_cfg_euler,
    .lerp_time = fast_lerp_time,
    .source = fast_source,
    .stft = fast_stft,
    .istft = fast_istft,
    .reflect_first = naive_reflect_first,
    .cast = naive_cast,
};

/* Cores that this process may run on. */
static int allowed_threads(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int count = CPU_COUNT(&set);
    return count > 0 ? count : 1;
}

static cf_err open_workers(backend *be)
{
    cf_err err;
    cpu_state *cpu = cpu_of(be);

    TRY(pool_open(be->threads, &cpu->threads));
    TRY(mem_alloc((size_t)be->threads, sizeof *cpu->workers, &cpu->workers));
    for (int i = 0; i < be->threads; i++)
        TRY(backend_keep_bytes(be, GEMM_BLOCK_BYTES, &cpu->workers[i].block));
out:
    return err;
}

static void describe_fast(backend *be)
{
    const cpu_state *cpu = cpu_of(be);
    const char *bf16 = "bf16 operands in f32 arithmetic: no AMX";
    if (cpu->dnnl_bf16)
        bf16 = "bf16 operands on AMX";
    snprintf(be->describe, sizeof be->describe, "cpu fast %s threads=%d (%s)",
             cpu->use_dnnl ? "onednn avx512" : cpu->kernels->name, be->threads, bf16);
}

size_t cpu_value_bytes(precision operands, unsigned kinds)
{
    const bool use_dnnl = onednn_has_fast_f32();
    const cpu_state best = {.use_amx = use_dnnl && amx_usable(), .tiles = use_dnnl ? tile_kernels_choose() : NULL};
    const weight w = {.form = WEIGHT_LINEAR, .operands = operands, .kinds = kinds};
    const size_t narrow = operands == PRECISION_BF16_PAIR ? 2 * sizeof(uint16_t) : sizeof(uint16_t);
    if (kinds & GEMM_INT8_BIT)
        return sizeof(int8_t);
    if (gemm_amx_take(&best, &w) || gemm_tiles_take(&best, &w))
        return narrow;
    if (!use_dnnl)
        return operands == PRECISION_F32 ? sizeof(float) : narrow;
    const size_t copies = (kinds & GEMM_BULK_BIT ? 1 : 0) + (kinds & GEMM_DECODE_BIT ? 1 : 0);
    return copies * (operands == PRECISION_BF16 && onednn_has_fast_bf16() ? sizeof(uint16_t) : sizeof(float));
}

cf_err cpu_fast_open(backend *be, int threads, bool use_dnnl)
{
    cf_err err;
    cpu_state *cpu;

    TRY(mem_alloc(1, sizeof *cpu, &cpu));
    be->impl = cpu;
    be->device = &fast_device;
    be->ops = &fast_ops;
    be->threads = threads;
    cpu->vec = vec_choose();
    cpu->kernels = gemm_kernels_choose();
    TRY(open_workers(be));
    if (use_dnnl) {
        TRY(gemm_dnnl_open(cpu, be));
        cpu->tiles = tile_kernels_choose();
        cpu->use_amx = amx_usable();
    }
    describe_fast(be);
out:
    return err; /* backend_close frees what was made */
}

cf_err backend_cpu_open(const backend_config *cfg, backend *be)
{
    if (cfg->naive) {
        be->threads = 1;
        be->ops = &naive_ops;
        be->device = &naive_device;
        snprintf(be->describe, sizeof be->describe, "cpu naive threads=1");
        return CF_OK;
    }
    return cpu_fast_open(be, cfg->threads ? cfg->threads : allowed_threads(), onednn_has_fast_f32());
}
