#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>

#include "client/lib/client_private.h"
#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/loop.h"

#define DEFAULT_SERVER "unix:/run/thinsrv/thinsrv.sock"

/* ---- words ------------------------------------------------------------------------- */

const char *
thin_client_strerror(int code)
{
    return thin_strerror(code);
}

int
thin_client_errno(int code)
{
    return thin_error_errno(code);
}

const char *
thin_client_version(void)
{
    return THIN_VERSION;
}

const char *
thin_client_error(const struct thin_client *client)
{
    return thin_error_text(&client->error, client->error.code);
}

/* ---- life -------------------------------------------------------------------------- */

static int
watch_timer(struct thin_client *client)
{
    struct epoll_event event = {.events = EPOLLIN};

    event.data.fd = client->timer_fd;
    return epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, client->timer_fd, &event);
}

struct thin_client *
thin_client_create(void)
{
    struct thin_client *client = calloc(1, sizeof(*client));
    uint64_t seed = 0;
    int saved;

    if (!client)
        return NULL;
    client->epoll_fd = client->timer_fd = client->fd = -1;
    TAILQ_INIT(&client->queue);
    TAILQ_INIT(&client->sending);
    TAILQ_INIT(&client->done);
    TAILQ_INIT(&client->spare);
    TAILQ_INIT(&client->volumes);
    client->connect_timeout_ms = CLIENT_CONNECT_MS;
    client->in_room = CLIENT_RECEIVE_BYTES;
    client->in = malloc(client->in_room);
    client->arena_memory = malloc(CLIENT_ARENA_BYTES);
    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    client->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    /* Only spreads attempts to reconnect; a bad seed costs nothing. */
    if (random_secret(&seed, sizeof(seed)) < 0)
        seed = (uint64_t)(uintptr_t)client;
    random_seed(&client->rng, seed);
    snprintf(client->name, sizeof(client->name), "%s", program_invocation_short_name);
    if (!client->in || !client->arena_memory || client->epoll_fd < 0 ||
        client->timer_fd < 0 || watch_timer(client) < 0 ||
        socket_address_parse(DEFAULT_SERVER, PROTO_PORT, &client->address, NULL) < 0) {
        saved = errno;
        thin_client_destroy(client);
        errno = saved;
        return NULL;
    }
    return client;
}

/*
 * Tells the server that we leave, so that it need not keep the session for its lease.
 * Only between frames, and only if it goes out without waiting.
 */
static void
say_goodbye(struct thin_client *client)
{
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__Bye bye = THIN__BYE__INIT;

    if (client->state != CLIENT_READY || client->broken || client->outstanding > 0 ||
        client_send(client) < 0 || !TAILQ_EMPTY(&client->sending))
        return;
    message.body_case = THIN__REQUEST__BODY_BYE;
    message.bye = &bye;
    if (client_send_control(client, &message) == 0)
        (void)client_send(client); /* nobody is left to be told that it failed */
}

/* Every request gets -CANCELLED, wherever it is. */
static void
cancel_all(struct thin_client *client)
{
    client_requests_lost(client);
    client_requests_new_session(client);
    client_requests_fail(client, -THIN_E_CANCELLED);
    client_deliver(client);
}

void
thin_client_destroy(struct thin_client *client)
{
    struct thin_client_volume *volume;
    struct client_request *request;

    if (!client)
        return;
    THIN_ASSERT(!client->in_ready);
    say_goodbye(client);
    client_close_connection(client);
    client->state = CLIENT_ENDED; /* callbacks cannot start anything any more */
    client->in_ready = true;
    if (client->connected) {
        client->connect_done_due = true;
        client->connect_result = -THIN_E_CANCELLED;
    }
    cancel_all(client);
    while ((volume = TAILQ_FIRST(&client->volumes)))
        volume_free(volume);
    while ((request = TAILQ_FIRST(&client->spare))) {
        TAILQ_REMOVE(&client->spare, request, link);
        free(request);
    }
    channel_tls_put(client->tls);
    if (client->epoll_fd >= 0)
        close(client->epoll_fd);
    if (client->timer_fd >= 0)
        close(client->timer_fd);
    explicit_bzero(client->token, sizeof(client->token));
    free(client->in);
    free(client->arena_memory);
    free(client);
}

