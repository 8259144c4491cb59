/*
 * main.c - flow_worker: speech tokens and a voice to mel frames. One process owns one model on one device; see
 * common/worker/worker.c for its life.
 * Fails: exit codes of common/base/process.h.
 */
#include "common/worker/worker.h"

int main(int argc, char **argv)
{
    return worker_main(&flow_stage, argc, argv);
}
