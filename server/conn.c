#include "server/conn_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/socket.h"
#include "server/hello.h"
#include "server/session.h"

#define OUT_ROOM             (1u << 20) /* bytes queued at which long answers pause */
#define BROKEN_LINES         10u /* in a log period: who sends garbage fills no disk */
#define BROKEN_PERIOD_MS     10000u
#define SHUTDOWN_PATIENCE_NS (5 * NS_PER_SEC)

static struct {
    struct conn_list list;
    bool ready;
    uint8_t *recv; /* one place to receive into for all: it is empty between turns */
    void (*shutdown_done)(void *arg);
    void *shutdown_arg;
    struct server *server;
    struct thin_timer patience;
} conns;

struct server *
conn_server(struct conn *c)
{
    return c->server;
}

const struct auth_peer *
conn_peer(const struct conn *c)
{
    return &c->peer;
}

const char *
conn_peer_text(const struct conn *c)
{
    return c->peer_text;
}

struct session *
conn_session(struct conn *c)
{
    return c->session;
}

bool
conn_is_local(const struct conn *c)
{
    return c->local;
}

unsigned
conns_of_session(const struct session *session)
{
    return session->nr_conns;
}

/* ---- the end --------------------------------------------------------------------------- */

static void
drop_out(struct conn *c, struct out_frame *f)
{
    TAILQ_REMOVE(&c->out, f, link);
    c->nr_out--;
    if (f->rq)
        f->sent(f->rq);
    else
        free(f->memory);
    if (c->nr_spare >= CONN_SPARE_MAX) {
        free(f);
        return;
    }
    f->rq = NULL;
    f->memory = NULL;
    TAILQ_INSERT_HEAD(&c->spare, f, link);
    c->nr_spare++;
}

static void
free_conn(struct conn *c)
{
    struct server *server = c->server;
    struct out_frame *f;

    while ((f = TAILQ_FIRST(&c->out)))
        drop_out(c, f);
    while ((f = TAILQ_FIRST(&c->spare))) {
        TAILQ_REMOVE(&c->spare, f, link);
        free(f);
    }
    free(c->kept);
    TAILQ_REMOVE(&conns.list, c, link);
    server->connections--;
    free(c);
    if (TAILQ_EMPTY(&conns.list) && conns.shutdown_done) {
        void (*done)(void *) = conns.shutdown_done;

        conns.shutdown_done = NULL;
        loop_timer_cancel(server->thin_loop, &conns.patience);
        sessions_end_all(server, done, conns.shutdown_arg);
    }
}

/* On a turn of its own: nobody is inside a callback of ours. */
static void
end_task(struct thin_task *task)
{
    struct conn *c = container_of(task, struct conn, end_task);
    struct session *s = c->session;

    stream_fini(&c->stream);
    loop_timer_cancel(c->server->thin_loop, &c->silence);
    payload_cancel(c->server->payload, &c->waiter);
    if (c->waiting)
        request_abandon(c->waiting);
    if (c->receiving && c->receiving != c->waiting)
        request_abandon(c->receiving);
    c->waiting = c->receiving = NULL;
    if (s) {
        requests_forget_conn(s, c);
        session_leave(s, c);
    }
    free_conn(c);
}

void
conn_start_end(struct conn *c)
{
    if (c->closing)
        return;
    c->closing = true;
    if (c->counted_handshake)
        c->server->handshakes--;
    c->counted_handshake = false;
    loop_defer(c->server->thin_loop, &c->end_task);
}

void
conns_close_session(struct session *session, struct conn *except)
{
    struct conn *c;

    TAILQ_FOREACH(c, &conns.list, link)
        if (c->session == session && c != except)
            conn_start_end(c);
}

/* ---- output ---------------------------------------------------------------------------- */

static struct out_frame *
new_out(struct conn *c)
{
    struct out_frame *f = TAILQ_FIRST(&c->spare);

    if (f) {
        TAILQ_REMOVE(&c->spare, f, link);
        c->nr_spare--;
    } else {
        f = malloc(sizeof(*f));
    }
    if (!f) {
        log_error("connection closed: out of memory peer=%s", c->peer_text);
        conn_start_end(c);
    }
    return f;
}

static void
queue_out(struct conn *c, struct out_frame *f)
{
    for (unsigned i = 0; i < f->nr_iov; i++)
        c->out_bytes += f->iov[i].iov_len;
    TAILQ_INSERT_TAIL(&c->out, f, link);
    c->nr_out++;
    stream_kick(&c->stream);
}

