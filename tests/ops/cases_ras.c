/*
 * cases_ras.c - cases of repetition-aware sampling: ras. Test code.
 *
 * The direct computation sorts all ids and sums from the first on; ops.h and llm.md 7 say the rest. aux: 1 makes a
 * sequence's rows inert.
 */
#include "tests/ops/suite.h"

#include <math.h>
#include <stdlib.h>

#include "common/base/limits.h"
#include "common/base/rng.h"

/* A uniform would have to fall within 1e-7 of a boundary for the two to differ. */
#define DRAWN                     \
    {                             \
        .why = "ids: no rounding" \
    }

typedef enum ras_logits {
    LOGITS_PLAIN,  /* +- amplitude */
    LOGITS_LEVELS, /* of four values: ties everywhere */
    LOGITS_FIVE,   /* five alike, the rest nothing: four of them are 0.8 exactly, and the nucleus */
    LOGITS_STOP,   /* control ids far above */
    LOGITS_SILENT  /* one silent code has all */
} ras_logits;

typedef enum ras_before { BEFORE_NOTHING, BEFORE_LIKELY, BEFORE_SILENT } ras_before;

typedef struct ras_case {
    suite_case head;
    int32_t codes;
    ras_logits logits;
    double amplitude;
    ras_before before; /* in the window */
    int32_t count, min_tokens, mask;
} ras_case;

static const ras_case *ras_of(const suite_case *c)
{
    return (const ras_case *)(const void *)c;
}

static const ras_case ras_cases[] = {
    {.head = {"one row, two codes", SEQS(1), .bound = DRAWN}, .codes = 2, .amplitude = 1},
    {.head = {"odd lengths, inert ones", SEQS(3, 0, 7, 1), AUX(0, 0, 1, 0), .bound = DRAWN},
     .codes = 57,
     .amplitude = 4},
    {.head = {"an id more than pieces", SEQS(9), .bound = DRAWN}, .codes = 57, .amplitude = 9, .count = 3},
    {.head = {"vocabulary, peaks", SEQS(4, 1, 3), AUX(0, 1, 0), .bound = DRAWN},
     .codes = SPEECH_CODES,
     .amplitude = 20},
    {.head = {"vocabulary, flat: 25 ids", SEQS(12), .bound = DRAWN}, .codes = SPEECH_CODES, .amplitude = 0.1},
    {.head = {"ties", SEQS(16), .bound = DRAWN}, .codes = 900, .logits = LOGITS_LEVELS},
    {.head = {"ties, seen before", SEQS(16), .bound = DRAWN},
     .codes = 900,
     .logits = LOGITS_LEVELS,
     .before = BEFORE_LIKELY,
     .count = 10},
    {.head = {"top-p is reached exactly", SEQS(16), .bound = DRAWN}, .codes = 700, .logits = LOGITS_FIVE},
    {.head = {"seen before: from all ids", SEQS(10, 3), .bound = DRAWN},
     .codes = SPEECH_CODES,
     .amplitude = 12,
     .before = BEFORE_LIKELY,
     .count = 25},
    {.head = {"a silent code again", SEQS(8), .bound = DRAWN},
     .codes = SPEECH_CODES,
     .logits = LOGITS_SILENT,
     .before = BEFORE_SILENT,
     .count = 11},
    {.head = {"stop", SEQS(6), .bound = DRAWN}, .codes = 300, .logits = LOGITS_STOP, .count = 8, .min_tokens = 8},
    {.head = {"no stop below the minimum", SEQS(6), .bound = DRAWN},
     .codes = 300,
     .logits = LOGITS_STOP,
     .count = 7,
     .min_tokens = 8,
     .mask = RAS_MASK_STOP},
    {.head = {"no sos below the minimum", SEQS(6), .bound = DRAWN},
     .codes = 300,
     .logits = LOGITS_STOP,
     .min_tokens = 1,
     .mask = RAS_MASK_SOS},
};

enum { LOGITS, STATES, TOKENS, IDS };

