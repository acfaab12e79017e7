/*
 * The file device's threads. Each lane has a queue and a few threads that start when
 * there is something for them; everything shared is under f->lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/device/file_private.h"

static const unsigned lane_threads[FILE_LANES] = {
    [FILE_LANE_IO] = FILE_IO_THREADS,
    [FILE_LANE_WRITE] = 1,
    [FILE_LANE_FLUSH] = 1,
    [FILE_LANE_SPACE] = 1,
};

/* Wakes the loop, once for all that ends until it looks. Called with the lock held. */
static void
wake_loop(struct file_device *f)
{
    uint64_t one = 1;
    ssize_t n;

    if (f->woken)
        return;
    f->woken = true;
    do
        n = write(f->wake_fd, &one, sizeof(one));
    while (n < 0 && errno == EINTR);
}

static void
post_done(struct file_device *f, struct device_io *io, int result)
{
    io->result = result;
    TAILQ_INSERT_TAIL(&f->done, io, link);
}

/* Takes up to `max` requests and runs them; the lock is held before and after. */
static void
run_requests(struct file_thread *t, unsigned max)
{
    struct device_io_list taken = TAILQ_HEAD_INITIALIZER(taken);
    struct file_device *f = t->f;
    struct device_io *io;

    while (max-- > 0 && (io = TAILQ_FIRST(&t->lane->queue))) {
        TAILQ_REMOVE(&t->lane->queue, io, link);
        TAILQ_INSERT_TAIL(&taken, io, link);
        t->lane->nr_queued--;
    }
    pthread_mutex_unlock(&f->lock);
    TAILQ_FOREACH(io, &taken, link)
        io->result = file_run(f, io, &t->bounce);
    pthread_mutex_lock(&f->lock);
    TAILQ_CONCAT(&f->done, &taken, link);
    wake_loop(f);
}

/* One fdatasync answers all who asked before it started. */
static void
run_flushes(struct file_thread *t)
{
    struct device_io_list taken = TAILQ_HEAD_INITIALIZER(taken);
    struct file_device *f = t->f;
    struct device_io *io;
    int r;

    TAILQ_CONCAT(&taken, &t->lane->queue, link);
    t->lane->nr_queued = 0;
    pthread_mutex_unlock(&f->lock);
    r = file_flush(f);
    pthread_mutex_lock(&f->lock);
    while ((io = TAILQ_FIRST(&taken))) {
        TAILQ_REMOVE(&taken, io, link);
        post_done(f, io, r);
    }
    wake_loop(f);
}

static void
run_writeback(struct file_device *f)
{
    uint64_t begin = f->writeback_begin, end = f->writeback_end;
    bool crowded;
    int r = 0;

    f->writeback_wanted = false;
    pthread_mutex_unlock(&f->lock);
    crowded = file_dirty_crowded();
    /* A length of 0 would mean: to the end of the file. */
    if (crowded)
        r = sync_file_range(f->fd, 0, 0, SYNC_FILE_RANGE_WRITE) < 0 ? -errno : 0;
    else if (begin < end)
        r = sync_file_range(f->fd, (off_t)begin, (off_t)(end - begin),
                            SYNC_FILE_RANGE_WRITE) < 0
                ? -errno
                : 0;
    pthread_mutex_lock(&f->lock);
    /* An error told here might not be told again by fdatasync. */
    if (r < 0 && r != -EINTR && r != -ESPIPE && r != -EINVAL && r != -ENOSYS &&
        f->sync_error == 0)
        f->sync_error = r;
    f->found_crowded = crowded;
    f->writeback_done = true;
    wake_loop(f);
}

static void
run_close(struct file_device *f)
{
    int fd = f->fd;

    f->close_wanted = false;
    f->fd = -1;
    pthread_mutex_unlock(&f->lock);
    /* Nothing hangs on the result: what had to last has been flushed. */
    close(fd);
    pthread_mutex_lock(&f->lock);
    f->close_done = true;
    wake_loop(f);
}

