/* NBD clients from accept to their end. */
#include "server/nbd_face.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "proto/limits.h"
#include "proto/socket.h"
#include "server/nbd_client.h"
#include "server/pools.h"

#define SHUTDOWN_PATIENCE_NS (5 * NS_PER_SEC)

TAILQ_HEAD(nbd_client_list, nbd_client);

/* All clients of the process's one server. Main loop only. */
static struct {
    struct nbd_client_list clients;
    bool ready;
    bool keeps_pools; /* while it shuts down: those of our own pools go on */
    uint64_t last_id;
    void (*shutdown_done)(void *arg);
    void *shutdown_arg;
    struct server *server;
    struct thin_timer patience;
} face;

bool
nbd_client_goes_on(const struct nbd_client *c)
{
    const struct server_pool *sp = NULL;

    if (!c->asker[0] || !face.keeps_pools)
        return false;
    while ((sp = pools_next(c->server->pools, sp)))
        if (strcmp(sp->stack_id, c->asker) == 0)
            return sp->state == POOLS_OPEN || sp->state == POOLS_CLOSING;
    return false;
}

/* Nobody whose end is awaited is left. */
static bool
all_gone(void)
{
    const struct nbd_client *c;

    TAILQ_FOREACH(c, &face.clients, link)
        if (!nbd_client_goes_on(c))
            return false;
    return true;
}

static void
free_client(struct nbd_client *c)
{
    struct server *server = c->server;

    if (c->attachment)
        attach_close(server->attachments, c->attachment);
    nbd_conn_destroy(c->conn);
    payload_cancel(server->payload, &c->waiter);
    nbd_input_drop(&c->input);
    TAILQ_REMOVE(&face.clients, c, link);
    server->connections--;
    free(c);
    if (face.shutdown_done && all_gone()) {
        void (*done)(void *) = face.shutdown_done;

        face.shutdown_done = NULL;
        loop_timer_cancel(server->thin_loop, &face.patience);
        done(face.shutdown_arg);
    }
}

static void
on_idle(void *arg)
{
    struct nbd_client *c = arg;

    loop_defer(c->server->thin_loop, &c->end_task);
}

/* The second half of the end, on a turn of its own: nobody is inside a callback of ours. */
static void
end_task(struct thin_task *task)
{
    struct nbd_client *c = container_of(task, struct nbd_client, end_task);

    stream_fini(&c->stream);
    if (nbd_conn_close(c->conn))
        free_client(c);
    /* Else `idle` comes when the last request has ended, and then this runs again. */
}

void
nbd_client_end(struct nbd_client *c)
{
    if (c->closing)
        return;
    c->closing = true;
    if (c->counted_handshake)
        c->server->handshakes--;
    c->counted_handshake = false;
    attach_drain(c->attachment);
    loop_defer(c->server->thin_loop, &c->end_task);
}

static const struct nbd_ops export_ops = {
    .list = nbd_client_list_exports,
    .open = nbd_client_open,
    .contexts = nbd_client_contexts,
    .close_export = nbd_client_close_export,
    .get_buffer = nbd_client_get_buffer,
    .put_buffer = nbd_client_put_buffer,
    .submit = nbd_client_submit,
    .wake = nbd_client_wake,
    .idle = on_idle,
};

static enum nbd_tls_policy
tls_policy(const struct server *server, bool local)
{
    switch (server->config.nbd_tls) {
    case CONFIG_NBD_TLS_OFF:
        return NBD_TLS_OFF;
    case CONFIG_NBD_TLS_ALLOWED:
        return NBD_TLS_ALLOWED;
    case CONFIG_NBD_TLS_REQUIRED:
        return NBD_TLS_REQUIRED;
    default:
        return local ? NBD_TLS_OFF : NBD_TLS_REQUIRED;
    }
}

static bool
prepare_face(struct server *server)
{
    if (face.ready)
        return true;
    TAILQ_INIT(&face.clients);
    face.server = server;
    face.ready = nbd_bytes_init() == 0;
    return face.ready;
}

