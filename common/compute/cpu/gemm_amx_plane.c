/*
 * gemm_amx_plane.c - the left operand of the tile engine: rounded once, into a plane in scratch, each sequence with the
 * zeros that its taps read outside it, so that a tap is a shift by rows.
 *
 *   plane:  [part][row][group][chunk of 32 channels]     few channels, merged taps:  [part][group][row][channel]
 *
 * With merged taps and a dilation d, row t is in phase t % d of the plane, [phase][t / d], where taps are neighbours.
 * The rows of x are passed once, a few at a time: through snake where there is one, rounded, and put where they belong.
 * Run by the pool's threads. Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm_amx.h"

#define PLANE_TASK_VALUES ((int64_t)1 << 15)

/* Rows of x that lie one behind the other, of one sequence. */
typedef struct plane_rows {
    const float *x;
    int64_t count;
    int64_t at; /* of the first: row of its sequence, padding counted */
} plane_rows;

/* Channels of one group in a row of the plane: without padding when taps are merged, else whole chunks. */
static int64_t group_values(const amx_job *aj)
{
    return amx_merged(aj->job->w) ? aj->row_values : aj->chunks * AMX_SIDE;
}

static int64_t pad_left(const amx_job *aj)
{
    return aj->job->conv ? aj->job->conv->pad_left : 0;
}

/* Rows of sequence b in x. */
static int64_t rows_in_of(const amx_job *aj, int32_t b)
{
    const op_conv1d_args *a = aj->job->conv;
    return a ? rows_length(a->rows_in, b) : aj->job->rows;
}

static int64_t repeat_of(const amx_job *aj)
{
    return aj->job->conv ? aj->job->conv->repeat : 1;
}

/* Rows of x, `pitch` values apart, as bf16 into the plane's rows from `row` on; returns whether all are finite. */
static bool narrow_rows(const amx_job *aj, const float *x, int64_t pitch, int64_t row, int64_t rows)
{
    const weight *w = aj->job->w;
    const int64_t inner = w->k_in / w->groups, width = group_values(aj);
    amx_lines lines = {.rows = rows, .count = inner, .width = width, .from_pitch = pitch, .to_pitch = aj->row_values};
    if (inner == pitch && inner == aj->row_values) { /* one group, no padding: rows are one run of values */
        lines.count = lines.width = rows * inner;
        lines.rows = 1;
    }
    bool finite = true;
    for (int64_t g = 0; g < w->groups; g++) {
        uint16_t *high = amx_plane_at(aj, g, row), *low = aj->parts > 1 ? high + aj->part_pitch : NULL;
        finite &= amx_narrow(&lines, x + g * inner, high, low);
    }
    return finite;
}

/* Rows of sequence b to their phases; those that no block reads have no place. */
static void place_rows(const amx_job *aj, int32_t b, const plane_rows *rows)
{
    const int64_t k_in = aj->job->w->k_in, in_phase = amx_phase_rows(aj, b);
    for (int64_t p = 0; p < min_i64(aj->phases, rows->count); p++) {
        const int64_t at = (rows->at + p) / aj->phases;
        const int64_t count = min_i64(div_ceil(rows->count - p, aj->phases), in_phase - at);
        const int64_t row = aj->plane_first[b] + (rows->at + p) % aj->phases * in_phase + at;
        if (count > 0 && !narrow_rows(aj, rows->x + p * k_in, aj->phases * k_in, row, count))
            __atomic_store_n(&aj->wild[b], 1, __ATOMIC_RELAXED);
    }
}

static void place_repeated(const amx_job *aj, int32_t b, const plane_rows *rows)
{
    const int64_t repeat = repeat_of(aj);
    for (int64_t i = 0; i < rows->count * repeat; i++) {
        const plane_rows one = {.x = rows->x + i / repeat * aj->job->w->k_in, .count = 1, .at = rows->at + i};
        place_rows(aj, b, &one);
    }
}

/* Rows [first, first + count) of x, all of sequence b, whose own first row is `begin`. */
static void fill_rows(const amx_job *aj, int32_t b, int64_t begin, int64_t first, int64_t count, float *snaked)
{
    const int64_t k_in = aj->job->w->k_in, few = aj->snake.rows > 0 ? aj->snake.rows : count;
    for (int64_t r = first; r < first + count; r += few) {
        plane_rows rows = {.x = tensor_f32(aj->job->x) + r * k_in,
                           .count = min_i64(few, first + count - r),
                           .at = (r - begin) * repeat_of(aj) + pad_left(aj)};
        if (aj->snake.rows > 0) {
            aj->job->cpu->vec->snake(rows.x, aj->snake.alpha, aj->snake.inverse, rows.count * k_in, snaked);
            rows.x = snaked;
        }
        if (repeat_of(aj) > 1)
            place_repeated(aj, b, &rows);
        else
            place_rows(aj, b, &rows);
    }
}

static void fill_plane(void *ctx, int32_t task_idx, int thread_idx)
{
    const amx_job *aj = ctx;
    const op_conv1d_args *a = aj->job->conv;
    const int64_t first = task_idx * aj->plane_task_rows;
    const int64_t end = min_i64(first + aj->plane_task_rows, aj->job->x->dims[0]);
    float *snaked = aj->job->cpu->workers[thread_idx].block;
    int32_t b = a ? rows_find(a->rows_in, first) : 0;
    for (int64_t row = first, stop; row < end; row = stop, b++) {
        stop = a ? min_i64(end, a->rows_in->offs[b + 1]) : end;
        fill_rows(aj, b, a ? a->rows_in->offs[b] : 0, row, stop - row, snaked);
    }
}

