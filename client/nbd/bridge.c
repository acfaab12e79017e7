#include "client/nbd/bridge_private.h"

#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"
#include "proto/limits.h"

uint64_t
bridge_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void
bridge_defer(struct event *event)
{
    static const struct timeval at_once;

    /* An event made active would run before the sockets are looked at again: one front
       could keep the loop. A timer runs after them. */
    if (event_add(event, &at_once) < 0)
        event_active(event, EV_TIMEOUT, 0);
}

static void
check_ended(struct bridge *bridge)
{
    if (bridge->stopping && bridge->nr_fronts == 0)
        event_base_loopbreak(bridge->base);
}

/* ---- the volume ------------------------------------------------------------------------ */

static struct volume_use *
new_use(struct bridge *bridge, struct thin_client_volume *volume)
{
    struct volume_use *use = calloc(1, sizeof(*use));

    if (!use)
        return NULL;
    use->bridge = bridge;
    use->volume = volume;
    use->users = 1;
    return use;
}

void
bridge_drop_volume(struct volume_use *use)
{
    if (--use->users > 0)
        return;
    /* Nothing runs on it any more: the last front gave it back. That it is not closed
       in order is made good by the end of the session. */
    if (!use->bridge->client_ends)
        (void)thin_client_close(use->volume, NULL, NULL);
    free(use);
}

static unsigned
open_flags(const struct bridge *bridge)
{
    return bridge->options->read_only ? THIN_CLIENT_OPEN_READ_ONLY : 0;
}

static void
tell_waiting_fronts(struct bridge *bridge, int code)
{
    struct front *front, *next;

    for (front = TAILQ_FIRST(&bridge->fronts); front; front = next) {
        next = TAILQ_NEXT(front, link);
        if (front->wants_open)
            front_volume_opened(front, code);
    }
}

static void
opened_anew(void *arg, int result, struct thin_client_volume *volume)
{
    struct bridge *bridge = arg;
    struct volume_use *use;

    bridge->opening = false;
    if (result == 0) {
        use = new_use(bridge, volume);
        if (use) {
            bridge_drop_volume(bridge->current);
            bridge->current = use;
            log_notice("the volume is open again volume=%s", bridge->options->volume);
        } else {
            (void)thin_client_close(volume, NULL, NULL);
            result = -ENOMEM;
        }
    }
    if (result < 0)
        log_warning("cannot open the volume again: %s volume=%s", thin_strerror(result),
                    bridge->options->volume);
    tell_waiting_fronts(bridge, result);
}

/*
 * A volume that lost unflushed writes, or was taken over, fails all requests: those who
 * had it open must learn it. A new NBD client knows nothing of that and gets it anew.
 */
struct volume_use *
bridge_use_volume(struct bridge *bridge)
{
    if (thin_client_volume_state(bridge->current->volume) == 0) {
        bridge->current->users++;
        return bridge->current;
    }
    if (!bridge->opening)
        bridge->opening = thin_client_open(bridge->client, bridge->options->volume,
                                           open_flags(bridge), opened_anew, bridge) == 0;
    if (bridge->opening)
        return NULL;
    /* It could not even be asked for: the requests will tell why. */
    bridge->current->users++;
    return bridge->current;
}

static void
on_client_event(void *arg, const struct thin_client_event *event)
{
    struct bridge *bridge = arg;
    struct front *front;

    switch (event->kind) {
    case THIN_CLIENT_EVENT_CONNECTED:
        log_notice("connected again server=%s", bridge->options->server);
        break;
    case THIN_CLIENT_EVENT_DISCONNECTED:
        log_warning("connection to the server is lost, requests wait: %s", event->text);
        break;
    case THIN_CLIENT_EVENT_RESIZED:
        TAILQ_FOREACH(front, &bridge->fronts, link)
            if (front->use && front->use->volume == event->volume && !front->ended)
                nbd_conn_set_size(front->conn, event->size);
        log_notice("the volume has a new size bytes=%llu",
                   (unsigned long long)event->size);
        break;
    case THIN_CLIENT_EVENT_FENCED:
    case THIN_CLIENT_EVENT_ROLLED_BACK:
        log_error("the volume is lost to those who have it open: %s",
                  *event->text ? event->text : event->name);
        break;
    case THIN_CLIENT_EVENT_OTHER:
        break;
    }
}

static void
on_client_ready(evutil_socket_t fd, short what, void *arg)
{
    struct bridge *bridge = arg;

    (void)fd;
    (void)what;
    thin_client_ready(bridge->client);
}

