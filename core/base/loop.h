/*
 * What a state machine needs of whoever drives it: time, "later", timers and
 * descriptors. The server gives libevent's loop, tools give poll_loop.h, tests give a
 * simulated one with a virtual clock. Everything is on one thread: the loop's.
 *
 * Callbacks are never made from inside the call that registered them. Deferred tasks
 * run in the order in which they were deferred.
 */
#ifndef THIN_CORE_BASE_LOOP_H
#define THIN_CORE_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#define NS_PER_MS  1000000ull
#define NS_PER_SEC 1000000000ull

struct thin_loop;

/* Runs once, soon. Embed; owner keeps it alive until it ran or was cancelled. */
struct thin_task {
    void (*run)(struct thin_task *task);
    bool queued;
    TAILQ_ENTRY(thin_task) link;
};

/* Fires once at its time. Embed; zero it before first use. */
struct thin_timer {
    void (*fire)(struct thin_timer *timer);
    bool armed;
    uint64_t when_ns;
    void *impl; /* the loop's */
    TAILQ_ENTRY(thin_timer) link;
};

#define THIN_WATCH_READ  1u
#define THIN_WATCH_WRITE 2u

/* Calls `ready` while the descriptor is ready for one of the wanted events. Embed. */
struct thin_watch {
    void (*ready)(struct thin_watch *watch, unsigned events);
    int fd;
    unsigned wanted;
    void *impl; /* the loop's */
};

struct thin_loop_ops {
    uint64_t (*now_ns)(struct thin_loop *loop);
    void (*defer)(struct thin_loop *loop, struct thin_task *task);
    void (*defer_cancel)(struct thin_loop *loop, struct thin_task *task);
    int (*timer_set)(struct thin_loop *loop, struct thin_timer *timer, uint64_t when_ns);
    void (*timer_cancel)(struct thin_loop *loop, struct thin_timer *timer);
    int (*watch_set)(struct thin_loop *loop, struct thin_watch *watch, unsigned wanted);
    void (*watch_cancel)(struct thin_loop *loop, struct thin_watch *watch);
    int (*run_once)(struct thin_loop *loop);
};

struct thin_loop {
    const struct thin_loop_ops *ops;
};

/* Monotonic, in nanoseconds from an unknown start. */
static inline uint64_t
loop_now_ns(struct thin_loop *loop)
{
    return loop->ops->now_ns(loop);
}

/* Deferring a task that is queued already does nothing. */
static inline void
loop_defer(struct thin_loop *loop, struct thin_task *task)
{
    loop->ops->defer(loop, task);
}

static inline void
loop_defer_cancel(struct thin_loop *loop, struct thin_task *task)
{
    loop->ops->defer_cancel(loop, task);
}

/* Arms or moves the timer. 0, or -ENOMEM the first time a timer is armed. */
static inline int
loop_timer_set(struct thin_loop *loop, struct thin_timer *timer, uint64_t when_ns)
{
    return loop->ops->timer_set(loop, timer, when_ns);
}

/* Harmless on a timer that is not armed; frees what the loop keeps for it. */
static inline void
loop_timer_cancel(struct thin_loop *loop, struct thin_timer *timer)
{
    loop->ops->timer_cancel(loop, timer);
}

/* Starts watching watch->fd, or changes what is wanted (0: keep, but sleep). */
static inline int
loop_watch_set(struct thin_loop *loop, struct thin_watch *watch, unsigned wanted)
{
    return loop->ops->watch_set(loop, watch, wanted);
}

static inline void
loop_watch_cancel(struct thin_loop *loop, struct thin_watch *watch)
{
    loop->ops->watch_cancel(loop, watch);
}

/*
 * For waiting callers (tools, tests): runs what is ready, waiting until something is.
 * 0, or a negative code; -EDEADLK when nothing is queued, armed or watched.
 * Loops of the server refuse it: nothing there waits.
 */
static inline int
loop_run_once(struct thin_loop *loop)
{
    return loop->ops->run_once(loop);
}

#endif
