/*
 * bus.c - the only file that includes zmq.h. One bus per thread that owns it; each has its own context.
 *
 * libzmq 4.3.4 as Debian builds it has no pollers and no notifications of lost peers; what is used here is stable API.
 * Routing ids are never reused and ROUTER_HANDOVER stays off, because it leaks descriptors.
 * Fails: CF_ERR_SYS with zmq's words, CF_ERR_GONE, CF_ERR_BUSY, CF_ERR_TIMEOUT, CF_ERR_INVALID, CF_ERR_LIMIT.
 */
#include "common/transport/bus.h"

#include <errno.h>
#include <string.h>
#include <zmq.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/transport/wire.h"

#define BUS_QUEUE_MESSAGES 10000 /* per peer; credits keep real use far below: this is the backstop */
#define BUS_POLL_MAX       160   /* members x (lifeline + pidfd) + a few */
#define IPC_PATH_BYTES     107   /* sun_path */

struct bus {
    void *ctx;    /* owned */
    void *socket; /* owned */
    bool router;
};

static cf_err set_int(void *socket, int option, int value)
{
    if (fault_hit("zmq.option") ? (errno = EINVAL, true) : zmq_setsockopt(socket, option, &value, sizeof value) != 0)
        return err_set(CF_ERR_SYS, "zmq option %d: %s", option, zmq_strerror(errno));
    return CF_OK;
}

static cf_err open_socket(int type, bus **ret_bus)
{
    cf_err err;
    bus *b = NULL;
    TRY(mem_alloc(1, sizeof *b, &b));
    b->ctx = zmq_ctx_new();
    b->socket = fault_hit("zmq.open") ? (errno = EMFILE, NULL) : b->ctx ? zmq_socket(b->ctx, type) : NULL;
    if (!b->socket)
        FAIL(CF_ERR_SYS, "zmq socket: %s", zmq_strerror(errno));
    const int64_t bytes_max = MESSAGE_BYTES_MAX;
    if (zmq_setsockopt(b->socket, ZMQ_MAXMSGSIZE, &bytes_max, sizeof bytes_max) != 0)
        FAIL(CF_ERR_SYS, "zmq MAXMSGSIZE: %s", zmq_strerror(errno));
    TRY(set_int(b->socket, ZMQ_LINGER, 0));
    TRY(set_int(b->socket, ZMQ_SNDHWM, BUS_QUEUE_MESSAGES));
    TRY(set_int(b->socket, ZMQ_RCVHWM, BUS_QUEUE_MESSAGES));
    *ret_bus = b;
    b = NULL;
out:
    bus_close(b);
    return err;
}

static cf_err check_endpoint(const char *endpoint)
{
    const size_t prefix = strlen("ipc://");
    if (strncmp(endpoint, "ipc://", prefix) == 0 && strlen(endpoint + prefix) > IPC_PATH_BYTES)
        return err_set(CF_ERR_LIMIT, "%s: socket path longer than %d bytes; choose a shorter run directory", endpoint,
                       IPC_PATH_BYTES);
    return CF_OK;
}

cf_err bus_bind(const char *endpoint, bus **ret_bus)
{
    cf_err err;
    bus *b = NULL;
    TRY(check_endpoint(endpoint));
    TRY(open_socket(ZMQ_ROUTER, &b));
    b->router = true;
    TRY(set_int(b->socket, ZMQ_ROUTER_MANDATORY, 1));
    if (fault_hit("zmq.bind") ? (errno = EADDRINUSE, true) : zmq_bind(b->socket, endpoint) != 0)
        FAIL(CF_ERR_SYS, "%s: bind: %s", endpoint, zmq_strerror(errno));
    *ret_bus = b;
    b = NULL;
out:
    bus_close(b);
    return err;
}

cf_err bus_connect(const char *endpoint, const char *routing_id, bus **ret_bus)
{
    cf_err err;
    bus *b = NULL;
    TRY(check_endpoint(endpoint));
    CF_ASSERT(strlen(routing_id) < BUS_ID_BYTES);
    TRY(open_socket(ZMQ_DEALER, &b));
    if (zmq_setsockopt(b->socket, ZMQ_ROUTING_ID, routing_id, strlen(routing_id)) != 0)
        FAIL(CF_ERR_SYS, "zmq ROUTING_ID: %s", zmq_strerror(errno));
    TRY(set_int(b->socket, ZMQ_IMMEDIATE, 1)); /* nothing is queued for an orchestrator that is not there */
    if (fault_hit("zmq.connect") ? (errno = ENOMEM, true) : zmq_connect(b->socket, endpoint) != 0)
        FAIL(CF_ERR_SYS, "%s: connect: %s", endpoint, zmq_strerror(errno));
    *ret_bus = b;
    b = NULL;
out:
    bus_close(b);
    return err;
}

