#include "server/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/random.h"

TAILQ_HEAD(session_list, session);

struct sessions {
    struct server *server;
    struct session_list list;
    unsigned nr;
    uint64_t last_id;
    void (*all_ended)(void *arg);
    void *all_ended_arg;
};

int
sessions_create(struct server *server, struct sessions **ret)
{
    struct sessions *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->server = server;
    TAILQ_INIT(&s->list);
    *ret = s;
    return 0;
}

void
sessions_destroy(struct sessions *sessions)
{
    if (!sessions)
        return;
    THIN_ASSERT(TAILQ_EMPTY(&sessions->list));
    free(sessions);
}

void
session_slot_clear(struct session_slot *slot)
{
    if (slot->kept != slot->small)
        free(slot->kept);
    slot->kept = NULL;
    slot->kept_bytes = 0;
    slot->poisoned = false;
}

void
session_slot_keep(struct session_slot *slot, const void *bytes, size_t len)
{
    session_slot_clear(slot);
    if (len <= sizeof(slot->small))
        slot->kept = slot->small;
    else if (len <= SESSION_KEPT_REPLY_MAX)
        slot->kept = malloc(len);
    if (!slot->kept) {
        slot->poisoned = true;
        return;
    }
    memcpy(slot->kept, bytes, len);
    slot->kept_bytes = len;
}

static void
free_session(struct session *s)
{
    struct sessions *all = s->sessions;

    for (unsigned i = 0; i <= PROTO_SLOTS_DEFAULT; i++)
        session_slot_clear(&s->slots[i]);
    loop_timer_cancel(s->server->thin_loop, &s->lease);
    loop_defer_cancel(s->server->thin_loop, &s->task);
    TAILQ_REMOVE(&all->list, s, link);
    all->nr--;
    free(s);
    if (all->nr == 0 && all->all_ended) {
        void (*fn)(void *) = all->all_ended;

        all->all_ended = NULL;
        fn(all->all_ended_arg);
    }
}

/* Runs after an ended session's last request or connection may have gone. */
static void
look_after_end(struct thin_task *task)
{
    struct session *s = container_of(task, struct session, task);

    if (!s->ended || s->in_flight > 0)
        return;
    for (unsigned i = 0; i < PROTO_VOLUMES_MAX; i++)
        if (s->volumes[i].handle)
            session_volume_drop(s, &s->volumes[i]);
    if (s->nr_conns == 0)
        free_session(s);
}

static void
lease_over(struct thin_timer *timer)
{
    struct session *s = container_of(timer, struct session, lease);

    log_notice("session is over, its lease has ended session=%llu identity=%s",
               (unsigned long long)s->id, s->peer.identity);
    session_end(s);
}

/* Only kept for a client that may come back, and holds nothing but old answers. */
static bool
can_be_forgotten(const struct session *s)
{
    if (s->ended || s->nr_conns > 0 || s->in_flight > 0)
        return false;
    for (unsigned i = 0; i < PROTO_VOLUMES_MAX; i++)
        if (s->volumes[i].handle)
            return false;
    return true;
}

/* Room for one more of the peer's: before anybody is refused, the oldest that can be
   forgotten goes. */
static bool
make_room(struct sessions *all, const struct auth_peer *peer)
{
    struct session *s;
    unsigned living = 0, own = 0;

    TAILQ_FOREACH(s, &all->list, link) {
        if (s->ended)
            continue; /* it goes with its last request */
        living++;
        own += strcmp(s->peer.identity, peer->identity) == 0;
    }
    if (living < SESSIONS_MAX && own < SESSIONS_OF_ONE_MAX)
        return true;
    TAILQ_FOREACH(s, &all->list, link)
        if ((own < SESSIONS_OF_ONE_MAX ||
             strcmp(s->peer.identity, peer->identity) == 0) &&
            can_be_forgotten(s)) {
            session_end(s);
            return true;
        }
    return false;
}

struct session *
session_new(struct server *server, const struct auth_peer *peer, const char *client_name,
            const char *peer_text, int *ret_code)
{
    struct sessions *all = server->sessions;
    struct session *s;
    uint64_t id;

    if (!make_room(all, peer)) {
        *ret_code = -THIN_E_LIMIT;
        return NULL;
    }
    s = calloc(1, sizeof(*s));
    if (!s || random_secret(s->token, sizeof(s->token)) < 0 ||
        random_secret(&id, sizeof(id)) < 0) {
        free(s);
        *ret_code = -ENOMEM;
        return NULL;
    }
    s->sessions = all;
    s->server = server;
    /* Unique over restarts, since the catalogue remembers who had a volume; 48 bits,
       which every reader of JSON can hold. */
    s->id = (id >> 32 << 16) + (++all->last_id & 0xffff) + 1;
    s->peer = *peer;
    s->nr_slots = PROTO_SLOTS_DEFAULT;
    s->since_s = (uint64_t)time(NULL);
    s->lease.fire = lease_over;
    s->task.run = look_after_end;
    snprintf(s->client_name, sizeof(s->client_name), "%s", client_name);
    snprintf(s->peer_text, sizeof(s->peer_text), "%s", peer_text);
    TAILQ_INSERT_TAIL(&all->list, s, link);
    all->nr++;
    return s;
}

