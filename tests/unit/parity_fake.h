/*
 * parity_fake.h - for tests of the parity frame: made-up case files, and stage adapters that "compute" the expected
 * tensors except for what a test tells them to get wrong. Defines parity_llm .. parity_enroll.
 */
#ifndef CF_TESTS_UNIT_PARITY_FAKE_H
#define CF_TESTS_UNIT_PARITY_FAKE_H

#include "tools/parity_frame.h"

typedef enum fake_wrong {
    FAKE_RIGHT,
    FAKE_ADD,        /* amount onto value `at` */
    FAKE_TILT,       /* amount onto value `at`, and off the value before it */
    FAKE_ADD_ALL,    /* amount onto every value */
    FAKE_SET,        /* value `at` becomes amount */
    FAKE_OMIT,       /* not emitted */
    FAKE_SHAPE,      /* one row too many */
    FAKE_TWICE,      /* emitted twice */
    FAKE_BATCH_ULP,  /* value `at` differs by one ulp when the batch has more than one case */
    FAKE_BATCH_OMIT, /* not emitted in a batch */
    FAKE_BATCH_FAIL, /* run fails for a batch */
    FAKE_NEEDS       /* run asks for an input of this name */
} fake_wrong;

/* What the adapters do next; reset with fake_reset. */
typedef struct fake {
    fake_wrong wrong;
    const char *tensor_name; /* the tensor it is about */
    const char *case_part;   /* only cases whose path contains this; NULL: all */
    double amount;
    size_t at;
    cf_err open_err; /* what open returns */
    int opened[7], closed[7], runs, largest_batch;
} fake;
fake *fake_state(void);
void fake_reset(void);

/* A tensor of a case file; data NULL: all zeros except the first value, 2. */
typedef struct fake_tensor {
    const char *name;
    int rank;
    int64_t dims[CASE_RANK_MAX];
    const void *data;
    bool integer;
} fake_tensor;

/* Writes DIR/NAME; meta is "key=value;key=value" or NULL. Returns the path, one of eight static buffers. */
const char *fake_case(const char *dir, const char *name, const char *meta, const fake_tensor *tensors, size_t count);

/* What the frame reported. */
typedef struct fake_report {
    size_t count;
    struct {
        char text[PARITY_REASON_BYTES + 512]; /* "path tensor: reason" */
        parity_line line;                     /* pointers are stale */
    } lines[64];
    parity_totals totals;
} fake_report;

/* Runs the case files through the fake adapters. */
cf_err fake_run(const char *const *paths, size_t count, precision operands, const char *capture_dir, fake_report *ret);

#endif
