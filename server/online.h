/*
 * Long reads of a served pool's metadata: each on a thread of its own, over a pinned view
 * of the durable state, so that neither the loop nor `blocking` waits for them.
 *
 *   online_start ─ pool_pin ─► thread: open the metadata device for reading, run, write
 *        text ─► bounded queue ─► loop: replies with `more` ─► the last reply, unpin
 *
 * The text waits for the client in ONLINE_CHUNKS_MAX pieces; then the thread waits. A job
 * ends early when its client is gone or cancels, when the pool takes its view back, and
 * when the server stops. All calls but online_write: main loop.
 */
#ifndef THIN_SERVER_ONLINE_H
#define THIN_SERVER_ONLINE_H

#include "core/base/error.h"
#include "core/offline/source.h"
#include "server/request.h"

#define ONLINE_JOBS_MAX    4u
#define ONLINE_CHUNK_BYTES (128u << 10)
#define ONLINE_CHUNKS_MAX  8u /* written and not yet sent, of one job */
#define ONLINE_NICE        10 /* of its thread, against the loop's 0 */

struct online_job;

/* What is to be done; copied. `run` is on the job's thread: 0, or a code for the last
   reply, with words that a peer may read. */
struct online_work {
    int (*run)(const struct online_work *work, struct meta_source *src,
               struct online_job *job, struct thin_error *err);
    int format;
    uint32_t left, right; /* thin devices */
};

/* Answers the request, now or later. `pool` is open and called `name`. */
void online_start(struct request *rq, struct pool *pool, const char *name,
                  const struct online_work *work);
/* Those that run end soon, with -THIN_E_SHUTDOWN. */
void online_stop(void);

/* From `run`: appends to the answer; waits while the client does not read. The `job` is a
   void pointer so that a text buffer may write here. -THIN_E_CANCELLED, -ENOMEM. */
int online_write(void *job, const char *bytes, size_t len);

#endif
