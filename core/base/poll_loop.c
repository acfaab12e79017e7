#include "core/base/poll_loop.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"

#define WATCHES_MAX 64 /* descriptors; tools need a handful */

TAILQ_HEAD(task_list, thin_task);
TAILQ_HEAD(timer_list, thin_timer);

struct poll_loop {
    struct thin_loop base;
    struct task_list tasks;
    struct timer_list timers; /* soonest first */
    struct thin_watch *watches[WATCHES_MAX];
    unsigned nr_watches;
};

static struct poll_loop *
to_poll(struct thin_loop *loop)
{
    return container_of(loop, struct poll_loop, base);
}

static uint64_t
poll_now_ns(struct thin_loop *loop)
{
    struct timespec ts;

    (void)loop;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static void
poll_defer(struct thin_loop *loop, struct thin_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    TAILQ_INSERT_TAIL(&to_poll(loop)->tasks, task, link);
}

static void
poll_defer_cancel(struct thin_loop *loop, struct thin_task *task)
{
    if (!task->queued)
        return;
    task->queued = false;
    TAILQ_REMOVE(&to_poll(loop)->tasks, task, link);
}

static void
poll_timer_cancel(struct thin_loop *loop, struct thin_timer *timer)
{
    if (!timer->armed)
        return;
    timer->armed = false;
    TAILQ_REMOVE(&to_poll(loop)->timers, timer, link);
}

static int
poll_timer_set(struct thin_loop *loop, struct thin_timer *timer, uint64_t when_ns)
{
    struct poll_loop *pl = to_poll(loop);
    struct thin_timer *after;

    /* Time gone by counts as now, or who arms itself in the past is always first. */
    when_ns = max_u64(when_ns, poll_now_ns(loop));
    poll_timer_cancel(loop, timer);
    timer->when_ns = when_ns;
    timer->armed = true;
    TAILQ_FOREACH(after, &pl->timers, link)
        if (after->when_ns > when_ns) {
            TAILQ_INSERT_BEFORE(after, timer, link);
            return 0;
        }
    TAILQ_INSERT_TAIL(&pl->timers, timer, link);
    return 0;
}

static int
poll_watch_set(struct thin_loop *loop, struct thin_watch *watch, unsigned wanted)
{
    struct poll_loop *pl = to_poll(loop);

    watch->wanted = wanted;
    for (unsigned i = 0; i < pl->nr_watches; i++)
        if (pl->watches[i] == watch)
            return 0;
    if (pl->nr_watches == WATCHES_MAX)
        return -THIN_E_LIMIT;
    pl->watches[pl->nr_watches++] = watch;
    return 0;
}

static void
poll_watch_cancel(struct thin_loop *loop, struct thin_watch *watch)
{
    struct poll_loop *pl = to_poll(loop);

    for (unsigned i = 0; i < pl->nr_watches; i++)
        if (pl->watches[i] == watch) {
            pl->watches[i] = pl->watches[--pl->nr_watches];
            return;
        }
}

static bool
is_watched(struct poll_loop *pl, struct thin_watch *watch)
{
    for (unsigned i = 0; i < pl->nr_watches; i++)
        if (pl->watches[i] == watch)
            return true;
    return false;
}

static void
mark_run(struct thin_task *task)
{
    (void)task;
}

/*
 * Runs the tasks queued at entry; what they defer runs at the next turn. The end is a
 * task of our own, which nobody can cancel; a turn inside a turn may run it.
 */
static void
run_tasks(struct poll_loop *pl)
{
    struct thin_task end = {.run = mark_run};

    if (TAILQ_EMPTY(&pl->tasks))
        return;
    poll_defer(&pl->base, &end);
    while (end.queued) {
        struct thin_task *task = TAILQ_FIRST(&pl->tasks);

        TAILQ_REMOVE(&pl->tasks, task, link);
        task->queued = false;
        task->run(task);
    }
}

/* Fires no more timers than are due at entry: one may arm itself in the past. */
static void
fire_timers(struct poll_loop *pl)
{
    uint64_t now = poll_now_ns(&pl->base);
    struct thin_timer *timer;
    unsigned due = 0;

    TAILQ_FOREACH(timer, &pl->timers, link) {
        if (timer->when_ns > now)
            break;
        due++;
    }
    while (due-- > 0 && (timer = TAILQ_FIRST(&pl->timers)) && timer->when_ns <= now) {
        poll_timer_cancel(&pl->base, timer);
        timer->fire(timer);
    }
}

static int
poll_wait_ms(struct poll_loop *pl)
{
    struct thin_timer *timer = TAILQ_FIRST(&pl->timers);
    uint64_t now, ms;

    if (!TAILQ_EMPTY(&pl->tasks))
        return 0;
    if (!timer)
        return -1;
    now = poll_now_ns(&pl->base);
    if (timer->when_ns <= now)
        return 0;
    ms = (timer->when_ns - now + NS_PER_MS - 1) / NS_PER_MS;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

static int
poll_run_once(struct thin_loop *loop)
{
    struct poll_loop *pl = to_poll(loop);
    struct pollfd fds[WATCHES_MAX];
    struct thin_watch *watched[WATCHES_MAX];
    unsigned n = 0;

    for (unsigned i = 0; i < pl->nr_watches; i++) {
        struct thin_watch *w = pl->watches[i];
        int events = (w->wanted & THIN_WATCH_READ ? POLLIN : 0) |
                     (w->wanted & THIN_WATCH_WRITE ? POLLOUT : 0);

        if (!w->wanted)
            continue;
        watched[n] = w;
        fds[n++] = (struct pollfd){.fd = w->fd, .events = (short)events};
    }
    if (n == 0 && TAILQ_EMPTY(&pl->tasks) && TAILQ_EMPTY(&pl->timers))
        return -EDEADLK;
    if (poll(fds, n, poll_wait_ms(pl)) < 0 && errno != EINTR)
        return -errno;
    run_tasks(pl);
    fire_timers(pl);
    for (unsigned i = 0; i < n; i++) {
        unsigned events = (fds[i].revents & POLLIN ? THIN_WATCH_READ : 0) |
                          (fds[i].revents & POLLOUT ? THIN_WATCH_WRITE : 0);

        /* Who was cancelled in this turn may be gone. */
        if (fds[i].revents == 0 || !is_watched(pl, watched[i]))
            continue;
        /* An error or hang-up wakes whoever waits for anything. */
        if (fds[i].revents & (POLLERR | POLLHUP | POLLNVAL))
            events |= watched[i]->wanted;
        if (events)
            watched[i]->ready(watched[i], events);
    }
    return 0;
}

static const struct thin_loop_ops poll_loop_ops = {
    .now_ns = poll_now_ns,
    .defer = poll_defer,
    .defer_cancel = poll_defer_cancel,
    .timer_set = poll_timer_set,
    .timer_cancel = poll_timer_cancel,
    .watch_set = poll_watch_set,
    .watch_cancel = poll_watch_cancel,
    .run_once = poll_run_once,
};

struct thin_loop *
poll_loop_create(void)
{
    struct poll_loop *pl = calloc(1, sizeof(*pl));

    if (!pl)
        return NULL;
    pl->base.ops = &poll_loop_ops;
    TAILQ_INIT(&pl->tasks);
    TAILQ_INIT(&pl->timers);
    return &pl->base;
}

void
poll_loop_destroy(struct thin_loop *loop)
{
    struct poll_loop *pl;

    if (!loop)
        return;
    pl = to_poll(loop);
    THIN_ASSERT(TAILQ_EMPTY(&pl->tasks));
    free(pl);
}
