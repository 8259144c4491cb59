/*
 * main.c - hift_worker: mel frames to samples. One process owns one model on one device; see common/worker/worker.c
 * for its life.
 * Fails: exit codes of common/base/process.h.
 */
#include "common/worker/worker.h"

int main(int argc, char **argv)
{
    return worker_main(&hift_stage, argc, argv);
}
