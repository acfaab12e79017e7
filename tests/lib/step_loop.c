#include "tests/lib/step_loop.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/cleanup.h"

TAILQ_HEAD(task_list, thin_task);

struct step_loop {
    struct thin_loop base;
    struct thin_loop *inner;
    uint64_t limit_ns;
    struct task_list tasks;
    struct thin_task pump;
    struct step_loop_stats stats;
};

struct step_timer {
    struct step_loop *loop;
    struct thin_timer inner, *outer;
};

struct step_watch {
    struct step_loop *loop;
    struct thin_watch inner, *outer;
};

static struct step_loop *
to_step(struct thin_loop *loop)
{
    return container_of(loop, struct step_loop, base);
}

static uint64_t
used_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static void *
room(size_t size)
{
    void *p = calloc(1, size);

    if (!p)
        abort();
    return p;
}

static void
note(struct step_loop *sl, uint64_t began, const void *fn)
{
    uint64_t took = used_ns() - began;
    struct step_loop_stats *stats = &sl->stats;

    stats->nr_steps++;
    if (took > stats->longest_ns)
        stats->longest_ns = took;
    if (took <= sl->limit_ns)
        return;
    stats->nr_long++;
    for (unsigned i = 0; i < STEP_LOOP_LONG_MAX; i++)
        if (!stats->longs[i].fn || stats->longs[i].fn == fn) {
            stats->longs[i].fn = fn;
            stats->longs[i].nr++;
            if (took > stats->longs[i].longest_ns)
                stats->longs[i].longest_ns = took;
            break;
        }
}

/* The function's address, as a word that can be told. */
#define ADDRESS(fn) ((const void *)(uintptr_t)(fn))

static uint64_t
step_now_ns(struct thin_loop *loop)
{
    return loop_now_ns(to_step(loop)->inner);
}

/* What was queued at entry; the rest at the next turn. */
static void
pump_run(struct thin_task *pump)
{
    struct step_loop *sl = container_of(pump, struct step_loop, pump);
    struct thin_task *last = TAILQ_LAST(&sl->tasks, task_list), *task;
    bool ended = false;

    while (!ended && (task = TAILQ_FIRST(&sl->tasks))) {
        uint64_t began = used_ns();
        const void *fn = ADDRESS(task->run);

        ended = task == last;
        TAILQ_REMOVE(&sl->tasks, task, link);
        task->queued = false;
        task->run(task);
        note(sl, began, fn);
    }
    if (!TAILQ_EMPTY(&sl->tasks))
        loop_defer(sl->inner, &sl->pump);
}

static void
step_defer(struct thin_loop *loop, struct thin_task *task)
{
    struct step_loop *sl = to_step(loop);

    if (task->queued)
        return;
    task->queued = true;
    TAILQ_INSERT_TAIL(&sl->tasks, task, link);
    loop_defer(sl->inner, &sl->pump);
}

static void
step_defer_cancel(struct thin_loop *loop, struct thin_task *task)
{
    if (!task->queued)
        return;
    task->queued = false;
    TAILQ_REMOVE(&to_step(loop)->tasks, task, link);
}

static void
timer_fired(struct thin_timer *timer)
{
    struct step_timer *st = container_of(timer, struct step_timer, inner);
    struct step_loop *sl = st->loop;
    struct thin_timer *outer = st->outer;
    const void *fn = ADDRESS(outer->fire);
    uint64_t began = used_ns();

    outer->armed = false;
    outer->fire(outer);
    note(sl, began, fn);
}

static int
step_timer_set(struct thin_loop *loop, struct thin_timer *timer, uint64_t when_ns)
{
    struct step_loop *sl = to_step(loop);
    struct step_timer *st = timer->impl;

    if (!st) {
        st = room(sizeof(*st));
        st->loop = sl;
        st->outer = timer;
        st->inner.fire = timer_fired;
        timer->impl = st;
    }
    timer->armed = true;
    timer->when_ns = when_ns;
    return loop_timer_set(sl->inner, &st->inner, when_ns);
}

static void
step_timer_cancel(struct thin_loop *loop, struct thin_timer *timer)
{
    struct step_timer *st = timer->impl;

    timer->armed = false;
    if (!st)
        return;
    loop_timer_cancel(to_step(loop)->inner, &st->inner);
    free(st);
    timer->impl = NULL;
}

static void
watch_ready(struct thin_watch *watch, unsigned events)
{
    struct step_watch *sw = container_of(watch, struct step_watch, inner);
    struct step_loop *sl = sw->loop;
    struct thin_watch *outer = sw->outer;
    const void *fn = ADDRESS(outer->ready);
    uint64_t began = used_ns();

    outer->ready(outer, events);
    note(sl, began, fn);
}

static int
step_watch_set(struct thin_loop *loop, struct thin_watch *watch, unsigned wanted)
{
    struct step_loop *sl = to_step(loop);
    struct step_watch *sw = watch->impl;

    if (!sw) {
        sw = room(sizeof(*sw));
        sw->loop = sl;
        sw->outer = watch;
        sw->inner.ready = watch_ready;
        sw->inner.fd = watch->fd;
        watch->impl = sw;
    }
    watch->wanted = wanted;
    return loop_watch_set(sl->inner, &sw->inner, wanted);
}

static void
step_watch_cancel(struct thin_loop *loop, struct thin_watch *watch)
{
    struct step_watch *sw = watch->impl;

    if (!sw)
        return;
    loop_watch_cancel(to_step(loop)->inner, &sw->inner);
    free(sw);
    watch->impl = NULL;
}

static int
step_run_once(struct thin_loop *loop)
{
    return loop_run_once(to_step(loop)->inner);
}

static const struct thin_loop_ops step_loop_ops = {
    .now_ns = step_now_ns,
    .defer = step_defer,
    .defer_cancel = step_defer_cancel,
    .timer_set = step_timer_set,
    .timer_cancel = step_timer_cancel,
    .watch_set = step_watch_set,
    .watch_cancel = step_watch_cancel,
    .run_once = step_run_once,
};

struct thin_loop *
step_loop_create(struct thin_loop *inner, uint64_t limit_ns)
{
    struct step_loop *sl = room(sizeof(*sl));

    sl->base.ops = &step_loop_ops;
    sl->inner = inner;
    sl->limit_ns = limit_ns;
    sl->pump.run = pump_run;
    TAILQ_INIT(&sl->tasks);
    return &sl->base;
}

void
step_loop_destroy(struct thin_loop *loop)
{
    struct step_loop *sl = loop ? to_step(loop) : NULL;

    if (!sl)
        return;
    loop_defer_cancel(sl->inner, &sl->pump);
    free(sl);
}

void
step_loop_get(struct thin_loop *loop, struct step_loop_stats *ret_stats)
{
    *ret_stats = to_step(loop)->stats;
}

void
step_loop_reset(struct thin_loop *loop)
{
    memset(&to_step(loop)->stats, 0, sizeof(to_step(loop)->stats));
}