int
conn_send_memory(struct conn *c, void *memory, size_t bytes)
{
    struct out_frame *f = c->closing ? NULL : new_out(c);

    if (!f) {
        free(memory);
        return -ENOMEM;
    }
    f->rq = NULL;
    f->memory = memory;
    f->iov[0] = (struct iovec){memory, bytes};
    f->nr_iov = 1;
    queue_out(c, f);
    return 0;
}

void
conn_send_request(struct conn *c, struct request *rq, const void *head, size_t head_bytes,
                  const struct iovec *iov, unsigned nr_iov,
                  void (*sent)(struct request *rq))
{
    struct out_frame *f = c->closing ? NULL : new_out(c);

    THIN_ASSERT(nr_iov <= CONN_PIECES);
    if (!f) {
        sent(rq);
        return;
    }
    f->rq = rq;
    f->sent = sent;
    f->memory = NULL;
    f->iov[0] = (struct iovec){(void *)(uintptr_t)head, head_bytes};
    for (unsigned i = 0; i < nr_iov; i++)
        f->iov[1 + i] = iov[i];
    f->nr_iov = 1 + nr_iov;
    queue_out(c, f);
}

bool
conn_has_room(const struct conn *c)
{
    return c->out_bytes < OUT_ROOM;
}

static unsigned
on_output(struct stream *stream, struct iovec *iov, unsigned max)
{
    struct conn *c = container_of(stream, struct conn, stream);
    struct out_frame *f;
    unsigned nr = 0;

    if (c->closing)
        return 0;
    TAILQ_FOREACH(f, &c->out, link)
        for (unsigned i = 0; i < f->nr_iov; i++) {
            if (nr == max)
                return nr;
            if (f->iov[i].iov_len)
                iov[nr++] = f->iov[i];
        }
    if (nr == 0 && c->ending)
        conn_start_end(c);
    return nr;
}

static void
on_sent(struct stream *stream, size_t bytes)
{
    struct conn *c = container_of(stream, struct conn, stream);
    struct out_frame *f;
    bool was_full = conn_is_full(c);
    bool had_room = conn_has_room(c);

    c->out_bytes -= bytes;
    while ((f = TAILQ_FIRST(&c->out))) {
        bool all = true;

        for (unsigned i = 0; i < f->nr_iov; i++) {
            size_t n = min_u64(bytes, f->iov[i].iov_len);

            f->iov[i].iov_base = (char *)f->iov[i].iov_base + n;
            f->iov[i].iov_len -= n;
            bytes -= n;
            if (f->iov[i].iov_len) {
                all = false;
                break;
            }
        }
        if (!all)
            break;
        drop_out(c, f);
    }
    if (was_full && !conn_is_full(c))
        conn_resume(c);
    if (!had_room && conn_has_room(c) && c->session)
        requests_room(c->session, c);
}

void
conn_protocol_error(struct conn *c, int code, const struct thin_error *err)
{
    static struct thin_log_limit limit = {.period_ms = BROKEN_PERIOD_MS,
                                          .burst = BROKEN_LINES};
    unsigned dropped;

    if (c->closing || c->ending)
        return;
    if (thin_log_allowed(&limit, loop_now_ns(c->server->thin_loop) / NS_PER_MS, &dropped))
        log_warning("connection closed: %s peer=%s identity=%s not_told=%u",
                    thin_error_text(err, code), c->peer_text, c->peer.identity, dropped);
    hello_send_last_words(c, code, thin_error_text(err, code));
    c->ending = true;
    stream_want_read(&c->stream, false);
    stream_kick(&c->stream);
}

/* ---- life ------------------------------------------------------------------------------ */

static void
on_readable(struct stream *stream)
{
    conn_parse(container_of(stream, struct conn, stream), conns.recv);
}

static bool
on_owes(struct stream *stream)
{
    struct conn *c = container_of(stream, struct conn, stream);

    return !c->closing && conn_may_parse(c) && (c->receiving || c->kept_len);
}

static void
on_stream_ready(struct stream *stream)
{
    struct conn *c = container_of(stream, struct conn, stream);
    const char *identity = channel_identity(stream->channel);

    if (identity[0])
        auth_peer_cert(&c->peer, identity);
}

static void
on_broken(struct stream *stream, int code, const struct thin_error *err)
{
    struct conn *c = container_of(stream, struct conn, stream);

    if (code < 0 && code != -ECONNRESET && code != -EPIPE)
        log_notice("connection closed: %s peer=%s identity=%s",
                   thin_error_text(err, code), c->peer_text, c->peer.identity);
    conn_start_end(c);
}

