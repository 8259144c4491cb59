/*
 * cases_index.c - cases of ops that gather and combine: embedding, dit_input, cfg_euler, step_rows, reflect_first. Test
 * code.
 */
#include "tests/ops/suite.h"

#include "common/base/limits.h"

#define MEL 80

#define COPY                           \
    {                                  \
        .why = "copies: the same bits" \
    }

typedef struct index_case {
    suite_case head;
    int64_t width, lines; /* lines: of the table */
    double lowest_id;     /* negative ids give zeros */
    double amplitude;
} index_case;

static const index_case *index_of(const suite_case *c)
{
    return (const index_case *)(const void *)c;
}

/* embedding: table, ids, y */

static const index_case embedding_cases[] = {
    {.head = {"one value", SEQS(1), .bound = COPY}, .width = 1, .lines = 1},
    {.head = {"nothing but zeros", SEQS(1, 2), .bound = COPY}, .width = 5, .lines = 1, .lowest_id = -1},
    {.head = {"prime", SEQS(2, 0, 11), .bound = COPY}, .width = 17, .lines = 23, .lowest_id = -4},
    {.head = {"speech tokens", SEQS(25, 3), .bound = COPY}, .width = 80, .lines = 6561, .lowest_id = -100},
    {.head = {"language model", SEQS(1, 1, 9), .bound = COPY}, .width = 896, .lines = 200},
};

static int32_t embedding_ports(const suite_case *c, port *p)
{
    const index_case *k = index_of(c);
    const double first = k->lowest_id, count = k->lowest_id == -1.0 ? 1.0 : (double)k->lines - first;
    p[0] = (port){.name = "table", .role = PORT_TABLE, .width = k->width, .table_rows = k->lines};
    p[1] = (port){.name = "ids", .role = PORT_IN, .type = DTYPE_I32, .width = 1, .values = {DIST_IDS, first, count}};
    p[2] = (port){.name = "y", .role = PORT_OUT, .width = k->width};
    return 3;
}

static cf_err embedding_call(const op_run *run)
{
    const tensor ids = flat(&run->t[1]);
    tensor y = run->t[2];
    return op_embedding(run->be, &(op_embedding_args){.table = &run->t[0], .ids = &ids, .y = &y});
}

static void embedding_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[0].dims[1];
    for (int64_t i = 0; i < run->t[1].dims[0] * width; i++) {
        const int64_t id = (int64_t)value_at(&run->t[1], i / width);
        ret[2][i] = id < 0 ? 0.0 : value_at(&run->t[0], id * width + i % width);
    }
}

/* dit_input: x, cond, mu, spk, y */

static const index_case dit_cases[] = {
    {.head = {"one frame", SEQS(1), .bound = COPY}},
    {.head = {"odd lengths", SEQS(0, 3, 0, 7, 0), .bound = COPY}},
    {.head = {"one empty sequence", SEQS(0), .bound = COPY}},
    {.head = {"eight requests", SEQS(2, 50, 1, 1, 9, 4, 0, 3), .bound = COPY}},
};

static int64_t one_row(const suite_case *c, int32_t seq)
{
    (void)c;
    (void)seq;
    return 1;
}

static int64_t two_rows(const suite_case *c, int32_t seq)
{
    return 2 * (int64_t)c->lengths[seq];
}

static int32_t dit_ports(const suite_case *c, port *p)
{
    (void)c;
    p[0] = (port){.name = "x", .role = PORT_IN, .width = MEL};
    p[1] = (port){.name = "cond", .role = PORT_IN, .width = MEL, .values = {.centre = -6, .amplitude = 4}};
    p[2] = (port){.name = "mu", .role = PORT_IN, .width = MEL};
    p[3] = (port){.name = "spk", .role = PORT_IN, .width = MEL, .rows = one_row};
    p[4] = (port){.name = "y", .role = PORT_OUT, .width = 4 * MEL, .rows = two_rows};
    return 5;
}

static cf_err dit_call(const op_run *run)
{
    tensor y = run->t[4];
    return op_dit_input(
        run->be,
        &(op_dit_input_args){
            .x = &run->t[0], .cond = &run->t[1], .mu = &run->t[2], .spk = &run->t[3], .y = &y, .rows = &run->rows[0]});
}