/* ---- settings ---------------------------------------------------------------------- */

int
thin_client_set_server(struct thin_client *client, const char *address)
{
    struct socket_address parsed;
    int r = socket_address_parse(address, PROTO_PORT, &parsed, &client->error);

    if (r < 0)
        return r;
    if (parsed.kind == SOCKET_TCP && !parsed.tls)
        return thin_fail(&client->error, -THIN_E_INVALID,
                         "the network is used with TLS only: write tls://HOST:PORT");
    if (parsed.kind == SOCKET_TCP && (!*parsed.host || parsed.port == 0))
        return thin_fail(&client->error, -THIN_E_INVALID,
                         "bad address %s: host and port are needed", address);
    client->address = parsed;
    return 0;
}

int
thin_client_set_tls(struct thin_client *client, const char *cert, const char *key,
                    const char *ca, const char *crl)
{
    struct channel_tls_params params = {.cert = cert, .key = key, .ca = ca, .crl = crl};
    struct channel_tls *tls = NULL;
    int r = channel_tls_create(&params, &tls, &client->error);

    if (r < 0)
        return r;
    channel_tls_put(client->tls);
    client->tls = tls;
    return 0;
}

int
thin_client_set_name(struct thin_client *client, const char *name)
{
    if (strlen(name) >= sizeof(client->name))
        return thin_fail(&client->error, -THIN_E_INVALID,
                         "a client's name of %zu bytes, at most %zu are allowed",
                         strlen(name), sizeof(client->name) - 1);
    snprintf(client->name, sizeof(client->name), "%s", name);
    return 0;
}

void
thin_client_set_data_checksums(struct thin_client *client, bool on)
{
    client->data_checksums = on;
}

void
thin_client_set_connect_timeout_ms(struct thin_client *client, unsigned ms)
{
    client->connect_timeout_ms = ms ? ms : CLIENT_CONNECT_MS;
}

void
thin_client_set_offline_timeout_ms(struct thin_client *client, unsigned ms)
{
    client->offline_timeout_ms = ms;
    client_arm(client);
}

void
thin_client_set_retry_first(struct thin_client *client, bool on)
{
    client->retry_first = on;
}

void
thin_client_set_event_callback(struct thin_client *client,
                               void (*on_event)(void *arg,
                                                const struct thin_client_event *event),
                               void *arg)
{
    client->on_event = on_event;
    client->event_arg = arg;
}

void
client_set_event_message_callback(struct thin_client *client,
                                  void (*on_event)(void *arg, const Thin__Event *event),
                                  void *arg)
{
    client->on_event_message = on_event;
    client->event_message_arg = arg;
}

void
client_tell_event(struct thin_client *client, enum thin_client_event_kind kind,
                  const char *name, const char *text)
{
    struct thin_client_event event = {
        .kind = kind, .name = name, .object = "", .text = text};

    if (client->on_event)
        client->on_event(client->event_arg, &event);
}

/* ---- the loop's side --------------------------------------------------------------- */

