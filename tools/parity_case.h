/*
 * parity_case.h - one case file in memory: its tensors under the names of cases.md 2, what each is for, metadata.
 *
 * Two kinds of files are read: cases with metadata `stage`, and the captures that older tools wrote without metadata,
 * whose names are mapped. The accessors that adapters use are in parity.h.
 */
#ifndef CF_TOOLS_PARITY_CASE_H
#define CF_TOOLS_PARITY_CASE_H

#include "tools/parity.h"
#include "tools/parity_compare.h"

/* A case is read whole: 1 GiB is a thousand times the largest of the reference set. */
#define CASE_BYTES_MAX ((size_t)1 << 30)
#define CASE_RANK_MAX  5

typedef enum case_role {
    CASE_INPUT,    /* what the stage is given */
    CASE_EXPECTED, /* what it must compute; adapters may also take it as input (f0, source) */
    CASE_IGNORED,  /* known to a capture format, not compared; `note` says why */
    CASE_UNKNOWN   /* no name of this stage */
} case_role;

typedef struct case_tensor {
    const char *name;      /* canonical; borrowed from the table or static */
    const char *file_name; /* as stored; borrowed from the table */
    const char *note;      /* CASE_IGNORED: static */
    case_role role;
    int rank;
    int64_t dims[CASE_RANK_MAX];
    size_t count;
    float *f32;   /* [count], owned; of integers only where whole numbers are compared (BOUND_EQUAL) */
    int32_t *i32; /* [count], owned; NULL for floats */
} case_tensor;

/* Reads the case at path. CF_ERR_INVALID, CF_ERR_CORRUPT, ...: the file is not a readable case. What is wrong with a
 * readable one (unknown stage, missing metadata) is parity_case_defect. */
CF_MUST_CHECK cf_err parity_case_open(const char *path, parity_case **ret_case);
/* The same from bytes at hand, which may go away afterwards. */
CF_MUST_CHECK cf_err parity_case_parse(const char *path, const unsigned char *data, size_t bytes,
                                       parity_case **ret_case);
/* A view of c that holds its inputs alone, so that a stage computes everything from them. c must outlive it. */
CF_MUST_CHECK cf_err parity_case_inputs(const parity_case *c, parity_case **ret_view);
void parity_case_close(parity_case *c); /* NULL is fine */

/* Why the case cannot run whatever the model: NULL when nothing is wrong. */
const char *parity_case_defect(const parity_case *c);

const char *parity_case_stage(const parity_case *c); /* never NULL */
bound_profile parity_case_profile(const parity_case *c);
bool parity_case_is_capture(const parity_case *c); /* shapes may carry extra dimensions of size 1 */

size_t parity_case_count(const parity_case *c);
const case_tensor *parity_case_at(const parity_case *c, size_t idx);
const case_tensor *parity_case_find(const parity_case *c, const char *name); /* NULL when absent */

/* The shape that an input has in a case file, without the extra dimensions of a capture; other tensors as they are.
 * ret_dims: [CASE_RANK_MAX]. CF_ERR_MISMATCH when it cannot have it. */
CF_MUST_CHECK cf_err parity_case_shape(const parity_case *c, const case_tensor *t, int *ret_rank, int64_t *ret_dims);

/* The stages this version compares, in the order of the pipeline; NULL ends the list. */
extern const char *const PARITY_STAGES[];

#endif
