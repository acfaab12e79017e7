/*
 * The connection's life:
 *
 *   IDLE --connect--> CONNECTING -> HANDSHAKE -> HELLO -> READY
 *                        ^    |  each may fail      |       |
 *                        |    v                     v       v  client_lost
 *                        +-- BACKOFF <----------------------+
 *   FAILED: the first attempt failed and is not to be repeated. ENDED: being destroyed.
 *
 * CONNECTING: client_attempt, connecting(); HANDSHAKE: shaking(); HELLO: say_hello,
 * hello_reply(); BACKOFF: client_lost, client_timers.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/lib/client_private.h"
#include "core/base/checked.h"
#include "core/base/loop.h"

static uint64_t
after_ms(const struct thin_client *client, uint64_t ms)
{
    return client_now_ns(client) + ms * NS_PER_MS;
}

void
client_close_connection(struct thin_client *client)
{
    if (client->channel) {
        client_unwatch_fd(client, channel_fd(client->channel));
        channel_destroy(client->channel);
        client->channel = NULL;
    }
    if (client->fd >= 0) {
        client_unwatch_fd(client, client->fd);
        close(client->fd);
        client->fd = -1;
    }
    client_incoming_reset(client);
    client->ping_ns = 0;
}

/* ---- failing and coming back ------------------------------------------------------- */

/* A little off each time, so that a thousand clients do not come back in one instant. */
static uint64_t
next_backoff_ns(struct thin_client *client)
{
    uint64_t ms = client->backoff_ms;

    client->backoff_ms =
        (unsigned)min_u64(ms ? ms * 2 : CLIENT_BACKOFF_MIN_MS, CLIENT_BACKOFF_MAX_MS);
    return after_ms(client, ms * 3 / 4 + random_below(&client->rng, ms / 2 + 1));
}

static void
tell_connected(struct thin_client *client, int result)
{
    if (!client->connected)
        return;
    client->connect_result = result;
    client->connect_done_due = true;
}

/* This target did not work: the next one, or a pause, or the end. Words are told. */
static void
attempt_failed(struct thin_client *client, int code)
{
    char text[SOCKET_TEXT_MAX];

    client_close_connection(client);
    client_requests_lost(client);
    if (client->next_target < client->targets.count) {
        client->state = CLIENT_BACKOFF;
        client->state_deadline_ns = client_now_ns(client);
        return;
    }
    thin_wrap(&client->error, code, "connect to %s",
              socket_address_text(&client->address, text, sizeof(text)));
    if (client->was_ready || client->retry_first) {
        client->state = CLIENT_BACKOFF;
        client->state_deadline_ns = next_backoff_ns(client);
        return;
    }
    client->state = CLIENT_FAILED;
    client_requests_fail(client, code);
    tell_connected(client, code);
}

void
client_lost(struct thin_client *client, int code)
{
    bool ready = client->state == CLIENT_READY;

    if (!ready) {
        attempt_failed(client, code);
        return;
    }
    client_close_connection(client);
    client_requests_lost(client);
    client->offline_since_ns = client_now_ns(client);
    client->next_target = 0;
    /* The first attempt at once: mostly it was the connection only. A server that takes
       us in and drops us without having answered anything is not hammered, though. */
    if (client->answered)
        client->backoff_ms = 0;
    client->state = CLIENT_BACKOFF;
    client->state_deadline_ns = next_backoff_ns(client);
    client_tell_event(client, THIN_CLIENT_EVENT_DISCONNECTED, "disconnected",
                      thin_error_text(&client->error, code));
}

/* ---- hello ------------------------------------------------------------------------- */

static int
say_hello(struct thin_client *client)
{
    char payload_crc[] = "payload-crc";
    char *features[] = {payload_crc};
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__Hello hello = THIN__HELLO__INIT;

    client->control_seq = 0;
    hello.version_min = PROTO_VERSION_MIN;
    hello.version_max = PROTO_VERSION_MAX;
    hello.features = features;
    hello.n_features = 1;
    hello.client_name = client->name;
    hello.wanted_slots = PROTO_SLOTS_DEFAULT;
    if (client->have_session) {
        hello.session_token.data = client->token;
        hello.session_token.len = sizeof(client->token);
        hello.resume = true;
    }
    message.body_case = THIN__REQUEST__BODY_HELLO;
    message.hello = &hello;
    return client_send_control(client, &message);
}

static int
bad_hello(struct thin_client *client, const char *what, uint64_t value)
{
    client->have_session = false; /* else the next attempt would meet the same */
    return thin_fail(&client->error, -THIN_E_PROTOCOL, "the server's hello: %s %llu",
                     what, (unsigned long long)value);
}

