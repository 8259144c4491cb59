/*
 * cases_attn.c - cases of rope, attn_block and attn_cache. Test code.
 *
 * Edges of attn_block: 48 queries, 16-key panels, key blocks of 256; on tiles units of 32 keys in each causal block,
 * chunks of two units, 64 queries taken together, parts of a head where threads outnumber heads. Edges of attn_cache:
 * pages of 64 tokens, tasks of 16 rows. Large scores: products q.k of Flow's head 0 reach 8e3, so that the softmax is
 * nearly a choice.
 */
#include "tests/ops/suite.h"

#include <math.h>

#define HEAD  64
#define PAIRS 32

/* rope: x, cos, sin, pos; x changes */

typedef struct rope_case {
    suite_case head;
    int32_t first_channel, heads, width, positions;
    bool adjacent;
    dist x;
} rope_case;

static const rope_case *rope(const suite_case *c)
{
    return (const rope_case *)(const void *)c;
}

#define ROPE                                          \
    {                                                 \
        .why = "two products and a sum, each rounded" \
    }

static const rope_case rope_cases[] = {
    {.head = {"one row, halves", SEQS(1), .bound = ROPE}, .heads = 1, .width = 64, .positions = 1},
    {.head = {"one row, pairs", SEQS(1), .bound = ROPE}, .heads = 1, .width = 64, .positions = 2, .adjacent = true},
    {.head = {"no heads", SEQS(2), .bound = ROPE}, .heads = 0, .width = 65, .positions = 3},
    {.head = {"odd width, halves", SEQS(2, 0, 3), .bound = ROPE},
     .first_channel = 3,
     .heads = 2,
     .width = 137,
     .positions = 41},
    {.head = {"odd width, pairs", SEQS(2, 0, 3), .bound = ROPE},
     .first_channel = 5,
     .heads = 2,
     .width = 137,
     .positions = 41,
     .adjacent = true},
    {.head = {"language model", SEQS(1, 17, 1), .bound = ROPE}, .heads = 16, .width = 1152, .positions = 700},
    {.head = {"flow, head 0 of k", SEQS(3, 50), .bound = ROPE},
     .first_channel = 1024,
     .heads = 1,
     .width = 3072,
     .positions = 800,
     .adjacent = true,
     .x = {.amplitude = 40}},
    {.head = {"over a task", SEQS(30, 1, 40), .bound = ROPE}, .heads = 16, .width = 1024, .positions = 90},
    {.head = {"odd width of bf16, pairs", SEQS(2, 0, 3), .bound = ROPE, .narrow = true},
     .first_channel = 5,
     .heads = 2,
     .width = 137,
     .positions = 41,
     .adjacent = true},
};

static int32_t rope_ports(const suite_case *c, port *p)
{
    const rope_case *r = rope(c);
    p[0] = (port){
        .name = "x", .role = PORT_INOUT, .type = c->narrow ? DTYPE_BF16 : DTYPE_F32, .width = r->width, .values = r->x};
    p[1] = (port){
        .name = "cos", .role = PORT_TABLE, .width = PAIRS, .table_rows = r->positions, .values = {DIST_COS, 0, 0}};
    p[2] = (port){
        .name = "sin", .role = PORT_TABLE, .width = PAIRS, .table_rows = r->positions, .values = {DIST_SIN, 0, 0}};
    p[3] = (port){.name = "pos", .role = PORT_IN, .type = DTYPE_I32, .width = 1, .values = {DIST_IDS, 0, r->positions}};
    return 4;
}

static cf_err rope_call(const op_run *run)
{
    const rope_case *r = rope(run->c);
    const tensor pos = flat(&run->t[3]);
    tensor x = run->t[0];
    return op_rope(run->be, &(op_rope_args){.x = &x,
                                            .cos_table = &run->t[1],
                                            .sin_table = &run->t[2],
                                            .pos = &pos,
                                            .first_channel = r->first_channel,
                                            .head_count = r->heads,
                                            .adjacent = r->adjacent});
}

