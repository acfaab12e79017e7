#include "server/events.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/cleanup.h"
#include "proto/frame.h"
#include "server/conn.h"
#include "server/session.h"

struct event {
    uint64_t number, when_s;
    char kind[32];
    char object[2 * THIN_NAME_MAX + 2];
    char text[256];
};

struct events {
    uint64_t last; /* number of the newest; 0: none yet */
    struct event kept[SERVER_EVENTS_KEPT];
};

int
events_create(struct server *server, struct events **ret)
{
    (void)server;
    *ret = calloc(1, sizeof(**ret));
    return *ret ? 0 : -ENOMEM;
}

void
events_destroy(struct events *events)
{
    free(events);
}

/* Events are news, not promises: without room or memory they are dropped. */
static void
send_event(struct session *s, Thin__Event *event)
{
    Thin__Message message = THIN__MESSAGE__INIT;
    uint8_t *memory;
    size_t bytes;

    if (!s->control || !conn_has_room(s->control))
        return;
    message.body_case = THIN__MESSAGE__BODY_EVENT;
    message.event = event;
    bytes = FRAME_PREFIX_BYTES + message_encoded_bytes(&message);
    memory = malloc(bytes);
    if (!memory)
        return;
    message_encode(&message, 0, memory);
    conn_send_memory(s->control, memory, bytes);
}

static bool
may_see(const struct session *s, const char *object)
{
    return !object[0] || auth_right_on(s->server->auth, &s->peer, object) >= AUTH_READ;
}

static void
send_kept(struct session *s, const struct event *e)
{
    Thin__Event event = THIN__EVENT__INIT;

    if (!may_see(s, e->object))
        return;
    event.number = e->number;
    event.when = e->when_s;
    event.kind = (char *)(uintptr_t)e->kind;
    event.object = (char *)(uintptr_t)e->object;
    event.text = (char *)(uintptr_t)e->text;
    send_event(s, &event);
}

static void
send_gap(struct session *s)
{
    Thin__Event event = THIN__EVENT__INIT;
    char kind[] = "gap", text[] = "older events are no longer kept";

    event.when = (uint64_t)time(NULL);
    event.kind = kind;
    event.text = text;
    send_event(s, &event);
}

void
events_tell(struct server *server, const char *kind, const char *object, const char *text)
{
    struct events *all = server->events;
    struct event *e = &all->kept[++all->last % SERVER_EVENTS_KEPT];
    struct session *s = NULL;

    e->number = all->last;
    e->when_s = (uint64_t)time(NULL);
    snprintf(e->kind, sizeof(e->kind), "%s", kind);
    snprintf(e->object, sizeof(e->object), "%s", object);
    snprintf(e->text, sizeof(e->text), "%s", text);
    while ((s = session_next(server, s)))
        if (s->subscribed)
            send_kept(s, e);
}

void
events_tell_holder(struct session_volume *volume, const char *kind, const char *text,
                   uint64_t size)
{
    Thin__Event event = THIN__EVENT__INIT;
    char name[2 * THIN_NAME_MAX + 2];

    snprintf(name, sizeof(name), "%s/%s", attach_pool_name(volume->attachment),
             volume_name(volume->attachment->volume));
    event.when = (uint64_t)time(NULL);
    event.kind = (char *)(uintptr_t)kind;
    event.object = name;
    event.text = (char *)(uintptr_t)text;
    event.handle = volume->handle;
    event.size = size;
    send_event(volume->session, &event);
}

void
events_pool(struct server *server, const char *pool, const char *event, const char *words)
{
    bool lost = strcmp(event, "rolled-back") == 0;
    struct session *s = NULL;

    events_tell(server, strcmp(event, "mode") == 0 ? "pool-mode" : event, pool, words);
    /* Not every volume of the pool has lost something; who has is told by its requests. */
    while (!lost && (s = session_next(server, s)))
        for (unsigned i = 0; !s->subscribed && i < PROTO_VOLUMES_MAX; i++) {
            struct session_volume *v = &s->volumes[i];

            if (v->handle && v->attachment &&
                strcmp(attach_pool_name(v->attachment), pool) == 0) {
                events_tell_holder(v, "pool-mode", words, 0);
                break;
            }
        }
}

void
events_subscribe(struct session *s, uint64_t since)
{
    struct events *all = s->server->events;
    uint64_t oldest =
        all->last > SERVER_EVENTS_KEPT ? all->last - SERVER_EVENTS_KEPT + 1 : 1;
    uint64_t from = since + 1;

    s->subscribed = true;
    /* A number that was never given is one of the server's life before. */
    if (since > all->last || (since > 0 && from < oldest)) {
        send_gap(s);
        from = oldest;
    }
    for (uint64_t n = from < oldest ? oldest : from; n <= all->last; n++)
        send_kept(s, &all->kept[n % SERVER_EVENTS_KEPT]);
}
