/*
 * pt_impl.h - the halves of the PyTorch reader, for pt_*.c alone: the zip directory and the pickle machine.
 */
#ifndef CF_MODEL_PT_IMPL_H
#define CF_MODEL_PT_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/tensor_table.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PT_RECORDS_MAX      65536u
#define PT_NAME_BYTES_MAX   512u
#define PT_PICKLE_BYTES_MAX (64u << 20)

/* One file inside the archive; everything is borrowed from the archive's bytes. */
typedef struct pt_record {
    const char *name; /* below the root folder, not NUL-terminated */
    size_t name_bytes;
    const unsigned char *data;
    size_t bytes;
    uint64_t begin_off; /* of the local header */
    uint64_t end_off;   /* behind the payload */
    uint32_t crc32;
} pt_record;

typedef struct pt_archive {
    pt_record *records; /* owned, sorted by name */
    size_t count;
} pt_archive;

/* Reads and checks the whole directory before anything else is looked at. */
CF_MUST_CHECK cf_err pt_archive_open(const unsigned char *data, size_t bytes, pt_archive *ret_archive);
void pt_archive_close(pt_archive *a);
const pt_record *pt_archive_find(const pt_archive *a, const char *name, size_t name_bytes); /* NULL when absent */

/* A name from the file for an error text: printable ASCII and UTF-8 kept, the rest as '?'. */
#define PT_PRINT_BYTES 128
const char *pt_printable(const char *name, size_t name_bytes, char ret_text[PT_PRINT_BYTES]);

/* Runs data.pkl of a and fills table. file_bytes bounds what views may expand to. */
CF_MUST_CHECK cf_err pt_unpickle(const pt_archive *a, const pt_record *pickle, size_t file_bytes, tensor_table *table);

/* CRC-32 of zip (polynomial 0xEDB88320), eight bytes a step. */
typedef struct pt_crc32 {
    uint32_t table[8][256];
    uint32_t value;
} pt_crc32;
void pt_crc32_init(pt_crc32 *c);
void pt_crc32_add(pt_crc32 *c, const void *data, size_t bytes);
/* The sum since init or the last take; starts the next one. */
uint32_t pt_crc32_take(pt_crc32 *c);

#ifdef __cplusplus
}
#endif
#endif
