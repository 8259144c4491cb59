/* test_recipe.c - the synthetic recipe: every published tensor hash, files equal to the reference's, directories that
 * must not be written over. */
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/sha256.h"
#include "common/model/recipe_impl.h"
#include "common/model/tensor_file.h"
#include "tests/harness/tiny_model.h"

#define CHUNK 65536

/* Streams a tensor's values through SHA-256. */
static void hash_tensor(const recipe *r, const stage_tensor *t, char ret_hex[SHA256_HEX_BYTES])
{
    static float chunk[CHUNK];
    sha256 *hash;
    uint64_t count = 1;
    for (int d = 0; d < t->rank; d++)
        count *= (uint64_t)t->shape[d];
    assert_ok(sha256_open(&hash));
    for (uint64_t first = 0; first < count; first += CHUNK) {
        const size_t n = count - first < CHUNK ? (size_t)(count - first) : CHUNK;
        recipe_values(r, t, first, n, chunk);
        sha256_update(hash, chunk, n * sizeof *chunk);
    }
    sha256_finish(hash, ret_hex);
}

/* Compares one line "name shape sha256" of the published list. */
static void check_line(const recipe *r, const stage_tensor *t, const char *line)
{
    char want[256];
    char hex[SHA256_HEX_BYTES];
    size_t used = (size_t)snprintf(want, sizeof want, "%s ", t->name);
    for (int d = 0; d < t->rank; d++)
        used += (size_t)snprintf(want + used, sizeof want - used, "%s%d", d ? "x" : "", (int)t->shape[d]);
    hash_tensor(r, t, hex);
    snprintf(want + used, sizeof want - used, " %s", hex);
    assert_string_equal(line, want);
}

/* Compares one line "voice.NAME.TENSOR shape sha256" with the voice file of the tiny model. */
static void check_voice_line(const char *line)
{
    char name[32], tensor[32], shape[32], hex[SHA256_HEX_BYTES], want_hex[80], path[IO_PATH_BYTES];
    tensor_file *f;
    assert_int_equal(sscanf(line, "voice.%31[a-z].%31[a-z_] %31[0-9x] %79s", name, tensor, shape, want_hex), 4);
    snprintf(path, sizeof path, "%s/voices/%s.safetensors", tiny_model_dir(), name);
    assert_ok(tensor_file_open(path, &f));
    const tensor_entry *e = tensor_file_find(f, tensor);
    assert_non_null(e);
    assert_ok(sha256_of(e->data, entry_bytes(e), hex));
    assert_string_equal(hex, want_hex);
    tensor_file_close(f);
}

/* The tensors of a published list; then, for the tiny model of seed 0, its voices. */
static void check_list(const recipe *r, const char *path)
{
    FILE *f = fopen(path, "r");
    char line[512];
    int voice_tensors = 0;
    assert_non_null(f);
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++) {
        stage_table table;
        assert_ok(recipe_table(r, (model_stage)stage, &table));
        for (size_t i = 0; i < table.count; i++) {
            assert_non_null(fgets(line, sizeof line, f));
            line[strcspn(line, "\n")] = '\0';
            check_line(r, &table.items[i], line);
        }
        stage_table_done(&table);
    }
    for (; fgets(line, sizeof line, f); voice_tensors++) {
        assert_memory_equal(line, "voice.", 6);
        if (r->seed == 0)
            check_voice_line(line);
    }
    assert_int_equal(voice_tensors, 6);
    fclose(f);
}

static void test_tiny_hashes(void **state)
{
    (void)state;
    check_list(&(recipe){.size = RECIPE_TINY}, test_path("tests/golden/recipe/tiny-0.txt"));
    check_list(&(recipe){.size = RECIPE_TINY, .harsh = true}, test_path("tests/golden/recipe/tiny-0-harsh.txt"));
}

static void test_another_seed(void **state)
{
    (void)state;
    check_list(&(recipe){.size = RECIPE_TINY, .seed = 1}, test_shared("golden/recipe/tiny-1.txt"));
}

