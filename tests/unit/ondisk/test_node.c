/* node.h, mapping.h and details.h. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "core/ondisk/details.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/node.h"

static uint8_t block[METADATA_BLOCK_SIZE];
static struct thin_error err;

static void
setup(void)
{
    memset(block, 0xcc, sizeof(block));
    thin_error_init(&err);
}

START_TEST(room_is_as_the_format_says)
{
    ck_assert_uint_eq(node_max_entries_for(VALUE_SIZE_MAPPING), 252);
    ck_assert_uint_eq(node_max_entries_for(VALUE_SIZE_DETAILS), 126);
    ck_assert_uint_eq(node_max_entries_for(VALUE_SIZE_INDEX), 168);
    ck_assert_uint_eq(node_max_entries_for(VALUE_SIZE_COUNT), 336);
}
END_TEST

START_TEST(a_new_node_is_empty_and_sound)
{
    static const uint32_t sizes[] = {4, 8, 16, 24};

    for (size_t i = 0; i < 4; i++) {
        memset(block, 0xcc, sizeof(block));
        node_init(block, true, node_max_entries_for(sizes[i]), sizes[i]);
        ck_assert(node_is_leaf(block));
        ck_assert_uint_eq(node_nr_entries(block), 0);
        ck_assert_int_eq(node_judge(block, sizes[i], &err), 0);
        for (size_t at = NODE_KEYS; at < sizeof(block); at++)
            ck_assert_uint_eq(block[at], 0);
    }
}
END_TEST

/* FORMAT.md 20.3: devices 1, 2, 7, 16777215 and their roots in block 34. */
START_TEST(a_kernel_made_leaf_has_these_bytes)
{
    static const uint8_t head[0x40] = {
        0x01, 0x1c, 0x04, 0x55, 0x02, 0, 0, 0, 0x22, 0,    0,    0, 0, 0, 0, 0,
        0x04, 0,    0,    0,    0xfc, 0, 0, 0, 0x08, 0,    0,    0, 0, 0, 0, 0,
        0x01, 0,    0,    0,    0,    0, 0, 0, 0x02, 0,    0,    0, 0, 0, 0, 0,
        0x07, 0,    0,    0,    0,    0, 0, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0};
    static const uint8_t values[0x20] = {0x23, 0, 0,    0, 0, 0,    0, 0, 0x11, 0, 0,
                                         0,    0, 0,    0, 0, 0x16, 0, 0, 0,    0, 0,
                                         0,    0, 0x1b, 0, 0, 0,    0, 0, 0,    0};
    static const uint64_t keys[4] = {1, 2, 7, 16777215}, roots[4] = {35, 17, 22, 27};

    node_init(block, true, 252, 8);
    for (uint32_t i = 0; i < 4; i++) {
        node_set_key(block, i, keys[i]);
        store_le64(node_value_rw(block, i), roots[i]);
    }
    node_set_nr_entries(block, 4);
    block_seal(BLOCK_NODE, block, 34);
    ck_assert_mem_eq(block + 4, head + 4, sizeof(head) - 4);
    ck_assert_mem_eq(block + 0x800, values, sizeof(values));
    ck_assert_uint_eq(node_own_number(block), 34);
    for (uint32_t i = 0; i < 4; i++) {
        ck_assert_uint_eq(node_key(block, i), keys[i]);
        ck_assert_uint_eq(node_value64(block, i), roots[i]);
    }
    ck_assert_int_eq(node_judge(block, VALUE_SIZE_MAPPING, &err), 0);
}
END_TEST

START_TEST(values_stand_behind_the_whole_key_array)
{
    node_init(block, true, 252, 8);
    ck_assert_ptr_eq(node_value(block, 0), block + 0x800);
    ck_assert_ptr_eq(node_value(block, 251), block + 0x800 + 8 * 251);
    node_init(block, true, 126, 24);
    ck_assert_ptr_eq(node_value(block, 0), block + 0x410);
    ck_assert_ptr_eq(node_value_rw(block, 125), block + 0x410 + 24 * 125);
    node_init(block, true, 336, 4);
    ck_assert_ptr_eq(node_value(block, 335), block + 32 + 8 * 336 + 4 * 335);
    ck_assert_ptr_eq(node_value(block, 336), block + 4064); /* 32 spare bytes */
}
END_TEST

