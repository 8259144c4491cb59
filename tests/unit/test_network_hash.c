/* test_network_hash.c - hashes of network files: right over several chunks, remembered, and asked again when the file
 * has changed. */
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/sha256.h"
#include "common/model/network_hash.h"

#define FILE_BYTES (((size_t)9 << 20) + 3)

static void test_hash(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    char path[IO_PATH_BYTES], want[SHA256_HEX_BYTES], got[SHA256_HEX_BYTES];
    unsigned char *bytes;
    assert_ok(mem_alloc(FILE_BYTES, 1, &bytes));
    for (size_t i = 0; i < FILE_BYTES; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 13);
    assert_ok(io_join(path, sizeof path, dir, "net.onnx"));
    for (int round = 0; round < 2; round++) {
        bytes[FILE_BYTES - 1] = (unsigned char)round;
        assert_ok(io_write_file(path, bytes, FILE_BYTES));
        assert_ok(sha256_of(bytes, FILE_BYTES, want));
        for (int again = 0; again < 2; again++) {
            assert_ok(network_sha256(dir, "net.onnx", got));
            assert_string_equal(got, want);
        }
    }
    assert_ok(io_join(path, sizeof path, dir, "voices/.networks"));
    char *memory;
    size_t memory_bytes;
    assert_ok(io_read_file(path, 4096, &memory, &memory_bytes));
    assert_non_null(strstr(memory, want));
    mem_free(memory);
    assert_err(CF_ERR_NOTFOUND, "absent.onnx: no such file", network_sha256(dir, "absent.onnx", got));
    mem_free(bytes);
}

/* Each of the three files counts, and which of them says what. */
static void test_blank_en(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "merges.txt", "vocab.json"};
    const char *dir = test_temp_dir();
    char path[IO_PATH_BYTES], first[SHA256_HEX_BYTES], got[SHA256_HEX_BYTES];
    assert_ok(io_join(path, sizeof path, dir, "CosyVoice-BlankEN"));
    assert_ok(io_make_dirs(path, 0755));
    assert_err(CF_ERR_NOTFOUND, "CosyVoice-BlankEN/config.json: no such file", blank_en_sha256(dir, got));
    for (int changed = -1; changed < 3; changed++) {
        for (int i = 0; i < 3; i++) {
            snprintf(path, sizeof path, "%s/CosyVoice-BlankEN/%s", dir, names[i]);
            assert_ok(io_write_file(path, i == changed ? "x" : "y", 1));
        }
        assert_ok(blank_en_sha256(dir, changed < 0 ? first : got));
        if (changed >= 0)
            assert_string_not_equal(got, first);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_hash), cmocka_unit_test(test_blank_en)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
