/*
 * pt_zip.c - the zip directory of a PyTorch checkpoint, over bytes at hand. Any process, any thread; owns the list of
 * records, never their bytes.
 *
 *     local header, padding, payload | ... | central directory | [zip64 end, locator] | end record, comment
 *
 * Sizes and checksums come from the central directory, because the writer leaves zeros in local headers; a local header
 * only says where the payload starts, and must agree in name and method. Payloads must be stored, lie before the
 * directory and not overlap, so a record is a pointer into the mapping.
 * Fails: CF_ERR_CORRUPT when the archive contradicts itself, CF_ERR_UNSUPPORTED for compression and encryption,
 * CF_ERR_INVALID for names that no writer of checkpoints makes, CF_ERR_LIMIT.
 * Source: APPNOTE.TXT 6.3.10 chapters 4.3 and 4.5; formats.md 2.2.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/model/pt_impl.h"

#define LOCAL_BYTES       30u
#define CENTRAL_BYTES     46u
#define END_BYTES         22u
#define END64_BYTES       56u
#define LOCATOR_BYTES     20u
#define COMMENT_BYTES_MAX 65535u
#define SIG_LOCAL         0x04034B50u
#define SIG_CENTRAL       0x02014B50u
#define SIG_END           0x06054B50u
#define SIG_END64         0x06064B50u
#define SIG_LOCATOR       0x07064B50u
#define FLAG_ENCRYPTED    0x2041u /* bit 0, strong encryption, masked headers */
#define EXTRA_ZIP64       1u

typedef struct directory {
    const unsigned char *data;
    uint64_t file_bytes;
    uint64_t off;
    uint64_t bytes;
    uint64_t count;
    size_t root_bytes; /* of "root/", which every name begins with */
} directory;

static unsigned u16_at(const unsigned char *p)
{
    return (unsigned)p[0] | (unsigned)p[1] << 8;
}

static uint32_t u32_at(const unsigned char *p)
{
    return u16_at(p) | (uint32_t)u16_at(p + 2) << 16;
}

static uint64_t u64_at(const unsigned char *p)
{
    return u32_at(p) | (uint64_t)u32_at(p + 4) << 32;
}

const char *pt_printable(const char *name, size_t name_bytes, char ret_text[PT_PRINT_BYTES])
{
    size_t used = 0;
    while (name_bytes > 0 && used + 5 < PT_PRINT_BYTES) {
        uint32_t code_point;
        size_t n = utf8_decode(name, name_bytes, &code_point);
        if (n == 0 || code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0)) {
            ret_text[used++] = '?';
            n = 1;
        } else {
            memcpy(ret_text + used, name, n);
            used += n;
        }
        name += n;
        name_bytes -= n;
    }
    ret_text[used] = '\0';
    return ret_text;
}

/* The end record is the last thing of the file, followed only by its comment. */
static cf_err find_end(const unsigned char *data, size_t bytes, size_t *ret_end_off)
{
    if (bytes < END_BYTES)
        return err_set(CF_ERR_CORRUPT, "%zu bytes are too few for a PyTorch checkpoint", bytes);
    for (size_t comment = 0; comment <= COMMENT_BYTES_MAX && comment + END_BYTES <= bytes; comment++) {
        const size_t off = bytes - END_BYTES - comment;
        if (u32_at(data + off) == SIG_END && u16_at(data + off + 20) == comment) {
            *ret_end_off = off;
            return CF_OK;
        }
    }
    return err_set(CF_ERR_CORRUPT, "no zip directory at the end of %zu bytes: the file is truncated", bytes);
}