static void *
thread_main(void *arg)
{
    struct file_thread *t = arg;
    struct file_device *f = t->f;
    struct file_lane *lane = t->lane;
    bool flushes = lane == &f->lanes[FILE_LANE_FLUSH];
    unsigned batch = lane == &f->lanes[FILE_LANE_WRITE] ? FILE_WRITE_BATCH : 1;

    pthread_mutex_lock(&f->lock);
    for (;;) {
        if (lane->nr_queued > 0 && flushes)
            run_flushes(t);
        else if (lane->nr_queued > 0)
            run_requests(t, batch);
        else if (flushes && f->writeback_wanted)
            run_writeback(f);
        else if (flushes && f->close_wanted)
            run_close(f);
        else if (f->stop)
            break;
        else {
            lane->nr_idle++;
            pthread_cond_wait(&lane->wake, &f->lock);
            lane->nr_idle--;
        }
    }
    pthread_mutex_unlock(&f->lock);
    free(t->bounce.buf);
    return NULL;
}

/* Signals are for the loops: a thread that took one would be the wrong one. */
static int
start_thread(struct file_device *f, struct file_lane *lane)
{
    struct file_thread *t = &lane->threads[lane->nr_threads];
    sigset_t all, old;
    int r;

    t->f = f;
    t->lane = lane;
    t->bounce.buf = NULL;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&t->id, NULL, thread_main, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r == 0)
        lane->nr_threads++;
    return -r;
}

/* Sees to it that somebody comes for what was queued. Called with the lock held. */
static int
summon(struct file_device *f, struct file_lane *lane, unsigned nr_waiting)
{
    int r = 0;

    if (lane->nr_idle < nr_waiting && lane->nr_threads < lane->max_threads)
        r = start_thread(f, lane);
    if (lane->nr_threads == 0)
        return r < 0 ? r : -EAGAIN;
    if (lane->nr_idle > 0)
        pthread_cond_signal(&lane->wake);
    return 0;
}

int
file_lane_push(struct file_device *f, enum file_lane_id id, struct device_io *io)
{
    struct file_lane *lane = &f->lanes[id];
    int r = file_wake_start(f);

    if (r < 0)
        return -EAGAIN;
    pthread_mutex_lock(&f->lock);
    r = summon(f, lane, lane->nr_queued + 1);
    if (r == 0) {
        TAILQ_INSERT_TAIL(&lane->queue, io, link);
        lane->nr_queued++;
    }
    pthread_mutex_unlock(&f->lock);
    return r < 0 ? -EAGAIN : 0;
}

bool
file_lane_start_writeback(struct file_device *f, uint64_t begin, uint64_t end)
{
    bool started;

    if (file_wake_start(f) < 0)
        return false;
    pthread_mutex_lock(&f->lock);
    started = summon(f, &f->lanes[FILE_LANE_FLUSH], 1) == 0;
    f->writeback_wanted = started;
    f->writeback_begin = begin;
    f->writeback_end = end;
    pthread_mutex_unlock(&f->lock);
    return started;
}

bool
file_lane_start_close(struct file_device *f)
{
    bool started;

    if (file_wake_start(f) < 0)
        return false;
    pthread_mutex_lock(&f->lock);
    started = summon(f, &f->lanes[FILE_LANE_FLUSH], 1) == 0;
    f->close_wanted = started;
    pthread_mutex_unlock(&f->lock);
    return started;
}

bool
file_lane_has_thread(struct file_device *f, enum file_lane_id id)
{
    /* Only the loop starts threads, so it may look without the lock. */
    return f->lanes[id].nr_threads > 0;
}

int
file_lanes_init(struct file_device *f)
{
    int r = pthread_mutex_init(&f->lock, NULL);

    f->lock_ready = r == 0;
    for (unsigned i = 0; i < FILE_LANES; i++) {
        TAILQ_INIT(&f->lanes[i].queue);
        f->lanes[i].max_threads = lane_threads[i];
    }
    for (unsigned i = 0; i < FILE_LANES && r == 0; i++) {
        r = pthread_cond_init(&f->lanes[i].wake, NULL);
        f->lanes[i].ready = r == 0;
    }
    return -r;
}

void
file_lanes_fini(struct file_device *f)
{
    if (!f->lock_ready)
        return;
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    for (unsigned i = 0; i < FILE_LANES; i++)
        if (f->lanes[i].ready)
            pthread_cond_broadcast(&f->lanes[i].wake);
    pthread_mutex_unlock(&f->lock);
    for (unsigned i = 0; i < FILE_LANES; i++) {
        struct file_lane *lane = &f->lanes[i];

        for (unsigned j = 0; j < lane->nr_threads; j++)
            pthread_join(lane->threads[j].id, NULL);
        THIN_ASSERT(TAILQ_EMPTY(&lane->queue));
        if (lane->ready)
            pthread_cond_destroy(&lane->wake);
    }
    pthread_mutex_destroy(&f->lock);
}