static int
set_up_client(struct bridge *bridge, struct thin_error *err)
{
    const struct bridge_options *o = bridge->options;
    int r;

    bridge->client = thin_client_create();
    if (!bridge->client)
        return thin_fail_code(err, -errno, "make a client");
    r = thin_client_set_server(bridge->client, o->server);
    if (r == 0 && o->cert)
        r = thin_client_set_tls(bridge->client, o->cert, o->key, o->ca, NULL);
    if (r < 0)
        return thin_fail(err, r, "%s", thin_client_error(bridge->client));
    thin_client_set_connect_timeout_ms(bridge->client, (unsigned)o->connect_timeout_ms);
    thin_client_set_retry_first(bridge->client, o->wait);
    thin_client_set_event_callback(bridge->client, on_client_event, bridge);
    return 0;
}

/* Connects and opens, waiting: nobody is served before that. */
static int
open_volume(struct bridge *bridge, struct thin_error *err)
{
    struct thin_client_volume *volume;
    int r = set_up_client(bridge, err);

    if (r < 0)
        return r;
    r = thin_client_connect_wait(bridge->client);
    if (r < 0)
        return thin_fail(err, r, "cannot reach the server at %s: %s",
                         bridge->options->server, thin_client_error(bridge->client));
    r = thin_client_open_wait(bridge->client, bridge->options->volume, open_flags(bridge),
                              &volume);
    if (r < 0)
        return thin_fail(err, r, "cannot open %s: %s", bridge->options->volume,
                         thin_client_error(bridge->client));
    bridge->current = new_use(bridge, volume);
    return bridge->current ? 0 : thin_fail_code(err, -ENOMEM, "open the volume");
}

/* ---- listening ------------------------------------------------------------------------- */

static void
set_accepting(struct bridge *bridge, bool on)
{
    bridge->accepting = on;
    for (unsigned i = 0; i < bridge->nr_sockets; i++)
        if (on)
            event_add(bridge->sockets[i].event, NULL);
        else
            event_del(bridge->sockets[i].event);
}

static void
on_listen_ready(evutil_socket_t fd, short what, void *arg)
{
    struct listening *l = arg;
    struct bridge *bridge = l->bridge;
    int client_fd, r;

    (void)what;
    if (bridge->nr_fronts >= BRIDGE_FRONTS_MAX) {
        set_accepting(bridge, false); /* goes on when one is gone */
        return;
    }
    r = socket_accept((int)fd, &client_fd);
    if (r == 0)
        front_accept(bridge, client_fd, l->tcp);
    else if (r != -EAGAIN) {
        log_warning("accepting connections pauses: %s", thin_strerror(r));
        set_accepting(bridge, false); /* the watch goes on */
    }
}

void
bridge_front_gone(struct bridge *bridge)
{
    if (!bridge->accepting && !bridge->stopping)
        set_accepting(bridge, true);
    check_ended(bridge);
}

