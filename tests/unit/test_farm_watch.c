/* test_farm_watch.c - who waits for a stage without workers learns it from statuses, in bounded time. */
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "orchestrator/farm_watch.h"

#define S       CLOCK_SECOND_US
#define LLM     (1u << MODEL_LLM)
#define FLOW    (1u << MODEL_FLOW)
#define SERVING "{\"role\":\"llm\",\"state\":\"serving\"},{\"role\":\"hift\",\"state\":\"serving\"}"

/* A status with these members and so many jobs waiting for flow; the farm is patient for 300 s. The caller ends it. */
static wire_msg status_of(const char *members, int waiting)
{
    char text[1024];
    wire_msg status = {0};
    snprintf(text, sizeof text,
             "{\"v\":1,\"kind\":\"status\",\"nonce\":0,\"boot\":1,\"members\":[%s],\"queues\":{\"llm\":{\"waiting\":0},"
             "\"flow\":{\"waiting\":%d},\"hift\":{\"waiting\":0}},\"totals\":{},\"config\":{\"unserved_s\":300,"
             "\"silence_s\":20}}",
             members, waiting);
    assert_ok(wire_parse(text, strlen(text), WIRE_ORCH_CLIENT, &status));
    return status;
}

static cf_err hear(farm_watch *w, const char *members, unsigned needed, uint64_t now_s)
{
    wire_msg status = status_of(members, 0);
    const cf_err err = farm_watch_hear(w, &status, needed, 20 * S, now_s * S);
    wire_done(&status);
    return err;
}

static void test_who_is_there(void **state)
{
    (void)state;
    static const struct {
        const char *state, *word;
        unsigned workers;
    } cases[] = {{"serving", "", WORKERS_FED},
                 {"parole", "", WORKERS_FED},
                 {"barred", "barred", WORKERS_BARRED},
                 {"draining", "drained", WORKERS_PAUSED},
                 {"drained", "drained", WORKERS_PAUSED},
                 {"loading", "starting", WORKERS_COMING},
                 {"admitted", "starting", WORKERS_COMING},
                 {"leaving", "starting", WORKERS_COMING}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char member[128];
        snprintf(member, sizeof member, "{\"role\":\"flow\",\"state\":\"%s\"}", cases[i].state);
        wire_msg status = status_of(member, 2);
        assert_int_equal(farm_workers(&status, MODEL_FLOW), cases[i].workers);
        assert_string_equal(farm_workers_word(cases[i].workers), cases[i].word);
        assert_int_equal(farm_workers(&status, MODEL_HIFT), 0);
        assert_int_equal(farm_awaited(&status), FLOW);
        wire_done(&status);
    }
    wire_msg status = status_of("{\"role\":\"flow\",\"state\":\"barred\"},{\"role\":\"flow\",\"state\":\"serving\"},"
                                "{\"role\":\"keeper\",\"state\":\"serving\"}",
                                0);
    assert_int_equal(farm_workers(&status, MODEL_FLOW), WORKERS_BARRED | WORKERS_FED);
    assert_string_equal(farm_workers_word(WORKERS_BARRED | WORKERS_FED), "");
    assert_string_equal(farm_workers_word(0), "no worker");
    assert_int_equal(farm_awaited(&status), 0);
    assert_int_equal(farm_seconds(&status, "unserved_s"), 300);
    assert_int_equal(farm_seconds(&status, "no_such_key"), 0);
    wire_done(&status);
}

static void test_a_stage_without_workers(void **state)
{
    (void)state;
    farm_watch w = {0};
    assert_ok(hear(&w, SERVING, FLOW, 100));
    assert_ok(hear(&w, SERVING, FLOW, 120));
    assert_err(CF_ERR_GONE, "stage flow of the running farm: expected a worker that serves, found no worker for 21 s",
               hear(&w, SERVING, FLOW, 121));
    w = (farm_watch){0};
    assert_ok(hear(&w, SERVING, FLOW, 100));
    assert_ok(hear(&w, SERVING, LLM, 115)); /* nobody waits for it */
    assert_ok(hear(&w, SERVING, FLOW, 125));
    assert_ok(hear(&w, SERVING ",{\"role\":\"flow\",\"state\":\"serving\"}", FLOW, 140));
    assert_ok(hear(&w, SERVING, FLOW, 150)); /* it died: the clock starts anew */
    assert_ok(hear(&w, SERVING, FLOW, 170));
    assert_err(CF_ERR_GONE, "for 21 s", hear(&w, SERVING, FLOW, 171));
}

/* One that loads is waited for longer; one that loads and dies, again and again, is not waited for for ever. */
static void test_a_stage_that_never_serves(void **state)
{
    (void)state;
    static const char loads[] = SERVING ",{\"role\":\"flow\",\"state\":\"loading\"}";
    static const char drained[] = SERVING ",{\"role\":\"flow\",\"state\":\"drained\"}";
    static const char barred[] = SERVING ",{\"role\":\"flow\",\"state\":\"barred\"}";
    farm_watch w = {0};
    uint64_t at_s = 100;
    for (; at_s <= 400; at_s += 10)
        assert_ok(hear(&w, at_s % 20 ? SERVING : loads, FARM_ALL_STAGES, at_s));
    assert_err(CF_ERR_GONE, "found only starting ones for 310 s", hear(&w, loads, FARM_ALL_STAGES, at_s));
    w = (farm_watch){0};
    assert_ok(hear(&w, drained, FLOW, 100));
    assert_ok(hear(&w, drained, FLOW, 400));
    assert_err(CF_ERR_GONE, "found only drained ones for 301 s", hear(&w, drained, FLOW, 401));
    w = (farm_watch){0};
    assert_ok(hear(&w, barred, FLOW, 100));
    assert_ok(hear(&w, barred, FLOW, 10000)); /* it is tried again, and its rows end */
}

/* Of one's own farm a process that hangs is ended after silence_s: its stage gets that time on top. */
static void test_a_stage_of_ones_own_farm(void **state)
{
    (void)state;
    static const char loads[] = SERVING ",{\"role\":\"flow\",\"state\":\"loading\"}";
    farm_watch w = {.is_own_farm = true};
    assert_ok(hear(&w, loads, FLOW, 100));
    assert_ok(hear(&w, loads, FLOW, 420));
    assert_err(CF_ERR_GONE, "stage flow of this command's own farm: expected a worker that serves, found only starting",
               hear(&w, loads, FLOW, 421));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_is_there),
        cmocka_unit_test(test_a_stage_without_workers),
        cmocka_unit_test(test_a_stage_that_never_serves),
        cmocka_unit_test(test_a_stage_of_ones_own_farm),
    };
    return cmocka_run_group_tests_name("farm_watch", tests, NULL, NULL);
}
