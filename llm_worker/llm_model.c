/*
 * llm_model.c - binds llm.{rl.,}{safetensors,pt} to packed weights. Opened by an LLM worker's compute thread; owns
 * the file mapping and the layer table, while packed weights, gains and rotary tables belong to the backend.
 *
 * Query, key and value projections are packed as one linear, gate and up as another: one pass over the input each,
 * and as few calls per decode step as the architecture permits. Hashing the file runs beside packing on a helper
 * thread that owns nothing; it also brings the file's pages in.
 *
 * Fails: CF_ERR_NOTFOUND, CF_ERR_MISMATCH, CF_ERR_UNSUPPORTED, CF_ERR_CORRUPT for what the files are; CF_ERR_NOMEM.
 * Source: cosy llm/llm.py CosyVoice3LM.__init__ and Qwen2Encoder @ace7c47; transformers 4.51.3 Qwen2RotaryEmbedding.
 */
#include "llm_worker/llm_model.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"

/* The helper that hashes the file while the compute thread packs. */
typedef struct hash_job {
    pthread_t thread;
    const tensor_file *file; /* borrowed until joined */
    char hex[SHA256_HEX_BYTES];
    cf_err err;
    char text[256]; /* error texts belong to threads */
} hash_job;

static void *hash_run(void *arg)
{
    hash_job *job = arg;
    job->err = tensor_file_sha256(job->file, job->hex);
    if (job->err != CF_OK)
        snprintf(job->text, sizeof job->text, "%s", err_text());
    return NULL;
}

static cf_err hash_join(hash_job *job)
{
    CF_ASSERT(pthread_join(job->thread, NULL) == 0);
    return job->err == CF_OK ? CF_OK : err_set(job->err, "%s", job->text);
}

static cf_err shape_read(llm_model *m, const char *dir_path)
{
    cf_err err;
    model_config config;
    llm_dims dims;
    TRY(model_dir_config(dir_path, &config));
    TRY(llm_dims_derive(m->file, &config, &dims));
    if (dims.heads % dims.kv_heads != 0)
        FAIL(CF_ERR_MISMATCH, "%d attention heads cannot share %d key-value heads evenly", (int)dims.heads,
             (int)dims.kv_heads);
    m->shape = (llm_shape){.hidden = (int32_t)dims.hidden,
                           .layers = (int32_t)dims.layers,
                           .heads = (int32_t)dims.heads,
                           .kv_heads = (int32_t)dims.kv_heads,
                           .intermediate = (int32_t)dims.intermediate,
                           .text_rows = (int32_t)dims.text_rows,
                           .speech_codes = (int32_t)dims.speech_codes,
                           .rope_theta = config.rope_theta,
                           .rms_eps = (float)config.rms_norm_eps};
out:
    return err;
}

/* A gain or bias, copied to the backend. */
static cf_err keep_vector(backend *be, const float *values, int64_t count, tensor *ret_tensor)
{
    cf_err err;
    TRY(backend_keep(be, DTYPE_F32, 1, &count, ret_tensor));
    TRY(backend_upload(be, values, ret_tensor));
out:
    return err;
}

static cf_err bind_vector(backend *be, weights *w, const char *name, int64_t count, tensor *ret_tensor)
{
    const float *values;
    const cf_err err = weights_f32(w, name, 1, &count, &values);
    return err == CF_OK ? keep_vector(be, values, count, ret_tensor) : err;
}

/* Matrices of k_in columns stacked along their rows into one. */
#define STACK_MAX 3

typedef struct stack_part {
    const char *name; /* of the module: ".weight" and ".bias" are added */
    int64_t rows;
} stack_part;

typedef struct stack {
    float *matrix; /* staging, [rows of all parts, k_in] */
    float *bias;   /* staging; NULL: no bias */
    char prefix[64];
    stack_part parts[STACK_MAX];
    int count;
    int64_t k_in;
} stack;

