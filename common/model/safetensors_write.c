/*
 * safetensors_write.c - the writer: header first, data streamed behind it. Any process; one owner a writer.
 *
 * The header is compact ASCII JSON padded with spaces to 8 bytes, tensors lie in the order of declaration: the same
 * bytes for the same calls. Fails: CF_ERR_SYS, CF_ERR_NOMEM, CF_ERR_LIMIT; CF_ERR_INVALID when fewer or more bytes come
 * than were declared.
 */
#include <inttypes.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/file_writer.h"
#include "common/model/safetensors.h"

struct safetensors_writer {
    file_writer *file; /* owned */
    byte_buf texts;    /* members of __metadata__ */
    byte_buf tensors;  /* members of the header */
    uint64_t declared_bytes;
    uint64_t appended_bytes;
    bool begun;
};

cf_err safetensors_create(const char *path, safetensors_writer **ret_writer)
{
    cf_err err;
    safetensors_writer *w = NULL;
    TRY(mem_alloc(1, sizeof *w, &w));
    TRY(file_writer_create(path, &w->file));
    *ret_writer = w;
    w = NULL;
out:
    safetensors_close(w);
    return err;
}

cf_err safetensors_put_text(safetensors_writer *w, const char *key, const char *value)
{
    CF_ASSERT(!w->begun);
    if (w->texts.bytes > 0)
        byte_buf_add_u8(&w->texts, ',');
    byte_buf_add_json_str(&w->texts, key);
    byte_buf_add_u8(&w->texts, ':');
    byte_buf_add_json_str(&w->texts, value);
    return byte_buf_check(&w->texts);
}

static const char *type_text(entry_dtype type)
{
    static const char *const TEXT[ENTRY_DTYPE_COUNT] = {
        [ENTRY_F32] = "F32", [ENTRY_F64] = "F64", [ENTRY_F16] = "F16", [ENTRY_BF16] = "BF16", [ENTRY_I64] = "I64",
        [ENTRY_I32] = "I32", [ENTRY_I16] = "I16", [ENTRY_I8] = "I8",   [ENTRY_U8] = "U8",     [ENTRY_BOOL] = "BOOL",
    };
    return TEXT[type];
}

cf_err safetensors_declare(safetensors_writer *w, const char *name, entry_dtype type, int rank, const int64_t *shape)
{
    CF_ASSERT(!w->begun && rank >= 0 && rank <= ENTRY_RANK_MAX);
    byte_buf *b = &w->tensors;
    uint64_t bytes = entry_dtype_bytes(type);
    if (b->bytes > 0)
        byte_buf_add_u8(b, ',');
    byte_buf_add_json_str(b, name);
    byte_buf_printf(b, ":{\"dtype\":\"%s\",\"shape\":[", type_text(type));
    for (int d = 0; d < rank; d++) {
        byte_buf_printf(b, "%s%" PRId64, d ? "," : "", shape[d]);
        bytes *= (uint64_t)shape[d];
    }
    byte_buf_printf(b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", w->declared_bytes, w->declared_bytes + bytes);
    w->declared_bytes += bytes;
    return byte_buf_check(b);
}

cf_err safetensors_begin(safetensors_writer *w)
{
    cf_err err;
    byte_buf head = {0};
    byte_buf size = {0};
    CF_ASSERT(!w->begun);
    w->begun = true;
    byte_buf_add_u8(&head, '{');
    if (w->texts.bytes > 0) {
        byte_buf_add_text(&head, "\"__metadata__\":{");
        byte_buf_add(&head, w->texts.data, w->texts.bytes);
        byte_buf_add_text(&head, w->tensors.bytes > 0 ? "}," : "}");
    }
    byte_buf_add(&head, w->tensors.data, w->tensors.bytes);
    byte_buf_add_u8(&head, '}');
    while (head.bytes % 8 != 0 && !head.failed)
        byte_buf_add_u8(&head, ' ');
    if (head.bytes > SAFETENSORS_HEADER_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "safetensors header of %zu bytes, at most %u", head.bytes, SAFETENSORS_HEADER_BYTES_MAX);
    byte_buf_add_u64(&size, head.bytes);
    TRY(byte_buf_check(&head));
    TRY(byte_buf_check(&size));
    TRY(file_writer_append(w->file, size.data, size.bytes));
    TRY(file_writer_append(w->file, head.data, head.bytes));
out:
    byte_buf_done(&head);
    byte_buf_done(&size);
    return err;
}

cf_err safetensors_append(safetensors_writer *w, const void *data, size_t bytes)
{
    CF_ASSERT(w->begun);
    if (bytes > w->declared_bytes - w->appended_bytes)
        return err_set(CF_ERR_INVALID, "safetensors: more data than the declared %" PRIu64 " bytes", w->declared_bytes);
    w->appended_bytes += bytes;
    return file_writer_append(w->file, data, bytes);
}

cf_err safetensors_finish(safetensors_writer *w)
{
    if (!w->begun || w->appended_bytes != w->declared_bytes)
        return err_set(CF_ERR_INVALID, "safetensors: expected %" PRIu64 " bytes of data, found %" PRIu64,
                       w->declared_bytes, w->appended_bytes);
    return file_writer_finish(w->file);
}

void safetensors_close(safetensors_writer *w)
{
    if (!w)
        return;
    file_writer_close(w->file);
    byte_buf_done(&w->texts);
    byte_buf_done(&w->tensors);
    mem_free(w);
}

static size_t item_bytes(const safetensors_item *item)
{
    size_t bytes = entry_dtype_bytes(item->type);
    for (int d = 0; d < item->rank; d++)
        bytes *= (size_t)item->shape[d];
    return bytes;
}

cf_err safetensors_write(const char *path, const safetensors_item *items, size_t item_count, const table_text *texts,
                         size_t text_count)
{
    cf_err err;
    safetensors_writer *w = NULL;
    TRY(safetensors_create(path, &w));
    for (size_t i = 0; i < text_count; i++)
        TRY(safetensors_put_text(w, texts[i].key, texts[i].value));
    for (size_t i = 0; i < item_count; i++)
        TRY(safetensors_declare(w, items[i].name, items[i].type, items[i].rank, items[i].shape));
    TRY(safetensors_begin(w));
    for (size_t i = 0; i < item_count; i++)
        TRY(safetensors_append(w, items[i].data, item_bytes(&items[i])));
    TRY(safetensors_finish(w));
out:
    safetensors_close(w);
    return err;
}