/* Channel by channel: its partner, the sign, and the column of the table. */
static void rope_direct(const op_run *run, double *const *ret)
{
    const rope_case *r = rope(run->c);
    for (int64_t i = 0; i < tensor_count(&run->t[0]); i++) {
        const int64_t channel = i % r->width - r->first_channel, d = channel & (HEAD - 1);
        ret[0][i] = value_at(&run->t[0], i);
        if (channel < 0 || channel >= r->heads * HEAD)
            continue;
        const bool second = r->adjacent ? d & 1 : d >= PAIRS;
        const int64_t partner = i + (r->adjacent ? 1 : PAIRS) * (second ? -1 : 1);
        const int64_t at = (int64_t)value_at(&run->t[3], i / r->width) * PAIRS + (r->adjacent ? d / 2 : d % PAIRS);
        const double turn = value_at(&run->t[0], partner) * value_at(&run->t[2], at);
        ret[0][i] = value_at(&run->t[0], i) * value_at(&run->t[1], at) + (second ? turn : -turn);
    }
}

/* attn_block: qkv, y. aux: block of a sequence */

typedef struct block_case {
    suite_case head;
    int32_t heads;
    double amplitude; /* of q, k and v; 0 stands for 1 */
    bool level;       /* of f32: q and k are the amplitude, so that scores are the same; values are 1, then -0.75 */
} block_case;

static const block_case *block(const suite_case *c)
{
    return (const block_case *)(const void *)c;
}

#define SOFT                                                                                \
    {                                                                                       \
        .row = 4e-6, .why = "64-term scores of up to 3, exp 1.5 ulp, a chain over the keys" \
    }
/* A share of exp(-700) is zero in f32 and not in f64; times an infinite value that is NaN or infinite. */
#define PEAKY                                                                                   \
    {                                                                                           \
        .row = 1e-3, .why = "scores near 1e3 are rounded to 6e-5, errors add up over 64 terms", \
        .nonfinite_alike = true                                                                 \
    }

/* Matrix units round q, k, v and the shares: 2^-9 each in bf16. Infinite scores may come out as NaN. */
#define ROUNDED                                                                                               \
    {                                                                                                         \
        .row = 2e-2, .why = "64 rounded products a score, rounded shares and values", .nonfinite_alike = true \
    }

/* Equal shares of values that nearly cancel: what is wrong with all shares alike does not show. */
#define LEVEL                                                                                                  \
    {                                                                                                          \
        .row = 1e-4, .why = "a sum of up to 700 equal shares, of which no part fades", .nonfinite_alike = true \
    }

/* A device's tile holds keys that some of its queries do not see: zero shares of a NaN. */
#define SPREADING                                                                                                \
    {                                                                                                            \
        .row = 2e-2, .why = "as above, blocks smaller than a tile", .nonfinite_alike = true, .nan_spreads = true \
    }