static int32_t ras_ports(const suite_case *c, port *p)
{
    const ras_case *k = ras_of(c);
    p[LOGITS] = (port){
        .name = "logits", .role = PORT_IN, .width = k->codes + SPEECH_CONTROLS, .values = {.amplitude = k->amplitude}};
    p[STATES] = (port){.name = "states",
                       .role = PORT_INOUT,
                       .type = DTYPE_I32,
                       .width = RAS_STATE_WORDS,
                       .values = {DIST_IDS, 0, 1 << 30}};
    p[TOKENS] = (port){.name = "tokens", .role = PORT_INOUT, .type = DTYPE_I32, .width = 1, .values = {DIST_IDS, 0, 9}};
    p[IDS] = (port){.name = "ids", .role = PORT_OUT, .type = DTYPE_I32, .width = 1};
    return 4;
}

static const int32_t silent[] = {SPEECH_SILENT};

static float edited_logit(const ras_case *k, int32_t id, float drawn)
{
    switch (k->logits) {
    case LOGITS_PLAIN:
        return drawn;
    case LOGITS_LEVELS:
        return floorf(2.0f * drawn);
    case LOGITS_FIVE:
        return id % 150 == 7 ? 1.0f : -300.0f; /* 7, 157, 307, 457, 607 and, a control id, 757 */
    case LOGITS_STOP:
        return id == k->codes ? drawn + 50.0f : id > k->codes ? drawn + 40.0f : drawn;
    case LOGITS_SILENT:
        return id == silent[5] ? 30.0f : drawn;
    }
    return drawn;
}

/* Ids with the largest logits into a window. */
static void fill_window(const ras_case *k, const float *logits, int32_t *window)
{
    for (int32_t i = 0; i < RAS_WINDOW_TOKENS; i++)
        window[i] = k->before == BEFORE_SILENT ? silent[i] : -1;
    for (int32_t i = 0; k->before == BEFORE_LIKELY && i < RAS_WINDOW_TOKENS; i++) {
        int32_t best = -1;
        for (int32_t id = 0; id < k->codes; id++) {
            bool taken = false;
            for (int32_t j = 0; j < i; j++)
                taken |= window[j] == id;
            if (!taken && (best < 0 || logits[id] > logits[best]))
                best = id;
        }
        window[i] = best;
    }
}

/* Line of the states that belongs to row t of a sequence: not the row's own number. */
static int64_t line_of_row(int64_t length, int64_t t)
{
    return length - 1 - t;
}

static void ras_edit(const suite_case *c, int32_t seq, void **data)
{
    const ras_case *k = ras_of(c);
    const int32_t width = k->codes + SPEECH_CONTROLS;
    for (int64_t t = 0; t < c->lengths[seq]; t++) {
        float *logits = (float *)data[LOGITS] + t * width;
        int32_t *state = (int32_t *)data[STATES] + line_of_row(c->lengths[seq], t) * RAS_STATE_WORDS;
        for (int32_t id = 0; id < width; id++)
            logits[id] = edited_logit(k, id, logits[id]);
        if (k->logits == LOGITS_FIVE)
            logits[757] = -300.0f;
        state[RAS_COUNT] = k->count;
        state[RAS_MIN_TOKENS] = k->min_tokens;
        state[RAS_MASK] = k->mask;
        fill_window(k, logits, state + RAS_WINDOW);
    }
}

static cf_err ras_call(const op_run *run)
{
    const int64_t rows = run->t[LOGITS].dims[0];
    int32_t slots[64];
    tensor on_device, states = run->t[STATES], tokens = flat(&run->t[TOKENS]), ids = flat(&run->t[IDS]);
    assert_true(rows <= 64);
    for (int32_t b = 0; b < run->seqs; b++)
        for (int32_t t = 0; t < run->lengths[b]; t++) {
            const int32_t first = run->rows[LOGITS].offs[b];
            slots[first + t] = run->aux[b] ? -1 - t : first + (int32_t)line_of_row(run->lengths[b], t);
        }
    assert_ok(backend_take(run->be, DTYPE_I32, 1, &rows, &on_device));
    assert_ok(backend_upload(run->be, slots, &on_device));
    return op_ras(
        run->be,
        &(op_ras_args){
            .logits = &run->t[LOGITS], .slots = &on_device, .states = &states, .tokens = &tokens, .ids = &ids});
}

typedef struct candidate {
    float p;
    int32_t id;
} candidate;

static int by_p(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p) - (x->p > y->p) : (x->id > y->id) - (x->id < y->id);
}

