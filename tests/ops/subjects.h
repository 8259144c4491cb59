/*
 * subjects.h - the backends under test. One list for all cases; a backend that this build or machine lacks is a counted
 * skip.
 */
#ifndef CF_TESTS_OPS_SUBJECTS_H
#define CF_TESTS_OPS_SUBJECTS_H

#include "common/compute/backend.h"

typedef struct subject subject;
struct subject {
    const char *name;                                                     /* as in expected_skips.txt */
    cf_err (*open)(const subject *s, int threads, backend **ret_backend); /* CF_ERR_UNSUPPORTED: not here */
    const char *device;
    bool naive;     /* the plain loops: compared with direct computations, the others with it */
    bool threaded;  /* thread counts are tried */
    bool bf16_only; /* differs from another subject in bf16 products alone */
};

extern const subject subjects[];
extern const int subject_count;

#define SUBJECT_NAIVE (&subjects[0])

#endif
