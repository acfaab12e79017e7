/*
 * Metadata that goes bad under a pool in service: what can be gone around is, what cannot
 * is rolled back once, marked, and comes back into service through close and open.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/ondisk/bitmap.h"
#include "core/ondisk/node.h"
#include "core/ondisk/superblock.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/sim_loop.h"
#include "tests/lib/test_cache.h"

#define BLOCK     65536u
#define NR_BLOCKS 40000u /* three bitmaps */
#define META_SIZE (4u << 20)
#define VOL_SIZE  (64u << 20)

static struct pool_rig rig;
static struct thin_random rng;
static struct crash_disk *data_disk, *meta_disk;
static struct device *data, *meta;
static struct volume *vol;
static unsigned char buf[1u << 20], back[1u << 20];

static void
open_pool(bool format)
{
    struct pool_params params;

    data = device_fault_open(crash_disk_open(data_disk, rig.loop));
    meta = device_fault_open(crash_disk_open(meta_disk, rig.loop));
    rig_params(&rig, &params, data, meta);
    params.format = format;
    params.leaf_max = params.internal_max = 6;
    params.config.metadata_cache_blocks = 64;
    params.cache_clean = test_cache_clean();
    params.config.commit_interval_ms = 3600 * 1000;
    ck_ok(rig_open(&rig, &params));
    if (format)
        ck_ok(rig_create(&rig, "vol", VOL_SIZE));
    ck_ok(rig_volume(&rig, "vol", &vol));
}

static void
close_pool(void)
{
    ck_ok(rig_close(&rig, true));
    volume_close(vol);
}

static void
set_up(void)
{
    rig.loop = sim_loop_create(11);
    random_seed(&rng, 5);
    data_disk = crash_disk_create(&rng, (uint64_t)NR_BLOCKS * BLOCK, NULL);
    meta_disk = crash_disk_create(&rng, META_SIZE, NULL);
    open_pool(true);
    for (size_t i = 0; i < sizeof(buf); i++)
        buf[i] = (unsigned char)random_u64(&rng);
}

static void
tear_down(void)
{
    if (rig.pool)
        close_pool();
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(rig.loop);
}

static void
check_reads(uint64_t offset, const void *wanted, size_t len)
{
    memset(back, 0xee, len);
    ck_ok(rig_read(&rig, vol, offset, back, len));
    ck_assert_int_eq(memcmp(back, wanted, len), 0);
}

static void
info_get(struct pool_info *info)
{
    pool_get_info(rig.pool, info);
}

static void
superblock_get(struct superblock *sb)
{
    uint8_t block[4096];

    crash_disk_read(meta_disk, 0, block, sizeof(block));
    superblock_decode(sb, block);
}

/* Flips a byte of a metadata block on the disk. */
static void
spoil(uint64_t b)
{
    uint8_t block[4096];

    crash_disk_read(meta_disk, b * 4096, block, sizeof(block));
    block[2000] ^= 0x55;
    crash_disk_write(meta_disk, b * 4096, block, sizeof(block));
}

/* The first data bitmap. */
static uint64_t
bitmap_0(void)
{
    struct superblock sb;
    uint8_t node[4096];

    superblock_get(&sb);
    crash_disk_read(meta_disk, sb.data_sm.bitmap_root * 4096, node, sizeof(node));
    ck_assert(node_is_leaf(node));
    return load_le64((const uint8_t *)node + 32 + 8 * node_max_entries(node));
}

