/* test_device.c - names of devices and lists of them: what is one, what is refused, whose turn it is. */
#include "tests/harness/test.h"

#include "common/base/config.h"
#include "common/base/device.h"

static void test_names(void **state)
{
    (void)state;
    int device = 7;
    assert_ok(device_parse("cpu", &device));
    assert_int_equal(device, DEVICE_CPU);
    assert_ok(device_parse("cuda:0", &device));
    assert_int_equal(device, 0);
    assert_ok(device_parse("cuda:63", &device));
    assert_int_equal(device, 63);
    static const char *const wrong[] = {"",        "cuda",     "cuda:",  "cuda:64", "cuda:-1", "cuda:1x",
                                        "cuda: 1", "cuda:999", "CUDA:0", "cpu ",    "gpu:0",   "cuda:99999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_err(CF_ERR_UNSUPPORTED, "expected cpu or cuda:N", device_parse(wrong[i], &device));
    assert_int_equal(device, 63);
}

static void test_lists(void **state)
{
    (void)state;
    char text[DEVICE_TEXT_BYTES];
    int device;
    static const int expected[] = {0, 0, 1, 0, 0, 1};
    assert_int_equal(device_list_count("cuda:0,cuda:0,cuda:1"), 3);
    assert_int_equal(device_list_count("cpu"), 1);
    for (int i = 0; i < 6; i++) {
        assert_ok(device_of_instance("cuda:0,cuda:0,cuda:1", i, text, &device));
        assert_int_equal(device, expected[i]);
    }
    assert_string_equal(text, "cuda:1");
    assert_ok(device_of_instance("cpu", 5, text, &device));
    assert_int_equal(device, DEVICE_CPU);
    assert_err(CF_ERR_UNSUPPORTED, "\"\"", device_of_instance("cuda:0,", 1, text, &device));
    assert_err(CF_ERR_UNSUPPORTED, "abacus", device_of_instance("cpu,abacus", 1, text, &device));
    assert_err(CF_ERR_UNSUPPORTED, "found-nowhere-at-all",
               device_of_instance("found-nowhere-at-all,cpu", 0, text, &device));
}

static void test_stages_have_their_own(void **state)
{
    (void)state;
    config cfg;
    config_defaults(&cfg);
    assert_string_equal(config_device_list(&cfg, "flow"), "cpu");
    json *obj = json_object();
    json_put_str(obj, "device", "cuda:1");
    json_put_str(obj, "flow_device", "cuda:0,cuda:2");
    assert_ok(config_apply(&cfg, obj, "test"));
    json_close(obj);
    assert_string_equal(config_device_list(&cfg, "llm"), "cuda:1");
    assert_string_equal(config_device_list(&cfg, "flow"), "cuda:0,cuda:2");
    assert_string_equal(config_device_list(&cfg, "hift"), "cuda:1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_stages_have_their_own),
    };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
