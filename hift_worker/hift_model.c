/*
 * hift_model.c - binds, folds and packs the vocoder's weights, and plans its memory.
 *
 * Runs once, in stage open, on the compute thread. Packed weights and tables belong to the backend; the model owns
 * itself.
 *
 * Fails: CF_ERR_NOTFOUND, CF_ERR_MISMATCH or CF_ERR_NUMERIC naming a tensor; CF_ERR_NOMEM.
 * Source: cosy hifigan/generator.py CausalHiFTGenerator, ResBlock; hifigan/f0_predictor.py CausalConvRNNF0Predictor;
 * transformer/convolution.py CausalConv1dUpsample @ace7c47; names and shapes: hift.md 2.
 */
#include "hift_worker/hift_model.h"

#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/tensor_file.h"

#define HIFT_PREFIX_BYTES 64
#define HIFT_NAME_BYTES   (HIFT_PREFIX_BYTES + 32)
/* What ops take beside their operands, whatever the batch: inverse alphas, a frame's voiced parts. */
#define OPS_SCRATCH_BYTES ((size_t)4 << 20)
/* Rows of zeros around a sequence in a product's operand: taps and whole blocks of rows; and its least channels. */
#define OPERAND_PAD_ROWS     ((size_t)128)
#define OPERAND_CHANNELS_MIN ((size_t)32)
/* The inverse transform may keep each frame's 16 points in double until they are added up. */
#define ISTFT_LINE_BYTES (16 * sizeof(double))

/* What every step of packing needs. */
typedef struct hift_packer {
    backend *be;
    weights *w;
    precision operands;
} hift_packer;

/* A vector of the file, copied to the backend for its life. */
static cf_err pack_vector(const hift_packer *p, const char *name, int64_t count, tensor *ret_tensor)
{
    cf_err err;
    const float *values;
    tensor t;
    TRY(weights_f32(p->w, name, 1, (const int64_t[]){count}, &values));
    TRY(backend_keep(p->be, DTYPE_F32, 1, (const int64_t[]){count}, &t));
    TRY(backend_upload(p->be, values, &t));
    *ret_tensor = t;
out:
    return err;
}

static cf_err pack_bias(const hift_packer *p, const char *prefix, int64_t count, tensor *ret_tensor)
{
    char name[HIFT_NAME_BYTES];
    snprintf(name, sizeof name, "%s.bias", prefix);
    return pack_vector(p, name, count, ret_tensor);
}

static cf_err pack_conv(const hift_packer *p, const char *prefix, int64_t c_out, int64_t c_in, int32_t kernel,
                        hift_conv *ret_conv)
{
    cf_err err;
    const float *values;
    hift_conv c = {.kernel = kernel};
    TRY(weights_folded_f32(p->w, prefix, 3, (const int64_t[]){c_out, c_in, kernel}, &values));
    TRY(backend_pack_conv(p->be, values, c_out, c_in, kernel, 1, p->operands, &c.w));
    TRY(pack_bias(p, prefix, c_out, &c.bias));
    *ret_conv = c;
out:
    return err;
}

/* The f0 predictor stays in double from the fold to the last product. */
static cf_err pack_conv_f64(const hift_packer *p, const char *prefix, int64_t c_out, int64_t c_in, int32_t kernel,
                            hift_conv *ret_conv)
{
    cf_err err;
    char name[HIFT_NAME_BYTES];
    const double *values, *bias;
    hift_conv c = {.kernel = kernel};
    TRY(weights_folded_f64(p->w, prefix, 3, (const int64_t[]){c_out, c_in, kernel}, &values));
    TRY(backend_pack_conv_f64(p->be, values, c_out, c_in, kernel, &c.w));
    snprintf(name, sizeof name, "%s.bias", prefix);
    TRY(weights_f64(p->w, name, 1, (const int64_t[]){c_out}, &bias));
    TRY(backend_keep(p->be, DTYPE_F64, 1, (const int64_t[]){c_out}, &c.bias));
    TRY(backend_upload(p->be, bias, &c.bias));
    *ret_conv = c;
out:
    return err;
}

/*
 * Taps of the repeated signal that fall on the same row of x are added up, in double:
 *   repeated row r f + p reads rows r f + p - (K - 1) + j, which is row f + floor((p - K + 1 + j) / r) of x.
 * w: [C, 2 C, K]   ret_phases: [rate C, 2 C, 3] zeroed, phase p being filters p C .. p C + C - 1
 */
static void add_taps(const double *w, int64_t c_out, int64_t c_in, const hift_rung *rung, double *ret_phases)
{
    const int64_t rate = rung->rate, kernel = rung->ups_kernel;
    for (int64_t phase = 0; phase < rate; phase++)
        for (int64_t filter = 0; filter < c_out * c_in; filter++)
            for (int64_t j = 0; j < kernel; j++) {
                const int64_t above = phase - kernel + 1 + j + rate * (HIFT_UPS_TAPS - 1); /* >= 0 */
                ret_phases[(phase * c_out * c_in + filter) * HIFT_UPS_TAPS + above / rate] += w[filter * kernel + j];
            }
}