/* In service, around the damage; after a check is asked for, and not before. */
static void
check_goes_around(void)
{
    struct pool_info info;
    struct superblock sb;

    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    ck_assert(info.needs_check);
    ck_assert_ptr_nonnull(strstr(info.why, "neither allocated nor freed"));
    ck_assert_ptr_nonnull(strstr(info.what_to_do, "thinmeta check"));
    superblock_get(&sb);
    ck_assert(sb.flags & SUPERBLOCK_NEEDS_CHECK);
    for (unsigned i = 0; i < 6; i++) {
        ck_ok(rig_write(&rig, vol, (100 + i) * BLOCK, buf, 4096));
        ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, i * BLOCK, NULL, BLOCK));
        ck_ok(rig_flush(&rig, vol));
    }
    check_reads(105 * BLOCK, buf, 4096);
    check_reads(10 * BLOCK, buf + 4096, 4096);
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    close_pool();
    open_pool(false);
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_READ_ONLY);
    ck_assert_ptr_nonnull(strstr(info.what_to_do, "--clear-needs-check-flag"));
    check_reads(105 * BLOCK, buf, 4096);
    check_reads(10 * BLOCK, buf + 4096, 4096);
    ck_code(rig_write(&rig, vol, 0, buf, 512), READ_ONLY);
}

static void
some_data(void)
{
    for (unsigned i = 0; i < 20; i++)
        ck_ok(rig_write(&rig, vol, i * BLOCK, buf + 4096, 4096));
    ck_ok(rig_flush(&rig, vol));
}

START_TEST(blocks_of_a_damaged_bitmap_are_left_alone_and_the_pool_goes_on)
{
    some_data();
    close_pool();
    spoil(bitmap_0());
    open_pool(false);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 15 * BLOCK, NULL, BLOCK));
    ck_ok(rig_flush(&rig, vol));
    check_goes_around();
}
END_TEST

START_TEST(a_bitmap_that_cannot_be_read_is_left_alone_and_the_pool_goes_on)
{
    struct pool_info info;
    struct superblock sb;

    some_data();
    close_pool();
    open_pool(false);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 15 * BLOCK, NULL, BLOCK));
    device_fault_order(meta, FAULT_FAIL, FAULT_OP(DEVICE_READ), 1, 0, -EIO, 0);
    ck_ok(rig_flush(&rig, vol));
    device_fault_clear(meta);
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    ck_assert(info.needs_check);
    superblock_get(&sb);
    ck_assert(sb.flags & SUPERBLOCK_NEEDS_CHECK);
}
END_TEST

START_TEST(one_failed_read_of_a_bitmap_is_no_damage)
{
    struct pool_info info;

    some_data();
    close_pool();
    open_pool(false);
    for (unsigned i = 0; i < 3; i++) {
        ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, (15 + i) * BLOCK, NULL, BLOCK));
        device_fault_order(meta, i == 0 ? FAULT_FAIL : FAULT_CORRUPT,
                           FAULT_OP(DEVICE_READ), 1, 1, -EIO, 200);
        ck_ok(rig_flush(&rig, vol));
        device_fault_clear(meta);
        info_get(&info);
        ck_assert_int_eq(info.mode, POOL_WRITE);
        ck_assert(!info.needs_check);
        ck_assert_str_eq(info.why, "");
        close_pool();
        open_pool(false);
    }
}
END_TEST

START_TEST(blocks_of_a_damaged_overflow_node_are_left_alone_and_the_pool_goes_on)
{
    struct superblock sb;
    struct volume *other;

    some_data();
    for (unsigned i = 0; i < 3; i++) {
        char name[8] = {'s', (char)('0' + i)};

        ck_ok(rig_snapshot(&rig, "vol", name));
        /* A leaf of its own: what the others in it map has one pointer more. */
        ck_ok(rig_volume(&rig, name, &other));
        for (unsigned k = 0; k < 20; k += 3)
            ck_ok(rig_write(&rig, other, k * BLOCK, buf, 4096));
        volume_close(other);
    }
    ck_ok(rig_commit(&rig));
    close_pool();
    superblock_get(&sb);
    spoil(sb.data_sm.ref_count_root);
    open_pool(false);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 15 * BLOCK, NULL, BLOCK * 5));
    ck_ok(rig_flush(&rig, vol));
    check_goes_around();
}
END_TEST

