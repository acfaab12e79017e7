#include "server/loop.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/thread.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"

TAILQ_HEAD(task_list, thin_task);
STAILQ_HEAD(post_list, loop_post);

struct server_loop {
    struct thin_loop base;
    struct event_base *events;
    struct task_list tasks;
    unsigned spin_us;
    const char *name;

    pthread_t thread;
    bool started;
    _Atomic bool stop;
    _Atomic(uintptr_t) owner; /* the running thread */

    pthread_mutex_t lock; /* guards posts and posted_wake */
    struct post_list posts;
    bool posted_wake; /* the eventfd was written and not yet read */
    int wake_fd;
    struct event *wake;
};

static struct server_loop *
to_server(struct thin_loop *loop)
{
    return container_of(loop, struct server_loop, base);
}

static uint64_t
server_now_ns(struct thin_loop *loop)
{
    struct timespec ts;

    (void)loop;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static void
server_defer(struct thin_loop *loop, struct thin_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    TAILQ_INSERT_TAIL(&to_server(loop)->tasks, task, link);
}

static void
server_defer_cancel(struct thin_loop *loop, struct thin_task *task)
{
    if (!task->queued)
        return;
    task->queued = false;
    TAILQ_REMOVE(&to_server(loop)->tasks, task, link);
}

static void
on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct thin_timer *timer = arg;

    (void)fd;
    (void)what;
    timer->armed = false;
    timer->fire(timer);
}

static int
server_timer_set(struct thin_loop *loop, struct thin_timer *timer, uint64_t when_ns)
{
    uint64_t now = server_now_ns(loop);
    uint64_t left_us = when_ns > now ? (when_ns - now + 999) / 1000 : 0;
    struct timeval tv = {.tv_sec = (time_t)(left_us / 1000000),
                         .tv_usec = (suseconds_t)(left_us % 1000000)};

    if (!timer->impl)
        timer->impl = evtimer_new(to_server(loop)->events, on_timer, timer);
    if (!timer->impl || evtimer_add(timer->impl, &tv) < 0)
        return -ENOMEM;
    timer->armed = true;
    timer->when_ns = when_ns;
    return 0;
}

static void
server_timer_cancel(struct thin_loop *loop, struct thin_timer *timer)
{
    (void)loop;
    if (timer->impl)
        event_free(timer->impl);
    timer->impl = NULL;
    timer->armed = false;
}

static void
on_watch(evutil_socket_t fd, short what, void *arg)
{
    struct thin_watch *watch = arg;

    (void)fd;
    watch->ready(watch, (what & EV_READ ? THIN_WATCH_READ : 0) |
                            (what & EV_WRITE ? THIN_WATCH_WRITE : 0));
}

static int
server_watch_set(struct thin_loop *loop, struct thin_watch *watch, unsigned wanted)
{
    struct server_loop *sl = to_server(loop);
    short what = (short)(EV_PERSIST | (wanted & THIN_WATCH_READ ? EV_READ : 0) |
                         (wanted & THIN_WATCH_WRITE ? EV_WRITE : 0));

    if (watch->impl && watch->wanted == wanted)
        return 0;
    if (watch->impl) {
        event_del(watch->impl);
        event_assign(watch->impl, sl->events, watch->fd, what, on_watch, watch);
    } else {
        watch->impl = event_new(sl->events, watch->fd, what, on_watch, watch);
    }
    watch->wanted = wanted;
    if (!watch->impl)
        return -ENOMEM;
    if (wanted && event_add(watch->impl, NULL) < 0)
        return -ENOMEM;
    return 0;
}

static void
server_watch_cancel(struct thin_loop *loop, struct thin_watch *watch)
{
    (void)loop;
    if (watch->impl)
        event_free(watch->impl);
    watch->impl = NULL;
    watch->wanted = 0;
}

/* Nothing on the server's loops waits. */
static int
server_run_once(struct thin_loop *loop)
{
    (void)loop;
    return -EDEADLK;
}

static const struct thin_loop_ops server_loop_ops = {
    .now_ns = server_now_ns,
    .defer = server_defer,
    .defer_cancel = server_defer_cancel,
    .timer_set = server_timer_set,
    .timer_cancel = server_timer_cancel,
    .watch_set = server_watch_set,
    .watch_cancel = server_watch_cancel,
    .run_once = server_run_once,
};

static void
on_wake(evutil_socket_t fd, short what, void *arg)
{
    struct server_loop *loop = arg;
    struct post_list batch = STAILQ_HEAD_INITIALIZER(batch);
    struct loop_post *post;
    uint64_t count;
    ssize_t got = read(fd, &count, sizeof(count));

    (void)what;
    (void)got; /* only a wake-up: the list tells what there is */
    pthread_mutex_lock(&loop->lock);
    STAILQ_CONCAT(&batch, &loop->posts);
    loop->posted_wake = false;
    pthread_mutex_unlock(&loop->lock);
    while ((post = STAILQ_FIRST(&batch))) {
        STAILQ_REMOVE_HEAD(&batch, link);
        post->run(post);
    }
}

void
server_loop_post(struct server_loop *loop, struct loop_post *post)
{
    bool wake;

    pthread_mutex_lock(&loop->lock);
    STAILQ_INSERT_TAIL(&loop->posts, post, link);
    wake = !loop->posted_wake;
    loop->posted_wake = true;
    pthread_mutex_unlock(&loop->lock);
    if (wake)
        eventfd_write(loop->wake_fd, 1);
}