uint64_t
client_now_ns(const struct thin_client *client)
{
    struct timespec ts;

    (void)client;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

void
client_watch_fd(struct thin_client *client, int fd, bool write)
{
    struct epoll_event event = {.events = EPOLLIN | (write ? EPOLLOUT : 0)};

    event.data.fd = fd;
    /* Adding fails only for want of memory, or if it is there already. */
    if (epoll_ctl(client->epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0 && errno == ENOENT &&
        epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        client->broken = thin_fail_code(&client->broken_words, -errno, "watch a socket");
    client->want_write_watched = write;
}

void
client_unwatch_fd(struct thin_client *client, int fd)
{
    (void)epoll_ctl(client->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    client->want_write_watched = false;
}

int
thin_client_fd(const struct thin_client *client)
{
    return client->epoll_fd;
}

unsigned
thin_client_events(const struct thin_client *client)
{
    (void)client;
    return THIN_CLIENT_READ;
}

/* When ready() is to be called even if no socket is ready; 0: at once; UINT64_MAX:
   never. */
static uint64_t
next_ns(const struct thin_client *client)
{
    if (!TAILQ_EMPTY(&client->done) || client->broken || client->connect_done_due ||
        (client->channel && channel_pending(client->channel)))
        return 0;
    return client_deadline_ns(client);
}

int
thin_client_timeout_ms(const struct thin_client *client)
{
    uint64_t when = next_ns(client);
    uint64_t now = client_now_ns(client);

    if (when == UINT64_MAX)
        return -1;
    if (when <= now)
        return 0;
    when = (when - now + NS_PER_MS - 1) / NS_PER_MS;
    return when > INT32_MAX ? INT32_MAX : (int)when;
}

void
client_arm(struct thin_client *client)
{
    uint64_t when = next_ns(client);
    struct itimerspec spec = {0};

    if (client->in_ready || when == UINT64_MAX)
        return;
    /* Firing too early does no harm, and deadlines move away with every byte heard:
       the timer is only touched to bring it nearer. */
    if (client->armed_ns && client->armed_ns <= (when ? when : 1))
        return;
    if (when == 0)
        when = 1; /* long over: at once. 0 would switch it off */
    client->armed_ns = when;
    spec.it_value.tv_sec = (time_t)(when / NS_PER_SEC);
    spec.it_value.tv_nsec = (long)(when % NS_PER_SEC);
    (void)timerfd_settime(client->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void
take_timer(struct thin_client *client, uint64_t now)
{
    uint64_t ticks;

    if (client->armed_ns == 0 || client->armed_ns > now)
        return;
    if (read(client->timer_fd, &ticks, sizeof(ticks)) == sizeof(ticks))
        client->armed_ns = 0;
}

void
client_deliver(struct thin_client *client)
{
    struct client_request *request;

    if (client->connect_done_due) {
        void (*done)(void *arg, int result) = client->connected;

        client->connect_done_due = false;
        client->connected = NULL;
        if (done)
            done(client->connected_arg, client->connect_result);
    }
    while ((request = TAILQ_FIRST(&client->done))) {
        TAILQ_REMOVE(&client->done, request, link);
        request_make_callback(request);
    }
}

/* Ends the connection if a call found it broken where nothing could be told. */
static void
take_broken(struct thin_client *client)
{
    int code = client->broken;

    if (!code)
        return;
    client->broken = 0;
    client->error = client->broken_words;
    client_lost(client, code);
}

void
thin_client_ready(struct thin_client *client)
{
    uint64_t now = client_now_ns(client);
    int r;

    if (client->in_ready)
        return;
    client->in_ready = true;
    take_timer(client, now);
    take_broken(client);
    client_advance(client);
    if (client->state >= CLIENT_HELLO && client->channel) {
        r = client_receive(client);
        if (r < 0)
            client_lost(client, r);
    }
    client_timers(client, client_now_ns(client));
    client_deliver(client);
    /* What callbacks asked for goes out together. */
    if (client->state == CLIENT_READY || client->state == CLIENT_HELLO) {
        client_dispatch(client);
        r = client->corks ? 0 : client_send(client);
        if (r < 0)
            client_lost(client, r);
    }
    client->in_ready = false;
    client_arm(client);
}

void
thin_client_cork(struct thin_client *client)
{
    client->corks++;
}

void
thin_client_uncork(struct thin_client *client)
{
    THIN_ASSERT(client->corks > 0);
    client->corks--;
    if (client->corks > 0 || client->in_ready || client->state != CLIENT_READY)
        return;
    client_dispatch(client);
    if (client_send(client) < 0) {
        client->broken = client->error.code;
        client->broken_words = client->error;
    }
    client_arm(client);
}
