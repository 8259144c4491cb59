/*
 * parity_frame.h - runs cases through stage adapters and judges what comes out. The command prints what it reports.
 */
#ifndef CF_TOOLS_PARITY_FRAME_H
#define CF_TOOLS_PARITY_FRAME_H

#include "tools/parity_case.h"

#define PARITY_REASON_BYTES 512

/* One finding: a tensor compared, or a reason why a case cannot pass. Valid during the call only. */
typedef struct parity_line {
    const char *case_path;
    const char *tensor_name; /* NULL: about the whole case */
    bool compared;           /* stats, bound and shape hold figures */
    int rank;
    int64_t dims[CASE_RANK_MAX]; /* the expected shape */
    compare_stats stats;
    const bound *rule; /* NULL when not compared */
    bool pass;
    const char *reason; /* why not, or what was left out; "" when there is nothing to say */
} parity_line;

typedef struct parity_run {
    const parity_options *options;
    const parity_stage *const *stages; /* adapters, NULL-terminated */
    const char *capture_dir;           /* NULL: no captures */
    void (*report)(void *ctx, const parity_line *line);
    void *ctx;
} parity_run;

typedef struct parity_totals {
    size_t passed, failed;
} parity_totals;

/* Groups the cases by stage, runs each alone and then all of a stage as one packed batch (a single case twice), and
 * reports. Adapters are opened only for stages that occur. Failing cases are lines, not errors; an error means that the
 * model or an adapter could not be opened, or a capture not written. */
CF_MUST_CHECK cf_err parity_run_cases(const parity_run *run, parity_case *const *cases, size_t count,
                                      parity_totals *ret_totals);

/* Writes inputs of c and what was emitted for case_idx as a case file of the same name in dir. */
CF_MUST_CHECK cf_err parity_capture_write(const parity_case *c, const parity_sink *sink, size_t case_idx,
                                          const parity_options *opt, const char *dir);

#endif
