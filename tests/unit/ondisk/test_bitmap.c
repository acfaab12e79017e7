#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/random.h"
#include "core/ondisk/bitmap.h"

static uint8_t block[METADATA_BLOCK_SIZE];

static void
setup(void)
{
    memset(block, 0, sizeof(block));
}

START_TEST(the_lower_numbered_bit_is_the_high_one)
{
    static const uint8_t four_of[4] = {0x00, 0xAA, 0x55, 0xFF};

    for (unsigned count = 0; count < 4; count++) {
        for (uint32_t e = 0; e < 4; e++)
            bitmap_set(block, e, count);
        ck_assert_uint_eq(block[BITMAP_HEADER_BYTES], four_of[count]);
        for (uint32_t e = 0; e < 4; e++)
            ck_assert_uint_eq(bitmap_get(block, e), count);
    }
}
END_TEST

/* FORMAT.md 20.4. */
START_TEST(kernel_made_counts_read_as_told)
{
    block[BITMAP_HEADER_BYTES] = 0x56;
    ck_assert_uint_eq(bitmap_get(block, 0), 1);
    ck_assert_uint_eq(bitmap_get(block, 1), 2);
    ck_assert_uint_eq(bitmap_get(block, 2), 2);
    ck_assert_uint_eq(bitmap_get(block, 3), 2);
    block[BITMAP_HEADER_BYTES] = 0xfe;
    ck_assert_uint_eq(bitmap_get(block, 0), 1);
    for (uint32_t e = 1; e < 4; e++)
        ck_assert_uint_eq(bitmap_get(block, e), BITMAP_COUNT_OVERFLOW);
}
END_TEST

/* FORMAT.md 20.2: block 9 of a fresh pool. */
START_TEST(a_kernel_made_bitmap_has_these_bytes)
{
    static const uint8_t wanted[24] = {0xc7, 0x2e, 0xcd, 0xe3, 0, 0, 0, 0,
                                       0x09, 0,    0,    0,    0, 0, 0, 0,
                                       0x22, 0xa8, 0xaa, 0,    0, 0, 0, 0};
    static const uint32_t used[] = {0, 2, 5, 6, 7, 8, 9, 10, 11};

    for (size_t i = 0; i < 9; i++)
        bitmap_set(block, used[i], 1);
    block_seal(BLOCK_BITMAP, block, 9);
    ck_assert_mem_eq(block, wanted, sizeof(wanted));
    ck_assert_uint_eq(bitmap_find_free(block, 0, 1024), 1);
    ck_assert_uint_eq(bitmap_find_free(block, 2, 1024), 3);
    ck_assert_uint_eq(bitmap_find_free(block, 5, 1024), 12);
    ck_assert_uint_eq(bitmap_find_free(block, 5, 12), 12);
    ck_assert_uint_eq(bitmap_count_free(block, BITMAP_ENTRIES), 16311);
    ck_assert_uint_eq(bitmap_count_free(block, 1024), 1015);
}
END_TEST

/* FORMAT.md 20.2: block 11, its index block. */
START_TEST(a_kernel_made_index_block_has_these_bytes)
{
    static const uint8_t wanted[32] = {
        0xe6, 0x2e, 0x01, 0xa1, 0, 0, 0, 0, 0x0b, 0,    0, 0, 0,    0, 0, 0,
        0x09, 0,    0,    0,    0, 0, 0, 0, 0xb7, 0x3f, 0, 0, 0x01, 0, 0, 0};
    struct index_entry e = {.blocknr = 9, .nr_free = 16311, .none_free_before = 1}, again;

    index_entry_encode(&e, index_block_entry(block, 0));
    block_seal(BLOCK_INDEX, block, 11);
    ck_assert_mem_eq(block, wanted, sizeof(wanted));
    index_entry_decode(&again, index_block_entry_ro(block, 0));
    ck_assert_uint_eq(again.blocknr, 9);
    ck_assert_uint_eq(again.nr_free, 16311);
    ck_assert_uint_eq(again.none_free_before, 1);
    /* The last of 255 ends with the block. */
    ck_assert_ptr_eq(index_block_entry(block, 254) + INDEX_ENTRY_BYTES,
                     block + METADATA_BLOCK_SIZE);
}
END_TEST

START_TEST(setting_one_count_leaves_all_others)
{
    struct thin_random rng;
    static uint8_t model[BITMAP_ENTRIES];
    uint8_t header[BITMAP_HEADER_BYTES];

    random_seed(&rng, 3);
    memset(block, 0x3c, BITMAP_HEADER_BYTES);
    memcpy(header, block, sizeof(header));
    memset(model, 0, sizeof(model));
    for (int i = 0; i < 100000; i++) {
        uint32_t e = (uint32_t)random_below(&rng, BITMAP_ENTRIES);
        unsigned count = (unsigned)random_below(&rng, 4);

        bitmap_set(block, e, count);
        model[e] = (uint8_t)count;
    }
    for (uint32_t e = 0; e < BITMAP_ENTRIES; e++)
        ck_assert_uint_eq(bitmap_get(block, e), model[e]);
    ck_assert_mem_eq(block, header, sizeof(header));
}
END_TEST