static void dit_direct(const op_run *run, double *const *ret)
{
    for (int32_t b = 0; b < run->seqs; b++) {
        const int64_t first = run->rows[0].offs[b], length = rows_length(&run->rows[0], b);
        for (int64_t i = 0; i < 2 * length * 4 * MEL; i++) {
            const int64_t row = i / (4 * MEL), part = i / MEL % 4, column = i % MEL;
            const int64_t from = part == 3 ? b : first + row % length;
            const bool guided = row < length;
            ret[4][2 * first * 4 * MEL + i] = part == 0 || guided ? value_at(&run->t[part], from * MEL + column) : 0.0;
        }
    }
}

/* cfg_euler: x, v; x changes. aux: a sequence's time step, in thousandths */

#define EULER                                                               \
    {                                                                       \
        .why = "two products, a difference, a product, a sum, each rounded" \
    }

static const index_case euler_cases[] = {
    {.head = {"one value", SEQS(1), AUX(100), .bound = EULER}, .width = 1},
    {.head = {"odd lengths", SEQS(0, 3, 0, 0, 7, 0), AUX(9, 12, 5, 7, 333, 8), .bound = EULER}, .width = 31},
    {.head = {"mel", SEQS(50, 1, 9), AUX(12, 100, 155), .bound = EULER}, .width = MEL, .amplitude = 8},
    {.head = {"no step", SEQS(2, 5), AUX(0, 1), .bound = EULER}, .width = MEL},
    {.head = {"over a task", SEQS(900, 1, 860), AUX(12, 100, 155), .bound = EULER}, .width = MEL},
};

static int32_t euler_ports(const suite_case *c, port *p)
{
    const index_case *k = index_of(c);
    p[0] = (port){.name = "x", .role = PORT_INOUT, .width = k->width};
    p[1] = (port){
        .name = "v", .role = PORT_IN, .width = k->width, .rows = two_rows, .values = {.amplitude = k->amplitude}};
    return 2;
}

static cf_err euler_call(const op_run *run)
{
    float dt[SUITE_SEQS_MAX];
    tensor x = run->t[0];
    for (int32_t b = 0; b < run->seqs; b++)
        dt[b] = (float)run->aux[b] / 1000.0f;
    return op_cfg_euler(run->be, &(op_cfg_euler_args){.x = &x, .v = &run->t[1], .rows = &run->rows[0], .dt = dt});
}

static void euler_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[0].dims[1];
    for (int32_t b = 0; b < run->seqs; b++) {
        const int64_t first = run->rows[0].offs[b] * width, values = rows_length(&run->rows[0], b) * width;
        for (int64_t i = 0; i < values; i++) {
            const double with = value_at(&run->t[1], 2 * first + i);
            const double without = value_at(&run->t[1], 2 * first + values + i);
            const float v = (float)((double)(float)((double)1.7f * with) - (double)(float)((double)0.7f * without));
            const float step = (float)((double)((float)run->aux[b] / 1000.0f) * (double)v);
            ret[0][first + i] = value_at(&run->t[0], first + i) + (double)step;
        }
    }
}

/* step_rows: tokens, past, ids, pos; past changes. aux: 1 makes a sequence's rows inert */

static const index_case step_cases[] = {
    {.head = {"one row", SEQS(1), .bound = COPY}},
    {.head = {"inert alone", SEQS(2), AUX(1), .bound = COPY}},
    {.head = {"inert among others", SEQS(3, 0, 5, 7), AUX(1, 0, 0, 1), .bound = COPY}},
    {.head = {"over a block", SEQS(256, 31, 300), AUX(0, 1, 0), .bound = COPY}},
};

static int32_t step_ports(const suite_case *c, port *p)
{
    (void)c;
    const dist ids = {DIST_IDS, 0, SPEECH_CODES};
    p[0] = (port){.name = "tokens", .role = PORT_IN, .type = DTYPE_I32, .width = 1, .values = ids};
    p[1] = (port){.name = "past", .role = PORT_INOUT, .type = DTYPE_I32, .width = 1, .values = ids};
    p[2] = (port){.name = "ids", .role = PORT_OUT, .type = DTYPE_I32, .width = 1};
    p[3] = (port){.name = "pos", .role = PORT_OUT, .type = DTYPE_I32, .width = 1};
    return 4;
}

