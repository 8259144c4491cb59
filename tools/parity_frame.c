/*
 * parity_frame.c - the frame of `cosyfarm parity`: groups cases by stage, runs them alone and packed, compares and
 * reports. Command line only; owns the sinks of one stage at a time, the adapters' contexts while they run.
 * Fails: what an adapter's open or a capture's writing returns; everything a case does wrong is a FAIL line.
 * Source: cases.md 1 to 3.
 */
#include "tools/parity_frame.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "tools/parity_sink.h"

/* A frame whose expected f0 is this close to the voiced threshold may fall on either side of it. */
#define VOICED_HZ  10.0
#define VOICED_REL 1e-6
/* Output samples that one source sample reaches: STFT and down-convolution to the left, causal layers to the right. */
#define SOURCE_REACH_LEFT  70
#define SOURCE_REACH_RIGHT 13735

/* All cases of one stage on their way through it. */
typedef struct stage_group {
    const parity_run *run;
    const parity_stage *stage;
    const parity_case **cases; /* [count], borrowed; those that can run */
    parity_sink *alone;        /* [count], owned */
    bool *ran;                 /* [count], owned: the run alone succeeded */
    size_t count;
    parity_totals *totals;
} stage_group;

static void report(const parity_run *run, parity_totals *totals, const parity_line *line)
{
    if (line->pass)
        totals->passed++;
    else
        totals->failed++;
    run->report(run->ctx, line);
}

static void report_failure(const stage_group *g, const char *case_path, const char *name, const char *reason)
{
    const parity_line line = {.case_path = case_path, .tensor_name = name, .reason = reason};
    report(g->run, g->totals, &line);
}

/* Shapes equal; a capture may carry dimensions of size 1 that the stage does not. */
static bool shapes_equal(const case_tensor *want, const emitted *got, bool is_capture)
{
    int i = 0, j = 0;
    for (;;) {
        while (is_capture && i < want->rank && want->dims[i] == 1)
            i++;
        while (is_capture && j < got->rank && got->dims[j] == 1)
            j++;
        if (i == want->rank || j == got->rank)
            return i == want->rank && j == got->rank;
        if (want->dims[i++] != got->dims[j++])
            return false;
    }
}

/* Marks the values of `name` that a voiced decision on the threshold may turn; returns how many frames did. */
static size_t mark_flips(const parity_case *c, const parity_sink *sink, const char *name, size_t count,
                         unsigned char *flags)
{
    const bool source = strcmp(name, "source") == 0;
    const case_tensor *want = parity_case_find(c, "f0");
    const emitted *got = sink_find(sink, 0, "f0");
    if (strcmp(parity_case_stage(c), "hift") != 0 || (!source && strcmp(name, "audio") != 0))
        return 0;
    if (!want || !want->f32 || !got || got->count != want->count)
        return 0;
    size_t flipped = 0;
    for (size_t j = 0; j < want->count; j++) {
        const double hz = (double)want->f32[j];
        if (fabs(hz - VOICED_HZ) > VOICED_HZ * VOICED_REL || (hz > VOICED_HZ) == ((double)got->data[j] > VOICED_HZ))
            continue;
        flipped++;
        const size_t at = j * SAMPLES_PER_FRAME, left = source ? 0 : SOURCE_REACH_LEFT;
        const size_t end = at + SAMPLES_PER_FRAME + (source ? 0 : SOURCE_REACH_RIGHT);
        for (size_t n = at > left ? at - left : 0; n < end && n < count; n++)
            flags[n] = 1;
    }
    return flipped;
}

static void explain(const parity_line *line, size_t rows_differing, size_t row, size_t flipped, char *reason)
{
    reason[0] = '\0';
    if (!line->stats.finite)
        snprintf(reason, PARITY_REASON_BYTES, "NaN or infinity at value %zu", line->stats.worst_idx);
    else if (rows_differing)
        snprintf(reason, PARITY_REASON_BYTES, "top-1 differs in %zu rows, first in row %zu", rows_differing, row);
    else if (!line->pass)
        snprintf(reason, PARITY_REASON_BYTES, "out of bound, worst at value %zu", line->stats.worst_idx);
    else if (flipped)
        snprintf(reason, PARITY_REASON_BYTES, "%zu frames with f0 on the voiced threshold left out (%zu values)",
                 flipped, line->stats.excluded_count);
    else if (line->stats.excluded_count)
        snprintf(reason, PARITY_REASON_BYTES, "%zu values in bands at the floor: max %.3g", line->stats.excluded_count,
                 line->stats.floor_abs);
}