static uint32_t
naive_find_free(uint32_t begin, uint32_t end)
{
    for (uint32_t e = begin; e < end; e++)
        if (bitmap_get(block, e) == 0)
            return e;
    return end;
}

static uint32_t
naive_count_free(uint32_t end)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < end; e++)
        n += bitmap_get(block, e) == 0;
    return n;
}

START_TEST(one_free_entry_is_found_wherever_it_is)
{
    for (unsigned count = 1; count < 4; count++) {
        for (uint32_t e = 0; e < BITMAP_ENTRIES; e++)
            bitmap_set(block, e, count);
        ck_assert_uint_eq(bitmap_find_free(block, 0, BITMAP_ENTRIES), BITMAP_ENTRIES);
        ck_assert_uint_eq(bitmap_count_free(block, BITMAP_ENTRIES), 0);
        for (uint32_t e = 0; e < BITMAP_ENTRIES; e += count) {
            bitmap_set(block, e, 0);
            ck_assert_uint_eq(bitmap_find_free(block, 0, BITMAP_ENTRIES), e);
            ck_assert_uint_eq(bitmap_find_free(block, e, BITMAP_ENTRIES), e);
            ck_assert_uint_eq(bitmap_find_free(block, e, e + 1), e);
            ck_assert_uint_eq(bitmap_find_free(block, 0, e), e);
            for (uint32_t end = e > 4 ? e - 4 : 0; end < e; end++) /* in the same word */
                ck_assert_uint_eq(bitmap_find_free(block, 0, end), end);
            ck_assert_uint_eq(bitmap_find_free(block, e + 1, BITMAP_ENTRIES),
                              BITMAP_ENTRIES);
            ck_assert_uint_eq(bitmap_count_free(block, e), 0);
            ck_assert_uint_eq(bitmap_count_free(block, e + 1), 1);
            bitmap_set(block, e, count);
        }
    }
}
END_TEST

START_TEST(an_empty_range_has_nothing_free)
{
    ck_assert_uint_eq(bitmap_find_free(block, 0, 0), 0);
    ck_assert_uint_eq(bitmap_find_free(block, 32, 32), 32);
    ck_assert_uint_eq(bitmap_find_free(block, BITMAP_ENTRIES, BITMAP_ENTRIES),
                      BITMAP_ENTRIES);
    ck_assert_uint_eq(bitmap_count_free(block, 0), 0);
    ck_assert_uint_eq(bitmap_count_free(block, BITMAP_ENTRIES), BITMAP_ENTRIES);
}
END_TEST

START_TEST(searches_agree_with_a_plain_loop)
{
    const char *env = getenv("SEED");
    uint64_t seed = env ? strtoull(env, NULL, 10) : (uint64_t)time(NULL);
    struct thin_random rng;

    printf("SEED=%" PRIu64 "\n", seed);
    random_seed(&rng, seed);
    for (int round = 0; round < 100; round++) {
        /* From almost all free to almost none. */
        uint64_t used_of_100 = random_below(&rng, 101);

        for (uint32_t e = 0; e < BITMAP_ENTRIES; e++)
            bitmap_set(block, e,
                       random_below(&rng, 100) < used_of_100
                           ? 1 + (unsigned)random_below(&rng, 3)
                           : 0);
        for (int i = 0; i < 10; i++) {
            uint32_t end = (uint32_t)random_below(&rng, BITMAP_ENTRIES + 1);
            uint32_t near_end =
                end - (uint32_t)random_below(&rng, end < 70 ? end + 1 : 70);
            uint32_t begin =
                i % 2 ? near_end : (uint32_t)random_below(&rng, (uint64_t)end + 1);

            ck_assert_uint_eq(bitmap_find_free(block, begin, end),
                              naive_find_free(begin, end));
            if (i == 0)
                ck_assert_uint_eq(bitmap_count_free(block, end), naive_count_free(end));
        }
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("bitmap");
    TCase *tc = tcase_create("bitmap");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 30);
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, the_lower_numbered_bit_is_the_high_one);
    tcase_add_test(tc, kernel_made_counts_read_as_told);
    tcase_add_test(tc, a_kernel_made_bitmap_has_these_bytes);
    tcase_add_test(tc, a_kernel_made_index_block_has_these_bytes);
    tcase_add_test(tc, setting_one_count_leaves_all_others);
    tcase_add_test(tc, one_free_entry_is_found_wherever_it_is);
    tcase_add_test(tc, an_empty_range_has_nothing_free);
    tcase_add_test(tc, searches_agree_with_a_plain_loop);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
