/*
 * memory_plan.h - what a stage takes of its device's memory, worked out of the model's shapes before anything is
 * loaded, and held against what is free.
 */
#ifndef CF_WORKER_MEMORY_PLAN_H
#define CF_WORKER_MEMORY_PLAN_H

#include "common/model/stage_tables.h"
#include "common/worker/stage.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of one element of a tensor as the stage of that configuration keeps it on its device; 0: not there. */
typedef double (*memory_rule)(const stage_tensor *t, const stage_config *cfg);

/* Sum over a stage's tensors. */
uint64_t memory_of_table(const stage_table *table, memory_rule rule, const stage_config *cfg);

uint64_t memory_total(const stage_memory *m); /* with what the device's libraries take */

/* "weights 0.62, tables 0.30, scratch 1.20, library 0.12 GiB" */
#define MEMORY_TEXT_BYTES 96
void memory_format(const stage_memory *m, char ret_text[MEMORY_TEXT_BYTES]);

/* CF_ERR_NOMEM when it does not fit: "flow: needs 3.10 GiB, 2.40 free on cuda:1 (...)"; CF_ERR_LIMIT when it never
 * will: the device has less in all. On a CPU scratch is address
 * space of which pages are taken as they are touched, so only the rest has to be there. *ret_free_bytes is filled
 * either way. */
CF_MUST_CHECK cf_err memory_check(stage_kind kind, const char *device, const stage_memory *m, uint64_t *ret_free_bytes);

#ifdef __cplusplus
}
#endif
#endif
