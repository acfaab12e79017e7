/* Leaves that are kept between devices. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "core/offline/leaf_cache.h"

#define NR_SETS (LEAF_CACHE_BLOCKS / LEAF_CACHE_WAYS)

static struct leaf_cache cache;
static uint8_t leaf[METADATA_BLOCK_SIZE];

static void
set_up(void)
{
    ck_assert_int_eq(leaf_cache_init(&cache, 10 * LEAF_CACHE_BLOCKS), 0);
    leaf_cache_next_window(&cache);
}

static void
tear_down(void)
{
    leaf_cache_fini(&cache);
}

/* Asks for the block twice, so that it may enter. */
static const uint8_t *
put(mblock_t b)
{
    memset(leaf, (int)(b % 251), sizeof(leaf));
    (void)leaf_cache_put(&cache, b, leaf);
    return leaf_cache_put(&cache, b, leaf);
}

START_TEST(a_leaf_enters_when_it_is_met_again)
{
    ck_assert_ptr_null(leaf_cache_find(&cache, 7));
    ck_assert_ptr_null(leaf_cache_put(&cache, 7, leaf));
    ck_assert_ptr_null(leaf_cache_find(&cache, 7));
    ck_assert_ptr_nonnull(put(7));
    ck_assert_ptr_nonnull(leaf_cache_find(&cache, 7));
    ck_assert_mem_eq(leaf_cache_find(&cache, 7), leaf, sizeof(leaf));
}
END_TEST

START_TEST(what_a_window_uses_is_not_pushed_out_of_it)
{
    const uint8_t *kept[LEAF_CACHE_WAYS];

    for (unsigned i = 0; i < LEAF_CACHE_WAYS; i++)
        kept[i] = put(5 + i * NR_SETS);
    ck_assert_ptr_null(put(5 + LEAF_CACHE_WAYS * NR_SETS));
    for (unsigned i = 0; i < LEAF_CACHE_WAYS; i++) {
        ck_assert_ptr_nonnull(kept[i]);
        ck_assert_int_eq(kept[i][17], (int)((5 + i * NR_SETS) % 251));
    }
}
END_TEST

START_TEST(the_one_longest_unused_goes)
{
    for (unsigned i = 0; i < LEAF_CACHE_WAYS; i++) {
        ck_assert_ptr_nonnull(put(5 + i * NR_SETS));
        leaf_cache_next_window(&cache);
    }
    ck_assert_ptr_nonnull(leaf_cache_find(&cache, 5));
    ck_assert_ptr_nonnull(put(5 + LEAF_CACHE_WAYS * NR_SETS));
    ck_assert_ptr_nonnull(leaf_cache_find(&cache, 5));
    ck_assert_ptr_null(leaf_cache_find(&cache, 5 + NR_SETS));
}
END_TEST

START_TEST(blocks_outside_are_never_kept)
{
    ck_assert_ptr_null(put(10 * LEAF_CACHE_BLOCKS));
    ck_assert_ptr_null(leaf_cache_find(&cache, 0));
    ck_assert_ptr_null(leaf_cache_find(&cache, 10 * LEAF_CACHE_BLOCKS));
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("leaf cache");
    TCase *tc = tcase_create("leaf cache");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, a_leaf_enters_when_it_is_met_again);
    tcase_add_test(tc, what_a_window_uses_is_not_pushed_out_of_it);
    tcase_add_test(tc, the_one_longest_unused_goes);
    tcase_add_test(tc, blocks_outside_are_never_kept);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
