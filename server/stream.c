#include "server/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "core/base/cleanup.h"

#define STALL_CHECK_NS (5 * NS_PER_SEC)

static void
update_watch(struct stream *s)
{
    unsigned wanted = 0;

    if (s->is_broken)
        wanted = 0;
    else if (s->shaking)
        wanted = channel_wants(s->channel);
    else
        /* Never for reading what nobody may take now: that would spin. TLS may have to
           write before it can read. */
        wanted = (s->want_read
                      ? THIN_WATCH_READ | (channel_wants(s->channel) & THIN_WATCH_WRITE)
                      : 0) |
                 (s->write_blocked ? THIN_WATCH_WRITE : 0);
    if (loop_watch_set(s->loop, &s->watch, wanted) < 0 && !s->is_broken) {
        s->is_broken = true;
        s->broken_code = thin_fail_code(&s->err, -ENOMEM, "watch a connection");
        stream_kick(s);
    }
}

static void
set_broken(struct stream *s, int code)
{
    if (s->is_broken)
        return;
    s->is_broken = true;
    s->broken_code = code;
    if (code == 0)
        thin_error_init(&s->err);
    update_watch(s);
    stream_kick(s);
}

static void
note_progress(struct stream *s)
{
    s->last_progress_ns = loop_now_ns(s->loop);
}

ssize_t
stream_read(struct stream *s, void *bytes, size_t len_bytes)
{
    ssize_t got;

    if (s->is_broken)
        return -ENOTCONN;
    if (s->drained) {
        s->more_to_read = false;
        return -EAGAIN;
    }
    got = channel_read(s->channel, bytes, len_bytes, &s->err);
    if (got > 0) {
        note_progress(s);
        s->more_to_read = (size_t)got == len_bytes;
        /* Spares the call that would only say so; the descriptor tells of what follows. */
        s->drained = !s->more_to_read && !channel_pending(s->channel);
        return got;
    }
    if (got == -EAGAIN) {
        s->more_to_read = false;
        return got;
    }
    set_broken(s, (int)got);
    return -ENOTCONN;
}

/* Sends until nothing is left, the peer takes no more, or others must have their turn. */
static void
flush(struct stream *s)
{
    struct iovec iov[STREAM_IOV_MAX];
    size_t total = 0;

    while (!s->is_broken && total < STREAM_BYTES_A_TURN) {
        unsigned nr = s->ops->output(s, iov, STREAM_IOV_MAX);
        ssize_t sent;

        if (nr == 0) {
            s->write_blocked = false;
            break;
        }
        sent = channel_writev(s->channel, iov, nr, &s->err);
        if (sent == -EAGAIN) {
            s->write_blocked = true;
            break;
        }
        if (sent < 0) {
            set_broken(s, (int)sent);
            return;
        }
        note_progress(s);
        total += (size_t)sent;
        s->ops->sent(s, (size_t)sent);
    }
    if (total >= STREAM_BYTES_A_TURN)
        stream_kick(s);
    update_watch(s);
}

static void
shake(struct stream *s)
{
    int r = channel_handshake(s->channel, &s->err);

    if (r == -EAGAIN) {
        update_watch(s);
        return;
    }
    if (r < 0) {
        set_broken(s, r);
        return;
    }
    s->shaking = false;
    s->drained = false;
    s->more_to_read = true; /* bytes may have come with the last message */
    s->ops->ready(s);
    if (!s->is_broken)
        stream_kick(s);
}

static void
run_task(struct thin_task *task)
{
    struct stream *s = container_of(task, struct stream, task);

    if (s->is_broken) {
        s->ops->broken(s, s->broken_code, &s->err);
        return;
    }
    if (s->shaking) {
        shake(s);
        return;
    }
    if (s->want_read && (s->more_to_read || channel_pending(s->channel)))
        s->ops->readable(s);
    if (!s->is_broken && !s->shaking)
        flush(s);
    /* What is decrypted already makes no descriptor ready. */
    if (!s->is_broken && !s->shaking && s->want_read &&
        (s->more_to_read || channel_pending(s->channel)))
        stream_kick(s);
}

