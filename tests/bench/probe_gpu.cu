/*
 * probe_gpu.cu - ten questions about a GPU host that only the host can answer: what happens to shared device memory
 * when processes die, what sharing costs, what two processes on one card do to each other. One line an answer; "SKIP no
 * GPU" where there is none, "SKIP" with a reason where this build cannot ask.
 *
 *   probe_gpu [NUMBER...]     1..10, all of them without
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <vector>

#include "common/compute/cuda/cuda_common.cuh"
#include "tests/bench/probe.h"

#define REPEATS       20
#define PR_MDWE_SET   65 /* PR_SET_MDWE of newer headers */
#define PR_MDWE_EXEC  1
#define MPS_ATTRIBUTE 133 /* cudaDevAttrMpsEnabled */

/* ---- processes ---- */

static const char *self_path;

role role_start(const char *name, const char *environment)
{
    int ends[2];
    role r = {-1, -1};
    char role_flag[] = "--role", path[512], word[64], extra[128];
    snprintf(path, sizeof path, "%s", self_path);
    snprintf(word, sizeof word, "%s", name);
    char *argv[] = {path, role_flag, word, NULL};
    std::vector<char *> env;
    for (char **e = environ; *e; e++)
        env.push_back(*e);
    if (environment) {
        snprintf(extra, sizeof extra, "%s", environment);
        env.push_back(extra);
    }
    env.push_back(NULL);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return r;
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, ends[1], ROLE_FD);
    if (posix_spawn(&r.pid, "/proc/self/exe", &files, NULL, argv, env.data()) != 0)
        r.pid = -1;
    posix_spawn_file_actions_destroy(&files);
    close(ends[1]);
    r.fd = ends[0];
    return r;
}

void role_kill(role *r)
{
    if (r->pid > 0) {
        kill(r->pid, SIGKILL);
        waitpid(r->pid, NULL, 0);
    }
    if (r->fd >= 0)
        close(r->fd);
    *r = role{-1, -1};
}

bool tell(int fd, note n, int pass_fd)
{
    struct iovec part = {&n, sizeof n};
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr m = {};
    m.msg_iov = &part;
    m.msg_iovlen = 1;
    if (pass_fd >= 0) {
        m.msg_control = control;
        m.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &pass_fd, sizeof(int));
    }
    return sendmsg(fd, &m, MSG_NOSIGNAL) == (ssize_t)sizeof n;
}

bool hear(int fd, note *ret_note, int *ret_fd)
{
    struct iovec part = {ret_note, sizeof *ret_note};
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct msghdr m = {};
    struct pollfd p = {fd, POLLIN, 0};
    m.msg_iov = &part;
    m.msg_iovlen = 1;
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    if (poll(&p, 1, ANSWER_S * 1000) <= 0 || recvmsg(fd, &m, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof *ret_note)
        return false;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (ret_fd && c)
        memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
    return true;
}

void say(char text[PROBE_TEXT], const char *fmt, ...)
{
    const size_t at = strlen(text);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + at, PROBE_TEXT - at, fmt, args);
    va_end(args);
}

double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---- device work ---- */

static __global__ void ones_kernel(float *x, int64_t n)
{
    const int64_t i = cuda_item();
    if (i < n)
        x[i] = 1.0f;
}

/* Each thread's values again and again; sums of halves of 1 would overflow nothing. */
static __global__ void sum_kernel(const float *x, int64_t n, int rounds, float *sums)
{
    const int64_t i = cuda_item(), step = (int64_t)gridDim.x * blockDim.x;
    float sum = 0.0f;
    for (int r = 0; r < rounds; r++)
        for (int64_t at = i; at < n; at += step)
            sum = sum * 0.5f + x[at];
    sums[i] = sum;
}

static __global__ void first_kernel(float *x)
{
    if (cuda_item() == 0)
        x[0] = 7.0f;
}

int fill_ones(float *dev, long n)
{
    CUDA_LAUNCH_RAW(ones_kernel, (unsigned)cuda_blocks(n), CUDA_BLOCK, (cudaStream_t)0, dev, (int64_t)n);
    const cudaError_t launched = cudaGetLastError();
    return launched != cudaSuccess ? launched : cudaDeviceSynchronize();
}

int write_first(float *dev)
{
    CUDA_LAUNCH_RAW(first_kernel, 1u, CUDA_BLOCK, (cudaStream_t)0, dev);
    const cudaError_t launched = cudaGetLastError();
    return launched != cudaSuccess ? launched : cudaDeviceSynchronize();
}

