/* One NBD client: its socket, plain or TLS, drives a state machine of proto/nbd. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "client/nbd/bridge_private.h"
#include "core/base/log.h"

#define SEND_PIECES 128u

static void on_ready(evutil_socket_t fd, short what, void *arg);

/* ---- watching -------------------------------------------------------------------------- */

static void
watch_one(struct event *event, bool on)
{
    if (!event)
        return;
    if (on)
        event_add(event, NULL); /* only fails for want of memory; the time limits look */
    else
        event_del(event);
}

static void
update_watch(struct front *front)
{
    unsigned wants = front->channel ? channel_wants(front->channel) : 0;
    bool read = front->want_read, write = front->write_blocked;

    if (front->ended) {
        read = write = false;
    } else if (front->tls_shaking) {
        read = wants & CHANNEL_WANT_READ;
        write = wants & CHANNEL_WANT_WRITE;
    } else if (read && wants & CHANNEL_WANT_WRITE) {
        write = true; /* TLS may have to write before it can read */
    }
    watch_one(front->read_event, read);
    watch_one(front->write_event, write);
}

static void
free_watch(struct front *front)
{
    if (front->read_event)
        event_free(front->read_event);
    if (front->write_event)
        event_free(front->write_event);
    front->read_event = front->write_event = NULL;
}

static int
make_watch(struct front *front)
{
    int fd = channel_fd(front->channel);

    free_watch(front);
    front->read_event =
        event_new(front->bridge->base, fd, EV_READ | EV_PERSIST, on_ready, front);
    front->write_event =
        event_new(front->bridge->base, fd, EV_WRITE | EV_PERSIST, on_ready, front);
    return front->read_event && front->write_event ? 0 : -ENOMEM;
}

void
front_kick(struct front *front)
{
    if (!front->ended || front->dead)
        bridge_defer(front->kick_event);
}

/* ---- end ------------------------------------------------------------------------------- */

static void
front_free(struct front *front)
{
    struct bridge *bridge = front->bridge;

    nbd_conn_destroy(front->conn);
    event_free(front->kick_event);
    nbd_input_drop(&front->input);
    TAILQ_REMOVE(&bridge->fronts, front, link);
    bridge->nr_fronts--;
    log_debug("connection closed peer=%s", front->peer);
    free(front);
    bridge_front_gone(bridge);
}

void
front_end(struct front *front)
{
    if (front->ended)
        return;
    front->ended = true;
    if (front->is_hungry) {
        TAILQ_REMOVE(&front->bridge->hungry, front, hungry_link);
        front->is_hungry = false;
    }
    free_watch(front);
    channel_destroy(front->channel);
    front->channel = NULL;
    if (front->wants_open) { /* its answer is ours to give, and would never come */
        front->wants_open = false;
        nbd_export_opened(front->conn, -THIN_E_SHUTDOWN, NULL, NULL);
    }
    if (nbd_conn_close(front->conn)) {
        front->dead = true;
        front_kick(front);
    }
    /* Else `idle` comes when the last request has its answer. */
}

static void
broken(struct front *front, int code, const struct thin_error *err)
{
    if (code < 0)
        log_notice("connection lost: %s peer=%s", thin_error_text(err, code),
                   front->peer);
    front_end(front);
}

/* ---- ops of the machine ---------------------------------------------------------------- */

static int
op_get_buffer(void *arg, size_t len, struct nbd_buffer *ret)
{
    struct front *front = arg;
    struct bridge *bridge = front->bridge;
    struct payload *payload = NULL;
    int r = -THIN_E_WOULD_BLOCK;

    /* First come, first served: nobody passes those who wait. */
    if (front->is_fed || TAILQ_EMPTY(&bridge->hungry))
        r = payload_get(&bridge->payloads, len, &payload);
    if (r == -THIN_E_WOULD_BLOCK && !front->is_hungry) {
        front->is_hungry = true;
        if (front->is_fed)
            TAILQ_INSERT_HEAD(&bridge->hungry, front, hungry_link);
        else
            TAILQ_INSERT_TAIL(&bridge->hungry, front, hungry_link);
    }
    front->is_fed = false;
    if (r < 0)
        return r;
    *ret = (struct nbd_buffer){&payload->iov, 1, len, payload};
    return 0;
}

