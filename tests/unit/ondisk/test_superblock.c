#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"
#include "core/ondisk/superblock.h"

static uint8_t block[METADATA_BLOCK_SIZE];
static struct superblock sb;
static struct thin_error err;

/* FORMAT.md 20.1, made by a kernel: the rows that are not all zeros. */
static const struct {
    unsigned at;
    uint8_t bytes[16];
} rows[] = {
    {0x000, {0x3d, 0xed, 0x7a, 0x16}},
    {0x020, {0xba, 0x52, 0x9c, 0x01, 0, 0, 0, 0, 0x02}},
    {0x040, {0x00, 0x02}},
    {0x050, {0x0a, 0, 0, 0, 0, 0, 0, 0, 0x05}},
    {0x0c0, {0x00, 0x04, 0, 0, 0, 0, 0, 0, 0x09}},
    {0x0d0, {0x0b, 0, 0, 0, 0, 0, 0, 0, 0x02}},
    {0x140, {0x06, 0, 0, 0, 0, 0, 0, 0, 0x07}},
    {0x150, {0x80, 0, 0, 0, 0x08, 0, 0, 0, 0x00, 0x04}},
};

static const struct superblock fresh = {
    .version = 2,
    .data_sm = {.nr_blocks = 512, .bitmap_root = 10, .ref_count_root = 5},
    .metadata_sm = {.nr_blocks = 1024,
                    .nr_allocated = 9,
                    .bitmap_root = 11,
                    .ref_count_root = 2},
    .data_mapping_root = 6,
    .device_details_root = 7,
    .data_block_size = 128,
    .metadata_block_size = 8,
    .metadata_nr_blocks = 1024,
};

static void
kernel_made(uint8_t *b)
{
    memset(b, 0, METADATA_BLOCK_SIZE);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        memcpy(b + rows[i].at, rows[i].bytes, 16);
}

static void
setup(void)
{
    kernel_made(block);
    thin_error_init(&err);
}

START_TEST(a_kernel_made_superblock_passes_and_reads_as_it_says)
{
    ck_assert_uint_eq(block_checksum(BLOCK_SUPERBLOCK, block), 0x167AED3Du);
    ck_assert_uint_eq(crc32c_update(CRC32C_INIT, block + 4, 4092), 0x1678993Bu);
    ck_assert_int_eq(block_check(BLOCK_SUPERBLOCK, block, 0, &err), 0);
    ck_assert(superblock_is_thin(block));
    superblock_decode(&sb, block);
    ck_assert_int_eq(superblock_judge(&sb, false, &err), 0);
    ck_assert_uint_eq(sb.flags, 0);
    ck_assert_uint_eq(sb.version, 2);
    ck_assert_uint_eq(sb.time, 0);
    ck_assert_uint_eq(sb.trans_id, 0);
    ck_assert_uint_eq(sb.held_root, 0);
    ck_assert_uint_eq(sb.data_sm.nr_blocks, 512);
    ck_assert_uint_eq(sb.data_sm.nr_allocated, 0);
    ck_assert_uint_eq(sb.data_sm.bitmap_root, 10);
    ck_assert_uint_eq(sb.data_sm.ref_count_root, 5);
    ck_assert_uint_eq(sb.metadata_sm.nr_blocks, 1024);
    ck_assert_uint_eq(sb.metadata_sm.nr_allocated, 9);
    ck_assert_uint_eq(sb.metadata_sm.bitmap_root, 11);
    ck_assert_uint_eq(sb.metadata_sm.ref_count_root, 2);
    ck_assert_uint_eq(sb.data_mapping_root, 6);
    ck_assert_uint_eq(sb.device_details_root, 7);
    ck_assert_uint_eq(sb.data_block_size, 128);
    ck_assert_uint_eq(sb.metadata_block_size, 8);
    ck_assert_uint_eq(sb.metadata_nr_blocks, 1024);
    ck_assert_uint_eq(sb.compat_flags | sb.compat_ro_flags | sb.incompat_flags, 0);
}
END_TEST

