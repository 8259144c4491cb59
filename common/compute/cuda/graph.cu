/*
 * graph.cu - work that is submitted once, recorded as a CUDA graph and replayed with one launch. The backend's thread.
 * Owns the graphs through their records.
 *
 * A graph holds addresses and shapes, no contents. Its scratch is the scratch that its submission took; whoever uses
 * it in between does so on the same stream. When the backend has taken or given back memory since, a record is made
 * again, so that its places are those that submitting would take now. The work is submitted and runs once before it is
 * recorded: what loads or allocates at first use has done so.
 *
 * Fails: what the submission fails with, CF_ERR_NOMEM, CF_ERR_DEVICE. A refused recording is a warning, not a failure:
 * the work has been done, and is submitted each time from then on.
 */
#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/compute/cuda/cuda_impl.cuh"

struct backend_record {
    cudaGraphExec_t graph; /* owned; NULL: recording was refused */
    uint64_t generation;   /* of the backend's memory, when it was made */
};

cf_err cuda_not_recorded(const cuda_state *cuda, const char *what)
{
    if (!cuda->recording)
        return CF_OK;
    return err_set(CF_ERR_DEVICE, "cuda:%d: %s while work is recorded: expected ops on tensors alone", cuda->device,
                   what);
}

static cf_err instantiate(cudaGraph_t graph, cudaGraphExec_t *ret_exec)
{
    if (fault_hit("cuda.record"))
        return err_set(CF_ERR_DEVICE, "CUDA: recording: fault point cuda.record");
    return cuda_status(cudaGraphInstantiate(ret_exec, graph, 0), "instantiating a recorded graph");
}

static cf_err capture(cuda_state *cuda, backend_submit_fn *submit, void *ctx, cudaGraphExec_t *ret_exec)
{
    cudaGraph_t graph = NULL;
    CUDA_TRY(cuda_status(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal), "recording"));
    cuda->recording = true;
    cf_err err = submit(ctx);
    cuda->recording = false;
    const cudaError_t ended = cudaStreamEndCapture(cuda->stream, &graph);
    if (err == CF_OK)
        err = cuda_status(ended, "end of a recording");
    if (err == CF_OK)
        err = instantiate(graph, ret_exec);
    if (graph)
        (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError(); /* of a refused recording: not sticky */
    return err;
}

static void drop(backend_record *record)
{
    if (record->graph)
        (void)cudaGraphExecDestroy(record->graph);
    record->graph = NULL;
}

static cf_err record_new(backend *be, backend_record *record, backend_submit_fn *submit, void *ctx)
{
    cuda_state *cuda = cuda_of(be);
    drop(record);
    CUDA_TRY(submit(ctx));
    record->generation = cuda->generation;
    if (capture(cuda, submit, ctx, &record->graph) == CF_OK) {
        be->records.recorded++;
        return CF_OK;
    }
    be->records.eager++;
    log_warn("cuda.record", "reason=\"%s\" action=\"this work is submitted each time\"", err_text());
    return CF_OK;
}

cf_err cuda_replay(backend *be, backend_record **record, backend_submit_fn *submit, void *ctx)
{
    cuda_state *cuda = cuda_of(be);
    if (!*record)
        CUDA_TRY(mem_alloc(1, sizeof **record, record)); /* zeroed: made before anything was taken */
    if ((*record)->generation != cuda->generation)
        return record_new(be, *record, submit, ctx);
    if (!(*record)->graph) {
        be->records.eager++;
        return submit(ctx);
    }
    be->records.replayed++;
    return cuda_status(cudaGraphLaunch((*record)->graph, cuda->stream), "launching a recorded graph");
}

void cuda_record_close(backend *be, backend_record *record)
{
    (void)cudaStreamSynchronize(cuda_of(be)->stream);
    drop(record);
    mem_free(record);
}