struct session *
session_find(struct server *server, const void *token, size_t token_bytes,
             const struct auth_peer *peer)
{
    struct session *s;

    if (token_bytes != PROTO_TOKEN_BYTES)
        return NULL;
    TAILQ_FOREACH(s, &server->sessions->list, link) {
        unsigned char differs = 0;

        /* All bytes are looked at, so that time tells nothing. */
        for (size_t i = 0; i < PROTO_TOKEN_BYTES; i++)
            differs |= (unsigned char)(s->token[i] ^ ((const uint8_t *)token)[i]);
        if (!differs && !s->ended && strcmp(s->peer.identity, peer->identity) == 0)
            return s;
    }
    return NULL;
}

struct session *
session_by_id(struct server *server, uint64_t id)
{
    struct session *s;

    TAILQ_FOREACH(s, &server->sessions->list, link)
        if (s->id == id && !s->ended)
            return s;
    return NULL;
}

struct session *
session_next(struct server *server, const struct session *after)
{
    struct session *s =
        after ? TAILQ_NEXT(after, link) : TAILQ_FIRST(&server->sessions->list);

    while (s && s->ended)
        s = TAILQ_NEXT(s, link);
    return s;
}

void
session_join(struct session *s, struct conn *conn, bool control)
{
    s->nr_conns++;
    if (control)
        s->control = conn;
    loop_timer_cancel(s->server->thin_loop, &s->lease);
}

void
session_leave(struct session *s, struct conn *conn)
{
    s->nr_conns--;
    if (s->control == conn)
        s->control = NULL;
    if (s->resuming == conn)
        s->resuming = NULL;
    if (s->ended) {
        loop_defer(s->server->thin_loop, &s->task);
        return;
    }
    if (s->nr_conns == 0 && loop_timer_set(s->server->thin_loop, &s->lease,
                                           loop_now_ns(s->server->thin_loop) +
                                               s->server->lease_ms * NS_PER_MS) < 0)
        session_end(s);
}

void
session_end(struct session *s)
{
    s->ended = true;
    for (unsigned i = 0; i < PROTO_VOLUMES_MAX; i++)
        if (s->volumes[i].handle)
            attach_drain(s->volumes[i].attachment);
    loop_timer_cancel(s->server->thin_loop, &s->lease);
    loop_defer(s->server->thin_loop, &s->task);
}

void
sessions_end_all(struct server *server, void (*done)(void *arg), void *arg)
{
    struct session *s;

    if (server->sessions->nr == 0) {
        done(arg);
        return;
    }
    server->sessions->all_ended = done;
    server->sessions->all_ended_arg = arg;
    TAILQ_FOREACH(s, &server->sessions->list, link)
        session_end(s);
}

void
session_begin(struct session *s, uint64_t bytes)
{
    s->in_flight++;
    s->bytes_in_flight += bytes;
}

void
session_finish(struct session *s, uint64_t bytes)
{
    s->in_flight--;
    s->bytes_in_flight -= bytes;
    if (s->ended)
        loop_defer(s->server->thin_loop, &s->task);
}

struct session_volume *
session_volume(struct session *s, uint32_t handle)
{
    struct session_volume *v;

    if (handle == 0)
        return NULL;
    v = &s->volumes[(handle - 1) % PROTO_VOLUMES_MAX];
    return v->handle == handle && v->attachment && !v->closing ? v : NULL;
}

struct session_volume *
session_volume_new(struct session *s)
{
    static uint32_t generation;

    for (unsigned i = 0; i < PROTO_VOLUMES_MAX; i++)
        if (!s->volumes[i].handle) {
            struct session_volume *v = &s->volumes[i];

            memset(v, 0, sizeof(*v));
            /* A handle is not used again soon: a late request must not meet another volume. */
            generation = (generation + 1) & 0xffffff;
            v->session = s;
            v->handle = generation * PROTO_VOLUMES_MAX + i + 1;
            return v;
        }
    return NULL;
}

void
session_volume_drop(struct session *s, struct session_volume *v)
{
    if (v->attachment)
        attach_close(s->server->attachments, v->attachment);
    memset(v, 0, sizeof(*v));
}
