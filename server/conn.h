/*
 * Our own protocol's face: one connection, its frames, its hello, its session.
 * Main loop only.
 */
#ifndef THIN_SERVER_CONN_H
#define THIN_SERVER_CONN_H

#include "server/server.h"

/* Takes `fd`. `local`: it came over a unix socket (no TLS, peer credentials). */
void conn_accept(struct server *server, int fd, bool local);

/* Ends all: requests in flight are answered; `done` when the last connection is gone. */
void conns_shutdown(struct server *server, void (*done)(void *arg), void *arg);

#endif