/* The server's figures, judged before they are believed. */
static int
take_limits(struct thin_client *client, const Thin__HelloReply *hello)
{
    if (hello->version < PROTO_VERSION_MIN || hello->version > PROTO_VERSION_MAX)
        return bad_hello(client, "version", hello->version);
    if (hello->slots == 0 || hello->slots > PROTO_SLOTS_MAX)
        return bad_hello(client, "slots", hello->slots);
    if (hello->resumed && (!client->have_session || hello->slots != client->nr_slots))
        return bad_hello(client, "resumed another session, slots", hello->slots);
    if (hello->session_token.len != sizeof(client->token))
        return bad_hello(client, "token length", hello->session_token.len);
    if (hello->max_payload < 4096)
        return bad_hello(client, "payload limit", hello->max_payload);
    if (hello->keepalive_ms < 100)
        return bad_hello(client, "keepalive", hello->keepalive_ms);
    client->nr_slots = hello->slots;
    client->max_payload = (uint32_t)min_u64(hello->max_payload, PROTO_PAYLOAD_MAX);
    client->max_bytes_in_flight =
        max_u64(hello->max_bytes_in_flight, client->max_payload);
    client->keepalive_ms = hello->keepalive_ms;
    memcpy(client->token, hello->session_token.data, sizeof(client->token));
    client->peer_checks_data = false;
    for (size_t i = 0; i < hello->n_features; i++)
        if (strcmp(hello->features[i], "payload-crc") == 0)
            client->peer_checks_data = true;
    snprintf(client->server_version, sizeof(client->server_version), "%s",
             hello->server_version ? hello->server_version : "");
    return 0;
}

/* Events are told to a session that asked; a new one has to ask again. */
static void
subscribe_again(struct thin_client *client)
{
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__EventsSubscribe subscribe = THIN__EVENTS_SUBSCRIBE__INIT;

    if (!client->subscribed)
        return;
    subscribe.since = client->last_event;
    message.body_case = THIN__REQUEST__BODY_EVENTS_SUBSCRIBE;
    message.events_subscribe = &subscribe;
    (void)client_call_start(client, &message, NULL, NULL, NULL, NULL);
}

static int
hello_reply(struct thin_client *client, const Thin__Reply *reply)
{
    const Thin__HelloReply *hello = reply->hello;
    char text[SOCKET_TEXT_MAX];
    bool again = client->was_ready;
    bool resumed;
    int r;

    if (reply->code < 0)
        return thin_fail(&client->error, reply->code, "%s",
                         reply->text && *reply->text ? reply->text
                                                     : thin_strerror(reply->code));
    if (reply->body_case != THIN__REPLY__BODY_HELLO)
        return thin_fail(&client->error, -THIN_E_PROTOCOL,
                         "the server's first reply is no hello");
    r = take_limits(client, hello);
    if (r < 0)
        return r;
    resumed = hello->resumed;
    client->have_session = true;
    client->was_ready = true;
    client->state = CLIENT_READY;
    client->state_deadline_ns = 0;
    client->offline_since_ns = 0;
    client->offline_told = false;
    client->answered = false;
    client->next_target = 0;
    if (resumed) {
        client_requests_resume(client);
    } else {
        client_requests_new_session(client);
        volume_new_session(client);
        subscribe_again(client);
    }
    tell_connected(client, 0);
    if (again)
        client_tell_event(client, THIN_CLIENT_EVENT_CONNECTED, "connected",
                          socket_address_text(&client->address, text, sizeof(text)));
    return 0;
}

int
client_control_reply(struct thin_client *client, const Thin__Reply *reply)
{
    if (client->state == CLIENT_HELLO)
        return hello_reply(client, reply);
    /* Words that the server says before it closes; anything else is a ping's answer. */
    if (reply->code < 0 && reply->seq == 0)
        return thin_fail(&client->error, reply->code, "the server: %s",
                         reply->text && *reply->text ? reply->text
                                                     : thin_strerror(reply->code));
    client->ping_ns = 0;
    return 0;
}

/* ---- the way to hello -------------------------------------------------------------- */

void
client_attempt(struct thin_client *client)
{
    const struct socket_target *target;
    int r = 0;

    client->state = CLIENT_CONNECTING;
    client->state_deadline_ns = after_ms(client, client->connect_timeout_ms);
    /* A name is asked for anew in each round: the server may have moved. */
    if (client->next_target == 0 || client->next_target >= client->targets.count) {
        client->next_target = 0;
        r = socket_resolve(&client->address, false, &client->targets, &client->error);
        if (r < 0) {
            client->targets.count = 0;
            attempt_failed(client, r);
            return;
        }
    }
    target = &client->targets.list[client->next_target++];
    r = socket_connect_start(target, &client->fd, &client->error);
    if (r < 0 && r != -EINPROGRESS) {
        attempt_failed(client, r);
        return;
    }
    client_watch_fd(client, client->fd, true);
}

/* CONNECTING: -EAGAIN while it takes. */
static int
connecting(struct thin_client *client)
{
    int r = socket_connect_finish(client->fd, &client->error);

    if (r == -EINPROGRESS)
        return -EAGAIN;
    if (r < 0)
        return r;
    if (client->address.tls)
        r = channel_tls_start(client->tls, client->fd, client->address.host,
                              &client->channel, &client->error);
    else if (channel_plain_create(client->fd, &client->channel) < 0)
        r = thin_fail_code(&client->error, -ENOMEM, "start a connection");
    if (r < 0)
        return r;
    client->fd = -1; /* the channel's now */
    client->state = CLIENT_HANDSHAKE;
    return 0;
}

