/*
 * dft.c - the transform of dft.h. The backend's thread; owns the table of roots.
 *
 *   X[k] = sum_r W^(r k) Y_r[k mod M]          Y_r = transform of x[r], x[4 + r], x[8 + r], ...     r = 0..3
 *   Re Y_r[q] = sum_m even[m] cos(2 pi m q / M)       even[m] = x[m] + x[M - m]   (once for m = 0 and M / 2)
 *   Im Y_r[q] = - sum_m odd[m] sin(2 pi m q / M)      odd[m] = x[m] - x[M - m]
 *
 * Fails: CF_ERR_NOMEM. Asserts on the number of points.
 */
#define _GNU_SOURCE /* M_PI */
#include "enroll/dft.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/compute/ops.h"

#define PARTS        4
#define CHUNK_FRAMES 128 /* at 512 points: 1 MiB of scratch */

/* table[q][m] = cos or sin of 2 pi q m / points for q, m = first .. last */
static cf_err pack_table(backend *be, int32_t points, int32_t first, int32_t last, bool sine, const weight **ret_table)
{
    cf_err err;
    const int64_t side = last - first + 1;
    double *table = NULL;
    weight *packed;

    TRY(mem_alloc((size_t)(side * side), sizeof *table, &table));
    for (int64_t q = first; q <= last; q++)
        for (int64_t m = first; m <= last; m++) {
            const double turn = 2.0 * M_PI * (double)(q * m % points) / points;
            table[(q - first) * side + m - first] = sine ? sin(turn) : cos(turn);
        }
    TRY(backend_pack_conv_f64(be, table, side, side, 1, &packed));
    *ret_table = packed;
out:
    mem_free(table);
    return err;
}

cf_err dft_init(backend *be, int32_t points, dft *ret_dft)
{
    cf_err err;
    dft d = {.be = be, .points = points};
    const int32_t part = points / PARTS;

    CF_ASSERT(points >= 16 && points % (2 * PARTS) == 0);
    TRY(pack_table(be, part, 0, part / 2, false, &d.cosine));
    TRY(pack_table(be, part, 1, part / 2 - 1, true, &d.sine));
    TRY(mem_alloc(2 * (size_t)points, sizeof *d.roots, &d.roots));
    for (int32_t i = 0; i < points; i++) {
        d.roots[2 * i] = cos(2.0 * M_PI * i / points);
        d.roots[2 * i + 1] = -sin(2.0 * M_PI * i / points);
    }
    *ret_dft = d;
    d.roots = NULL;
out:
    mem_free(d.roots);
    return err;
}

void dft_done(dft *d)
{
    mem_free(d->roots);
    *d = (dft){0};
}

/* frame: [points] -> even: [PARTS, M/2 + 1]   odd: [PARTS, M/2 - 1] */
static void fold_frame(int32_t points, const double *frame, double *even, double *odd)
{
    const int32_t part = points / PARTS, half = part / 2;

    for (int32_t r = 0; r < PARTS; r++) {
        double *sums = even + r * (half + 1), *differences = odd + r * (half - 1);
        sums[0] = frame[r];
        sums[half] = frame[PARTS * half + r];
        for (int32_t m = 1; m < half; m++) {
            const double a = frame[PARTS * m + r], b = frame[PARTS * (part - m) + r];
            sums[m] = a + b;
            differences[m - 1] = a - b;
        }
    }
}

/* re: [PARTS, M/2 + 1] and im: [PARTS, M/2 - 1], im with its sign turned -> power: [points / 2 + 1] */
static void join_parts(const dft *d, const double *re, const double *im, double *power)
{
    const int32_t part = d->points / PARTS, half = part / 2;

    for (int32_t k = 0; k <= d->points / 2; k++) {
        const int32_t q = k % part, mirrored = q > half, at = mirrored ? part - q : q;
        double sum_re = 0.0, sum_im = 0.0;
        for (int32_t r = 0; r < PARTS; r++) {
            const double *root = d->roots + 2 * (r * k % d->points);
            const double y_re = re[r * (half + 1) + at];
            const double turned = at == 0 || at == half ? 0.0 : im[r * (half - 1) + at - 1];
            const double y_im = mirrored ? turned : -turned;
            sum_re += y_re * root[0] - y_im * root[1];
            sum_im += y_re * root[1] + y_im * root[0];
        }
        power[k] = sum_re * sum_re + sum_im * sum_im;
    }
}

/* y = x table^T.   x: [rows, side]   y: [rows, side], taken from scratch */
static cf_err multiply(const dft *d, const weight *table, const tensor *x, tensor *ret_y)
{
    cf_err err;
    op_rows rows;
    const int32_t count = (int32_t)x->dims[0];

    TRY(backend_rows(d->be, &count, 1, &rows));
    TRY(backend_take_2d(d->be, DTYPE_F64, x->dims[0], x->dims[1], ret_y));
    TRY(op_conv1d(d->be, &(op_conv1d_args){.x = x,
                                           .rows_in = &rows,
                                           .w = table,
                                           .y = ret_y,
                                           .rows_out = &rows,
                                           .kernel = 1,
                                           .dilation = 1,
                                           .stride = 1,
                                           .repeat = 1,
                                           .groups = 1,
                                           .act = ACT_NONE}));
out:
    return err;
}

/* host: room for one chunk, even halves first. */
static cf_err power_chunk(const dft *d, const double *frames, int64_t count, double *host, double *power)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(d->be);
    const int32_t half = d->points / PARTS / 2;
    double *even = host, *odd = host + count * PARTS * (half + 1);
    tensor even_in, odd_in, even_out, odd_out;

    for (int64_t t = 0; t < count; t++)
        fold_frame(d->points, frames + t * d->points, even + t * PARTS * (half + 1), odd + t * PARTS * (half - 1));
    TRY(backend_take_2d(d->be, DTYPE_F64, count * PARTS, half + 1, &even_in));
    TRY(backend_take_2d(d->be, DTYPE_F64, count * PARTS, half - 1, &odd_in));
    TRY(backend_upload(d->be, even, &even_in));
    TRY(backend_upload(d->be, odd, &odd_in));
    TRY(multiply(d, d->cosine, &even_in, &even_out));
    TRY(multiply(d, d->sine, &odd_in, &odd_out));
    TRY(backend_download(d->be, &even_out, even));
    TRY(backend_download(d->be, &odd_out, odd));
    for (int64_t t = 0; t < count; t++)
        join_parts(d, even + t * PARTS * (half + 1), odd + t * PARTS * (half - 1), power + t * (d->points / 2 + 1));
out:
    backend_scratch_reset(d->be, mark);
    return err;
}

cf_err dft_power(const dft *d, const double *frames, int64_t frame_count, double *power)
{
    cf_err err;
    double *host = NULL;

    TRY(mem_alloc((size_t)CHUNK_FRAMES * (size_t)d->points, sizeof *host, &host));
    for (int64_t t = 0; t < frame_count; t += CHUNK_FRAMES) {
        const int64_t left = frame_count - t, count = left < CHUNK_FRAMES ? left : CHUNK_FRAMES;
        TRY(power_chunk(d, frames + t * d->points, count, host, power + t * (d->points / 2 + 1)));
    }
out:
    mem_free(host);
    return err;
}
