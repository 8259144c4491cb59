/*
 * manifest_check.c - the pass before the work: every bad row, every repeated id. Runs in the command. Memory: a key a
 * row in the caller's set, and what the second pass holds of rows whose key came twice.
 * Fails: with what ends the reading; CF_ERR_CANCELLED on SIGTERM and SIGINT (process_stop_asked); CF_ERR_NOMEM;
 * CF_ERR_LIMIT from id_set_separate. Asserts that the set is empty.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "orchestrator/manifest.h"

/* An id whose key is one of the repeated. */
typedef struct seen_id {
    char *id; /* owned */
    uint64_t line;
    size_t next; /* index of another id with this key, or NONE */
} seen_id;

#define NONE SIZE_MAX

typedef struct check_pass {
    manifest *m;
    shard mine;
    manifest_report *report;
    void *ctx;
    id_set *ids;
    manifest_counts counts;
    uint64_t *keys; /* owned; met more than once, sorted and unique before the second pass */
    size_t key_count, key_capacity;
    bool keys_full;   /* no more are taken: sorted and unique from now on */
    uint64_t unnamed; /* beyond them */
    size_t *first;    /* owned; of each key in seen, or NONE */
    seen_id *seen;    /* owned */
    size_t seen_count, seen_capacity;
} check_pass;

/* Calls on_row for the good rows of this shard, and report for the bad of all when told. */
static cf_err each_row(check_pass *p, bool tell, cf_err (*on_row)(check_pass *p, const manifest_row *row))
{
    cf_err err;
    TRY(manifest_rewind(p->m));
    for (;;) {
        manifest_row row;
        bool end;
        if (process_stop_asked())
            FAIL(CF_ERR_CANCELLED, "%s: interrupted while it was checked", manifest_name(p->m));
        err = manifest_next(p->m, &row, &end);
        if (err == CF_ERR_INVALID) {
            if (tell) {
                p->counts.bad++;
                p->report(p->ctx, err_text());
            }
            continue;
        }
        if (err != CF_OK || end)
            break;
        p->counts.rows += tell;
        if (shard_has(p->mine, row.hash))
            TRY(on_row(p, &row));
    }
out:
    return err;
}

/* Room for one more item. */
static cf_err reserve(void *items, size_t item_bytes, size_t count, size_t *capacity)
{
    if (count < *capacity)
        return CF_OK;
    const size_t wanted = *capacity ? 2 * *capacity : 64;
    const cf_err err = mem_resize(items, wanted, item_bytes);
    if (err == CF_OK)
        *capacity = wanted;
    return err;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void sort_keys(check_pass *p)
{
    size_t unique = 0;
    if (p->key_count > 0)
        qsort(p->keys, p->key_count, sizeof *p->keys, by_value);
    for (size_t i = 0; i < p->key_count; i++)
        if (unique == 0 || p->keys[unique - 1] != p->keys[i])
            p->keys[unique++] = p->keys[i];
    p->key_count = unique;
}

static const uint64_t *find_key(const check_pass *p, uint64_t key)
{
    return bsearch(&key, p->keys, p->key_count, sizeof *p->keys, by_value);
}

static cf_err remember_key(check_pass *p, const manifest_row *row)
{
    cf_err err;
    bool was_there;
    const uint64_t key = id_set_key(p->ids, row->hash, row->id);
    TRY(id_set_insert(p->ids, key, &was_there));
    if (!was_there)
        return CF_OK;
    if (p->key_count == MANIFEST_REPEATS_MAX) {
        sort_keys(p);
        p->keys_full = p->key_count > MANIFEST_REPEATS_MAX / 2; /* else sorting has made room worth having */
    }
    if (p->keys_full) {
        p->unnamed += find_key(p, key) == NULL;
        return CF_OK;
    }
    TRY(reserve(&p->keys, sizeof *p->keys, p->key_count, &p->key_capacity));
    p->keys[p->key_count++] = key;
out:
    return err;
}

static cf_err make_chains(check_pass *p)
{
    cf_err err;
    sort_keys(p);
    TRY(mem_alloc(p->key_count, sizeof *p->first, &p->first));
    for (size_t i = 0; i < p->key_count; i++)
        p->first[i] = NONE;
out:
    return err;
}

static cf_err add_seen(check_pass *p, const manifest_row *row, size_t *link)
{
    cf_err err;
    char *id = NULL;
    TRY(reserve(&p->seen, sizeof *p->seen, p->seen_count, &p->seen_capacity));
    TRY(mem_strndup(row->id, strlen(row->id), &id));
    p->seen[p->seen_count] = (seen_id){id, row->line, *link};
    *link = p->seen_count++;
out:
    return err;
}

static void report_line(check_pass *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void report_line(check_pass *p, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->report(p->ctx, text);
}

static cf_err compare_id(check_pass *p, const manifest_row *row)
{
    cf_err err = CF_OK;
    /* An id that was separated since is still in the chain of the key that the first pass knew it by. */
    const uint64_t *found = find_key(p, id_set_plain_key(p->ids, row->hash));
    if (!found)
        return CF_OK;
    size_t *first = &p->first[found - p->keys];
    for (size_t i = *first; i != NONE; i = p->seen[i].next) {
        if (strcmp(p->seen[i].id, row->id) != 0)
            continue;
        p->counts.repeated++;
        report_line(p, "%s:%" PRIu64 ": id \"%s\" is that of line %" PRIu64 " already", manifest_name(p->m), row->line,
                    row->id, p->seen[i].line);
        return CF_OK;
    }
    if (*first != NONE) {
        p->counts.collisions++;
        TRY(id_set_separate(p->ids, row->id));
    }
    TRY(add_seen(p, row, first));
out:
    return err;
}

static void report_unnamed(check_pass *p)
{
    p->counts.repeated += p->unnamed;
    report_line(p, "%s: %" PRIu64 " more rows repeat an id; at most %d ids are named", manifest_name(p->m), p->unnamed,
                MANIFEST_REPEATS_MAX);
}

cf_err manifest_check(manifest *m, shard mine, manifest_report *report, void *ctx, id_set *ids,
                      manifest_counts *ret_counts)
{
    cf_err err;
    check_pass p = {.m = m, .mine = mine, .report = report, .ctx = ctx, .ids = ids};
    CF_ASSERT(id_set_count(ids) == 0);
    TRY(each_row(&p, true, remember_key));
    if (p.key_count > 0) {
        TRY(make_chains(&p));
        TRY(each_row(&p, false, compare_id));
    }
    if (p.unnamed > 0)
        report_unnamed(&p);
    TRY(manifest_rewind(m));
    p.counts.own = id_set_count(ids);
    *ret_counts = p.counts;
out:
    for (size_t i = 0; i < p.seen_count; i++)
        mem_free(p.seen[i].id);
    mem_free(p.seen);
    mem_free(p.first);
    mem_free(p.keys);
    return err;
}
