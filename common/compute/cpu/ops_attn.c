/*
 * ops_attn.c - fast variant: rotary embedding and both attentions.
 *
 * Block attention works on 48 queries of one head at a time and walks the keys in blocks of 256 from key 0: scores by
 * the GEMM kernels, a running maximum and sum per query, values by the GEMM kernels again. A query's bytes depend on
 * its own row and on its sequence's keys alone: a masked key adds an exact zero, a block without allowed keys
 * multiplies by one.
 * Keys and values of a (sequence, head) are laid out for the kernels first:
 *
 *   keys   [16-key panel][64][16]      values [64 / 16 panels][keys, padded to 16][16]
 *
 * Cached attention takes one query row at a time against pages of 64 tokens, scores first, then softmax, then values,
 * in token order: the same for a prefill row and a decode row. The query heads of one kv head take a page together.
 *
 * Run by the pool's threads. Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted.
 * Source: ops.h attn_block, attn_cache, rope.
 */
#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/cpu_impl.h"

#define QUERY_BLOCK  48  /* 8 kernel calls of 6 rows */
#define KEY_BLOCK    256 /* 48 x 256 scores are 48 KiB */
#define SCORE_PITCH  (KEY_BLOCK + 16)
#define QUERY_PITCH  (HEAD_VALUES + 8)
#define VALUE_PANELS (HEAD_VALUES / GEMM_PANEL)
#define CACHE_ROWS   16 /* query rows of one task of cached attention */

static void rope_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_rope_args *a = args;
    const int32_t *pos = tensor_i32(a->pos);
    const int64_t width = a->x->dims[1];
    const int pairs = HEAD_VALUES / 2;

    for (int64_t r = first; r < first + count; r++) {
        CF_ASSERT(pos[r] >= 0 && pos[r] < a->cos_table->dims[0]);
        const float *cos_line = tensor_f32(a->cos_table) + (int64_t)pos[r] * pairs;
        const float *sin_line = tensor_f32(a->sin_table) + (int64_t)pos[r] * pairs;
        for (int32_t h = 0; h < a->head_count; h++) {
            const int64_t head = r * width + a->first_channel + h * HEAD_VALUES;
            if (a->x->type == DTYPE_BF16)
                cpu->vec->rope_64_bf16(cos_line, sin_line, a->adjacent, (uint16_t *)a->x->data + head);
            else
                cpu->vec->rope_64(cos_line, sin_line, a->adjacent, tensor_f32(a->x) + head);
        }
    }
}

cf_err fast_rope(backend *be, const op_rope_args *a)
{
    cpu_run_rows(be, a->x->dims[0], (int64_t)a->head_count * HEAD_VALUES * 3, rope_rows, a);
    return CF_OK;
}

typedef struct block_job {
    const cpu_state *cpu;
    const op_attn_block_args *a;
    float *packed;       /* per sequence: [head][keys and values] */
    int64_t *packed_off; /* [B]: first value of a sequence in packed */
    int64_t *first_task; /* [B + 1]: query-block tasks before sequence b */
} block_job;

static int64_t padded_keys(int64_t length)
{
    return (length + GEMM_PANEL - 1) / GEMM_PANEL * GEMM_PANEL;
}

/* Keys of one (sequence, head); its values lie padded * 64 behind. */
static float *packed_head(const block_job *job, int32_t b, int32_t head)
{
    const int64_t padded = padded_keys(rows_length(job->a->rows, b));
    return job->packed + job->packed_off[b] + head * 2 * padded * HEAD_VALUES;
}

static void pack_head(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const block_job *job = ctx;
    const int32_t b = task_idx / job->a->heads, head = task_idx % job->a->heads;
    const int64_t length = rows_length(job->a->rows, b), padded = padded_keys(length);
    const int64_t width = (int64_t)job->a->heads * HEAD_VALUES;
    const float *qkv = tensor_f32(job->a->qkv) + job->a->rows->offs[b] * 3 * width + head * HEAD_VALUES;
    float *keys = packed_head(job, b, head), *values = keys + padded * HEAD_VALUES;

    for (int64_t j = 0; j < padded; j++) {
        const float *row = qkv + j * 3 * width;
        float *key = keys + j / GEMM_PANEL * HEAD_VALUES * GEMM_PANEL + j % GEMM_PANEL;
        for (int d = 0; d < HEAD_VALUES; d++)
            key[d * GEMM_PANEL] = j < length ? row[width + d] : 0.0f;
        for (int p = 0; p < VALUE_PANELS; p++) {
            float *value = values + (p * padded + j) * GEMM_PANEL;
            if (j < length)
                memcpy(value, row + 2 * width + p * GEMM_PANEL, GEMM_PANEL * sizeof *value);
            else
                memset(value, 0, GEMM_PANEL * sizeof *value);
        }
    }
}

