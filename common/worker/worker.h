/*
 * worker.h - the program around a stage: lifeline, bus, exchange memory, heartbeats, drain, exit codes.
 */
#ifndef CF_WORKER_WORKER_H
#define CF_WORKER_WORKER_H

#include "common/worker/stage.h"

/* The whole life of a worker: connects to the orchestrator of the run directory, receives its configuration, loads its
 * model, serves until drained. `--instance N`, `--run-dir DIR`, `--help`, `--version`. Returns an exit code of
 * process.h. */
int worker_main(const stage_ops *ops, int argc, char **argv);

#endif
