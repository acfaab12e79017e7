/*
 * What the server tells unasked: pool modes, sizes, lost attachments. The newest
 * SERVER_EVENTS_KEPT are kept, for those who subscribe late or come back; each goes to
 * the control connections of those who subscribed and may see its object, and to those
 * who have the volume open. A peer that does not read misses events, and sees it by
 * their numbers. Main loop only.
 */
#ifndef THIN_SERVER_EVENTS_H
#define THIN_SERVER_EVENTS_H

#include "server/server.h"

struct session;
struct session_volume;

int events_create(struct server *server, struct events **ret);
void events_destroy(struct events *events); /* NULL is fine */

/* `kind` and `text` are copied; `object` is POOL or POOL/VOLUME. */
void events_tell(struct server *server, const char *kind, const char *object,
                 const char *text);
/* One session's own: it has the volume open. Not kept, no number of its own. */
void events_tell_holder(struct session_volume *volume, const char *kind, const char *text,
                        uint64_t size);
/* An event of the engine, by the name it has there. */
void events_pool(struct server *server, const char *pool, const char *event,
                 const char *words);

/* From now on; first what is kept above `since`, led by `gap` if some of it is gone. */
void events_subscribe(struct session *session, uint64_t since);

#endif