/* HANDSHAKE: -EAGAIN while it takes. */
static int
shaking(struct thin_client *client)
{
    int r = channel_handshake(client->channel, &client->error);
    bool write = r == -EAGAIN && (channel_wants(client->channel) & CHANNEL_WANT_WRITE);

    client_watch_fd(client, channel_fd(client->channel), write);
    if (r < 0)
        return r;
    client->heard_ns = client->told_ns = client_now_ns(client);
    client->state = CLIENT_HELLO;
    r = say_hello(client);
    return r < 0 ? r : client_send(client);
}

void
client_advance(struct thin_client *client)
{
    int r = 0;

    if (client->state == CLIENT_CONNECTING)
        r = connecting(client);
    if (r == 0 && client->state == CLIENT_HANDSHAKE)
        r = shaking(client);
    if (r < 0 && r != -EAGAIN)
        client_lost(client, r);
}

int
thin_client_connect(struct thin_client *client, void (*done)(void *arg, int result),
                    void *arg)
{
    if (client->state != CLIENT_IDLE && client->state != CLIENT_FAILED)
        return thin_fail(&client->error, -THIN_E_BUSY, "connecting already");
    if (client->address.tls && !client->tls)
        return thin_fail(&client->error, -THIN_E_INVALID,
                         "tls:// needs a certificate, its key and a certificate "
                         "authority");
    client->connected = done;
    client->connected_arg = arg;
    client->next_target = 0;
    client->backoff_ms = 0;
    client->offline_since_ns = client_now_ns(client);
    client_attempt(client);
    client_arm(client);
    return 0;
}

bool
thin_client_is_connected(const struct thin_client *client)
{
    return client->state == CLIENT_READY;
}

const char *
thin_client_server_version(const struct thin_client *client)
{
    return client->server_version;
}

/* ---- time -------------------------------------------------------------------------- */

/*
 * When a ping is due, or, with one under way, when the server is given up. Only silence
 * after a ping counts: a caller who did not call ready() for a minute has heard nothing
 * either.
 */
static uint64_t
keepalive_due_ns(const struct thin_client *client)
{
    uint64_t third = (uint64_t)client->keepalive_ms * NS_PER_MS / 3;

    if (client->ping_ns)
        return max_u64(client->heard_ns, client->ping_ns) + 2 * third;
    return min_u64(client->heard_ns, client->told_ns) + third;
}

uint64_t
client_deadline_ns(const struct thin_client *client)
{
    uint64_t when = UINT64_MAX;

    if (client->state_deadline_ns)
        when = client->state_deadline_ns;
    if (client->state == CLIENT_READY)
        when = min_u64(when, keepalive_due_ns(client));
    if (client->offline_since_ns && client->offline_timeout_ms && !client->offline_told &&
        client->state != CLIENT_FAILED)
        when = min_u64(when,
                       client->offline_since_ns + client->offline_timeout_ms * NS_PER_MS);
    return min_u64(when, volume_deadline_ns(client));
}

static void
keepalive(struct thin_client *client, uint64_t now)
{
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__Ping ping = THIN__PING__INIT;

    if (now < keepalive_due_ns(client))
        return;
    if (client->ping_ns) {
        thin_fail(&client->error, -THIN_E_TIMED_OUT, "no answer to a ping in %u ms",
                  client->keepalive_ms * 2 / 3);
        client_lost(client, -THIN_E_TIMED_OUT);
        return;
    }
    message.body_case = THIN__REQUEST__BODY_PING;
    message.ping = &ping;
    client->ping_ns = now;
    (void)client_send_control(client, &message); /* without memory: next time */
}

/*
 * What was sent may yet be done by the server: the session must not be resumed, or a
 * write that its caller was told had failed would be sent again.
 */
static void
offline_too_long(struct thin_client *client)
{
    client->offline_told = true;
    thin_fail(&client->error, -THIN_E_DISCONNECTED, "no server for %u ms",
              client->offline_timeout_ms);
    client->have_session = false;
    client_requests_new_session(client);
    client_requests_fail(client, -THIN_E_DISCONNECTED);
}

void
client_timers(struct thin_client *client, uint64_t now)
{
    if (client->state == CLIENT_READY)
        keepalive(client, now);
    if (client->offline_since_ns && client->offline_timeout_ms && !client->offline_told &&
        now >= client->offline_since_ns + client->offline_timeout_ms * NS_PER_MS)
        offline_too_long(client);
    if (client->state_deadline_ns && now >= client->state_deadline_ns) {
        client->state_deadline_ns = 0;
        if (client->state == CLIENT_BACKOFF) {
            client_attempt(client);
        } else if (client->state == CLIENT_CONNECTING ||
                   client->state == CLIENT_HANDSHAKE || client->state == CLIENT_HELLO) {
            thin_fail(&client->error, -THIN_E_TIMED_OUT, "no answer within %u ms",
                      client->connect_timeout_ms);
            client_lost(client, -THIN_E_TIMED_OUT);
        }
    }
    volume_timers(client, now);
}