int sum_values(const float *dev, long n, int rounds, double *ret_sum)
{
    const unsigned blocks = 8, threads = blocks * CUDA_BLOCK;
    std::vector<float> host(threads);
    float *sums = NULL;
    cudaError_t status = cudaMalloc((void **)&sums, threads * sizeof *sums);
    if (status == cudaSuccess) {
        CUDA_LAUNCH_RAW(sum_kernel, blocks, CUDA_BLOCK, (cudaStream_t)0, dev, (int64_t)n, rounds, sums);
        status = cudaGetLastError();
    }
    if (status == cudaSuccess)
        status = cudaMemcpy(host.data(), sums, threads * sizeof *sums, cudaMemcpyDeviceToHost);
    *ret_sum = 0;
    for (float v : host)
        *ret_sum += v;
    (void)cudaFree(sums);
    return status;
}

/* ---- roles ---- */

static note answer(int status, double a, double b)
{
    note n = {};
    n.status = status;
    n.a = a;
    n.b = b;
    return n;
}

/* Memory of its own, its handle, then sums of it for whoever asks. */
static void owner_role(void)
{
    float *dev = NULL;
    note n = {};
    double sum;
    cudaIpcMemHandle_t handle;
    n.status = cudaMalloc((void **)&dev, PROBE_VALUES * sizeof *dev);
    if (n.status == cudaSuccess)
        n.status = fill_ones(dev, PROBE_VALUES);
    if (n.status == cudaSuccess)
        n.status = cudaIpcGetMemHandle(&handle, dev);
    memcpy(n.handle, &handle, sizeof handle);
    tell(ROLE_FD, n, -1);
    while (hear(ROLE_FD, &n, NULL)) {
        n.status = sum_values(dev, PROBE_VALUES, 1, &sum);
        tell(ROLE_FD, answer(n.status, sum, 0), -1);
    }
}

/* Opens a handle, says so, sums it for long, says what it saw; again for each question. */
static void reader_role(void)
{
    note n;
    void *dev = NULL;
    double sum;
    cudaIpcMemHandle_t handle;
    if (!hear(ROLE_FD, &n, NULL))
        return;
    memcpy(&handle, n.handle, sizeof handle);
    int status = cudaIpcOpenMemHandle(&dev, handle, cudaIpcMemLazyEnablePeerAccess);
    tell(ROLE_FD, answer(status, 0, 0), -1);
    while (status == cudaSuccess && hear(ROLE_FD, &n, NULL)) {
        const int read = sum_values((const float *)dev, PROBE_VALUES, PROBE_ROUNDS, &sum);
        tell(ROLE_FD, answer(read, sum, 0), -1);
    }
}

static void opener_role(void)
{
    note n;
    void *dev;
    cudaIpcMemHandle_t handle;
    double open_us = 0, close_us = 0;
    if (!hear(ROLE_FD, &n, NULL))
        return;
    memcpy(&handle, n.handle, sizeof handle);
    int status = cudaFree(0); /* the context is not what is measured */
    for (int i = 0; i < REPEATS && status == cudaSuccess; i++) {
        const double start = now_us();
        status = cudaIpcOpenMemHandle(&dev, handle, cudaIpcMemLazyEnablePeerAccess);
        const double opened = now_us();
        if (status == cudaSuccess)
            status = cudaIpcCloseMemHandle(dev);
        open_us += opened - start;
        close_us += now_us() - opened;
    }
    tell(ROLE_FD, answer(status, open_us / REPEATS, close_us / REPEATS), -1);
}

/* Computes when told: time and a sum whose bits are compared. */
static void worker_role(void)
{
    float *dev = NULL;
    note n;
    double sum = 0;
    int status = cudaMalloc((void **)&dev, PROBE_VALUES * sizeof *dev);
    if (status == cudaSuccess)
        status = fill_ones(dev, PROBE_VALUES);
    tell(ROLE_FD, answer(status, 0, 0), -1);
    while (hear(ROLE_FD, &n, NULL)) {
        const double start = now_us();
        for (int i = 0; i < 4 && status == cudaSuccess; i++)
            status = sum_values(dev, PROBE_VALUES, PROBE_ROUNDS, &sum);
        tell(ROLE_FD, answer(status, now_us() - start, sum), -1);
    }
}

