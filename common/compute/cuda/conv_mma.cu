/*
 * conv_mma.cu - convolutions of the vocoder with the matrix units, without a gathered operand: 64 output rows and 64
 * filters to a block, 16 rows to a warp, 32 channels at a time. The backend's thread.
 *
 * A block loads the rows that its taps read once for all of them, as fp16; Snake is applied on the way, so its sine is
 * taken once a value and its result never lies in memory. Filters are fp16, sums are f32. Tiles of rows begin with
 * their sequence and the order of all sums follows from channels and taps alone: a row has the same bytes in any batch.
 * Fails: CF_ERR_NOMEM, CF_ERR_DEVICE. Source: ops.h conv1d, snake.
 */
#include "common/base/check.h"
#include "common/compute/cuda/cuda_impl.cuh"

#define TILE_ROWS    64
#define TILE_FILTERS 64
#define THREADS      128
#define CHANNELS     32             /* of a chunk */
#define WORDS        (CHANNELS / 2) /* pairs of fp16 */
#define PITCH        (WORDS + 4)    /* words of a row: rows of a fragment lie in different banks */
#define TAPS         4              /* whose filters are loaded together */
#define SPAN_MAX     64             /* rows that taps reach beyond a tile's own */
#define COLUMNS      (TILE_FILTERS / 8)

typedef struct conv_view {
    const float *x, *alpha, *bias, *residual; /* but for x NULL where there is none */
    const uint16_t *w;                        /* [n_out][kernel][inner] */
    float *y;
    const int32_t *offs_in, *offs_out, *tiles; /* tiles: [sequences + 1], tiles before each sequence */
    int sequences, kernel, dilation, pad_left, groups;
    int64_t channels, inner, n_out, filters; /* inner, filters: of a group */
    act_kind act;
    float slope;
} conv_view;

/* Where a block stands. */
typedef struct conv_place {
    int64_t begin_in, length_in; /* of the sequence, in rows of x */
    int64_t begin_out, length_out;
    int64_t row, filter; /* first of the tile: row of the sequence, filter of the group */
    int64_t group;
} conv_place;

static __device__ inline conv_place conv_find(const conv_view *v)
{
    const int64_t across = (v->filters + TILE_FILTERS - 1) / TILE_FILTERS;
    const int64_t tile = blockIdx.x / (v->groups * across), rest = blockIdx.x % (v->groups * across);
    const int b = rows_find(v->tiles, v->sequences, tile);
    conv_place p;
    p.begin_in = v->offs_in[b];
    p.length_in = v->offs_in[b + 1] - p.begin_in;
    p.begin_out = v->offs_out[b];
    p.length_out = v->offs_out[b + 1] - p.begin_out;
    p.row = (tile - v->tiles[b]) * TILE_ROWS;
    p.group = rest / across;
    p.filter = rest % across * TILE_FILTERS;
    return p;
}

/* Channel `channel` of a group, through Snake where there is one; zero outside the sequence and behind the group. */
static __device__ inline float conv_value(const conv_view *v, const conv_place *p, int64_t row, int64_t channel)
{
    if (row < 0 || row >= p->length_in || channel >= v->inner)
        return 0.0f;
    const int64_t at = p->group * v->inner + channel;
    const float value = v->x[(p->begin_in + row) * v->channels + at];
    return v->alpha ? snake_f32(value, v->alpha[at]) : value;
}

/* Rows of the tile and of its taps, channels [first, first + 32). */
template <typename S> static __device__ void load_rows(const conv_view *v, const conv_place *p, int64_t first, S &words)
{
    const int rows = TILE_ROWS + (v->kernel - 1) * v->dilation;
    for (int i = (int)threadIdx.x; i < rows * WORDS; i += THREADS) {
        const int64_t row = p->row - v->pad_left + i / WORDS, channel = first + i % WORDS * 2;
        words[i / WORDS * PITCH + i % WORDS] =
            pack_f16(conv_value(v, p, row, channel), conv_value(v, p, row, channel + 1));
    }
}

/* Filters of `count` taps from `tap` on, the same channels: [TAPS][TILE_FILTERS]. */
template <typename S>
static __device__ void load_filters(const conv_view *v, const conv_place *p, int64_t first, int tap, int count,
                                    S &words)
{
    for (int i = (int)threadIdx.x; i < count * TILE_FILTERS * WORDS; i += THREADS) {
        const int line = i / WORDS, pair = i % WORDS;
        const int64_t filter = p->filter + line % TILE_FILTERS, channel = first + pair * 2;
        const uint16_t *from =
            v->w + ((p->group * v->filters + filter) * v->kernel + tap + line / TILE_FILTERS) * v->inner + channel;
        const bool exists = filter < v->filters;
        const uint32_t low = exists && channel < v->inner ? from[0] : 0u;
        const uint32_t high = exists && channel + 1 < v->inner ? from[1] : 0u;
        words[line * PITCH + pair] = low | high << 16;
    }
}

