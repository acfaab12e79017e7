#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/poll_loop.h"

/* What was called, one letter each, in order. */
static char trace[64];
static struct thin_loop *loop;

static void
note(char c)
{
    size_t n = strlen(trace);

    ck_assert_uint_lt(n + 1, sizeof(trace));
    trace[n] = c;
    trace[n + 1] = '\0';
}

static void
setup(void)
{
    trace[0] = '\0';
    loop = poll_loop_create();
    ck_assert_ptr_nonnull(loop);
}

static void
teardown(void)
{
    poll_loop_destroy(loop);
}

/* A task, timer or watch that notes its letter, then may do something more. */
struct step {
    struct thin_task task;
    struct thin_timer timer;
    struct thin_watch watch;
    char letter;
    unsigned events;
    void (*more)(struct step *step);
    struct step *other;
};

static void
stepped(struct step *s)
{
    note(s->letter);
    if (s->more)
        s->more(s);
}

static void
task_run(struct thin_task *task)
{
    stepped(container_of(task, struct step, task));
}

static void
timer_fire(struct thin_timer *timer)
{
    stepped(container_of(timer, struct step, timer));
}

static void
watch_ready(struct thin_watch *watch, unsigned events)
{
    struct step *s = container_of(watch, struct step, watch);

    s->events = events;
    stepped(s);
}

#define STEP(c, ...)                                                                \
    {                                                                               \
        .task.run = task_run, .timer.fire = timer_fire, .watch.ready = watch_ready, \
        .letter = (c), __VA_ARGS__                                                  \
    }

static void
defer_self(struct step *s)
{
    loop_defer(loop, &s->task);
}

static void
defer_other(struct step *s)
{
    loop_defer(loop, &s->other->task);
}

static void
cancel_other(struct step *s)
{
    loop_defer_cancel(loop, &s->other->task);
    loop_timer_cancel(loop, &s->other->timer);
    if (s->other->watch.fd >= 0)
        loop_watch_cancel(loop, &s->other->watch);
}

static void
defer_self_and_cancel_other(struct step *s)
{
    defer_self(s);
    cancel_other(s);
}

START_TEST(nothing_runs_inside_the_call_that_registers)
{
    struct step a = STEP('a'), t = STEP('t');

    loop_defer(loop, &a.task);
    ck_assert_int_eq(loop_timer_set(loop, &t.timer, 0), 0);
    ck_assert_str_eq(trace, "");
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "at");
}
END_TEST

START_TEST(tasks_run_in_the_order_they_were_deferred_in)
{
    struct step a = STEP('a'), b = STEP('b'), c = STEP('c');

    loop_defer(loop, &b.task);
    loop_defer(loop, &a.task);
    loop_defer(loop, &c.task);
    loop_defer(loop, &b.task); /* queued already: keeps its place, runs once */
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "bac");
    ck_assert(!a.task.queued);
    loop_defer(loop, &a.task); /* and may be deferred again */
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "baca");
}
END_TEST

START_TEST(what_a_task_defers_runs_behind_all_others)
{
    struct step c = STEP('c');
    struct step a = STEP('a', .more = defer_other, .other = &c);
    struct step b = STEP('b');

    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "ab");
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "abc");
}
END_TEST

START_TEST(a_task_that_defers_itself_starves_nobody)
{
    struct step a = STEP('a', .more = defer_self), t = STEP('t'), w = STEP('w');
    int fds[2];

    ck_assert_int_eq(pipe(fds), 0);
    ck_assert_int_eq(write(fds[1], "x", 1), 1);
    w.watch.fd = fds[0];
    loop_defer(loop, &a.task);
    ck_assert_int_eq(loop_timer_set(loop, &t.timer, loop_now_ns(loop)), 0);
    ck_assert_int_eq(loop_watch_set(loop, &w.watch, THIN_WATCH_READ), 0);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "atw");
    loop_defer_cancel(loop, &a.task);
    loop_watch_cancel(loop, &w.watch);
    close(fds[0]);
    close(fds[1]);
}
END_TEST

START_TEST(a_turn_ends_even_when_its_last_task_was_cancelled)
{
    struct step last = STEP('l', .watch.fd = -1);
    struct step a = STEP('a', .more = defer_self_and_cancel_other, .other = &last);

    loop_defer(loop, &a.task);
    loop_defer(loop, &last.task);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "a");
    loop_defer_cancel(loop, &a.task);
}
END_TEST