/* Slot of row t of sequence b: backwards in the sequence. */
static int32_t step_slot(const op_run *run, int32_t b, int32_t t)
{
    return run->aux[b] ? -1 : run->rows[0].offs[b + 1] - 1 - t;
}

static cf_err step_call(const op_run *run)
{
    const int64_t rows = run->t[0].dims[0];
    int32_t slots[1024];
    tensor on_device, past = flat(&run->t[1]), ids = flat(&run->t[2]), pos = flat(&run->t[3]);
    const tensor tokens = flat(&run->t[0]);
    for (int32_t b = 0; b < run->seqs; b++)
        for (int32_t t = 0; t < run->lengths[b]; t++)
            slots[run->rows[0].offs[b] + t] = step_slot(run, b, t);
    assert_ok(backend_take(run->be, DTYPE_I32, 1, &rows, &on_device));
    assert_ok(backend_upload(run->be, slots, &on_device));
    return op_step_rows(
        run->be, &(op_step_rows_args){.slots = &on_device, .tokens = &tokens, .past = &past, .ids = &ids, .pos = &pos});
}

static void step_direct(const op_run *run, double *const *ret)
{
    for (int32_t b = 0; b < run->seqs; b++)
        for (int32_t t = 0; t < run->lengths[b]; t++) {
            const int32_t row = run->rows[0].offs[b] + t, slot = step_slot(run, b, t);
            ret[1][row] = value_at(&run->t[1], row) + (slot < 0 ? 0.0 : 1.0);
            ret[2][row] = slot < 0 ? -1.0 : value_at(&run->t[0], slot);
            ret[3][row] = slot < 0 ? 0.0 : value_at(&run->t[1], slot);
        }
}

/* reflect_first: x, y */

static const index_case reflect_cases[] = {
    {.head = {"two rows", SEQS(2), .bound = COPY}, .width = 1},
    {.head = {"odd lengths", SEQS(3, 2, 11), .bound = COPY}, .width = 7},
    {.head = {"vocoder", SEQS(120, 240), .bound = COPY}, .width = 64},
    {.head = {"wide", SEQS(2, 5, 3), .bound = COPY}, .width = 513},
};

static int64_t one_more(const suite_case *c, int32_t seq)
{
    return (int64_t)c->lengths[seq] + 1;
}

static int32_t reflect_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = index_of(c)->width};
    p[1] = (port){.name = "y", .role = PORT_OUT, .width = index_of(c)->width, .rows = one_more};
    return 2;
}

static cf_err reflect_call(const op_run *run)
{
    tensor y = run->t[1];
    return op_reflect_first(
        run->be,
        &(op_reflect_first_args){.x = &run->t[0], .rows_in = &run->rows[0], .y = &y, .rows_out = &run->rows[1]});
}

static void reflect_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[0].dims[1];
    for (int32_t b = 0; b < run->seqs; b++)
        for (int64_t i = 0; i < rows_length(&run->rows[1], b) * width; i++) {
            const int64_t row = i / width == 0 ? 1 : i / width - 1;
            ret[1][run->rows[1].offs[b] * width + i] =
                value_at(&run->t[0], (run->rows[0].offs[b] + row) * width + i % width);
        }
}

const op_driver index_drivers[] = {
    {.op = OP_embedding,
     DRIVER_CASES(embedding_cases),
     .ports = embedding_ports,
     .call = embedding_call,
     .direct = embedding_direct,
     .direct_bound = COPY},
    {.op = OP_dit_input,
     DRIVER_CASES(dit_cases),
     .ports = dit_ports,
     .call = dit_call,
     .direct = dit_direct,
     .direct_bound = COPY},
    {.op = OP_cfg_euler,
     DRIVER_CASES(euler_cases),
     .ports = euler_ports,
     .call = euler_call,
     .direct = euler_direct,
     .direct_bound = EULER},
    {.op = OP_step_rows,
     DRIVER_CASES(step_cases),
     .ports = step_ports,
     .call = step_call,
     .direct = step_direct,
     .direct_bound = COPY},
    {.op = OP_reflect_first,
     DRIVER_CASES(reflect_cases),
     .ports = reflect_ports,
     .call = reflect_call,
     .direct = reflect_direct,
     .direct_bound = COPY},
    {.cases = NULL},
};