void bus_close(bus *b)
{
    if (!b)
        return;
    if (b->socket)
        zmq_close(b->socket);
    if (b->ctx)
        zmq_ctx_term(b->ctx);
    mem_free(b);
}

static cf_err send_frame(bus *b, const void *data, size_t bytes, int flags)
{
    while (fault_hit("zmq.send") ? (errno = ENOTSUP, true)
                                 : zmq_send(b->socket, data, bytes, flags | ZMQ_DONTWAIT) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == EHOSTUNREACH)
            return err_set(CF_ERR_GONE, "peer is not connected");
        if (errno == EAGAIN)
            return err_set(CF_ERR_BUSY, "send queue is full or nobody is connected");
        return err_set(CF_ERR_SYS, "zmq send: %s", zmq_strerror(errno));
    }
    return CF_OK;
}

cf_err bus_send(bus *b, const char *peer_id, json *msg)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    TRY(wire_print(msg, &text, &bytes));
    if (b->router)
        TRY(send_frame(b, peer_id, strlen(peer_id), ZMQ_SNDMORE));
    err = send_frame(b, text, bytes, 0);
    if (err != CF_OK && b->router)
        zmq_send(b->socket, "", 0, ZMQ_DONTWAIT); /* else the next message's peer would be this one's body */
out:
    mem_free(text);
    return err;
}

static bool more_frames(const bus *b)
{
    int more = 0;
    size_t bytes = sizeof more;
    return zmq_getsockopt(b->socket, ZMQ_RCVMORE, &more, &bytes) == 0 && more;
}

static cf_err recv_frame(bus *b, zmq_msg_t *frame)
{
    while (fault_hit("zmq.recv") ? (errno = ENOTSUP, true) : zmq_msg_recv(frame, b->socket, ZMQ_DONTWAIT) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN)
            return err_set(CF_ERR_TIMEOUT, "no message");
        return err_set(CF_ERR_SYS, "zmq receive: %s", zmq_strerror(errno));
    }
    return CF_OK;
}

cf_err bus_recv(bus *b, char ret_peer_id[BUS_ID_BYTES], char **ret_text, size_t *ret_bytes)
{
    cf_err err;
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    ret_peer_id[0] = '\0';
    if (b->router) {
        TRY(recv_frame(b, &frame));
        const size_t id_bytes = zmq_msg_size(&frame);
        if (id_bytes < BUS_ID_BYTES && !memchr(zmq_msg_data(&frame), '\0', id_bytes)) {
            memcpy(ret_peer_id, zmq_msg_data(&frame), id_bytes);
            ret_peer_id[id_bytes] = '\0';
        }
        if (!more_frames(b))
            FAIL(CF_ERR_INVALID, "message without a body");
    }
    do /* an empty body is what a router leaves of a message that it could send but half; it knows */
        TRY(recv_frame(b, &frame));
    while (!b->router && zmq_msg_size(&frame) == 0 && !more_frames(b));
    if (more_frames(b)) {
        while (more_frames(b))
            TRY(recv_frame(b, &frame));
        FAIL(CF_ERR_INVALID, "message of several parts");
    }
    TRY(mem_strndup(zmq_msg_data(&frame), zmq_msg_size(&frame), ret_text));
    *ret_bytes = zmq_msg_size(&frame);
out:
    zmq_msg_close(&frame);
    return err;
}

cf_err bus_poll(bus *b, struct pollfd *fds, size_t count, uint64_t deadline_us, int *ret_bus_ready)
{
    zmq_pollitem_t items[BUS_POLL_MAX];
    CF_ASSERT(count + 1 <= BUS_POLL_MAX);
    size_t n = 0;
    if (b)
        items[n++] = (zmq_pollitem_t){.socket = b->socket, .events = ZMQ_POLLIN};
    for (size_t i = 0; i < count; i++) {
        fds[i].revents = 0;
        items[n + i] = (zmq_pollitem_t){.fd = fds[i].fd, .events = ZMQ_POLLIN};
    }
    const int rc = fault_hit("zmq.poll") ? (errno = EFAULT, -1)
                                         : zmq_poll(items, (int)(n + count), clock_left_ms(deadline_us, 60000));
    if (rc < 0 && errno != EINTR)
        return err_set(CF_ERR_SYS, "zmq poll: %s", zmq_strerror(errno));
    *ret_bus_ready = rc > 0 && b && (items[0].revents & ZMQ_POLLIN);
    for (size_t i = 0; i < count && rc > 0; i++)
        if (items[n + i].revents)
            fds[i].revents = POLLIN;
    return CF_OK;
}
