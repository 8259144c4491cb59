/*
 * suite.h - what a case of the op suite is: a row of a table, the tensors it needs, how to call the op, and how to
 * compute the result directly. Tables (cases_*.c) know no backend; the machinery (suite.c, test_ops.c) knows no op.
 *
 * A case is a batch of sequences. What a sequence holds depends on the case and the sequence alone, so that any
 * selection of them, in any order, can be run and compared sequence by sequence.
 */
#ifndef CF_TESTS_OPS_SUITE_H
#define CF_TESTS_OPS_SUITE_H

#include "tests/harness/test.h"

#include "common/base/mem.h"
#include "common/compute/ops.h"

#define SUITE_SEQS_MAX    8
#define SUITE_PORTS_MAX   6
#define SUITE_POISONS_MAX 64

typedef enum dist_kind {
    DIST_UNIFORM,  /* centre +- amplitude; amplitude 0 stands for 1 */
    DIST_OUTLIERS, /* +-3, plus amplitude t^9 with t in -1..1 of the column: a few large channels, as synthetic.md 5 */
    DIST_SPECIALS, /* signed zeros, denormals, where functions change form, the largest numbers */
    DIST_IDS,      /* i32 from centre to centre + amplitude - 1 */
    DIST_HZ,       /* fundamental frequency: a third unvoiced, the rest 60..440 */
    DIST_COS,      /* row p, column j: cos(p 10000^(-j/32)), rotary table */
    DIST_SIN
} dist_kind;

typedef struct dist {
    dist_kind kind;
    double centre, amplitude;
} dist;

/* |got - want| <= elem |want| + row max|want of the row| + floor. All zero: the same bits. */
typedef struct bound {
    double elem, row, floor;
    const char *why;
    bool nonfinite_alike; /* NaN may stand for an infinity and the reverse */
    bool nan_spreads;     /* where an input is poisoned, more of the result may be NaN than reads it */
} bound;

/* The head of every row of every table. */
typedef struct suite_case {
    const char *name;
    int32_t lengths[SUITE_SEQS_MAX]; /* rows of each sequence; 0 is allowed */
    int32_t seqs;
    int32_t aux[SUITE_SEQS_MAX]; /* a second number per sequence; the table says what */
    bound bound;                 /* of the fast variants against the plain loops */
    int in_place;                /* 1 + the input port whose memory the result takes; 0: its own */
    bool bf16;                   /* operands of products */
    bool pair;                   /* operands of products are pairs of bf16 */
    bool half;                   /* operands of products are fp16, on backends that have them; f32 on others */
    bool narrow;                 /* activations of bf16 where the op takes them */
    bool int8;                   /* and the weights of those in int8; on backends that have it */
    bool heavy;                  /* real shapes: fewer thread counts and poisons */
} suite_case;

#define SEQS(...) .lengths = {__VA_ARGS__}, .seqs = (int32_t)(sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))
#define AUX(...)  .aux = {__VA_ARGS__}

typedef enum port_role {
    PORT_IN,    /* per sequence */
    PORT_OUT,   /* per sequence */
    PORT_INOUT, /* per sequence */
    PORT_TABLE, /* one for all sequences */
    PORT_WEIGHT /* one for all, packed instead of uploaded */
} port_role;

/* A tensor of an op: [rows, width]; an op that wants another rank reshapes it. */
typedef struct port {
    const char *name;
    port_role role;
    dtype type;
    int64_t width;
    int64_t (*rows)(const suite_case *c, int32_t seq_idx); /* of one sequence; NULL: its length */
    int64_t table_rows;                                    /* of tables and weights */
    dist values;                                           /* of what is read */
    bool exact;                                            /* bits, whatever the case's bound says */
} port;

/* One call. On a backend, or on the host when be is NULL: then only offs of rows are set, and w is not. */
typedef struct op_run {
    const suite_case *c;
    backend *be;
    const weight *w;
    int32_t seqs;
    int32_t lengths[SUITE_SEQS_MAX], aux[SUITE_SEQS_MAX]; /* of the sequences of this run */
    op_rows rows[SUITE_PORTS_MAX];                        /* of ports that have rows per sequence */
    tensor t[SUITE_PORTS_MAX];
} op_run;

