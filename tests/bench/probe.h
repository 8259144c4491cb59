/*
 * probe.h - what the files of probe_gpu share: processes of one program that play roles, and talk over a socket.
 *
 * A role is this program again with `--role NAME`; its socket is descriptor ROLE_FD. The one that asks never touches a
 * device itself, so that "all CUDA processes have ended" can be true.
 */
#ifndef CF_TESTS_BENCH_PROBE_H
#define CF_TESTS_BENCH_PROBE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define ROLE_FD     3
#define ANSWER_S    120
#define PROBE_TEXT  512
#define HANDLE_SIZE 64

/* One message between two roles; a descriptor may come with it. */
typedef struct note {
    int32_t status; /* cudaError_t, CUresult, or a question's letter */
    double a, b;
    unsigned char handle[HANDLE_SIZE];
} note;

typedef struct role {
    pid_t pid;
    int fd;
} role;

role role_start(const char *name, const char *environment); /* "NAME=VALUE" or NULL */
void role_kill(role *r);                                    /* SIGKILL, waits for its end, closes */
bool tell(int fd, note n, int pass_fd);                     /* pass_fd -1: none */
bool hear(int fd, note *ret_note, int *ret_fd);             /* false: it has ended, or said nothing for ANSWER_S */

/* Roles of the driver's virtual memory, in probe_vmm.cu; false: not this role. */
bool vmm_role(const char *name);
/* Probes 1 (second half), 3, 4 and parts of 2 and 5: append to text. */
void vmm_after_death(char text[PROBE_TEXT]);
void vmm_outlives_all(char text[PROBE_TEXT]);
void vmm_read_only(char text[PROBE_TEXT]);
void vmm_bare_process(role *meter, char text[PROBE_TEXT]);
void vmm_open_cost(char text[PROBE_TEXT]);

void say(char text[PROBE_TEXT], const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* appends */

/* Device work of every role: values of 1, and a sum of them times `rounds` in a fixed order. On the present context;
 * status of the runtime. */
int fill_ones(float *dev, long value_count);
int sum_values(const float *dev, long value_count, int rounds, double *ret_sum);
int write_first(float *dev);
double now_us(void);

#ifdef CF_CUDA_EMU
#define PROBE_VALUES (1L << 13) /* an emulated device is slow */
#define PROBE_ROUNDS 2
#else
#define PROBE_VALUES (1L << 24)
#define PROBE_ROUNDS 400
#endif

#endif