/* A block of queries on its way through the keys; one per thread, on its stack: about 80 KiB. */
typedef struct query_block {
    int64_t first, rows; /* queries of the sequence */
    int64_t keys_max;    /* allowed keys of the last query */
    int64_t keys[QUERY_BLOCK];
    float max[QUERY_BLOCK], sum[QUERY_BLOCK];
    float query[QUERY_BLOCK * QUERY_PITCH];
    float out[QUERY_BLOCK * HEAD_VALUES];
    float score[QUERY_BLOCK * SCORE_PITCH];
} query_block;

/* out += scores x values, or scores = query x keys: rows in kernel-sized steps. */
static void multiply_rows(const cpu_state *cpu, int64_t rows, int64_t depth, const float *a, int64_t a_pitch,
                          const float *panel, float *c, int64_t c_pitch, bool fresh)
{
    const int rows_max = cpu->kernels->rows;
    for (int64_t r = 0; r < rows; r += rows_max) {
        const int step = rows - r < rows_max ? (int)(rows - r) : rows_max;
        cpu->kernels->f32(step, depth, a + r * a_pitch, a_pitch, panel, c + r * c_pitch, c_pitch, fresh);
    }
}

/* How many of the block's keys a query sees. */
static int64_t seen_keys(const query_block *q, int64_t r, int64_t from, int64_t depth)
{
    const int64_t seen = q->keys[r] - from;
    return seen < 0 ? 0 : seen > depth ? depth : seen;
}

/* Turns one row of scores into shares, and rescales what the row has gathered so far. */
static void soften_row(const cpu_state *cpu, query_block *q, int64_t r, int64_t from, int64_t depth)
{
    float *score = q->score + r * SCORE_PITCH;
    const int64_t seen = seen_keys(q, r, from, depth);

    if (seen == 0)
        return;
    const float max = cpu->vec->max(score, seen, q->max[r]);
    const float sum = cpu->vec->exp_shift(max, seen, score);
    if (from > 0 && max != q->max[r]) {
        const float fade = expf(q->max[r] - max);
        q->sum[r] *= fade;
        cpu->vec->scale(fade, HEAD_VALUES, q->out + r * HEAD_VALUES);
    }
    q->max[r] = max;
    q->sum[r] += sum;
}

/* out += shares x values, together for neighbouring queries that see the same keys. */
static void mix_block(const cpu_state *cpu, query_block *q, const float *values, int64_t padded, int64_t from,
                      int64_t depth)
{
    for (int64_t r = 0, end; r < q->rows; r = end) {
        const int64_t seen = seen_keys(q, r, from, depth);
        for (end = r + 1; end < q->rows && q->keys[end] == q->keys[r];)
            end++;
        for (int p = 0; p < VALUE_PANELS && seen > 0; p++)
            multiply_rows(cpu, end - r, seen, q->score + r * SCORE_PITCH, SCORE_PITCH,
                          values + (p * padded + from) * GEMM_PANEL, q->out + r * HEAD_VALUES + p * GEMM_PANEL,
                          HEAD_VALUES, from == 0);
    }
}

static void attend_block(const block_job *job, query_block *q, const float *keys, int64_t padded)
{
    for (int64_t from = 0; from < q->keys_max; from += KEY_BLOCK) {
        const int64_t depth = padded - from < KEY_BLOCK ? padded - from : KEY_BLOCK;
        for (int64_t j = 0; j < depth; j += GEMM_PANEL)
            multiply_rows(job->cpu, q->rows, HEAD_VALUES, q->query, QUERY_PITCH, keys + (from + j) * HEAD_VALUES,
                          q->score + j, SCORE_PITCH, true);
        for (int64_t r = 0; r < q->rows; r++)
            soften_row(job->cpu, q, r, from, depth);
        mix_block(job->cpu, q, keys + padded * HEAD_VALUES, padded, from, depth);
    }
}

static void load_queries(const block_job *job, int32_t b, int32_t head, query_block *q)
{
    const int64_t width = (int64_t)job->a->heads * HEAD_VALUES, length = rows_length(job->a->rows, b);
    const int64_t block = job->a->block[b];

    for (int64_t r = 0; r < q->rows; r++) {
        const int64_t i = q->first + r, limit = block > 0 ? block * (i / block + 1) : length;
        const float *row = tensor_f32(job->a->qkv) + (job->a->rows->offs[b] + i) * 3 * width + head * HEAD_VALUES;
        q->keys[r] = limit < length ? limit : length;
        q->max[r] = -INFINITY;
        q->sum[r] = 0.0f;
        for (int d = 0; d < HEAD_VALUES; d++)
            q->query[r * QUERY_PITCH + d] = row[d] * HEAD_SCALE;
    }
    q->keys_max = q->keys[q->rows - 1];
}

