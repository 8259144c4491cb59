/*
 * test_outbox.c - one contract over every implementation of exchange memory, and what memfds promise beyond it.
 *
 * A further implementation is a row of IMPLEMENTATIONS: how to make a pair of grants for the same memory, how to drop
 * it, and which promises it can keep. Nothing else changes.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/transport/outbox.h"

#define BOX_BYTES 10240u /* no multiple of a page: the last view ends where the region does */

/* The same memory as its writer and as its readers are granted it. */
typedef struct pair {
    outbox_grant write, read;
} pair;

typedef struct implementation {
    const char *name;
    const char *(*lacks)(void); /* what this machine lacks to run it, or NULL */
    void (*make)(uint32_t outbox_id, uint64_t bytes, pair *ret_pair);
    void (*drop)(pair *p);   /* of the owner's side; NULL members are fine */
    bool guards_writes;      /* a read grant cannot be written through */
    bool knows_its_size;     /* a grant of another size than the memory's is refused */
    bool outlives_its_owner; /* a mapping stays valid after drop */
} implementation;

/* ---- heap ---- */

static const char *lacks_nothing(void)
{
    return NULL;
}

static void make_heap(uint32_t outbox_id, uint64_t bytes, pair *ret_pair)
{
    const outbox_grant g = {
        .outbox_id = outbox_id, .bytes = bytes, .fd = -1, .heap = aligned_alloc(OUTBOX_ALIGN, bytes)};
    assert_non_null(g.heap);
    memset(g.heap, 0, bytes);
    *ret_pair = (pair){g, g};
}

static void drop_heap(pair *p)
{
    free(p->write.heap);
    p->write.heap = p->read.heap = NULL;
}

/* ---- memfd ---- */

static void make_memfd(uint32_t outbox_id, uint64_t bytes, pair *ret_pair)
{
    const outbox_grant g = {.outbox_id = outbox_id, .bytes = bytes, .fd = -1};
    *ret_pair = (pair){g, g};
    assert_ok(outbox_make_memfd(outbox_id, bytes, &ret_pair->write.fd, &ret_pair->read.fd));
}

static void drop_memfd(pair *p)
{
    io_close(&p->write.fd);
    io_close(&p->read.fd);
}

static const implementation IMPLEMENTATIONS[] = {
    {.name = "heap", .lacks = lacks_nothing, .make = make_heap, .drop = drop_heap},
    {.name = "memfd",
     .lacks = lacks_nothing,
     .make = make_memfd,
     .drop = drop_memfd,
     .guards_writes = true,
     .knows_its_size = true,
     .outlives_its_owner = true},
};

/* ---- the contract ---- */

/* The implementation of this case; skips it where the machine cannot run it. */
static const implementation *implementation_of(void **state)
{
    const implementation *impl = *state;
    const char *lacking = impl->lacks();
    if (lacking) {
        print_message("%s: %s\n", impl->name, lacking);
        skip();
    }
    return impl;
}

static void fill(unsigned char *data, size_t bytes, uint32_t key)
{
    for (size_t i = 0; i < bytes; i += 16) {
        uint32_t words[4];
        rng_philox(key, (const uint32_t[4]){(uint32_t)i, 0, 0, 0}, words);
        memcpy(data + i, words, bytes - i < 16 ? bytes - i : 16);
    }
}

static void test_readers_see_what_was_written(void **state)
{
    const implementation *impl = implementation_of(state);
    static unsigned char want[BOX_BYTES];
    pair p;
    outbox *writer, *early, *late;
    void *to, *from;
    impl->make(7, BOX_BYTES, &p);
    fill(want, BOX_BYTES, 1);
    assert_ok(outbox_open(&p.read, OUTBOX_READ, &early));
    assert_ok(outbox_open(&p.write, OUTBOX_WRITE, &writer));
    assert_int_equal(outbox_id(writer), 7);
    assert_int_equal(outbox_id(early), 7);
    assert_ok(outbox_view(writer, 0, BOX_BYTES, &to));
    memcpy(to, want, BOX_BYTES);
    assert_ok(outbox_open(&p.read, OUTBOX_READ, &late));
    assert_ok(outbox_view(early, 0, BOX_BYTES, &from));
    assert_memory_equal(from, want, BOX_BYTES);
    assert_ok(outbox_view(late, 512, 1000, &from));
    assert_memory_equal(from, want + 512, 1000);
    outbox_close(early);
    outbox_close(late);
    outbox_close(writer);
    outbox_close(NULL);
    impl->drop(&p);
}

