/* test_notify.c - what the service manager is told: a socket of our own stands in for it. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/notify.h"

static int manager = -1;

/* Listens where NOTIFY_SOCKET points. watchdog_us: text of WATCHDOG_USEC, NULL for none. */
static void begin(const char *watchdog_us)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    close(manager);
    snprintf(at.sun_path, sizeof at.sun_path, "%s/notify", test_temp_dir());
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(manager, (struct sockaddr *)&at, sizeof at), 0);
    setenv("NOTIFY_SOCKET", at.sun_path, 1);
    unsetenv("WATCHDOG_PID");
    if (watchdog_us)
        setenv("WATCHDOG_USEC", watchdog_us, 1);
    else
        unsetenv("WATCHDOG_USEC");
}

/* The next message, "" when there is none. A datagram is there as soon as it has been sent. */
static const char *heard(void)
{
    static char text[512];
    const ssize_t n = recv(manager, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return text;
}

static void test_nobody_listens(void **state)
{
    (void)state;
    notify n;
    begin("1000000");
    unsetenv("NOTIFY_SOCKET");
    notify_open(&n);
    notify_ready(&n, "serving");
    notify_alive(&n, 0);
    notify_status(&n, "busy");
    notify_stopping(&n);
    assert_string_equal(heard(), "");
    assert_int_equal(notify_wait_ms(&n), -1);
}

static void test_start_asks_for_time(void **state)
{
    (void)state;
    notify n;
    begin(NULL);
    notify_open(&n);
    notify_alive(&n, CLOCK_SECOND_US);
    assert_string_equal(heard(), "EXTEND_TIMEOUT_USEC=20000000");
    notify_alive(&n, 5 * CLOCK_SECOND_US);
    assert_string_equal(heard(), "");
    notify_alive(&n, 6 * CLOCK_SECOND_US);
    assert_string_equal(heard(), "EXTEND_TIMEOUT_USEC=20000000");
    assert_int_equal(notify_wait_ms(&n), 5000);
    notify_ready(&n, "serving");
    assert_string_equal(heard(), "READY=1\nSTATUS=serving");
    notify_alive(&n, 60 * CLOCK_SECOND_US); /* no watchdog wants to know */
    assert_string_equal(heard(), "");
    assert_int_equal(notify_wait_ms(&n), -1);
}

static void test_watchdog_and_end(void **state)
{
    (void)state;
    notify n;
    begin("8000000");
    notify_open(&n);
    notify_ready(&n, "serving");
    assert_string_equal(heard(), "READY=1\nSTATUS=serving");
    notify_alive(&n, CLOCK_SECOND_US);
    assert_string_equal(heard(), "WATCHDOG=1");
    notify_alive(&n, 3 * CLOCK_SECOND_US - 1);
    assert_string_equal(heard(), "");
    notify_alive(&n, 3 * CLOCK_SECOND_US);
    assert_string_equal(heard(), "WATCHDOG=1");
    assert_int_equal(notify_wait_ms(&n), 2000);
    notify_ready(&n, "serving again");
    assert_string_equal(heard(), "STATUS=serving again");
    notify_stopping(&n);
    assert_string_equal(heard(), "STOPPING=1");
    notify_stopping(&n);
    assert_string_equal(heard(), "");
}

/* The watchdog of another process is none of ours. */
static void test_watchdog_of_another(void **state)
{
    (void)state;
    notify n;
    begin("8000000");
    setenv("WATCHDOG_PID", "1", 1);
    notify_open(&n);
    assert_int_equal(n.watchdog_us, 0);
}

static int end(void **state)
{
    (void)state;
    close(manager);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody_listens),
        cmocka_unit_test(test_start_asks_for_time),
        cmocka_unit_test(test_watchdog_and_end),
        cmocka_unit_test(test_watchdog_of_another),
    };
    return cmocka_run_group_tests_name("notify", tests, NULL, end);
}