/* Compares one expected tensor with what the run alone emitted. */
static cf_err compare_tensor(const stage_group *g, size_t idx, const case_tensor *want, const emitted *got)
{
    const parity_case *c = g->cases[idx];
    unsigned char *flags = NULL;
    char reason[PARITY_REASON_BYTES];
    cf_err err;
    parity_line line = {.case_path = parity_case_path(c),
                        .tensor_name = want->file_name,
                        .compared = true,
                        .rank = want->rank,
                        .reason = reason};
    memcpy(line.dims, want->dims, sizeof line.dims);
    TRY(mem_alloc(want->count, 1, &flags));
    const size_t flipped = mark_flips(c, &g->alone[idx], want->name, want->count, flags);
    line.rule = g->run->options->int8_weights ? bound_find_int8(g->stage->stage, want->name) : NULL;
    if (!line.rule)
        line.rule = bound_find(g->stage->stage, want->name, g->run->options->operands, parity_case_profile(c), NULL);
    CF_ASSERT(line.rule);
    const size_t cols = want->rank > 0 ? (size_t)want->dims[want->rank - 1] : 0, rows = cols ? want->count / cols : 0;
    if (line.rule->kind == BOUND_FLOOR)
        line.stats = compare_floor(got->data, want->f32, rows, cols, flags);
    else
        line.stats = compare_arrays(got->data, want->f32, want->count, flags);
    size_t rows_differing = 0, row = 0;
    if (line.rule->kind == BOUND_LOGITS && line.stats.finite)
        rows_differing = compare_top1(got->data, want->f32, rows, cols, line.rule->margin, &row);
    line.pass = bound_holds(line.rule, &line.stats) && rows_differing == 0;
    explain(&line, rows_differing, row, flipped, reason);
    report(g->run, g->totals, &line);
out:
    mem_free(flags);
    return err;
}

static cf_err check_expected(const stage_group *g, size_t idx, const case_tensor *want)
{
    const parity_case *c = g->cases[idx];
    const emitted *got = sink_find(&g->alone[idx], 0, want->name);
    char reason[PARITY_REASON_BYTES], want_shape[ENTRY_SHAPE_BYTES], got_shape[ENTRY_SHAPE_BYTES];
    if (!want->f32) {
        snprintf(reason, sizeof reason, "expected tensor holds integers, not floating point");
    } else if (!got) {
        snprintf(reason, sizeof reason, "the case expects it, stage %s did not compute it", g->stage->stage);
    } else if (!shapes_equal(want, got, parity_case_is_capture(c))) {
        entry_shape_text(want->dims, want->rank, want_shape);
        entry_shape_text(got->dims, got->rank, got_shape);
        snprintf(reason, sizeof reason, "expected shape %s, computed %s: is the case for another model?", want_shape,
                 got_shape);
    } else {
        return compare_tensor(g, idx, want, got);
    }
    report_failure(g, parity_case_path(c), want->file_name, reason);
    return CF_OK;
}

static cf_err check_case(const stage_group *g, size_t idx)
{
    const parity_case *c = g->cases[idx];
    size_t expected = 0;
    cf_err err = CF_OK;
    for (size_t i = 0; i < parity_case_count(c); i++) {
        const case_tensor *t = parity_case_at(c, i);
        if (t->role == CASE_UNKNOWN)
            report_failure(g, parity_case_path(c), t->file_name, "no tensor of this name is known to the stage");
        if (t->role != CASE_EXPECTED)
            continue;
        expected++;
        TRY(check_expected(g, idx, t));
    }
    if (!expected)
        report_failure(g, parity_case_path(c), NULL, "the case holds no expected tensor: nothing to compare");
out:
    return err;
}