static const block_case block_cases[] = {
    {.head = {"one row", SEQS(1), .bound = SOFT}, .heads = 1},
    {.head = {"prime", SEQS(0, 2, 0, 0, 13, 3, 0), .bound = SOFT}, .heads = 3},
    {.head = {"queries over a block", SEQS(47, 48, 49, 1), .bound = SOFT}, .heads = 1},
    {.head = {"keys over a block", SEQS(255, 1, 257), .bound = SOFT}, .heads = 1},
    {.head = {"causal blocks of 1 and 5", SEQS(19, 33, 4), AUX(1, 5, 7), .bound = SOFT}, .heads = 2},
    {.head = {"causal blocks of 50 and none", SEQS(120, 101, 7), AUX(50, 0, 50), .bound = SOFT}, .heads = 1},
    {.head = {"causal keys over a block", SEQS(300, 270), AUX(50, 256), .bound = SOFT}, .heads = 1},
    {.head = {"flow", SEQS(50, 1, 37), AUX(50, 0, 0), .bound = SOFT, .heavy = true}, .heads = 16},
    {.head = {"one row, bf16", SEQS(1), .bound = ROUNDED, .bf16 = true}, .heads = 1},
    {.head = {"prime, bf16", SEQS(0, 2, 0, 0, 13, 3, 0), .bound = ROUNDED, .bf16 = true}, .heads = 3},
    {.head = {"over a tile, bf16", SEQS(31, 32, 33, 1), .bound = ROUNDED, .bf16 = true}, .heads = 2},
    {.head = {"causal blocks of 1 and 5, bf16", SEQS(19, 33, 4), AUX(1, 5, 7), .bound = SPREADING, .bf16 = true},
     .heads = 2},
    {.head = {"causal blocks of 50 and none, bf16", SEQS(120, 101, 7), AUX(50, 0, 50), .bound = ROUNDED, .bf16 = true},
     .heads = 1},
    {.head = {"flow, bf16", SEQS(50, 1, 237), AUX(50, 0, 0), .bound = ROUNDED, .bf16 = true, .heavy = true},
     .heads = 16},
    {.head = {"prime of bf16", SEQS(0, 2, 0, 0, 13, 3, 0), .bound = ROUNDED, .bf16 = true, .narrow = true}, .heads = 3},
    {.head = {"causal blocks of 50, of bf16", SEQS(120, 7), AUX(50, 50), .bound = ROUNDED, .bf16 = true,
              .narrow = true},
     .heads = 2},
    {.head = {"over chunks of keys and queries together, bf16", SEQS(63, 64, 65, 129, 1), .bound = ROUNDED,
              .bf16 = true},
     .heads = 2},
    {.head = {"one head in parts, of bf16", SEQS(257, 3), .bound = ROUNDED, .bf16 = true, .narrow = true}, .heads = 1},
    {.head = {"causal blocks of a unit, bf16", SEQS(127, 96, 33), AUX(32, 64, 32), .bound = ROUNDED, .bf16 = true},
     .heads = 1},
    {.head = {"chunks over causal blocks, bf16", SEQS(100, 131, 66), AUX(33, 65, 97), .bound = SPREADING, .bf16 = true},
     .heads = 1},
    {.head = {"q.k of 8e3, of bf16", SEQS(200, 30), AUX(50, 0), .bound = ROUNDED, .bf16 = true, .narrow = true},
     .heads = 2,
     .amplitude = 31},
    {.head = {"equal scores, q.k of 8e3, bf16", SEQS(700, 100), .bound = LEVEL, .bf16 = true},
     .heads = 1,
     .amplitude = 11.125,
     .level = true},
    {.head = {"q.k of 8e3", SEQS(100, 30), AUX(50, 0), .bound = PEAKY}, .heads = 2, .amplitude = 31},
    {.head = {"q.k of 8e3, keys over a block", SEQS(290), .bound = PEAKY}, .heads = 1, .amplitude = 31},
};

static int32_t block_ports(const suite_case *c, port *p)
{
    const int64_t width = (int64_t)block(c)->heads * HEAD;
    const dtype type = c->narrow ? DTYPE_BF16 : DTYPE_F32;
    p[0] = (port){
        .name = "qkv", .role = PORT_IN, .type = type, .width = 3 * width, .values = {.amplitude = block(c)->amplitude}};
    p[1] = (port){.name = "y", .role = PORT_OUT, .type = type, .width = width};
    return 2;
}

static void block_edit(const suite_case *c, int32_t seq, void **data)
{
    const int64_t width = (int64_t)block(c)->heads * HEAD, line = 3 * width, length = c->lengths[seq];
    float *qkv = data[0];
    for (int64_t i = 0; block(c)->level && i < length * line; i++)
        qkv[i] = i % line < 2 * width ? (float)block(c)->amplitude : i / line < length / 2 ? 1.0f : -0.75f;
}

static cf_err block_call(const op_run *run)
{
    tensor y = run->t[1];
    return op_attn_block(run->be, &(op_attn_block_args){.qkv = &run->t[0],
                                                        .y = &y,
                                                        .rows = &run->rows[0],
                                                        .block = run->aux,
                                                        .heads = block(run->c)->heads,
                                                        .operands = run->c->bf16 ? PRECISION_BF16 : PRECISION_F32});
}