static cf_err pack_ups(const hift_packer *p, const char *prefix, int64_t c_out, const hift_rung *rung,
                       hift_conv *ret_conv)
{
    cf_err err;
    char name[HIFT_NAME_BYTES];
    const double *folded;
    const float *bias;
    double *phases = NULL;
    float *rounded = NULL;
    const int64_t c_in = 2 * c_out, filters = rung->rate * c_out, count = filters * c_in * HIFT_UPS_TAPS;
    hift_conv c = {.kernel = HIFT_UPS_TAPS};
    TRY(weights_folded_f64(p->w, prefix, 3, (const int64_t[]){c_out, c_in, rung->ups_kernel}, &folded));
    TRY(mem_alloc((size_t)count, sizeof *phases, &phases));
    TRY(mem_alloc((size_t)count, sizeof *rounded, &rounded));
    add_taps(folded, c_out, c_in, rung, phases);
    for (int64_t i = 0; i < count; i++)
        rounded[i] = (float)phases[i];
    TRY(backend_pack_conv(p->be, rounded, filters, c_in, HIFT_UPS_TAPS, 1, p->operands, &c.w));
    snprintf(name, sizeof name, "%s.bias", prefix);
    TRY(weights_f32(p->w, name, 1, (const int64_t[]){c_out}, &bias));
    TRY(backend_keep(p->be, DTYPE_F32, 1, (const int64_t[]){filters}, &c.bias));
    for (int64_t phase = 0; phase < rung->rate; phase++) {
        tensor part = tensor_rows(&c.bias, phase * c_out, c_out);
        TRY(backend_upload(p->be, bias, &part));
    }
    *ret_conv = c;
out:
    mem_free(rounded);
    mem_free(phases);
    return err;
}

static cf_err pack_block(const hift_packer *p, const char *prefix, int64_t channels, int32_t kernel,
                         hift_block *ret_block)
{
    cf_err err = CF_OK;
    char name[HIFT_NAME_BYTES];
    for (int n = 0; n < HIFT_PAIRS; n++) {
        snprintf(name, sizeof name, "%s.convs1.%d", prefix, n);
        TRY(pack_conv(p, name, channels, channels, kernel, &ret_block->convs1[n]));
        snprintf(name, sizeof name, "%s.convs2.%d", prefix, n);
        TRY(pack_conv(p, name, channels, channels, kernel, &ret_block->convs2[n]));
        snprintf(name, sizeof name, "%s.activations1.%d.alpha", prefix, n);
        TRY(pack_vector(p, name, channels, &ret_block->alpha1[n]));
        snprintf(name, sizeof name, "%s.activations2.%d.alpha", prefix, n);
        TRY(pack_vector(p, name, channels, &ret_block->alpha2[n]));
    }
out:
    return err;
}

static cf_err pack_rung(const hift_packer *p, int rung_idx, int64_t channels, hift_rung_weights *ret_rung)
{
    cf_err err;
    char name[HIFT_PREFIX_BYTES];
    const hift_rung *rung = &HIFT_LADDER[rung_idx];
    ret_rung->channels = channels;
    snprintf(name, sizeof name, "ups.%d", rung_idx);
    TRY(pack_ups(p, name, channels, rung, &ret_rung->ups));
    snprintf(name, sizeof name, "source_downs.%d", rung_idx);
    TRY(pack_conv(p, name, channels, HIFT_STFT_COLUMNS, rung->down_kernel, &ret_rung->down));
    snprintf(name, sizeof name, "source_resblocks.%d", rung_idx);
    TRY(pack_block(p, name, channels, rung->source_kernel, &ret_rung->source_block));
    for (int j = 0; j < HIFT_BLOCKS; j++) {
        snprintf(name, sizeof name, "resblocks.%d", HIFT_BLOCKS * rung_idx + j);
        TRY(pack_block(p, name, channels, HIFT_BLOCK_KERNELS[j], &ret_rung->blocks[j]));
    }
out:
    return err;
}

/* Layers of condnet stand at even places; odd ones are activations. */
static cf_err pack_f0(const hift_packer *p, hift_model *m)
{
    cf_err err;
    char name[HIFT_NAME_BYTES];
    const int64_t width = m->dims.f0_channels;
    TRY(pack_conv_f64(p, "f0_predictor.condnet.0", width, MEL_BINS, HIFT_F0_KERNEL_0, &m->f0_layers[0]));
    for (int n = 1; n < HIFT_F0_LAYERS; n++) {
        snprintf(name, sizeof name, "f0_predictor.condnet.%d", 2 * n);
        TRY(pack_conv_f64(p, name, width, width, HIFT_F0_KERNEL, &m->f0_layers[n]));
    }
    /* A linear layer [1, F] is a filter bank of one tap. */
    const double *values, *bias;
    TRY(weights_f64(p->w, "f0_predictor.classifier.weight", 2, (const int64_t[]){1, width}, &values));
    TRY(backend_pack_conv_f64(p->be, values, 1, width, 1, &m->f0_classifier.w));
    TRY(weights_f64(p->w, "f0_predictor.classifier.bias", 1, (const int64_t[]){1}, &bias));
    TRY(backend_keep(p->be, DTYPE_F64, 1, (const int64_t[]){1}, &m->f0_classifier.bias));
    TRY(backend_upload(p->be, bias, &m->f0_classifier.bias));
    m->f0_classifier.kernel = 1;
out:
    return err;
}