static cf_err read_end64(const unsigned char *data, size_t end_off, directory *d, uint64_t *ret_limit_off)
{
    const unsigned char *locator = data + end_off - LOCATOR_BYTES;
    const uint64_t off = u64_at(locator + 8);
    if (u32_at(locator + 4) != 0 || u32_at(locator + 16) > 1)
        return err_set(CF_ERR_UNSUPPORTED, "zip archive of several disks");
    if (off > end_off - LOCATOR_BYTES || end_off - LOCATOR_BYTES - off < END64_BYTES || u32_at(data + off) != SIG_END64)
        return err_set(CF_ERR_CORRUPT, "zip64 directory record expected at byte %" PRIu64, off);
    const unsigned char *p = data + off;
    if (u32_at(p + 16) != 0 || u32_at(p + 20) != 0 || u64_at(p + 24) != u64_at(p + 32))
        return err_set(CF_ERR_UNSUPPORTED, "zip archive of several disks");
    d->count = u64_at(p + 32);
    d->bytes = u64_at(p + 40);
    d->off = u64_at(p + 48);
    *ret_limit_off = off;
    return CF_OK;
}

static cf_err read_end(const unsigned char *data, size_t bytes, directory *d)
{
    cf_err err;
    size_t end_off;
    TRY(find_end(data, bytes, &end_off));
    uint64_t limit_off = end_off;
    const unsigned char *p = data + end_off;
    if (end_off >= LOCATOR_BYTES && u32_at(p - LOCATOR_BYTES) == SIG_LOCATOR) {
        TRY(read_end64(data, end_off, d, &limit_off));
    } else {
        if (u16_at(p + 4) != 0 || u16_at(p + 6) != 0 || u16_at(p + 8) != u16_at(p + 10))
            FAIL(CF_ERR_UNSUPPORTED, "zip archive of several disks");
        d->count = u16_at(p + 10);
        d->bytes = u32_at(p + 12);
        d->off = u32_at(p + 16);
    }
    if (d->off > limit_off || d->bytes > limit_off - d->off)
        FAIL(CF_ERR_CORRUPT, "zip directory of %" PRIu64 " bytes at byte %" PRIu64 " reaches beyond byte %" PRIu64,
             d->bytes, d->off, limit_off);
    if (d->count > PT_RECORDS_MAX)
        FAIL(CF_ERR_LIMIT, "%" PRIu64 " records, at most %u are read", d->count, PT_RECORDS_MAX);
    if (d->count == 0 || d->count > d->bytes / CENTRAL_BYTES)
        FAIL(CF_ERR_CORRUPT, "zip directory of %" PRIu64 " bytes cannot hold %" PRIu64 " records", d->bytes, d->count);
    d->data = data;
    d->file_bytes = bytes;
out:
    return err;
}

/* Sizes and offset of a central entry: 0xFFFFFFFF means "see the zip64 extra field", which has them in this
 * order. */
static cf_err read_sizes(const unsigned char *entry, const unsigned char *extra, size_t extra_bytes, uint64_t sizes[3])
{
    static const size_t FIELD_OFF[3] = {24, 20, 42}; /* uncompressed, compressed, local header */
    const unsigned char *wide = NULL;
    size_t wide_bytes = 0;
    while (extra_bytes >= 4) {
        const size_t n = u16_at(extra + 2);
        if (n > extra_bytes - 4)
            break;
        if (u16_at(extra) == EXTRA_ZIP64) {
            wide = extra + 4;
            wide_bytes = n;
            break;
        }
        extra += 4 + n;
        extra_bytes -= 4 + n;
    }
    for (int i = 0; i < 3; i++) {
        sizes[i] = u32_at(entry + FIELD_OFF[i]);
        if (sizes[i] != 0xFFFFFFFFu)
            continue;
        if (wide_bytes < 8)
            return err_set(CF_ERR_CORRUPT, "zip64 value missing");
        sizes[i] = u64_at(wide);
        wide += 8;
        wide_bytes -= 8;
    }
    return CF_OK;
}

static cf_err check_name(const char *name, size_t bytes)
{
    if (bytes == 0 || bytes > PT_NAME_BYTES_MAX)
        return err_set(CF_ERR_LIMIT, "record name of %zu bytes, expected 1..%u", bytes, PT_NAME_BYTES_MAX);
    if (name[0] == '/' || memchr(name, '\\', bytes) || memchr(name, '\0', bytes))
        return err_set(CF_ERR_INVALID, "record name is not a plain relative path");
    for (size_t i = 0; i + 1 < bytes; i++)
        if (name[i] == '.' && name[i + 1] == '.' && (i == 0 || name[i - 1] == '/') &&
            (i + 2 == bytes || name[i + 2] == '/'))
            return err_set(CF_ERR_INVALID, "record name holds \"..\"");
    return CF_OK;
}