typedef struct head_view {
    const float *first; /* of key or value 0 */
    int64_t pitch;      /* to the next token; 0: paged, through token_of */
    const float *const *tokens;
} head_view;

static const float *token_of(const head_view *v, int64_t j)
{
    return v->tokens ? v->tokens[j] : v->first + j * v->pitch;
}

/* softmax(q K^T / 8) V with the exponentials relative to the largest score; a NaN score makes everything NaN. */
static void attend(const float *q, const head_view *keys, const head_view *values, int64_t count, double *ret)
{
    double *score = test_calloc((size_t)count, sizeof *score);
    double most = -INFINITY, total = 0.0;

    for (int64_t j = 0; j < count; j++) {
        for (int d = 0; d < HEAD; d++)
            score[j] += (double)q[d] * (double)token_of(keys, j)[d] / 8.0;
        most = fmax(most, score[j]);
    }
    for (int64_t j = 0; j < count; j++) {
        score[j] = exp(score[j] - most);
        total += score[j];
    }
    for (int d = 0; d < HEAD; d++) {
        ret[d] = 0.0;
        for (int64_t j = 0; j < count; j++)
            ret[d] += score[j] / total * (double)token_of(values, j)[d];
    }
    test_free(score);
}

static void block_direct(const op_run *run, double *const *ret)
{
    const int64_t width = (int64_t)block(run->c)->heads * HEAD, count = tensor_count(&run->t[0]);
    float *qkv = test_calloc((size_t)count + 1, sizeof *qkv);
    for (int64_t i = 0; i < count; i++)
        qkv[i] = (float)value_at(&run->t[0], i);
    for (int32_t b = 0; b < run->seqs; b++) {
        const float *first = qkv + run->rows[0].offs[b] * 3 * width;
        const int64_t length = rows_length(&run->rows[0], b), size = run->aux[b] ? run->aux[b] : length;
        for (int64_t i = 0; i < length; i++) {
            int64_t seen = size; /* whole blocks up to the one that holds i */
            while (seen <= i)
                seen += size;
            for (int64_t h = 0; h < width; h += HEAD) {
                const head_view keys = {.first = first + width + h, .pitch = 3 * width};
                const head_view values = {.first = first + 2 * width + h, .pitch = 3 * width};
                attend(first + i * 3 * width + h, &keys, &values, seen < length ? seen : length,
                       ret[1] + (run->rows[0].offs[b] + i) * width + h);
            }
        }
    }
    test_free(qkv);
}

/* attn_cache: qkv, cache, y; the cache changes. aux: cached tokens of a sequence */

typedef struct cache_case {
    suite_case head;
    int32_t heads, kv_heads;
    double amplitude;
    gemm_kind kind;
} cache_case;

static const cache_case *cached(const suite_case *c)
{
    return (const cache_case *)(const void *)c;
}

static const cache_case cache_cases[] = {
    {.head = {"first token", SEQS(1), .bound = SOFT}, .heads = 1, .kv_heads = 1},
    {.head = {"decode around a page", SEQS(1, 1, 1, 1), AUX(62, 63, 64, 0), .bound = SOFT}, .heads = 2, .kv_heads = 1},
    {.head = {"prefill", SEQS(0, 2, 0, 17, 70, 0), .bound = SOFT}, .heads = 3, .kv_heads = 3},
    {.head = {"more behind a prompt", SEQS(5, 33, 1), AUX(60, 131, 7), .bound = SOFT}, .heads = 4, .kv_heads = 2},
    {.head = {"language model decode", SEQS(1, 1, 1), AUX(300, 0, 129), .bound = SOFT, .heavy = true},
     .heads = 14,
     .kv_heads = 2},
    {.head = {"decode in pieces", SEQS(1, 1, 1, 1, 1), AUX(255, 256, 257, 511, 0), .bound = SOFT, .heavy = true},
     .heads = 7,
     .kv_heads = 1,
     .kind = GEMM_DECODE},
    {.head = {"decode of one head", SEQS(1, 1), AUX(1, 383), .bound = SOFT},
     .heads = 1,
     .kv_heads = 1,
     .kind = GEMM_DECODE},
    {.head = {"decode, more than one group", SEQS(1, 0, 3, 1), AUX(300, 0, 126, 64), .bound = SOFT, .heavy = true},
     .heads = 14,
     .kv_heads = 2,
     .kind = GEMM_DECODE},
    {.head = {"decode, a group too wide for it", SEQS(1, 1), AUX(70, 3), .bound = SOFT},
     .heads = 9,
     .kv_heads = 1,
     .kind = GEMM_DECODE},
    {.head = {"decode, q.k of 8e3", SEQS(1, 1), AUX(400, 5), .bound = PEAKY},
     .heads = 2,
     .kv_heads = 1,
     .amplitude = 31,
     .kind = GEMM_DECODE},
    {.head = {"language model prefill", SEQS(40, 3), AUX(0, 64), .bound = SOFT, .heavy = true},
     .heads = 14,
     .kv_heads = 2},
    {.head = {"q.k of 8e3", SEQS(1, 20), AUX(150, 5), .bound = PEAKY}, .heads = 2, .kv_heads = 1, .amplitude = 31},
};

