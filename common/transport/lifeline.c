/*
 * lifeline.c - SEQPACKET sockets with descriptor passing. Any process; a connection belongs to one thread.
 * Fails: CF_ERR_GONE at end of file, CF_ERR_BUSY when the socket's buffer is full, CF_ERR_INVALID for a message that is
 * too long or has too many descriptors (it is consumed, and its descriptors closed), CF_ERR_SYS.
 */
#define _GNU_SOURCE
#include "common/transport/lifeline.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/transport/wire.h"

static cf_err make_address(const char *path, struct sockaddr_un *ret_addr)
{
    *ret_addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof ret_addr->sun_path)
        return err_set(CF_ERR_LIMIT, "%s: socket path longer than %zu bytes; choose a shorter run directory", path,
                       sizeof ret_addr->sun_path - 1);
    memcpy(ret_addr->sun_path, path, strlen(path) + 1);
    return CF_OK;
}

static cf_err open_seqpacket(int *ret_fd)
{
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys("socket");
    const int buffer_bytes = 4 * MESSAGE_BYTES_MAX; /* a few of the largest messages */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
    *ret_fd = fd;
    return CF_OK;
}

cf_err lifeline_listen(const char *path, int *ret_fd)
{
    cf_err err;
    int fd = -1;
    struct sockaddr_un addr;
    TRY(make_address(path, &addr));
    TRY(open_seqpacket(&fd));
    unlink(path);
    if (bind(fd, (const struct sockaddr *)&addr, sizeof addr) != 0 || listen(fd, MEMBERS_MAX) != 0) {
        err = err_sys("%s: listen", path);
        goto out;
    }
    *ret_fd = fd;
    fd = -1;
out:
    io_close(&fd);
    return err;
}

cf_err lifeline_accept(int listen_fd, int *ret_fd, pid_t *ret_pid)
{
    int fd = fault_hit("lifeline.accept") ? (errno = EMFILE, -1)
                                          : accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED ? err_set(CF_ERR_TIMEOUT, "nobody waits")
                                                                          : err_sys("accept");
    struct ucred cred;
    socklen_t bytes = sizeof cred;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &bytes) != 0) {
        cf_err err = err_sys("SO_PEERCRED");
        io_close(&fd);
        return err;
    }
    *ret_fd = fd;
    *ret_pid = cred.pid;
    return CF_OK;
}

cf_err lifeline_connect(const char *path, int *ret_fd)
{
    cf_err err;
    int fd = -1;
    struct sockaddr_un addr;
    TRY(make_address(path, &addr));
    TRY(open_seqpacket(&fd));
    if (fault_hit("lifeline.connect") ? (errno = ENOMEM, true)
                                      : connect(fd, (const struct sockaddr *)&addr, sizeof addr) != 0) {
        err = errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN
                  ? err_set(CF_ERR_GONE, "%s: nobody listens there", path)
                  : err_sys("%s: connect", path);
        goto out;
    }
    *ret_fd = fd;
    fd = -1;
out:
    io_close(&fd);
    return err;
}

cf_err lifeline_send(int fd, json *msg, const int *fds, size_t fds_count)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    CF_ASSERT(fds_count <= LIFELINE_FDS_MAX);
    TRY(wire_print(msg, &text, &bytes));
    union {
        char bytes[CMSG_SPACE(sizeof(int) * LIFELINE_FDS_MAX)];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = text, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds_count > 0) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * fds_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * fds_count);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * fds_count);
    }
    ssize_t n;
    do
        n = fault_hit("lifeline.send") ? (errno = ENOBUFS, -1) : sendmsg(fd, &header, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        err = errno == EAGAIN                                              ? err_set(CF_ERR_BUSY, "lifeline is full")
              : errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN ? err_set(CF_ERR_GONE, "lifeline is closed")
                                                                           : err_sys("lifeline send");
out:
    mem_free(text);
    return err;
}

static void take_fds(struct msghdr *header, int ret_fds[LIFELINE_FDS_MAX])
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (i < LIFELINE_FDS_MAX)
                ret_fds[i] = fd;
            else
                close(fd);
        }
    }
}

cf_err lifeline_recv(int fd, char **ret_text, size_t *ret_bytes, int ret_fds[LIFELINE_FDS_MAX])
{
    cf_err err;
    char *text = NULL;
    for (int i = 0; i < LIFELINE_FDS_MAX; i++)
        ret_fds[i] = -1;
    TRY(mem_alloc(MESSAGE_BYTES_MAX + 1, 1, &text));
    union {
        char bytes[CMSG_SPACE(sizeof(int) * LIFELINE_FDS_MAX)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = text, .iov_len = MESSAGE_BYTES_MAX};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t n;
    do
        n = fault_hit("lifeline.recv") ? (errno = ENOMEM, -1) : recvmsg(fd, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        err = errno == EAGAIN       ? err_set(CF_ERR_TIMEOUT, "no message")
              : errno == ECONNRESET ? err_set(CF_ERR_GONE, "the peer has closed its lifeline")
                                    : err_sys("lifeline receive");
        goto out;
    }
    take_fds(&header, ret_fds);
    if (n == 0)
        err = err_set(CF_ERR_GONE, "the peer has closed its lifeline");
    else if (header.msg_flags & MSG_TRUNC)
        err = err_set(CF_ERR_INVALID, "lifeline message longer than %d bytes", MESSAGE_BYTES_MAX);
    else if (header.msg_flags & MSG_CTRUNC)
        err = err_set(CF_ERR_INVALID,
                      "lifeline message with more than %d descriptors, or more than this process may open",
                      LIFELINE_FDS_MAX);
    if (err != CF_OK) {
        for (int i = 0; i < LIFELINE_FDS_MAX; i++)
            io_close(&ret_fds[i]);
        goto out;
    }
    text[n] = '\0';
    *ret_text = text;
    *ret_bytes = (size_t)n;
    text = NULL;
out:
    mem_free(text);
    return err;
}
