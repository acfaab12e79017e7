#include "server/online.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "server/conn.h"
#include "server/dispatch.h"
#include "server/metaview.h"
#include "server/pools.h"

struct chunk {
    STAILQ_ENTRY(chunk) link;
    size_t len;
    char bytes[ONLINE_CHUNK_BYTES];
};
STAILQ_HEAD(chunk_list, chunk);

struct online_job {
    struct request *rq;
    struct server_loop *loop;
    struct online_work work;
    struct pool_pin *pin;
    const void *superblock; /* the pin's */
    char path[POOLS_PATH_MAX];
    char pool_name[THIN_NAME_MAX + 1];
    bool has_thread;
    pthread_t thread;
    LIST_ENTRY(online_job) link;

    /* The thread's. */
    struct metaview view;
    struct chunk *open; /* being written */

    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t wake;  /* room in the queue, or `stop` */
    struct chunk_list ready;
    unsigned nr_ready;
    bool posted;
    bool finished; /* the thread has done its last work; `result` and `err` stand */
    int stop;      /* a code: nobody wants the rest, or it would be wrong */
    int result;
    struct thin_error err;
    struct loop_post post;
};

static LIST_HEAD(, online_job) jobs = LIST_HEAD_INITIALIZER(jobs);

/* ---- the thread: writing ---------------------------------------------------------------- */

/* With the lock held. */
static void
post(struct online_job *job)
{
    if (job->posted)
        return;
    job->posted = true;
    server_loop_post(job->loop, &job->post);
}

/* Hands the open piece on, and waits for room. */
static int
push(struct online_job *job)
{
    int r = 0;

    pthread_mutex_lock(&job->lock);
    while (job->nr_ready == ONLINE_CHUNKS_MAX && !job->stop)
        pthread_cond_wait(&job->wake, &job->lock);
    if (job->stop) {
        r = -THIN_E_CANCELLED;
    } else {
        STAILQ_INSERT_TAIL(&job->ready, job->open, link);
        job->open = NULL;
        job->nr_ready++;
        post(job);
    }
    pthread_mutex_unlock(&job->lock);
    return r;
}

int
online_write(void *arg, const char *bytes, size_t len)
{
    struct online_job *job = arg;
    int r = 0;

    while (len > 0 && r == 0) {
        size_t piece;

        if (!job->open) {
            job->open = malloc(sizeof(*job->open));
            if (!job->open)
                return -ENOMEM;
            job->open->len = 0;
        }
        piece = ONLINE_CHUNK_BYTES - job->open->len;
        if (piece > len)
            piece = len;
        memcpy(job->open->bytes + job->open->len, bytes, piece);
        job->open->len += piece;
        bytes += piece;
        len -= piece;
        if (job->open->len == ONLINE_CHUNK_BYTES)
            r = push(job);
    }
    return r;
}

/* ---- the thread: reading ---------------------------------------------------------------- */

static int
view_tick(void *arg, const char *what, uint64_t done, uint64_t total)
{
    struct online_job *job = arg;
    int stop;

    (void)what;
    (void)done;
    (void)total;
    pthread_mutex_lock(&job->lock);
    stop = job->stop;
    pthread_mutex_unlock(&job->lock);
    return stop != 0;
}

static int
work(struct online_job *job, struct thin_error *err)
{
    struct meta_source *src = NULL;
    int r =
        metaview_open(&job->view, job->path, job->pool_name, job->superblock, &src, err);

    if (r == 0) {
        src->progress.tick = view_tick;
        src->progress.arg = job;
        r = job->work.run(&job->work, src, job, err);
    }
    source_close(src);
    if (job->open && job->open->len > 0) {
        int pushed = push(job);

        if (pushed < 0 && r == 0)
            r = pushed;
    }
    return r;
}