START_TEST(lower_bound_is_the_greatest_key_not_above)
{
    node_init(block, true, 252, 8);
    ck_assert_int_eq(node_lower_bound(block, 0), -1);
    ck_assert_int_eq(node_lower_bound(block, UINT64_MAX), -1);
    for (uint32_t n = 1; n <= 252; n++) {
        node_set_key(block, n - 1, 10 * (uint64_t)n);
        node_set_nr_entries(block, n);
        ck_assert_int_eq(node_lower_bound(block, 0), -1);
        ck_assert_int_eq(node_lower_bound(block, 9), -1);
        for (uint32_t i = 1; i <= n; i++) {
            ck_assert_int_eq(node_lower_bound(block, 10 * (uint64_t)i), (int)i - 1);
            ck_assert_int_eq(node_lower_bound(block, 10 * (uint64_t)i + 9), (int)i - 1);
        }
        ck_assert_int_eq(node_lower_bound(block, UINT64_MAX), (int)n - 1);
    }
    node_set_key(block, 251, UINT64_MAX);
    ck_assert_int_eq(node_lower_bound(block, UINT64_MAX), 251);
    ck_assert_int_eq(node_lower_bound(block, UINT64_MAX - 1), 250);
}
END_TEST

static void
sound(bool leaf, uint32_t max, uint32_t value_size, uint32_t nr)
{
    node_init(block, leaf, max, value_size);
    for (uint32_t i = 0; i < nr; i++)
        node_set_key(block, i, i);
    node_set_nr_entries(block, nr);
}

START_TEST(damage_of_each_kind_is_refused)
{
    sound(true, 252, 8, 252);
    ck_assert_int_eq(node_judge(block, 8, &err), 0);
    node_set_nr_entries(block, 253);
    ck_assert_int_eq(node_judge(block, 8, &err), -THIN_E_BAD_BLOCK);
    node_set_nr_entries(block, UINT32_MAX);
    ck_assert_int_eq(node_judge(block, 8, &err), -THIN_E_BAD_BLOCK);

    for (uint32_t flags = 0; flags < 8; flags++) {
        sound(true, 252, 8, 2);
        store_le32(block + NODE_FLAGS, flags);
        ck_assert_int_eq(node_judge(block, 8, &err),
                         flags == 1 || flags == 2 ? 0 : -THIN_E_BAD_BLOCK);
    }

    /* An internal node has values of 8 bytes whatever its tree holds. */
    sound(false, 252, 8, 2);
    ck_assert_int_eq(node_judge(block, 24, &err), 0);
    sound(true, 252, 8, 2);
    ck_assert_int_eq(node_judge(block, 24, &err), -THIN_E_BAD_BLOCK);
    sound(false, 126, 24, 2);
    ck_assert_int_eq(node_judge(block, 24, &err), -THIN_E_BAD_BLOCK);
    sound(true, 252, 8, 2);
    store_le32(block + NODE_VALUE_SIZE, 0);
    ck_assert_int_eq(node_judge(block, 8, &err), -THIN_E_BAD_BLOCK);

    /* An empty leaf is fine, an empty internal node is not. */
    sound(true, 252, 8, 0);
    ck_assert_int_eq(node_judge(block, 8, &err), 0);
    sound(false, 252, 8, 0);
    ck_assert_int_eq(node_judge(block, 8, &err), -THIN_E_BAD_BLOCK);
}
END_TEST

