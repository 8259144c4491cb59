/*
 * suite.c - machinery of the op suite: draws inputs, runs a batch on a backend between guards, compares. Test code.
 *
 * Every tensor lies between two guards of NaN, and results begin as NaN: what an op reads outside its inputs or forgets
 * to write shows up as NaN, what it writes outside as a broken guard. All through backend.h, so that memory may be a
 * device's. Owns nothing. Fails: through cmocka.
 */
#include "tests/ops/suite.h"

#include <math.h>
#include <string.h>

#include "common/base/rng.h"

#define GUARD_VALUES 64
#define BF16_STEP    0x1p-7      /* between neighbours: a value near a tie may be rounded either way */
#define GUARD_F32    0x7FC5A5A5u /* a quiet NaN that no arithmetic makes */
#define GUARD_BF16   0x7FC5u
#define GUARD_F64    0x7FF8A5A5A5A5A5A5u

bool port_written(const port *p)
{
    return p->role == PORT_OUT || p->role == PORT_INOUT;
}

bool port_per_sequence(const port *p)
{
    return p->role != PORT_TABLE && p->role != PORT_WEIGHT;
}

static uint64_t key_of(const op_driver *d, const suite_case *c)
{
    uint64_t key = 0xCBF29CE484222325u; /* FNV-1a */
    for (const char *p = op_name(d->op); *p; p++)
        key = (key ^ (unsigned char)*p) * 0x100000001B3u;
    for (const char *p = c->name; *p; p++)
        key = (key ^ (unsigned char)*p) * 0x100000001B3u;
    return key;
}

static double special(int64_t i)
{
    static const float values[] = {0.0f,   -0.0f,  1e-45f, -1e-45f, 1e-38f,  -1e-38f, 1e-7f,  -1e-7f,  0.01f,
                                   -0.01f, 0.624f, 0.626f, -0.624f, -0.626f, 1.0f,    -1.0f,  5.0f,    -5.0f,
                                   9.9f,   -9.9f,  19.99f, 20.01f,  -20.0f,  43.9f,   -43.9f, 87.0f,   -87.0f,
                                   88.5f,  -88.5f, 88.8f,  -88.8f,  103.0f,  -103.0f, 104.5f, -104.5f, 1e3f,
                                   -1e3f,  1e10f,  -1e10f, 3e38f,   -3e38f};
    return (double)values[(size_t)i % (sizeof values / sizeof values[0])];
}

double operand_value(float x, bool bf16)
{
    uint32_t bits;
    if (!bf16 || !isfinite(x))
        return (double)x;
    memcpy(&bits, &x, sizeof bits);
    const int biased = (int)(bits >> 23 & 0xFF);
    /* x + grid keeps multiples of 2^(e - 7), e being the exponent of x; denormals share one grid. */
    const double grid = ldexp(1.5, (biased > 0 ? biased : 1) - 127 - 7 + 52);
    return (double)(float)((double)x + grid - grid);
}

static double outlier(uint64_t key, uint32_t port_idx, int64_t column)
{
    const double t = 2.0 * (double)rng_uniform(key, port_idx, (uint32_t)column, 0xFFFFFFFFu) - 1.0;
    return pow(t, 9.0);
}

/* Value i of a sequence, from a uniform u. */
static double shape_value(const port *p, uint64_t key, uint32_t port_idx, int64_t i, double u)
{
    const double amplitude = p->values.amplitude == 0.0 ? 1.0 : p->values.amplitude;
    const int64_t row = i / p->width, column = i % p->width;
    const double angle = (double)row * pow(10000.0, -(double)column / 32.0);

    switch (p->values.kind) {
    case DIST_UNIFORM:
        return p->values.centre + (2.0 * u - 1.0) * amplitude;
    case DIST_OUTLIERS:
        return 3.0 * (2.0 * u - 1.0) + amplitude * outlier(key, port_idx, column);
    case DIST_SPECIALS:
        return special(i);
    case DIST_IDS:
        return p->values.centre + floor(u * amplitude);
    case DIST_HZ:
        return u < 1.0 / 3.0 ? 30.0 * u : 60.0 + (u - 1.0 / 3.0) * 570.0;
    case DIST_COS:
        return cos(angle);
    case DIST_SIN:
        return sin(angle);
    }
    fail_msg("unknown distribution %d", (int)p->values.kind);
    return 0.0;
}

