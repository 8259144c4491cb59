/*
 * dnnl_matmul.c - oneDNN behind dnnl_matmul.h, the only file that includes its header. Versions 2.6 and 3.x.
 *
 * oneDNN's own threads are never used: omp_set_num_threads(1) in each thread that makes or runs a product. Weights are
 * reordered once into the layout that the product asks for; scratchpads belong to the caller, one per thread.
 * Owns engine, streams, products, packed weights. Fails: CF_ERR_DEVICE with oneDNN's status, CF_ERR_NOMEM.
 */
#include "common/compute/cpu/dnnl_matmul.h"

#include <omp.h>
#include <string.h>

#include <oneapi/dnnl/dnnl.h>

#include "common/base/mem.h"

#define CHECK(call)                                                                                           \
    do {                                                                                                      \
        const dnnl_status_t check_status = (call);                                                            \
        if (check_status != dnnl_success)                                                                     \
            FAIL(CF_ERR_DEVICE, "oneDNN %d.%d: status %d at line %d", DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, \
                 (int)check_status, __LINE__);                                                                \
    } while (0)

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t desc; /* owned: desc_close */
typedef const_dnnl_memory_desc_t desc_ref;
#else
typedef dnnl_memory_desc_t desc;
typedef const dnnl_memory_desc_t *desc_ref;
#endif

struct onednn_context {
    int threads;
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* [threads] */
};

typedef struct gemm_memory {
    dnnl_memory_t a, c, scratchpad; /* one set per thread: handles are set before each run */
    void *scratchpad_bytes;         /* owned */
} gemm_memory;

struct onednn_product {
    onednn_context *ctx; /* borrowed */
    dnnl_primitive_t primitive;
    dnnl_memory_t b;         /* owns its bytes */
    gemm_memory *per_thread; /* [ctx->threads] */
    size_t b_bytes;
};

bool onednn_has_fast_f32(void)
{
    const int isa = (int)dnnl_get_effective_cpu_isa();
    return (isa & (int)dnnl_cpu_isa_avx512_core) == (int)dnnl_cpu_isa_avx512_core;
}

bool onednn_has_fast_bf16(void)
{
    const int isa = (int)dnnl_get_effective_cpu_isa();
    return (isa & (int)dnnl_cpu_isa_avx512_core_amx) == (int)dnnl_cpu_isa_avx512_core_amx;
}

cf_err onednn_context_open(int threads, onednn_context **ret_context)
{
    cf_err err;
    onednn_context *ctx = NULL;

    omp_set_num_threads(1);
    TRY(mem_alloc(1, sizeof *ctx, &ctx));
    ctx->threads = threads;
    TRY(mem_alloc((size_t)threads, sizeof *ctx->streams, &ctx->streams));
    CHECK(dnnl_engine_create(&ctx->engine, dnnl_cpu, 0));
    for (int i = 0; i < threads; i++)
        CHECK(dnnl_stream_create(&ctx->streams[i], ctx->engine, dnnl_stream_default_flags));
    *ret_context = ctx;
    ctx = NULL;
out:
    onednn_context_close(ctx);
    return err;
}

void onednn_context_close(onednn_context *ctx)
{
    if (!ctx)
        return;
    for (int i = 0; ctx->streams && i < ctx->threads; i++)
        if (ctx->streams[i])
            dnnl_stream_destroy(ctx->streams[i]);
    if (ctx->engine)
        dnnl_engine_destroy(ctx->engine);
    mem_free(ctx->streams);
    mem_free(ctx);
}

/* What version 2 and version 3 call differently. */
#if DNNL_VERSION_MAJOR >= 3
static dnnl_status_t desc_open(int64_t rows, int64_t cols, bool bf16, dnnl_format_tag_t tag, desc *ret_desc)
{
    const dnnl_dims_t dims = {rows, cols};
    return dnnl_memory_desc_create_with_tag(ret_desc, 2, dims, bf16 ? dnnl_bf16 : dnnl_f32, tag);
}

static void desc_close(desc *d)
{
    if (*d)
        dnnl_memory_desc_destroy(*d);
}

static desc_ref desc_borrow(const desc *d)
{
    return *d;
}

static dnnl_status_t product_desc(dnnl_engine_t engine, const desc *a, const desc *b, const desc *c,
                                  dnnl_primitive_attr_t attr, dnnl_primitive_desc_t *ret_pd)
{
    return dnnl_matmul_primitive_desc_create(ret_pd, engine, *a, *b, NULL, *c, attr);
}
#else
static dnnl_status_t desc_open(int64_t rows, int64_t cols, bool bf16, dnnl_format_tag_t tag, desc *ret_desc)
{
    const dnnl_dims_t dims = {rows, cols};
    return dnnl_memory_desc_init_by_tag(ret_desc, 2, dims, bf16 ? dnnl_bf16 : dnnl_f32, tag);
}

static void desc_close(desc *d)
{
    (void)d;
}

static desc_ref desc_borrow(const desc *d)
{
    return d;
}

static dnnl_status_t product_desc(dnnl_engine_t engine, const desc *a, const desc *b, const desc *c,
                                  dnnl_primitive_attr_t attr, dnnl_primitive_desc_t *ret_pd)
{
    dnnl_matmul_desc_t op;
    const dnnl_status_t status = dnnl_matmul_desc_init(&op, a, b, NULL, c);
    return status == dnnl_success ? dnnl_primitive_desc_create(ret_pd, &op, attr, engine, NULL) : status;
}
#endif

