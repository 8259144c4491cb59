/* test_cfm_solver.c - flow_worker/cfm_solver: the grid bit for bit (flow.md 5.1), and that ten steps reach t = 1. */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "flow_worker/cfm_solver.h"

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void test_grid_is_upstreams(void **state)
{
    (void)state;
    static const struct {
        uint32_t t, dt;
    } want[CFM_STEPS] = {
        {0x00000000, 0x3c49b6c0}, {0x3c49b6c0, 0x3d160b40}, {0x3d4878f0, 0x3d75f700}, {0x3ddf37f8, 0x3da7ea20},
        {0x3e43910c, 0x3dd0b650}, {0x3e95f61a, 0x3df45ee0}, {0x3ed30dd2, 0x3e090178}, {0x3f0bc747, 0x3e1473f4},
        {0x3f30e444, 0x3e1c3e94}, {0x3f57f3e9, 0x3e20305c},
    };
    cfm_grid grid;
    cfm_grid_init(&grid);
    for (int k = 0; k < CFM_STEPS; k++) {
        assert_int_equal(bits_of(grid.t[k]), want[k].t);
        assert_int_equal(bits_of(grid.dt[k]), want[k].dt);
    }
}

static void test_steps_reach_one(void **state)
{
    (void)state;
    cfm_grid grid;
    cfm_grid_init(&grid);
    for (int k = 0; k < CFM_STEPS; k++) {
        assert_true(grid.dt[k] > 0);
        if (k > 0)
            assert_true(grid.dt[k] > grid.dt[k - 1]); /* the cosine schedule starts slowly */
    }
    const float end = grid.t[CFM_STEPS - 1] + grid.dt[CFM_STEPS - 1];
    assert_true(fabsf(end - 1.0f) <= 1.2e-7f); /* one rounding of the last addition */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid_is_upstreams),
        cmocka_unit_test(test_steps_reach_one),
    };
    return cmocka_run_group_tests_name("cfm_solver", tests, NULL, NULL);
}
