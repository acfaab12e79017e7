/*
 * A worker loop: libevent's base behind core/base/loop.h, on a thread of its own (the
 * first one runs on the main thread), and posting between loops.
 *
 * Everything that belongs to a loop is touched on its thread only. What crosses is
 * posted, after which the sender does not touch it. A turn: deferred tasks, posts,
 * then the descriptors and timers that are ready.
 */
#ifndef THIN_SERVER_LOOP_H
#define THIN_SERVER_LOOP_H

#include <sys/queue.h>

#include "core/base/error.h"
#include "core/base/loop.h"

struct server_loop;

/* One message between loops. Embed it; it belongs to the receiver once posted. */
struct loop_post {
    void (*run)(struct loop_post *post);
    STAILQ_ENTRY(loop_post) link;
};

/* `name` is for logs; `spin_us`: how long an active loop looks again before it
   sleeps (0: never). */
int server_loop_create(const char *name, unsigned spin_us, struct server_loop **ret_loop,
                       struct thin_error *err);
/* The loop has ended. NULL is fine. */
void server_loop_destroy(struct server_loop *loop);

struct thin_loop *server_loop_thin(struct server_loop *loop);

/* Runs on the calling thread until server_loop_stop. */
void server_loop_run(struct server_loop *loop);
/* Runs on a new thread. */
int server_loop_start(struct server_loop *loop, struct thin_error *err);
/* From any thread: the loop ends after its present turn. */
void server_loop_stop(struct server_loop *loop);
/* Waits for a started loop's thread; only at the server's end. */
void server_loop_join(struct server_loop *loop);

/* From any thread. Posts run in the order in which they were posted. */
void server_loop_post(struct server_loop *loop, struct loop_post *post);

/* True on the loop's own thread. */
bool server_loop_is_mine(const struct server_loop *loop);

#endif