/* Free memory as a process sees it that has a context already. */
static void meter_role(void)
{
    note n;
    size_t free_bytes = 0, total_bytes = 0;
    while (hear(ROLE_FD, &n, NULL)) {
        const int status = cudaMemGetInfo(&free_bytes, &total_bytes);
        tell(ROLE_FD, answer(status, (double)free_bytes, 0), -1);
    }
}

/* A context and one kernel; a: whether MPS serves this process, b: whether its pages could not be hardened. */
static void hello_role(void)
{
    float *dev = NULL;
    int mps = -1;
    const char *hardened = getenv("PROBE_MDWE");
    const int refused = hardened ? prctl(PR_MDWE_SET, PR_MDWE_EXEC, 0, 0, 0) : 0;
    int status = cudaMalloc((void **)&dev, 1024 * sizeof *dev);
    if (status == cudaSuccess)
        status = fill_ones(dev, 1024);
#ifndef CF_CUDA_EMU
    if (cudaDeviceGetAttribute(&mps, (cudaDeviceAttr)MPS_ATTRIBUTE, 0) != cudaSuccess)
        mps = -1;
#endif
    tell(ROLE_FD, answer(status, mps, refused), -1);
    (void)hear(ROLE_FD, (note *)alloca(sizeof(note)), NULL);
}

#ifndef CF_CUDA_EMU
/* Hand-over of one small kernel's result to another process: by an event (a = 1) or by waiting here. */
static void producer_role(void)
{
    cudaEvent_t event;
    note n = {};
    float *dev = NULL;
    cudaIpcEventHandle_t handle;
    n.status = cudaEventCreateWithFlags(&event, cudaEventInterprocess | cudaEventDisableTiming);
    if (n.status == cudaSuccess)
        n.status = cudaIpcGetEventHandle(&handle, event);
    if (n.status == cudaSuccess)
        n.status = cudaMalloc((void **)&dev, 1024 * sizeof *dev);
    static_assert(sizeof handle == HANDLE_SIZE, "as memory's");
    memcpy(n.handle, &handle, sizeof handle);
    tell(ROLE_FD, n, -1);
    while (hear(ROLE_FD, &n, NULL)) {
        CUDA_LAUNCH_RAW(ones_kernel, 4u, CUDA_BLOCK, (cudaStream_t)0, dev, (int64_t)1024);
        const int status = n.a == 1 ? cudaEventRecord(event, 0) : cudaDeviceSynchronize();
        tell(ROLE_FD, answer(status, 0, 0), -1);
    }
}

static void consumer_role(void)
{
    cudaEvent_t event;
    note n;
    float *dev = NULL;
    cudaIpcEventHandle_t handle;
    if (!hear(ROLE_FD, &n, NULL))
        return;
    memcpy(&handle, n.handle, sizeof handle);
    int status = cudaIpcOpenEventHandle(&event, handle);
    if (status == cudaSuccess)
        status = cudaMalloc((void **)&dev, 1024 * sizeof *dev);
    tell(ROLE_FD, answer(status, 0, 0), -1);
    while (hear(ROLE_FD, &n, NULL)) {
        if (n.a == 1)
            status = cudaStreamWaitEvent(0, event, 0);
        CUDA_LAUNCH_RAW(ones_kernel, 4u, CUDA_BLOCK, (cudaStream_t)0, dev, (int64_t)1024);
        tell(ROLE_FD, answer(status == cudaSuccess ? cudaDeviceSynchronize() : status, 0, 0), -1);
    }
}
#endif

/* ---- probes ---- */

static const char *name_of(int status)
{
    return cudaGetErrorName((cudaError_t)status);
}

static void p1_owner_dies(char text[PROBE_TEXT])
{
    note n;
    double right = 0;
    role owner = role_start("owner", NULL), reader = role_start("reader", NULL);
    if (!hear(owner.fd, &n, NULL) || n.status != cudaSuccess) {
        say(text, "SKIP handles are refused: %s", name_of(n.status));
    } else if (!tell(reader.fd, n, -1) || !hear(reader.fd, &n, NULL) || n.status != cudaSuccess) {
        say(text, "a handle does not open: %s", name_of(n.status));
    } else {
        tell(reader.fd, answer(0, 0, 0), -1);
        (void)(hear(reader.fd, &n, NULL) && (right = n.a) > 0);
        tell(reader.fd, answer(0, 0, 0), -1);
        poll(NULL, 0, 5); /* it reads now */
        role_kill(&owner);
        const bool during = hear(reader.fd, &n, NULL);
        say(text, "legacy: reading while the owner is killed %s%s", during ? name_of(n.status) : "kills the reader",
            during && n.status == cudaSuccess && n.a != right ? " with other bytes" : "");
        tell(reader.fd, answer(0, 0, 0), -1);
        const bool after = during && hear(reader.fd, &n, NULL);
        say(text, ", after it %s%s; ", after ? name_of(n.status) : "kills the reader",
            after && n.status == cudaSuccess && n.a != right ? " with other bytes" : "");
    }
    role_kill(&owner);
    role_kill(&reader);
    vmm_after_death(text);
}

