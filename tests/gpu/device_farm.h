/*
 * device_farm.h - the real exchange_keeper, asked for memory of a CUDA device: what the tests of that memory share, on
 * a card (tests/gpu) and on the emulated device (tests/cuda_emu). Test code; failures are those of the running test.
 */
#ifndef CF_TESTS_GPU_DEVICE_FARM_H
#define CF_TESTS_GPU_DEVICE_FARM_H

#include <sys/types.h>

#include "common/transport/lifeline.h"
#include "common/transport/outbox_cuda_ipc.h"
#include "common/transport/wire.h"

#define DEVICE_BOX_BYTES ((uint64_t)1 << 20)

/* A keeper that has been welcomed; the test is its orchestrator. */
typedef struct device_farm {
    int listen_fd, fd;
    char path[300];
    pid_t keeper;
} device_farm;

/* What the keeper answered: device memory (handle, fds[0] holds it), or a memfd (both fds). */
typedef struct device_answer {
    wire_msg msg;
    outbox_grant grant;
    outbox_handle handle;
    int fds[LIFELINE_FDS_MAX];
} device_answer;

void device_farm_start(device_farm *f);
/* Takes the next connection of a keeper that has lost its orchestrator. */
void device_farm_welcome(device_farm *f);
void device_farm_end(device_farm *f); /* kills the keeper */

/* Asks for DEVICE_BOX_BYTES on `device`, to be read on `reader`. */
device_answer device_ask(device_farm *f, uint32_t outbox_id, int device, int reader);
bool device_answer_is_device(const device_answer *a);
void device_answer_done(device_answer *a);

/* Returns when the keeper has dealt with everything that was said before. */
void device_farm_wait_until_heard(device_farm *f);

#endif
