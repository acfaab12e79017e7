#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/poll_loop.h"
#include "server/payload.h"

#define BUDGET (8 * PAYLOAD_PIECE_MIN)

static struct thin_loop *loop;
static struct payload *payload;

/* Asks again for as much when it is told to. */
struct asker {
    struct payload_waiter waiter;
    size_t len;
    struct payload_piece *piece;
    struct asker *other;
    unsigned told;
};

static void
told(struct payload_waiter *waiter)
{
    container_of(waiter, struct asker, waiter)->told++;
}

static void
told_asks_again(struct payload_waiter *waiter)
{
    struct asker *a = container_of(waiter, struct asker, waiter);

    ck_assert_uint_lt(++a->told, 100);
    if (payload_get(payload, a->len, 0, waiter, &a->piece) == 0)
        ck_assert(!waiter->waiting);
}

static void
setup(void)
{
    loop = poll_loop_create();
    ck_assert_ptr_nonnull(loop);
    ck_assert_int_eq(payload_create(loop, BUDGET, &payload), 0);
}

static void
teardown(void)
{
    payload_destroy(payload);
    poll_loop_destroy(loop);
}

static uint64_t
lent(void)
{
    uint64_t budget, bytes;

    payload_get_stats(payload, &budget, &bytes);
    ck_assert_uint_eq(budget, BUDGET);
    return bytes;
}

START_TEST(a_piece_has_the_length_asked_for_and_is_aligned)
{
    static const size_t lens[] = {1, 512, 4095, 4096, 4097, 8192, 20000, BUDGET};
    struct asker a = {.waiter.ready = told};

    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        struct payload_piece *piece;
        size_t room = PAYLOAD_PIECE_MIN;

        while (room < lens[i])
            room *= 2;
        ck_assert_int_eq(payload_get(payload, lens[i], 0, &a.waiter, &piece), 0);
        ck_assert_uint_eq(piece->iov.iov_len, lens[i]);
        ck_assert_uint_eq((uintptr_t)piece->iov.iov_base % PAYLOAD_PIECE_MIN, 0);
        ck_assert_uint_eq(piece->bytes, room);
        ck_assert_uint_eq(lent(), room);
        memset(piece->iov.iov_base, 0x5a, room);
        payload_put(payload, piece);
        ck_assert_uint_eq(lent(), 0);
    }
}
END_TEST

START_TEST(what_never_fits_is_refused_at_once)
{
    struct asker a = {.waiter.ready = told};
    struct payload_piece *piece;

    ck_assert_int_eq(payload_get(payload, 0, 0, &a.waiter, &piece), -THIN_E_LIMIT);
    ck_assert_int_eq(payload_get(payload, BUDGET + 1, 0, &a.waiter, &piece),
                     -THIN_E_LIMIT);
    ck_assert_int_eq(payload_get(payload, PAYLOAD_PIECE_MAX + 1u, 0, &a.waiter, &piece),
                     -THIN_E_LIMIT);
    ck_assert_int_eq(payload_get(payload, SIZE_MAX, 0, &a.waiter, &piece), -THIN_E_LIMIT);
    ck_assert(!a.waiter.waiting);
}
END_TEST

START_TEST(the_budget_is_never_exceeded)
{
    struct asker a = {.waiter.ready = told};
    struct payload_piece *pieces[8], *piece;

    for (size_t i = 0; i < 8; i++)
        ck_assert_int_eq(payload_get(payload, 1, 0, &a.waiter, &pieces[i]), 0);
    ck_assert_uint_eq(lent(), BUDGET);
    ck_assert_int_eq(payload_get(payload, 1, 0, &a.waiter, &piece), -THIN_E_WOULD_BLOCK);
    ck_assert(a.waiter.waiting);
    payload_cancel(payload, &a.waiter);
    ck_assert(!a.waiter.waiting);
    payload_cancel(payload, &a.waiter); /* harmless */
    for (size_t i = 0; i < 8; i++)
        payload_put(payload, pieces[i]);
    ck_assert_uint_eq(a.told, 0);
    ck_assert_int_eq(loop_run_once(loop), -EDEADLK);
}
END_TEST

START_TEST(kept_small_pieces_give_way_to_a_large_one)
{
    struct asker a = {.waiter.ready = told};
    struct payload_piece *pieces[8], *piece;

    for (size_t i = 0; i < 8; i++)
        ck_assert_int_eq(payload_get(payload, 1, 0, &a.waiter, &pieces[i]), 0);
    for (size_t i = 0; i < 8; i++)
        payload_put(payload, pieces[i]);
    ck_assert_int_eq(payload_get(payload, BUDGET, 0, &a.waiter, &piece), 0);
    payload_put(payload, piece);
    ck_assert_int_eq(payload_get(payload, 1, 0, &a.waiter, &piece), 0);
    payload_put(payload, piece);
}
END_TEST