static void test_small_hashes(void **state)
{
    (void)state;
    check_list(&(recipe){.size = RECIPE_SMALL}, test_path("tests/golden/recipe/small-0.txt"));
}

/* 850 million values: only when asked for. */
static void test_full_hashes(void **state)
{
    (void)state;
    if (!getenv("COSYFARM_SLOW_TESTS"))
        skip();
    check_list(&(recipe){.size = RECIPE_FULL}, test_shared("golden/recipe/full-0.txt"));
}

/* Known answers of SplitMix64 and of the first values. */
static void test_known_words(void **state)
{
    (void)state;
    assert_true(recipe_word(0, 0) == 0xE220A8397B1DCDAFull);
    assert_true(recipe_word(0, 1) == 0x6E789E6AA1B965F4ull);
    assert_true(recipe_key(0, "a") == 0xAF63DC4C8601EC8Cull);
    assert_true(recipe_key(1, "a") == (0xAF63DC4C8601EC8Cull ^ 0x9E3779B97F4A7C15ull));
    float whole[7];
    float part[3];
    recipe_uniform(5, 0, 7, 1.0, 0.3, whole);
    recipe_uniform(5, 4, 3, 1.0, 0.3, part);
    assert_memory_equal(whole + 4, part, sizeof part);
    for (int i = 0; i < 7; i++)
        assert_true(whole[i] > 0.69f && whole[i] < 1.31f);
}

static void read_both(const char *ours, const char *theirs, char **ret_a, char **ret_b, size_t *ret_a_bytes,
                      size_t *ret_b_bytes)
{
    assert_ok(io_read_file(ours, 64u << 20, ret_a, ret_a_bytes));
    assert_ok(io_read_file(theirs, 64u << 20, ret_b, ret_b_bytes));
}

static void assert_same_file(const char *dir, const char *name)
{
    char ours[IO_PATH_BYTES];
    char theirs[IO_PATH_BYTES];
    char *a;
    char *b;
    size_t a_bytes;
    size_t b_bytes;
    snprintf(theirs, sizeof theirs, "data/pt/tiny-0/%s", name);
    assert_ok(io_join(ours, sizeof ours, dir, name));
    read_both(ours, test_shared(theirs), &a, &b, &a_bytes, &b_bytes);
    if (a_bytes != b_bytes || memcmp(a, b, a_bytes) != 0)
        fail_msg("%s differs from the reference's", name);
    mem_free(a);
    mem_free(b);
}

static void test_small_files_are_the_references(void **state)
{
    (void)state;
    const char *dir = tiny_model_dir();
    assert_same_file(dir, "cosyvoice3.yaml");
    assert_same_file(dir, "CosyVoice-BlankEN/config.json");
    assert_same_file(dir, "CosyVoice-BlankEN/tokenizer_config.json");
    assert_same_file(dir, "CosyVoice-BlankEN/vocab.json");
    assert_same_file(dir, "CosyVoice-BlankEN/merges.txt");
    assert_same_file(dir, "voices/echo.safetensors");
    assert_same_file(dir, "voices/vale.safetensors");
}

/* torch.save's bytes, but for the 40 digits of the serialization id, its checksum and its descriptor. */
static void assert_same_pt(const char *dir, const char *name)
{
    char ours[IO_PATH_BYTES];
    char theirs[IO_PATH_BYTES];
    char *a;
    char *b;
    size_t a_bytes;
    size_t b_bytes;
    size_t differ = 0;
    snprintf(theirs, sizeof theirs, "data/pt/tiny-0/%s", name);
    assert_ok(io_join(ours, sizeof ours, dir, name));
    read_both(ours, test_shared(theirs), &a, &b, &a_bytes, &b_bytes);
    assert_int_equal(a_bytes, b_bytes);
    for (size_t i = 0; i < a_bytes; i++)
        differ += a[i] != b[i];
    if (differ > 40 + 2 * 4)
        fail_msg("%s: %zu bytes differ", name, differ);
    mem_free(a);
    mem_free(b);
}