static int32_t pages_of(int64_t tokens)
{
    return (int32_t)((tokens + CACHE_PAGE_TOKENS - 1) / CACHE_PAGE_TOKENS);
}

static int64_t cache_rows(const suite_case *c, int32_t seq)
{
    return c->lengths[seq] ? pages_of((int64_t)c->lengths[seq] + c->aux[seq]) : 0;
}

/* Page p of a sequence is the p-th from behind of its pages, so that tokens do not lie in their order. */
static int32_t page_of(const op_run *run, int32_t seq, int64_t token)
{
    return run->rows[1].offs[seq + 1] - 1 - (int32_t)(token / CACHE_PAGE_TOKENS);
}

/* Value 0 of a cached token, counted in the cache. */
static int64_t line_of(int64_t page, int32_t kv_heads, int which, int32_t kv_head, int64_t token)
{
    const int64_t plane = (page * 2 + which) * kv_heads + kv_head;
    return (plane * CACHE_PAGE_TOKENS + token % CACHE_PAGE_TOKENS) * HEAD;
}

static int32_t cache_ports(const suite_case *c, port *p)
{
    const cache_case *k = cached(c);
    const int64_t page_values = (int64_t)2 * k->kv_heads * CACHE_PAGE_TOKENS * HEAD;
    const dist values = {.amplitude = k->amplitude};
    p[0] = (port){.name = "qkv", .role = PORT_IN, .width = (k->heads + 2 * k->kv_heads) * HEAD, .values = values};
    p[1] = (port){
        .name = "cache", .role = PORT_INOUT, .width = page_values, .rows = cache_rows, .values = values, .exact = true};
    p[2] = (port){.name = "y", .role = PORT_OUT, .width = k->heads * HEAD};
    return 3;
}

/* What lies behind the cached tokens is left over from someone else: NaN. */
static void cache_edit(const suite_case *c, int32_t seq, void **data)
{
    const cache_case *k = cached(c);
    const int64_t pages = cache_rows(c, seq);
    float *cache = data[1];
    for (int64_t token = pages ? c->aux[seq] : 0; token < pages * CACHE_PAGE_TOKENS; token++)
        for (int32_t i = 0; i < 2 * k->kv_heads * HEAD; i++)
            cache[line_of(pages - 1 - token / CACHE_PAGE_TOKENS, k->kv_heads, i / HEAD % 2, i / HEAD / 2, token) +
                  i % HEAD] = NAN;
}

enum { PAGES_MAX = 8 };

/* The port's tensor as the ops want it. */
static tensor cache_of(const op_run *run)
{
    tensor cache = run->t[1];
    const int64_t dims[5] = {run->t[1].dims[0], 2, cached(run->c)->kv_heads, CACHE_PAGE_TOKENS, HEAD};
    cache.rank = 5;
    for (int i = 0; i < 5; i++)
        cache.dims[i] = dims[i];
    return cache;
}

