/*
 * Listening sockets: each accepted connection goes to the face that the listener is
 * for. Accepting pauses when the server has its fill of connections or the system has
 * no more descriptors. Main loop only.
 */
#ifndef THIN_SERVER_LISTENER_H
#define THIN_SERVER_LISTENER_H

#include "proto/socket.h"
#include "server/server.h"

enum listener_face { LISTEN_THIN, LISTEN_NBD };

struct listener;

/*
 * Opens (or takes from the service manager, if it passed one for this address) and
 * starts accepting. Waits for the resolver and the file system: before the loop runs,
 * or when pools are settled at start.
 */
int listener_open(struct server *server, enum listener_face face,
                  const struct socket_address *address, struct listener **ret,
                  struct thin_error *err);
/* Stops accepting and removes the socket's file. NULL is fine. */
void listener_close(struct listener *listener);
/* "thin unix:/run/..." for status. Lives as long as the listener. */
const char *listener_text(const struct listener *listener);

#endif
