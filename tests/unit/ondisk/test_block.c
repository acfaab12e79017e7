#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/ondisk/block.h"
#include "core/ondisk/superblock.h"

static uint8_t block[METADATA_BLOCK_SIZE];
static struct thin_error err;

static const uint32_t salts[BLOCK_KINDS] = {160774, 121107, 240779, 160478};

static void
setup(void)
{
    for (size_t i = 0; i < sizeof(block); i++)
        block[i] = (uint8_t)(i * 7 + i / 256);
    store_le64(block + 32, SUPERBLOCK_MAGIC);
    thin_error_init(&err);
}

START_TEST(the_checksum_of_zeros_is_the_register_and_the_salt)
{
    memset(block, 0, sizeof(block));
    for (int k = 0; k < BLOCK_KINDS; k++)
        ck_assert_uint_eq(block_checksum((enum block_kind)k, block),
                          0x58CDA791u ^ salts[k]);
}
END_TEST

START_TEST(a_sealed_block_passes_as_its_own_kind_in_its_own_place_only)
{
    for (int k = 0; k < BLOCK_KINDS; k++) {
        enum block_kind kind = (enum block_kind)k, guessed = BLOCK_KINDS;

        block_seal(kind, block, 4161599);
        ck_assert_uint_eq(load_le64(block + 8), 4161599);
        ck_assert_int_eq(block_check(kind, block, 4161599, &err), 0);
        ck_assert_int_eq(block_check(kind, block, 4161598, &err), -THIN_E_BAD_BLOCK);
        ck_assert_ptr_nonnull(strstr(err.text, "4161598"));
        ck_assert_ptr_nonnull(strstr(err.text, "4161599"));
        for (int other = 0; other < BLOCK_KINDS; other++)
            if (other != k)
                ck_assert_int_eq(
                    block_check((enum block_kind)other, block, 4161599, NULL),
                    -THIN_E_CHECKSUM);
        ck_assert(block_guess_kind(block, &guessed));
        ck_assert_int_eq(guessed, kind);
    }
}
END_TEST

START_TEST(sealing_changes_nothing_but_number_and_checksum)
{
    uint8_t before[METADATA_BLOCK_SIZE];

    memcpy(before, block, sizeof(block));
    block_seal(BLOCK_NODE, block, 77);
    ck_assert_mem_eq(block + 4, before + 4, 4);
    ck_assert_mem_eq(block + 16, before + 16, METADATA_BLOCK_SIZE - 16);
}
END_TEST

START_TEST(every_bit_is_covered)
{
    enum block_kind kind = BLOCK_KINDS;

    block_seal(BLOCK_BITMAP, block, 9);
    for (size_t bit = 0; bit < 8 * METADATA_BLOCK_SIZE; bit++) {
        block[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        ck_assert_int_eq(block_check(BLOCK_BITMAP, block, 9, NULL), -THIN_E_CHECKSUM);
        block[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    ck_assert_int_eq(block_check(BLOCK_BITMAP, block, 9, NULL), 0);
    block[4095] ^= 0x80;
    ck_assert(!block_guess_kind(block, &kind));
    ck_assert_int_eq(kind, BLOCK_KINDS); /* untouched */
}
END_TEST

START_TEST(a_wrong_checksum_is_told_with_both_values)
{
    block_seal(BLOCK_NODE, block, 34);
    store_le32(block, 0x0badcafe);
    ck_assert_int_eq(block_check(BLOCK_NODE, block, 34, &err), -THIN_E_CHECKSUM);
    ck_assert_ptr_nonnull(strstr(err.text, "metadata block 34"));
    ck_assert_ptr_nonnull(strstr(err.text, "btree node"));
    ck_assert_ptr_nonnull(strstr(err.text, "0badcafe"));
}
END_TEST

START_TEST(what_never_held_a_pool_is_not_called_damaged)
{
    memset(block, 0, sizeof(block));
    ck_assert_int_eq(block_check(BLOCK_SUPERBLOCK, block, 0, &err), -THIN_E_NOT_THIN);
    ck_assert_ptr_nonnull(strstr(err.text, "not formatted"));
    memset(block, 0x5a, sizeof(block));
    ck_assert_int_eq(block_check(BLOCK_SUPERBLOCK, block, 0, &err), -THIN_E_NOT_THIN);
    ck_assert_ptr_nonnull(strstr(err.text, "other magic"));
    /* With the magic it was one, and is damaged. */
    store_le64(block + 32, SUPERBLOCK_MAGIC);
    ck_assert_int_eq(block_check(BLOCK_SUPERBLOCK, block, 0, &err), -THIN_E_CHECKSUM);
}
END_TEST

START_TEST(kinds_have_names)
{
    ck_assert_str_eq(block_kind_name(BLOCK_SUPERBLOCK), "superblock");
    ck_assert_str_eq(block_kind_name(BLOCK_NODE), "btree node");
    ck_assert_str_eq(block_kind_name(BLOCK_BITMAP), "bitmap");
    ck_assert_str_eq(block_kind_name(BLOCK_INDEX), "index block");
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("block");
    TCase *tc = tcase_create("block");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tc, 30);
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, the_checksum_of_zeros_is_the_register_and_the_salt);
    tcase_add_test(tc, a_sealed_block_passes_as_its_own_kind_in_its_own_place_only);
    tcase_add_test(tc, sealing_changes_nothing_but_number_and_checksum);
    tcase_add_test(tc, every_bit_is_covered);
    tcase_add_test(tc, a_wrong_checksum_is_told_with_both_values);
    tcase_add_test(tc, what_never_held_a_pool_is_not_called_damaged);
    tcase_add_test(tc, kinds_have_names);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
