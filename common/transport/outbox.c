/*
 * outbox.c - mapping of outboxes. A mapping belongs to the process that opened it.
 *
 * memfd: sealed against shrinking, growing and further seals, so a reader can never fault on a truncated file;
 * readers get a descriptor reopened read-only, which the kernel refuses to map writable. The memory lives while any
 * descriptor or mapping of it lives, so the death of writer, keeper or orchestrator leaves committed slots readable.
 * Fails: CF_ERR_SYS, CF_ERR_MISMATCH, CF_ERR_INVALID, CF_ERR_NOMEM.
 */
#define _GNU_SOURCE
#include "common/transport/outbox.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/transport/outbox_impl.h"

#define OUTBOX_BYTES_MAX (1ull << 40) /* no message may ask for more: wire.c */

static void unmap(outbox *box)
{
    munmap(box->base, box->bytes);
}

static cf_err check_bytes(uint32_t outbox_id, uint64_t bytes)
{
    if (bytes == 0 || bytes > OUTBOX_BYTES_MAX)
        return err_set(CF_ERR_INVALID, "outbox %u: %llu bytes, expected 1..%llu", outbox_id, (unsigned long long)bytes,
                       (unsigned long long)OUTBOX_BYTES_MAX);
    return CF_OK;
}

cf_err outbox_make_memfd(uint32_t outbox_id, uint64_t bytes, int *ret_write_fd, int *ret_read_fd)
{
    cf_err err;
    char name[64];
    int fd = -1, read_fd = -1;
    TRY(check_bytes(outbox_id, bytes));
    snprintf(name, sizeof name, "cosyfarm-outbox-%u", outbox_id);
    fd = fault_hit("outbox.make") ? (errno = ENOMEM, -1) : memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        err = err_sys("outbox %u: memfd of %llu bytes", outbox_id, (unsigned long long)bytes);
        goto out;
    }
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    read_fd = open(name, O_RDONLY | O_CLOEXEC);
    if (read_fd < 0) {
        err = err_sys("outbox %u: reopen read-only", outbox_id);
        goto out;
    }
    *ret_write_fd = fd;
    *ret_read_fd = read_fd;
    fd = read_fd = -1;
out:
    io_close(&fd);
    io_close(&read_fd);
    return err;
}

static cf_err map_memfd(const outbox_grant *grant, outbox_access access, outbox *box)
{
    struct stat st;
    if ((fault_hit("outbox.open") ? (errno = EMFILE, -1) : fstat(grant->fd, &st)) != 0)
        return err_sys("outbox %u: fstat", grant->outbox_id);
    const int seals = fcntl(grant->fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK)) /* whoever cut it could kill its readers with SIGBUS */
        return err_set(CF_ERR_MISMATCH, "outbox %u: the descriptor is no memory sealed against shrinking",
                       grant->outbox_id);
    if ((uint64_t)st.st_size != grant->bytes)
        return err_set(CF_ERR_MISMATCH, "outbox %u: expected %llu bytes, descriptor has %llu", grant->outbox_id,
                       (unsigned long long)grant->bytes, (unsigned long long)st.st_size);
    const int prot = access == OUTBOX_WRITE ? PROT_READ | PROT_WRITE : PROT_READ;
    void *p = mmap(NULL, grant->bytes, prot, MAP_SHARED, grant->fd, 0);
    if (p == MAP_FAILED)
        return err_sys("outbox %u: mmap", grant->outbox_id);
    box->base = p;
    box->release = unmap;
    return CF_OK;
}

cf_err outbox_open(const outbox_grant *grant, outbox_access access, outbox **ret_outbox)
{
    cf_err err;
    outbox *box = NULL;
    TRY(check_bytes(grant->outbox_id, grant->bytes));
    TRY(mem_alloc(1, sizeof *box, &box));
    box->hold_fd = -1;
    box->outbox_id = grant->outbox_id;
    box->bytes = grant->bytes;
    box->base = grant->heap;
    if (!grant->heap)
        TRY(map_memfd(grant, access, box));
    *ret_outbox = box;
    box = NULL;
out:
    outbox_close(box);
    return err;
}

void outbox_close(outbox *box)
{
    if (!box)
        return;
    if (box->release)
        box->release(box);
    io_close(&box->hold_fd); /* after the mapping: now the owner may free it */
    mem_free(box);
}

uint32_t outbox_id(const outbox *box)
{
    return box->outbox_id;
}

bool outbox_on_device(const outbox *box)
{
    return box->on_device;
}

int outbox_owner_fd(const outbox *box)
{
    return box->hold_fd;
}

cf_err outbox_check(const outbox *box)
{
    struct pollfd p = {.fd = box->hold_fd}; /* the other end of a pipe: an error when nobody has it open any more */
    if (box->hold_fd >= 0 && poll(&p, 1, 0) != 0)
        return err_set(CF_ERR_GONE, "outbox %u: the exchange_keeper that owned its memory has died", box->outbox_id);
    return CF_OK;
}

cf_err outbox_view(const outbox *box, uint64_t off_bytes, uint64_t bytes, void **ret_data)
{
    if (off_bytes % OUTBOX_ALIGN != 0 || off_bytes > box->bytes || bytes > box->bytes - off_bytes)
        return err_set(CF_ERR_INVALID, "outbox %u: [%llu, +%llu) is not a slot of its %llu bytes", box->outbox_id,
                       (unsigned long long)off_bytes, (unsigned long long)bytes, (unsigned long long)box->bytes);
    *ret_data = box->base + off_bytes;
    return CF_OK;
}
