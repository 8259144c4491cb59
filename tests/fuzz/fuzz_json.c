/*
 * fuzz_json.c - JSON of strangers through both readers. What the tree accepts, the forward reader passes over to its
 * last byte; what is printed is read back to the same text; and no getter takes what it may not.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/json_scan.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"

#define DEPTH 6

static void use_value(const json *v)
{
    uint64_t u64;
    double f64;
    bool flag;
    const char *text;
    if (json_as_u64(v, "value", 3, 1000, &u64) == CF_OK)
        CF_ASSERT(u64 >= 3 && u64 <= 1000);
    if (json_as_f64(v, "value", -2, 2, &f64) == CF_OK)
        CF_ASSERT(f64 >= -2 && f64 <= 2 && json_is_number(v));
    if (json_as_str(v, "value", 10, &text) == CF_OK)
        CF_ASSERT(strlen(text) <= 10 && utf8_valid(text, strlen(text), NULL));
    CF_ASSERT(json_as_bool(v, "value", &flag) != CF_OK || !json_is_number(v));
    size_t count = 0;
    for (const json *item = json_first(v); item; item = json_next(item), count++) {
        if (json_is_object(v))
            CF_ASSERT(json_find(v, json_key(item)) == item); /* no key appears twice */
        use_value(item);
    }
    CF_ASSERT(count == json_count(v) && (count == 0 || json_is_object(v) || json_is_array(v)));
}

static void print_again(const json *root, bool indented)
{
    char *text, *same;
    json *again;
    CF_ASSERT(json_print(root, indented, &text) == CF_OK);
    CF_ASSERT(json_parse(text, strlen(text), DEPTH, &again) == CF_OK);
    CF_ASSERT(json_print(again, indented, &same) == CF_OK);
    CF_ASSERT(strcmp(text, same) == 0);
    json_close(again);
    mem_free(same);
    mem_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    static const char *const KEYS[] = {"alpha", "beta", NULL};
    const char *text = (const char *)data;
    json *root = NULL;
    json_scan scan = {.text = text, .text_bytes = data_bytes};
    const bool skipped =
        utf8_valid(text, data_bytes, NULL) && json_scan_skip(&scan, DEPTH + 1) == CF_OK && json_scan_end(&scan);
    CF_ASSERT(scan.off <= data_bytes);
    scan = (json_scan){.text = text, .text_bytes = data_bytes};
    char buf[16];
    size_t bytes;
    uint32_t number;
    if (json_scan_string(&scan, buf, sizeof buf, &bytes) == CF_OK)
        CF_ASSERT(bytes <= sizeof buf);
    scan.off = 0;
    if (json_scan_u32(&scan, 4000, &number) == CF_OK)
        CF_ASSERT(number <= 4000);
    if (json_parse(text, data_bytes, DEPTH, &root) != CF_OK) {
        CF_ASSERT(root == NULL);
        return 0;
    }
    CF_ASSERT(skipped);
    use_value(root);
    if (json_is_object(root) && json_only_keys(root, "root", KEYS) == CF_OK)
        CF_ASSERT(json_count(root) <= 2);
    print_again(root, false);
    print_again(root, true);
    json_close(root);
    return 0;
}
