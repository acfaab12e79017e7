#include "tests/lib/sim_loop.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/base/random.h"

#define STEPS_MAX 10000000u

TAILQ_HEAD(sim_tasks, thin_task);

/* An entry of the heap; timer->impl keeps its index + 1. */
struct sim_entry {
    uint64_t when_ns;
    uint64_t tie;
    struct thin_timer *timer;
};

struct sim_loop {
    struct thin_loop base;
    struct thin_random rng;
    uint64_t now_ns;
    uint64_t steps;
    uint64_t trace;
    struct sim_tasks tasks;
    struct sim_entry *heap;
    size_t nr_timers, max_timers;
};

static struct sim_loop *
to_sim(struct thin_loop *loop)
{
    return container_of(loop, struct sim_loop, base);
}

static const struct sim_loop *
to_const_sim(const struct thin_loop *loop)
{
    return (const struct sim_loop *)(const void *)loop;
}

/* ---- the heap of timers --------------------------------------------------------- */

static bool
sooner(const struct sim_entry *a, const struct sim_entry *b)
{
    return a->when_ns != b->when_ns ? a->when_ns < b->when_ns : a->tie < b->tie;
}

static void
place(struct sim_loop *sim, size_t i, struct sim_entry e)
{
    sim->heap[i] = e;
    e.timer->impl = (void *)(uintptr_t)(i + 1);
}

static void
sift(struct sim_loop *sim, size_t i, struct sim_entry e)
{
    while (i > 0 && sooner(&e, &sim->heap[(i - 1) / 2])) {
        place(sim, i, sim->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= sim->nr_timers)
            break;
        if (child + 1 < sim->nr_timers &&
            sooner(&sim->heap[child + 1], &sim->heap[child]))
            child++;
        if (!sooner(&sim->heap[child], &e))
            break;
        place(sim, i, sim->heap[child]);
        i = child;
    }
    place(sim, i, e);
}

static void
heap_remove(struct sim_loop *sim, struct thin_timer *timer)
{
    size_t i = (uintptr_t)timer->impl - 1;
    struct sim_entry last = sim->heap[--sim->nr_timers];

    timer->armed = false;
    timer->impl = NULL;
    if (last.timer != timer)
        sift(sim, i, last);
}

/* ---- the loop ---------------------------------------------------------------------- */

static uint64_t
sim_now_ns(struct thin_loop *loop)
{
    return to_sim(loop)->now_ns;
}

static void
sim_defer(struct thin_loop *loop, struct thin_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    TAILQ_INSERT_TAIL(&to_sim(loop)->tasks, task, link);
}

static void
sim_defer_cancel(struct thin_loop *loop, struct thin_task *task)
{
    if (!task->queued)
        return;
    task->queued = false;
    TAILQ_REMOVE(&to_sim(loop)->tasks, task, link);
}

static void
sim_timer_cancel(struct thin_loop *loop, struct thin_timer *timer)
{
    if (timer->armed)
        heap_remove(to_sim(loop), timer);
}

static int
sim_timer_set(struct thin_loop *loop, struct thin_timer *timer, uint64_t when_ns)
{
    struct sim_loop *sim = to_sim(loop);

    sim_timer_cancel(loop, timer);
    if (sim->nr_timers == sim->max_timers) {
        size_t max = sim->max_timers ? 2 * sim->max_timers : 64;
        struct sim_entry *heap = realloc(sim->heap, max * sizeof(*heap));

        if (!heap)
            return -ENOMEM;
        sim->heap = heap;
        sim->max_timers = max;
    }
    timer->armed = true;
    timer->when_ns = when_ns;
    sim->nr_timers++;
    sift(sim, sim->nr_timers - 1,
         (struct sim_entry){
             .when_ns = when_ns, .tie = random_u64(&sim->rng), .timer = timer});
    return 0;
}

static int
sim_watch_set(struct thin_loop *loop, struct thin_watch *watch, unsigned wanted)
{
    (void)loop;
    (void)watch;
    (void)wanted;
    return -THIN_E_UNSUPPORTED;
}

static void
sim_watch_cancel(struct thin_loop *loop, struct thin_watch *watch)
{
    (void)loop;
    (void)watch;
}

static void
count_step(struct sim_loop *sim, uint64_t kind)
{
    sim->steps++;
    sim->trace = (sim->trace ^ sim->now_ns ^ kind) * 0x9e3779b97f4a7c15u;
    sim->trace ^= sim->trace >> 29;
}

bool
sim_loop_step(struct thin_loop *loop)
{
    struct sim_loop *sim = to_sim(loop);
    struct thin_task *task = TAILQ_FIRST(&sim->tasks);
    struct thin_timer *timer;

    if (task) {
        TAILQ_REMOVE(&sim->tasks, task, link);
        task->queued = false;
        count_step(sim, 1);
        task->run(task);
        return true;
    }
    if (sim->nr_timers == 0)
        return false;
    timer = sim->heap[0].timer;
    if (timer->when_ns > sim->now_ns)
        sim->now_ns = timer->when_ns;
    heap_remove(sim, timer);
    count_step(sim, 2);
    timer->fire(timer);
    return true;
}

static int
sim_run_once(struct thin_loop *loop)
{
    return sim_loop_step(loop) ? 0 : -EDEADLK;
}

static const struct thin_loop_ops sim_loop_ops = {
    .now_ns = sim_now_ns,
    .defer = sim_defer,
    .defer_cancel = sim_defer_cancel,
    .timer_set = sim_timer_set,
    .timer_cancel = sim_timer_cancel,
    .watch_set = sim_watch_set,
    .watch_cancel = sim_watch_cancel,
    .run_once = sim_run_once,
};

struct thin_loop *
sim_loop_create(uint64_t seed)
{
    struct sim_loop *sim = calloc(1, sizeof(*sim));

    THIN_ASSERT(sim);
    sim->base.ops = &sim_loop_ops;
    random_seed(&sim->rng, seed);
    sim->now_ns = NS_PER_SEC;
    TAILQ_INIT(&sim->tasks);
    return &sim->base;
}

void
sim_loop_destroy(struct thin_loop *loop)
{
    if (!loop)
        return;
    sim_loop_forget_all(loop);
    free(to_sim(loop)->heap);
    free(to_sim(loop));
}

void
sim_loop_forget_all(struct thin_loop *loop)
{
    struct sim_loop *sim = to_sim(loop);
    struct thin_task *task;

    while ((task = TAILQ_FIRST(&sim->tasks)))
        sim_defer_cancel(loop, task);
    while (sim->nr_timers > 0)
        heap_remove(sim, sim->heap[0].timer);
}

void
sim_loop_run_until_idle(struct thin_loop *loop, uint64_t max_steps)
{
    uint64_t left = max_steps ? max_steps : STEPS_MAX;

    while (sim_loop_step(loop)) {
        THIN_ASSERT(left > 0);
        left--;
    }
}

void
sim_loop_run_until(struct thin_loop *loop, uint64_t until_ns)
{
    struct sim_loop *sim = to_sim(loop);

    while (!TAILQ_EMPTY(&sim->tasks) ||
           (sim->nr_timers > 0 && sim->heap[0].when_ns <= until_ns))
        sim_loop_step(loop);
    if (sim->now_ns < until_ns)
        sim->now_ns = until_ns;
}

uint64_t
sim_loop_steps(const struct thin_loop *loop)
{
    return to_const_sim(loop)->steps;
}

uint64_t
sim_loop_trace(const struct thin_loop *loop)
{
    return to_const_sim(loop)->trace;
}