static void put_value(dtype type, void *data, int64_t i, double v)
{
    if (type == DTYPE_F64)
        ((double *)data)[i] = v;
    else if (type == DTYPE_I32)
        ((int32_t *)data)[i] = (int32_t)v;
    else if (type == DTYPE_BF16)
        ((uint16_t *)data)[i] = bf16_from_f32((float)v);
    else
        ((float *)data)[i] = (float)v;
}

static double get_value(dtype type, const void *data, int64_t i)
{
    if (type == DTYPE_F64)
        return ((const double *)data)[i];
    if (type == DTYPE_BF16)
        return (double)f32_from_bf16(((const uint16_t *)data)[i]);
    return type == DTYPE_I32 ? ((const int32_t *)data)[i] : (double)((const float *)data)[i];
}

static void *take(arena *memory, size_t bytes)
{
    void *ptr = NULL;
    assert_ok(arena_take(memory, bytes, &ptr));
    return ptr;
}

static unsigned char *port_value(const suite_data *s, int p, void *data, int64_t row)
{
    return (unsigned char *)data + (size_t)(row * s->ports[p].width) * dtype_bytes(s->ports[p].type);
}

static void draw_values(const suite_data *s, int p, uint32_t seq, int64_t first_row, int64_t rows)
{
    const port *q = &s->ports[p];
    const uint64_t key = key_of(s->d, s->c);
    void *to = port_value(s, p, s->host[p], first_row);
    uint32_t words[4];

    for (int64_t i = 0; i < rows * q->width; i++) {
        if (i % 4 == 0)
            rng_philox(key, (const uint32_t[]){(uint32_t)(i / 4), (uint32_t)p, seq, 0}, words);
        put_value(q->type, to, i, shape_value(q, key, (uint32_t)p, i, (double)(words[i % 4] >> 8) * 0x1p-24));
    }
}

static void draw_port(suite_data *s, int p)
{
    const port *q = &s->ports[p];
    const int32_t parts = port_per_sequence(q) ? s->c->seqs : 1;

    for (int32_t b = 0; b < parts; b++) {
        int64_t rows = q->table_rows;
        if (port_per_sequence(q))
            rows = q->rows ? q->rows(s->c, b) : s->c->lengths[b];
        s->first_row[p][b + 1] = s->first_row[p][b] + rows;
    }
    if (q->role == PORT_OUT)
        return;
    s->host[p] = take(s->memory, (size_t)(s->first_row[p][parts] * q->width) * dtype_bytes(q->type));
    for (int32_t b = 0; b < parts; b++)
        draw_values(s, p, (uint32_t)b, s->first_row[p][b], s->first_row[p][b + 1] - s->first_row[p][b]);
}

void suite_draw(const op_driver *d, const suite_case *c, arena *memory, suite_data *ret_data)
{
    suite_data s = {.d = d, .c = c, .memory = memory};
    s.port_count = d->ports(c, s.ports);
    for (int p = 0; p < s.port_count; p++)
        draw_port(&s, p);
    for (int32_t b = 0; d->edit && b < c->seqs; b++) {
        void *data[SUITE_PORTS_MAX] = {0};
        for (int p = 0; p < s.port_count; p++)
            if (s.host[p] && port_per_sequence(&s.ports[p]))
                data[p] = port_value(&s, p, s.host[p], s.first_row[p][b]);
        d->edit(c, b, data);
    }
    *ret_data = s;
}

suite_result suite_result_new(const suite_data *s, bool wide)
{
    suite_result r = {.wide = wide};
    for (int p = 0; p < s->port_count; p++)
        if (port_written(&s->ports[p])) {
            const size_t count = (size_t)(s->first_row[p][s->c->seqs] * s->ports[p].width);
            r.values[p] = take(s->memory, count * (wide ? sizeof(double) : dtype_bytes(s->ports[p].type)));
        }
    return r;
}

/* A tensor on the backend with guards, and what it held when the op was called. */
typedef struct held_port {
    tensor whole; /* [guard, values, guard] */
    unsigned char *before;
    size_t bytes; /* of before */
} held_port;