/* Rows of lm_input that captures hold once more under names of their own. */
static cf_err derive_llm_parts(const parity_case *c, parity_sink *sink)
{
    cf_err err = CF_OK;
    const emitted *in = sink_find(sink, 0, "lm_input");
    const case_tensor *speech = parity_case_find(c, "prompt_speech_token");
    const int64_t tail = speech ? (int64_t)speech->count : 0;
    if (!parity_case_is_capture(c) || !in || in->rank != 2 || in->dims[0] < tail + 2)
        goto out;
    const int64_t cols = in->dims[1], rows = in->dims[0];
    const float *data = in->data; /* the emitted struct itself moves when the sink grows */
    TRY(parity_emit(sink, 0, "sos_emb", 2, (int64_t[]){1, cols}, data));
    TRY(parity_emit(sink, 0, "task_id_emb", 2, (int64_t[]){1, cols}, data + (rows - tail - 1) * cols));
    TRY(parity_emit(sink, 0, "prompt_speech_token_emb", 2, (int64_t[]){tail, cols}, data + (rows - tail) * cols));
out:
    return err;
}

static cf_err run_cases(const parity_stage *stage, void *adapter, const parity_case *const *cases, size_t count,
                        parity_sink *sink)
{
    if (stage->run)
        return stage->run(adapter, cases, count, sink);
    cf_err err = CF_OK;
    for (size_t i = 0; i < count && err == CF_OK; i++)
        err = stage->run_one(adapter, cases[i], i, sink);
    return err;
}

/* The last error without the case's path, which the line begins with. */
static const char *reason_of(const parity_case *c)
{
    const char *text = err_text(), *path = parity_case_path(c);
    const size_t length = strlen(path);
    return strncmp(text, path, length) == 0 && strncmp(text + length, ": ", 2) == 0 ? text + length + 2 : text;
}

static cf_err run_alone(stage_group *g, void *adapter)
{
    cf_err err = CF_OK;
    for (size_t i = 0; i < g->count; i++) {
        sink_init(&g->alone[i], 1);
        err = run_cases(g->stage, adapter, &g->cases[i], 1, &g->alone[i]);
        if (err == CF_ERR_NOMEM || err == CF_ERR_DEVICE)
            goto out;
        g->ran[i] = err == CF_OK;
        if (err != CF_OK)
            report_failure(g, parity_case_path(g->cases[i]), NULL, reason_of(g->cases[i]));
        err = CF_OK;
    }
out:
    return err;
}

/* One case's tensors from the run alone and from the batch must be the same bytes; returns how many are not. */
static size_t compare_batch(const stage_group *g, size_t idx, const parity_sink *batch, size_t batch_idx,
                            size_t batch_count)
{
    const parity_sink *alone = &g->alone[idx];
    const char *path = parity_case_path(g->cases[idx]);
    char reason[PARITY_REASON_BYTES];
    size_t emitted_alone = 0, emitted_batch = 0, differing = 0;
    for (size_t i = 0; i < batch->count; i++)
        emitted_batch += batch->items[i].case_idx == batch_idx;
    for (size_t i = 0; i < alone->count; i++) {
        const emitted *a = &alone->items[i], *b = sink_find(batch, batch_idx, a->name);
        emitted_alone++;
        if (!b || b->rank != a->rank || memcmp(a->dims, b->dims, sizeof a->dims) != 0) {
            snprintf(reason, sizeof reason, "%s in a batch of %zu, unlike alone", b ? "another shape" : "absent",
                     batch_count);
            report_failure(g, path, a->name, reason);
            differing++;
            continue;
        }
        size_t at = 0;
        while (at < a->count && memcmp(&a->data[at], &b->data[at], sizeof *a->data) == 0)
            at++;
        if (at == a->count)
            continue;
        snprintf(reason, sizeof reason,
                 "not the same bytes in a batch of %zu: value %zu is %.9g alone, %.9g in the batch", batch_count, at,
                 (double)a->data[at], (double)b->data[at]);
        report_failure(g, path, a->name, reason);
        differing++;
    }
    if (emitted_batch <= emitted_alone)
        return differing;
    report_failure(g, path, NULL, "the batch emitted tensors that the run alone did not");
    return differing + 1;
}

