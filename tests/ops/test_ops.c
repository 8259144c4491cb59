/*
 * test_ops.c - the op suite: every case of every table on every backend of subjects.c. Test code.
 *
 *   test_ops            all checks
 *   test_ops measure    the same, printing for each case the largest error as a part of its bound
 *
 * For a case and a backend: errors within the case's bound (the plain loops against a direct computation in f64, the
 * others against the plain loops); nothing written outside the result, inputs unchanged; twice the same bytes; the same
 * bytes for each sequence in reversed order and alone, with any number of threads; NaN and infinities where the
 * reference has them, other sequences untouched.
 */
#include "tests/ops/suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/subjects.h"

#define MEMORY_BYTES ((size_t)4 << 30) /* address space: pages are used when touched */
#define ITEMS_MAX    2048
#define CASES_PER_OP 4 /* at least: one row, odd sizes, over a tile's edge, as in the model */

static const op_driver *const tables[] = {elem_drivers,   norm_drivers,  matmul_drivers, conv_drivers, attn_drivers,
                                          signal_drivers, index_drivers, enroll_drivers, ras_drivers};
#define TABLES (sizeof tables / sizeof tables[0])

typedef struct item {
    const op_driver *d;
    const suite_case *c;
    const subject *on;
    bool unsupported; /* by a backend that is here */
    char name[160];
} item;

/* What the subjects of one case share; drawn when the first of them runs. */
typedef struct shared {
    const suite_case *c;
    bool busy; /* a test of this case is running, or has left it in the middle */
    suite_data data;
    poison poisons[SUITE_POISONS_MAX];
    int32_t poison_count;
    bool has_naive, has_direct;
    suite_result naive, direct;
    suite_result naive_poisoned[SUITE_POISONS_MAX], direct_poisoned[SUITE_POISONS_MAX];
} shared;

static arena memory;
static shared now;
static bool measuring;
static const int32_t forward[SUITE_SEQS_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};

typedef struct opened {
    backend *be;
    weight *w;
} opened;

static opened open_for(const subject *on, int threads)
{
    opened o = {0};
    assert_ok(on->open(on, threads, &o.be));
    for (int p = 0; p < now.data.port_count; p++) {
        const port *q = &now.data.ports[p];
        if (q->role != PORT_WEIGHT)
            continue;
        assert_ok(now.data.d->pack(now.c, o.be, now.data.host[p], &o.w));
        /* What a worker's memory plan counts: no form of a weight is smaller than that. */
        const size_t least = now.c->int8 ? sizeof(int8_t) : sizeof(uint16_t);
        assert_true(backend_weight_bytes(o.be) >= (size_t)(q->table_rows * q->width) * least);
    }
    return o;
}

static void run_all(const opened *o, suite_result *ret)
{
    *ret = suite_result_new(&now.data, false);
    suite_run(&now.data, o->be, o->w, forward, now.c->seqs, ret);
}

static void prepare(const item *it)
{
    if (now.c == it->c && !now.busy)
        return;
    arena_reset(&memory, 0);
    now = (shared){.c = it->c};
    suite_draw(it->d, it->c, &memory, &now.data);
    now.poison_count = suite_poisons(&now.data, now.poisons);
}

static void direct_reference(suite_result *result)
{
    *result = suite_result_new(&now.data, true);
    suite_run_direct(&now.data, result);
}

/* References without and with poison; they stay until the next case. */
static void compute_reference(bool direct)
{
    suite_result *plain = direct ? &now.direct : &now.naive;
    suite_result *poisoned = direct ? now.direct_poisoned : now.naive_poisoned;
    bool *has = direct ? &now.has_direct : &now.has_naive;
    opened o = {0};

    if (*has)
        return;
    if (!direct)
        o = open_for(SUBJECT_NAIVE, 1);
    for (int32_t k = -1; k < now.poison_count; k++) {
        suite_result *to = k < 0 ? plain : &poisoned[k];
        const double before = k < 0 ? 0.0 : suite_swap(&now.data, &now.poisons[k], now.poisons[k].value);
        if (direct)
            direct_reference(to);
        else
            run_all(&o, to);
        if (k >= 0)
            suite_swap(&now.data, &now.poisons[k], before);
    }
    backend_close(o.be);
    *has = true;
}