static double free_mib(role *meter)
{
    note n = answer(0, 0, 0);
    tell(meter->fd, n, -1);
    return hear(meter->fd, &n, NULL) ? n.a / 1048576 : -1;
}

static void p2_cost_of_a_process(char text[PROBE_TEXT])
{
    note n;
    role meter = role_start("meter", NULL);
    const double before = free_mib(&meter);
    role hello = role_start("hello", NULL);
    (void)hear(hello.fd, &n, NULL);
    say(text, "a context takes %.0f MiB; ", before - free_mib(&meter));
    role_kill(&hello);
    vmm_bare_process(&meter, text);
    role_kill(&meter);
}

static void p3_outlives(char text[PROBE_TEXT])
{
    vmm_outlives_all(text);
}

static void p4_read_only(char text[PROBE_TEXT])
{
    vmm_read_only(text);
}

static void p5_cost_of_opening(char text[PROBE_TEXT])
{
    note n;
    role owner = role_start("owner", NULL), opener = role_start("opener", NULL);
    if (hear(owner.fd, &n, NULL) && n.status == cudaSuccess && tell(opener.fd, n, -1) && hear(opener.fd, &n, NULL) &&
        n.status == cudaSuccess)
        say(text, "legacy: open %.0f us, close %.0f us; ", n.a, n.b);
    else
        say(text, "SKIP handles are refused: %s; ", name_of(n.status));
    role_kill(&owner);
    role_kill(&opener);
    vmm_open_cost(text);
}

/* Time of the worker's work, beside whatever else runs. */
static double work_us(role *w, double *ret_sum)
{
    note n = answer(0, 0, 0);
    *ret_sum = -1;
    tell(w->fd, n, -1);
    if (!hear(w->fd, &n, NULL) || n.status != cudaSuccess)
        return -1;
    *ret_sum = n.b;
    return n.a;
}

static void p6_two_processes(char text[PROBE_TEXT])
{
    note n, m;
    double sum;
    role a = role_start("worker", NULL), b = role_start("worker", NULL);
    (void)(hear(a.fd, &n, NULL) && hear(b.fd, &m, NULL));
    (void)work_us(&a, &sum);
    const double alone = work_us(&a, &sum);
    tell(b.fd, answer(0, 0, 0), -1);
    const double together = work_us(&a, &sum);
    if (alone > 0 && together > 0 && hear(b.fd, &m, NULL))
        say(text, "alone %.1f ms, beside another process %.1f ms: %.2f times (2 is fair turns)", alone / 1e3,
            together / 1e3, together / alone);
    else
        say(text, "a worker failed");
    role_kill(&a);
    role_kill(&b);
}

static void p7_neighbour_killed(char text[PROBE_TEXT])
{
    note n;
    double alone = 0, beside = 0;
    role a = role_start("worker", NULL), b = role_start("worker", NULL);
    (void)(hear(a.fd, &n, NULL) && hear(b.fd, &n, NULL));
    (void)work_us(&a, &alone);
    tell(b.fd, answer(0, 0, 0), -1);
    tell(a.fd, answer(0, 0, 0), -1);
    poll(NULL, 0, 5); /* both are busy */
    role_kill(&b);
    if (hear(a.fd, &n, NULL) && n.status == cudaSuccess)
        beside = n.b;
    say(text, "a busy process is killed: the other's result is %s", beside == alone ? "the same" : "another one");
    role_kill(&a);
}

#ifndef CF_CUDA_EMU
static double hand_over_us(role *from, role *to, double by_event)
{
    note n;
    double start = 0;
    for (int i = -3; i < REPEATS * 5; i++) { /* the first are not counted */
        if (i == 0)
            start = now_us();
        if (!tell(from->fd, answer(0, by_event, 0), -1) || !hear(from->fd, &n, NULL) || n.status != cudaSuccess ||
            !tell(to->fd, answer(0, by_event, 0), -1) || !hear(to->fd, &n, NULL) || n.status != cudaSuccess)
            return -1;
    }
    return (now_us() - start) / (REPEATS * 5);
}
#endif