static void
op_put_buffer(void *arg, struct nbd_buffer *buffer)
{
    struct front *front = arg;

    payload_put(&front->bridge->payloads, buffer->owner);
    if (!TAILQ_EMPTY(&front->bridge->hungry))
        bridge_defer(front->bridge->memory_event);
}

static void
op_wake(void *arg)
{
    front_kick(arg);
}

static void
op_idle(void *arg)
{
    struct front *front = arg;

    front->dead = true;
    front_kick(front);
}

static const struct nbd_ops machine_ops = {
    .list = export_list,
    .open = export_open,
    .contexts = export_contexts,
    .close_export = export_close,
    .get_buffer = op_get_buffer,
    .put_buffer = op_put_buffer,
    .submit = job_submit,
    .wake = op_wake,
    .idle = op_idle,
};

void
front_volume_opened(struct front *front, int code)
{
    front->wants_open = false;
    if (code == 0)
        export_answer(front);
    else
        nbd_export_opened(front->conn, code, NULL, "the volume cannot be opened again");
    front_kick(front);
}

/* ---- bytes in -------------------------------------------------------------------------- */

struct source {
    struct front *front;
    struct thin_error *err;
};

static ssize_t
read_some(void *arg, void *place, size_t len)
{
    struct source *source = arg;

    return channel_read(source->front->channel, place, len, source->err);
}

/* 0, or what ended the connection: -ENOTCONN for the peer's orderly end. */
static int
take_input(struct front *front, struct thin_error *err)
{
    struct source source = {front, err};
    size_t total = 0;

    while (nbd_input_give(&front->input) && nbd_input_wants(&front->input)) {
        ssize_t got;

        if (total >= BRIDGE_TURN_BYTES) {
            front_kick(front);
            break;
        }
        got = nbd_input_read(&front->input, front->bridge->receive, BRIDGE_RECEIVE_BYTES,
                             read_some, &source);
        if (got == -EAGAIN)
            break;
        if (got == -ENOMEM)
            return thin_fail_code(err, -ENOMEM, "receive");
        if (got <= 0)
            return got == 0 ? -ENOTCONN : (int)got;
        total += (size_t)got;
        front->progress_ms = bridge_now_ms();
    }
    front->want_read = nbd_input_wants(&front->input);
    return 0;
}

/* ---- bytes out ------------------------------------------------------------------------- */

static int
give_output(struct front *front, struct thin_error *err)
{
    size_t total = 0;

    front->write_blocked = false;
    for (;;) {
        struct iovec iov[SEND_PIECES];
        unsigned nr = nbd_conn_output(front->conn, iov, SEND_PIECES);
        ssize_t sent;

        if (nr == 0)
            return 0;
        if (total >= BRIDGE_TURN_BYTES) {
            front_kick(front);
            return 0;
        }
        sent = channel_writev(front->channel, iov, nr, err);
        if (sent == -EAGAIN) {
            front->write_blocked = true;
            return 0;
        }
        if (sent < 0)
            return (int)sent;
        nbd_conn_sent(front->conn, (size_t)sent);
        total += (size_t)sent;
        front->progress_ms = bridge_now_ms();
    }
}

/* ---- TLS ------------------------------------------------------------------------------- */

/* All plain output is sent: the socket goes on as TLS. */
static int
begin_tls(struct front *front, struct thin_error *err)
{
    int fd = fcntl(channel_fd(front->channel), F_DUPFD_CLOEXEC, 0);
    struct channel *channel;
    int r;

    if (fd < 0)
        return thin_fail_code(err, -errno, "start TLS");
    r = channel_tls_start(front->bridge->tls, fd, NULL, &channel, err);
    if (r < 0) {
        close(fd);
        return r;
    }
    free_watch(front);
    channel_destroy(front->channel);
    front->channel = channel;
    front->tls_shaking = true;
    front->write_blocked = false;
    return make_watch(front);
}

/* 1: done. 0: not yet. Negative: failed. */
static int
shake(struct front *front, struct thin_error *err)
{
    int r = channel_handshake(front->channel, err);

    if (r == -EAGAIN)
        return 0;
    if (r < 0)
        return r;
    front->tls_shaking = false;
    nbd_conn_tls_started(front->conn);
    log_debug("TLS runs peer=%s identity=%s", front->peer,
              channel_identity(front->channel));
    return 1;
}

/* ---- a turn ---------------------------------------------------------------------------- */

