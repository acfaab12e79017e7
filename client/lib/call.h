/*
 * Management calls for thincli: any request of thin.proto, and its replies as they
 * come. Inside this tree only, not exported by the library. Rules for threads, waiting
 * and callbacks as in thinclient.h.
 */
#ifndef THIN_CLIENT_CALL_H
#define THIN_CLIENT_CALL_H

#include <stddef.h>

#include "client/lib/thinclient.h"
#include "core/base/error.h"
#include "proto/message.h"

/*
 * Sends the request (body set; slot and sequence are set here) once connected and runs
 * the client until the last reply. `on_reply` is called for each reply whose code is 0:
 * once, or for long answers several times (`more` set on all but the last); reply and
 * payload live during the callback only. Anything negative that it returns ends the
 * call with that code: further replies are dropped and a long job is told to stop. It
 * may be NULL where only success matters.
 *
 * 0, or the server's code with its words in `err`; -THIN_E_DISCONNECTED when the
 * connection broke after a part of the answer; -THIN_E_UNKNOWN_OUTCOME when the server
 * was restarted before it answered something that changes the pool. Connects by itself
 * if thin_client_connect was not called before.
 */
int client_call_wait(struct thin_client *client, const Thin__Request *request,
                     int (*on_reply)(void *arg, const Thin__Reply *reply,
                                     const void *payload, size_t payload_bytes),
                     void *arg, struct thin_error *err);

/*
 * The same without waiting: `done` brings the result and the words, exactly once, after
 * the last `on_reply`. The request is encoded before the call returns. 0, -ENOMEM,
 * -THIN_E_LIMIT.
 */
int client_call_start(struct thin_client *client, const Thin__Request *request,
                      int (*on_reply)(void *arg, const Thin__Reply *reply,
                                      const void *payload, size_t payload_bytes),
                      void (*done)(void *arg, int result, const char *words), void *arg,
                      struct thin_error *err);

/*
 * Runs the client until something happened or `timeout_ms` (-1: for ever) is over; for
 * `server events --follow` and the like. 0, or the code of a client that cannot come
 * back.
 */
int client_run_wait(struct thin_client *client, int timeout_ms, struct thin_error *err);

/* The event's message itself, beside the public callback. NULL: none. */
void client_set_event_message_callback(struct thin_client *client,
                                       void (*on_event)(void *arg,
                                                        const Thin__Event *event),
                                       void *arg);

#endif