static void
on_ready(struct thin_watch *watch, unsigned events)
{
    struct stream *s = container_of(watch, struct stream, watch);

    s->drained = false;
    if (s->is_broken)
        return;
    if (s->shaking) {
        shake(s);
        return;
    }
    if (s->want_read && (events & THIN_WATCH_READ || channel_wants(s->channel)))
        s->ops->readable(s);
    /* Output of this turn goes out together, from the task. */
    if (s->write_blocked || s->more_to_read)
        stream_kick(s);
}

static void
check_stall(struct thin_timer *timer)
{
    struct stream *s = container_of(timer, struct stream, stall);
    uint64_t now = loop_now_ns(s->loop);
    uint64_t idle_ms = (now - s->last_progress_ns) / NS_PER_MS;

    if (s->is_broken)
        return;
    if (s->handshake_until_ns && now >= s->handshake_until_ns) {
        set_broken(s,
                   thin_fail(&s->err, -THIN_E_TIMED_OUT, "the handshake took too long"));
        return;
    }
    if (idle_ms >= STREAM_STALL_MS && (s->write_blocked || s->ops->owes(s))) {
        set_broken(s,
                   thin_fail(&s->err, -THIN_E_TIMED_OUT, "the peer hangs: %s",
                             s->write_blocked ? "it takes no bytes" : "it owes bytes"));
        return;
    }
    if (loop_timer_set(s->loop, &s->stall, now + STALL_CHECK_NS) < 0)
        set_broken(s, -ENOMEM);
}

int
stream_init(struct stream *s, const struct stream_ops *ops, struct thin_loop *loop,
            int fd, struct channel_tls *tls, unsigned handshake_ms,
            struct thin_error *err)
{
    uint64_t now = loop_now_ns(loop);
    int r = tls ? channel_tls_start(tls, fd, NULL, &s->channel, err)
                : channel_plain_create(fd, &s->channel);

    if (r < 0)
        return r;
    s->ops = ops;
    s->loop = loop;
    s->shaking = tls != NULL;
    s->watch.fd = fd;
    s->watch.ready = on_ready;
    s->task.run = run_task;
    s->stall.fire = check_stall;
    s->last_progress_ns = now;
    s->handshake_until_ns = now + handshake_ms * NS_PER_MS;
    s->want_read = true;
    thin_error_init(&s->err);
    if (loop_timer_set(loop, &s->stall, now + STALL_CHECK_NS) < 0)
        set_broken(s, -ENOMEM);
    if (!tls)
        ops->ready(s);
    update_watch(s);
    stream_kick(s);
    return 0;
}

int
stream_start_tls(struct stream *s, struct channel_tls *tls, unsigned handshake_ms,
                 struct thin_error *err)
{
    int fd = fcntl(channel_fd(s->channel), F_DUPFD_CLOEXEC, 0);
    struct channel *channel;
    int r;

    if (fd < 0)
        return thin_fail_code(err, -errno, "start TLS");
    r = channel_tls_start(tls, fd, NULL, &channel, err);
    if (r < 0) {
        close(fd);
        return r;
    }
    loop_watch_cancel(s->loop, &s->watch);
    channel_destroy(s->channel);
    s->channel = channel;
    s->watch.fd = fd;
    s->shaking = true;
    s->write_blocked = false;
    s->handshake_until_ns = loop_now_ns(s->loop) + handshake_ms * NS_PER_MS;
    stream_kick(s);
    return 0;
}

void
stream_fini(struct stream *s)
{
    if (!s->loop)
        return;
    loop_defer_cancel(s->loop, &s->task);
    loop_timer_cancel(s->loop, &s->stall);
    loop_watch_cancel(s->loop, &s->watch);
    channel_destroy(s->channel);
    s->channel = NULL;
    s->loop = NULL;
}

void
stream_want_read(struct stream *s, bool on)
{
    if (s->want_read == on)
        return;
    s->want_read = on;
    if (on)
        stream_kick(s); /* bytes may wait already */
    if (!s->is_broken)
        update_watch(s);
}

void
stream_kick(struct stream *s)
{
    loop_defer(s->loop, &s->task);
}