START_TEST(room_is_a_multiple_of_three_that_fits)
{
    static const struct {
        uint32_t max;
        int result;
    } rooms[] = {{252, 0},
                 {6, 0}, /* small nodes are sound: tests use them */
                 {3, 0},
                 {0, -THIN_E_BAD_BLOCK},
                 {251, -THIN_E_BAD_BLOCK},
                 {253, -THIN_E_BAD_BLOCK},
                 {255, -THIN_E_BAD_BLOCK},
                 {336, -THIN_E_BAD_BLOCK},
                 {UINT32_MAX, -THIN_E_BAD_BLOCK},
                 {UINT32_MAX / 3 * 3, -THIN_E_BAD_BLOCK}};

    for (size_t i = 0; i < sizeof(rooms) / sizeof(rooms[0]); i++) {
        sound(true, 252, 8, 2);
        store_le32(block + NODE_MAX_ENTRIES, rooms[i].max);
        ck_assert_int_eq(node_judge(block, 8, &err), rooms[i].result);
    }
}
END_TEST

START_TEST(keys_ascend)
{
    sound(true, 252, 8, 252);
    for (uint32_t i = 1; i < 252; i++) {
        node_set_key(block, i, i - 1); /* equal to the one before */
        ck_assert_int_eq(node_judge(block, 8, &err), -THIN_E_BAD_BLOCK);
        node_set_key(block, i, i);
    }
    ck_assert_int_eq(node_judge(block, 8, &err), 0);
    node_set_key(block, 0, UINT64_MAX);
    ck_assert_int_eq(node_judge(block, 8, &err), -THIN_E_BAD_BLOCK);
    ck_assert_ptr_nonnull(strstr(err.text, "18446744073709551615"));
    /* What stands beyond the entries is left over and means nothing. */
    sound(true, 252, 8, 252);
    node_set_nr_entries(block, 10);
    node_set_key(block, 10, 0);
    ck_assert_int_eq(node_judge(block, 8, &err), 0);
}
END_TEST

START_TEST(a_mapping_is_block_and_time)
{
    static const uint8_t stored[8] = {0x04, 0x00, 0x00, 0x9b};
    uint8_t b[8];

    store_le64(b, mapping_pack(155, 4));
    ck_assert_mem_eq(b, stored, 8);
    ck_assert_uint_eq(mapping_block(0x000000009B000004u), 155);
    ck_assert_uint_eq(mapping_time(0x000000009B000004u), 4);
    ck_assert_uint_eq(mapping_pack((1ull << 40) - 1, (1u << 24) - 1), UINT64_MAX);
    ck_assert_uint_eq(mapping_block(UINT64_MAX), (1ull << 40) - 1);
    ck_assert_uint_eq(mapping_time(UINT64_MAX), (1u << 24) - 1);
}
END_TEST

START_TEST(details_have_their_places)
{
    struct device_details d = {.mapped_blocks = 0x0102030405060708u,
                               .transaction_id = 0x1112131415161718u,
                               .creation_time = 0x21222324,
                               .snapshotted_time = 0x31323334},
                          again;
    static const uint8_t wanted[24] = {0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,
                                       0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
                                       0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31};
    uint8_t b[24];

    device_details_encode(&d, b);
    ck_assert_mem_eq(b, wanted, sizeof(b));
    device_details_decode(&again, b);
    ck_assert_uint_eq(again.mapped_blocks, d.mapped_blocks);
    ck_assert_uint_eq(again.transaction_id, d.transaction_id);
    ck_assert_uint_eq(again.creation_time, d.creation_time);
    ck_assert_uint_eq(again.snapshotted_time, d.snapshotted_time);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("node");
    TCase *tc = tcase_create("node");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, room_is_as_the_format_says);
    tcase_add_test(tc, a_new_node_is_empty_and_sound);
    tcase_add_test(tc, a_kernel_made_leaf_has_these_bytes);
    tcase_add_test(tc, values_stand_behind_the_whole_key_array);
    tcase_add_test(tc, lower_bound_is_the_greatest_key_not_above);
    tcase_add_test(tc, damage_of_each_kind_is_refused);
    tcase_add_test(tc, room_is_a_multiple_of_three_that_fits);
    tcase_add_test(tc, keys_ascend);
    tcase_add_test(tc, a_mapping_is_block_and_time);
    tcase_add_test(tc, details_have_their_places);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