static void p8_events(char text[PROBE_TEXT])
{
#ifdef CF_CUDA_EMU
    say(text, "SKIP events between processes are not emulated");
#else
    note n;
    role from = role_start("producer", NULL), to = role_start("consumer", NULL);
    if (hear(from.fd, &n, NULL) && n.status == cudaSuccess && tell(to.fd, n, -1) && hear(to.fd, &n, NULL) &&
        n.status == cudaSuccess) {
        const double waited = hand_over_us(&from, &to, 0), event = hand_over_us(&from, &to, 1);
        say(text, "hand-over by host wait and message %.1f us, by event %.1f us: %.1f us saved", waited, event,
            waited - event);
    } else {
        say(text, "SKIP event handles are refused: %s", name_of(n.status));
    }
    role_kill(&from);
    role_kill(&to);
#endif
}

static void p9_hardened(char text[PROBE_TEXT])
{
    static const char *const settings[] = {NULL, "PROBE_MDWE=1", "CUDA_FORCE_PTX_JIT=1"};
    static const char *const words[] = {"plain", "no new executable pages", "kernels compiled from PTX"};
    for (int i = 0; i < 4; i++) {
        note n;
        if (i == 3)
            setenv("CUDA_FORCE_PTX_JIT", "1", 1);
        role r = role_start("hello", settings[i == 3 ? 1 : i]);
        const bool lives = hear(r.fd, &n, NULL);
        say(text, "%s%s: %s%s", i ? "; " : "", i == 3 ? "both" : words[i], lives ? name_of(n.status) : "killed",
            lives && n.b != 0 ? " (this kernel knows no such setting)" : "");
        role_kill(&r);
    }
    unsetenv("CUDA_FORCE_PTX_JIT");
}

static void p10_mps(char text[PROBE_TEXT])
{
#ifdef CF_CUDA_EMU
    say(text, "SKIP the attribute is not emulated");
#else
    note n;
    role r = role_start("hello", NULL);
    if (hear(r.fd, &n, NULL))
        say(text, "cudaDevAttrMpsEnabled is %.0f", n.a);
    role_kill(&r);
#endif
}

static const struct probe {
    const char *question;
    void (*ask)(char text[PROBE_TEXT]);
} probes[] = {
    {"the owner of shared memory is killed", p1_owner_dies},
    {"memory that a process costs", p2_cost_of_a_process},
    {"a descriptor outlives every CUDA process", p3_outlives},
    {"a write through a read-only import", p4_read_only},
    {"cost of opening", p5_cost_of_opening},
    {"two processes on one card", p6_two_processes},
    {"a busy neighbour is killed", p7_neighbour_killed},
    {"event or host wait", p8_events},
    {"hardened processes", p9_hardened},
    {"MPS", p10_mps},
};
#define PROBES ((int)(sizeof probes / sizeof probes[0]))

static int play(const char *name)
{
    static const struct {
        const char *name;
        void (*play)(void);
    } roles[] = {
        {"owner", owner_role},       {"reader", reader_role},     {"opener", opener_role},
        {"worker", worker_role},     {"meter", meter_role},       {"hello", hello_role},
#ifndef CF_CUDA_EMU
        {"producer", producer_role}, {"consumer", consumer_role},
#endif
    };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (const auto &r : roles)
        if (strcmp(r.name, name) == 0) {
            r.play();
            return 0;
        }
    return vmm_role(name) ? 0 : 64;
}

static void ask(int number)
{
    char text[PROBE_TEXT] = "";
    probes[number - 1].ask(text);
    printf("%2d %s: %s\n", number, probes[number - 1].question, text);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int devices = 0;
    self_path = argv[0];
    if (argc == 3 && strcmp(argv[1], "--role") == 0)
        return play(argv[2]);
    bool wanted[PROBES + 1] = {argc == 1}; /* [0]: all */
    for (int i = 1; i < argc; i++) {
        char *end;
        const long number = strtol(argv[i], &end, 10);
        if (*end || number < 1 || number > PROBES) {
            fprintf(stderr, "usage: probe_gpu [1..%d]...\n", PROBES);
            return 64;
        }
        wanted[number] = true;
    }
    const bool gpu = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
    for (int i = 1; i <= PROBES; i++)
        if (!wanted[0] && !wanted[i])
            continue;
        else if (gpu)
            ask(i);
        else
            printf("%2d %s: SKIP no GPU\n", i, probes[i - 1].question);
    return 0;
}