static void fill_guard(dtype type, void *data, int64_t count)
{
    const uint32_t narrow = GUARD_F32;
    const uint64_t wide = GUARD_F64;
    for (int64_t i = 0; i < count; i++) {
        if (type == DTYPE_F64)
            memcpy((unsigned char *)data + (size_t)i * sizeof wide, &wide, sizeof wide);
        else if (type == DTYPE_BF16)
            ((uint16_t *)data)[i] = GUARD_BF16;
        else
            memcpy((unsigned char *)data + (size_t)i * sizeof narrow, &narrow, sizeof narrow);
    }
}

/* Gathers the chosen sequences of an input behind the first guard. */
static void gather_sequences(const suite_data *s, int p, const int32_t *seqs, int32_t count, unsigned char *to)
{
    const bool whole = !port_per_sequence(&s->ports[p]);
    for (int32_t i = 0; i < (whole ? 1 : count); i++) {
        const int32_t b = whole ? 0 : seqs[i];
        const unsigned char *from = port_value(s, p, s->host[p], s->first_row[p][b]);
        const size_t bytes = (size_t)(port_value(s, p, s->host[p], s->first_row[p][b + 1]) - from);
        memcpy(to, from, bytes);
        to += bytes;
    }
}

static int64_t rows_of_run(const suite_data *s, int p, const int32_t *seqs, int32_t count, op_run *run)
{
    int32_t lengths[SUITE_SEQS_MAX];
    if (!port_per_sequence(&s->ports[p]))
        return s->ports[p].table_rows;
    for (int32_t i = 0; i < count; i++)
        lengths[i] = (int32_t)(s->first_row[p][seqs[i] + 1] - s->first_row[p][seqs[i]]);
    assert_ok(backend_rows(run->be, lengths, count, &run->rows[p]));
    return rows_total(&run->rows[p]);
}

static void place_port(const suite_data *s, int p, const int32_t *seqs, int32_t count, op_run *run, held_port *held)
{
    const port *q = &s->ports[p];
    const int64_t rows = rows_of_run(s, p, seqs, count, run), values = rows * q->width;
    const int64_t all = values + 2 * GUARD_VALUES;

    if (q->role == PORT_OUT && s->c->in_place) {
        run->t[p] = run->t[s->c->in_place - 1];
        return;
    }
    held->bytes = (size_t)all * dtype_bytes(q->type);
    held->before = take(s->memory, held->bytes);
    fill_guard(q->type, held->before, all);
    if (s->host[p])
        gather_sequences(s, p, seqs, count, held->before + GUARD_VALUES * dtype_bytes(q->type));
    assert_ok(backend_take(run->be, q->type, 1, &all, &held->whole));
    assert_ok(backend_upload(run->be, held->before, &held->whole));
    run->t[p] = tensor_rows(&held->whole, GUARD_VALUES, values);
    run->t[p] = tensor_2d(run->t[p].data, q->type, rows, q->width);
}

static void check_held(const suite_data *s, int p, const held_port *held, const unsigned char *after)
{
    const size_t guard = GUARD_VALUES * dtype_bytes(s->ports[p].type);
    const bool changes = port_written(&s->ports[p]) || s->c->in_place == p + 1;

    if (memcmp(after, held->before, guard) != 0)
        fail_msg("%s/%s: wrote in front of %s", op_name(s->d->op), s->c->name, s->ports[p].name);
    if (memcmp(after + held->bytes - guard, held->before + held->bytes - guard, guard) != 0)
        fail_msg("%s/%s: wrote behind %s", op_name(s->d->op), s->c->name, s->ports[p].name);
    if (!changes && memcmp(after, held->before, held->bytes) != 0)
        fail_msg("%s/%s: changed its input %s", op_name(s->d->op), s->c->name, s->ports[p].name);
}

static void scatter_sequences(const suite_data *s, int p, const int32_t *seqs, int32_t count, const unsigned char *from,
                              suite_result *ret)
{
    for (int32_t i = 0; i < count; i++) {
        unsigned char *to = port_value(s, p, ret->values[p], s->first_row[p][seqs[i]]);
        const size_t bytes = (size_t)(port_value(s, p, ret->values[p], s->first_row[p][seqs[i] + 1]) - to);
        memcpy(to, from, bytes);
        from += bytes;
    }
}

static void collect_port(const suite_data *s, int p, const int32_t *seqs, int32_t count, const op_run *run,
                         const held_port *held, suite_result *ret)
{
    unsigned char *after;

    if (held->before) {
        after = take(s->memory, held->bytes);
        assert_ok(backend_download(run->be, &held->whole, after));
        check_held(s, p, held, after);
        after += GUARD_VALUES * dtype_bytes(s->ports[p].type);
    } else {
        after = take(s->memory, tensor_bytes(&run->t[p]));
        assert_ok(backend_download(run->be, &run->t[p], after));
    }
    if (port_written(&s->ports[p]))
        scatter_sequences(s, p, seqs, count, after, ret);
}

