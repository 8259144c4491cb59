/*
 * batch_progress.c - what a person sees of a batch: on a terminal one line that changes, elsewhere one line in ten
 * seconds; at the end a summary, as JSON when asked. stderr, but the summary.
 * Fails: batch_summary with CF_ERR_NOMEM.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "tools/batch.h"

#define TERMINAL_US (CLOCK_SECOND_US / 2)
#define LOG_US      (10 * CLOCK_SECOND_US)

static uint64_t u64_of(const json *obj, const char *key)
{
    uint64_t value = 0;
    return obj && json_get_u64(obj, key, 0, UINT64_MAX, &value) == CF_OK ? value : 0;
}

/* Share of time that a stage's workers computed since they serve, in percent. */
static int busy_percent(const wire_msg *status, const char *stage)
{
    double busy_s = 0, up_s = 0;
    for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
        const char *role;
        double busy, up;
        if (json_get_str(m, "role", 31, &role) == CF_OK && strcmp(role, stage) == 0 &&
            json_get_f64(m, "busy_s", 0, 1e12, &busy) == CF_OK && json_get_f64(m, "up_s", 0, 1e12, &up) == CF_OK) {
            busy_s += busy;
            up_s += up;
        }
    }
    return up_s > 0 ? (int)(100 * busy_s / up_s + 0.5) : 0;
}

static void format_eta(double left_s, char *ret_text, size_t text_bytes)
{
    const uint64_t s = left_s < 1e9 ? (uint64_t)left_s : 0;
    if (left_s >= 1e9)
        snprintf(ret_text, text_bytes, "?");
    else
        snprintf(ret_text, text_bytes, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, s / 3600, s / 60 % 60, s % 60);
}

void batch_show(batch *b, const wire_msg *status, uint64_t now_us)
{
    const bool terminal = isatty(STDERR_FILENO);
    if (b->quiet || now_us - b->shown_us < (terminal ? TERMINAL_US : LOG_US))
        return;
    b->shown_us = now_us;
    char line[512], eta[32];
    const double spent_s = (double)(now_us - b->started_us) / 1e6;
    const uint64_t ended = b->done + b->failed, all = b->counts.own;
    const uint64_t left = all - b->ended_before - ended;
    format_eta(ended > 0 ? (double)left * spent_s / (double)ended : 1e9, eta, sizeof eta);
    size_t n = (size_t)snprintf(
        line, sizeof line,
        "%" PRIu64 " of %" PRIu64 " rows, %" PRIu64 " failed, %" PRIu64 " left, %.2f audio-s/s, ETA %s ",
        b->ended_before + ended, all, b->failed_before + b->failed, left, b->audio_s / spent_s, eta);
    for (int i = 0; i < MODEL_STAGE_COUNT && n < sizeof line; i++) {
        const char *name = model_stage_name((model_stage)i);
        const json *q = json_find(wire_json(status, "queues"), name);
        const char *word = farm_workers_word(farm_workers(status, (model_stage)i));
        n += (size_t)snprintf(line + n, sizeof line - n, " %s %d%% %" PRIu64 "+%" PRIu64 "%s%s", name,
                              busy_percent(status, name), u64_of(q, "running"), u64_of(q, "waiting"),
                              word[0] ? " " : "", word);
    }
    fprintf(stderr, terminal ? "\r%s\033[K" : "%s\n", line);
}

static cf_err summary_json(const batch *b, int exit_code, double spent_s)
{
    cf_err err;
    char *text = NULL;
    json *m = json_object();
    json_put_u64(m, "rows", b->counts.own);
    json_put_u64(m, "ended_before", b->ended_before);
    json_put_u64(m, "done", b->done);
    json_put_u64(m, "failed", b->failed);
    json_put_u64(m, "failed_before", b->failed_before);
    json_put_u64(m, "flagged", b->flagged);
    json_put_u64(m, "left", b->counts.own - b->ended_before - b->done - b->failed);
    json_put_f64(m, "audio_s", b->audio_s);
    json_put_f64(m, "wall_s", spent_s);
    json_put_f64(m, "ledger_s", (double)b->ledger_us / 1e6);
    json_put_f64(m, "journal_s", b->journal_s);
    json_put_u64(m, "exit_code", (uint64_t)exit_code);
    TRY(json_print(m, false, &text));
    puts(text);
out:
    mem_free(text);
    json_close(m);
    return err;
}

cf_err batch_summary(const batch *b, int exit_code)
{
    const double spent_s = (double)(clock_now_us() - b->started_us) / 1e6;
    if (isatty(STDERR_FILENO) && !b->quiet)
        fputs("\r\033[K", stderr);
    if (b->as_json)
        return summary_json(b, exit_code, spent_s);
    if (b->quiet)
        return CF_OK;
    printf("%s: %" PRIu64 " rows: %" PRIu64 " done, %" PRIu64 " failed, %" PRIu64 " before, %" PRIu64
           " left; %.1f s of audio in %.1f s, %.2f audio-s/s\n",
           b->dir, b->counts.own, b->done, b->failed, b->ended_before,
           b->counts.own - b->ended_before - b->done - b->failed, b->audio_s, spent_s,
           spent_s > 0 ? b->audio_s / spent_s : 0);
    return CF_OK;
}
