/* test_session.c - lists of rows that wait: their order, and who leaves them late. */
#include "tests/harness/test.h"

#include "orchestrator/session.h"

static void expect_order(const session *queue, const session *const *rows, int count)
{
    for (int i = 0; i < count; i++, queue = queue->next)
        assert_ptr_equal(queue, rows[i]);
    assert_null(queue);
}

static void test_order_of_a_queue(void **state)
{
    (void)state;
    static session low, low_later, low_urgent, high, high_urgent;
    session *queue = NULL;
    low_urgent.impatient = high_urgent.impatient = true;
    high.priority = high_urgent.priority = 9;
    session_queue_put(&queue, &low);
    session_queue_put(&queue, &high);
    session_queue_put(&queue, &low_later);
    session_queue_put(&queue, &low_urgent);
    session_queue_put(&queue, &high_urgent);
    expect_order(queue, (const session *const[]){&high_urgent, &high, &low_urgent, &low, &low_later}, 5);
}

static void test_overdue_rows_leave(void **state)
{
    (void)state;
    static session never, soon, late;
    session *queue = NULL;
    soon.deadline_us = 100;
    late.deadline_us = 200;
    session_queue_put(&queue, &never);
    session_queue_put(&queue, &late);
    session_queue_put(&queue, &soon);
    assert_null(session_queue_take_overdue(&queue, 99));
    assert_ptr_equal(session_queue_take_overdue(&queue, 100), &soon);
    assert_null(session_queue_take_overdue(&queue, 199));
    assert_ptr_equal(session_queue_take_overdue(&queue, UINT64_MAX), &late);
    assert_null(session_queue_take_overdue(&queue, UINT64_MAX));
    expect_order(queue, (const session *const[]){&never}, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_of_a_queue),
        cmocka_unit_test(test_overdue_rows_leave),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
