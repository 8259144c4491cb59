/*
 * gemm.cu - matrix products with cuBLASLt, the only file that knows it. The backend's thread. Owns the library's
 * handle, one workspace, and the algorithms chosen so far.
 *
 * The library is loaded when a CUDA backend opens, so that the programs start, and say what is missing, on hosts
 * without it. Its matrices are column-major: y (n_out x rows) = w^T (n_out x k_in) x (k_in x rows).
 *
 * Choice of an algorithm: once per shape of the weight and kind, for a fixed number of rows (RULE_ROWS), with a fixed
 * workspace and without split sums; it then serves any number of rows. So the order of a row's sums does not follow
 * from its batch. Where an algorithm refuses a number of rows, the choice is made for those rows and logged; it is
 * a function of the shape, so one that was forgotten is made again as it was.
 * Fails: CF_ERR_UNSUPPORTED (library), CF_ERR_NOMEM, CF_ERR_DEVICE.
 */
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/compute/cuda/cuda_common.cuh"
#include "common/compute/cuda/gemm.cuh"

#define WORKSPACE_BYTES  ((size_t)32 << 20)
#define RULES_MAX        256 /* shapes of a model's products; it has some dozens */
#define EXACT_RULES_MAX  256 /* shapes and rows that a general rule refused; the oldest gives way */
#define RULE_ROWS_BULK   2048
#define RULE_ROWS_DECODE 64

/* The functions taken from the library: name without its prefix. */
#define LIBRARY(X)                  \
    X(Create)                       \
    X(Destroy)                      \
    X(Matmul)                       \
    X(MatmulDescCreate)             \
    X(MatmulDescDestroy)            \
    X(MatmulDescSetAttribute)       \
    X(MatrixLayoutCreate)           \
    X(MatrixLayoutDestroy)          \
    X(MatmulPreferenceCreate)       \
    X(MatmulPreferenceDestroy)      \
    X(MatmulPreferenceSetAttribute) \
    X(MatmulAlgoGetHeuristic)       \
    X(MatmulAlgoCheck)

typedef struct rule_key {
    int64_t n_out, k_in, y_pitch;
    int32_t operands, kind, epilogue, narrow, exact_rows; /* exact_rows: 0, or the rows that the general rule refused */
} rule_key;

typedef struct rule {
    rule_key key;
    bool refused; /* the library has none; a narrow y alone */
    cublasLtMatmulAlgo_t algo;
} rule;

struct gemm {
    void *library; /* dlopen */
#define MEMBER(name) decltype(&cublasLt##name) name;
    LIBRARY(MEMBER)
#undef MEMBER
    cublasLtHandle_t handle;
    void *workspace; /* device */
    rule rules[RULES_MAX], exact[EXACT_RULES_MAX];
    int rule_count, exact_count; /* exact: a ring; from EXACT_RULES_MAX on the count goes around above it */
};

/* What one product is described by. */
typedef struct problem {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, y;
} problem;

static cf_err lt_status(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return CF_OK;
    return err_set(status == CUBLAS_STATUS_ALLOC_FAILED ? CF_ERR_NOMEM : CF_ERR_DEVICE, "cuBLASLt: %s: status %d", what,
                   (int)status);
}
#define LT_CALL(expr) CUDA_TRY(lt_status((expr), #expr))

#define PATH_BYTES  512
#define TRIED_BYTES 2048

/* Opens folder/name, or name where the loader looks when folder is NULL; adds what failed to `tried`. */
static void try_load(gemm *g, const char *folder, const char *name, char tried[TRIED_BYTES])
{
    char path[PATH_BYTES];
    const size_t used = strlen(tried);
    const int bytes = snprintf(path, sizeof path, "%s%s%s", folder ? folder : "", folder ? "/" : "", name);
    if (g->library || bytes < 0 || (size_t)bytes >= sizeof path)
        return;
    g->library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); /* the driver keeps what it registered */
    if (!g->library)
        snprintf(tried + used, TRIED_BYTES - used, "%s%s", used ? ", " : "", path);
}

/* Where the loader looks first, then the folders of a toolkit that was installed without telling the loader. */
static cf_err open_library(gemm *g)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH"};
    char tried[TRIED_BYTES] = "", folder[PATH_BYTES];
    for (size_t i = 0; i < CF_COUNT(names); i++)
        try_load(g, NULL, names[i], tried);
    for (size_t v = 0; v < CF_COUNT(variables); v++) {
        const char *toolkit = getenv(variables[v]);
        if (!toolkit || !*toolkit)
            continue;
        snprintf(folder, sizeof folder, "%s/lib64", toolkit);
        for (size_t i = 0; i < CF_COUNT(names); i++)
            try_load(g, folder, names[i], tried);
    }
    for (size_t i = 0; i < CF_COUNT(names); i++)
        try_load(g, "/usr/local/cuda/lib64", names[i], tried);
    if (g->library)
        return CF_OK;
    return err_set(CF_ERR_UNSUPPORTED,
                   "cuBLASLt is missing (tried %s): install libcublas of CUDA %d, or unpack the offline bundle and set "
                   "LD_LIBRARY_PATH",
                   tried, CUDART_VERSION / 1000);
}