START_TEST(a_piece_given_back_is_lent_again)
{
    struct asker a = {.waiter.ready = told};
    struct payload_piece *first, *second;

    ck_assert_int_eq(payload_get(payload, 5000, 0, &a.waiter, &first), 0);
    payload_put(payload, first);
    ck_assert_int_eq(payload_get(payload, 8192, 0, &a.waiter, &second), 0);
    ck_assert_ptr_eq(first, second);
    ck_assert_uint_eq(second->iov.iov_len, 8192);
    payload_put(payload, second);
}
END_TEST

START_TEST(who_waits_is_told_once_and_from_a_task_of_its_own)
{
    struct asker a = {.waiter.ready = told};
    struct payload_piece *all, *piece;

    ck_assert_int_eq(payload_get(payload, BUDGET, 0, &a.waiter, &all), 0);
    ck_assert_int_eq(payload_get(payload, 1, 0, &a.waiter, &piece), -THIN_E_WOULD_BLOCK);
    ck_assert_int_eq(payload_get(payload, 1, 0, &a.waiter, &piece), -THIN_E_WOULD_BLOCK);
    payload_put(payload, all);
    ck_assert_uint_eq(a.told, 0); /* never inside the call */
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_uint_eq(a.told, 1);
    ck_assert(!a.waiter.waiting);
    ck_assert_int_eq(loop_run_once(loop), -EDEADLK);
    ck_assert_uint_eq(a.told, 1);
}
END_TEST

START_TEST(waiters_are_told_in_order_and_who_finds_nothing_waits_on)
{
    struct asker a = {.waiter.ready = told_asks_again, .len = BUDGET};
    struct asker b = {.waiter.ready = told_asks_again, .len = 1};
    struct payload_piece *all;

    ck_assert_int_eq(payload_get(payload, BUDGET, 0, &a.waiter, &all), 0);
    ck_assert_int_eq(payload_get(payload, a.len, 0, &a.waiter, &a.piece),
                     -THIN_E_WOULD_BLOCK);
    ck_assert_int_eq(payload_get(payload, b.len, 0, &b.waiter, &b.piece),
                     -THIN_E_WOULD_BLOCK);
    payload_put(payload, all);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_ptr_nonnull(a.piece); /* first come */
    ck_assert_ptr_null(b.piece);
    ck_assert_uint_eq(b.told, 1);
    ck_assert(b.waiter.waiting);
    payload_put(payload, a.piece);
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_ptr_nonnull(b.piece);
    payload_put(payload, b.piece);
}
END_TEST

static void
told_cancels_other(struct payload_waiter *waiter)
{
    struct asker *a = container_of(waiter, struct asker, waiter);

    payload_cancel(payload, &a->other->waiter);
    told_asks_again(waiter);
}

/* As when a connection that was told closes others. */
START_TEST(waiters_may_be_cancelled_by_who_is_told)
{
    struct asker last = {.waiter.ready = told, .len = 1};
    struct asker a = {.waiter.ready = told_cancels_other, .len = BUDGET, .other = &last};
    struct payload_piece *half, *other_half;

    ck_assert_int_eq(payload_get(payload, BUDGET / 2, 0, &a.waiter, &half), 0);
    ck_assert_int_eq(payload_get(payload, BUDGET / 2, 0, &a.waiter, &other_half), 0);
    ck_assert_int_eq(payload_get(payload, a.len, 0, &a.waiter, &a.piece),
                     -THIN_E_WOULD_BLOCK);
    ck_assert_int_eq(payload_get(payload, last.len, 0, &last.waiter, &last.piece),
                     -THIN_E_WOULD_BLOCK);
    payload_put(payload, half); /* half is not enough for a: it waits again */
    ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_uint_eq(a.told, 1);
    ck_assert_uint_eq(last.told, 0);
    ck_assert(a.waiter.waiting);
    payload_cancel(payload, &a.waiter);
    payload_put(payload, other_half);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("payload");
    TCase *tc = tcase_create("payload");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_piece_has_the_length_asked_for_and_is_aligned);
    tcase_add_test(tc, what_never_fits_is_refused_at_once);
    tcase_add_test(tc, the_budget_is_never_exceeded);
    tcase_add_test(tc, kept_small_pieces_give_way_to_a_large_one);
    tcase_add_test(tc, a_piece_given_back_is_lent_again);
    tcase_add_test(tc, who_waits_is_told_once_and_from_a_task_of_its_own);
    tcase_add_test(tc, waiters_are_told_in_order_and_who_finds_nothing_waits_on);
    tcase_add_test(tc, waiters_may_be_cancelled_by_who_is_told);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