/* Brings plain f32 weights into the layout and type that the product wants. */
static cf_err pack_weights(onednn_product *g, const onednn_shape *shape, const float *plain, desc_ref wanted)
{
    cf_err err;
    desc from_desc = {0};
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    void *source;

    memcpy(&source, &plain, sizeof source); /* oneDNN's handles are not const; a source is read alone */
    CHECK(desc_open(shape->depth, shape->cols, false, dnnl_ab, &from_desc));
    CHECK(dnnl_memory_create(&from, desc_borrow(&from_desc), g->ctx->engine, source));
    CHECK(dnnl_memory_create(&g->b, wanted, g->ctx->engine, DNNL_MEMORY_ALLOCATE));
    CHECK(
        dnnl_reorder_primitive_desc_create(&pd, desc_borrow(&from_desc), g->ctx->engine, wanted, g->ctx->engine, NULL));
    CHECK(dnnl_primitive_create(&reorder, pd));
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, g->b}};
    CHECK(dnnl_primitive_execute(reorder, g->ctx->streams[0], 2, args));
    CHECK(dnnl_stream_wait(g->ctx->streams[0]));
    g->b_bytes = dnnl_memory_desc_get_size(wanted);
    err = CF_OK;
out:
    if (reorder)
        dnnl_primitive_destroy(reorder);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (from)
        dnnl_memory_destroy(from);
    desc_close(&from_desc);
    return err;
}

static cf_err thread_memory(onednn_product *g, const desc *a, const desc *c, desc_ref scratchpad)
{
    cf_err err;
    const size_t bytes = dnnl_memory_desc_get_size(scratchpad);

    TRY(mem_alloc((size_t)g->ctx->threads, sizeof *g->per_thread, &g->per_thread));
    for (int i = 0; i < g->ctx->threads; i++) {
        gemm_memory *m = &g->per_thread[i];
        CHECK(dnnl_memory_create(&m->a, desc_borrow(a), g->ctx->engine, DNNL_MEMORY_NONE));
        CHECK(dnnl_memory_create(&m->c, desc_borrow(c), g->ctx->engine, DNNL_MEMORY_NONE));
        TRY(mem_alloc(bytes + 64, 1, &m->scratchpad_bytes));
        void *aligned = (void *)(((uintptr_t)m->scratchpad_bytes + 63) / 64 * 64);
        CHECK(dnnl_memory_create(&m->scratchpad, scratchpad, g->ctx->engine, aligned));
    }
out:
    return err;
}

cf_err onednn_product_open(onednn_context *ctx, const onednn_shape *shape, const float *b, onednn_product **ret_gemm)
{
    cf_err err;
    onednn_product *g = NULL;
    desc a_desc = {0}, b_desc = {0}, c_desc = {0};
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;

    TRY(mem_alloc(1, sizeof *g, &g));
    g->ctx = ctx;
    CHECK(desc_open(shape->rows, shape->depth, shape->bf16, dnnl_ab, &a_desc));
    CHECK(desc_open(shape->depth, shape->cols, shape->bf16, dnnl_format_tag_any, &b_desc));
    CHECK(desc_open(shape->rows, shape->cols, false, dnnl_ab, &c_desc));
    CHECK(dnnl_primitive_attr_create(&attr));
    CHECK(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    CHECK(product_desc(ctx->engine, &a_desc, &b_desc, &c_desc, attr, &pd));
    CHECK(dnnl_primitive_create(&g->primitive, pd));
    TRY(pack_weights(g, shape, b, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0)));
    TRY(thread_memory(g, &a_desc, &c_desc, dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0)));
    *ret_gemm = g;
    g = NULL;
out:
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    desc_close(&a_desc);
    desc_close(&b_desc);
    desc_close(&c_desc);
    onednn_product_close(g);
    return err;
}

static void memory_close(dnnl_memory_t m)
{
    if (m)
        dnnl_memory_destroy(m);
}

void onednn_product_close(onednn_product *g)
{
    if (!g)
        return;
    for (int i = 0; g->per_thread && i < g->ctx->threads; i++) {
        memory_close(g->per_thread[i].a);
        memory_close(g->per_thread[i].c);
        memory_close(g->per_thread[i].scratchpad);
        mem_free(g->per_thread[i].scratchpad_bytes);
    }
    mem_free(g->per_thread);
    memory_close(g->b);
    if (g->primitive)
        dnnl_primitive_destroy(g->primitive);
    mem_free(g);
}

size_t onednn_product_bytes(const onednn_product *g)
{
    return g->b_bytes;
}

cf_err onednn_product_run(const onednn_product *g, int thread_idx, void *a, float *c)
{
    cf_err err;
    const gemm_memory *m = &g->per_thread[thread_idx];
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, m->a}, {DNNL_ARG_WEIGHTS, g->b}, {DNNL_ARG_DST, m->c}, {DNNL_ARG_SCRATCHPAD, m->scratchpad}};

    omp_set_num_threads(1); /* per thread, and cheap */
    CHECK(dnnl_memory_set_data_handle(m->a, a));
    CHECK(dnnl_memory_set_data_handle(m->c, c));
    CHECK(dnnl_primitive_execute(g->primitive, g->ctx->streams[thread_idx], 4, args));
    CHECK(dnnl_stream_wait(g->ctx->streams[thread_idx]));
    err = CF_OK;
out:
    return err;
}
