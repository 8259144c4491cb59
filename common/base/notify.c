/*
 * notify.c - the only file that includes libsystemd. Any process, its control thread. Owns nothing.
 * Fails: never. A message that cannot be sent is dropped: the manager's own time limits then decide.
 */
#include "common/base/notify.h"

#include <inttypes.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>

#include "common/base/clock.h"

/* Each request for more time reaches this far, and is repeated four times meanwhile. */
#define START_US (20 * CLOCK_SECOND_US)

static uint64_t pause_us(const notify *n)
{
    return (n->ready && n->watchdog_us != 0 ? n->watchdog_us : START_US) / 4;
}

void notify_open(notify *ret_note)
{
    const char *socket_path = getenv("NOTIFY_SOCKET");
    uint64_t watchdog_us = 0;
    *ret_note = (notify){.is_on = socket_path && *socket_path};
    if (ret_note->is_on && sd_watchdog_enabled(0, &watchdog_us) > 0)
        ret_note->watchdog_us = watchdog_us;
}

void notify_ready(notify *n, const char *text)
{
    if (!n->is_on)
        return;
    sd_notifyf(0, "%sSTATUS=%s", n->ready ? "" : "READY=1\n", text);
    n->ready = true;
    n->next_us = 0;
}

void notify_status(const notify *n, const char *text)
{
    if (n->is_on)
        sd_notifyf(0, "STATUS=%s", text);
}

void notify_alive(notify *n, uint64_t now_us)
{
    if (!n->is_on || now_us < n->next_us || (n->ready && n->watchdog_us == 0))
        return;
    n->next_us = now_us + pause_us(n);
    if (n->ready)
        sd_notify(0, "WATCHDOG=1");
    else
        sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, (uint64_t)START_US);
}

void notify_stopping(notify *n)
{
    if (n->is_on && !n->stopping)
        sd_notify(0, "STOPPING=1");
    n->stopping = true;
}

int notify_wait_ms(const notify *n)
{
    return !n->is_on || (n->ready && n->watchdog_us == 0) ? -1 : (int)(pause_us(n) / 1000);
}