START_TEST(the_same_fields_give_the_kernels_bytes)
{
    uint8_t made[METADATA_BLOCK_SIZE] = {0};

    superblock_encode(&fresh, made);
    block_seal(BLOCK_SUPERBLOCK, made, SUPERBLOCK_LOCATION);
    for (size_t i = 0; i < METADATA_BLOCK_SIZE; i++)
        ck_assert_msg(made[i] == block[i], "byte %zu is %02x, must be %02x", i, made[i],
                      block[i]);
}
END_TEST

/* FORMAT.md section 3, one field after the other, each with a value of its own. */
START_TEST(each_field_has_its_place)
{
    static uint8_t wanted[METADATA_BLOCK_SIZE], made[METADATA_BLOCK_SIZE];
    struct superblock all = {
        .flags = 0x11121314,
        .version = 0x21222324,
        .time = 0x31323334,
        .trans_id = 0x4142434445464748u,
        .held_root = 0x5152535455565758u,
        .data_sm = {0x61, 0x62, 0x63, 0x64},
        .metadata_sm = {0x71, 0x72, 0x73, 0x74},
        .data_mapping_root = 0x81828384,
        .device_details_root = 0x91929394,
        .data_block_size = 0xa1a2a3a4,
        .metadata_block_size = 0xb1b2b3b4,
        .metadata_nr_blocks = 0xc1c2c3c4,
        .compat_flags = 0xd1d2d3d4,
        .compat_ro_flags = 0xe1e2e3e4,
        .incompat_flags = 0xf1f2f3f4,
    };
    struct superblock again;

    for (size_t i = 0; i < sizeof(all.uuid); i++)
        all.uuid[i] = wanted[16 + i] = (uint8_t)(0xe0 + i);
    for (size_t i = 0; i < sizeof(all.trailer); i++)
        all.trailer[i] = wanted[384 + i] = (uint8_t)(255 - i);
    store_le32(wanted + 4, all.flags);
    store_le64(wanted + 32, 27022010);
    store_le32(wanted + 40, all.version);
    store_le32(wanted + 44, all.time);
    store_le64(wanted + 48, all.trans_id);
    store_le64(wanted + 56, all.held_root);
    for (unsigned i = 0; i < 4; i++) {
        store_le64(wanted + 64 + 8 * i, 0x61 + i);
        store_le64(wanted + 192 + 8 * i, 0x71 + i);
    }
    store_le64(wanted + 320, all.data_mapping_root);
    store_le64(wanted + 328, all.device_details_root);
    store_le32(wanted + 336, all.data_block_size);
    store_le32(wanted + 340, all.metadata_block_size);
    store_le64(wanted + 344, all.metadata_nr_blocks);
    store_le32(wanted + 352, all.compat_flags);
    store_le32(wanted + 356, all.compat_ro_flags);
    store_le32(wanted + 360, all.incompat_flags);
    superblock_encode(&all, made);
    for (size_t i = 0; i < METADATA_BLOCK_SIZE; i++)
        ck_assert_msg(made[i] == wanted[i], "byte %zu is %02x, must be %02x", i, made[i],
                      wanted[i]);
    memset(&again, 0, sizeof(again));
    superblock_decode(&again, made);
    ck_assert_uint_eq(again.trans_id, all.trans_id);
    ck_assert_uint_eq(again.held_root, all.held_root);
    ck_assert_uint_eq(again.incompat_flags, all.incompat_flags);
    ck_assert_mem_eq(again.uuid, all.uuid, sizeof(all.uuid));
    ck_assert_mem_eq(again.trailer, all.trailer, sizeof(all.trailer));
    memset(made, 0, sizeof(made));
    superblock_encode(&again, made);
    ck_assert_mem_eq(made, wanted, sizeof(made)); /* decoding lost nothing */
}
END_TEST

