/* An NBD client's bytes: between its stream and its state machine. */
#include <errno.h>
#include <stdlib.h>

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

static ssize_t
read_some(void *arg, void *place, size_t len)
{
    return stream_read(arg, place, len);
}

/* One read from the socket; true if there may be more. */
static bool
read_once(struct nbd_client *c)
{
    ssize_t got =
        nbd_input_read(&c->input, recv_place, RECV_BYTES, read_some, &c->stream);

    if (got == -ENOMEM) {
        log_warning("connection closed: out of memory peer=%s", c->peer_text);
        nbd_client_end(c);
    }
    return got > 0;
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
    stream_want_read(&c->stream, nbd_input_wants(&c->input));
    stream_kick(&c->stream);
}

static void
on_readable(struct stream *stream)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    unsigned turns = 0;

    if (c->closing || !nbd_input_give(&c->input))
        return;
    /* A bounded number of reads a turn: others have theirs. */
    while (!c->closing && nbd_input_wants(&c->input) && turns++ < 4 && read_once(c))
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
    nbd_input_drop(&c->input);
    return true;
}

static unsigned
on_output(struct stream *stream, struct iovec *iov, unsigned max)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    unsigned nr;

    if (c->closing)
        return 0;
    if (c->input.kept && nbd_input_takes(&c->input)) {
        nbd_input_give(&c->input);
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
        stream_want_read(stream, nbd_input_wants(&c->input));
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
