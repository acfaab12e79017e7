#include "server/listener.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "proto/limits.h"
#include "server/conn.h"
#include "server/nbd_face.h"

#define ACCEPT_AT_ONCE 64 /* connections taken in one turn */
#define PAUSE_NS       (100ull * NS_PER_MS)

struct listener_socket {
    struct thin_watch watch;
    struct listener *listener;
};

struct listener {
    struct server *server;
    enum listener_face face;
    struct socket_address address;
    struct listener_socket sockets[SOCKET_ADDRESSES_MAX];
    unsigned nr_sockets;
    bool activated; /* the service manager's: it keeps the file */
    struct thin_timer pause;
    char text[SOCKET_TEXT_MAX + 16];
};

static void
set_accepting(struct listener *l, bool on)
{
    for (unsigned i = 0; i < l->nr_sockets; i++)
        if (loop_watch_set(l->server->thin_loop, &l->sockets[i].watch,
                           on ? THIN_WATCH_READ : 0) < 0)
            log_error("cannot watch a listening socket address=%s", l->text);
}

static void
pause_over(struct thin_timer *timer)
{
    set_accepting(container_of(timer, struct listener, pause), true);
}

static void
pause_accepting(struct listener *l, const char *why)
{
    static struct thin_log_limit limit = {.period_ms = 10000, .burst = 1};
    uint64_t now = loop_now_ns(l->server->thin_loop);
    unsigned dropped;

    if (thin_log_allowed(&limit, now / NS_PER_MS, &dropped))
        log_warning("accepting connections pauses: %s address=%s", why, l->text);
    set_accepting(l, false);
    if (loop_timer_set(l->server->thin_loop, &l->pause, now + PAUSE_NS) < 0)
        set_accepting(l, true);
}

static void
accepted(struct listener *l, int fd)
{
    struct server *s = l->server;
    bool local = l->address.kind == SOCKET_UNIX;

    if (l->face == LISTEN_NBD)
        nbd_face_accept(s, fd, local);
    else
        conn_accept(s, fd, local);
}

static void
on_ready(struct thin_watch *watch, unsigned events)
{
    struct listener_socket *ls = container_of(watch, struct listener_socket, watch);
    struct listener *l = ls->listener;

    (void)events;
    for (int i = 0; i < ACCEPT_AT_ONCE; i++) {
        int fd, r;

        if (l->server->connections >= SERVER_CONNECTIONS_MAX ||
            l->server->handshakes >= SERVER_HANDSHAKES_MAX) {
            pause_accepting(l, "too many connections");
            return;
        }
        r = socket_accept(watch->fd, &fd);
        if (r == -EAGAIN)
            return;
        if (r < 0) {
            pause_accepting(l, thin_strerror(r));
            return;
        }
        accepted(l, fd);
    }
}

/* A listening socket that the service manager passed for this very address. */
static int
find_activated(const struct socket_address *address)
{
    int nr = sd_listen_fds(0);

    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + nr; fd++) {
        if (address->kind == SOCKET_UNIX &&
            sd_is_socket_unix(fd, SOCK_STREAM, 1, address->path, 0) > 0)
            return fd;
        if (address->kind == SOCKET_TCP &&
            sd_is_socket_inet(fd, AF_UNSPEC, SOCK_STREAM, 1, address->port) > 0)
            return fd;
    }
    return -1;
}

int
listener_open(struct server *server, enum listener_face face,
              const struct socket_address *address, struct listener **ret,
              struct thin_error *err)
{
    struct listener *l = calloc(1, sizeof(*l));
    struct socket_listen_params params = {
        .mode = 0660, .set_group = true, .group = getegid()};
    int fds[SOCKET_ADDRESSES_MAX];
    char text[SOCKET_TEXT_MAX];
    int r = 0, fd;

    if (!l)
        return thin_fail_code(err, -ENOMEM, "listen");
    l->server = server;
    l->face = face;
    l->address = *address;
    l->pause.fire = pause_over;
    snprintf(l->text, sizeof(l->text), "%s %s", face == LISTEN_NBD ? "nbd" : "thin",
             socket_address_text(address, text, sizeof(text)));
    fd = find_activated(address);
    if (fd >= 0) {
        fds[0] = fd;
        l->nr_sockets = 1;
        l->activated = true;
        r = socket_prepare(fd);
    } else {
        r = socket_listen(address, &params, fds, &l->nr_sockets, err);
    }
    for (unsigned i = 0; r == 0 && i < l->nr_sockets; i++) {
        l->sockets[i].listener = l;
        l->sockets[i].watch.fd = fds[i];
        l->sockets[i].watch.ready = on_ready;
    }
    if (r < 0) {
        bool activated = l->activated;

        l->nr_sockets = 0;
        listener_close(l);
        return activated ? thin_fail_code(err, r, "listen on %s", text) : r;
    }
    if (l->address.kind == SOCKET_TCP && l->address.port == 0) {
        l->address.port = socket_local_port(fds[0]); /* the system chose one */
        snprintf(l->text, sizeof(l->text), "%s %s", face == LISTEN_NBD ? "nbd" : "thin",
                 socket_address_text(&l->address, text, sizeof(text)));
    }
    set_accepting(l, true);
    log_notice("listening address=%s", l->text);
    *ret = l;
    return 0;
}

void
listener_close(struct listener *l)
{
    if (!l)
        return;
    loop_timer_cancel(l->server->thin_loop, &l->pause);
    for (unsigned i = 0; i < l->nr_sockets; i++) {
        loop_watch_cancel(l->server->thin_loop, &l->sockets[i].watch);
        close(l->sockets[i].watch.fd);
    }
    if (l->nr_sockets && l->address.kind == SOCKET_UNIX && !l->activated)
        unlink(l->address.path);
    free(l);
}

const char *
listener_text(const struct listener *l)
{
    return l->text;
}