START_TEST(what_others_keep_behind_the_fields_stays)
{
    memset(block, 0xee, sizeof(block));
    superblock_encode(&fresh, block);
    for (size_t i = 364; i < 384; i++)
        ck_assert_uint_eq(block[i], 0xee);
    /* Unused room of the roots and all behind the first sector is zeros. */
    for (size_t i = 96; i < 192; i++)
        ck_assert_uint_eq(block[i], 0);
    for (size_t i = 224; i < 320; i++)
        ck_assert_uint_eq(block[i], 0);
    for (size_t i = 384; i < METADATA_BLOCK_SIZE; i++)
        ck_assert_uint_eq(block[i], 0);
}
END_TEST

START_TEST(only_what_is_known_is_opened)
{
    sb = fresh;
    ck_assert_int_eq(superblock_judge(&sb, false, &err), 0);
    sb.version = 1;
    ck_assert_int_eq(superblock_judge(&sb, false, &err), 0);
    sb.version = 3;
    ck_assert_int_eq(superblock_judge(&sb, true, &err), -THIN_E_VERSION);
    sb = fresh;
    sb.metadata_block_size = 16;
    ck_assert_int_eq(superblock_judge(&sb, true, &err), -THIN_E_UNSUPPORTED);
    sb = fresh;
    sb.incompat_flags = 1;
    ck_assert_int_eq(superblock_judge(&sb, true, &err), -THIN_E_UNSUPPORTED);
    sb = fresh;
    sb.compat_ro_flags = 0x80000000u;
    ck_assert_int_eq(superblock_judge(&sb, false, &err), -THIN_E_UNSUPPORTED);
    ck_assert_int_eq(superblock_judge(&sb, true, &err), 0);
    sb = fresh;
    sb.compat_flags = 0xffffffffu;
    sb.flags = SUPERBLOCK_NEEDS_CHECK;
    ck_assert_int_eq(superblock_judge(&sb, false, &err), 0);
}
END_TEST

START_TEST(data_blocks_are_multiples_of_64k_up_to_1g)
{
    static const struct {
        uint32_t sectors;
        int result;
    } sizes[] = {{128, 0},
                 {256, 0},
                 {384, 0}, /* no power of two is asked for */
                 {2097152, 0},
                 {0, -THIN_E_BAD_BLOCK},
                 {127, -THIN_E_BAD_BLOCK},
                 {129, -THIN_E_BAD_BLOCK},
                 {64, -THIN_E_BAD_BLOCK},
                 {2097152 + 128, -THIN_E_BAD_BLOCK},
                 {UINT32_MAX, -THIN_E_BAD_BLOCK}};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        sb = fresh;
        sb.data_block_size = sizes[i].sectors;
        ck_assert_int_eq(superblock_judge(&sb, false, &err), sizes[i].result);
    }
}
END_TEST

START_TEST(the_stamp_covers_what_a_commit_changes_and_not_the_trailer)
{
    uint32_t before = superblock_stamp(block);

    ck_assert_uint_eq(before, crc32c(block + 36, 328));
    for (size_t i = 0; i < METADATA_BLOCK_SIZE; i++) {
        block[i] ^= 1;
        if (i >= 36 && i < 364)
            ck_assert_uint_ne(superblock_stamp(block), before);
        else
            ck_assert_uint_eq(superblock_stamp(block), before);
        block[i] ^= 1;
    }
}
END_TEST

START_TEST(the_magic_alone_says_thin)
{
    block[0] ^= 1; /* a bad checksum does not matter here */
    ck_assert(superblock_is_thin(block));
    for (size_t i = 32; i < 40; i++) {
        block[i] ^= 1;
        ck_assert(!superblock_is_thin(block));
        block[i] ^= 1;
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("superblock");
    TCase *tc = tcase_create("superblock");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, a_kernel_made_superblock_passes_and_reads_as_it_says);
    tcase_add_test(tc, the_same_fields_give_the_kernels_bytes);
    tcase_add_test(tc, each_field_has_its_place);
    tcase_add_test(tc, what_others_keep_behind_the_fields_stays);
    tcase_add_test(tc, only_what_is_known_is_opened);
    tcase_add_test(tc, data_blocks_are_multiples_of_64k_up_to_1g);
    tcase_add_test(tc, the_stamp_covers_what_a_commit_changes_and_not_the_trailer);
    tcase_add_test(tc, the_magic_alone_says_thin);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