void suite_run(const suite_data *s, backend *be, const weight *w, const int32_t *seqs, int32_t count, suite_result *ret)
{
    const size_t host_mark = arena_mark(s->memory), mark = backend_scratch_mark(be);
    op_run run = {.c = s->c, .be = be, .w = w, .seqs = count};
    held_port held[SUITE_PORTS_MAX] = {0};

    for (int32_t i = 0; i < count; i++) {
        run.lengths[i] = s->c->lengths[seqs[i]];
        run.aux[i] = s->c->aux[seqs[i]];
    }
    for (int p = 0; p < s->port_count; p++)
        if (s->ports[p].role != PORT_WEIGHT)
            place_port(s, p, seqs, count, &run, &held[p]);
    assert_ok(s->d->call(&run));
    assert_ok(backend_sync(be));
    for (int p = 0; p < s->port_count; p++)
        if (s->ports[p].role != PORT_WEIGHT)
            collect_port(s, p, seqs, count, &run, &held[p], ret);
    backend_scratch_reset(be, mark);
    arena_reset(s->memory, host_mark);
}

void suite_run_direct(const suite_data *s, suite_result *ret)
{
    op_run run = {.c = s->c, .seqs = s->c->seqs};
    int32_t offs[SUITE_PORTS_MAX][SUITE_SEQS_MAX + 1];
    double *out[SUITE_PORTS_MAX];

    memcpy(run.lengths, s->c->lengths, sizeof run.lengths);
    memcpy(run.aux, s->c->aux, sizeof run.aux);
    for (int p = 0; p < s->port_count; p++) {
        const port *q = &s->ports[p];
        const bool per_sequence = port_per_sequence(q);
        for (int32_t b = 0; b <= s->c->seqs; b++)
            offs[p][b] = (int32_t)s->first_row[p][b];
        if (per_sequence)
            run.rows[p] = (op_rows){.count = s->c->seqs, .offs = offs[p]};
        run.t[p] = tensor_2d(s->host[p], q->type, s->first_row[p][per_sequence ? s->c->seqs : 1], q->width);
        out[p] = ret->values[p];
    }
    s->d->direct(&run, out);
}

/* A sequence in the middle of the batch that has rows. */
static int32_t poisoned_sequence(const suite_data *s, int p)
{
    for (int32_t k = 0; k < s->c->seqs; k++) {
        const int32_t b = (s->c->seqs / 2 + k) % s->c->seqs;
        if (s->first_row[p][b + 1] > s->first_row[p][b])
            return b;
    }
    return -1;
}

int32_t suite_poisons(const suite_data *s, poison *ret_poisons)
{
    static const double kinds[] = {NAN, INFINITY, -INFINITY};
    int32_t count = 0;

    for (int p = 0; p < s->port_count; p++) {
        const port *q = &s->ports[p];
        if (q->role == PORT_OUT || q->role == PORT_WEIGHT || q->type == DTYPE_I32)
            continue;
        const bool table = q->role == PORT_TABLE;
        const int32_t b = table ? 0 : poisoned_sequence(s, p);
        const int full = s->d->poisons ? s->d->poisons : 3, wanted = table || s->c->heavy ? 1 : full;
        for (int k = 0; b >= 0 && k < wanted; k++) {
            const int64_t rows = s->first_row[p][b + 1] - s->first_row[p][b];
            const int64_t row = s->first_row[p][b] + (table ? 0 : rows - 1 - k % rows);
            assert_true(count < SUITE_POISONS_MAX);
            ret_poisons[count++] = (poison){.port = p,
                                            .seq = table ? -1 : b,
                                            .value_idx = row * q->width + (2 * k + 1) * q->width / (2 * wanted),
                                            .value = kinds[k % 3]};
        }
    }
    return count;
}

double suite_swap(const suite_data *s, const poison *p, double value)
{
    const double before = get_value(s->ports[p->port].type, s->host[p->port], p->value_idx);
    put_value(s->ports[p->port].type, s->host[p->port], p->value_idx, value);
    return before;
}