/* Everything that ran alone, once more in one packed batch. A single case is paired with itself. */
static cf_err run_batch(const stage_group *g, void *adapter)
{
    const parity_case **packed = NULL;
    size_t *from = NULL, count = 0;
    parity_sink batch = {0};
    cf_err err;
    if (strncmp(g->run->options->device, "cpu", 3) != 0)
        return CF_OK; /* bytes are promised on the CPU; elsewhere drift is measured by the op suite */
    TRY(mem_alloc(g->count + 1, sizeof(const parity_case *), &packed));
    TRY(mem_alloc(g->count + 1, sizeof *from, &from));
    for (size_t i = 0; i < g->count; i++) {
        if (!g->ran[i])
            continue;
        from[count] = i;
        packed[count++] = g->cases[i];
    }
    if (count == 1) {
        from[count] = from[0];
        packed[count++] = packed[0];
    }
    if (count == 0)
        goto out;
    sink_init(&batch, count);
    err = run_cases(g->stage, adapter, packed, count, &batch);
    if (err == CF_ERR_NOMEM || err == CF_ERR_DEVICE)
        goto out;
    if (err != CF_OK) {
        char reason[PARITY_REASON_BYTES];
        snprintf(reason, sizeof reason, "%zu %s cases in one batch: %s", count, g->stage->stage, err_text());
        report_failure(g, parity_case_path(packed[0]), NULL, reason);
        err = CF_OK;
        goto out;
    }
    for (size_t i = 0; i < count; i++)
        if (compare_batch(g, from[i], &batch, i, count) && i + 1 < count && from[i + 1] == from[i])
            break; /* paired with itself: said once */
out:
    sink_done(&batch);
    mem_free(from);
    mem_free(packed);
    return err;
}

/* A capture is computed from the case's inputs alone: with the expected f0 or mel in reach, a later tensor would not
 * follow from an earlier one of the same file. */
static cf_err capture_case(const stage_group *g, void *adapter, const parity_case *c)
{
    parity_case *view = NULL;
    parity_sink sink;
    cf_err err;
    sink_init(&sink, 1);
    TRY(parity_case_inputs(c, &view));
    TRY(run_cases(g->stage, adapter, (const parity_case *const *)&view, 1, &sink));
    TRY(parity_capture_write(view, &sink, 0, g->run->options, g->run->capture_dir));
out:
    sink_done(&sink);
    parity_case_close(view);
    return err == CF_OK ? err : err_context(err, "--capture: %s", parity_case_path(c));
}

static cf_err run_adapter(stage_group *g)
{
    void *adapter = NULL;
    cf_err err;
    TRY(g->stage->open(g->run->options, &adapter));
    TRY(run_alone(g, adapter));
    TRY(run_batch(g, adapter));
    for (size_t i = 0; i < g->count; i++) {
        if (!g->ran[i])
            continue;
        if (g->run->capture_dir)
            TRY(capture_case(g, adapter, g->cases[i]));
        if (strcmp(g->stage->stage, "llm") == 0)
            TRY(derive_llm_parts(g->cases[i], &g->alone[i]));
        TRY(check_case(g, i));
    }
out:
    if (adapter)
        g->stage->close(adapter);
    return err;
}

static cf_err run_stage(const parity_run *run, const parity_stage *stage, parity_case *const *cases, size_t count,
                        parity_totals *totals)
{
    stage_group g = {.run = run, .stage = stage, .totals = totals};
    cf_err err;
    TRY(mem_alloc(count, sizeof(const parity_case *), &g.cases));
    TRY(mem_alloc(count, sizeof *g.alone, &g.alone));
    TRY(mem_alloc(count, sizeof *g.ran, &g.ran));
    for (size_t i = 0; i < count; i++)
        if (!parity_case_defect(cases[i]) && strcmp(parity_case_stage(cases[i]), stage->stage) == 0)
            g.cases[g.count++] = cases[i];
    if (g.count)
        TRY(run_adapter(&g));
out:
    for (size_t i = 0; g.alone && i < g.count; i++)
        sink_done(&g.alone[i]);
    mem_free(g.ran);
    mem_free(g.alone);
    mem_free(g.cases);
    return err;
}

cf_err parity_run_cases(const parity_run *run, parity_case *const *cases, size_t count, parity_totals *ret_totals)
{
    parity_totals totals = {0};
    cf_err err = CF_OK;
    for (size_t i = 0; i < count; i++) {
        if (!parity_case_defect(cases[i]))
            continue;
        const parity_line line = {.case_path = parity_case_path(cases[i]), .reason = parity_case_defect(cases[i])};
        report(run, &totals, &line);
    }
    for (size_t i = 0; run->stages[i]; i++)
        TRY(run_stage(run, run->stages[i], cases, count, &totals));
    *ret_totals = totals;
out:
    return err;
}