static cf_err pack_source(const hift_packer *p, hift_model *m)
{
    cf_err err;
    const float *w, *bias;
    TRY(weights_f32(p->w, "m_source.l_linear.weight", 2, (const int64_t[]){1, HIFT_HARMONICS}, &w));
    TRY(weights_f32(p->w, "m_source.l_linear.bias", 1, (const int64_t[]){1}, &bias));
    TRY(nsf_source_init(p->be, w, bias[0], &m->source));
out:
    return err;
}

cf_err hift_model_open(backend *be, weights *w, const hift_dims *dims, precision operands, hift_model **ret_model)
{
    cf_err err;
    hift_model *m = NULL;
    const hift_packer p = {be, w, operands};
    const int64_t base = dims->base_channels;
    TRY(mem_alloc(1, sizeof *m, &m));
    m->dims = *dims;
    TRY(pack_f0(&p, m));
    TRY(pack_source(&p, m));
    TRY(pack_conv(&p, "conv_pre", base, MEL_BINS, HIFT_PRE_KERNEL, &m->pre));
    for (int i = 0; i < HIFT_RUNGS; i++)
        TRY(pack_rung(&p, i, base >> (i + 1), &m->rungs[i]));
    TRY(pack_conv(&p, "conv_post", HIFT_STFT_COLUMNS, base >> HIFT_RUNGS, HIFT_POST_KERNEL, &m->post));
    TRY(weights_done(w));
    *ret_model = m;
    m = NULL;
out:
    hift_model_close(m);
    return err;
}

void hift_model_close(hift_model *m)
{
    mem_free(m);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/*
 * Always live: mel, f0, source, audio, and 9 lists of offsets. Beside them either the f0 predictor (mel and two
 * layers in f64) or the decoder: both spectra, five buffers of the widest rung, which is the last, and, unless
 * products read f32, a rounded operand with the zeros around each sequence. These are given back before the inverse
 * transform (hift_decoder.c).
 */
size_t hift_model_scratch_bytes(const hift_dims *dims, int64_t frames, int64_t rows, precision operands)
{
    const size_t f = (size_t)frames, r = (size_t)rows, lines = f * HIFT_LINES + r;
    const size_t always = f * (MEL_BINS + 1 + 2 * SAMPLES_PER_FRAME) * sizeof(float) + 16 * (r + 64) * sizeof(int32_t);
    const size_t f0 = f * (size_t)(MEL_BINS + 2 * dims->f0_channels + 1) * sizeof(double);
    const size_t spectra = lines * 2 * HIFT_STFT_COLUMNS * sizeof(float);
    const size_t padding = r * (OPERAND_PAD_ROWS << HIFT_RUNGS), widest = (size_t)(dims->base_channels >> HIFT_RUNGS);
    const size_t operand = operands == PRECISION_F32 ? 0 : (lines + padding) * larger(widest, OPERAND_CHANNELS_MIN);
    const size_t buffers = (lines * 5 * widest + operand) * sizeof(float);
    return always + larger(f0, spectra + larger(buffers, lines * ISTFT_LINE_BYTES)) + OPS_SCRATCH_BYTES;
}

precision hift_operands(const char *device, precision wanted)
{
    if (wanted == PRECISION_F32)
        return PRECISION_F32;
    return strcmp(device, "cpu") == 0 ? PRECISION_BF16_PAIR : PRECISION_FP16;
}

cf_err hift_engine_open(const hift_engine_config *cfg, hift_engine *ret_engine)
{
    cf_err err;
    hift_engine e = {.operands = hift_operands(cfg->device, cfg->operands)};
    weights *w = NULL;
    hift_dims dims;
    TRY(model_dir_stage_file(cfg->model_dir, MODEL_HIFT, false, e.path));
    TRY(weights_open(e.path, &w));
    TRY(hift_dims_derive(w, &dims));
    TRY(tensor_file_sha256(weights_file(w), e.sha256));
    const backend_config backend_cfg = {
        .device = cfg->device,
        .naive = cfg->naive,
        .threads = cfg->threads,
        .scratch_bytes = hift_model_scratch_bytes(&dims, cfg->frames_max, cfg->rows_max, e.operands),
    };
    TRY(backend_open(&backend_cfg, &e.be));
    TRY(hift_model_open(e.be, w, &dims, e.operands, &e.model));
    *ret_engine = e;
    e = (hift_engine){0};
out:
    hift_engine_close(&e);
    weights_close(w);
    return err;
}

void hift_engine_close(hift_engine *e)
{
    hift_model_close(e->model);
    backend_close(e->be);
    *e = (hift_engine){0};
}