static void test_two_boxes_share_nothing(void **state)
{
    const implementation *impl = implementation_of(state);
    pair a, b;
    outbox *in_a, *in_b;
    void *at_a, *at_b;
    static const unsigned char zeros[BOX_BYTES];
    impl->make(1, BOX_BYTES, &a);
    impl->make(2, BOX_BYTES, &b);
    assert_ok(outbox_open(&a.write, OUTBOX_WRITE, &in_a));
    assert_ok(outbox_open(&b.write, OUTBOX_WRITE, &in_b));
    assert_ok(outbox_view(in_a, 0, BOX_BYTES, &at_a));
    assert_ok(outbox_view(in_b, 0, BOX_BYTES, &at_b));
    assert_memory_equal(at_b, zeros, BOX_BYTES); /* nobody's old samples */
    memset(at_a, 0xFF, BOX_BYTES);
    assert_memory_equal(at_b, zeros, BOX_BYTES);
    outbox_close(in_a);
    outbox_close(in_b);
    impl->drop(&a);
    impl->drop(&b);
}

static void test_slots_are_aligned_and_inside(void **state)
{
    const implementation *impl = implementation_of(state);
    static const struct {
        uint64_t off_bytes, bytes;
    } GOOD[] = {{0, 0}, {0, 1}, {0, BOX_BYTES}, {256, BOX_BYTES - 256}, {BOX_BYTES - 256, 256}, {BOX_BYTES, 0}},
      BAD[] = {{1, 1},
               {128, 1},
               {255, 1},
               {257, 0},
               {0, BOX_BYTES + 1},
               {256, BOX_BYTES},
               {BOX_BYTES - 256, 257},
               {BOX_BYTES, 1},
               {BOX_BYTES + 256, 0},
               {256, UINT64_MAX},
               {256, UINT64_MAX - 255},
               {UINT64_MAX - 255, 256},
               {1ull << 63, 1ull << 63}};
    pair p;
    outbox *box;
    impl->make(3, BOX_BYTES, &p);
    assert_ok(outbox_open(&p.read, OUTBOX_READ, &box));
    for (size_t i = 0; i < CF_COUNT(GOOD); i++) {
        void *data = NULL;
        assert_ok(outbox_view(box, GOOD[i].off_bytes, GOOD[i].bytes, &data));
        assert_int_equal((uintptr_t)data % OUTBOX_ALIGN, 0);
    }
    for (size_t i = 0; i < CF_COUNT(BAD); i++) {
        void *data = &p;
        assert_err(CF_ERR_INVALID, "outbox 3: ", outbox_view(box, BAD[i].off_bytes, BAD[i].bytes, &data));
        assert_ptr_equal(data, &p);
    }
    outbox_close(box);
    impl->drop(&p);
}

static void test_sizes_that_cannot_be(void **state)
{
    const implementation *impl = implementation_of(state);
    static const uint64_t SIZES[] = {0, (1ull << 40) + 1, UINT64_MAX};
    pair p;
    impl->make(4, BOX_BYTES, &p);
    for (size_t i = 0; i < CF_COUNT(SIZES); i++) {
        outbox *box = NULL;
        p.read.bytes = SIZES[i];
        assert_err(CF_ERR_INVALID, "outbox 4: ", outbox_open(&p.read, OUTBOX_READ, &box));
        assert_null(box);
    }
    impl->drop(&p);
}

static void test_a_grant_of_another_size(void **state)
{
    const implementation *impl = implementation_of(state);
    static const uint64_t SIZES[] = {1, BOX_BYTES - 1, BOX_BYTES + 1, 3 * BOX_BYTES, 1ull << 40};
    pair p;
    impl->make(5, BOX_BYTES, &p);
    for (size_t i = 0; i < CF_COUNT(SIZES); i++) {
        outbox *box = NULL;
        char part[64];
        snprintf(part, sizeof part, "outbox 5: expected %llu bytes", (unsigned long long)SIZES[i]);
        p.read.bytes = p.write.bytes = SIZES[i];
        assert_err(CF_ERR_MISMATCH, part, outbox_open(&p.read, OUTBOX_READ, &box));
        assert_err(CF_ERR_MISMATCH, part, outbox_open(&p.write, OUTBOX_WRITE, &box));
        assert_null(box);
    }
    impl->drop(&p);
}

