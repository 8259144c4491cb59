/* llm_plan.h - the memory that a worker of this stage will take, of the shapes in its model file. */
#ifndef CF_LLM_WORKER_LLM_PLAN_H
#define CF_LLM_WORKER_LLM_PLAN_H

#include "common/worker/stage.h"

/* stage_ops.plan. Fails as opening the model does, for what it reads of it. */
CF_MUST_CHECK cf_err llm_plan(const stage_config *cfg, stage_memory *ret_memory);

#endif
