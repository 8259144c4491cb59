/*
 * gemm_amx.h - what the files of the tile engine share: gemm_amx.c for convolutions and for pairs, gemm_amx_plane.c for
 * their left operand, gemm_amx_dense.c for layers with bf16 operands.
 */
#ifndef CF_COMPUTE_CPU_GEMM_AMX_H
#define CF_COMPUTE_CPU_GEMM_AMX_H

#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/gemm.h"

/* bf16 operands a value: one, or a pair. */
static inline int amx_parts(const weight *w)
{
    return w->operands == PRECISION_BF16_PAIR ? 2 : 1;
}

/* So few columns that amx_multiply_half has them all. */
static inline bool amx_half(const weight *w)
{
    return w->n_out / w->groups <= AMX_SIDE / 2;
}

/* And so few channels that taps share chunks: the depth runs over taps and channels together. It comes in pairs. */
static inline bool amx_merged(const weight *w)
{
    const int64_t inner = w->k_in / w->groups;
    return amx_half(w) && w->kernel > 1 && inner < AMX_SIDE && inner % 2 == 0;
}

/* And so few filters that a block has room for them twice, for two rows of y (gemm_amx.c). */
#define AMX_TWIN_COLS 8
static inline bool amx_twin(const weight *w)
{
    return amx_merged(w) && w->n_out / w->groups <= AMX_TWIN_COLS;
}

/* Chunks of a depth of merged taps, and the values of the last one. */
static inline int64_t amx_merged_chunks(const weight *w, int64_t taps)
{
    return div_ceil(taps * w->k_in / w->groups, AMX_SIDE);
}
static inline int64_t amx_merged_tail(const weight *w, int64_t taps)
{
    return taps * w->k_in / w->groups - (amx_merged_chunks(w, taps) - 1) * AMX_SIDE;
}

static inline int64_t amx_taps(const weight *w)
{
    return amx_merged(w) ? 1 : w->kernel;
}

static inline int64_t amx_chunks(const weight *w)
{
    return amx_merged(w) ? amx_merged_chunks(w, w->kernel + amx_twin(w)) : div_ceil(w->k_in / w->groups, AMX_SIDE);
}

static inline int64_t amx_panels(const weight *w)
{
    return div_ceil(w->n_out / w->groups, AMX_SIDE);
}

/* Of one part of a packed panel. */
static inline int64_t amx_part_values(const weight *w)
{
    return amx_taps(w) * amx_chunks(w) * AMX_STEP_VALUES;
}

/* How the rows of a sequence are multiplied: those of y in a row of the block, 1 or 2; the rows of the plane between
 * the taps of two rows of the block; what of the depth is multiplied: chunks of a tap, and values of the last chunk. */
typedef struct amx_way {
    int64_t twins, plane_step, chunks, tail;
} amx_way;

/* Rows of y that one sequence, or a part of it, gives, row_step apart; and the row of the plane that tap 0 of the first
 * reads. */
typedef struct amx_piece {
    const amx_way *way;
    int64_t first_row, rows, plane_row;
} amx_piece;

typedef struct amx_job {
    const gemm_job *job;
    uint16_t *plane; /* [parts][plane_rows][row_values], merged [parts][groups][plane_rows][row_values]; in scratch */
    int64_t row_values; /* of one row of the left operand */
    int64_t group_pitch, part_pitch;
    int64_t plane_rows, plane_task_rows;
    int64_t *plane_first; /* [sequences + 1], rows of the plane */
    snake_lines snake;    /* of the convolution; rows 0: none */
    amx_piece *pieces;
    int64_t piece_count, taps, chunks, panels, task_panels, col_tasks;
    int64_t stride, dilation, phases; /* phases of the plane: 1, or the dilation of merged taps */
    int64_t row_step;                 /* rows of y between two that read one phase */
    int64_t block_rows;
    amx_way one_by_one, in_twins; /* in_twins.twins is 1 where there are none */
    uint8_t *wild;                /* [sequences], atomic: holds a value that is not finite */
    int parts;
} amx_job;

/* What is not finite must not meet the zeros that twins have for each other's taps. */
static inline const amx_way *amx_way_of(const amx_job *aj, int32_t b)
{
    return __atomic_load_n(&aj->wild[b], __ATOMIC_RELAXED) ? &aj->one_by_one : &aj->in_twins;
}

/* Lays the left operand out, and says how: fills in everything but pieces and tasks. Fails: CF_ERR_NOMEM. */
cf_err gemm_amx_make_plane(backend *be, amx_job *aj);

static inline int32_t amx_sequences(const gemm_job *job)
{
    return job->conv ? job->conv->rows_out->count : 1;
}

static inline int64_t amx_rows_out(const gemm_job *job, int32_t b)
{
    return job->conv ? rows_length(job->conv->rows_out, b) : job->rows;
}

/* Rows of one phase of sequence b in the plane. */
static inline int64_t amx_phase_rows(const amx_job *aj, int32_t b)
{
    return (aj->plane_first[b + 1] - aj->plane_first[b]) / aj->phases;
}

/* Where the values of a group and row lie, of the first part. */
static inline uint16_t *amx_plane_at(const amx_job *aj, int64_t group, int64_t row)
{
    return aj->plane + group * aj->group_pitch + row * aj->row_values;
}

/* Where a block lies in y: rows row, row + row_step, ...; a layer's row_step is 1. */
typedef struct amx_place {
    int64_t row, rows, row_step, col, cols;
} amx_place;

/* Bias, activation, and a block's way into y. c: at->rows rows, c_pitch values apart, changed. streamed: y is bf16, its
 * blocks have 32 columns, and it goes past the caches; amx_stream_end ends that. */
void gemm_amx_finish(const gemm_job *job, float *c, int64_t c_pitch, const amx_place *at, bool streamed);

/* y = act(x W + bias) or y += gate * (x W + bias), a weight of one part, no convolution. Fails: CF_ERR_NOMEM. */
cf_err gemm_amx_dense(backend *be, const gemm_job *job);

#endif
