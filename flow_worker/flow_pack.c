/*
 * flow_pack.c - moves the packed state of held jobs together. Compute thread; the memory belongs to the backend.
 *
 * A job's 80 + 80 + 80 values per frame are copied when a neighbour leaves: a millionth of the work of one step.
 *
 * Fails: CF_ERR_NOMEM on opening, CF_ERR_DEVICE where copying can fail. Asserts that nothing exceeds the capacity.
 */
#include "flow_worker/flow_pack.h"

#include "common/base/check.h"
#include "common/base/limits.h"

cf_err flow_pack_open(backend *be, int64_t frames_cap, int64_t rows_cap, flow_pack *ret_pack)
{
    cf_err err = CF_OK;
    flow_pack p = {.be = be, .frames_cap = frames_cap, .rows_cap = rows_cap};
    const int64_t frame_dims[2] = {frames_cap, MEL_BINS}, row_dims[2] = {rows_cap, MEL_BINS};
    for (int i = 0; i < 2; i++) {
        TRY(backend_keep(be, DTYPE_F32, 2, frame_dims, &p.side[i].x));
        TRY(backend_keep(be, DTYPE_F32, 2, frame_dims, &p.side[i].mu));
        TRY(backend_keep(be, DTYPE_F32, 2, frame_dims, &p.side[i].cond));
        TRY(backend_keep(be, DTYPE_F32, 2, row_dims, &p.side[i].spk));
    }
    *ret_pack = p;
out:
    return err;
}

tensor flow_pack_x(const flow_pack *p, int64_t first, int64_t count)
{
    return tensor_rows(&p->side[p->in_use].x, first, count);
}

tensor flow_pack_mu(const flow_pack *p, int64_t first, int64_t count)
{
    return tensor_rows(&p->side[p->in_use].mu, first, count);
}

tensor flow_pack_cond(const flow_pack *p, int64_t first, int64_t count)
{
    return tensor_rows(&p->side[p->in_use].cond, first, count);
}

tensor flow_pack_spk(const flow_pack *p, int64_t first, int64_t count)
{
    return tensor_rows(&p->side[p->in_use].spk, first, count);
}

static cf_err move_rows(backend *be, const tensor *from, int64_t from_row, tensor *to, int64_t to_row, int64_t count)
{
    const tensor src = tensor_rows(from, from_row, count);
    tensor dst = tensor_rows(to, to_row, count);
    return backend_copy(be, &src, &dst);
}

cf_err flow_pack_keep(flow_pack *p, const bool *keep, const int32_t *lengths, int32_t count)
{
    cf_err err = CF_OK;
    struct flow_pack_side *from = &p->side[p->in_use], *to = &p->side[1 - p->in_use];
    int64_t from_row = 0, to_row = 0, kept = 0;
    for (int32_t b = 0; b < count; b++) {
        CF_ASSERT(from_row + lengths[b] <= p->frames_cap);
        if (keep[b]) {
            TRY(move_rows(p->be, &from->x, from_row, &to->x, to_row, lengths[b]));
            TRY(move_rows(p->be, &from->mu, from_row, &to->mu, to_row, lengths[b]));
            TRY(move_rows(p->be, &from->cond, from_row, &to->cond, to_row, lengths[b]));
            TRY(move_rows(p->be, &from->spk, b, &to->spk, kept, 1));
            to_row += lengths[b];
            kept++;
        }
        from_row += lengths[b];
    }
    p->in_use = 1 - p->in_use;
out:
    return err;
}
