#include "server/blocking.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

#include "core/base/cleanup.h"

STAILQ_HEAD(job_list, blocking_job);

struct blocking {
    pthread_t thread;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t wake;
    struct job_list jobs;
    bool stop;
};

static void
run_done(struct loop_post *post)
{
    struct blocking_job *job = container_of(post, struct blocking_job, post);

    job->done(job);
}

static void *
helper(void *arg)
{
    struct blocking *b = arg;
    struct blocking_job *job;

    pthread_mutex_lock(&b->lock);
    for (;;) {
        while (!(job = STAILQ_FIRST(&b->jobs)) && !b->stop)
            pthread_cond_wait(&b->wake, &b->lock);
        if (!job)
            break;
        STAILQ_REMOVE_HEAD(&b->jobs, link);
        pthread_mutex_unlock(&b->lock);
        job->work(job);
        job->post.run = run_done;
        server_loop_post(job->loop, &job->post);
        pthread_mutex_lock(&b->lock);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

int
blocking_create(struct blocking **ret, struct thin_error *err)
{
    struct blocking *b = calloc(1, sizeof(*b));
    int r;

    if (!b)
        return thin_fail_code(err, -ENOMEM, "create the helper thread");
    STAILQ_INIT(&b->jobs);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wake, NULL);
    r = pthread_create(&b->thread, NULL, helper, b);
    if (r) {
        free(b);
        return thin_fail_code(err, -r, "create the helper thread");
    }
    *ret = b;
    return 0;
}

void
blocking_destroy(struct blocking *b)
{
    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

void
blocking_submit(struct blocking *b, struct blocking_job *job)
{
    pthread_mutex_lock(&b->lock);
    STAILQ_INSERT_TAIL(&b->jobs, job, link);
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
}
