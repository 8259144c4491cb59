/* test_weights.c - names, shapes and types of a stage's file: every spelling that is accepted, weight norm in all its
 * forms against the formula, and everything that makes a file another model's. */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/model/safetensors.h"
#include "common/model/weights.h"

static const float TWELVE[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

#define F32(name, rank, ...)                         \
    (safetensors_item)                               \
    {                                                \
        name, ENTRY_F32, rank, {__VA_ARGS__}, TWELVE \
    }
#define DIMS(...) ((int64_t[]){__VA_ARGS__})

static cf_err open_items(const safetensors_item *items, size_t count, weights **ret_w)
{
    static char dir[IO_PATH_BYTES];
    char path[IO_PATH_BYTES];
    if (!dir[0])
        snprintf(dir, sizeof dir, "%s", test_temp_dir());
    assert_ok(io_join(path, sizeof path, dir, "model.safetensors"));
    assert_ok(safetensors_write(path, items, count, NULL, 0));
    return weights_open(path, ret_w);
}

static void test_asks_for_each_tensor(void **state)
{
    (void)state;
    const safetensors_item items[] = {F32("a", 2, 3, 4), F32("b.c", 1, 2), F32("none", 2, 0, 5)};
    weights *w;
    const float *f;
    const double *d;
    int64_t dims[2];
    assert_ok(open_items(items, 3, &w));
    assert_true(weights_has(w, "a") && !weights_has(w, "z"));
    assert_ok(weights_dims(w, "a", 2, dims));
    assert_true(dims[0] == 3 && dims[1] == 4);
    assert_err(CF_ERR_MISMATCH, "model.safetensors: 3 tensors do not belong to this model, the first is a",
               weights_done(w)); /* has and dims do not count as asking */
    assert_ok(weights_f32(w, "a", 2, DIMS(3, 4), &f));
    assert_memory_equal(f, TWELVE, sizeof TWELVE);
    assert_int_equal((uintptr_t)f % sizeof(float), 0);
    assert_err(CF_ERR_MISMATCH, "2 tensors do not belong to this model, the first is b.c", weights_done(w));
    assert_ok(weights_f64(w, "b.c", 1, DIMS(2), &d));
    assert_true(d[0] == 1 && d[1] == 2);
    assert_err(CF_ERR_MISMATCH, "tensor none does not belong to this model", weights_done(w));
    assert_ok(weights_f32(w, "none", 2, DIMS(0, 5), &f));
    assert_ok(weights_done(w));
    weights_close(w);
    weights_close(NULL);
}

static void test_refuses_what_does_not_fit(void **state)
{
    (void)state;
    const int32_t ints[2] = {1, 2};
    const safetensors_item items[] = {F32("a", 2, 3, 4), {"i", ENTRY_I32, 1, {2}, ints}};
    weights *w;
    const float *f = NULL;
    int64_t dims[3] = {7, 7, 7};
    assert_ok(open_items(items, 2, &w));
    assert_err(CF_ERR_NOTFOUND, "model.safetensors: tensor z is missing", weights_f32(w, "z", 1, DIMS(1), &f));
    assert_err(CF_ERR_NOTFOUND, "tensor z is missing", weights_dims(w, "z", 1, dims));
    assert_err(CF_ERR_MISMATCH, "tensor a: expected [4, 3] f32, found [3, 4]", weights_f32(w, "a", 2, DIMS(4, 3), &f));
    assert_err(CF_ERR_MISMATCH, "tensor a: expected [12] f32, found [3, 4]", weights_f32(w, "a", 1, DIMS(12), &f));
    assert_err(CF_ERR_MISMATCH, "tensor a: expected [3, 4, 1] f32, found [3, 4]",
               weights_check(w, "a", 3, DIMS(3, 4, 1)));
    assert_err(CF_ERR_MISMATCH, "tensor a: expected 3 dimensions, found [3, 4]", weights_dims(w, "a", 3, dims));
    assert_err(CF_ERR_MISMATCH, "tensor i: expected [2] f32, found [2] i32", weights_f32(w, "i", 1, DIMS(2), &f));
    assert_err(CF_ERR_MISMATCH, "tensor i: expected [3] f32, found [2] i32", weights_check(w, "i", 1, DIMS(3)));
    assert_null(f);
    assert_int_equal(dims[0], 7);
    weights_close(w);
}

static void test_converts_types(void **state)
{
    (void)state;
    const double f64[2] = {1.0 / 3.0, -2};
    const uint16_t f16[2] = {0x3555, 0xC000}, bf16[2] = {0x3EAA, 0xC000};
    /* The one byte in front makes the last tensor unaligned: no pointer into the mapping can be lent. */
    const safetensors_item items[] = {{"f64", ENTRY_F64, 1, {2}, f64},
                                      {"f16", ENTRY_F16, 1, {2}, f16},
                                      {"bf16", ENTRY_BF16, 1, {2}, bf16},
                                      {"byte", ENTRY_F16, 1, {1}, f16},
                                      F32("odd", 1, 3)};
    weights *w;
    const float *f;
    const double *d;
    assert_ok(open_items(items, 5, &w));
    assert_ok(weights_f32(w, "f64", 1, DIMS(2), &f));
    assert_true(f[0] == (float)(1.0 / 3.0) && f[1] == -2);
    assert_ok(weights_f64(w, "f64", 1, DIMS(2), &d));
    assert_true(d[0] == 1.0 / 3.0 && d[1] == -2);
    assert_ok(weights_f32(w, "f16", 1, DIMS(2), &f));
    assert_true(f[0] == 0x1.554p-2f && f[1] == -2);
    assert_ok(weights_f32(w, "bf16", 1, DIMS(2), &f));
    assert_true(f[0] == 0x1.54p-2f && f[1] == -2);
    assert_ok(weights_f32(w, "odd", 1, DIMS(3), &f));
    assert_int_equal((uintptr_t)f % sizeof(float), 0);
    assert_memory_equal(f, TWELVE, 3 * sizeof(float));
    weights_close(w);
}

static void test_accepts_other_spellings(void **state)
{
    (void)state;
    static const struct {
        const char *stored, *name;
    } CASES[] = {
        {"llm.model.model.norm.weight", "llm.model.model.norm.weight"},
        {"llm.norm.weight", "llm.model.model.norm.weight"},
        {"norm.weight", "llm.model.model.norm.weight"},
        {"llm.layers.3.mlp.up_proj.weight", "llm.model.model.layers.3.mlp.up_proj.weight"},
        {"layers.0.input_layernorm.weight", "llm.model.model.layers.0.input_layernorm.weight"},
        {"embed_tokens.weight", "llm.model.model.embed_tokens.weight"},
        {"llm.embed_tokens.weight", "llm.model.model.embed_tokens.weight"},
        {"llm.lm_head.weight", "llm.model.lm_head.weight"},
        {"dit.proj_out.bias", "decoder.estimator.proj_out.bias"},
        {"generator.conv_post.bias", "conv_post.bias"},
        {"module.generator.conv_post.bias", "module.conv_post.bias"}, /* upstream removes it wherever it stands */
        {"generator.generator.x", "x"},
        {"genegenerator.rator.x", "generator.x"}, /* once over the text, as Python's replace */
        {"normal.weight", "normal.weight"},
        {"dit", "dit"},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        weights *w;
        const float *f;
        const safetensors_item item = F32(CASES[i].stored, 1, 2);
        assert_ok(open_items(&item, 1, &w));
        if (weights_f32(w, CASES[i].name, 1, DIMS(2), &f) != CF_OK)
            fail_msg("%s: %s", CASES[i].stored, err_text());
        assert_ok(weights_done(w));
        weights_close(w);
    }
    char longer[400], prefixed[420];
    memset(longer, 'n', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    snprintf(prefixed, sizeof prefixed, "generator.%s", longer);
    weights *w;
    const safetensors_item item = F32(prefixed, 1, 2);
    assert_ok(open_items(&item, 1, &w)); /* nobody asks for such a name: it is kept, and refused in the end */
    assert_err(CF_ERR_MISMATCH, "tensor generator.nnn", weights_done(w));
    weights_close(w);
}

static void test_refuses_two_of_one_name(void **state)
{
    (void)state;
    weights *w = NULL;
    const safetensors_item items[] = {F32("conv_pre.bias", 1, 2), F32("generator.conv_pre.bias", 1, 2)};
    assert_err(CF_ERR_INVALID, "both stand for conv_pre.bias", open_items(items, 2, &w));
    const safetensors_item others[] = {F32("norm.weight", 1, 2), F32("a", 1, 1), F32("llm.norm.weight", 1, 2)};
    assert_err(CF_ERR_INVALID, "both stand for llm.model.model.norm.weight", open_items(others, 3, &w));
    assert_null(w);
}

/* ---- weight norm ---- */

static const float MAGNITUDES[2] = {3.0f, -0.5f};
static const float DIRECTIONS[8] = {1, -2, 3, 0.25f, 0.1f, 0.2f, -0.3f, 4};

/* W[o] = v[o] * (g[o] / ||v[o]||) in double, as the header says. */
static double folded(size_t i)
{
    double sum = 0;
    for (size_t k = 0; k < 4; k++)
        sum += (double)DIRECTIONS[i / 4 * 4 + k] * (double)DIRECTIONS[i / 4 * 4 + k];
    return (double)DIRECTIONS[i] * ((double)MAGNITUDES[i / 4] / sqrt(sum));
}

static void test_folds_every_form(void **state)
{
    (void)state;
    static const struct {
        const char *g, *v;
    } FORMS[] = {
        {"ups.0.parametrizations.weight.original0", "ups.0.parametrizations.weight.original1"},
        {"ups.0.weight.original0", "ups.0.weight.original1"},
        {"ups.0.weight_g", "ups.0.weight_v"},
        {"generator.ups.0.weight_g", "generator.ups.0.weight_v"},
    };
    for (size_t i = 0; i < CF_COUNT(FORMS); i++) {
        const safetensors_item items[] = {{FORMS[i].v, ENTRY_F32, 3, {2, 2, 2}, DIRECTIONS},
                                          {FORMS[i].g, ENTRY_F32, 3, {2, 1, 1}, MAGNITUDES}};
        weights *w;
        int64_t dims[3];
        const float *f;
        const double *d;
        assert_ok(open_items(items, 2, &w));
        assert_ok(weights_folded_dims(w, "ups.0", 3, dims));
        assert_true(dims[0] == 2 && dims[1] == 2 && dims[2] == 2);
        assert_ok(weights_folded_f64(w, "ups.0", 3, DIMS(2, 2, 2), &d));
        assert_ok(weights_folded_f32(w, "ups.0", 3, DIMS(2, 2, 2), &f));
        assert_ok(weights_check_folded(w, "ups.0", 3, DIMS(2, 2, 2)));
        for (size_t k = 0; k < 8; k++) {
            assert_true(d[k] == folded(k)); /* the same operations in the same order: the same bits */
            assert_true(f[k] == (float)folded(k));
        }
        assert_ok(weights_done(w));
        weights_close(w);
    }
}

static void test_takes_fused_weights(void **state)
{
    (void)state;
    weights *w;
    const float *f;
    const safetensors_item item = {"ups.0.weight", ENTRY_F32, 3, {2, 2, 2}, DIRECTIONS};
    assert_ok(open_items(&item, 1, &w));
    assert_ok(weights_folded_f32(w, "ups.0", 3, DIMS(2, 2, 2), &f));
    assert_memory_equal(f, DIRECTIONS, sizeof DIRECTIONS);
    assert_ok(weights_done(w));
    assert_err(CF_ERR_NOTFOUND, "tensor ups.1.weight is missing", weights_folded_f32(w, "ups.1", 3, DIMS(1, 1, 1), &f));
    weights_close(w);
}

static void test_refuses_broken_pairs(void **state)
{
    (void)state;
    const float zeros[8] = {0, 0, 0, 0, 1, 1, 1, 1}, infinite[2] = {3, INFINITY};
    const float nan_direction[8] = {1, 1, 1, 1, 1, 1, NAN, 1};
    const struct {
        cf_err code;
        const char *part;
        safetensors_item g, v;
    } CASES[] = {
        {CF_ERR_NOTFOUND,
         "tensor c.weight_v is missing",
         {"c.weight_g", ENTRY_F32, 3, {2, 1, 1}, MAGNITUDES},
         {"x", ENTRY_F32, 1, {1}, zeros}},
        {CF_ERR_NOTFOUND,
         "tensor c.weight_g is missing",
         {"x", ENTRY_F32, 1, {1}, zeros},
         {"c.weight_v", ENTRY_F32, 3, {2, 2, 2}, DIRECTIONS}},
        {CF_ERR_MISMATCH,
         "tensor c.weight_g: expected [2, 1, 1] f32, found [2]",
         {"c.weight_g", ENTRY_F32, 1, {2}, MAGNITUDES},
         {"c.weight_v", ENTRY_F32, 3, {2, 2, 2}, DIRECTIONS}},
        {CF_ERR_MISMATCH,
         "tensor c.weight_v: expected [2, 2, 2] f32, found [2, 4, 1]",
         {"c.weight_g", ENTRY_F32, 3, {2, 1, 1}, MAGNITUDES},
         {"c.weight_v", ENTRY_F32, 3, {2, 4, 1}, DIRECTIONS}},
        {CF_ERR_NUMERIC,
         "weight norm of c: row 0 has norm 0 and magnitude 3",
         {"c.weight_g", ENTRY_F32, 3, {2, 1, 1}, MAGNITUDES},
         {"c.weight_v", ENTRY_F32, 3, {2, 2, 2}, zeros}},
        {CF_ERR_NUMERIC,
         "row 1 has norm 4.",
         {"c.weight_g", ENTRY_F32, 3, {2, 1, 1}, infinite},
         {"c.weight_v", ENTRY_F32, 3, {2, 2, 2}, DIRECTIONS}},
        {CF_ERR_NUMERIC,
         "row 1 has norm nan",
         {"c.weight_g", ENTRY_F32, 3, {2, 1, 1}, MAGNITUDES},
         {"c.weight_v", ENTRY_F32, 3, {2, 2, 2}, nan_direction}},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        weights *w;
        const float *f = NULL;
        assert_ok(open_items((const safetensors_item[]){CASES[i].g, CASES[i].v}, 2, &w));
        assert_err(CASES[i].code, CASES[i].part, weights_folded_f32(w, "c", 3, DIMS(2, 2, 2), &f));
        assert_null(f);
        weights_close(w);
    }
    /* Both forms at once: one of them would be ignored, so the file is another model's. */
    const safetensors_item both[] = {{"c.weight_g", ENTRY_F32, 3, {2, 1, 1}, MAGNITUDES},
                                     {"c.weight_v", ENTRY_F32, 3, {2, 2, 2}, DIRECTIONS},
                                     {"c.weight", ENTRY_F32, 3, {2, 2, 2}, DIRECTIONS}};
    weights *w;
    const float *f;
    assert_ok(open_items(both, 3, &w));
    assert_ok(weights_folded_f32(w, "c", 3, DIMS(2, 2, 2), &f));
    assert_err(CF_ERR_MISMATCH, "tensor c.weight does not belong", weights_done(w));
    weights_close(w);
}

/* ---- whose file it is ---- */

static void test_ignores_what_upstream_ignores(void **state)
{
    (void)state;
    weights *w;
    const float *f;
    const safetensors_item head[] = {F32("a", 1, 1), F32("llm.model.lm_head.weight", 2, 3, 4)};
    assert_ok(open_items(head, 2, &w));
    assert_ok(weights_f32(w, "a", 1, DIMS(1), &f));
    assert_ok(weights_done(w));
    weights_close(w);
    const safetensors_item vocoder[] = {F32("m_source.l_linear.weight", 2, 1, 9), F32("discriminator.0.weight", 1, 2)};
    assert_ok(open_items(vocoder, 2, &w));
    assert_ok(weights_f32(w, "m_source.l_linear.weight", 2, DIMS(1, 9), &f));
    assert_ok(weights_done(w));
    weights_close(w);
    const safetensors_item alone[] = {F32("a", 1, 1), F32("discriminator.0.weight", 1, 2)};
    assert_ok(open_items(alone, 2, &w));
    assert_ok(weights_f32(w, "a", 1, DIMS(1), &f));
    assert_err(CF_ERR_MISMATCH, "tensor discriminator.0.weight does not belong", weights_done(w));
    weights_close(w);
}

static void test_names_other_models(void **state)
{
    (void)state;
    static const char *const SIGNS[] = {"llm_embedding.weight", "llm_decoder.bias", "text_encoder.embed.out.0.weight",
                                        "encoder.embed.out.0.weight", "decoder.estimator.down_blocks.0.0.mlp.1.weight"};
    static const float rows[6564 * 1];
    weights *w = NULL;
    for (size_t i = 0; i < CF_COUNT(SIGNS); i++) {
        const safetensors_item items[] = {F32("a", 1, 1), F32(SIGNS[i], 1, 2)};
        assert_err(CF_ERR_UNSUPPORTED, "a CosyVoice 1 or 2 model", open_items(items, 2, &w));
        assert_non_null(strstr(err_text(), SIGNS[i]));
    }
    const safetensors_item second = {"speech_embedding.weight", ENTRY_F32, 2, {6564, 1}, rows};
    assert_err(CF_ERR_UNSUPPORTED, "a CosyVoice 2 model (speech_embedding.weight has 6564 rows",
               open_items(&second, 1, &w));
    assert_null(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_asks_for_each_tensor),
        cmocka_unit_test(test_refuses_what_does_not_fit),
        cmocka_unit_test(test_converts_types),
        cmocka_unit_test(test_accepts_other_spellings),
        cmocka_unit_test(test_refuses_two_of_one_name),
        cmocka_unit_test(test_folds_every_form),
        cmocka_unit_test(test_takes_fused_weights),
        cmocka_unit_test(test_refuses_broken_pairs),
        cmocka_unit_test(test_ignores_what_upstream_ignores),
        cmocka_unit_test(test_names_other_models),
    };
    return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}