/* The root folder is the first name up to its first slash: users rename files, so the file's name says nothing. */
static cf_err check_root(directory *d, const char *first_name, const char *name, size_t bytes)
{
    if (d->root_bytes == 0) {
        const char *slash = memchr(name, '/', bytes);
        if (!slash)
            return err_set(CF_ERR_INVALID, "record outside of a folder: not a PyTorch checkpoint");
        d->root_bytes = (size_t)(slash - name) + 1;
        return CF_OK;
    }
    if (bytes < d->root_bytes || memcmp(name, first_name, d->root_bytes) != 0)
        return err_set(CF_ERR_INVALID, "record outside of the archive's root folder: not a PyTorch checkpoint");
    return CF_OK;
}

static cf_err check_local(const directory *d, const char *name, size_t name_bytes, const uint64_t sizes[3],
                          pt_record *r)
{
    if (sizes[2] > d->off || d->off - sizes[2] < LOCAL_BYTES + name_bytes)
        return err_set(CF_ERR_CORRUPT, "local header at byte %" PRIu64 " lies beyond the data", sizes[2]);
    const unsigned char *p = d->data + sizes[2];
    if (u32_at(p) != SIG_LOCAL)
        return err_set(CF_ERR_CORRUPT, "no local header at byte %" PRIu64, sizes[2]);
    if (u16_at(p + 26) != name_bytes || memcmp(p + LOCAL_BYTES, name, name_bytes) != 0)
        return err_set(CF_ERR_CORRUPT, "the local header at byte %" PRIu64 " has another name", sizes[2]);
    if (u16_at(p + 6) & FLAG_ENCRYPTED || u16_at(p + 8) != 0)
        return err_set(CF_ERR_UNSUPPORTED, "the local header says compressed or encrypted; checkpoints are stored");
    const uint64_t data_off = sizes[2] + LOCAL_BYTES + name_bytes + u16_at(p + 28);
    if (data_off > d->off || sizes[0] > d->off - data_off)
        return err_set(CF_ERR_CORRUPT, "%" PRIu64 " bytes at byte %" PRIu64 " reach into the directory", sizes[0],
                       data_off);
    r->data = d->data + data_off;
    r->bytes = (size_t)sizes[0];
    r->begin_off = sizes[2];
    r->end_off = data_off + sizes[0];
    return CF_OK;
}

static cf_err read_entry(directory *d, const char *first_name, const unsigned char *p, size_t name_bytes,
                         size_t extra_bytes, pt_record *ret_record)
{
    cf_err err;
    char shown[PT_PRINT_BYTES];
    uint64_t sizes[3];
    const char *name = (const char *)p + CENTRAL_BYTES;
    pt_record r = {.crc32 = u32_at(p + 16)};
    TRY(check_name(name, name_bytes));
    TRY(check_root(d, first_name, name, name_bytes));
    if (u16_at(p + 8) & FLAG_ENCRYPTED)
        FAIL(CF_ERR_UNSUPPORTED, "encrypted");
    if (u16_at(p + 10) != 0)
        FAIL(CF_ERR_UNSUPPORTED, "compressed with method %u; checkpoints are stored without compression",
             u16_at(p + 10));
    if (u16_at(p + 34) != 0 && u16_at(p + 34) != 0xFFFF)
        FAIL(CF_ERR_UNSUPPORTED, "on another disk");
    TRY(read_sizes(p, p + CENTRAL_BYTES + name_bytes, extra_bytes, sizes));
    if (sizes[0] != sizes[1])
        FAIL(CF_ERR_CORRUPT, "stored, but its sizes are %" PRIu64 " and %" PRIu64, sizes[1], sizes[0]);
    TRY(check_local(d, name, name_bytes, sizes, &r));
    r.name = name + d->root_bytes;
    r.name_bytes = name_bytes - d->root_bytes;
    *ret_record = r;
out:
    return err == CF_OK ? err : err_context(err, "record %s", pt_printable(name, name_bytes, shown));
}