static void check_order(const opened *o, const suite_result *want)
{
    const size_t mark = arena_mark(&memory);
    suite_result got = suite_result_new(&now.data, false);
    int32_t backward[SUITE_SEQS_MAX];

    for (int32_t i = 0; i < now.c->seqs; i++)
        backward[i] = now.c->seqs - 1 - i;
    suite_run(&now.data, o->be, o->w, backward, now.c->seqs, &got);
    suite_same(&now.data, &got, want, -1, "reversed batch against batch");
    for (int32_t b = 0; b < now.c->seqs; b++) {
        suite_run(&now.data, o->be, o->w, &b, 1, &got);
        suite_same(&now.data, &got, want, b, "alone against batch");
    }
    arena_reset(&memory, mark);
}

static void check_threads(const item *it, const suite_result *want)
{
    static const int counts[] = {1, 3};
    for (int i = 0; i < (it->c->heavy ? 1 : 2); i++) {
        const size_t mark = arena_mark(&memory);
        suite_result got;
        opened o = open_for(it->on, counts[i]);
        run_all(&o, &got);
        suite_same(&now.data, &got, want, -1, counts[i] == 1 ? "1 thread against 2" : "3 threads against 2");
        backend_close(o.be);
        arena_reset(&memory, mark);
    }
}

static void check_poisons(const opened *o, const bound *b, const suite_result *reference, const suite_result *clean)
{
    for (int32_t k = 0; k < now.poison_count; k++) {
        const size_t mark = arena_mark(&memory);
        const poison *p = &now.poisons[k];
        suite_result got;
        char what[96];

        snprintf(what, sizeof what, "%s[%lld] = %g", now.data.ports[p->port].name, (long long)p->value_idx, p->value);
        const double before = suite_swap(&now.data, p, p->value);
        run_all(o, &got);
        suite_swap(&now.data, p, before);
        suite_near(&now.data, b, &got, &reference[k], what);
        for (int32_t seq = 0; p->seq >= 0 && seq < now.c->seqs; seq++)
            if (seq != p->seq)
                suite_same(&now.data, &got, clean, seq, what);
        arena_reset(&memory, mark);
    }
}

static void check_case(void **state)
{
    const item *it = *state;
    const bool naive = it->on->naive;
    const bound *b = naive ? &it->d->direct_bound : &it->c->bound;
    suite_result got, again;

    if (it->unsupported)
        skip();
    prepare(it);
    now.busy = true;
    compute_reference(naive);
    const size_t mark = arena_mark(&memory);
    opened o = open_for(it->on, it->on->threaded ? 2 : 0);
    run_all(&o, &got);
    bound clean = *b;
    clean.nan_spreads = false;
    const double part = suite_near(&now.data, &clean, &got, naive ? &now.direct : &now.naive, it->on->name);
    if (measuring)
        printf("# %5.3f of the bound: %s\n", part, it->name);
    run_all(&o, &again);
    suite_same(&now.data, &again, &got, -1, "second run against first");
    check_order(&o, &got);
    check_poisons(&o, b, naive ? now.direct_poisoned : now.naive_poisoned, &got);
    backend_close(o.be);
    if (it->on->threaded)
        check_threads(it, &got);
    arena_reset(&memory, mark);
    now.busy = false;
}

