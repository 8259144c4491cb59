/*
 * manifest_impl.h - the rules of one row, shared by manifest.c (files and lines) and manifest_row.c (rules).
 */
#ifndef CF_ORCHESTRATOR_MANIFEST_IMPL_H
#define CF_ORCHESTRATOR_MANIFEST_IMPL_H

#include "common/base/json.h"
#include "orchestrator/manifest.h"

/* From an object, whose strings the row borrows; where begins the texts of errors. All bad rows are CF_ERR_INVALID. */
CF_MUST_CHECK cf_err manifest_row_from_json(const json *obj, const char *where, const manifest_defaults *defaults,
                                            manifest_row *ret_row);

/* From `id|text` or `id|transcription|normalised`; cuts the NUL-terminated line up, and borrows it. */
CF_MUST_CHECK cf_err manifest_row_from_columns(char *line, size_t line_bytes, const char *where,
                                               const manifest_defaults *defaults, manifest_row *ret_row);

/* CF_ERR_INVALID for a default that no row could have. */
CF_MUST_CHECK cf_err manifest_defaults_check(const manifest_defaults *defaults);

#endif