/* Probabilities of ids in their order; excluded ids have none. */
static void softmax_direct(const float *logits, int32_t codes, int32_t mask, int32_t excluded, candidate *ret)
{
    const int32_t count = codes + SPEECH_CONTROLS;
    double top = -INFINITY, total = 0;
    for (int32_t pass = 0; pass < 2; pass++)
        for (int32_t id = 0; id < count; id++) {
            const bool closed =
                id == excluded || (id >= codes && mask == RAS_MASK_STOP) || (id == codes && mask == RAS_MASK_SOS);
            if (pass == 0)
                top = closed ? top : fmax(top, (double)logits[id]);
            else
                ret[id] = (candidate){closed ? 0.0f : (float)exp((double)logits[id] - top), id};
        }
    for (int32_t id = 0; id < count; id++)
        total += (double)ret[id].p;
    for (int32_t id = 0; id < count; id++)
        ret[id].p /= (float)total;
}

static int32_t draw_direct(const candidate *from, int32_t count, float uniform)
{
    double total = 0, sum = 0;
    for (int32_t i = 0; i < count; i++)
        total += (double)from[i].p;
    for (int32_t i = 0; i < count; i++) {
        sum += (double)from[i].p;
        if (sum > (double)uniform * total)
            return from[i].id;
    }
    fail_msg("nothing is drawn at %g of %g", (double)uniform, total);
    return -1;
}

static int32_t sample_direct(const float *logits, int32_t codes, const double *state)
{
    static candidate all[SPEECH_ROWS];
    const uint64_t seed = (uint64_t)state[RAS_SEED_HIGH] << 32 | (uint64_t)state[RAS_SEED_LOW];
    const uint32_t segment = (uint32_t)state[RAS_SEGMENT], position = (uint32_t)state[RAS_COUNT];
    const int32_t mask = state[RAS_COUNT] < state[RAS_MIN_TOKENS] ? (int32_t)state[RAS_MASK] : RAS_MASK_NONE;
    const int32_t count = codes + SPEECH_CONTROLS;
    for (int32_t id = 0; id < count; id++)
        if (!isfinite(logits[id]))
            return RAS_REFUSED(id);
    softmax_direct(logits, codes, mask, -1, all);
    qsort(all, (size_t)count, sizeof all[0], by_p);
    float sum = 0;
    int32_t taken = 0;
    while (taken < RAS_TOP_K && sum < RAS_TOP_P)
        sum += all[taken++].p;
    const int32_t id = draw_direct(all, taken, rng_uniform(seed, segment, position, RAS_DRAW_NUCLEUS));
    bool seen = false;
    for (int32_t i = 0; i < RAS_WINDOW_TOKENS; i++)
        seen |= state[RAS_WINDOW + i] == (double)id;
    if (!seen)
        return id;
    softmax_direct(logits, codes, mask, id, all);
    return draw_direct(all, count, rng_uniform(seed, segment, position, RAS_DRAW_FALLBACK));
}

static void ras_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[LOGITS].dims[1];
    const int32_t codes = (int32_t)width - SPEECH_CONTROLS;
    for (int64_t i = 0; i < tensor_count(&run->t[STATES]); i++)
        ret[STATES][i] = value_at(&run->t[STATES], i);
    for (int64_t i = 0; i < tensor_count(&run->t[TOKENS]); i++)
        ret[TOKENS][i] = value_at(&run->t[TOKENS], i);
    for (int32_t b = 0; b < run->seqs; b++)
        for (int64_t t = 0; t < run->lengths[b]; t++) {
            const int64_t first = run->rows[LOGITS].offs[b], line = first + line_of_row(run->lengths[b], t);
            double *state = ret[STATES] + line * RAS_STATE_WORDS;
            int32_t id = RAS_INERT;
            if (!run->aux[b])
                id = sample_direct(tensor_f32(&run->t[LOGITS]) + (first + t) * width, codes, state);
            ret[IDS][first + t] = id;
            if (id < 0 || id >= codes)
                continue;
            ret[TOKENS][line] = id;
            state[RAS_WINDOW + (int)state[RAS_COUNT] % RAS_WINDOW_TOKENS] = id;
            state[RAS_COUNT]++;
        }
}

const op_driver ras_drivers[] = {
    {.op = OP_ras,
     DRIVER_CASES(ras_cases),
     .ports = ras_ports,
     .edit = ras_edit,
     .call = ras_call,
     .direct = ras_direct,
     .direct_bound = DRAWN},
    {.cases = NULL},
};
