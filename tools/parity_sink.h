/*
 * parity_sink.h - what adapters emitted, kept by case and name. Private to the parity frame.
 */
#ifndef CF_TOOLS_PARITY_SINK_H
#define CF_TOOLS_PARITY_SINK_H

#include "tools/parity_case.h"

#define EMITTED_NAME_BYTES 64

typedef struct emitted {
    size_t case_idx;
    char name[EMITTED_NAME_BYTES];
    int rank;
    int64_t dims[CASE_RANK_MAX];
    size_t count;
    float *data;    /* [count], owned by the sink */
    int32_t *whole; /* [count], the same as integers, owned by the sink; NULL for floats */
} emitted;

struct parity_sink {
    size_t cases;   /* case_idx is below */
    emitted *items; /* [count], owned */
    size_t count, capacity;
};

void sink_init(parity_sink *s, size_t cases);
void sink_done(parity_sink *s);
/* NULL when the adapter emitted no such tensor for the case. */
const emitted *sink_find(const parity_sink *s, size_t case_idx, const char *name);

#endif