/* 0, or what ended the connection. */
static int
turn(struct front *front, struct thin_error *err)
{
    int r;

    if (front->tls_shaking) {
        r = shake(front, err);
        if (r <= 0)
            return r;
    }
    r = take_input(front, err);
    if (r == 0)
        r = give_output(front, err);
    /* Sending may have given room for input that was waiting. */
    if (r == 0 && !front->want_read && nbd_input_takes(&front->input) &&
        !front->write_blocked)
        front_kick(front);
    if (r == 0 && nbd_conn_phase(front->conn) == NBD_PHASE_WANT_TLS &&
        !nbd_conn_has_output(front->conn)) {
        r = begin_tls(front, err);
        if (r == 0)
            front_kick(front);
    }
    return r;
}

static void
run(struct front *front)
{
    struct bridge *bridge = front->bridge;
    struct thin_error err;
    int r;

    if (front->dead) {
        front_free(front);
        return;
    }
    if (front->ended)
        return;
    thin_error_init(&err);
    /* What this turn asks of the server goes out together. */
    thin_client_cork(bridge->client);
    r = turn(front, &err);
    thin_client_uncork(bridge->client);
    if (r < 0) {
        broken(front, r == -ENOTCONN ? 0 : r, &err);
        return;
    }
    if (nbd_conn_phase(front->conn) == NBD_PHASE_FINISHED ||
        (bridge->stopping && nbd_conn_is_quiet(front->conn))) {
        if (nbd_conn_why(front->conn))
            log_notice("connection ended: %s peer=%s", nbd_conn_why(front->conn),
                       front->peer);
        front_end(front);
        return;
    }
    update_watch(front);
}

static void
on_ready(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    run(arg);
}

void
front_watch(struct front *front, uint64_t now_ms)
{
    bool shaking = front->tls_shaking || nbd_conn_in_handshake(front->conn);
    bool owes = front->write_blocked || nbd_conn_mid_request(front->conn);

    if (front->ended)
        return;
    /* A front that waits for us (memory, the volume) is not to blame. */
    if (shaking && !front->wants_open && now_ms - front->began_ms > BRIDGE_HANDSHAKE_MS) {
        log_notice("connection closed: the handshake took too long peer=%s", front->peer);
        front_end(front);
    } else if (owes && !front->is_hungry && !shaking &&
               now_ms - front->progress_ms > BRIDGE_STALL_MS) {
        log_notice("connection closed: the peer hangs peer=%s", front->peer);
        front_end(front);
    }
}

/* ---- accept ---------------------------------------------------------------------------- */

static int
set_up(struct front *front, bool tcp, struct thin_error *err)
{
    struct nbd_config config = {
        .ops = &machine_ops,
        .arg = front,
        /* Who set TLS up means it for the network; a local socket has its file mode. */
        .tls = front->bridge->tls && tcp ? NBD_TLS_REQUIRED : NBD_TLS_OFF,
        .request_extra_bytes = sizeof(struct job),
    };
    int r;

    front->kick_event = event_new(front->bridge->base, -1, 0, on_ready, front);
    if (!front->kick_event || make_watch(front) < 0)
        return -ENOMEM;
    r = nbd_conn_create(&config, &front->conn, err);
    front->input.conn = front->conn;
    return r;
}

void
front_accept(struct bridge *bridge, int fd, bool tcp)
{
    struct front *front = calloc(1, sizeof(*front));
    struct thin_error err;
    int r = front ? channel_plain_create(fd, &front->channel) : -ENOMEM;

    thin_error_init(&err);
    if (r < 0) {
        close(fd);
        free(front);
        log_warning("connection refused: %s", thin_strerror(r));
        return;
    }
    front->bridge = bridge;
    front->began_ms = front->progress_ms = bridge_now_ms();
    socket_peer_text(fd, front->peer, sizeof(front->peer));
    r = set_up(front, tcp, &err);
    if (r < 0) {
        log_warning("connection refused: %s peer=%s", thin_error_text(&err, r),
                    front->peer);
        free_watch(front);
        channel_destroy(front->channel);
        if (front->kick_event)
            event_free(front->kick_event);
        free(front);
        return;
    }
    TAILQ_INSERT_TAIL(&bridge->fronts, front, link);
    bridge->nr_fronts++;
    log_debug("connection accepted peer=%s", front->peer);
    front_kick(front); /* the greeting */
}
