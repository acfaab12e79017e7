#include "tests/lib/step_loop.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "core/base/cleanup.h"

TAILQ_HEAD(task_list, thin_task);

struct step_loop {
    struct thin_loop base;
    struct thin_loop *inner;
    uint64_t limit_ns;
    const uint64_t *io_ns; /* NULL: not counted */
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

static struct step_cost
cost_now(struct step_loop *sl)
{
    struct step_cost cost = {.took_ns = loop_now_ns(sl->inner)};
    struct timespec ts;
    struct rusage usage;

    cost.io_ns = sl->io_ns ? *sl->io_ns : 0;
    getrusage(RUSAGE_THREAD, &usage);
    cost.faults = (uint64_t)usage.ru_minflt;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    cost.used_ns = (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
    return cost;
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
note(struct step_loop *sl, struct step_cost began, const void *fn, bool is_word)
{
    struct step_cost cost = cost_now(sl);
    struct step_loop_stats *stats = &sl->stats;

    cost.used_ns -= began.used_ns;
    cost.took_ns -= began.took_ns;
    cost.faults -= began.faults;
    cost.io_ns -= began.io_ns;
    stats->nr_steps++;
    stats->used_ns += cost.used_ns;
    if (cost.used_ns > stats->longest.used_ns)
        stats->longest = cost;
    if (cost.used_ns <= sl->limit_ns)
        return;
    stats->nr_long++;
    stats->nr_own_long += cost.used_ns - cost.io_ns > sl->limit_ns;
    for (unsigned i = 0; i < STEP_LOOP_LONG_MAX; i++)
        if (!stats->longs[i].fn || stats->longs[i].fn == fn) {
            stats->longs[i].fn = fn;
            stats->longs[i].is_word = is_word;
            stats->longs[i].nr++;
            if (cost.used_ns > stats->longs[i].longest.used_ns)
                stats->longs[i].longest = cost;
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
        struct step_cost began = cost_now(sl);
        const void *fn = ADDRESS(task->run);

        ended = task == last;
        TAILQ_REMOVE(&sl->tasks, task, link);
        task->queued = false;
        task->run(task);
        note(sl, began, fn, false);
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
    struct step_cost began = cost_now(sl);

    outer->armed = false;
    outer->fire(outer);
    note(sl, began, fn, false);
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
    struct step_cost began = cost_now(sl);

    outer->ready(outer, events);
    note(sl, began, fn, false);
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
step_loop_count_io(struct thin_loop *loop, const uint64_t *io_ns)
{
    to_step(loop)->io_ns = io_ns;
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

struct step_cost
step_loop_begin(struct thin_loop *loop)
{
    return cost_now(to_step(loop));
}

void
step_loop_end(struct thin_loop *loop, struct step_cost began, const char *word)
{
    note(to_step(loop), began, word, true);
}
