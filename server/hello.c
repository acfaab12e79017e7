#include "server/hello.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "server/request.h"
#include "server/session.h"

void
hello_send(struct conn *conn, Thin__Reply *reply)
{
    Thin__Message message = THIN__MESSAGE__INIT;
    uint8_t *memory;
    size_t bytes;

    message.body_case = THIN__MESSAGE__BODY_REPLY;
    message.reply = reply;
    bytes = FRAME_PREFIX_BYTES + message_encoded_bytes(&message);
    memory = malloc(bytes);
    if (!memory)
        return; /* the peer's keepalive will notice */
    message_encode(&message, 0, memory);
    conn_send_memory(conn, memory, bytes);
}

void
hello_send_last_words(struct conn *conn, int code, const char *words)
{
    Thin__Reply reply = THIN__REPLY__INIT;

    reply.code = code;
    reply.text = (char *)(uintptr_t)words;
    hello_send(conn, &reply);
}

static bool
wants_feature(const Thin__Hello *hello, const char *feature)
{
    for (size_t i = 0; i < hello->n_features; i++)
        if (strcmp(hello->features[i], feature) == 0)
            return true;
    return false;
}

static void
answer(struct conn *conn, const struct session *s, bool resumed)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__HelloReply body = THIN__HELLO_REPLY__INIT;
    char feature[] = "payload-crc", version[] = THIN_VERSION;
    char *features[1] = {feature};
    struct server *server = s->server;

    body.version = PROTO_VERSION_MAX;
    if (s->payload_crc) {
        body.n_features = 1;
        body.features = features;
    }
    body.session_token.data = (uint8_t *)(uintptr_t)s->token;
    body.session_token.len = sizeof(s->token);
    body.session_id = s->id;
    body.resumed = resumed;
    body.slots = s->nr_slots;
    body.max_payload = PROTO_PAYLOAD_MAX;
    body.max_bytes_in_flight = PROTO_BYTES_IN_FLIGHT_DEFAULT;
    body.keepalive_ms = PROTO_KEEPALIVE_MS;
    body.lease_ms = server->lease_ms;
    body.server_version = version;
    body.server_start.data = server->start_id;
    body.server_start.len = sizeof(server->start_id);
    reply.body_case = THIN__REPLY__BODY_HELLO;
    reply.hello = &body;
    hello_send(conn, &reply);
}

void
hello_session_quiet(struct session *s)
{
    struct conn *conn = s->resuming;

    if (!conn)
        return;
    s->resuming = NULL;
    answer(conn, s, true);
    conn_resume(conn); /* requests may wait behind its hello */
}

/* The session is taken over: what its old connections had in flight ends first. */
static void
resume(struct conn *conn, struct session *s)
{
    s->resuming = NULL;
    conns_close_session(s, NULL);
    conn_joined(conn, s, true);
    requests_forget_all(s);
    if (s->in_flight > 0) {
        s->resuming = conn;
        return;
    }
    answer(conn, s, true);
}

int
hello_arrived(struct conn *conn, const Thin__Hello *hello, struct thin_error *err)
{
    struct server *server = conn_server(conn);
    const struct auth_peer *peer = conn_peer(conn);
    bool payload_crc = wants_feature(hello, "payload-crc");
    struct session *s = NULL;
    int code = 0;

    if (hello->version_min > PROTO_VERSION_MAX || hello->version_max < PROTO_VERSION_MIN)
        return thin_fail(err, -THIN_E_VERSION,
                         "protocol versions %u to %u are wanted, %u to %u are known",
                         hello->version_min, hello->version_max, PROTO_VERSION_MIN,
                         PROTO_VERSION_MAX);
    if (hello->session_token.len)
        s = session_find(server, hello->session_token.data, hello->session_token.len,
                         peer);
    if (hello->session_token.len && !hello->resume) {
        if (!s)
            return thin_fail(err, -THIN_E_NOT_FOUND, "no such session");
        if (conns_of_session(s) >= PROTO_CONNECTIONS_MAX)
            return thin_fail(err, -THIN_E_LIMIT, "a session has at most %u connections",
                             PROTO_CONNECTIONS_MAX);
        conn_joined(conn, s, false);
        answer(conn, s, false);
        return 0;
    }
    if (s) {
        s->payload_crc = payload_crc;
        resume(conn, s);
        return 0;
    }
    s = session_new(server, peer, hello->client_name, conn_peer_text(conn), &code);
    if (!s)
        return thin_fail_code(err, code, "begin a session");
    s->payload_crc = payload_crc;
    conn_joined(conn, s, true);
    log_debug("session begun session=%llu identity=%s peer=%s", (unsigned long long)s->id,
              peer->identity, conn_peer_text(conn));
    answer(conn, s, false);
    return 0;
}
