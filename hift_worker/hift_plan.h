/* hift_plan.h - the memory that a worker of this stage will take, of the shapes in its model file. */
#ifndef CF_HIFT_WORKER_HIFT_PLAN_H
#define CF_HIFT_WORKER_HIFT_PLAN_H

#include "common/worker/stage.h"

/* stage_ops.plan. Fails as opening the model does, for what it reads of it. */
CF_MUST_CHECK cf_err hift_plan(const stage_config *cfg, stage_memory *ret_memory);

#endif