static void run_query_block(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const block_job *job = ctx;
    const op_attn_block_args *a = job->a;
    query_block q;
    int32_t b = 0;

    while (task_idx >= job->first_task[b + 1])
        b++;
    const int64_t length = rows_length(a->rows, b), blocks = (length + QUERY_BLOCK - 1) / QUERY_BLOCK;
    const int64_t at = task_idx - job->first_task[b];
    const int32_t head = (int32_t)(at / blocks);
    q.first = at % blocks * QUERY_BLOCK;
    q.rows = length - q.first < QUERY_BLOCK ? length - q.first : QUERY_BLOCK;
    load_queries(job, b, head, &q);
    attend_block(job, &q, packed_head(job, b, head), padded_keys(length));
    for (int64_t r = 0; r < q.rows; r++) {
        float *y = tensor_f32(a->y) + ((a->rows->offs[b] + q.first + r) * a->heads + head) * HEAD_VALUES;
        memcpy(y, q.out + r * HEAD_VALUES, HEAD_VALUES * sizeof *y);
        job->cpu->vec->scale(1.0f / q.sum[r], HEAD_VALUES, y);
    }
}

/* qkv and y in f32. */
static cf_err attn_block_wide(backend *be, const op_attn_block_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    block_job job = {.cpu = cpu_of(be), .a = a};
    int64_t values = 0, tasks = 0;

    TRY(arena_take(&be->scratch, ((size_t)a->rows->count + 1) * sizeof *job.packed_off, &job.packed_off));
    TRY(arena_take(&be->scratch, ((size_t)a->rows->count + 1) * sizeof *job.first_task, &job.first_task));
    for (int32_t b = 0; b < a->rows->count; b++) {
        const int64_t length = rows_length(a->rows, b);
        job.packed_off[b] = values;
        job.first_task[b] = tasks;
        values += padded_keys(length) * 2 * HEAD_VALUES * a->heads;
        tasks += (length + QUERY_BLOCK - 1) / QUERY_BLOCK * a->heads;
    }
    job.first_task[a->rows->count] = tasks;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    TRY(arena_take(&be->scratch, (size_t)values * sizeof *job.packed, &job.packed));
    pool_run(job.cpu->threads, a->rows->count * a->heads, pack_head, &job);
    pool_run(job.cpu->threads, (int32_t)tasks, run_query_block, &job);
out:
    backend_scratch_reset(be, mark);
    return err;
}

cf_err fast_attn_block(backend *be, const op_attn_block_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    op_attn_block_args wide = *a;
    tensor qkv, y = *a->y;

    if (cpu_of(be)->use_amx && a->operands == PRECISION_BF16)
        return amx_attn_block(be, a);
    if (a->qkv->type == DTYPE_F32)
        return attn_block_wide(be, a);
    TRY(cpu_widen(be, a->qkv, &qkv));
    TRY(backend_take(be, DTYPE_F32, y.rank, y.dims, &y));
    wide.qkv = &qkv;
    wide.y = &y;
    TRY(attn_block_wide(be, &wide));
    cpu_narrow(&y, a->y);
out:
    backend_scratch_reset(be, mark);
    return err;
}

typedef struct cache_job {
    const cpu_state *cpu;
    const op_attn_cache_args *a;
    float *lines;        /* [threads][query heads of a kv head]: a query, its sum, its scores */
    int64_t line_values; /* of one of those */
    int64_t keys_max;    /* padded to a page */
    int32_t *first_task; /* [B + 1]: tasks before sequence b */
} cache_job;

#define LINE_SUM    HEAD_VALUES
#define LINE_SCORES (HEAD_VALUES + GEMM_PANEL) /* on a cache line */

/* Keys or values of one page for all query heads of a kv head, while the page is in the first cache. */
typedef void page_fn(const cache_job *job, float *line, const float *page, int64_t first, int64_t count, float *y);

static void score_page(const cache_job *job, float *line, const float *page, int64_t first, int64_t count, float *y)
{
    (void)y;
    job->cpu->vec->dots_64(line, page, count, line + LINE_SCORES + first);
}

static void mix_page(const cache_job *job, float *line, const float *page, int64_t first, int64_t count, float *y)
{
    job->cpu->vec->mix_64(line + LINE_SCORES + first, page, count, y);
}

