/*
 * The first words on a connection: version, features, limits, and which session it is
 * of. Main loop only.
 */
#ifndef THIN_SERVER_HELLO_H
#define THIN_SERVER_HELLO_H

#include "proto/message.h"
#include "server/conn.h"

/* Answers a Hello; the reply may wait for the end of what an older connection of a
   resumed session had in flight. A negative code closes the connection with it. */
int hello_arrived(struct conn *conn, const Thin__Hello *hello, struct thin_error *err);

/* The session's last old request has ended: the waiting resume is answered. */
void hello_session_quiet(struct session *session);

/* A reply to nothing (slot 0, seq 0): why the connection is closed. */
void hello_send_last_words(struct conn *conn, int code, const char *words);

/* A reply on slot 0. `reply` may have a body; it is encoded here. */
void hello_send(struct conn *conn, Thin__Reply *reply);

#endif