static void list_pages(const op_run *run, int32_t seq, int32_t *ret_pages)
{
    for (int32_t p = 0; p < rows_length(&run->rows[1], seq); p++)
        ret_pages[p] = page_of(run, seq, (int64_t)p * CACHE_PAGE_TOKENS);
}

static cf_err cache_call(const op_run *run)
{
    const cache_case *k = cached(run->c);
    int32_t pages[SUITE_SEQS_MAX * PAGES_MAX] = {0};
    tensor cache = cache_of(run), y = run->t[2];
    for (int32_t b = 0; b < run->seqs; b++)
        list_pages(run, b, pages + b * PAGES_MAX);
    return op_attn_cache(run->be, &(op_attn_cache_args){.qkv = &run->t[0],
                                                        .cache = &cache,
                                                        .y = &y,
                                                        .rows = &run->rows[0],
                                                        .pages = pages,
                                                        .past = run->aux,
                                                        .pages_max = PAGES_MAX,
                                                        .heads = k->heads,
                                                        .kv_heads = k->kv_heads,
                                                        .kind = k->kind});
}

/* Where key or value `which` of a token comes from: the cache as it was, or this call's rows. */
static const float *source_of(const op_run *run, int32_t seq, int64_t token, int which, int32_t kv_head)
{
    const cache_case *k = cached(run->c);
    const int64_t fresh = token - run->aux[seq];
    if (fresh < 0)
        return tensor_f32(&run->t[1]) + line_of(page_of(run, seq, token), k->kv_heads, which, kv_head, token);
    return tensor_f32(&run->t[0]) + (run->rows[0].offs[seq] + fresh) * run->t[0].dims[1] +
           (k->heads + which * k->kv_heads + kv_head) * HEAD;
}

static void cache_direct_head(const op_run *run, int32_t seq, int64_t t, int32_t head, double *ret)
{
    const cache_case *k = cached(run->c);
    const int64_t seen = run->aux[seq] + t + 1, row = run->rows[0].offs[seq] + t;
    const int32_t kv_head = head * k->kv_heads / k->heads;
    const float **tokens = test_calloc((size_t)(2 * seen), sizeof *tokens);
    for (int64_t j = 0; j < 2 * seen; j++)
        tokens[j] = source_of(run, seq, j % seen, j >= seen, kv_head);
    const head_view keys = {.tokens = tokens}, values = {.tokens = tokens + seen};
    attend(tensor_f32(&run->t[0]) + row * run->t[0].dims[1] + head * HEAD, &keys, &values, seen,
           ret + (row * k->heads + head) * HEAD);
    test_free(tokens);
}

static void cache_direct(const op_run *run, double *const *ret)
{
    const cache_case *k = cached(run->c);
    for (int64_t i = 0; i < tensor_count(&run->t[1]); i++)
        ret[1][i] = value_at(&run->t[1], i);
    for (int32_t b = 0; b < run->seqs; b++)
        for (int64_t t = 0; t < rows_length(&run->rows[0], b); t++) {
            const int64_t token = run->aux[b] + t;
            for (int64_t i = 0; token < 0 && i < k->heads * HEAD; i++)
                ret[2][run->rows[0].offs[b] * k->heads * HEAD + i] = 0.0;
            if (token < 0) /* attn_step: an inert row */
                continue;
            for (int32_t head = 0; head < k->heads; head++)
                cache_direct_head(run, b, t, head, ret[2]);
            for (int32_t i = 0; i < 2 * k->kv_heads * HEAD; i++) {
                const int which = i / HEAD % 2;
                const int32_t kv_head = i / HEAD / 2;
                ret[1][line_of(page_of(run, b, token), k->kv_heads, which, kv_head, token) + i % HEAD] =
                    (double)source_of(run, b, token, which, kv_head)[i % HEAD];
            }
        }
}

/* attn_step: as attn_cache, one row a sequence; aux: cached tokens, -1: inert */