void
nbd_face_accept(struct server *server, int fd, bool local)
{
    struct nbd_client *c = prepare_face(server) ? calloc(1, sizeof(*c)) : NULL;
    struct nbd_config config = {.ops = &export_ops,
                                .arg = c,
                                .tls = tls_policy(server, local),
                                .request_extra_bytes = sizeof(struct nbd_job)};
    struct socket_credentials cred;
    struct thin_error err;
    int r = -ENOMEM;

    if (c) {
        c->server = server;
        c->id = ++face.last_id;
        c->local = local;
        c->since_s = (uint64_t)time(NULL);
        c->waiter.ready = nbd_client_buffer_ready;
        c->end_task.run = end_task;
        socket_peer_text(fd, c->peer_text, sizeof(c->peer_text));
        if (local && socket_peer_credentials(fd, &cred) == 0)
            auth_peer_local(&c->peer, cred.uid, cred.gid);
        else
            /* Plain TCP, where configuration allows it: rules for `*` do not apply. */
            snprintf(c->peer.identity, sizeof(c->peer.identity), "%s", "");
        r = nbd_conn_create(&config, &c->conn, &err);
        c->input.conn = c->conn;
    }
    if (r == 0)
        r = stream_init(&c->stream, &nbd_client_stream_ops, server->thin_loop, fd, NULL,
                        PROTO_HANDSHAKE_MS, &err);
    if (r < 0) {
        log_warning("connection refused: %s", thin_strerror(r));
        if (c)
            nbd_conn_destroy(c->conn);
        free(c);
        close(fd);
        return;
    }
    c->counted_handshake = true;
    server->connections++;
    server->handshakes++;
    TAILQ_INSERT_TAIL(&face.clients, c, link);
    if (server->stopping)
        nbd_conn_shutdown(c->conn);
}

static void
patience_over(struct thin_timer *timer)
{
    struct nbd_client *c;

    (void)timer;
    TAILQ_FOREACH(c, &face.clients, link)
        if (!nbd_client_goes_on(c))
            nbd_client_end(c);
}

void
nbd_face_shutdown(struct server *server, bool pools_too, void (*done)(void *arg),
                  void *arg)
{
    struct nbd_client *c;
    bool ready = prepare_face(server);

    face.keeps_pools = !pools_too;
    if (!ready || all_gone()) {
        done(arg);
        return;
    }
    face.shutdown_done = done;
    face.shutdown_arg = arg;
    face.patience.fire = patience_over;
    TAILQ_FOREACH(c, &face.clients, link) {
        if (nbd_client_goes_on(c))
            continue;
        nbd_conn_shutdown(c->conn);
        if (nbd_conn_is_quiet(c->conn))
            nbd_client_end(c);
    }
    if (loop_timer_set(server->thin_loop, &face.patience,
                       loop_now_ns(server->thin_loop) + SHUTDOWN_PATIENCE_NS) < 0)
        patience_over(&face.patience);
}

void
nbd_face_drop_askers(const char *pool)
{
    struct nbd_client *c;

    if (!face.ready)
        return;
    TAILQ_FOREACH(c, &face.clients, link)
        if (c->asker[0] && strcmp(c->asked_pool, pool) == 0)
            nbd_client_end(c);
}

void
nbd_face_fini(void)
{
    nbd_bytes_fini();
    face.ready = false;
}

unsigned
nbd_face_list(struct server *server, struct nbd_face_info *infos, unsigned max)
{
    struct nbd_client *c;
    unsigned n = 0;

    if (!prepare_face(server))
        return 0;
    TAILQ_FOREACH(c, &face.clients, link) {
        if (n == max)
            break;
        infos[n].id = c->id;
        infos[n].since_s = c->since_s;
        snprintf(infos[n].identity, sizeof(infos[n].identity), "%s", c->peer.identity);
        snprintf(infos[n].peer, sizeof(infos[n].peer), "%s", c->peer_text);
        if (c->attachment) /* it may have been renamed since */
            snprintf(infos[n].volume, sizeof(infos[n].volume), "%s/%s",
                     attach_pool_name(c->attachment), volume_name(c->attachment->volume));
        else
            infos[n].volume[0] = '\0';
        n++;
    }
    return n;
}

bool
nbd_face_kick(struct server *server, uint64_t id)
{
    struct nbd_client *c;

    if (!prepare_face(server))
        return false;
    TAILQ_FOREACH(c, &face.clients, link)
        if (c->id == id) {
            nbd_client_end(c);
            return true;
        }
    return false;
}
