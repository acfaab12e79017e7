/*
 * Sessions of our own protocol: identity, secret token, slots with one kept result each
 * (exactly once while the session lives), open volumes, credits; what outlives a lost
 * connection for the length of its lease. Main loop only.
 */
#ifndef THIN_SERVER_SESSION_H
#define THIN_SERVER_SESSION_H

#include "server/server.h"

struct sessions;

int sessions_create(struct server *server, struct sessions **ret);
/* All connections are gone and all volumes closed. NULL is fine. */
void sessions_destroy(struct sessions *sessions);

#endif
