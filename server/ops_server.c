/* The server itself: status, end, sessions, events. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "server/conn.h"
#include "server/dispatch.h"
#include "server/events.h"
#include "server/listener.h"
#include "server/nbd_face.h"
#include "server/pools.h"

#define SESSIONS_A_PAGE 8u /* each may name PROTO_VOLUMES_MAX volumes */
#define NAME_BYTES      (2 * THIN_NAME_MAX + 2)

static char *
words(const char *text)
{
    return (char *)(uintptr_t)text;
}

/* ---- status ---------------------------------------------------------------------------- */

static void
count_pools(const struct server *server, Thin__ServerStatusReply *body)
{
    struct server_pool *sp = NULL;
    struct pool_info info;

    while ((sp = pools_next(server->pools, sp))) {
        body->pools++;
        if (sp->state != POOLS_OPEN)
            continue;
        pool_get_info(sp->pool, &info);
        body->volumes += (uint32_t)info.nr_volumes;
    }
}

/* Everybody may know that the server lives; the rest is for its admins. */
void
ops_server_status(struct request *rq, const struct op_object *object)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__ServerStatusReply body = THIN__SERVER_STATUS_REPLY__INIT;
    struct server *server = rq->server;
    char version[] = THIN_VERSION;
    char *listeners[SERVER_LISTENERS_MAX];
    struct session *s = NULL;

    (void)object;
    body.version = version;
    body.started = server->started_s;
    if (auth_is_server_admin(server->auth, &rq->session->peer)) {
        body.pid = (uint64_t)getpid();
        count_pools(server, &body);
        while ((s = session_next(server, s)))
            body.sessions++;
        body.connections = server->connections;
        payload_get_stats(server->payload, &body.payload_memory,
                          &body.payload_memory_used);
        for (unsigned i = 0; i < server->nr_listeners; i++)
            listeners[i] = words(listener_text(server->listeners[i]));
        body.n_listeners = server->nr_listeners;
        body.listeners = listeners;
    }
    reply.body_case = THIN__REPLY__BODY_SERVER_STATUS;
    reply.server_status = &body;
    request_reply(rq, &reply);
}

void
ops_server_shutdown(struct request *rq, const struct op_object *object)
{
    struct server *server = rq->server;

    (void)object;
    log_notice("shutdown was asked for identity=%s", rq->session->peer.identity);
    request_reply_code(rq, 0, NULL);
    server->stop(server);
}

/* ---- sessions -------------------------------------------------------------------------- */

struct session_page {
    Thin__SessionInfo sessions[SESSIONS_A_PAGE], *list[SESSIONS_A_PAGE];
    char *volumes[SESSIONS_A_PAGE][PROTO_VOLUMES_MAX];
    char names[SESSIONS_A_PAGE][PROTO_VOLUMES_MAX][NAME_BYTES];
    unsigned nr;
};

static void
send_sessions(struct request *rq, struct session_page *page, bool last)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__SessionListReply body = THIN__SESSION_LIST_REPLY__INIT;

    body.n_sessions = page->nr;
    body.sessions = page->list;
    reply.body_case = THIN__REPLY__BODY_SESSION_LIST;
    reply.session_list = &body;
    page->nr = 0;
    if (last)
        request_reply(rq, &reply);
    else
        request_reply_more(rq, &reply, NULL, 0);
}

static Thin__SessionInfo *
add_session(struct request *rq, struct session_page *page)
{
    Thin__SessionInfo *info;

    if (page->nr == SESSIONS_A_PAGE)
        send_sessions(rq, page, false);
    info = page->list[page->nr] = &page->sessions[page->nr];
    thin__session_info__init(info);
    info->volumes = page->volumes[page->nr++];
    return info;
}

static void
add_thin_session(struct request *rq, struct session_page *page, struct session *s)
{
    Thin__SessionInfo *info = add_session(rq, page);
    unsigned at = page->nr - 1;

    info->id = s->id;
    info->identity = s->peer.identity;
    info->client_name = s->client_name;
    info->peer = s->peer_text;
    info->connections = conns_of_session(s);
    info->since = s->since_s;
    info->protocol = words("thin");
    for (unsigned i = 0; i < PROTO_VOLUMES_MAX; i++) {
        const struct session_volume *v = &s->volumes[i];
        char *name = page->names[at][info->n_volumes];

        if (!v->handle || !v->attachment)
            continue;
        snprintf(name, NAME_BYTES, "%s/%s", attach_pool_name(v->attachment),
                 volume_name(v->attachment->volume));
        info->volumes[info->n_volumes++] = name;
    }
}

static void
add_nbd_client(struct request *rq, struct session_page *page, struct nbd_face_info *c)
{
    Thin__SessionInfo *info = add_session(rq, page);

    info->id = c->id;
    info->identity = c->identity;
    info->peer = c->peer;
    info->connections = 1;
    info->since = c->since_s;
    info->protocol = words("nbd");
    if (c->volume[0])
        info->volumes[info->n_volumes++] = c->volume;
}

void
ops_session_list(struct request *rq, const struct op_object *object)
{
    AUTO_FREE struct session_page *page = malloc(sizeof(*page));
    AUTO_FREE struct nbd_face_info *clients =
        calloc(SERVER_CONNECTIONS_MAX, sizeof(*clients));
    struct session *s = NULL;
    unsigned nr;

    (void)object;
    if (!page || !clients) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    page->nr = 0;
    while ((s = session_next(rq->server, s)))
        add_thin_session(rq, page, s);
    nr = nbd_face_list(rq->server, clients, SERVER_CONNECTIONS_MAX);
    for (unsigned i = 0; i < nr; i++)
        add_nbd_client(rq, page, &clients[i]);
    send_sessions(rq, page, true);
}

void
ops_session_kick(struct request *rq, const struct op_object *object)
{
    const Thin__SessionKick *m = ops_body(rq);
    struct session *s = session_by_id(rq->server, m->id);
    bool nbd = !s && nbd_face_kick(rq->server, m->id);

    (void)object;
    if (!s && !nbd) {
        ops_fail(rq, -THIN_E_NOT_FOUND, "no such session: %llu",
                 (unsigned long long)m->id);
        return;
    }
    if (s == rq->session) {
        ops_fail(rq, -THIN_E_INVALID, "this is the session that asks");
        return;
    }
    log_notice("session is kicked session=%llu by=%s", (unsigned long long)m->id,
               rq->session->peer.identity);
    if (s) {
        session_end(s);
        conns_close_session(s, NULL);
    }
    request_reply_code(rq, 0, NULL);
}

/* ---- events ---------------------------------------------------------------------------- */

void
ops_events_subscribe(struct request *rq, const struct op_object *object)
{
    const Thin__EventsSubscribe *m = ops_body(rq);
    struct session *s = rq->session;
    uint64_t since = m->since;

    (void)object;
    request_reply_code(rq, 0, NULL);
    events_subscribe(s, since);
}