/* Runs in a child: writes to a mapping it may only read. */
static int write_through(const outbox_grant *grant)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        outbox *box;
        void *data;
        signal(SIGSEGV, SIG_DFL); /* not a sanitizer's report */
        if (outbox_open(grant, OUTBOX_READ, &box) != CF_OK || outbox_view(box, 0, 1, &data) != CF_OK)
            _exit(9);
        *(volatile unsigned char *)data = 1;
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static void test_readers_cannot_write(void **state)
{
    const implementation *impl = implementation_of(state);
    pair p;
    outbox *box = NULL;
    void *data;
    impl->make(6, BOX_BYTES, &p);
    assert_err(CF_ERR_SYS, "outbox 6: ", outbox_open(&p.read, OUTBOX_WRITE, &box));
    assert_null(box);
    assert_int_equal(write_through(&p.read), SIGSEGV);
    assert_int_equal(write_through(&p.write), SIGSEGV); /* opened for reading, whatever the grant allows */
    assert_ok(outbox_open(&p.read, OUTBOX_READ, &box));
    assert_ok(outbox_view(box, 0, 4096, &data));
    assert_int_equal(mprotect(data, 4096, PROT_READ | PROT_WRITE), -1);
    assert_int_equal(*(unsigned char *)data, 0);
    outbox_close(box);
    impl->drop(&p);
}

static void test_mappings_outlive_the_owner(void **state)
{
    const implementation *impl = implementation_of(state);
    pair p;
    outbox *writer, *reader;
    void *to, *from;
    impl->make(8, BOX_BYTES, &p);
    assert_ok(outbox_open(&p.write, OUTBOX_WRITE, &writer));
    assert_ok(outbox_open(&p.read, OUTBOX_READ, &reader));
    impl->drop(&p);
    assert_ok(outbox_view(writer, 0, BOX_BYTES, &to));
    assert_ok(outbox_view(reader, 0, BOX_BYTES, &from));
    fill(to, BOX_BYTES, 2);
    outbox_close(writer); /* the reader goes on alone */
    unsigned char want[BOX_BYTES];
    fill(want, BOX_BYTES, 2);
    assert_memory_equal(from, want, BOX_BYTES);
    outbox_close(reader);
}

static void test_failures_leave_nothing_behind(void **state)
{
    const implementation *impl = implementation_of(state);
    pair p;
    impl->make(9, BOX_BYTES, &p);
    const int fds = test_open_fds();
    for (int round = 0; round < 2; round++) {
        outbox *box = NULL;
        if (round == 1 && p.read.fd < 0)
            break; /* nothing but memory can fail */
        assert_ok(fault_arm(round == 0 ? "mem.alloc=fail" : "outbox.open=fail"));
        assert_err(round == 0 ? CF_ERR_NOMEM : CF_ERR_SYS, "", outbox_open(&p.read, OUTBOX_READ, &box));
        assert_null(box);
        assert_ok(outbox_open(&p.read, OUTBOX_READ, &box)); /* the failure was not for good */
        outbox_close(box);
    }
    assert_ok(fault_arm(NULL));
    assert_int_equal(test_open_fds(), fds);
    impl->drop(&p);
}

/* ---- memfd alone ---- */

