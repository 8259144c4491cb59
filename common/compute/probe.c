/*
 * probe.c - hands a piece of a forward pass to whoever watches it. The backend's thread; owns nothing.
 * Fails: as backend_take_host and backend_download. Asserts on the tensor's shape.
 */
#include "common/compute/probe.h"

#include "common/base/check.h"

cf_err probe_emit(const probe *p, backend *be, int32_t row_idx, const char *name, const tensor *x, int64_t first,
                  int64_t count)
{
    if (!p)
        return CF_OK;
    cf_err err;
    float *host;
    const size_t mark = backend_scratch_mark(be);

    CF_ASSERT(x->rank == 2 && x->type == DTYPE_F32);
    const tensor view = tensor_rows(x, first, count);
    TRY(backend_take_host(be, tensor_bytes(&view), &host));
    TRY(backend_download(be, &view, host));
    p->emit(p->ctx, row_idx, name, view.rank, view.dims, host);
out:
    backend_scratch_reset(be, mark);
    return err;
}