/* sum += rows that tap `tap` reads x its filters, which lie in line `slot`; `depth` channels, 16 or 32. */
template <int MMA, typename R, typename F>
static __device__ void add_tap(R &row_words, F &filter_words, int shift, int slot, int depth, float sum[COLUMNS][4])
{
    const int lane = (int)threadIdx.x % CUDA_WARP;
    const int row = (int)threadIdx.x / CUDA_WARP * 16 + lane / 4 + shift;
    for (int k = 0; k < depth / 16; k++) {
        const int column = k * 8 + lane % 4, low = row * PITCH + column, high = low + 8 * PITCH;
        const uint32_t a[4] = {row_words[low], row_words[high], row_words[low + 4], row_words[high + 4]};
        for (int n = 0; n < COLUMNS; n++) {
            const int at = (slot * TILE_FILTERS + n * 8 + lane / 4) * PITCH + column;
            const uint32_t b[2] = {filter_words[at], filter_words[at + 4]};
            mma_f16<MMA>(sum[n], a, b);
        }
    }
}

static __device__ void store_tile(const conv_view *v, const conv_place *p, const float sum[COLUMNS][4])
{
    const int lane = (int)threadIdx.x % CUDA_WARP;
    const int64_t row = p->row + (int)threadIdx.x / CUDA_WARP * 16 + lane / 4;
    for (int n = 0; n < COLUMNS; n++)
        for (int i = 0; i < 4; i++) {
            const int64_t t = row + i / 2 * 8, filter = p->filter + n * 8 + lane % 4 * 2 + i % 2;
            if (t >= p->length_out || filter >= v->filters)
                continue;
            const int64_t o = p->group * v->filters + filter;
            const int64_t at = (p->begin_out + t) * v->n_out + o;
            const float value = act_f32(sum[n][i] + (v->bias ? v->bias[o] : 0.0f), v->act, v->slope);
            v->y[at] = v->residual ? value + v->residual[at] : value;
        }
}

/* Block (tile, group, 64 filters of it). */
template <int MMA> static __global__ void conv_mma_kernel(conv_view v)
{
    CUDA_SHARED(uint32_t, row_words, (TILE_ROWS + SPAN_MAX) * PITCH);
    CUDA_SHARED(uint32_t, filter_words, TAPS * TILE_FILTERS * PITCH);
    const conv_place p = conv_find(&v);
    float sum[COLUMNS][4];
    for (int n = 0; n < COLUMNS; n++)
        for (int i = 0; i < 4; i++)
            sum[n][i] = 0.0f;
    for (int64_t first = 0; first < v.inner; first += CHANNELS) {
        const int depth = v.inner - first > CHANNELS / 2 ? CHANNELS : CHANNELS / 2;
        load_rows(&v, &p, first, row_words);
        for (int tap = 0; tap < v.kernel; tap += TAPS) {
            const int count = v.kernel - tap < TAPS ? v.kernel - tap : TAPS;
            load_filters(&v, &p, first, tap, count, filter_words);
            __syncthreads(); // rows and filters are there
            for (int i = 0; i < count; i++)
                add_tap<MMA>(row_words, filter_words, (tap + i) * v.dilation, i, depth, sum);
            __syncthreads(); // all have read them before the next are loaded
        }
    }
    store_tile(&v, &p, sum);
}

bool cuda_conv_fits_mma(const op_conv1d_args *a)
{
    return a->w->form == WEIGHT_CONV && a->w->operands == PRECISION_FP16 && a->stride == 1 && a->repeat == 1 &&
           (a->kernel - 1) * a->dilation <= SPAN_MAX;
}

static cf_err launch(backend *be, const op_conv1d_args *a, const int32_t *tiles)
{
    const int32_t count = a->rows_out->count;
    const void *dev_tiles;
    CUDA_TRY(cuda_list_upload(be, tiles, (size_t)(count + 1) * sizeof *tiles, &dev_tiles));
    const conv_view v = {(const float *)a->x->data,
                         a->snake ? (const float *)a->snake->data : NULL,
                         a->bias ? (const float *)a->bias->data : NULL,
                         a->residual ? (const float *)a->residual->data : NULL,
                         (const uint16_t *)a->w->data,
                         (float *)a->y->data,
                         a->rows_in->dev,
                         a->rows_out->dev,
                         (const int32_t *)dev_tiles,
                         count,
                         a->kernel,
                         a->dilation,
                         a->pad_left,
                         a->groups,
                         a->w->k_in,
                         a->w->k_in / a->groups,
                         a->w->n_out,
                         a->w->n_out / a->groups,
                         a->act,
                         a->slope};
    const int64_t blocks = tiles[count] * (int64_t)a->groups * ((v.filters + TILE_FILTERS - 1) / TILE_FILTERS);
    if (cuda_of(be)->mma_depth == 16)
        return CUDA_LAUNCH(conv_mma_kernel<16>, blocks, THREADS, cuda_of(be)->stream, v);
    return CUDA_LAUNCH(conv_mma_kernel<8>, blocks, THREADS, cuda_of(be)->stream, v);
}

cf_err cuda_conv1d_mma(backend *be, const op_conv1d_args *a)
{
    int32_t *tiles;
    CF_ASSERT(cuda_conv_fits_mma(a));
    CUDA_TRY(mem_alloc((size_t)a->rows_out->count + 1, sizeof *tiles, &tiles));
    for (int32_t b = 0; b < a->rows_out->count; b++)
        tiles[b + 1] = tiles[b] + (rows_length(a->rows_out, b) + TILE_ROWS - 1) / TILE_ROWS;
    const cf_err err = launch(be, a, tiles);
    mem_free(tiles);
    return err;
}
