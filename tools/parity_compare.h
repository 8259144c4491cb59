/*
 * parity_compare.h - how two tensors differ, and how much they may: the one table of bounds of `cosyfarm parity`, each
 * with its reason. Pure; knows no stage code.
 */
#ifndef CF_TOOLS_PARITY_COMPARE_H
#define CF_TOOLS_PARITY_COMPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/compute/backend.h"

typedef enum bound_kind {
    BOUND_BITS,  /* the same bytes */
    BOUND_EQUAL, /* whole numbers, all the same */
    BOUND_REL,   /* max |ours - expected| / max |expected| <= limit */
    BOUND_ABS,   /* max |ours - expected| <= limit */
    BOUND_FLOOR, /* the same; <= floor_limit in bands that lie at a floor (compare_floor) */
    BOUND_SNR,   /* 10 log10(sum expected^2 / sum (ours - expected)^2) >= limit, in dB */
    BOUND_LOGITS /* max abs, mean abs, and the same top-1 wherever the expected margin is clear */
} bound_kind;

typedef struct bound {
    bound_kind kind;
    double limit;
    double mean_limit;  /* BOUND_LOGITS */
    double margin;      /* BOUND_LOGITS: rows with a larger expected top-1 margin must agree */
    double floor_limit; /* BOUND_FLOOR */
} bound;

/* Where a case comes from; decides which row of the table holds. */
typedef enum bound_profile {
    BOUND_PLAIN,  /* a synthetic model */
    BOUND_HARSH,  /* a synthetic model of profile harsh: magnitudes of the released Flow */
    BOUND_REAL,   /* metadata names another model, or none: real weights */
    BOUND_CAPTURE /* a capture of an older reference run on a GPU, without metadata */
} bound_profile;

/* The bound of a tensor, or NULL when there is no tensor of this name in this stage (compare_name_matches).
 * *ret_why (may be NULL) is the reason, static text. */
const bound *bound_find(const char *stage, const char *name, precision operands, bound_profile profile,
                        const char **ret_why);

/* The bound of a tensor that the LLM's weights in int8 reach; NULL: the one of bf16 holds. */
const bound *bound_find_int8(const char *stage, const char *name);

/* "rel <= 1e-05", "snr >= 90 dB", ... */
#define BOUND_TEXT_BYTES 64
void bound_text(const bound *b, char ret_text[BOUND_TEXT_BYTES]);

#define SNR_EQUAL_DB 999.0 /* shown when there is no difference at all */

typedef struct compare_stats {
    double max_abs, mean_abs;
    double rel;    /* max_abs / max |expected|; max_abs when all expected are 0 */
    double snr_db; /* SNR_EQUAL_DB when equal */
    bool same_bits;
    bool finite;           /* no NaN or infinity on either side */
    size_t worst_idx;      /* of max_abs, or of the first value that is not finite */
    size_t excluded_count; /* values left out */
    double floor_abs;      /* compare_floor: max |ours - expected| in bands at the floor */
} compare_stats;

/* got, want: [count] f32. exclude: NULL, or [count] flags of values to leave out of every figure but `finite`. */
compare_stats compare_arrays(const float *got, const float *want, size_t count, const unsigned char *exclude);

/* Rows of [rows, cols] whose expected top-1 margin exceeds `margin` and whose top-1 differs; the first of them in
 * *ret_row when there is one. */
size_t compare_top1(const float *got, const float *want, size_t rows, size_t cols, double margin, size_t *ret_row);

/* The same for logarithms [rows, cols] that are cut off below. A band (column) lies at the floor when its least
 * expected value stands there more than once; such bands are left out of every figure but `finite` and floor_abs.
 * flags: [rows * cols], all 0, overwritten. */
compare_stats compare_floor(const float *got, const float *want, size_t rows, size_t cols, unsigned char *flags);

/* Whether a tensor of this name is meant by the pattern: "mel_#" matches mel_0 .. mel_9999. */
bool compare_name_matches(const char *pattern, const char *name);

/* True when the figures honour the bound; top-1 is judged separately. */
bool bound_holds(const bound *b, const compare_stats *s);

#endif