/* Is `op backend` in the list of what a backend may lack? Lines are `op backend reason`; # begins a comment. */
static bool skip_expected(const char *op, const char *on)
{
    char line[256], listed_op[64], listed_on[64];
    bool found = false;
    FILE *f = fopen(test_path("tests/ops/expected_skips.txt"), "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (line[0] != '#' && sscanf(line, "%63s %63s", listed_op, listed_on) == 2)
            found |= strcmp(op, listed_op) == 0 && strcmp(on, listed_on) == 0;
    fclose(f);
    return found;
}

/* Which ops a backend has is what the list says: a lost op is a failure, an op that came back changes the list. */
static void check_support(void **state)
{
    const item *it = *state;
    backend *be = NULL;
    const cf_err err = it->on->open(it->on, 1, &be);

    if (err == CF_ERR_UNSUPPORTED) {
        print_message("# %s\n", err_text());
        skip();
    }
    assert_int_equal(err, CF_OK);
    for (int id = 0; id < (int)OP_COUNT; id++) {
        const char *op = op_name((op_id)id);
        if (op_supported(be, (op_id)id) == skip_expected(op, it->on->name))
            fail_msg("op %s on %s: expected_skips.txt says the opposite", op, it->on->name);
    }
    backend_close(be);
}

/* Every op of ops.h has its cases; names are unique, because inputs are drawn from them. */
static void check_coverage(void **state)
{
    int cases[OP_COUNT] = {0};
    (void)state;
    for (size_t t = 0; t < TABLES; t++)
        for (const op_driver *d = tables[t]; d->cases; d++) {
            cases[d->op] += d->case_count;
            for (int32_t i = 0; i < d->case_count; i++)
                for (int32_t j = 0; j < i; j++)
                    if (strcmp(driver_case(d, i)->name, driver_case(d, j)->name) == 0)
                        fail_msg("op %s has two cases \"%s\"", op_name(d->op), driver_case(d, i)->name);
        }
    for (int id = 0; id < (int)OP_COUNT; id++)
        if (cases[id] < CASES_PER_OP)
            fail_msg("op %s has %d cases, at least %d", op_name((op_id)id), cases[id], CASES_PER_OP);
}

static void add_item(item *items, struct CMUnitTest *tests, size_t *count, CMUnitTestFunction fn, const item *like)
{
    assert_true(*count < ITEMS_MAX);
    item *it = &items[*count];
    *it = *like;
    if (it->c)
        snprintf(it->name, sizeof it->name, "%s: %s [%s]", op_name(it->d->op), it->c->name, it->on->name);
    else
        snprintf(it->name, sizeof it->name, "%s [%s]", fn == check_support ? "support" : "coverage",
                 it->on ? it->on->name : "tables");
    tests[*count] = (struct CMUnitTest){.name = it->name, .test_func = fn, .initial_state = it};
    (*count)++;
}

/* Case by case, all backends of a case one behind the other: they share its inputs and references. */
static size_t list_items(item *items, struct CMUnitTest *tests)
{
    size_t count = 0;
    backend *present[16] = {0};
    const char *only = getenv("COSYFARM_OPS_SUBJECT"); /* one backend alone, which has to be there */

    add_item(items, tests, &count, check_coverage, &(item){0});
    for (int i = 0; i < subject_count; i++) {
        if (only && strcmp(subjects[i].name, only) != 0)
            continue;
        add_item(items, tests, &count, check_support, &(item){.on = &subjects[i]});
        if (subjects[i].open(&subjects[i], 1, &present[i]) != CF_OK)
            present[i] = NULL;
    }
    for (size_t t = 0; t < TABLES; t++)
        for (const op_driver *d = tables[t]; d->cases; d++)
            for (int32_t k = 0; k < d->case_count; k++)
                for (int i = 0; i < subject_count; i++)
                    if (present[i] && (!subjects[i].bf16_only || driver_case(d, k)->bf16) &&
                        (!driver_case(d, k)->int8 || backend_has_int8(present[i])))
                        add_item(items, tests, &count, check_case,
                                 &(item){.d = d,
                                         .c = driver_case(d, k),
                                         .on = &subjects[i],
                                         .unsupported = !op_supported(present[i], d->op)});
    for (int i = 0; i < subject_count; i++)
        backend_close(present[i]);
    return count;
}

int main(int argc, char **argv)
{
    static item items[ITEMS_MAX];
    static struct CMUnitTest tests[ITEMS_MAX];

    measuring = argc > 1 && strcmp(argv[1], "measure") == 0;
    if (arena_open(MEMORY_BYTES, &memory) != CF_OK) {
        fprintf(stderr, "test_ops: %s\n", err_text());
        return 1;
    }
    const size_t count = list_items(items, tests);
    const int failed = _cmocka_run_group_tests("ops", tests, count, NULL, NULL);
    arena_close(&memory);
    return failed;
}
