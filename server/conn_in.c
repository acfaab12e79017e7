/* Bytes to frames to requests: the order of trust is PROTOCOL.md's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "server/conn_private.h"
#include "server/session.h"

#define HELLO_BYTES_MAX 4096u /* of the first message */
#define READS_A_TURN    4u

bool
conn_may_parse(const struct conn *c)
{
    return !c->closing && !c->ending && !c->waiting && !conn_is_full(c) &&
           !(c->session &&
             (c->session->resuming == c || /* its hello is not answered yet */
              c->session->bytes_in_flight > PROTO_BYTES_IN_FLIGHT_DEFAULT));
}

static size_t
message_max(const struct conn *c)
{
    return c->session ? PROTO_MESSAGE_MAX : HELLO_BYTES_MAX;
}

/* Room for `room` bytes; what is kept stays. */
static bool
reserve(struct conn *c, size_t room)
{
    uint8_t *grown;

    if (room <= c->kept_size)
        return true;
    grown = realloc(c->kept, room);
    if (!grown) {
        log_error("connection closed: out of memory peer=%s", c->peer_text);
        conn_start_end(c);
        return false;
    }
    c->kept = grown;
    c->kept_size = room;
    return true;
}

/* Keeps bytes from elsewhere; nothing is kept yet. */
static bool
keep(struct conn *c, const uint8_t *bytes, size_t len)
{
    if (!reserve(c, len))
        return false;
    memcpy(c->kept, bytes, len);
    c->kept_len = len;
    return true;
}

static void
payload_complete(struct conn *c)
{
    struct request *rq = c->receiving;

    c->receiving = NULL;
    request_received(rq);
}

/* Puts payload bytes where they belong; returns how many were taken. */
static size_t
take_payload(struct conn *c, const uint8_t *bytes, size_t len)
{
    size_t n = min_u64(len, c->payload_left);
    struct request *rq = c->receiving;

    if (rq->piece) {
        memcpy((uint8_t *)rq->piece->iov.iov_base + rq->piece_filled, bytes, n);
        rq->piece_filled += n;
    }
    c->payload_left -= n;
    if (c->payload_left == 0)
        payload_complete(c);
    return n;
}

/*
 * One frame's message at `bytes`. Returns its length; 0: not whole yet (*ret_need: its
 * length as far as known), or the connection is ending.
 */
static size_t
take_message(struct conn *c, const uint8_t *bytes, size_t len, size_t *ret_need)
{
    struct frame_prefix prefix;
    struct thin_error err;
    int r;

    *ret_need = FRAME_PREFIX_BYTES;
    if (len < FRAME_PREFIX_BYTES)
        return 0;
    r = frame_prefix_decode(bytes, (uint32_t)message_max(c), PROTO_PAYLOAD_MAX, &prefix,
                            &err);
    if (r == 0 && prefix.payload_bytes && prefix.message_bytes > PROTO_DATA_MESSAGE_MAX)
        r = thin_fail(&err, -THIN_E_LIMIT,
                      "a message of %u bytes beside a payload, at most %u are allowed",
                      prefix.message_bytes, PROTO_DATA_MESSAGE_MAX);
    if (r == 0 && !c->session && prefix.payload_bytes)
        r = thin_fail(&err, -THIN_E_PROTOCOL, "a payload before hello");
    if (r == 0) {
        *ret_need = FRAME_PREFIX_BYTES + (size_t)prefix.message_bytes;
        if (len < *ret_need)
            return 0;
        r = frame_check(bytes, &prefix, bytes + FRAME_PREFIX_BYTES, &err);
    }
    if (r == 0) {
        c->payload_left = prefix.payload_bytes;
        r = request_arrived(c, bytes + FRAME_PREFIX_BYTES, prefix.message_bytes,
                            prefix.payload_bytes, &c->receiving, &err);
    }
    if (r < 0) {
        conn_protocol_error(c, r, &err);
        return 0;
    }
    return *ret_need;
}

