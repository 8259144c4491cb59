/* test_parity_frame.c - the parity frame over made-up cases and adapters: what fails, what it says, what is printed. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "tests/harness/command.h"
#include "tests/unit/parity_fake.h"
#include "tools/cmd.h"

#define PLAIN "model=synthetic tiny seed 0"
#define FLOW  "stage=flow;streaming=0;finalize=1;" PLAIN
#define HIFT  "stage=hift;finalize=1;" PLAIN

static const fake_tensor MEL = {.name = "mel", .rank = 2, .dims = {80, 4}};
static const fake_tensor TOKEN = {.name = "token", .rank = 1, .dims = {3}, .integer = true};
static const fake_tensor MU = {.name = "mu", .rank = 2, .dims = {80, 6}};

/* The one FAIL line has this text; everything else passed. */
static void assert_one_failure(const fake_report *r, const char *part)
{
    size_t failures = 0;
    for (size_t i = 0; i < r->count; i++) {
        if (r->lines[i].line.pass)
            continue;
        failures++;
        if (!strstr(r->lines[i].text, part))
            fail_msg("got  %s\nwant ...%s...", r->lines[i].text, part);
    }
    assert_int_equal(failures, 1);
    assert_int_equal(r->totals.failed, 1);
}

static const char *flow_case(const char *dir, const char *name)
{
    const fake_tensor tensors[] = {TOKEN, MU, MEL};
    return fake_case(dir, name, FLOW, tensors, 3);
}

static void run_one(const char *path, fake_report *r)
{
    assert_ok(fake_run(&path, 1, PRECISION_F32, NULL, r));
}

static void test_equal_tensors_pass(void **test)
{
    (void)test;
    fake_reset();
    fake_report r;
    run_one(flow_case(test_temp_dir(), "a.safetensors"), &r);
    assert_int_equal(r.totals.passed, 2);
    assert_int_equal(r.totals.failed, 0);
    assert_int_equal(fake_state()->largest_batch, 2); /* one case is paired with itself */
    assert_true(r.lines[0].line.stats.snr_db == SNR_EQUAL_DB);
    assert_int_equal(r.lines[0].line.rank, 2);
}

