/* test_slots.c - the bookkeeping of one outbox: leases, commits, retirement, exhaustion, and a random walk against a
 * model. */
#include "tests/harness/test.h"

#include <string.h>

#include "common/base/rng.h"
#include "orchestrator/slots.h"

static void test_lease_is_first_fit_and_aligned(void **state)
{
    (void)state;
    static slot_box box;
    uint64_t a, b, c, d;
    slots_init(&box, 1, 4096);
    assert_ok(slots_lease(&box, 1, &a));
    assert_ok(slots_lease(&box, 300, &b));
    assert_ok(slots_lease(&box, 256, &c));
    assert_int_equal(a, 0);
    assert_int_equal(b, 256);
    assert_int_equal(c, 768);
    slots_drop(&box, b);
    assert_ok(slots_lease(&box, 512, &d)); /* fits the hole exactly */
    assert_int_equal(d, 256);
    assert_int_equal(slots_used_bytes(&box), 256 + 512 + 256);
}

static void test_refusals(void **state)
{
    (void)state;
    static slot_box box;
    uint64_t off = 77;
    slots_init(&box, 1, 1024);
    assert_err(CF_ERR_LIMIT, "does not fit", slots_lease(&box, 1025, &off));
    assert_err(CF_ERR_LIMIT, "does not fit", slots_lease(&box, 0, &off));
    assert_err(CF_ERR_LIMIT, "does not fit", slots_lease(&box, UINT64_MAX - 10, &off));
    assert_int_equal(off, 77);
    assert_ok(slots_lease(&box, 1024, &off));
    assert_err(CF_ERR_BUSY, "no free region", slots_lease(&box, 1, &off));
    static slot_box many;
    slots_init(&many, 2, 1 << 20);
    for (int i = 0; i < SLOTS_PER_BOX_MAX; i++)
        assert_ok(slots_lease(&many, 256, &off));
    assert_err(CF_ERR_BUSY, "all 256 slots", slots_lease(&many, 256, &off));
}

/* [P-10], [P-11] */
static void test_retire_keeps_what_is_committed(void **state)
{
    (void)state;
    static slot_box box;
    uint64_t leased, committed;
    slots_init(&box, 3, 4096);
    assert_ok(slots_lease(&box, 256, &leased));
    assert_ok(slots_lease(&box, 256, &committed));
    slots_commit(&box, committed);
    slots_retire(&box);
    assert_int_equal(box.count, 1);
    assert_false(slots_drained(&box));
    slots_consume(&box, committed);
    assert_true(slots_drained(&box));
}

/* [P-09] */
static void test_random_walk_never_overlaps(void **state)
{
    (void)state;
    static slot_box box;
    slots_init(&box, 4, 1 << 16);
    uint64_t leases = 0, frees = 0;
    for (uint32_t step = 0; step < 20000; step++) {
        const float u = rng_uniform(11, 0, step, 0), v = rng_uniform(11, 0, step, 1);
        uint64_t off;
        if (u < 0.5f) {
            leases += slots_lease(&box, 1 + (uint64_t)(v * 8000), &off) == CF_OK;
        } else if (box.count > 0) {
            const slot s = box.slots[(int32_t)(v * (float)box.count)];
            if (s.state == SLOT_LEASED && u < 0.75f) {
                slots_commit(&box, s.off_bytes);
            } else {
                frees++;
                if (s.state == SLOT_LEASED)
                    slots_drop(&box, s.off_bytes);
                else
                    slots_consume(&box, s.off_bytes);
            }
        }
        for (int32_t i = 0; i < box.count; i++) {
            assert_int_equal(box.slots[i].off_bytes % SLOT_ALIGN_BYTES, 0);
            const uint64_t end = box.slots[i].off_bytes + box.slots[i].bytes;
            assert_true(end <= (i + 1 < box.count ? box.slots[i + 1].off_bytes : box.bytes));
        }
    }
    assert_true(leases > 4000);
    assert_int_equal(leases - frees, box.count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lease_is_first_fit_and_aligned),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_retire_keeps_what_is_committed),
        cmocka_unit_test(test_random_walk_never_overlaps),
    };
    return cmocka_run_group_tests_name("slots", tests, NULL, NULL);
}