/* Row t of sequence b for the query heads that share kv_head. y: of the first of them. */
static void walk_pages(const cache_job *job, int32_t b, int64_t keys, int32_t kv_head, int which, page_fn *fn,
                       float *lines, float *y)
{
    const int32_t group = job->a->heads / job->a->kv_heads;
    for (int64_t j = 0; j < keys; j += CACHE_PAGE_TOKENS) {
        const int64_t count = keys - j < CACHE_PAGE_TOKENS ? keys - j : CACHE_PAGE_TOKENS;
        const float *page = cache_line(job->a, b, j, which, kv_head);
        for (int32_t g = 0; g < group; g++)
            fn(job, lines + g * job->line_values, page, j, count, y + g * HEAD_VALUES);
    }
}

static void attend_cached(const cache_job *job, int32_t b, int64_t t, int32_t kv_head, float *lines)
{
    const op_attn_cache_args *a = job->a;
    const vec_ops *vec = job->cpu->vec;
    const int64_t row = a->rows->offs[b] + t, keys = (int64_t)a->past[b] + t + 1;
    const int32_t group = a->heads / a->kv_heads, head = kv_head * group;
    const float *q = tensor_f32(a->qkv) + row * ((int64_t)a->heads + 2 * a->kv_heads) * HEAD_VALUES;
    float *y = tensor_f32(a->y) + (row * a->heads + head) * HEAD_VALUES;

    for (int32_t g = 0; g < group; g++)
        for (int d = 0; d < HEAD_VALUES; d++)
            lines[g * job->line_values + d] = q[(head + g) * HEAD_VALUES + d] * HEAD_SCALE;
    walk_pages(job, b, keys, kv_head, 0, score_page, lines, y);
    for (int32_t g = 0; g < group; g++) {
        float *line = lines + g * job->line_values;
        const float max = vec->max(line + LINE_SCORES, keys, -INFINITY);
        line[LINE_SUM] = vec->exp_shift(max, keys, line + LINE_SCORES);
    }
    memset(y, 0, (size_t)group * HEAD_VALUES * sizeof *y);
    walk_pages(job, b, keys, kv_head, 1, mix_page, lines, y);
    for (int32_t g = 0; g < group; g++)
        vec->scale(1.0f / lines[g * job->line_values + LINE_SUM], HEAD_VALUES, y + g * HEAD_VALUES);
}

/* One task: up to CACHE_ROWS rows of a sequence for the query heads that share one kv head. */
static void run_cached(void *ctx, int32_t task_idx, int thread_idx)
{
    const cache_job *job = ctx;
    const op_attn_cache_args *a = job->a;
    float *lines = job->lines + thread_idx * job->line_values * (a->heads / a->kv_heads);
    int32_t b = 0;

    while (task_idx >= job->first_task[b + 1])
        b++;
    const int32_t at = task_idx - job->first_task[b], kv_head = at % a->kv_heads;
    const int64_t first = (int64_t)(at / a->kv_heads) * CACHE_ROWS, length = rows_length(a->rows, b);
    for (int64_t t = first; t < first + CACHE_ROWS && t < length; t++)
        attend_cached(job, b, t, kv_head, lines);
}

cf_err fast_attn_cache(backend *be, const op_attn_cache_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    cache_job job = {.cpu = cpu_of(be), .a = a};
    int32_t tasks = 0;

    TRY(arena_take(&be->scratch, ((size_t)a->rows->count + 1) * sizeof *job.first_task, &job.first_task));
    for (int32_t b = 0; b < a->rows->count; b++) {
        const int32_t length = rows_length(a->rows, b);
        const int64_t keys = (int64_t)a->past[b] + length;
        const int64_t padded = (keys + CACHE_PAGE_TOKENS - 1) / CACHE_PAGE_TOKENS * CACHE_PAGE_TOKENS;
        job.first_task[b] = tasks;
        job.keys_max = padded > job.keys_max ? padded : job.keys_max;
        tasks += (length + CACHE_ROWS - 1) / CACHE_ROWS * a->kv_heads;
        cache_append(a, b);
    }
    job.first_task[a->rows->count] = tasks;
    job.line_values = LINE_SCORES + job.keys_max;
    const size_t lines = (size_t)(be->threads * (a->heads / a->kv_heads));
    TRY(arena_take(&be->scratch, lines * (size_t)job.line_values * sizeof *job.lines, &job.lines));
    pool_run(job.cpu->threads, tasks, run_cached, &job);
out:
    backend_scratch_reset(be, mark);
    return err;
}