static void test_memfd_is_sealed(void **state)
{
    (void)state;
    pair p;
    make_memfd(11, BOX_BYTES, &p);
    const int fds[] = {p.write.fd, p.read.fd};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fcntl(fds[i], F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
        assert_int_equal(fcntl(fds[i], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        assert_int_equal(ftruncate(fds[i], 0), -1);
        assert_int_equal(ftruncate(fds[i], BOX_BYTES / 2), -1);
        assert_int_equal(ftruncate(fds[i], 2 * BOX_BYTES), -1);
        assert_int_equal(fcntl(fds[i], F_ADD_SEALS, F_SEAL_WRITE), -1); /* no reader can stop the writer */
    }
    assert_int_equal(write(p.read.fd, "x", 1), -1);
    assert_int_equal(errno, EBADF);
    assert_int_equal(fcntl(p.read.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    drop_memfd(&p);
}

static void test_memfd_refusals(void **state)
{
    (void)state;
    int write_fd = -7, read_fd = -7, pipe_fds[2];
    outbox *box = NULL;
    char path[256];
    const int fds = test_open_fds();
    assert_err(CF_ERR_INVALID, "outbox 1: 0 bytes", outbox_make_memfd(1, 0, &write_fd, &read_fd));
    assert_err(CF_ERR_INVALID, "outbox 1: 18446744073709551615 bytes",
               outbox_make_memfd(1, UINT64_MAX, &write_fd, &read_fd));
    assert_ok(fault_arm("outbox.make=fail"));
    assert_err(CF_ERR_SYS, "outbox 1: memfd of 4096 bytes", outbox_make_memfd(1, 4096, &write_fd, &read_fd));
    assert_ok(fault_arm(NULL));
    assert_int_equal(write_fd, -7);
    assert_int_equal(read_fd, -7);
    outbox_grant g = {.outbox_id = 1, .bytes = 4096, .fd = -1};
    assert_err(CF_ERR_SYS, "outbox 1: fstat", outbox_open(&g, OUTBOX_READ, &box)); /* the descriptor never came */
    /* Memory that its maker could still cut; a file; something that is no memory at all. */
    g.fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(g.fd, 4096), 0);
    assert_err(CF_ERR_MISMATCH, "outbox 1: the descriptor is no memory sealed", outbox_open(&g, OUTBOX_READ, &box));
    close(g.fd);
    snprintf(path, sizeof path, "%s/file", test_temp_dir());
    static const char zeros[4096];
    assert_ok(io_write_file(path, zeros, sizeof zeros));
    g.fd = open(path, O_RDWR | O_CLOEXEC);
    assert_err(CF_ERR_MISMATCH, "outbox 1: the descriptor is no memory sealed", outbox_open(&g, OUTBOX_READ, &box));
    close(g.fd);
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    g.fd = pipe_fds[0];
    assert_err(CF_ERR_MISMATCH, "outbox 1: the descriptor is no memory sealed", outbox_open(&g, OUTBOX_READ, &box));
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    assert_null(box);
    assert_int_equal(test_open_fds(), fds);
}

/* A case of the contract, and where in an implementation stands whether it makes this promise (0: all do). */
typedef struct contract_case {
    const char *name;
    CMUnitTestFunction run;
    size_t promise_off;
} contract_case;

#define CASE(name)            \
    {                         \
#name, test_##name, 0 \
    }
#define CASE_IF(promise, name)                                \
    {                                                         \
#name, test_##name, offsetof(implementation, promise) \
    }

static const contract_case CASES[] = {
    CASE(readers_see_what_was_written),           CASE(two_boxes_share_nothing),
    CASE(slots_are_aligned_and_inside),           CASE(sizes_that_cannot_be),
    CASE(failures_leave_nothing_behind),          CASE_IF(knows_its_size, a_grant_of_another_size),
    CASE_IF(guards_writes, readers_cannot_write), CASE_IF(outlives_its_owner, mappings_outlive_the_owner),
};

static bool promises(const implementation *impl, const contract_case *c)
{
    return c->promise_off == 0 || *(const bool *)((const char *)impl + c->promise_off);
}

int main(void)
{
    static char names[CF_COUNT(IMPLEMENTATIONS) * CF_COUNT(CASES)][64];
    struct CMUnitTest tests[CF_COUNT(names) + 2] = {
        cmocka_unit_test(test_memfd_is_sealed),
        cmocka_unit_test(test_memfd_refusals),
    };
    size_t count = 2;
    for (size_t i = 0; i < CF_COUNT(IMPLEMENTATIONS); i++)
        for (size_t c = 0; c < CF_COUNT(CASES); c++) {
            if (!promises(&IMPLEMENTATIONS[i], &CASES[c]))
                continue;
            char *name = names[count - 2];
            snprintf(name, sizeof names[0], "%s: %s", IMPLEMENTATIONS[i].name, CASES[c].name);
            tests[count++] = (struct CMUnitTest){
                .name = name, .test_func = CASES[c].run, .initial_state = (void *)(uintptr_t)&IMPLEMENTATIONS[i]};
        }
    return _cmocka_run_group_tests("outbox", tests, count, NULL, NULL);
}