typedef struct op_driver {
    op_id op;
    const void *cases; /* case_count rows of case_bytes; a suite_case is the first member of each */
    size_t case_bytes;
    int32_t case_count;
    int poisons;                                                 /* NaN and infinities tried per float input; 0: 3 */
    int32_t (*ports)(const suite_case *c, port *ret_ports);      /* returns how many */
    void (*edit)(const suite_case *c, int32_t seq, void **data); /* NULL, or changes the drawn input of a sequence */
    cf_err (*pack)(const suite_case *c, backend *be, const void *values, weight **ret_weight); /* NULL: no weight */
    cf_err (*call)(const op_run *run);
    void (*direct)(const op_run *run, double *const *ret); /* ret[port] of what is written, in f64 */
    bound direct_bound;                                    /* of the plain loops against direct */
} op_driver;

#define DRIVER_CASES(table) \
    .cases = table, .case_bytes = sizeof *(table), .case_count = (int32_t)(sizeof(table) / sizeof *(table))

extern const op_driver elem_drivers[], norm_drivers[], matmul_drivers[], conv_drivers[], attn_drivers[],
    signal_drivers[], index_drivers[], enroll_drivers[], ras_drivers[]; /* each ends with a driver without cases */

static inline const suite_case *driver_case(const op_driver *d, int32_t case_idx)
{
    return (const suite_case *)(const void *)((const unsigned char *)d->cases + (size_t)case_idx * d->case_bytes);
}

/* A case with its inputs drawn. */
typedef struct suite_data {
    const op_driver *d;
    const suite_case *c;
    int32_t port_count;
    port ports[SUITE_PORTS_MAX];
    int64_t first_row[SUITE_PORTS_MAX][SUITE_SEQS_MAX + 1]; /* of each sequence, in the case's order */
    void *host[SUITE_PORTS_MAX];                            /* NULL where nothing is read */
    arena *memory;                                          /* borrowed */
} suite_data;

/* What was written, per port and in the case's order of sequences. f64 where it was computed directly. */
typedef struct suite_result {
    void *values[SUITE_PORTS_MAX];
    bool wide;
} suite_result;

bool port_written(const port *p);
bool port_per_sequence(const port *p);

/* Draws the inputs; everything lives in `memory`. Fails the test when memory is exhausted. */
void suite_draw(const op_driver *d, const suite_case *c, arena *memory, suite_data *ret_data);

suite_result suite_result_new(const suite_data *s, bool wide);

/* Runs the sequences seqs[0..count) on a backend, in this order, and stores what they give in ret. Fails the test when
 * the op fails, changes an input, or writes outside its result. */
void suite_run(const suite_data *s, backend *be, const weight *w, const int32_t *seqs, int32_t count,
               suite_result *ret);

/* Computes the whole case directly. */
void suite_run_direct(const suite_data *s, suite_result *ret);

/* One input value that becomes NaN or infinite. */
typedef struct poison {
    int port;
    int32_t seq; /* -1: of a table */
    int64_t value_idx;
    double value;
} poison;

int32_t suite_poisons(const suite_data *s, poison *ret_poisons); /* at most SUITE_POISONS_MAX */

/* Puts the poison in, or, with the value it returned, out again. */
double suite_swap(const suite_data *s, const poison *p, double value);

/* Demands that got keeps the bound against want; on failure says where not. Returns the largest |got - want| as a part
 * of what is allowed. */
double suite_near(const suite_data *s, const bound *b, const suite_result *got, const suite_result *want,
                  const char *what);

/* Demands the same bytes in sequence seq (-1: in all). */
void suite_same(const suite_data *s, const suite_result *got, const suite_result *want, int32_t seq, const char *what);

/* Value i of a host tensor, for direct computations. */
static inline double value_at(const tensor *t, int64_t i)
{
    if (t->type == DTYPE_BF16)
        return (double)f32_from_bf16(((const uint16_t *)t->data)[i]);
    return t->type == DTYPE_F64 ? tensor_f64(t)[i] : t->type == DTYPE_I32 ? tensor_i32(t)[i] : (double)tensor_f32(t)[i];
}

/* An operand of a product in f64: as it is, or with bf16's 8 significant bits, nearest even, by the adder. */
double operand_value(float x, bool bf16);

/* act(x) in f64, each function written another way than in the backend (cases_elem.c). */
double elem_act(double x, act_kind act, float slope);

/* The port's tensor as one dimension. */
static inline tensor flat(const tensor *t)
{
    return tensor_1d(t->data, t->type, tensor_count(t));
}

#endif