static cf_err stack_gather(weights *w, const stack *s)
{
    cf_err err = CF_OK;
    char name[128];
    int64_t row = 0;
    for (int i = 0; i < s->count; i++) {
        const int64_t rows = s->parts[i].rows;
        const float *values;
        snprintf(name, sizeof name, "%s%s.weight", s->prefix, s->parts[i].name);
        TRY(weights_f32(w, name, 2, (int64_t[]){rows, s->k_in}, &values));
        memcpy(s->matrix + row * s->k_in, values, (size_t)(rows * s->k_in) * sizeof *values);
        if (s->bias) {
            snprintf(name, sizeof name, "%s%s.bias", s->prefix, s->parts[i].name);
            TRY(weights_f32(w, name, 1, &rows, &values));
            memcpy(s->bias + row, values, (size_t)rows * sizeof *values);
        }
        row += rows;
    }
out:
    return err;
}

/* One matrix straight from the mapping. */
static cf_err pack_one(backend *be, weights *w, const char *name, int64_t n_out, int64_t k_in, precision operands,
                       unsigned kinds, weight **ret_weight)
{
    const float *values;
    const cf_err err = weights_f32(w, name, 2, (int64_t[]){n_out, k_in}, &values);
    return err == CF_OK ? backend_pack_linear(be, values, n_out, k_in, operands, kinds, ret_weight) : err;
}

llm_packing llm_packing_of(precision operands, bool int8_weights)
{
    const unsigned int8 = int8_weights ? GEMM_INT8_BIT : 0;
    return (llm_packing){.operands = operands,
                         .layer_kinds = GEMM_BULK_BIT | GEMM_DECODE_BIT | int8,
                         .head_kinds = GEMM_DECODE_BIT | int8};
}

static cf_err bind_layer(backend *be, llm_model *m, int32_t idx, const llm_packing *how, float *matrix, float *bias)
{
    cf_err err;
    const int64_t hidden = m->shape.hidden, inter = m->shape.intermediate;
    const int64_t q_rows = (int64_t)m->shape.heads * LLM_HEAD_DIM, kv_rows = (int64_t)m->shape.kv_heads * LLM_HEAD_DIM;
    llm_layer *l = &m->layers[idx];
    char name[128];
    stack s = {.matrix = matrix, .bias = bias, .count = 3, .k_in = hidden};
    snprintf(s.prefix, sizeof s.prefix, "llm.model.model.layers.%d.", (int)idx);

    s.parts[0] = (stack_part){"self_attn.q_proj", q_rows};
    s.parts[1] = (stack_part){"self_attn.k_proj", kv_rows};
    s.parts[2] = (stack_part){"self_attn.v_proj", kv_rows};
    TRY(stack_gather(m->file, &s));
    TRY(backend_pack_linear(be, matrix, llm_qkv_channels(&m->shape), hidden, how->operands, how->layer_kinds, &l->qkv));
    TRY(keep_vector(be, bias, llm_qkv_channels(&m->shape), &l->qkv_bias));

    s.bias = NULL;
    s.count = 2;
    s.parts[0] = (stack_part){"mlp.gate_proj", inter};
    s.parts[1] = (stack_part){"mlp.up_proj", inter};
    TRY(stack_gather(m->file, &s));
    TRY(backend_pack_linear(be, matrix, 2 * inter, hidden, how->operands, how->layer_kinds, &l->gate_up));

    snprintf(name, sizeof name, "%sself_attn.o_proj.weight", s.prefix);
    TRY(pack_one(be, m->file, name, hidden, q_rows, how->operands, how->layer_kinds, &l->o));
    snprintf(name, sizeof name, "%smlp.down_proj.weight", s.prefix);
    TRY(pack_one(be, m->file, name, hidden, inter, how->operands, how->layer_kinds, &l->down));
    snprintf(name, sizeof name, "%sinput_layernorm.weight", s.prefix);
    TRY(bind_vector(be, m->file, name, hidden, &l->norm_in));
    snprintf(name, sizeof name, "%spost_attention_layernorm.weight", s.prefix);
    TRY(bind_vector(be, m->file, name, hidden, &l->norm_post));
out:
    return err;
}

