/* parity_fake.c - see parity_fake.h. Fails: through cmocka. */
#include "tests/unit/parity_fake.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/harness/test.h"

static fake state;
static int contexts[7];
static const parity_case *last_full; /* a view of inputs alone "computes" what its case expects */

fake *fake_state(void)
{
    return &state;
}

void fake_reset(void)
{
    state = (fake){0};
}

static bool concerns(const parity_case *c, const char *name, fake_wrong wrong)
{
    return state.wrong == wrong && (!state.tensor_name || strcmp(state.tensor_name, name) == 0) &&
           (!state.case_part || strstr(parity_case_path(c), state.case_part));
}

static cf_err emit_one(const parity_case *c, const case_tensor *t, size_t case_idx, size_t batch, parity_sink *sink)
{
    float *data = NULL;
    int64_t dims[CASE_RANK_MAX];
    cf_err err = CF_OK;
    if (concerns(c, t->name, FAKE_OMIT) || (batch > 1 && concerns(c, t->name, FAKE_BATCH_OMIT)))
        return CF_OK;
    memcpy(dims, t->dims, sizeof dims);
    size_t count = t->count;
    if (concerns(c, t->name, FAKE_SHAPE)) {
        count += count / (size_t)dims[0];
        dims[0]++;
    }
    TRY(mem_alloc(count, sizeof *data, &data));
    memcpy(data, t->f32, t->count * sizeof *data);
    if (concerns(c, t->name, FAKE_ADD))
        data[state.at] = (float)((double)data[state.at] + state.amount);
    if (concerns(c, t->name, FAKE_TILT)) {
        data[state.at] = (float)((double)data[state.at] + state.amount);
        data[state.at - 1] = (float)((double)data[state.at - 1] - state.amount);
    }
    for (size_t i = 0; i < t->count && concerns(c, t->name, FAKE_ADD_ALL); i++)
        data[i] = (float)((double)data[i] + state.amount);
    if (concerns(c, t->name, FAKE_SET))
        data[state.at] = (float)state.amount;
    if (batch > 1 && concerns(c, t->name, FAKE_BATCH_ULP))
        data[state.at] = nextafterf(data[state.at], 1e30f);
    TRY(parity_emit(sink, case_idx, t->name, t->rank, dims, data));
    if (concerns(c, t->name, FAKE_TWICE))
        TRY(parity_emit(sink, case_idx, t->name, t->rank, dims, data));
out:
    mem_free(data);
    return err;
}

static bool has_expected(const parity_case *c)
{
    for (size_t k = 0; k < parity_case_count(c); k++)
        if (parity_case_at(c, k)->role == CASE_EXPECTED)
            return true;
    return last_full == NULL || strcmp(parity_case_path(last_full), parity_case_path(c)) != 0;
}

static cf_err run_any(void *ctx, const parity_case *const *cases, size_t count, parity_sink *sink)
{
    cf_err err = CF_OK;
    (void)ctx;
    state.runs++;
    if ((int)count > state.largest_batch)
        state.largest_batch = (int)count;
    if (count > 1 && state.wrong == FAKE_BATCH_FAIL)
        FAIL(CF_ERR_LIMIT, "the batch is too large");
    for (size_t i = 0; i < count; i++) {
        int64_t dims[CASE_RANK_MAX];
        const float *floats;
        if (concerns(cases[i], state.tensor_name ? state.tensor_name : "", FAKE_NEEDS))
            TRY(parity_case_f32(cases[i], state.tensor_name, 2, dims, &floats));
        const parity_case *c = has_expected(cases[i]) ? cases[i] : last_full;
        last_full = c;
        for (size_t k = 0; k < parity_case_count(c); k++) {
            const case_tensor *t = parity_case_at(c, k);
            if (t->role == CASE_EXPECTED && t->f32)
                TRY(emit_one(c, t, i, count, sink));
        }
    }
out:
    return err;
}