START_TEST(a_commit_whose_own_counts_cannot_be_read_fails)
{
    struct pool_info info;
    struct superblock sb;

    some_data();
    ck_ok(rig_snapshot(&rig, "vol", "s0"));
    close_pool();
    superblock_get(&sb);
    open_pool(false);
    crash_disk_spoil(meta_disk, sb.metadata_sm.ref_count_root);
    /* The volume's root has two pointers; the third count is written at the cut. */
    ck_code(rig_snapshot(&rig, "vol", "s1"), ROLLED_BACK);
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_READ_ONLY);
    check_reads(15 * BLOCK, buf + 4096, 4096);
}
END_TEST

/* The leaf of the lowest ids' details. */
static uint64_t
details_leaf(void)
{
    struct superblock sb;
    uint8_t node[4096];
    uint64_t b;

    superblock_get(&sb);
    for (b = sb.device_details_root;; b = node_value64(node, 0)) {
        crash_disk_read(meta_disk, b * 4096, node, sizeof(node));
        if (node_is_leaf(node))
            return b;
    }
}

/* Everything that is listed was looked at: what the cache held before is gone. */
static void
listed(void *arg, int result, const struct thin_error *err,
       const struct volume_info *infos, uint32_t nr)
{
    bool *done = arg;

    (void)err;
    (void)infos;
    ck_assert_int_eq(result, 0);
    ck_assert_uint_gt(nr, 0);
    *done = true;
}

START_TEST(damage_elsewhere_rolls_back_once_and_marks_the_pool)
{
    struct pool_info info;
    struct superblock sb;
    uint64_t before;
    bool done = false;

    for (unsigned i = 0; i < 200; i++) {
        char name[16];

        snprintf(name, sizeof(name), "v%03u", i);
        ck_ok(rig_create(&rig, name, VOL_SIZE));
    }
    some_data();
    close_pool();
    open_pool(false);
    info_get(&info);
    before = info.incarnation;
    ck_ok(rig_write(&rig, vol, 30 * BLOCK, buf, 4096));
    pool_volume_list(rig.pool, "v001", 256, false, listed, &done);
    while (!done)
        sim_loop_step(rig.loop);
    spoil(details_leaf());
    ck_code(rig_flush(&rig, vol), ROLLED_BACK);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_READ_ONLY);
    ck_assert(info.needs_check);
    ck_assert_uint_ne(info.incarnation, before);
    ck_assert_ptr_nonnull(strstr(info.what_to_do, "thinmeta check"));
    superblock_get(&sb);
    ck_assert(sb.flags & SUPERBLOCK_NEEDS_CHECK);
    /* Others are there. */
    volume_close(vol);
    ck_ok(rig_volume(&rig, "v150", &vol));
    ck_ok(rig_read(&rig, vol, 0, back, 512));
    ck_code(rig_write(&rig, vol, 0, buf, 512), READ_ONLY);
}
END_TEST

START_TEST(failed_io_asks_for_close_and_open_and_for_no_check)
{
    static const unsigned ops[] = {DEVICE_WRITE, DEVICE_FLUSH};

    some_data();
    for (unsigned i = 0; i < 4; i++) {
        struct device *dev = i < 2 ? meta : data;
        struct pool_info info;
        struct superblock sb;

        if (i == 2)
            continue; /* a failed write of data is its own request's */
        ck_ok(rig_write(&rig, vol, (40 + i) * BLOCK, buf, 4096));
        device_fault_order(dev, FAULT_FAIL, FAULT_OP(ops[i % 2]), 1, 1, -EIO, 0);
        ck_code(rig_flush(&rig, vol), ROLLED_BACK);
        sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
        info_get(&info);
        ck_assert_int_eq(info.mode, POOL_READ_ONLY);
        ck_assert(!info.needs_check);
        ck_assert_ptr_nonnull(strstr(info.what_to_do, "close the pool and open it"));
        superblock_get(&sb);
        ck_assert(!(sb.flags & SUPERBLOCK_NEEDS_CHECK));
        close_pool();
        open_pool(false);
        info_get(&info);
        ck_assert_int_eq(info.mode, POOL_WRITE);
        ck_assert_str_eq(info.why, "");
        check_reads(10 * BLOCK, buf + 4096, 4096);
        ck_ok(rig_write(&rig, vol, (40 + i) * BLOCK, buf, 4096));
        ck_ok(rig_flush(&rig, vol));
    }
}
END_TEST