/* A write's request has no memory yet: asks, or waits. */
static void
lend_memory(struct conn *c)
{
    struct request *rq = c->receiving;
    int r;

    if (!rq || rq->piece || !request_wants_piece(rq))
        return;
    r = payload_get(c->server->payload, c->payload_left, PAYLOAD_ORDINARY, &c->waiter,
                    &rq->piece);
    if (r == -THIN_E_WOULD_BLOCK)
        c->waiting = rq;
    else if (r < 0)
        request_refuse(rq, r); /* the payload is received and thrown away */
}

/* Parses as much of `bytes` as may be; returns what was taken. */
static size_t
parse_bytes(struct conn *c, const uint8_t *bytes, size_t len, size_t *ret_need)
{
    size_t at = 0;

    *ret_need = 0;
    while (at < len && conn_may_parse(c)) {
        size_t n;

        if (c->receiving) {
            at += take_payload(c, bytes + at, len - at);
            continue;
        }
        n = take_message(c, bytes + at, len - at, ret_need);
        if (n == 0)
            break;
        *ret_need = 0;
        at += n;
        if (c->receiving) {
            lend_memory(c);
            if (c->payload_left == 0)
                payload_complete(c);
        }
    }
    return at;
}

/* What was kept from before; true when nothing is left of it that could be parsed. */
static bool
parse_kept(struct conn *c)
{
    size_t need, used;

    if (c->kept_len == 0)
        return true;
    used = parse_bytes(c, c->kept, c->kept_len, &need);
    c->kept_len -= used;
    if (c->kept_len)
        memmove(c->kept, c->kept + used, c->kept_len);
    return conn_may_parse(c);
}

static ssize_t
receive(struct conn *c, void *bytes, size_t len)
{
    ssize_t got = stream_read(&c->stream, bytes, len);

    if (got > 0)
        c->last_heard_ns = c->stream.last_progress_ns;
    return got;
}

/* One read: into a payload's own place, behind what is kept, or into the common place. */
static bool
read_once(struct conn *c, uint8_t *recv)
{
    size_t need, used;
    ssize_t got;

    if (c->receiving && c->receiving->piece) {
        struct request *rq = c->receiving;

        got = receive(c, (uint8_t *)rq->piece->iov.iov_base + rq->piece_filled,
                      c->payload_left);
        if (got <= 0)
            return false;
        rq->piece_filled += (size_t)got;
        c->payload_left -= (size_t)got;
        if (c->payload_left == 0)
            payload_complete(c);
        return true;
    }
    if (c->kept_len) {
        if (!reserve(c, message_max(c) + FRAME_PREFIX_BYTES))
            return false;
        got = receive(c, c->kept + c->kept_len, c->kept_size - c->kept_len);
        if (got <= 0)
            return false;
        c->kept_len += (size_t)got;
        return parse_kept(c);
    }
    got = receive(c, recv, CONN_RECV_BYTES);
    if (got <= 0)
        return false;
    used = parse_bytes(c, recv, (size_t)got, &need);
    if (used < (size_t)got && !c->closing && !c->ending &&
        !keep(c, recv + used, (size_t)got - used))
        return false;
    return conn_may_parse(c);
}

void
conn_parse(struct conn *c, uint8_t *recv)
{
    unsigned turns = 0;

    if (c->closing || c->ending)
        return;
    if (parse_kept(c))
        while (!c->closing && !c->ending && conn_may_parse(c) && turns++ < READS_A_TURN &&
               read_once(c, recv))
            ;
    if (c->closing)
        return;
    if (c->kept_len == 0 && c->kept) {
        free(c->kept);
        c->kept = NULL;
        c->kept_size = 0;
    }
    stream_want_read(&c->stream, conn_may_parse(c));
}

void
conn_resume(struct conn *c)
{
    if (c->closing || c->ending || !conn_may_parse(c))
        return;
    /* Kept bytes may hold whole frames that no descriptor tells of. */
    c->stream.more_to_read = true;
    stream_want_read(&c->stream, true);
    stream_kick(&c->stream);
}

void
conn_memory_ready(struct payload_waiter *waiter)
{
    struct conn *c = container_of(waiter, struct conn, waiter);

    c->waiting = NULL;
    lend_memory(c);
    conn_resume(c);
}
