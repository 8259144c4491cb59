/*
 * fuzz_wire.c - messages of strangers. What is accepted on any route is printed again, and then it is the same message;
 * what is refused is refused on every route.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/transport/wire.h"

#define ALL_ROUTES 63u

static void print_again(wire_msg *msg)
{
    char *text, *same;
    size_t text_bytes, same_bytes;
    wire_msg again = {0};
    const wire_kind kind = msg->kind;
    const cf_err err = wire_print(msg->root, &text, &text_bytes); /* closes the tree */
    if (err == CF_ERR_LIMIT)
        return; /* escapes and full numbers can make it longer than it came */
    CF_ASSERT(err == CF_OK);
    CF_ASSERT(wire_parse(text, text_bytes, ALL_ROUTES, &again) == CF_OK);
    CF_ASSERT(again.kind == kind);
    CF_ASSERT(wire_print(again.root, &same, &same_bytes) == CF_OK);
    CF_ASSERT(same_bytes == text_bytes && memcmp(same, text, text_bytes) == 0);
    mem_free(text);
    mem_free(same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    wire_msg msg = {0};
    unsigned accepting = 0;
    if (wire_parse((const char *)data, data_bytes, ALL_ROUTES, &msg) != CF_OK) {
        CF_ASSERT(msg.root == NULL && err_text()[0] != '\0');
        CF_ASSERT(utf8_valid(err_text(), strlen(err_text()), NULL));
        return 0;
    }
    for (unsigned route = 1; route <= ALL_ROUTES; route <<= 1) {
        wire_msg one = {0};
        accepting += wire_parse((const char *)data, data_bytes, route, &one) == CF_OK;
        wire_done(&one);
    }
    CF_ASSERT(accepting == 1);
    for (const json *v = json_first(msg.root); v; v = json_next(v)) {
        int32_t *ids;
        size_t count;
        if (json_is_array(v) && wire_i32s(&msg, json_key(v), &ids, &count) == CF_OK)
            mem_free(ids);
        CF_ASSERT(wire_has(&msg, json_key(v)) && wire_json(&msg, json_key(v)) == v);
    }
    print_again(&msg);
    return 0;
}