static void test_pt_files_are_torchs(void **state)
{
    (void)state;
    const char *dir = tiny_model_pt_dir();
    assert_same_pt(dir, "flow.pt");
    assert_same_pt(dir, "hift.pt");
    assert_same_pt(dir, "llm.pt");
}

static void test_pt_and_safetensors_agree(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"llm", "flow", "hift"};
    for (int s = 0; s < 3; s++) {
        char a_path[IO_PATH_BYTES];
        char b_path[IO_PATH_BYTES];
        tensor_file *a;
        tensor_file *b;
        snprintf(a_path, sizeof a_path, "%s/%s.safetensors", tiny_model_dir(), NAMES[s]);
        snprintf(b_path, sizeof b_path, "%s/%s.pt", tiny_model_pt_dir(), NAMES[s]);
        assert_ok(tensor_file_open(a_path, &a));
        assert_ok(tensor_file_open(b_path, &b));
        assert_int_equal(tensor_file_count(b), tensor_file_count(a) + (s == 0)); /* lm_head */
        for (size_t i = 0; i < tensor_file_count(a); i++) {
            const tensor_entry *x = tensor_file_at(a, i);
            const tensor_entry *y = tensor_file_find(b, x->name);
            assert_non_null(y);
            assert_true(x->contiguous && y->contiguous);
            assert_int_equal(entry_bytes(x), entry_bytes(y));
            assert_memory_equal(x->data, y->data, entry_bytes(x));
        }
        assert_ok(tensor_file_verify(b));
        tensor_file_close(a);
        tensor_file_close(b);
    }
}

static void write_text(const char *dir, const char *name, const char *text)
{
    char path[IO_PATH_BYTES];
    assert_ok(io_join(path, sizeof path, dir, name));
    assert_ok(io_write_file(path, text, strlen(text)));
}

static void test_refuses_to_overwrite(void **state)
{
    (void)state;
    const recipe tiny = {.size = RECIPE_TINY};
    char dir[IO_PATH_BYTES];
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    write_text(dir, "cosyvoice3.yaml", "__set_seed1: !apply:random.seed [1986]\n");
    assert_err(CF_ERR_BUSY, "not synthetic", recipe_make_dir(&tiny, RECIPE_SAFETENSORS, NULL, dir));
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    write_text(dir, "llm.rl.pt", "x");
    assert_err(CF_ERR_BUSY, "llm.rl.pt is in the way", recipe_make_dir(&tiny, RECIPE_SAFETENSORS, NULL, dir));
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    write_text(dir, "flow.safetensors", "x");
    assert_err(CF_ERR_BUSY, "instead of flow.pt", recipe_make_dir(&tiny, RECIPE_PT, NULL, dir));
}

static void test_full_needs_a_vocabulary(void **state)
{
    (void)state;
    const recipe full = {.size = RECIPE_FULL};
    char dir[IO_PATH_BYTES];
    char yaml[IO_PATH_BYTES];
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    assert_err(CF_ERR_INVALID, "--tokenizer", recipe_make_dir(&full, RECIPE_SAFETENSORS, NULL, dir));
    assert_err(CF_ERR_NOTFOUND, "vocab.json", recipe_make_dir(&full, RECIPE_SAFETENSORS, "/nonexistent", dir));
    assert_ok(io_join(yaml, sizeof yaml, dir, "cosyvoice3.yaml"));
    assert_false(io_exists(yaml)); /* an unfinished directory does not pass for a model */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_words),          cmocka_unit_test(test_tiny_hashes),
        cmocka_unit_test(test_another_seed),         cmocka_unit_test(test_small_hashes),
        cmocka_unit_test(test_full_hashes),          cmocka_unit_test(test_small_files_are_the_references),
        cmocka_unit_test(test_pt_files_are_torchs),  cmocka_unit_test(test_pt_and_safetensors_agree),
        cmocka_unit_test(test_refuses_to_overwrite), cmocka_unit_test(test_full_needs_a_vocabulary),
    };
    return cmocka_run_group_tests_name("recipe", tests, NULL, NULL);
}