static cf_err read_entries(directory *d, pt_record *records, size_t *ret_count)
{
    cf_err err;
    uint64_t left = d->bytes;
    size_t kept = 0;
    const unsigned char *p = d->data + d->off;
    const char *first_name = (const char *)p + CENTRAL_BYTES;
    for (uint64_t i = 0; i < d->count; i++) {
        if (left < CENTRAL_BYTES || u32_at(p) != SIG_CENTRAL)
            FAIL(CF_ERR_CORRUPT, "zip directory entry %" PRIu64 " of %" PRIu64 " is broken", i, d->count);
        const size_t name_bytes = u16_at(p + 28);
        const size_t extra_bytes = u16_at(p + 30);
        const size_t entry_bytes = CENTRAL_BYTES + name_bytes + extra_bytes + u16_at(p + 32);
        if (entry_bytes > left)
            FAIL(CF_ERR_CORRUPT, "zip directory entry %" PRIu64 " of %" PRIu64 " is cut off", i, d->count);
        TRY(read_entry(d, first_name, p, name_bytes, extra_bytes, &records[kept]));
        /* Repacking tools add entries for folders: empty, and nobody's record. */
        const pt_record *r = &records[kept];
        const bool is_folder = r->bytes == 0 && (r->name_bytes == 0 || r->name[r->name_bytes - 1] == '/');
        kept += !is_folder;
        p += entry_bytes;
        left -= entry_bytes;
    }
    if (left != 0)
        FAIL(CF_ERR_CORRUPT, "zip directory: %" PRIu64 " bytes behind its last entry", left);
    *ret_count = kept;
out:
    return err;
}

static int by_offset(const void *a, const void *b)
{
    const pt_record *x = a;
    const pt_record *y = b;
    return x->begin_off < y->begin_off ? -1 : x->begin_off > y->begin_off;
}

static int compare_names(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    const int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);
    return order ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

static int by_record_name(const void *a, const void *b)
{
    const pt_record *x = a;
    const pt_record *y = b;
    return compare_names(x->name, x->name_bytes, y->name, y->name_bytes);
}

static cf_err check_distinct(pt_record *records, size_t count)
{
    char shown[PT_PRINT_BYTES];
    char other[PT_PRINT_BYTES];
    qsort(records, count, sizeof *records, by_offset);
    for (size_t i = 1; i < count; i++)
        if (records[i].begin_off < records[i - 1].end_off)
            return err_set(CF_ERR_CORRUPT, "records %s and %s overlap",
                           pt_printable(records[i - 1].name, records[i - 1].name_bytes, shown),
                           pt_printable(records[i].name, records[i].name_bytes, other));
    qsort(records, count, sizeof *records, by_record_name);
    for (size_t i = 1; i < count; i++)
        if (by_record_name(&records[i - 1], &records[i]) == 0)
            return err_set(CF_ERR_INVALID, "record %s appears twice",
                           pt_printable(records[i].name, records[i].name_bytes, shown));
    return CF_OK;
}

cf_err pt_archive_open(const unsigned char *data, size_t bytes, pt_archive *ret_archive)
{
    cf_err err;
    pt_record *records = NULL;
    directory d = {0};
    size_t count;
    TRY(read_end(data, bytes, &d));
    TRY(mem_alloc((size_t)d.count, sizeof *records, &records));
    TRY(read_entries(&d, records, &count));
    TRY(check_distinct(records, count));
    *ret_archive = (pt_archive){.records = records, .count = count};
    records = NULL;
out:
    mem_free(records);
    return err;
}

void pt_archive_close(pt_archive *a)
{
    mem_free(a->records);
    *a = (pt_archive){0};
}

const pt_record *pt_archive_find(const pt_archive *a, const char *name, size_t name_bytes)
{
    size_t low = 0;
    size_t high = a->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const pt_record *r = &a->records[middle];
        const int order = compare_names(name, name_bytes, r->name, r->name_bytes);
        if (order == 0)
            return r;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}
