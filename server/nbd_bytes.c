/* An NBD client's bytes: between its stream and its state machine. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "proto/limits.h"
#include "server/nbd_client.h"

#define RECV_BYTES (256u << 10) /* read from the socket at once; also what is kept */

/* One place to receive into for all clients: it is empty between turns. */
static uint8_t *recv_place;

void
nbd_client_wake(void *arg)
{
    struct nbd_client *c = arg;

    if (!c->closing)
        stream_kick(&c->stream);
}

/* Keeps what the state machine did not take, for when it wants more. */
static bool
keep(struct nbd_client *c, const uint8_t *bytes, size_t len)
{
    if (len == 0)
        return true;
    c->kept = malloc(len);
    if (!c->kept)
        return false;
    memcpy(c->kept, bytes, len);
    c->kept_len = len;
    c->kept_from = 0;
    return true;
}

/* Hands in what was kept; true when nothing is left of it. */
static bool
give_kept(struct nbd_client *c)
{
    if (!c->kept)
        return true;
    while (c->kept_from < c->kept_len && nbd_conn_wants_input(c->conn)) {
        size_t n =
            nbd_conn_input(c->conn, c->kept + c->kept_from, c->kept_len - c->kept_from);

        c->kept_from += n;
        if (n == 0)
            break;
    }
    if (c->kept_from < c->kept_len)
        return false;
    free(c->kept);
    c->kept = NULL;
    return true;
}

static bool
phase_takes_input(const struct nbd_client *c)
{
    enum nbd_phase phase = nbd_conn_phase(c->conn);

    return phase == NBD_PHASE_HANDSHAKE || phase == NBD_PHASE_TRANSMISSION;
}

/* One read from the socket, into a payload's own place if one is being received. */
static bool
read_once(struct nbd_client *c)
{
    struct iovec iov[4];
    unsigned nr = nbd_conn_want(c->conn, iov, 4);
    ssize_t got;
    size_t used;

    if (nr > 0) {
        got = stream_read(&c->stream, iov[0].iov_base, iov[0].iov_len);
        if (got > 0)
            nbd_conn_received(c->conn, (size_t)got);
        return got > 0;
    }
    got = stream_read(&c->stream, recv_place, RECV_BYTES);
    if (got <= 0)
        return false;
    used = nbd_conn_input(c->conn, recv_place, (size_t)got);
    if (nbd_conn_phase(c->conn) == NBD_PHASE_WANT_TLS)
        return false; /* what came in plain behind STARTTLS is thrown away */
    if (!keep(c, recv_place + used, (size_t)got - used)) {
        log_warning("connection closed: out of memory peer=%s", c->peer_text);
        nbd_client_end(c);
        return false;
    }
    return c->kept == NULL;
}

/* After input, and after output: an export may have been opened behind the last input. */
static void
look_at_handshake(struct nbd_client *c)
{
    if (!c->counted_handshake || nbd_conn_in_handshake(c->conn))
        return;
    c->counted_handshake = false;
    c->server->handshakes--;
    c->stream.handshake_until_ns = 0;
}

static void
after_input(struct nbd_client *c)
{
    if (c->closing)
        return;
    look_at_handshake(c);
    stream_want_read(&c->stream,
                     phase_takes_input(c) && !c->kept && nbd_conn_wants_input(c->conn));
    stream_kick(&c->stream);
}

static void
on_readable(struct stream *stream)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    unsigned turns = 0;

    if (c->closing || !give_kept(c))
        return;
    /* A bounded number of reads a turn: others have theirs. */
    while (!c->closing && phase_takes_input(c) && nbd_conn_wants_input(c->conn) &&
           turns++ < 4 && read_once(c))
        ;
    after_input(c);
}

static bool
start_tls(struct nbd_client *c)
{
    struct thin_error err;
    int r = stream_start_tls(&c->stream, c->server->nbd_tls, PROTO_HANDSHAKE_MS, &err);

    if (r < 0) {
        log_warning("connection closed: %s peer=%s", thin_error_text(&err, r),
                    c->peer_text);
        return false;
    }
    free(c->kept);
    c->kept = NULL;
    return true;
}

static unsigned
on_output(struct stream *stream, struct iovec *iov, unsigned max)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    unsigned nr;

    if (c->closing)
        return 0;
    if (c->kept && nbd_conn_wants_input(c->conn)) {
        give_kept(c);
        after_input(c);
    }
    nr = nbd_conn_output(c->conn, iov, max);
    if (nr > 0)
        return nr;
    switch (nbd_conn_phase(c->conn)) {
    case NBD_PHASE_WANT_TLS:
        if (!stream->shaking && !start_tls(c))
            nbd_client_end(c);
        break;
    case NBD_PHASE_FINISHED:
        if (nbd_conn_why(c->conn))
            log_notice("connection closed: %s peer=%s identity=%s", nbd_conn_why(c->conn),
                       c->peer_text, c->peer.identity);
        nbd_client_end(c);
        break;
    default:
        if (c->server->stopping && !nbd_client_goes_on(c) && nbd_conn_is_quiet(c->conn)) {
            nbd_client_end(c);
            break;
        }
        stream_want_read(stream, phase_takes_input(c) && !c->kept &&
                                     nbd_conn_wants_input(c->conn));
        break;
    }
    return 0;
}

static void
on_sent(struct stream *stream, size_t bytes)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);

    nbd_conn_sent(c->conn, bytes);
    look_at_handshake(c);
}

static bool
on_owes(struct stream *stream)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);

    /* Waiting for memory is ours, not the peer's, doing. */
    return !c->closing && !c->waiter.waiting && nbd_conn_wants_input(c->conn) &&
           nbd_conn_mid_request(c->conn);
}

static void
on_stream_ready(struct stream *stream)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    const char *identity = channel_identity(stream->channel);

    if (!identity[0])
        return; /* plain: the identity is known since accept */
    auth_peer_cert(&c->peer, identity);
    c->peer.local = c->local;
    c->tls_running = true;
    nbd_conn_tls_started(c->conn);
}

static void
on_broken(struct stream *stream, int code, const struct thin_error *err)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);

    if (code < 0 && code != -ECONNRESET && code != -EPIPE)
        log_notice("connection closed: %s peer=%s identity=%s",
                   thin_error_text(err, code), c->peer_text, c->peer.identity);
    nbd_client_end(c);
}

const struct stream_ops nbd_client_stream_ops = {
    .ready = on_stream_ready,
    .readable = on_readable,
    .output = on_output,
    .sent = on_sent,
    .owes = on_owes,
    .broken = on_broken,
};

int
nbd_bytes_init(void)
{
    recv_place = malloc(RECV_BYTES);
    return recv_place ? 0 : -ENOMEM;
}

void
nbd_bytes_fini(void)
{
    free(recv_place);
    recv_place = NULL;
}