static void test_wrong_values_name_case_and_tensor(void **test)
{
    (void)test;
    static const struct {
        fake_wrong wrong;
        const char *tensor_name, *says;
        double amount;
    } rows[] = {
        {FAKE_ADD, "mel", "a.safetensors mel: out of bound, worst at value 9", 2 * 3.1e-5},
        {FAKE_SET, "mel", "a.safetensors mel: NaN or infinity at value 9", (double)NAN},
        {FAKE_SET, "mu", "mu: NaN or infinity at value 9", (double)INFINITY},
        {FAKE_OMIT, "mu", "mu: the case expects it, stage flow did not compute it", 0},
        {FAKE_SHAPE, "mu", "mu: expected shape [80, 6], computed [81, 6]: is the case for another model", 0},
        {FAKE_TWICE, "mu", "a.safetensors -: tensor mu emitted twice", 0},
        {FAKE_NEEDS, "prompt_feat", "tensor prompt_feat is missing; stage flow needs it", 0},
        {FAKE_NEEDS, "token", "tensor token: expected floating point, found integers", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        fake_reset();
        fake *f = fake_state();
        f->wrong = rows[i].wrong;
        f->tensor_name = rows[i].tensor_name;
        f->amount = rows[i].amount;
        f->at = 9;
        fake_report r;
        run_one(flow_case(test_temp_dir(), "a.safetensors"), &r);
        assert_one_failure(&r, rows[i].says);
    }
}

static void test_inside_the_bound_passes(void **test)
{
    (void)test;
    fake_reset();
    *fake_state() = (fake){.wrong = FAKE_ADD, .tensor_name = "mel", .amount = 2 * 2.9e-5, .at = 9};
    fake_report r;
    run_one(flow_case(test_temp_dir(), "a.safetensors"), &r);
    assert_int_equal(r.totals.failed, 0);
    /* The same difference in bf16 mode is judged as a ratio of powers, on a harsh model by its wider bound. */
    const char *dir = test_temp_dir();
    const fake_tensor tensors[] = {MEL};
    const char *harsh = fake_case(dir, "h.safetensors", FLOW " profile harsh", tensors, 1);
    const char *real = fake_case(dir, "r.safetensors", "stage=flow;streaming=1;finalize=0", tensors, 1);
    fake_state()->amount = 2 * 2.9e-4;
    assert_ok(fake_run(&harsh, 1, PRECISION_F32, NULL, &r));
    assert_int_equal(r.totals.failed, 0);
    fake_state()->amount = 2 * 3.1e-4;
    assert_ok(fake_run(&harsh, 1, PRECISION_F32, NULL, &r));
    assert_one_failure(&r, "h.safetensors mel: out of bound");
    assert_ok(fake_run(&real, 1, PRECISION_F32, NULL, &r));
    assert_int_equal(r.totals.failed, 0);
    fake_state()->amount = 2 * pow(10, -25.0 / 20);
    assert_ok(fake_run(&harsh, 1, PRECISION_BF16, NULL, &r));
    assert_one_failure(&r, "out of bound");
    fake_state()->amount = 2 * pow(10, -27.0 / 20);
    assert_ok(fake_run(&harsh, 1, PRECISION_BF16, NULL, &r));
    assert_int_equal(r.totals.failed, 0);
}

static void test_batch_must_be_the_same_bytes(void **test)
{
    (void)test;
    const char *dir = test_temp_dir();
    const char *paths[] = {flow_case(dir, "a.safetensors"), flow_case(dir, "b.safetensors"),
                           flow_case(dir, "c.safetensors")};
    fake_report r;
    fake_reset();
    *fake_state() = (fake){.wrong = FAKE_BATCH_ULP, .tensor_name = "mu", .case_part = "b.safe", .at = 3};
    assert_ok(fake_run(paths, 3, PRECISION_F32, NULL, &r));
    assert_one_failure(&r, "b.safetensors mu: not the same bytes in a batch of 3: value 3 is 0 alone, 1.40129846e-45");
    assert_int_equal(r.totals.passed, 6);
    assert_int_equal(fake_state()->runs, 4);

    *fake_state() = (fake){.wrong = FAKE_BATCH_ULP, .tensor_name = "mu", .at = 3};
    assert_ok(fake_run(paths, 1, PRECISION_F32, NULL, &r));
    assert_one_failure(&r, "a.safetensors mu: not the same bytes in a batch of 2");

    *fake_state() = (fake){.wrong = FAKE_BATCH_OMIT, .tensor_name = "mu", .case_part = "b.safe"};
    assert_ok(fake_run(paths, 3, PRECISION_F32, NULL, &r));
    assert_one_failure(&r, "b.safetensors mu: absent in a batch of 3");

    *fake_state() = (fake){.wrong = FAKE_BATCH_FAIL};
    assert_ok(fake_run(paths, 3, PRECISION_F32, NULL, &r));
    assert_one_failure(&r, "3 flow cases in one batch: the batch is too large");
    /* A case that fails alone stays out of the batch. */
    *fake_state() = (fake){.wrong = FAKE_TWICE, .tensor_name = "mu", .case_part = "b.safe"};
    assert_ok(fake_run(paths, 3, PRECISION_F32, NULL, &r));
    assert_one_failure(&r, "b.safetensors -: tensor mu emitted twice");
    assert_int_equal(fake_state()->largest_batch, 2);
}

static void test_defects_of_a_case(void **test)
{
    (void)test;
    static const float bad[4] = {1, 2, (float)NAN, 3};
    static const struct {
        const char *meta, *says;
        fake_tensor tensors[2];
    } rows[] = {
        {"stage=dream", "stage \"dream\" is unsupported", {{"fbank", 1, {4}, NULL, false}}},
        {"stage=voice", "metadata \"wav\" is missing", {{"fbank", 1, {4}, NULL, false}}},
        {"stage=voice;wav=../a.wav",
         "expected the name of a file, found \"../a.wav\"",
         {{"fbank", 1, {4}, NULL, false}}},
        {"stage=flow;finalize=1", "metadata \"streaming\" is missing", {{"mel", 1, {4}, NULL, false}}},
        {"stage=flow;streaming=1", "metadata \"finalize\" is missing", {{"mel", 1, {4}, NULL, false}}},
        {"stage=flow;streaming=yes;finalize=1", "expected 0 or 1, found \"yes\"", {{"mel", 1, {4}, NULL, false}}},
        {"stage=hift", "metadata \"finalize\" is missing", {{"audio", 1, {4}, NULL, false}}},
        {"stage=speed", "metadata \"speed\" is missing", {{"resampled", 1, {4}, NULL, false}}},
        {"stage=speed;speed=fast", "expected 0.5..2, found \"fast\"", {{"resampled", 1, {4}, NULL, false}}},
        {"stage=speed;speed=nan", "expected 0.5..2", {{"resampled", 1, {4}, NULL, false}}},
        {"stage=speed;speed=2.5", "expected 0.5..2", {{"resampled", 1, {4}, NULL, false}}},
        {"stage=stream", "metadata \"calls\" is missing", {{"mel_0", 1, {4}, NULL, false}}},
        {"stage=stream;calls=[1,2]",
         "metadata \"calls\": expected [[offset, tokens]",
         {{"mel_0", 1, {4}, NULL, false}}},
        {"stage=stream;calls=[[0,-5]]", "metadata \"calls\"", {{"mel_0", 1, {4}, NULL, false}}},
        {"stage=stream;calls=[[0,25,1]]", "metadata \"calls\"", {{"mel_0", 1, {4}, NULL, false}}},
        {"stage=stream;calls=[[0,25]", "metadata \"calls\"", {{"mel_0", 1, {4}, NULL, false}}},
        {HIFT, "input mel: value 2 is NaN or infinite", {{"mel", 2, {2, 2}, bad, false}}},
        {HIFT, "the case holds no expected tensor", {{"mel", 2, {2, 2}, NULL, false}}},
        {HIFT, "expected tensor holds integers", {{"f0", 1, {4}, NULL, true}}},
        {HIFT, "f0: NaN or infinity at value 2", {{"f0", 1, {4}, bad, false}}},
        {HIFT,
         "conv_pst: no tensor of this name is known",
         {{"conv_pst", 1, {4}, NULL, false}, {"f0", 1, {4}, NULL, false}}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        fake_reset();
        fake_report r;
        run_one(
            fake_case(test_temp_dir(), "d.safetensors", rows[i].meta, rows[i].tensors, rows[i].tensors[1].name ? 2 : 1),
            &r);
        assert_one_failure(&r, rows[i].says);
    }
}

static void test_files_that_are_no_cases(void **test)
{
    (void)test;
    const char *dir = test_temp_dir();
    parity_case *c = NULL;
    char path[512];
    const fake_tensor some[] = {{.name = "weight", .rank = 1, .dims = {4}}};
    assert_err(CF_ERR_INVALID, "no metadata \"stage\"",
               parity_case_open(fake_case(dir, "w.safetensors", "format=pt", some, 1), &c));
    snprintf(path, sizeof path, "%s/empty", dir);
    assert_ok(io_write_file(path, "", 0));
    assert_int_not_equal(parity_case_open(path, &c), CF_OK);
    snprintf(path, sizeof path, "%s/text", dir);
    assert_ok(io_write_file(path, "RIFF....WAVEfmt ", 16));
    assert_int_not_equal(parity_case_open(path, &c), CF_OK);
    assert_non_null(strstr(err_text(), path));
    snprintf(path, sizeof path, "%s/absent", dir);
    assert_int_not_equal(parity_case_open(path, &c), CF_OK);
}

static void test_only_needed_adapters_open(void **test)
{
    (void)test;
    const char *dir = test_temp_dir();
    const fake_tensor audio[] = {{.name = "audio", .rank = 1, .dims = {4}}};
    const char *paths[] = {fake_case(dir, "h.safetensors", HIFT, audio, 1),
                           fake_case(dir, "v.safetensors", "stage=dream", audio, 1)};
    fake_report r;
    fake_reset();
    assert_ok(fake_run(paths, 2, PRECISION_F32, NULL, &r));
    const int want[7] = {0, 0, 1, 0, 0, 0, 0};
    assert_memory_equal(fake_state()->opened, want, sizeof want);
    assert_memory_equal(fake_state()->closed, want, sizeof want);
    assert_int_equal(r.totals.passed, 1);
    assert_int_equal(r.totals.failed, 1);
    fake_reset();
    fake_state()->open_err = CF_ERR_NOTFOUND;
    assert_err(CF_ERR_NOTFOUND, "no such model", fake_run(paths, 2, PRECISION_F32, NULL, &r));
    assert_int_equal(fake_state()->closed[2], 0);
}

/* Every tilt here is within max and mean; whether top-1 may turn depends on the expected margin. */
static void test_top1_in_reduced_precision(void **test)
{
    (void)test;
    static const struct {
        float second;
        double tilt;
        precision operands;
        bool pass;
    } rows[] = {
        {2.9f, 0.2, PRECISION_BF16, true},    /* margin 0.1: may turn */
        {2.69f, 0.16, PRECISION_BF16, false}, /* 0.31 */
        {2.71f, 0.16, PRECISION_BF16, true},  /* 0.29 */
        {2.94f, 0.04, PRECISION_FP16, false}, /* 0.06 */
        {2.96f, 0.04, PRECISION_FP16, true},  /* 0.04 */
        {2.6f, 0.16, PRECISION_BF16, true},   /* 0.4: does not turn */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        static float logits[2 * 6761];
        logits[1] = 9;
        logits[6761 + 4] = 3;
        logits[6761 + 5] = rows[i].second;
        const fake_tensor tensors[] = {{.name = "logits", .rank = 2, .dims = {2, 6761}, .data = logits}};
        const char *path = fake_case(test_temp_dir(), "l.safetensors", "stage=llm;" PLAIN, tensors, 1);
        fake_report r;
        fake_reset();
        *fake_state() = (fake){.wrong = FAKE_TILT, .at = 6761 + 5, .amount = rows[i].tilt};
        assert_ok(fake_run(&path, 1, rows[i].operands, NULL, &r));
        if (rows[i].pass)
            assert_int_equal(r.totals.failed, 0);
        else
            assert_one_failure(&r, "logits: top-1 differs in 1 rows, first in row 1");
    }
}

/* Bands whose least value stands there twice have a bound of their own; so have whole numbers. */
static void test_bands_at_the_floor_and_whole_numbers(void **test)
{
    (void)test;
    static const float logs[12] = {-3, 1, 2, -3, 2, 3, -1, 3, 4, 0, 4, 5}; /* [4, 3]: band 0 lies at the floor */
    static const int32_t ids[4] = {7, 0, 6560, 2};
    const char *dir = test_temp_dir();
    const fake_tensor fbank[] = {{.name = "fbank", .rank = 2, .dims = {4, 3}, .data = logs}};
    const fake_tensor tokens[] = {{.name = "tokens_16", .rank = 1, .dims = {4}, .data = ids, .integer = true}};
    const char *voice = fake_case(dir, "v.safetensors", "stage=voice;wav=a.wav", fbank, 1);
    const char *enroll = fake_case(dir, "e.safetensors", "stage=enroll", tokens, 1);
    static const struct {
        size_t at;
        double amount;
        bool pass;
    } rows[] = {{3, 1.9e-3, true}, {3, 2.1e-3, false}, {4, 1.9e-4, true}, {4, 2.1e-4, false}};
    fake_report r;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        fake_reset();
        *fake_state() = (fake){.wrong = FAKE_ADD, .tensor_name = "fbank", .amount = rows[i].amount, .at = rows[i].at};
        assert_ok(fake_run(&voice, 1, PRECISION_F32, NULL, &r));
        assert_int_equal(r.totals.passed, rows[i].pass);
        assert_int_equal(r.lines[0].line.stats.excluded_count, 4);
    }
    fake_reset();
    assert_ok(fake_run(&enroll, 1, PRECISION_F32, NULL, &r));
    assert_int_equal(r.totals.passed, 1);
    *fake_state() = (fake){.wrong = FAKE_ADD, .tensor_name = "tokens_16", .amount = 1, .at = 2};
    assert_ok(fake_run(&enroll, 1, PRECISION_BF16, NULL, &r));
    assert_one_failure(&r, "e.safetensors tokens_16: out of bound, worst at value 2");
}

static void test_frames_on_the_voiced_threshold(void **test)
{
    (void)test;
    enum { FRAMES = 40 };
    static float f0[FRAMES], audio[FRAMES * 480], source[FRAMES * 480];
    for (size_t i = 0; i < FRAMES * 480; i++)
        audio[i] = source[i] = 0.01f;
    for (size_t i = 0; i < FRAMES; i++)
        f0[i] = 100;
    f0[2] = 10.000001f; /* voiced by 1e-7 relative */
    const fake_tensor tensors[] = {{.name = "f0", .rank = 1, .dims = {FRAMES}, .data = f0},
                                   {.name = "source", .rank = 1, .dims = {FRAMES * 480}, .data = source},
                                   {.name = "audio", .rank = 1, .dims = {FRAMES * 480}, .data = audio}};
    const char *path = fake_case(test_temp_dir(), "h.safetensors", HIFT, tensors, 3);
    fake_report r;
    fake_reset();
    /* Our f0 on the other side: 480 source values and their reach in the audio are left out and counted. */
    *fake_state() = (fake){.wrong = FAKE_SET, .tensor_name = "f0", .at = 2, .amount = 9.999999};
    run_one(path, &r);
    assert_int_equal(r.totals.failed, 0);
    assert_int_equal(r.lines[1].line.stats.excluded_count, 480);
    assert_int_equal(r.lines[2].line.stats.excluded_count, 480 + 70 + 13735);
    assert_non_null(strstr(r.lines[2].text, "1 frames with f0 on the voiced threshold left out"));
    /* On the same side nothing is. */
    fake_state()->amount = 10.000002;
    run_one(path, &r);
    assert_int_equal(r.lines[1].line.stats.excluded_count, 0);
    /* A frame far from the threshold is not excused. */
    *fake_state() = (fake){.wrong = FAKE_SET, .tensor_name = "f0", .at = 3, .amount = 9.9};
    run_one(path, &r);
    assert_one_failure(&r, "f0: out of bound");
    assert_int_equal(r.lines[1].line.stats.excluded_count, 0);
}

static void test_captures_are_mapped_by_name(void **test)
{
    (void)test;
    static float rows[6 * 4];
    for (size_t i = 0; i < 24; i++)
        rows[i] = (float)i;
    const fake_tensor llm[] = {
        {.name = "text_embeds", .rank = 3, .dims = {1, 2, 4}, .data = rows + 4},
        {.name = "prompt_speech_tokens", .rank = 2, .dims = {1, 2}, .integer = true},
        {.name = "lm_input", .rank = 3, .dims = {1, 6, 4}, .data = rows},
        {.name = "expected_logits", .rank = 3, .dims = {1, 1, 4}},
        {.name = "last_hidden_state", .rank = 3, .dims = {1, 1, 4}},
    };
    parity_case *c = NULL;
    const char *path = fake_case(test_temp_dir(), "debug_llm_data.safetensors", NULL, llm, 5);
    assert_ok(parity_case_open(path, &c));
    assert_string_equal(parity_case_stage(c), "llm");
    assert_null(parity_case_defect(c));
    int64_t dims[5], count;
    const float *data;
    const int32_t *ids;
    assert_ok(parity_case_f32(c, "text_embeds", 2, dims, &data));
    assert_true(dims[0] == 2 && dims[1] == 4 && data[0] == 4);
    assert_ok(parity_case_f32(c, "text_embeds", 3, dims, &data));
    assert_true(dims[0] == 1 && dims[2] == 4);
    assert_ok(parity_case_i32(c, "prompt_speech_token", &count, &ids));
    assert_int_equal(count, 2);
    assert_ok(parity_case_i32(c, "forced", &count, &ids));
    assert_int_equal(count, 0);
    assert_err(CF_ERR_NOTFOUND, "tensor text is missing", parity_case_i32(c, "text", &count, &ids));
    assert_err(CF_ERR_MISMATCH, "expected 1 dimensions, found [1, 2, 4]",
               parity_case_f32(c, "text_embeds", 1, dims, &data));
    assert_true(parity_case_has(c, "logits") && parity_case_has(c, "hidden"));
    parity_case_close(c);

    const fake_tensor hift[] = {
        {.name = "python_hift_mel_input", .rank = 3, .dims = {1, 80, 1}},
        {.name = "python_f0", .rank = 2, .dims = {1, 1}},
        {.name = "python_hift_source", .rank = 3, .dims = {1, 1, 480}},
        {.name = "python_hift_audio", .rank = 2, .dims = {1, 480}},
        {.name = "python_spk_emb", .rank = 2, .dims = {1, 192}},
        {.name = "python_other", .rank = 1, .dims = {2}},
    };
    fake_report r;
    fake_reset();
    path = fake_case(test_temp_dir(), "debug_artifacts.safetensors", NULL, hift, 6);
    run_one(path, &r);
    assert_one_failure(&r, "python_other: no tensor of this name");
    assert_int_equal(r.totals.passed, 3);
    assert_ok(parity_case_open(path, &c));
    assert_string_equal(parity_case_meta(c, "finalize"), "1");
    assert_ok(parity_case_f32(c, "mel", 2, dims, &data));
    assert_true(dims[0] == 80 && dims[1] == 1);
    assert_ok(parity_case_f32(c, "source", 1, dims, &data));
    assert_true(dims[0] == 480);
    assert_int_equal(parity_case_profile(c), BOUND_CAPTURE);
    parity_case_close(c);
}

static void test_case_shapes_are_strict(void **test)
{
    (void)test;
    const fake_tensor tensors[] = {{.name = "mel", .rank = 3, .dims = {1, 80, 2}}};
    parity_case *c = NULL;
    int64_t dims[5];
    const float *data;
    assert_ok(parity_case_open(fake_case(test_temp_dir(), "x.safetensors", HIFT, tensors, 1), &c));
    assert_err(CF_ERR_MISMATCH, "expected 2 dimensions, found [1, 80, 2]", parity_case_f32(c, "mel", 2, dims, &data));
    parity_case_close(c);
}

static void test_captured_files_are_cases(void **test)
{
    (void)test;
    const char *dir = test_temp_dir(), *out = test_temp_dir();
    const char *path = flow_case(dir, "a.safetensors");
    fake_report r;
    fake_reset();
    *fake_state() = (fake){.wrong = FAKE_ADD, .tensor_name = "mel", .amount = 1, .at = 9};
    assert_ok(fake_run(&path, 1, PRECISION_F32, out, &r));
    assert_int_equal(r.totals.failed, 1);
    char copy[512];
    snprintf(copy, sizeof copy, "%s/a.safetensors", out);
    const char *paths[] = {copy};
    assert_ok(fake_run(paths, 1, PRECISION_F32, NULL, &r)); /* adds 1 once more: differs from the capture */
    assert_one_failure(&r, "mel: out of bound");
    fake_reset();
    assert_ok(fake_run(paths, 1, PRECISION_F32, NULL, &r));
    assert_int_equal(r.totals.passed, 2);
    parity_case *c = NULL;
    assert_ok(parity_case_open(copy, &c));
    assert_string_equal(parity_case_meta(c, "model"), "synthetic tiny seed 0");
    assert_non_null(strstr(parity_case_meta(c, "made_by"), "cosyfarm"));
    assert_true(parity_case_find(c, "token")->i32 != NULL);
    assert_true(parity_case_find(c, "mel")->f32[9] == 1);
    parity_case_close(c);
}

#define RUN(...) COMMAND(cmd_parity, "parity", __VA_ARGS__)

static void test_command_lines_and_exit_codes(void **test)
{
    (void)test;
    const char *dir = test_temp_dir();
    char *good = (char *)flow_case(dir, "a.safetensors");
    const fake_tensor fbank[] = {{.name = "fbank", .rank = 1, .dims = {4}}};
    char *voice = (char *)fake_case(dir, "v.safetensors", "stage=dream", fbank, 1);
    char *weights = (char *)fake_case(dir, "w.safetensors", "format=pt", fbank, 1);
    fake_reset();
    assert_int_equal(RUN("-m", "dir", good), 0);
    assert_non_null(
        strstr(command_out, "a.safetensors mel [80, 4] max 0 mean 0 rel 0 snr 999.0 dB (rel <= 3e-05) ok\n"));
    const char *last = strstr(command_out, "2 passed");
    assert_non_null(last);
    assert_string_equal(last, "2 passed, 0 failed\n");
    assert_string_equal(command_errors, "");
    assert_int_equal(RUN("-m", "dir", good, voice), 65);
    assert_non_null(strstr(command_out, "v.safetensors FAIL: stage \"dream\" is unsupported"));
    assert_non_null(strstr(command_out, "\n2 passed, 1 failed\n"));
    assert_int_equal(RUN("-m", "dir", good, weights), 78);
    assert_non_null(strstr(command_errors, "w.safetensors: not a case"));
    assert_string_equal(command_out, "");
    assert_int_equal(RUN("-m", "dir", "/nonexistent/x.safetensors"), 78);
    fake_state()->open_err = CF_ERR_NOTFOUND;
    assert_int_equal(RUN("-m", "dir", good), 78);
    assert_string_equal(command_errors, "cosyfarm parity: no such model\n");
    fake_state()->open_err = CF_ERR_NOMEM;
    assert_int_equal(RUN("-m", "dir", good), 75);
}

static void test_command_usage(void **test)
{
    (void)test;
    unsetenv("COSYFARM_MODEL");
    fake_reset();
    const char *dir = test_temp_dir(), *other = test_temp_dir();
    char *a = (char *)flow_case(dir, "a.safetensors"), *b = (char *)flow_case(other, "a.safetensors");
    assert_int_equal(RUN("x"), 78);
    assert_non_null(strstr(command_errors, "no model directory"));
    assert_int_equal(RUN("-m", "dir"), 64);
    assert_non_null(strstr(command_errors, "no case given"));
    assert_int_equal(RUN("-m", "dir", "--precision", "int4", a), 64);
    assert_int_equal(RUN("-m", "dir", "--presision", "f32", a), 64);
    assert_string_equal(command_errors, "cosyfarm parity: option \"--presision\" is not known, or may mean several; "
                                        "cosyfarm parity --help tells the options\n");
    assert_int_equal(RUN("-m", "dir", "--capture", (char *)other, a, b), 64);
    assert_non_null(strstr(command_errors, "would become one file"));
    assert_int_equal(fake_state()->runs, 0);
    assert_int_equal(RUN("--help"), 0);
    assert_non_null(strstr(command_out, "usage: cosyfarm parity -m MODEL_DIR"));
    setenv("COSYFARM_MODEL", "dir", 1);
    assert_int_equal(RUN(a), 0);
    unsetenv("COSYFARM_MODEL");
}

static void test_command_json(void **test)
{
    (void)test;
    static const char *const keys[] = {"case",   "tensor", "shape", "max_abs",  "mean_abs", "rel",
                                       "snr_db", "bound",  "pass",  "excluded", "reason",   NULL};
    char *good = (char *)flow_case(test_temp_dir(), "a.safetensors");
    fake_reset();
    *fake_state() = (fake){.wrong = FAKE_SET, .tensor_name = "mel", .amount = (double)NAN};
    assert_int_equal(RUN("-m", "dir", "--json", good), 65);
    assert_string_equal(command_errors, "1 passed, 1 failed\n");
    int lines = 0;
    for (char *line = strtok(command_out, "\n"); line; line = strtok(NULL, "\n"), lines++) {
        json *obj = NULL;
        bool pass;
        const char *text;
        double number;
        assert_ok(json_parse(line, strlen(line), 3, &obj));
        assert_ok(json_only_keys(obj, "line", keys));
        for (int i = 0; i < 9; i++)
            assert_non_null(json_find(obj, keys[i]));
        assert_ok(json_get_str(obj, "case", 512, &text));
        assert_string_equal(text, good);
        assert_ok(json_get_str(obj, "tensor", 64, &text));
        assert_ok(json_get_bool(obj, "pass", &pass));
        assert_int_equal(pass, strcmp(text, "mu") == 0);
        assert_int_equal(json_count(json_find(obj, "shape")), 2);
        if (pass) {
            assert_ok(json_get_f64(obj, "snr_db", 999, 999, &number));
            assert_ok(json_get_str(obj, "bound", 64, &text));
            assert_string_equal(text, "rel <= 1e-05");
        } else {
            assert_int_not_equal(json_get_f64(obj, "max_abs", 0, 1e30, &number), CF_OK); /* null */
            assert_ok(json_get_str(obj, "reason", 512, &text));
            assert_string_equal(text, "NaN or infinity at value 0");
        }
        json_close(obj);
    }
    assert_int_equal(lines, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_tensors_pass),
        cmocka_unit_test(test_wrong_values_name_case_and_tensor),
        cmocka_unit_test(test_inside_the_bound_passes),
        cmocka_unit_test(test_batch_must_be_the_same_bytes),
        cmocka_unit_test(test_defects_of_a_case),
        cmocka_unit_test(test_files_that_are_no_cases),
        cmocka_unit_test(test_only_needed_adapters_open),
        cmocka_unit_test(test_top1_in_reduced_precision),
        cmocka_unit_test(test_bands_at_the_floor_and_whole_numbers),
        cmocka_unit_test(test_frames_on_the_voiced_threshold),
        cmocka_unit_test(test_captures_are_mapped_by_name),
        cmocka_unit_test(test_case_shapes_are_strict),
        cmocka_unit_test(test_captured_files_are_cases),
        cmocka_unit_test(test_command_lines_and_exit_codes),
        cmocka_unit_test(test_command_usage),
        cmocka_unit_test(test_command_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