static void *
thread_main(void *arg)
{
    struct online_job *job = arg;
    struct thin_error err;
    int r;

    /* The loop comes first where there are few processors. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), ONLINE_NICE);
    thin_error_init(&err);
    r = work(job, &err);
    metaview_close(&job->view);
    free(job->open);
    job->open = NULL;
    pthread_mutex_lock(&job->lock);
    job->result = r;
    job->err = err;
    job->finished = true;
    post(job);
    pthread_mutex_unlock(&job->lock);
    return NULL;
}

/* ---- the loop ---------------------------------------------------------------------------- */

/* The first reason counts. */
static void
stop_job(struct online_job *job, int code)
{
    pthread_mutex_lock(&job->lock);
    if (!job->stop)
        job->stop = code;
    pthread_cond_signal(&job->wake);
    pthread_mutex_unlock(&job->lock);
}

static const char *
stop_words(int code)
{
    switch (code) {
    case -THIN_E_NO_METADATA_SPACE:
        return "the pool needed the metadata space that this held back; try again when "
               "less is written, or grow the metadata";
    case -THIN_E_ROLLED_BACK:
        return "changes of the pool were rolled back meanwhile; try again";
    case -THIN_E_SHUTDOWN:
        return "the pool is being closed";
    default:
        return thin_strerror(code);
    }
}

static void
free_chunks(struct online_job *job)
{
    struct chunk *c;

    while ((c = STAILQ_FIRST(&job->ready))) {
        STAILQ_REMOVE_HEAD(&job->ready, link);
        free(c);
    }
    job->nr_ready = 0;
}

/* No thread any more (it has done its last work), no callback to come. */
static void
end_job(struct online_job *job)
{
    struct request *rq = job->rq;
    struct thin_error err = job->err;
    int r = job->result;

    if (job->has_thread)
        pthread_join(job->thread, NULL); /* it only has to return */
    if (job->stop) {
        r = job->stop;
        thin_fail(&err, r, "%s", stop_words(r));
    }
    LIST_REMOVE(job, link);
    pool_unpin(job->pin);
    free_chunks(job);
    pthread_cond_destroy(&job->wake);
    pthread_mutex_destroy(&job->lock);
    free(job);
    rq->work = NULL;
    rq->room = NULL;
    request_reply_code(rq, r, &err);
}

static struct chunk *
next_chunk(struct online_job *job)
{
    struct chunk *c;

    pthread_mutex_lock(&job->lock);
    c = job->stop ? NULL : STAILQ_FIRST(&job->ready);
    if (c) {
        STAILQ_REMOVE_HEAD(&job->ready, link);
        job->nr_ready--;
        pthread_cond_signal(&job->wake);
    }
    pthread_mutex_unlock(&job->lock);
    return c;
}

static void
pump(struct request *rq)
{
    struct online_job *job = rq->work;
    struct chunk *c;
    bool over;

    rq->room = NULL;
    while (request_is_wanted(rq) && conn_has_room(rq->conn) && (c = next_chunk(job))) {
        ops_reply_text(rq, c->bytes, c->len);
        free(c);
    }
    if (!request_is_wanted(rq))
        stop_job(job, -THIN_E_CANCELLED);
    pthread_mutex_lock(&job->lock);
    /* What is posted still comes here. */
    over = job->finished && !job->posted && (job->stop || job->nr_ready == 0);
    pthread_mutex_unlock(&job->lock);
    if (over)
        end_job(job);
    else
        rq->room = pump; /* there is room again, or the client is gone */
}

static void
on_post(struct loop_post *p)
{
    struct online_job *job = container_of(p, struct online_job, post);

    pthread_mutex_lock(&job->lock);
    job->posted = false;
    pthread_mutex_unlock(&job->lock);
    pump(job->rq);
}

static void
on_lost(void *arg, int why)
{
    struct online_job *job = arg;
    bool finished;

    pthread_mutex_lock(&job->lock);
    finished = job->finished; /* then all was read in time */
    pthread_mutex_unlock(&job->lock);
    if (!finished)
        stop_job(job, why); /* it looks now and then; nothing more is sent */
}

static void
on_pinned(void *arg, const void *superblock, int result, const struct thin_error *err)
{
    struct online_job *job = arg;
    int r;

    if (result < 0) {
        job->pin = NULL;
        job->result = result;
        if (err)
            job->err = *err;
        end_job(job);
        return;
    }
    job->superblock = superblock;
    if (!request_is_wanted(job->rq))
        stop_job(job, -THIN_E_CANCELLED);
    if (job->stop) {
        end_job(job);
        return;
    }
    r = pthread_create(&job->thread, NULL, thread_main, job);
    if (r) {
        job->result = thin_fail_code(&job->err, -r, "start a thread");
        end_job(job);
        return;
    }
    job->has_thread = true;
    job->rq->room = pump;
}

void
online_stop(void)
{
    struct online_job *job;

    LIST_FOREACH(job, &jobs, link)
        stop_job(job, -THIN_E_SHUTDOWN);
}

void
online_start(struct request *rq, struct pool *pool, const char *name,
             const struct online_work *work_to_do)
{
    const struct server_pool *sp = pools_find(rq->server->pools, name);
    struct online_job *job;
    struct thin_error err;
    unsigned nr = 0;
    int r;

    THIN_ASSERT(sp && sp->pool == pool);
    thin_error_init(&err);
    LIST_FOREACH(job, &jobs, link)
        nr++;
    if (nr >= ONLINE_JOBS_MAX) {
        r = thin_fail(&err, -THIN_E_BUSY,
                      "%u checks, dumps and deltas are at work already; try again later",
                      nr);
        request_reply_code(rq, r, &err);
        return;
    }
    job = calloc(1, sizeof(*job));
    if (!job) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    job->rq = rq;
    job->loop = rq->server->loop;
    job->work = *work_to_do;
    job->view.fd = -1;
    job->post.run = on_post;
    snprintf(job->path, sizeof(job->path), "%s", sp->metadata_path);
    snprintf(job->pool_name, sizeof(job->pool_name), "%s", name);
    thin_error_init(&job->err);
    STAILQ_INIT(&job->ready);
    pthread_mutex_init(&job->lock, NULL);
    pthread_cond_init(&job->wake, NULL);
    LIST_INSERT_HEAD(&jobs, job, link);
    rq->work = job;
    r = pool_pin(pool, on_pinned, on_lost, job, &job->pin, &err);
    if (r < 0) {
        job->pin = NULL;
        job->result = r;
        job->err = err;
        end_job(job);
    }
}