static cf_err open_any(int which, void **ret_ctx)
{
    state.opened[which]++;
    if (state.open_err != CF_OK)
        return err_set(state.open_err, "no such model");
    *ret_ctx = &contexts[which];
    return CF_OK;
}

static void close_any(void *ctx)
{
    state.closed[(int *)ctx - contexts]++;
}

#define FAKE_STAGE(n, name)                                              \
    static cf_err open_##name(const parity_options *opt, void **ret_ctx) \
    {                                                                    \
        (void)opt;                                                       \
        return open_any(n, ret_ctx);                                     \
    }                                                                    \
    const parity_stage parity_##name = {.stage = #name, .open = open_##name, .run = run_any, .close = close_any};
FAKE_STAGE(0, llm)
FAKE_STAGE(1, flow)
FAKE_STAGE(2, hift)
FAKE_STAGE(3, stream)
FAKE_STAGE(4, speed)
FAKE_STAGE(5, voice)
FAKE_STAGE(6, enroll)

/* Splits "key=value;key=value" in place. */
static size_t split_meta(char *meta, table_text *texts, size_t max)
{
    size_t count = 0;
    for (char *pair = strtok(meta, ";"); pair && count < max; pair = strtok(NULL, ";")) {
        char *equals = strchr(pair, '=');
        assert_non_null(equals);
        *equals = '\0';
        texts[count++] = (table_text){pair, equals + 1};
    }
    return count;
}

const char *fake_case(const char *dir, const char *name, const char *meta, const fake_tensor *tensors, size_t count)
{
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8], pairs[512] = "";
    table_text texts[16];
    safetensors_item items[16];
    float *zeros[16] = {0};
    assert_true(count <= 16);
    for (size_t i = 0; i < count; i++) {
        const fake_tensor *t = &tensors[i];
        size_t values = 1;
        for (int k = 0; k < t->rank; k++)
            values *= (size_t)t->dims[k];
        zeros[i] = calloc(values + 1, sizeof *zeros[i]);
        assert_non_null(zeros[i]);
        zeros[i][0] = 2;
        items[i] = (safetensors_item){.name = t->name, .type = t->integer ? ENTRY_I32 : ENTRY_F32, .rank = t->rank};
        memcpy(items[i].shape, t->dims, sizeof t->dims);
        items[i].data = t->data ? t->data : zeros[i];
    }
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    snprintf(pairs, sizeof pairs, "%s", meta ? meta : "");
    assert_ok(safetensors_write(path, items, count, texts, split_meta(pairs, texts, 16)));
    for (size_t i = 0; i < count; i++)
        free(zeros[i]);
    return path;
}

static void keep_line(void *ctx, const parity_line *line)
{
    fake_report *r = ctx;
    assert_true(r->count < 64);
    snprintf(r->lines[r->count].text, sizeof r->lines[0].text, "%s %s: %s", line->case_path,
             line->tensor_name ? line->tensor_name : "-", line->reason);
    r->lines[r->count++].line = *line;
}

cf_err fake_run(const char *const *paths, size_t count, precision operands, const char *capture_dir, fake_report *ret)
{
    static const parity_stage *const stages[] = {&parity_llm,   &parity_flow,  &parity_hift,   &parity_stream,
                                                 &parity_speed, &parity_voice, &parity_enroll, NULL};
    const parity_options options = {.model_dir = "made-up", .device = "cpu", .operands = operands};
    const parity_run run = {
        .options = &options, .stages = stages, .capture_dir = capture_dir, .report = keep_line, .ctx = ret};
    parity_case *cases[16] = {0};
    cf_err err = CF_OK;
    memset(ret, 0, sizeof *ret);
    assert_true(count <= 16);
    for (size_t i = 0; i < count; i++)
        TRY(parity_case_open(paths[i], &cases[i]));
    TRY(parity_run_cases(&run, cases, count, &ret->totals));
out:
    for (size_t i = 0; i < count; i++)
        parity_case_close(cases[i]);
    last_full = NULL; /* one of these */
    return err;
}