static void zero_rows(const amx_job *aj, int64_t row, int64_t count)
{
    const bool merged = amx_merged(aj->job->w);
    const int64_t runs = merged ? aj->job->w->groups : 1; /* else the groups of a row lie side by side */
    if (count <= 0)
        return;
    for (int p = 0; p < aj->parts; p++)
        for (int64_t g = 0; g < runs; g++)
            memset(amx_plane_at(aj, g, row) + p * aj->part_pitch, 0,
                   (size_t)(count * aj->row_values) * sizeof *aj->plane);
}

/* What of the plane is no row of x: in each phase of a sequence some rows before it and some behind. */
static void zero_edges(const amx_job *aj)
{
    for (int32_t b = 0; b < amx_sequences(aj->job); b++) {
        const int64_t in_phase = amx_phase_rows(aj, b), end = pad_left(aj) + rows_in_of(aj, b) * repeat_of(aj);
        for (int64_t p = 0; p < aj->phases; p++) {
            const int64_t row = aj->plane_first[b] + p * in_phase;
            const int64_t behind = min_i64(in_phase, div_ceil(end - p, aj->phases));
            zero_rows(aj, row, min_i64(in_phase, div_ceil(pad_left(aj) - p, aj->phases)));
            zero_rows(aj, row + behind, in_phase - behind);
        }
    }
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

static void plan_plane(amx_job *aj)
{
    const weight *w = aj->job->w;
    const op_conv1d_args *conv = aj->job->conv;
    const bool merged = amx_merged(w);
    aj->stride = conv ? conv->stride : 1;
    aj->dilation = conv ? conv->dilation : 1;
    aj->phases = merged ? aj->dilation : 1;
    aj->row_step = aj->phases / common_divisor(aj->phases, aj->stride);
    aj->row_values = merged ? w->k_in / w->groups : w->groups * aj->chunks * AMX_SIDE;
    aj->block_rows = amx_half(w) ? 2 * AMX_SIDE : AMX_SIDE;
    aj->one_by_one = (amx_way){
        .twins = 1,
        .plane_step = aj->row_step * aj->stride / aj->phases,
        .chunks = merged ? amx_merged_chunks(w, w->kernel) : aj->chunks,
        .tail = merged ? amx_merged_tail(w, w->kernel) : AMX_SIDE,
    };
    aj->in_twins = aj->one_by_one;
    if (amx_twin(w) && aj->stride == 1)
        aj->in_twins = (amx_way){.twins = 2,
                                 .plane_step = 2 * aj->one_by_one.plane_step,
                                 .chunks = amx_merged_chunks(w, w->kernel + 1),
                                 .tail = amx_merged_tail(w, w->kernel + 1)};
}

/* Every row that a block may read is in the plane, those behind the last row of y too; in twins it reads the most. */
static cf_err place_sequences(backend *be, amx_job *aj)
{
    cf_err err;
    const gemm_job *job = aj->job;
    const amx_way *way = &aj->in_twins;
    const int32_t sequences = amx_sequences(job);
    const int64_t last_first = (aj->row_step - 1) * aj->stride / aj->phases;
    const int64_t taps = job->w->kernel + way->twins - 1;
    const int64_t read = amx_merged(job->w) ? taps : (taps - 1) * aj->dilation + 1;

    TRY(arena_take(&be->scratch, (size_t)sequences * sizeof *aj->wild, &aj->wild));
    memset(aj->wild, 0, (size_t)sequences);
    TRY(arena_take(&be->scratch, ((size_t)sequences + 1) * sizeof *aj->plane_first, &aj->plane_first));
    aj->plane_first[0] = 0;
    for (int32_t b = 0; b < sequences; b++) {
        const int64_t blocks = div_ceil(amx_rows_out(job, b), aj->row_step * way->twins * aj->block_rows);
        const int64_t rows = blocks == 0 ? 0 : last_first + way->plane_step * (blocks * aj->block_rows - 1) + read;
        aj->plane_first[b + 1] = aj->plane_first[b] + aj->phases * rows;
    }
    aj->plane_rows = aj->plane_first[sequences];
out:
    return err;
}

cf_err gemm_amx_make_plane(backend *be, amx_job *aj)
{
    cf_err err;
    const gemm_job *job = aj->job;
    const weight *w = job->w;

    plan_plane(aj);
    TRY(place_sequences(be, aj));
    aj->plane_task_rows = div_ceil(PLANE_TASK_VALUES, w->k_in);
    aj->group_pitch = amx_merged(w) ? aj->plane_rows * aj->row_values : group_values(aj);
    aj->part_pitch = aj->plane_rows * group_values(aj) * w->groups;
    const int64_t values = aj->parts * aj->part_pitch;
    TRY(arena_take(&be->scratch, (size_t)values * sizeof *aj->plane, &aj->plane));
    if (job->conv && job->conv->snake)
        TRY(cpu_snake_lines(be, job->conv->snake, &aj->snake));
    CF_ASSERT((size_t)(aj->snake.rows * w->k_in) * sizeof(float) <= GEMM_BLOCK_BYTES);
    zero_edges(aj);
    pool_run(job->cpu->threads, (int32_t)div_ceil(job->x->dims[0], aj->plane_task_rows), fill_plane, aj);
out:
    return err;
}
