/*
 * fuzz_manifest.c - any bytes as a manifest, in both forms. Checked: bad rows are CF_ERR_INVALID with the file's name
 * and end nothing, good rows keep the rules, a second pass reads the same, and with keys of four bits the check still
 * tells all ids apart.
 */
#define _GNU_SOURCE
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "orchestrator/manifest.h"

#define KEY_BITS 4
#define IDS_MAX  500 /* with at most 16 plain keys, below ID_SEPARATE_MAX */

typedef struct id_list {
    char ids[IDS_MAX][NAME_BYTES_MAX + 1];
    size_t count; /* different ones */
} id_list;

static void check_row(const manifest_row *row)
{
    const size_t id_bytes = strlen(row->id);
    uint64_t hash;
    CF_ASSERT(id_bytes >= 1 && id_bytes <= NAME_BYTES_MAX);
    CF_ASSERT(row->id[0] != '/' && row->id[id_bytes - 1] != '/' && !strstr(row->id, "//"));
    CF_ASSERT(strcmp(row->id, "..") != 0 && strncmp(row->id, "../", 3) != 0 && !strstr(row->id, "/../"));
    CF_ASSERT(id_hash(row->id, &hash) == CF_OK && hash == row->hash);
    CF_ASSERT(!row->text != !row->source_wav);
    CF_ASSERT(!row->prompt_wav == !row->prompt_text && !(row->voice && row->prompt_wav));
    CF_ASSERT(!row->voice_is_default || !row->prompt_wav);
    CF_ASSERT(row->source_wav ? !row->mode : (row->instruct != NULL) == (strcmp(row->mode, "instruct") == 0));
    CF_ASSERT(row->speed >= 0.5 && row->speed <= 2 && row->priority >= 0 && row->priority <= 9);
    if (row->text) {
        const size_t text_bytes = strlen(row->text), chars = utf8_count(row->text, text_bytes);
        CF_ASSERT(utf8_valid(row->text, text_bytes, NULL) && chars >= 1 && chars <= TEXT_CHARS_MAX);
    }
}

static void list_id(id_list *list, const char *id)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->ids[i], id) == 0)
            return;
    if (list->count < IDS_MAX)
        snprintf(list->ids[list->count++], sizeof list->ids[0], "%s", id);
}

/* Counts rows, bad and good, of one pass. */
static uint64_t read_all(manifest *m, id_list *list, uint64_t *ret_bad)
{
    uint64_t rows = 0, bad = 0;
    for (;;) {
        manifest_row row;
        bool end;
        const cf_err err = manifest_next(m, &row, &end);
        if (err == CF_OK && end)
            break;
        CF_ASSERT(err == CF_OK || err == CF_ERR_INVALID);
        CF_ASSERT(err == CF_OK || strncmp(err_text(), manifest_name(m), strlen(manifest_name(m))) == 0);
        bad += err != CF_OK;
        if (err == CF_OK) {
            rows++;
            check_row(&row);
            list_id(list, row.id);
        }
    }
    *ret_bad = bad;
    return rows;
}

static void count_report(void *ctx, const char *text)
{
    CF_ASSERT(!strchr(text, '\n'));
    ++*(uint64_t *)ctx;
}

static void check_all(manifest *m, const id_list *list, uint64_t rows, uint64_t bad)
{
    id_set *ids;
    manifest_counts c;
    uint64_t reports = 0;
    CF_ASSERT(id_set_open(KEY_BITS, &ids) == CF_OK);
    CF_ASSERT(manifest_check(m, (shard){0}, count_report, &reports, ids, &c) == CF_OK);
    CF_ASSERT(c.rows == rows && c.bad == bad && reports == c.bad + c.repeated);
    CF_ASSERT(c.own == list->count && c.own + c.repeated == c.rows);
    for (size_t i = 0; i < list->count; i++) {
        uint64_t hash;
        CF_ASSERT(id_hash(list->ids[i], &hash) == CF_OK);
        CF_ASSERT(id_set_mark(ids, id_set_key(ids, hash, list->ids[i])));
        CF_ASSERT(id_set_marked_count(ids) == i + 1);
    }
    id_set_close(ids);
}

static void try_format(int fd, const char *format)
{
    static const manifest_defaults defaults = {.voice = "vale", .format = "wav", .speed = 1};
    char path[64];
    manifest *m;
    id_list *list;
    uint64_t bad, bad_again;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CF_ASSERT(mem_alloc(1, sizeof *list, &list) == CF_OK);
    CF_ASSERT(manifest_open(path, format, &defaults, &m) == CF_OK);
    const uint64_t rows = read_all(m, list, &bad);
    CF_ASSERT(manifest_rewind(m) == CF_OK);
    CF_ASSERT(read_all(m, list, &bad_again) == rows && bad_again == bad);
    if (list->count < IDS_MAX)
        check_all(m, list, rows, bad);
    manifest_close(m);
    mem_free(list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    int fd = memfd_create("rows", MFD_CLOEXEC);
    CF_ASSERT(fd >= 0 && io_write_all(fd, data, data_bytes) == CF_OK);
    try_format(fd, "jsonl");
    try_format(fd, "csv");
    io_close(&fd);
    return 0;
}