/* The leaf that holds the mapping of virtual block `v` of the volume with one device. */
static uint64_t
leaf_of(uint64_t top, uint32_t dev_id, uint64_t v)
{
    uint8_t node[4096];
    uint64_t b = top;
    uint64_t keys[] = {dev_id, v};

    for (unsigned level = 0; level < 2; level++) {
        for (;;) {
            uint32_t i = 0, nr;

            crash_disk_read(meta_disk, b * 4096, node, sizeof(node));
            nr = node_nr_entries(node);
            while (i + 1 < nr && node_key(node, i + 1) <= keys[level])
                i++;
            if (node_is_leaf(node) && level == 1)
                return b;
            b = node_value64(node, i);
            if (node_is_leaf(node))
                break;
        }
    }
    return 0;
}

static void
volume_shown(void *arg, int result, const struct thin_error *err,
             const struct volume_info *infos, uint32_t nr)
{
    int *damaged = arg;

    (void)err;
    *damaged = result < 0 ? result : nr == 1 ? infos[0].damaged : -1;
}

static int
is_damaged(const char *name)
{
    int damaged = -999;

    pool_volume_show(rig.pool, name, false, volume_shown, &damaged);
    while (damaged == -999)
        ck_assert(sim_loop_step(rig.loop));
    ck_assert_int_ge(damaged, 0);
    return damaged;
}

/* The first class of damage: below a volume's root. */
START_TEST(damaged_mappings_hit_their_volume_only_and_it_is_listed)
{
    struct pool_info info;
    struct superblock sb;
    static uint8_t good[4096];
    struct volume *other;
    uint64_t leaf;

    some_data();
    ck_ok(rig_create(&rig, "other", VOL_SIZE));
    ck_ok(rig_volume(&rig, "other", &other));
    ck_ok(rig_write(&rig, other, 0, buf, 4096));
    ck_ok(rig_flush(&rig, other));
    volume_close(other);
    close_pool();
    superblock_get(&sb);
    leaf = leaf_of(sb.data_mapping_root, 1, 19);
    crash_disk_read(meta_disk, leaf * 4096, good, sizeof(good));
    spoil(leaf);
    open_pool(false);
    ck_assert_int_eq(is_damaged("vol"), 0);
    check_reads(0, buf + 4096, 4096); /* another leaf */
    ck_assert_int_lt(rig_read(&rig, vol, 19 * BLOCK, back, 512), 0);
    ck_assert_int_lt(rig_write(&rig, vol, 19 * BLOCK, buf, 512), 0);
    ck_assert_int_eq(is_damaged("vol"), 1);
    ck_assert_str_eq(rig.last_event, "damaged");
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    ck_assert(!info.needs_check);
    ck_assert_ptr_nonnull(strstr(info.why, "volume vol"));
    /* The rest of it, and others, go on: reads, writes, flushes. */
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_flush(&rig, vol));
    ck_ok(rig_volume(&rig, "other", &other));
    ck_ok(rig_write(&rig, other, BLOCK, buf, 4096));
    ck_ok(rig_flush(&rig, other));
    ck_ok(rig_read(&rig, other, 0, back, 4096));
    ck_assert_int_eq(memcmp(back, buf, 4096), 0);
    volume_close(other);
    ck_assert_int_eq(is_damaged("other"), 0);
    ck_ok(rig_create(&rig, "third", VOL_SIZE));
    /* Mended while it was closed, it is as it was: nothing of the damage is kept. */
    close_pool();
    superblock_get(&sb);
    if (leaf_of(sb.data_mapping_root, 1, 19) == leaf)
        crash_disk_write(meta_disk, leaf * 4096, good, sizeof(good));
    open_pool(false);
    check_reads(19 * BLOCK, buf + 4096, 4096);
    ck_assert_int_eq(is_damaged("vol"), 0);
}
END_TEST