static const cache_case step_cases[] = {
    {.head = {"first token", SEQS(1), .bound = SOFT}, .heads = 1, .kv_heads = 1},
    {.head = {"inert alone", SEQS(1), AUX(-1), .bound = SOFT}, .heads = 2, .kv_heads = 1},
    {.head = {"around a page", SEQS(1, 1, 0, 1, 1), AUX(62, 63, 0, 64, 0), .bound = SOFT}, .heads = 2, .kv_heads = 1},
    {.head = {"inert among others", SEQS(1, 1, 1, 1, 1, 1), AUX(-1, 70, -1, -1, 3, -1), .bound = SOFT},
     .heads = 6,
     .kv_heads = 2},
    {.head = {"language model", SEQS(1, 1, 1, 1), AUX(300, 0, 129, -1), .bound = SOFT, .heavy = true},
     .heads = 14,
     .kv_heads = 2},
    {.head = {"pieces", SEQS(1, 1, 1, 1, 1), AUX(255, 256, 257, 511, -1), .bound = SOFT, .heavy = true},
     .heads = 7,
     .kv_heads = 1},
    {.head = {"a group too wide", SEQS(1, 1, 1), AUX(70, -1, 3), .bound = SOFT}, .heads = 9, .kv_heads = 1},
};

static cf_err step_call(const op_run *run)
{
    const cache_case *k = cached(run->c);
    int32_t pages[SUITE_SEQS_MAX * PAGES_MAX] = {0}, slots[SUITE_SEQS_MAX], pos[SUITE_SEQS_MAX];
    const int64_t rows = run->t[0].dims[0];
    tensor cache = cache_of(run), y = run->t[2], slots_at, pos_at, pages_at;
    for (int32_t b = 0; b < run->seqs; b++) {
        const int32_t slot = run->seqs - 1 - b, row = run->rows[0].offs[b];
        list_pages(run, b, pages + slot * PAGES_MAX);
        if (run->lengths[b] == 0)
            continue;
        slots[row] = run->aux[b] < 0 ? -1 : slot;
        pos[row] = run->aux[b] < 0 ? 0 : run->aux[b];
    }
    assert_ok(backend_take(run->be, DTYPE_I32, 1, &rows, &slots_at));
    assert_ok(backend_upload(run->be, slots, &slots_at));
    assert_ok(backend_take(run->be, DTYPE_I32, 1, &rows, &pos_at));
    assert_ok(backend_upload(run->be, pos, &pos_at));
    assert_ok(backend_take_2d(run->be, DTYPE_I32, run->seqs, PAGES_MAX, &pages_at));
    assert_ok(backend_upload(run->be, pages, &pages_at));
    return op_attn_step(run->be, &(op_attn_step_args){.qkv = &run->t[0],
                                                      .slots = &slots_at,
                                                      .pos = &pos_at,
                                                      .pages = &pages_at,
                                                      .cache = &cache,
                                                      .y = &y,
                                                      .heads = k->heads,
                                                      .kv_heads = k->kv_heads});
}

#define DIRECT_SOFT                                                                                 \
    {                                                                                               \
        .elem = 1.2e-7, .row = 1e-11, .why = "f64 in another order, rounded once; exp of 1e3 2^-53" \
    }

const op_driver attn_drivers[] = {
    {.op = OP_rope,
     DRIVER_CASES(rope_cases),
     .ports = rope_ports,
     .call = rope_call,
     .direct = rope_direct,
     .direct_bound = {.row = 2e-7, .why = "three roundings to f32 of values below the row's largest times 1.4"}},
    {.op = OP_attn_block,
     DRIVER_CASES(block_cases),
     .poisons = 9,
     .ports = block_ports,
     .edit = block_edit,
     .call = block_call,
     .direct = block_direct,
     .direct_bound = DIRECT_SOFT},
    {.op = OP_attn_cache,
     DRIVER_CASES(cache_cases),
     .poisons = 9,
     .ports = cache_ports,
     .edit = cache_edit,
     .call = cache_call,
     .direct = cache_direct,
     .direct_bound = DIRECT_SOFT},
    {.op = OP_attn_step,
     DRIVER_CASES(step_cases),
     .poisons = 9,
     .ports = cache_ports,
     .edit = cache_edit,
     .call = step_call,
     .direct = cache_direct,
     .direct_bound = DIRECT_SOFT},
    {.cases = NULL},
};