static void
check_silence(struct thin_timer *timer)
{
    struct conn *c = container_of(timer, struct conn, silence);
    uint64_t now = loop_now_ns(c->server->thin_loop);

    /* While reading is paused the peer cannot be heard. */
    if (c->closing)
        return;
    if (!conn_may_parse(c))
        c->last_heard_ns = now;
    if (c->session && now - c->last_heard_ns > PROTO_KEEPALIVE_MS * NS_PER_MS) {
        log_notice("connection closed: nothing heard for %u ms peer=%s identity=%s",
                   PROTO_KEEPALIVE_MS, c->peer_text, c->peer.identity);
        conn_start_end(c);
        return;
    }
    if (loop_timer_set(c->server->thin_loop, timer, now + NS_PER_SEC * 5) < 0)
        conn_start_end(c);
}

static const struct stream_ops conn_stream_ops = {
    .ready = on_stream_ready,
    .readable = on_readable,
    .output = on_output,
    .sent = on_sent,
    .owes = on_owes,
    .broken = on_broken,
};

static bool
prepare(struct server *server)
{
    if (conns.ready)
        return true;
    TAILQ_INIT(&conns.list);
    conns.server = server;
    conns.recv = malloc(CONN_RECV_BYTES);
    conns.ready = conns.recv != NULL;
    return conns.ready;
}

void
conn_accept(struct server *server, int fd, bool local)
{
    struct conn *c = prepare(server) && !server->stopping ? calloc(1, sizeof(*c)) : NULL;
    struct socket_credentials cred;
    struct thin_error err;
    int r = -ENOMEM;

    if (c) {
        c->server = server;
        c->local = local;
        c->waiter.ready = conn_memory_ready;
        c->end_task.run = end_task;
        c->silence.fire = check_silence;
        c->last_heard_ns = loop_now_ns(server->thin_loop);
        TAILQ_INIT(&c->out);
        TAILQ_INIT(&c->spare);
        socket_peer_text(fd, c->peer_text, sizeof(c->peer_text));
        r = 0;
        if (local)
            r = socket_peer_credentials(fd, &cred);
        if (local && r == 0)
            auth_peer_local(&c->peer, cred.uid, cred.gid);
    }
    if (r == 0)
        r = stream_init(&c->stream, &conn_stream_ops, server->thin_loop, fd,
                        local ? NULL : server->tls, PROTO_HANDSHAKE_MS, &err);
    if (r < 0) {
        if (!server->stopping)
            log_warning("connection refused: %s", thin_strerror(r));
        free(c);
        close(fd);
        return;
    }
    c->counted_handshake = true;
    server->connections++;
    server->handshakes++;
    TAILQ_INSERT_TAIL(&conns.list, c, link);
    check_silence(&c->silence);
}

void
conn_joined(struct conn *c, struct session *session, bool control)
{
    c->session = session;
    if (c->counted_handshake) {
        c->counted_handshake = false;
        c->server->handshakes--;
        c->stream.handshake_until_ns = 0;
    }
    session_join(session, c, control);
}

static void
patience_over(struct thin_timer *timer)
{
    struct conn *c;

    (void)timer;
    TAILQ_FOREACH(c, &conns.list, link)
        conn_start_end(c);
}

void
conns_shutdown(struct server *server, void (*done)(void *arg), void *arg)
{
    struct conn *c;

    if (!prepare(server) || TAILQ_EMPTY(&conns.list)) {
        sessions_end_all(server, done, arg);
        return;
    }
    conns.shutdown_done = done;
    conns.shutdown_arg = arg;
    conns.patience.fire = patience_over;
    TAILQ_FOREACH(c, &conns.list, link)
        if (!c->session || c->session->in_flight == 0) {
            c->ending = true; /* what is queued still goes out */
            stream_want_read(&c->stream, false);
            stream_kick(&c->stream);
        }
    if (loop_timer_set(server->thin_loop, &conns.patience,
                       loop_now_ns(server->thin_loop) + SHUTDOWN_PATIENCE_NS) < 0)
        patience_over(&conns.patience);
}

/* A session's last request has ended while the server stops. */
void
conns_session_quiet(struct session *session)
{
    struct conn *c;

    if (!conns.shutdown_done)
        return;
    /* One that is being freed may have held the session's last reply: it has no stream. */
    TAILQ_FOREACH(c, &conns.list, link)
        if (c->session == session && !c->closing) {
            c->ending = true;
            stream_want_read(&c->stream, false);
            stream_kick(&c->stream);
        }
}

void
conns_fini(void)
{
    free(conns.recv);
    conns.recv = NULL;
    conns.ready = false;
}