static cf_err bind_all(backend *be, llm_model *m, const llm_packing *how)
{
    cf_err err;
    float *matrix = NULL, *bias = NULL;
    const int64_t hidden = m->shape.hidden;
    const int64_t rows_max = llm_qkv_channels(&m->shape) > 2 * m->shape.intermediate ? llm_qkv_channels(&m->shape)
                                                                                     : 2 * m->shape.intermediate;
    TRY(mem_alloc((size_t)(rows_max * hidden), sizeof *matrix, &matrix));
    TRY(mem_alloc((size_t)llm_qkv_channels(&m->shape), sizeof *bias, &bias));
    TRY(mem_alloc((size_t)m->shape.layers, sizeof *m->layers, &m->layers));
    for (int32_t i = 0; i < m->shape.layers; i++)
        TRY(bind_layer(be, m, i, how, matrix, bias));
    TRY(bind_vector(be, m->file, "llm.model.model.norm.weight", hidden, &m->norm_out));
    TRY(pack_one(be, m->file, "llm_decoder.weight", llm_speech_rows(&m->shape), hidden, how->operands, how->head_kinds,
                 &m->head));
    TRY(weights_f32(m->file, "llm.model.model.embed_tokens.weight", 2, (int64_t[]){m->shape.text_rows, hidden},
                    &m->text_table));
    TRY(weights_f32(m->file, "speech_embedding.weight", 2, (int64_t[]){llm_speech_rows(&m->shape), hidden},
                    &m->speech_table));
    TRY(weights_done(m->file));
out:
    mem_free(matrix);
    mem_free(bias);
    return err;
}

/*
 * cos and sin of the f32 angle position * inv_freq[j], inv_freq[j] = 1 / theta^(2j/64) with every step rounded to f32.
 * Source: transformers 4.51.3 modeling_rope_utils._compute_default_rope_parameters, Qwen2RotaryEmbedding.forward.
 */
static cf_err rope_build(backend *be, llm_model *m)
{
    cf_err err;
    float *cosines = NULL, *sines = NULL;
    const int64_t dims[] = {SEQUENCE_TOKENS_MAX, LLM_ROPE_PAIRS};
    const size_t count = (size_t)SEQUENCE_TOKENS_MAX * LLM_ROPE_PAIRS;
    TRY(mem_alloc(count, sizeof *cosines, &cosines));
    TRY(mem_alloc(count, sizeof *sines, &sines));
    for (int j = 0; j < LLM_ROPE_PAIRS; j++) {
        const float power = (float)pow(m->shape.rope_theta, (double)((float)(2 * j) / (float)LLM_HEAD_DIM));
        const float inv_freq = 1.0f / power;
        for (int32_t pos = 0; pos < SEQUENCE_TOKENS_MAX; pos++) {
            const float angle = (float)pos * inv_freq;
            cosines[(size_t)pos * LLM_ROPE_PAIRS + (size_t)j] = (float)cos((double)angle);
            sines[(size_t)pos * LLM_ROPE_PAIRS + (size_t)j] = (float)sin((double)angle);
        }
    }
    TRY(backend_keep(be, DTYPE_F32, 2, dims, &m->rope_cos));
    TRY(backend_keep(be, DTYPE_F32, 2, dims, &m->rope_sin));
    TRY(backend_upload(be, cosines, &m->rope_cos));
    TRY(backend_upload(be, sines, &m->rope_sin));
out:
    mem_free(cosines);
    mem_free(sines);
    return err;
}

