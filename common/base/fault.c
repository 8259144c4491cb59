/*
 * fault.c - the table of armed fault points. One per process, written before threads start; hit counts are atomic.
 * Fails: CF_ERR_INVALID for a specification it cannot read, CF_ERR_LIMIT for more than FAULT_MAX points.
 */
#define _GNU_SOURCE
#include "common/base/fault.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FAULT_MAX        16
#define FAULT_NAME_BYTES 64

typedef enum fault_action { FAULT_FAIL, FAULT_KILL, FAULT_STOP, FAULT_EXIT, FAULT_SLEEP } fault_action;

typedef struct fault_point {
    char name[FAULT_NAME_BYTES];
    unsigned fire_at; /* 1-based hit */
    fault_action action;
    atomic_uint hits;
} fault_point;

static fault_point fault_points[FAULT_MAX];
static int fault_count;

static cf_err fault_parse_one(const char *part, size_t part_bytes, fault_point *p)
{
    char text[FAULT_NAME_BYTES * 2];
    if (part_bytes >= sizeof text)
        return err_set(CF_ERR_INVALID, "fault \"%.*s\": longer than %zu bytes", (int)part_bytes, part, sizeof text - 1);
    memcpy(text, part, part_bytes);
    text[part_bytes] = '\0';
    char *action = strchr(text, '=');
    if (!action)
        return err_set(CF_ERR_INVALID, "fault \"%s\": expected name[#n]=fail|kill|stop|exit|sleep", text);
    *action++ = '\0';
    char *nth = strchr(text, '#');
    unsigned long fire_at = 1;
    if (nth) {
        *nth++ = '\0';
        char *end;
        fire_at = strtoul(nth, &end, 10);
        if (*end != '\0' || fire_at == 0 || fire_at > 1000000000ul)
            return err_set(CF_ERR_INVALID, "fault \"%s\": hit \"%s\" is not a number from 1", text, nth);
    }
    static const char *const names[] = {"fail", "kill", "stop", "exit", "sleep"};
    for (int i = 0; i < 5; i++)
        if (strcmp(action, names[i]) == 0) {
            if (strlen(text) >= FAULT_NAME_BYTES)
                return err_set(CF_ERR_INVALID, "fault name \"%s\" is too long", text);
            memcpy(p->name, text, strlen(text) + 1);
            p->fire_at = (unsigned)fire_at;
            p->action = (fault_action)i;
            atomic_store(&p->hits, 0);
            return CF_OK;
        }
    return err_set(CF_ERR_INVALID, "fault \"%s\": action \"%s\" is not fail, kill, stop, exit or sleep", text, action);
}

cf_err fault_arm(const char *spec)
{
    fault_count = 0;
    while (spec && *spec) {
        const size_t part_bytes = strcspn(spec, ",");
        if (fault_count == FAULT_MAX)
            return err_set(CF_ERR_LIMIT, "more than %d faults armed", FAULT_MAX);
        cf_err err = fault_parse_one(spec, part_bytes, &fault_points[fault_count]);
        if (err != CF_OK)
            return err;
        fault_count++;
        spec += part_bytes + (spec[part_bytes] == ',');
    }
    return CF_OK;
}

unsigned fault_hits(const char *point)
{
    for (int i = 0; i < fault_count; i++)
        if (strcmp(fault_points[i].name, point) == 0)
            return atomic_load(&fault_points[i].hits);
    return 0;
}

bool fault_hit(const char *point)
{
    for (int i = 0; i < fault_count; i++) {
        fault_point *p = &fault_points[i];
        if (strcmp(p->name, point) != 0 || atomic_fetch_add(&p->hits, 1) + 1 != p->fire_at)
            continue;
        switch (p->action) {
        case FAULT_FAIL:
            return true;
        case FAULT_KILL:
            kill(getpid(), SIGKILL);
            break;
        case FAULT_STOP:
            kill(getpid(), SIGSTOP);
            break;
        case FAULT_EXIT:
            _exit(1);
        case FAULT_SLEEP:
            nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
            break;
        }
    }
    return false;
}