START_TEST(a_task_cancelled_by_an_earlier_one_does_not_run)
{
    struct step b = STEP('b', .watch.fd = -1), c = STEP('c');
    struct step a = STEP('a', .more = cancel_other, .other = &b);

    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    loop_defer(loop, &c.task);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "ac");
    loop_defer_cancel(loop, &b.task); /* harmless */
}
END_TEST

START_TEST(timers_fire_by_time_and_equal_ones_in_order)
{
    struct step a = STEP('a'), b = STEP('b'), c = STEP('c'), d = STEP('d');
    uint64_t now = loop_now_ns(loop);

    loop_timer_set(loop, &c.timer, now + 3 * NS_PER_MS);
    loop_timer_set(loop, &a.timer, now + NS_PER_MS);
    loop_timer_set(loop, &b.timer, now + 2 * NS_PER_MS);
    loop_timer_set(loop, &d.timer, now + 3 * NS_PER_MS);
    while (strlen(trace) < 4)
        ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "abcd");
    ck_assert_uint_ge(loop_now_ns(loop), now + 3 * NS_PER_MS);
    ck_assert(!a.timer.armed);
    ck_assert_int_eq(loop_run_once(loop), -EDEADLK); /* once each */
}
END_TEST

START_TEST(a_timer_never_fires_early)
{
    for (int i = 0; i < 5; i++) {
        struct step a = STEP('a');
        uint64_t when = loop_now_ns(loop) + NS_PER_MS + 7;

        trace[0] = '\0';
        loop_timer_set(loop, &a.timer, when);
        while (!trace[0])
            ck_assert_int_eq(loop_run_once(loop), 0);
        ck_assert_uint_ge(loop_now_ns(loop), when);
    }
}
END_TEST

START_TEST(a_timer_may_be_moved_and_cancelled)
{
    struct step a = STEP('a'), b = STEP('b');
    uint64_t now = loop_now_ns(loop);

    loop_timer_set(loop, &a.timer, now + 3600 * NS_PER_SEC);
    loop_timer_set(loop, &b.timer, now);
    loop_timer_set(loop, &a.timer, now); /* behind b: armed later for the same time */
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "ba");
    loop_timer_set(loop, &a.timer, now);
    loop_timer_cancel(loop, &a.timer);
    loop_timer_cancel(loop, &a.timer);
    ck_assert_int_eq(loop_run_once(loop), -EDEADLK);
    ck_assert_str_eq(trace, "ba");
}
END_TEST

START_TEST(a_timer_cancelled_by_another_that_fires_does_not_fire)
{
    struct step b = STEP('b', .watch.fd = -1);
    struct step a = STEP('a', .more = cancel_other, .other = &b);

    loop_timer_set(loop, &a.timer, 1);
    loop_timer_set(loop, &b.timer, 2);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "a");
}
END_TEST

static void
arm_in_the_past(struct step *s)
{
    loop_timer_set(loop, &s->timer, 1);
}

START_TEST(a_timer_that_arms_itself_in_the_past_starves_nobody)
{
    struct step a = STEP('a', .more = arm_in_the_past), b = STEP('b');

    loop_timer_set(loop, &a.timer, 1);
    loop_timer_set(loop, &b.timer, 2);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_ptr_nonnull(strchr(trace, 'b'));
    loop_timer_cancel(loop, &a.timer);
}
END_TEST

START_TEST(a_descriptor_is_told_for_what_is_wanted)
{
    struct step r = STEP('r'), w = STEP('w');
    int fds[2];
    char c;

    ck_assert_int_eq(pipe(fds), 0);
    r.watch.fd = fds[0];
    w.watch.fd = fds[1];
    ck_assert_int_eq(loop_watch_set(loop, &r.watch, THIN_WATCH_READ), 0);
    ck_assert_int_eq(loop_watch_set(loop, &w.watch, THIN_WATCH_WRITE), 0);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "w");
    ck_assert_uint_eq(w.events, THIN_WATCH_WRITE);

    ck_assert_int_eq(loop_watch_set(loop, &w.watch, 0), 0); /* kept, asleep */
    ck_assert_int_eq(write(fds[1], "x", 1), 1);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_int_eq(loop_run_once(loop), 0); /* again, as long as it is ready */
    ck_assert_str_eq(trace, "wrr");
    ck_assert_uint_eq(r.events, THIN_WATCH_READ);

    ck_assert_int_eq(read(fds[0], &c, 1), 1);
    ck_assert_int_eq(loop_watch_set(loop, &w.watch, THIN_WATCH_WRITE), 0);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "wrrw");

    loop_watch_cancel(loop, &w.watch);
    close(fds[1]); /* the end of the pipe wakes its reader */
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "wrrwr");
    ck_assert_uint_eq(r.events, THIN_WATCH_READ);
    loop_watch_cancel(loop, &r.watch);
    close(fds[0]);
}
END_TEST