cf_err llm_model_open(backend *be, const llm_model_config *cfg, llm_model **ret_model)
{
    cf_err err;
    llm_model *m = NULL;
    hash_job hash = {.err = CF_OK};
    bool hashing = false;
    char path[IO_PATH_BYTES];
    const llm_packing how = llm_packing_of(cfg->operands, cfg->int8_weights);
    TRY(mem_alloc(1, sizeof *m, &m));
    TRY(model_dir_detect(cfg->model_dir));
    TRY(model_dir_stage_file(cfg->model_dir, MODEL_LLM, cfg->base_weights, path));
    TRY(weights_open(path, &m->file));
    TRY(shape_read(m, cfg->model_dir));

    hash.file = weights_file(m->file);
    hashing = pthread_create(&hash.thread, NULL, hash_run, &hash) == 0;
    if (!hashing)
        FAIL(CF_ERR_SYS, "%s: no thread to hash the file", path);
    err = bind_all(be, m, &how);
    if (err != CF_OK) {
        err = err_context(err, "%s", path);
        goto out;
    }
    TRY(rope_build(be, m));
    hashing = false;
    TRY(hash_join(&hash));
    memcpy(m->sha256, hash.hex, sizeof m->sha256);
    const size_t path_bytes = strlen(path);
    const size_t skip = path_bytes < sizeof m->path ? 0 : path_bytes - (sizeof m->path - 1);
    memcpy(m->path, path + skip, path_bytes - skip + 1);
    *ret_model = m;
    m = NULL;
out:
    if (hashing)
        CF_ASSERT(pthread_join(hash.thread, NULL) == 0);
    llm_model_close(m);
    return err;
}

void llm_model_close(llm_model *m)
{
    if (!m)
        return;
    weights_close(m->file);
    mem_free(m->layers);
    mem_free(m);
}

int32_t llm_prompt_rows(const llm_prompt *p)
{
    return 2 + p->prompt_text_tokens + p->text_tokens + p->speech_tokens;
}

static cf_err ids_check(const char *what, const int32_t *ids, int32_t count, int32_t bound)
{
    for (int32_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= bound)
            return err_set(CF_ERR_INVALID, "%s id %d at position %d: expected 0..%d", what, (int)ids[i], (int)i,
                           (int)bound - 1);
    return CF_OK;
}

cf_err llm_prompt_check(const llm_model *m, const llm_prompt *p)
{
    cf_err err = CF_OK;
    if (!p->text_embeds) {
        TRY(ids_check("prompt text", p->prompt_text, p->prompt_text_tokens, m->shape.text_rows));
        TRY(ids_check("text", p->text, p->text_tokens, m->shape.text_rows));
    }
    TRY(ids_check("prompt speech", p->speech, p->speech_tokens, m->shape.speech_codes));
out:
    return err;
}

const float *llm_speech_row(const llm_model *m, int32_t id)
{
    CF_ASSERT(id >= 0 && id < llm_speech_rows(&m->shape));
    return m->speech_table + (size_t)id * (size_t)m->shape.hidden;
}

/* Row i of [ sos | prompt text | text | task | prompt speech ]. */
static const float *prompt_row(const llm_model *m, const llm_prompt *p, int32_t i)
{
    const size_t hidden = (size_t)m->shape.hidden;
    const int32_t text_rows = p->prompt_text_tokens + p->text_tokens;
    if (i == 0)
        return llm_speech_row(m, TOKEN_SOS(m->shape.speech_codes));
    if (i == text_rows + 1)
        return llm_speech_row(m, TOKEN_TASK(m->shape.speech_codes));
    if (i > text_rows)
        return llm_speech_row(m, p->speech[i - text_rows - 2]);
    if (p->text_embeds)
        return p->text_embeds + (size_t)(i - 1) * hidden;
    const int32_t id = i <= p->prompt_text_tokens ? p->prompt_text[i - 1] : p->text[i - 1 - p->prompt_text_tokens];
    CF_ASSERT(id >= 0 && id < m->shape.text_rows);
    return m->text_table + (size_t)id * hidden;
}

void llm_prompt_copy(const llm_model *m, const llm_prompt *p, int32_t first, int32_t count, float *ret_rows)
{
    const size_t hidden = (size_t)m->shape.hidden;
    CF_ASSERT(first >= 0 && count >= 0 && first + count <= llm_prompt_rows(p));
    for (int32_t i = 0; i < count; i++)
        memcpy(ret_rows + (size_t)i * hidden, prompt_row(m, p, first + i), hidden * sizeof *ret_rows);
}