/* True if only this machine can connect there. */
static bool
is_loopback(int fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    const struct sockaddr_in *in4 = (const void *)&addr;
    const struct sockaddr_in6 *in6 = (const void *)&addr;

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
        return false;
    if (addr.ss_family == AF_INET)
        return ntohl(in4->sin_addr.s_addr) >> 24 == 127;
    return addr.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

static int
add_socket(struct bridge *bridge, int fd, bool tcp)
{
    struct listening *l = &bridge->sockets[bridge->nr_sockets];

    *l = (struct listening){.bridge = bridge, .fd = fd, .tcp = tcp};
    l->event = event_new(bridge->base, fd, EV_READ | EV_PERSIST, on_listen_ready, l);
    if (!l->event) {
        close(fd);
        return -ENOMEM;
    }
    bridge->nr_sockets++;
    return 0;
}

static int
listen_on(struct bridge *bridge, const char *text, struct thin_error *err)
{
    struct socket_listen_params params = {.mode = 0600};
    struct socket_address address = {0};
    int fds[SOCKET_ADDRESSES_MAX];
    bool tcp, open_to_all = false;
    unsigned nr = 0;
    int r = socket_address_parse(text, NBD_PORT, &address, err);

    if (r == 0)
        r = socket_listen(&address, &params, fds, &nr, err);
    if (r < 0)
        return r;
    tcp = address.kind == SOCKET_TCP;
    if (!tcp)
        snprintf(bridge->unlink_paths[bridge->nr_unlink++], sizeof(address.path), "%s",
                 address.path);
    for (unsigned i = 0; i < nr; i++) {
        open_to_all |= tcp && !is_loopback(fds[i]);
        if (r == 0)
            r = add_socket(bridge, fds[i], tcp);
        else
            close(fds[i]);
    }
    if (r < 0)
        return thin_fail_code(err, r, "listen on %s", text);
    if (open_to_all && !bridge->tls && !bridge->options->plain)
        return thin_fail(err, -THIN_E_DENIED,
                         "%s can be reached by other machines: give --tls-cert, "
                         "--tls-key and --tls-ca, or allow everybody with --plain",
                         text);
    return 0;
}

static int
listen_all(struct bridge *bridge, struct thin_error *err)
{
    const struct bridge_options *o = bridge->options;
    struct channel_tls_params tls = {.cert = o->tls_cert,
                                     .key = o->tls_key,
                                     .ca = o->tls_ca,
                                     .server = true,
                                     .allow_tls12 = true};
    int r = o->tls_cert ? channel_tls_create(&tls, &bridge->tls, err) : 0;

    for (unsigned i = 0; r == 0 && i < o->nr_listen; i++)
        r = listen_on(bridge, o->listen[i], err);
    return r;
}

static void
close_sockets(struct bridge *bridge)
{
    for (unsigned i = 0; i < bridge->nr_sockets; i++) {
        event_free(bridge->sockets[i].event);
        close(bridge->sockets[i].fd);
    }
    bridge->nr_sockets = 0;
    for (unsigned i = 0; i < bridge->nr_unlink; i++)
        unlink(bridge->unlink_paths[i]);
    bridge->nr_unlink = 0;
}

/* ---- time and memory ------------------------------------------------------------------- */

static void
on_watch(evutil_socket_t fd, short what, void *arg)
{
    struct bridge *bridge = arg;
    struct front *front, *next;
    uint64_t now = bridge_now_ms();

    (void)fd;
    (void)what;
    for (front = TAILQ_FIRST(&bridge->fronts); front; front = next) {
        next = TAILQ_NEXT(front, link);
        front_watch(front, now);
    }
    if (!bridge->accepting && !bridge->stopping && bridge->nr_fronts < BRIDGE_FRONTS_MAX)
        set_accepting(bridge, true);
}

/* Payload memory came back: the oldest who waits asks again, then the next. */
static void
on_memory(evutil_socket_t fd, short what, void *arg)
{
    struct bridge *bridge = arg;
    struct front *front;

    (void)fd;
    (void)what;
    while ((front = TAILQ_FIRST(&bridge->hungry))) {
        TAILQ_REMOVE(&bridge->hungry, front, hungry_link);
        front->is_hungry = false;
        front->is_fed = true;
        nbd_conn_resume(front->conn);
        front->is_fed = false;
        if (front->is_hungry)
            break; /* still too little */
        front_kick(front);
    }
}

/* ---- the end --------------------------------------------------------------------------- */

static void
on_patience_over(evutil_socket_t fd, short what, void *arg)
{
    struct bridge *bridge = arg;

    (void)fd;
    (void)what;
    log_warning("requests in flight are given up requests=%u", bridge->outstanding);
    bridge->result = -THIN_E_TIMED_OUT;
    event_base_loopbreak(bridge->base);
}

static void
stop_front(struct front *front)
{
    if (front->ended)
        return;
    nbd_conn_shutdown(front->conn);
    front_kick(front);
}

/* New requests are refused, those in flight are answered. */
static void
on_signal(evutil_socket_t fd, short what, void *arg)
{
    struct timeval patience = {.tv_sec = BRIDGE_PATIENCE_MS / 1000};
    struct bridge *bridge = arg;
    struct front *front;

    (void)fd;
    (void)what;
    if (bridge->stopping)
        return;
    bridge->stopping = true;
    close_sockets(bridge);
    TAILQ_FOREACH(front, &bridge->fronts, link)
        stop_front(front);
    if (event_add(bridge->patience_event, &patience) < 0)
        event_base_loopbreak(bridge->base);
    check_ended(bridge);
}

static void
on_closed(void *arg, int result)
{
    (void)result; /* a server that is away forgets it with the session */
    event_base_loopbreak(arg);
}

/* Gives the volume back, if the server is there to take it. */
static void
close_volume(struct bridge *bridge)
{
    struct timeval patience = {.tv_sec = 1};

    if (!bridge->current)
        return;
    if (bridge->nr_fronts == 0 && thin_client_is_connected(bridge->client) &&
        bridge->client_event &&
        thin_client_close(bridge->current->volume, on_closed, bridge->base) == 0) {
        event_base_loopexit(bridge->base, &patience);
        event_base_dispatch(bridge->base);
    }
    if (bridge->current->users == 1) {
        free(bridge->current);
        bridge->current = NULL;
    }
}

static void
free_event(struct event **event)
{
    if (*event)
        event_free(*event);
    *event = NULL;
}

static void
tear_down(struct bridge *bridge)
{
    struct front *front, *next;

    bridge->stopping = true;
    close_sockets(bridge);
    if (bridge->base)
        close_volume(bridge);
    free_event(&bridge->client_event);
    for (front = TAILQ_FIRST(&bridge->fronts); front; front = next) {
        next = TAILQ_NEXT(front, link);
        front_end(front);
    }
    job_fail_refused(bridge, -THIN_E_SHUTDOWN);
    /* Every request that is left gets its answer here, and then its front is idle. */
    bridge->client_ends = true;
    thin_client_destroy(bridge->client);
    while (bridge->nr_fronts > 0 && event_base_loop(bridge->base, EVLOOP_ONCE) == 0)
        ;
    free(bridge->current);
    free_event(&bridge->watch_event);
    free_event(&bridge->memory_event);
    free_event(&bridge->patience_event);
    payload_pool_fini(&bridge->payloads);
    channel_tls_put(bridge->tls);
    free(bridge->receive);
}

/* ---- the run --------------------------------------------------------------------------- */

static int
set_up_loop(struct bridge *bridge, struct event *signals[2], struct thin_error *err)
{
    struct timeval watch = {.tv_sec = BRIDGE_WATCH_MS / 1000};
    struct event_base *base = bridge->base;

    bridge->receive = malloc(BRIDGE_RECEIVE_BYTES);
    bridge->client_event = event_new(base, thin_client_fd(bridge->client),
                                     EV_READ | EV_PERSIST, on_client_ready, bridge);
    bridge->watch_event = event_new(base, -1, EV_PERSIST, on_watch, bridge);
    bridge->memory_event = event_new(base, -1, 0, on_memory, bridge);
    bridge->patience_event = event_new(base, -1, 0, on_patience_over, bridge);
    signals[0] = evsignal_new(base, SIGTERM, on_signal, bridge);
    signals[1] = evsignal_new(base, SIGINT, on_signal, bridge);
    if (!bridge->receive || !bridge->client_event || !bridge->watch_event ||
        !bridge->memory_event || !bridge->patience_event || !signals[0] || !signals[1] ||
        event_add(bridge->client_event, NULL) < 0 ||
        event_add(bridge->watch_event, &watch) < 0 || event_add(signals[0], NULL) < 0 ||
        event_add(signals[1], NULL) < 0)
        return thin_fail_code(err, -ENOMEM, "set the loop up");
    return 0;
}

static void
tell_ready(struct bridge *bridge,
           void (*ready)(const char *const *addresses, unsigned nr))
{
    static char texts[BRIDGE_SOCKETS_MAX][SOCKET_TEXT_MAX];
    const char *addresses[BRIDGE_SOCKETS_MAX];

    for (unsigned i = 0; i < bridge->nr_sockets; i++)
        addresses[i] =
            socket_local_text(bridge->sockets[i].fd, texts[i], sizeof(texts[i]));
    ready(addresses, bridge->nr_sockets);
}

int
bridge_run(const struct bridge_options *options,
           void (*ready)(const char *const *addresses, unsigned nr),
           struct thin_error *err)
{
    struct bridge *bridge = calloc(1, sizeof(*bridge));
    struct event *signals[2] = {NULL, NULL};
    struct event_base *base;
    int r;

    if (!bridge)
        return thin_fail_code(err, -ENOMEM, "start");
    bridge->options = options;
    TAILQ_INIT(&bridge->fronts);
    TAILQ_INIT(&bridge->hungry);
    TAILQ_INIT(&bridge->refused);
    payload_pool_init(&bridge->payloads, BRIDGE_PAYLOAD_BYTES);
    base = bridge->base = event_base_new();
    r = base ? open_volume(bridge, err)
             : thin_fail_code(err, -ENOMEM, "make an event loop");
    if (r == 0)
        r = set_up_loop(bridge, signals, err);
    if (r == 0)
        r = listen_all(bridge, err);
    if (r == 0) {
        set_accepting(bridge, true);
        tell_ready(bridge, ready);
        event_base_dispatch(base);
        r = bridge->result;
        if (r < 0)
            thin_fail(err, r, "requests in flight were given up at the end");
    }
    tear_down(bridge);
    for (unsigned i = 0; i < 2; i++)
        free_event(&signals[i]);
    if (base)
        event_base_free(base);
    free(bridge);
    return r;
}
