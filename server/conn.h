/*
 * Our own protocol's face: one connection, its frames, its hello. Main loop only.
 *
 *   accept ─► (TLS) ─► hello ─► requests ─► broken, Bye or protocol error ─► closed
 *
 * Bytes are parsed in place where they were received; a frame that is not whole yet is
 * kept in a buffer of the connection's own (at most one frame's message). A write's
 * payload is received straight into the memory lent to its request; when no memory is
 * to be had, or the session's credits are used up, reading pauses.
 */
#ifndef THIN_SERVER_CONN_H
#define THIN_SERVER_CONN_H

#include <sys/uio.h>

#include "proto/message.h"
#include "server/server.h"

#define CONN_OUT_MAX \
    (64u << 20) /* bytes of replies not yet taken by the peer; then reading pauses */

struct conn;
struct request;
struct session;

/* Takes `fd`. `local`: it came over a unix socket (no TLS, peer credentials). */
void conn_accept(struct server *server, int fd, bool local);

/* Ends all: requests in flight are answered; `done` when the last connection is gone. */
void conns_shutdown(struct server *server, void (*done)(void *arg), void *arg);
void conns_fini(void);

/* Closes all connections of a session (kick, resume, end) but `except`. */
void conns_close_session(struct session *session, struct conn *except);

/* hello.c: the connection is of this session from now on. */
void conn_joined(struct conn *conn, struct session *session, bool control);
/* request.c: the session's last request has ended. */
void conns_session_quiet(struct session *session);

struct server *conn_server(struct conn *conn);
const struct auth_peer *conn_peer(const struct conn *conn);
const char *conn_peer_text(const struct conn *conn);
struct session *conn_session(struct conn *conn);
/* True for connections that came over a unix socket. */
bool conn_is_local(const struct conn *conn);
/* The connections of a session, counted. */
unsigned conns_of_session(const struct session *session);

/*
 * Queues bytes. `memory` is freed with free() when sent (or dropped with the
 * connection). -ENOMEM: it was freed and the connection is closed.
 */
int conn_send_memory(struct conn *conn, void *memory, size_t bytes);

/*
 * Queues a head and pieces of payload that belong to `rq`, at most CONN_PIECES of them;
 * `sent` gives the request back when they are out or dropped.
 */
#define CONN_PIECES 66u
void conn_send_request(struct conn *conn, struct request *rq, const void *head,
                       size_t head_bytes, const struct iovec *iov, unsigned nr_iov,
                       void (*sent)(struct request *rq));

/* False while much is queued for a peer that does not take it. */
bool conn_has_room(const struct conn *conn);

/* Credits came back or memory did: parsing goes on on the next turn. */
void conn_resume(struct conn *conn);

/* Tells the peer what is wrong (slot 0) if it can without waiting, and closes. */
void conn_protocol_error(struct conn *conn, int code, const struct thin_error *err);

#endif