START_TEST(a_watch_cancelled_by_another_in_the_same_turn_is_not_called)
{
    int fds[2];
    struct step b = STEP('b');
    struct step a = STEP('a', .more = cancel_other, .other = &b);

    ck_assert_int_eq(pipe(fds), 0);
    ck_assert_int_eq(write(fds[1], "x", 1), 1);
    a.watch.fd = fds[0];
    b.watch.fd = dup(fds[0]);
    ck_assert_int_eq(loop_watch_set(loop, &a.watch, THIN_WATCH_READ), 0);
    ck_assert_int_eq(loop_watch_set(loop, &b.watch, THIN_WATCH_READ), 0);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "a");
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "aa");
    loop_watch_cancel(loop, &a.watch);
    close(fds[0]);
    close(fds[1]);
    close(b.watch.fd);
}
END_TEST

START_TEST(watches_have_a_limit)
{
    static struct step steps[65];
    int fds[2], r = 0;
    unsigned n = 0;

    ck_assert_int_eq(pipe(fds), 0);
    while (n < 65) {
        steps[n] = (struct step)STEP('x');
        steps[n].watch.fd = fds[0];
        r = loop_watch_set(loop, &steps[n].watch, THIN_WATCH_READ);
        if (r < 0)
            break;
        n++;
    }
    ck_assert_uint_eq(n, 64);
    ck_assert_int_eq(r, -THIN_E_LIMIT);
    ck_assert_int_eq(loop_watch_set(loop, &steps[0].watch, 0), 0); /* has its place */
    while (n > 0)
        loop_watch_cancel(loop, &steps[--n].watch);
    close(fds[0]);
    close(fds[1]);
}
END_TEST

START_TEST(waiting_for_nothing_is_a_deadlock)
{
    int fds[2];
    struct step r = STEP('r');

    ck_assert_int_eq(loop_run_once(loop), -EDEADLK);
    ck_assert_int_eq(pipe(fds), 0);
    r.watch.fd = fds[0];
    ck_assert_int_eq(loop_watch_set(loop, &r.watch, 0), 0);
    ck_assert_int_eq(loop_run_once(loop), -EDEADLK); /* asleep is not watched */
    loop_watch_cancel(loop, &r.watch);
    close(fds[0]);
    close(fds[1]);
}
END_TEST

static void
run_a_turn(struct step *s)
{
    (void)s;
    ck_assert_int_eq(loop_run_once(loop), 0);
}

/* The waiting forms of devices run the loop from wherever they are called. */
START_TEST(a_turn_inside_a_turn_loses_nothing)
{
    struct step b = STEP('b'), c = STEP('c');
    struct step a = STEP('a', .more = run_a_turn);

    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    loop_defer(loop, &c.task);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_str_eq(trace, "abc");
    ck_assert_int_eq(loop_run_once(loop), -EDEADLK);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("poll_loop");
    TCase *tc = tcase_create("poll_loop");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, nothing_runs_inside_the_call_that_registers);
    tcase_add_test(tc, tasks_run_in_the_order_they_were_deferred_in);
    tcase_add_test(tc, what_a_task_defers_runs_behind_all_others);
    tcase_add_test(tc, a_task_that_defers_itself_starves_nobody);
    tcase_add_test(tc, a_turn_ends_even_when_its_last_task_was_cancelled);
    tcase_add_test(tc, a_task_cancelled_by_an_earlier_one_does_not_run);
    tcase_add_test(tc, timers_fire_by_time_and_equal_ones_in_order);
    tcase_add_test(tc, a_timer_never_fires_early);
    tcase_add_test(tc, a_timer_may_be_moved_and_cancelled);
    tcase_add_test(tc, a_timer_cancelled_by_another_that_fires_does_not_fire);
    tcase_add_test(tc, a_timer_that_arms_itself_in_the_past_starves_nobody);
    tcase_add_test(tc, a_descriptor_is_told_for_what_is_wanted);
    tcase_add_test(tc, a_watch_cancelled_by_another_in_the_same_turn_is_not_called);
    tcase_add_test(tc, watches_have_a_limit);
    tcase_add_test(tc, waiting_for_nothing_is_a_deadlock);
    tcase_add_test(tc, a_turn_inside_a_turn_loses_nothing);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