static cf_err load(gemm *g)
{
    CUDA_TRY(open_library(g));
#define LOAD(name)                                                    \
    g->name = (decltype(g->name))dlsym(g->library, "cublasLt" #name); \
    if (!g->name)                                                     \
        return err_set(CF_ERR_UNSUPPORTED, "cuBLASLt has no function cublasLt" #name ": %s", dlerror());
    LIBRARY(LOAD)
#undef LOAD
    return CF_OK;
}

cf_err gemm_open(int device, gemm **ret_gemm)
{
    gemm *g = NULL;
    (void)device; /* the caller has set it */
    CUDA_TRY(mem_alloc(1, sizeof *g, &g));
    *ret_gemm = g; /* gemm_close takes what there is */
    CUDA_TRY(load(g));
    LT_CALL(g->Create(&g->handle));
    CUDA_CALL(cudaMalloc(&g->workspace, WORKSPACE_BYTES));
    return CF_OK;
}

void gemm_close(gemm *g)
{
    if (!g)
        return;
    if (g->handle)
        (void)g->Destroy(g->handle);
    if (g->workspace)
        (void)cudaFree(g->workspace);
    if (g->library)
        dlclose(g->library);
    mem_free(g);
}

static cudaDataType_t operand_type(precision operands)
{
    return operands == PRECISION_F32 ? CUDA_R_32F : operands == PRECISION_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static void problem_close(const gemm *g, problem *p)
{
    if (p->op)
        (void)g->MatmulDescDestroy(p->op);
    if (p->w)
        (void)g->MatrixLayoutDestroy(p->w);
    if (p->x)
        (void)g->MatrixLayoutDestroy(p->x);
    if (p->y)
        (void)g->MatrixLayoutDestroy(p->y);
}

static cublasLtEpilogue_t epilogue_of(const gemm_call *c)
{
    if (c->gelu)
        return c->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    return c->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

/* CUBLAS_COMPUTE_32F: f32 products are f32 products, TF32 is another type. */
static cf_err problem_open(const gemm *g, const gemm_call *c, int64_t rows, problem *p)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cudaDataType_t type = operand_type(c->operands), y_type = c->narrow ? type : CUDA_R_32F;
    const cublasLtEpilogue_t epilogue = epilogue_of(c);
    LT_CALL(g->MatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_CALL(g->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    LT_CALL(g->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (c->bias) {
        LT_CALL(g->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &y_type, sizeof y_type));
        LT_CALL(g->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &c->bias, sizeof c->bias));
    }
    LT_CALL(g->MatrixLayoutCreate(&p->w, type, (uint64_t)c->k_in, (uint64_t)c->n_out, c->k_in));
    LT_CALL(g->MatrixLayoutCreate(&p->x, type, (uint64_t)c->k_in, (uint64_t)rows, c->k_in));
    LT_CALL(g->MatrixLayoutCreate(&p->y, y_type, (uint64_t)c->n_out, (uint64_t)rows, c->y_pitch));
    return CF_OK;
}

/* The largest power of two, at most 16, that divides the distance of two rows: what every row is aligned to. */
static uint32_t row_alignment(int64_t pitch_bytes)
{
    uint32_t alignment = 16;
    while (pitch_bytes % alignment != 0)
        alignment /= 2;
    return alignment;
}

static cf_err prefer(const gemm *g, const gemm_call *c, cublasLtMatmulPreference_t preference)
{
    const uint32_t no_split = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint32_t in = row_alignment(c->k_in * (c->operands == PRECISION_F32 ? 4 : 2));
    const int64_t y_bytes = c->narrow ? 2 : 4;
    const uint32_t by_pitch = row_alignment(c->y_pitch * y_bytes), by_width = row_alignment(c->n_out * y_bytes);
    const uint32_t out = by_pitch < by_width ? by_pitch : by_width;
    const size_t workspace = WORKSPACE_BYTES;
#define PREFER(attribute, value) \
    LT_CALL(g->MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_##attribute, &(value), sizeof(value)))
    PREFER(MAX_WORKSPACE_BYTES, workspace);
    PREFER(REDUCTION_SCHEME_MASK, no_split);
    PREFER(MIN_ALIGNMENT_A_BYTES, in);
    PREFER(MIN_ALIGNMENT_B_BYTES, in);
    PREFER(MIN_ALIGNMENT_C_BYTES, out);
    PREFER(MIN_ALIGNMENT_D_BYTES, out);
#undef PREFER
    return CF_OK;
}

static cf_err ask(const gemm *g, const gemm_call *c, int64_t rows, cublasLtMatmulAlgo_t *ret_algo)
{
    problem p = {};
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t best = {};
    int found = 0;
    cf_err err = problem_open(g, c, rows, &p);
    if (err == CF_OK)
        err = lt_status(g->MatmulPreferenceCreate(&preference), "preference");
    if (err == CF_OK)
        err = prefer(g, c, preference);
    if (err == CF_OK) {
        const cublasStatus_t status =
            g->MatmulAlgoGetHeuristic(g->handle, p.op, p.w, p.x, p.y, p.y, preference, 1, &best, &found);
        if (status != CUBLAS_STATUS_NOT_SUPPORTED)
            err = lt_status(status, "choice of an algorithm");
    }
    if (err == CF_OK && found == 0)
        err = err_set(c->narrow ? CF_ERR_UNSUPPORTED : CF_ERR_DEVICE, "cuBLASLt: no algorithm for %lld x %lld x %lld%s",
                      (long long)rows, (long long)c->n_out, (long long)c->k_in,
                      c->narrow ? " with a result of 16 bits" : "");
    if (err == CF_OK)
        *ret_algo = best.algo;
    if (preference)
        (void)g->MatmulPreferenceDestroy(preference);
    problem_close(g, &p);
    return err;
}

static rule_key key_of(const gemm_call *c, int32_t exact_rows)
{
    rule_key key;
    memset(&key, 0, sizeof key);
    key.n_out = c->n_out;
    key.k_in = c->k_in;
    key.y_pitch = c->y_pitch;
    key.operands = c->operands;
    key.kind = c->kind;
    key.epilogue = epilogue_of(c);
    key.narrow = c->narrow;
    key.exact_rows = exact_rows;
    return key;
}

/* The rule of `key`, or NULL. */
static rule *known_rule(gemm *g, const rule_key *key)
{
    rule *rules = key->exact_rows ? g->exact : g->rules;
    const int made = key->exact_rows ? g->exact_count : g->rule_count;
    const int count = key->exact_rows && made > EXACT_RULES_MAX ? EXACT_RULES_MAX : made;
    for (int i = 0; i < count; i++)
        if (memcmp(&rules[i].key, key, sizeof *key) == 0)
            return &rules[i];
    return NULL;
}

/* The algorithm of this shape, until the next call; chosen at its first use. */
static cf_err find_rule(gemm *g, const gemm_call *c, int32_t exact_rows, const cublasLtMatmulAlgo_t **ret_algo)
{
    const rule_key key = key_of(c, exact_rows);
    const rule *known = known_rule(g, &key);
    if (known) {
        *ret_algo = &known->algo;
        return known->refused ? err_set(CF_ERR_UNSUPPORTED, "cuBLASLt: no algorithm, as before") : CF_OK;
    }
    if (!exact_rows && g->rule_count == RULES_MAX)
        return err_set(CF_ERR_LIMIT, "cuBLASLt: more than %d shapes of products", RULES_MAX);
    rule *fresh = exact_rows ? &g->exact[g->exact_count % EXACT_RULES_MAX] : &g->rules[g->rule_count];
    cublasLtMatmulAlgo_t algo = {};
    const int64_t rows = exact_rows ? exact_rows : c->kind == GEMM_BULK ? RULE_ROWS_BULK : RULE_ROWS_DECODE;
    const cf_err err = ask(g, c, rows, &algo);
    if (err != CF_OK && err != CF_ERR_UNSUPPORTED)
        return err;
    if (err != CF_OK)
        log_info("cuda.gemm", "choice=\"results of 32 bits, rounded by a kernel of ours\" error=\"%s\"", err_text());
    *fresh = rule{key, err != CF_OK, algo};
    if (exact_rows)
        g->exact_count = g->exact_count + 1 < 2 * EXACT_RULES_MAX ? g->exact_count + 1 : EXACT_RULES_MAX;
    else
        g->rule_count++;
    *ret_algo = &fresh->algo;
    return err;
}

static cf_err multiply(gemm *g, cudaStream_t stream, const gemm_call *c, const problem *p)
{
    const float one = 1.0f, zero = 0.0f;
    const cublasLtMatmulAlgo_t *algo;
    cublasLtMatmulHeuristicResult_t checked;
    CUDA_TRY(find_rule(g, c, 0, &algo));
    if (g->MatmulAlgoCheck(g->handle, p->op, p->w, p->x, p->y, p->y, algo, &checked) != CUBLAS_STATUS_SUCCESS ||
        checked.workspaceSize > WORKSPACE_BYTES) {
        log_debug("cuda.gemm", "rows=%lld n=%lld k=%lld choice=\"for these rows alone\"", (long long)c->rows,
                  (long long)c->n_out, (long long)c->k_in);
        CUDA_TRY(find_rule(g, c, (int32_t)c->rows, &algo));
    }
    return lt_status(g->Matmul(g->handle, p->op, &one, c->w, p->w, c->x, p->x, &zero, c->y, p->y, c->y, p->y, algo,
                               g->workspace, WORKSPACE_BYTES, stream),
                     "product");
}

cf_err gemm_run(gemm *g, cudaStream_t stream, const gemm_call *c)
{
    problem p = {};
    CF_ASSERT((uintptr_t)c->bias % GEMM_BIAS_ALIGN == 0);
    cf_err err = problem_open(g, c, c->rows, &p);
    if (err == CF_OK)
        err = multiply(g, stream, c, &p);
    problem_close(g, &p);
    return err;
}