struct thin_loop *
server_loop_thin(struct server_loop *loop)
{
    return &loop->base;
}

bool
server_loop_is_mine(const struct server_loop *loop)
{
    return atomic_load(&loop->owner) == (uintptr_t)pthread_self();
}

/* Runs the tasks queued at entry, not those that they defer. True if any ran. */
static bool
run_round(struct server_loop *loop)
{
    struct thin_task *last = TAILQ_LAST(&loop->tasks, task_list);
    struct thin_task *task;
    bool ran = false;

    while (last && (task = TAILQ_FIRST(&loop->tasks))) {
        bool end = task == last;

        TAILQ_REMOVE(&loop->tasks, task, link);
        task->queued = false;
        task->run(task);
        ran = true;
        if (end)
            break;
    }
    return ran;
}

#define TURN_ROUNDS_MAX 16u
#define TURN_NS         50000u /* then the descriptors have their turn between rounds */

/*
 * The tasks of one turn: an answer passes through a few of them on its way out, and
 * asking the kernel between each two would cost more than they do. True if any ran.
 */
static bool
run_tasks(struct server_loop *loop)
{
    uint64_t until;
    unsigned rounds = 1;

    if (TAILQ_EMPTY(&loop->tasks))
        return false;
    until = server_now_ns(&loop->base) + TURN_NS;
    while (run_round(loop) && !TAILQ_EMPTY(&loop->tasks) && rounds++ < TURN_ROUNDS_MAX &&
           server_now_ns(&loop->base) < until)
        ;
    return true;
}

#define SPIN_WORTH_NS 200000u /* a turn that slept longer was an idle one */

void
server_loop_run(struct server_loop *loop)
{
    uint64_t busy_until = 0, slept_at;

    atomic_store(&loop->owner, (uintptr_t)pthread_self());
    while (!atomic_load_explicit(&loop->stop, memory_order_relaxed)) {
        bool ran = run_tasks(loop);

        if ((ran && loop->spin_us) || !TAILQ_EMPTY(&loop->tasks)) {
            event_base_loop(loop->events, EVLOOP_ONCE | EVLOOP_NONBLOCK);
            if (loop->spin_us)
                busy_until = server_now_ns(&loop->base) + loop->spin_us * 1000ull;
            continue;
        }
        /* While the last turns found work soon, looking again beats falling asleep. */
        if (loop->spin_us && busy_until > server_now_ns(&loop->base)) {
            event_base_loop(loop->events, EVLOOP_ONCE | EVLOOP_NONBLOCK);
            continue;
        }
        slept_at = loop->spin_us ? server_now_ns(&loop->base) : 0;
        event_base_loop(loop->events, EVLOOP_ONCE);
        if (loop->spin_us) {
            uint64_t now = server_now_ns(&loop->base);

            busy_until =
                now - slept_at < SPIN_WORTH_NS ? now + loop->spin_us * 1000ull : 0;
        }
    }
    atomic_store(&loop->owner, (uintptr_t)0);
}

static void *
loop_thread(void *arg)
{
    server_loop_run(arg);
    return NULL;
}

int
server_loop_start(struct server_loop *loop, struct thin_error *err)
{
    int r = pthread_create(&loop->thread, NULL, loop_thread, loop);

    if (r)
        return thin_fail_code(err, -r, "start the thread of loop %s", loop->name);
    loop->started = true;
    return 0;
}

static void
stop_post(struct loop_post *post)
{
    free(post);
}

void
server_loop_stop(struct server_loop *loop)
{
    struct loop_post *post = calloc(1, sizeof(*post));

    atomic_store(&loop->stop, true);
    if (!post) {
        eventfd_write(loop->wake_fd, 1);
        return;
    }
    post->run = stop_post;
    server_loop_post(loop, post);
}

void
server_loop_join(struct server_loop *loop)
{
    if (loop->started)
        pthread_join(loop->thread, NULL);
    loop->started = false;
}

int
server_loop_create(const char *name, unsigned spin_us, struct server_loop **ret_loop,
                   struct thin_error *err)
{
    struct server_loop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return thin_fail_code(err, -ENOMEM, "create loop %s", name);
    loop->base.ops = &server_loop_ops;
    loop->name = name;
    loop->spin_us = spin_us;
    TAILQ_INIT(&loop->tasks);
    STAILQ_INIT(&loop->posts);
    pthread_mutex_init(&loop->lock, NULL);
    loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    loop->events = event_base_new();
    if (loop->wake_fd >= 0 && loop->events)
        loop->wake =
            event_new(loop->events, loop->wake_fd, EV_READ | EV_PERSIST, on_wake, loop);
    if (!loop->wake || event_add(loop->wake, NULL) < 0) {
        server_loop_destroy(loop);
        return thin_fail_code(err, -ENOMEM, "create loop %s", name);
    }
    *ret_loop = loop;
    return 0;
}

void
server_loop_destroy(struct server_loop *loop)
{
    struct loop_post *post;

    if (!loop)
        return;
    while ((post = STAILQ_FIRST(&loop->posts))) {
        STAILQ_REMOVE_HEAD(&loop->posts, link);
        if (post->run == stop_post)
            free(post);
    }
    if (loop->wake)
        event_free(loop->wake);
    if (loop->events)
        event_base_free(loop->events);
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}
