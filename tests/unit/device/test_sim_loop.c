#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "tests/lib/sim_loop.h"

struct note {
    struct thin_task task;
    struct thin_timer timer;
    struct thin_loop *loop;
    struct note *then; /* deferred from inside the callback */
    int id;
};

static int order[32];
static unsigned nr_order;

static void
task_run(struct thin_task *task)
{
    struct note *n = container_of(task, struct note, task);

    order[nr_order++] = n->id;
    if (n->then)
        loop_defer(n->loop, &n->then->task);
}

static void
timer_fire(struct thin_timer *timer)
{
    struct note *n = container_of(timer, struct note, timer);

    order[nr_order++] = n->id;
    if (n->then)
        loop_defer(n->loop, &n->then->task);
}

static struct note
note(struct thin_loop *loop, int id, struct note *then)
{
    return (struct note){.task.run = task_run,
                         .timer.fire = timer_fire,
                         .loop = loop,
                         .then = then,
                         .id = id};
}

START_TEST(tasks_run_in_the_order_of_deferring)
{
    struct thin_loop *loop = sim_loop_create(1);
    struct note c = note(loop, 3, NULL);
    struct note a = note(loop, 1, &c);
    struct note b = note(loop, 2, NULL);

    nr_order = 0;
    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    loop_defer(loop, &a.task); /* queued already: nothing */
    sim_loop_run_until_idle(loop, 0);
    ck_assert_uint_eq(nr_order, 3);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(order[i], i + 1);
    ck_assert_int_eq(loop_run_once(loop), -EDEADLK);
    sim_loop_destroy(loop);
}
END_TEST

START_TEST(time_jumps_only_when_nothing_is_ready)
{
    struct thin_loop *loop = sim_loop_create(1);
    struct note now = note(loop, 2, NULL);
    struct note soon = note(loop, 1, &now);
    struct note late = note(loop, 3, NULL);
    struct note never = note(loop, 4, NULL);
    uint64_t t = loop_now_ns(loop);

    nr_order = 0;
    ck_assert_int_eq(loop_timer_set(loop, &late.timer, t + 1000), 0);
    ck_assert_int_eq(loop_timer_set(loop, &never.timer, t + 900), 0);
    ck_assert_int_eq(loop_timer_set(loop, &soon.timer, t + 50), 0);
    ck_assert_int_eq(loop_timer_set(loop, &soon.timer, t + 10), 0); /* moved */
    loop_timer_cancel(loop, &never.timer);
    loop_timer_cancel(loop, &never.timer);
    ck_assert(sim_loop_step(loop));
    ck_assert_uint_eq(loop_now_ns(loop), t + 10);
    ck_assert(sim_loop_step(loop));
    ck_assert_uint_eq(loop_now_ns(loop), t + 10);
    ck_assert(sim_loop_step(loop));
    ck_assert_uint_eq(loop_now_ns(loop), t + 1000);
    ck_assert(!sim_loop_step(loop));
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(order[i], i + 1);
    sim_loop_run_until(loop, t + 5000);
    ck_assert_uint_eq(loop_now_ns(loop), t + 5000);
    sim_loop_destroy(loop);
}
END_TEST

static uint64_t
run_with_seed(uint64_t seed, int *ret_order)
{
    struct thin_loop *loop = sim_loop_create(seed);
    struct note notes[16];
    uint64_t trace;

    nr_order = 0;
    for (int i = 0; i < 16; i++) {
        notes[i] = note(loop, i, NULL);
        ck_assert_int_eq(loop_timer_set(loop, &notes[i].timer, 2 * NS_PER_SEC), 0);
    }
    sim_loop_run_until_idle(loop, 16);
    for (int i = 0; i < 16; i++)
        ret_order[i] = order[i];
    trace = sim_loop_trace(loop);
    sim_loop_destroy(loop);
    return trace;
}

START_TEST(the_same_seed_gives_the_same_order)
{
    int a[16], b[16], c[16];
    bool differs = false;

    ck_assert_uint_eq(run_with_seed(7, a), run_with_seed(7, b));
    (void)run_with_seed(8, c);
    for (int i = 0; i < 16; i++) {
        ck_assert_int_eq(a[i], b[i]);
        differs = differs || a[i] != c[i];
    }
    ck_assert(differs);
}
END_TEST

START_TEST(many_timers_fire_in_order_of_time)
{
    enum { N = 1000 };
    struct thin_loop *loop = sim_loop_create(3);
    struct note *notes = calloc(N, sizeof(*notes));
    uint64_t last = 0, t = loop_now_ns(loop);
    unsigned fired = 0;

    ck_assert_ptr_nonnull(notes);
    for (unsigned i = 0; i < N; i++) {
        notes[i].timer.fire = timer_fire;
        ck_assert_int_eq(loop_timer_set(loop, &notes[i].timer, t + (i * 7919u) % 5003u),
                         0);
    }
    for (unsigned i = 0; i < N; i += 3)
        loop_timer_cancel(loop, &notes[i].timer);
    nr_order = 0;
    while (sim_loop_step(loop)) {
        ck_assert_uint_ge(loop_now_ns(loop), last);
        last = loop_now_ns(loop);
        fired++;
        nr_order = 0;
    }
    ck_assert_uint_eq(fired, N - (N + 2) / 3);
    free(notes);
    sim_loop_destroy(loop);
}
END_TEST

START_TEST(descriptors_cannot_be_watched)
{
    struct thin_loop *loop = sim_loop_create(1);
    struct thin_watch watch = {.fd = 0};

    ck_assert_int_eq(loop_watch_set(loop, &watch, THIN_WATCH_READ), -THIN_E_UNSUPPORTED);
    sim_loop_destroy(loop);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("sim_loop");
    TCase *tc = tcase_create("sim_loop");
    SRunner *sr;
    int failed;

    tcase_add_test(tc, tasks_run_in_the_order_of_deferring);
    tcase_add_test(tc, time_jumps_only_when_nothing_is_ready);
    tcase_add_test(tc, the_same_seed_gives_the_same_order);
    tcase_add_test(tc, many_timers_fire_in_order_of_time);
    tcase_add_test(tc, descriptors_cannot_be_watched);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