/* Value i of a result, rounded to the port's type. */
static double result_value(const suite_data *s, const suite_result *r, int p, int64_t i)
{
    if (!r->wide)
        return get_value(s->ports[p].type, r->values[p], i);
    const double v = ((const double *)r->values[p])[i];
    if (s->ports[p].type == DTYPE_BF16)
        return (double)f32_from_bf16(bf16_from_f32((float)v));
    return s->ports[p].type == DTYPE_F32 ? (double)(float)v : v;
}

static double row_scale(const suite_data *s, const suite_result *want, int p, int64_t row)
{
    double scale = 0.0;
    for (int64_t i = row * s->ports[p].width; i < (row + 1) * s->ports[p].width; i++) {
        const double v = fabs(result_value(s, want, p, i));
        scale = isfinite(v) && v > scale ? v : scale;
    }
    return scale;
}

/* |got - want| as a part of what is allowed; infinite where one is NaN or infinite and the other differs. */
static double misfit(double got, double want, double allowed, bool nonfinite_alike)
{
    if (nonfinite_alike && !isfinite(got) && !isfinite(want))
        return 0.0;
    if (isnan(want) || isnan(got))
        return isnan(want) && isnan(got) ? 0.0 : INFINITY;
    if (isinf(want) || isinf(got))
        return got == want ? 0.0 : INFINITY;
    const double off = fabs(got - want);
    if (allowed > 0.0)
        return off / allowed;
    return off > 0.0 || signbit(got) != signbit(want) ? INFINITY : 0.0;
}

static double near_port(const suite_data *s, int p, const bound *b, const suite_result *got, const suite_result *want,
                        const char *what)
{
    const int64_t width = s->ports[p].width, rows = s->first_row[p][s->c->seqs];
    const bool exact = s->ports[p].exact;
    double worst = 0.0;

    for (int64_t r = 0; r < rows; r++) {
        const double scale = b->row > 0.0 && !exact ? b->row * row_scale(s, want, p, r) : 0.0;
        for (int64_t i = r * width; i < (r + 1) * width; i++) {
            const double g = result_value(s, got, p, i), w = result_value(s, want, p, i);
            const double step = s->ports[p].type == DTYPE_BF16 ? BF16_STEP : 0.0;
            const double allowed = exact ? 0.0 : (b->elem + step) * fabs(w) + scale + b->floor;
            const double part = b->nan_spreads && isnan(g) ? 0.0 : misfit(g, w, allowed, b->nonfinite_alike);
            if (part > 1.0)
                fail_msg("%s/%s: %s: %s row %lld column %lld: got %.9g, want %.9g +- %.3g (%s)", op_name(s->d->op),
                         s->c->name, what, s->ports[p].name, (long long)r, (long long)(i % width), g, w, allowed,
                         b->why ? b->why : "the same bits");
            worst = part > worst ? part : worst;
        }
    }
    return worst;
}

double suite_near(const suite_data *s, const bound *b, const suite_result *got, const suite_result *want,
                  const char *what)
{
    double worst = 0.0;
    for (int p = 0; p < s->port_count; p++)
        if (port_written(&s->ports[p]))
            worst = fmax(worst, near_port(s, p, b, got, want, what));
    return worst;
}

void suite_same(const suite_data *s, const suite_result *got, const suite_result *want, int32_t seq, const char *what)
{
    for (int p = 0; p < s->port_count; p++) {
        if (!port_written(&s->ports[p]))
            continue;
        const int64_t first = s->first_row[p][seq < 0 ? 0 : seq],
                      last = s->first_row[p][seq < 0 ? s->c->seqs : seq + 1];
        const unsigned char *a = port_value(s, p, got->values[p], first), *b = port_value(s, p, want->values[p], first);
        const size_t bytes = (size_t)(port_value(s, p, got->values[p], last) - a);
        size_t at = 0;
        while (at < bytes && a[at] == b[at])
            at++;
        if (at == bytes)
            continue;
        const int64_t i = (int64_t)(at / dtype_bytes(s->ports[p].type)) + first * s->ports[p].width;
        fail_msg("%s/%s: %s: %s row %lld column %lld: %.9g, was %.9g", op_name(s->d->op), s->c->name, what,
                 s->ports[p].name, (long long)(i / s->ports[p].width), (long long)(i % s->ports[p].width),
                 result_value(s, got, p, i), result_value(s, want, p, i));
    }
}