/* The data does not need the counts of metadata blocks: it is read at 3 a.m. as well. */
START_TEST(without_the_metadata_space_map_all_can_be_read)
{
    struct pool_info info;
    struct superblock sb;
    static uint8_t index[4096];
    uint64_t nr;

    some_data();
    close_pool();
    superblock_get(&sb);
    if (_i == 0) {
        crash_disk_read(meta_disk, sb.metadata_sm.bitmap_root * 4096, index, 4096);
        spoil(load_le64(index + 16)); /* its first bitmap */
    } else {
        spoil(sb.metadata_sm.bitmap_root);
    }
    nr = crash_disk_nr_op(meta_disk, DEVICE_WRITE);
    open_pool(false);
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_READ_ONLY);
    ck_assert(info.needs_check);
    ck_assert_ptr_nonnull(strstr(info.why, "metadata space map"));
    ck_assert_ptr_nonnull(strstr(info.what_to_do, "thinmeta repair"));
    check_reads(0, buf + 4096, 4096);
    check_reads(19 * BLOCK, buf + 4096, 4096);
    ck_code(rig_write(&rig, vol, 0, buf, 512), READ_ONLY);
    ck_code(rig_create(&rig, "new", VOL_SIZE), READ_ONLY);
    ck_code(rig_snapshot(&rig, "vol", "snap"), READ_ONLY);
    close_pool();
    ck_assert_uint_eq(crash_disk_nr_op(meta_disk, DEVICE_WRITE), nr);
    open_pool(false);
}
END_TEST

START_TEST(what_cannot_be_read_again_fails_the_pool_and_closes)
{
    struct pool_info info;
    struct volume *again = NULL;

    some_data();
    ck_ok(rig_write(&rig, vol, 40 * BLOCK, buf, 4096));
    device_fault_order(meta, FAULT_FAIL, FAULT_OP(DEVICE_FLUSH), 1, 0, -EIO, 0);
    device_fault_order(meta, FAULT_FAIL, FAULT_OP(DEVICE_READ), 1, 0, -EIO, 0);
    ck_code(rig_flush(&rig, vol), ROLLED_BACK);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
    info_get(&info);
    ck_assert_int_eq(info.mode, POOL_FAIL);
    ck_assert_ptr_nonnull(strstr(info.what_to_do, "close the pool"));
    ck_assert_int_lt(rig_volume(&rig, "vol", &again), 0);
    ck_assert_int_lt(rig_create(&rig, "new", VOL_SIZE), 0);
    ck_assert_int_lt(rig_grow(&rig, ((uint64_t)NR_BLOCKS + 1) * BLOCK), 0);
    close_pool();
    open_pool(false);
    check_reads(10 * BLOCK, buf + 4096, 4096);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("damage");
    TCase *tcase = tcase_create("damage");
    SRunner *runner;
    int failed;

    thin_log_set_level(THIN_LOG_ERROR);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, blocks_of_a_damaged_bitmap_are_left_alone_and_the_pool_goes_on);
    tcase_add_test(tcase,
                   a_bitmap_that_cannot_be_read_is_left_alone_and_the_pool_goes_on);
    tcase_add_test(tcase, one_failed_read_of_a_bitmap_is_no_damage);
    tcase_add_test(tcase,
                   blocks_of_a_damaged_overflow_node_are_left_alone_and_the_pool_goes_on);
    tcase_add_test(tcase, a_commit_whose_own_counts_cannot_be_read_fails);
    tcase_add_test(tcase, damage_elsewhere_rolls_back_once_and_marks_the_pool);
    tcase_add_test(tcase, failed_io_asks_for_close_and_open_and_for_no_check);
    tcase_add_test(tcase, damaged_mappings_hit_their_volume_only_and_it_is_listed);
    tcase_add_loop_test(tcase, without_the_metadata_space_map_all_can_be_read, 0, 2);
    tcase_add_test(tcase, what_cannot_be_read_again_fails_the_pool_and_closes);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
