/* A superblock that can be read and is not durable: what an opening stands on. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/random.h"
#include "core/ondisk/block.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 8u
#define NR_FULL   5u
#define META_SIZE (4u << 20)
#define NR_FAILS  8u /* the nth write after the opening fails; 0: none */

static struct pool_rig rig;
static struct thin_random rng;
static struct crash_disk *data_disk, *meta_disk;
static unsigned char block[BLOCK];

static int
try_open(bool format)
{
    struct pool_params params;

    rig_params(&rig, &params, crash_disk_open(data_disk, rig.loop),
               crash_disk_open(meta_disk, rig.loop));
    params.format = format;
    return rig_open(&rig, &params);
}

static void
power_cut(void)
{
    int r;

    crash_disk_cut(data_disk);
    crash_disk_cut(meta_disk);
    r = rig_close(&rig, true);
    (void)r;
}

struct plain_write {
    struct device_io io;
    struct iovec iov;
    bool done;
};

static void
plain_done(struct device_io *io, int result)
{
    ck_assert_int_eq(result, 0);
    container_of(io, struct plain_write, io)->done = true;
}

/* Block 0 as a cache shows it that the disk has not written. */
static void
write_undurably(uint8_t *superblock)
{
    struct device *dev = crash_disk_open(meta_disk, rig.loop);
    struct plain_write w = {
        .io = {.op = DEVICE_WRITE, .len = METADATA_BLOCK_SIZE, .nr_iov = 1},
        .iov = {superblock, METADATA_BLOCK_SIZE}};

    w.io.iov = &w.iov;
    w.io.done = plain_done;
    device_submit(dev, &w.io);
    while (!w.done)
        ck_assert(sim_loop_step(rig.loop));
    device_close(dev, NULL, NULL);
    while (sim_loop_step(rig.loop))
        ;
    ck_assert_uint_eq(crash_disk_nr_kept(meta_disk), 1);
}

/* A full pool, of which one block was given back by the last commit. */
static void
make_pool(uint8_t *older, uint8_t *newer)
{
    struct volume *vol;

    ck_ok(try_open(true));
    ck_ok(rig_create(&rig, "vol", NR_BLOCKS * BLOCK));
    ck_ok(rig_volume(&rig, "vol", &vol));
    memset(block, 'o', sizeof(block));
    for (unsigned i = 0; i < NR_FULL; i++)
        ck_ok(rig_write(&rig, vol, i * BLOCK, block, BLOCK));
    ck_ok(rig_flush(&rig, vol));
    crash_disk_read(meta_disk, 0, older, METADATA_BLOCK_SIZE);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, BLOCK));
    ck_ok(rig_flush(&rig, vol));
    crash_disk_read(meta_disk, 0, newer, METADATA_BLOCK_SIZE);
    volume_close(vol);
    power_cut();
    ck_assert_int_ne(memcmp(older, newer, METADATA_BLOCK_SIZE), 0);
    crash_disk_write(meta_disk, 0, older, METADATA_BLOCK_SIZE);
    write_undurably(newer);
}

/* Each power cut leaves other parts of what was on its way. */
START_TEST(the_older_state_does_not_come_back_over_reused_blocks)
{
    static uint8_t older[METADATA_BLOCK_SIZE], newer[METADATA_BLOCK_SIZE];
    struct crash_params quiet = {.discard = CRASH_DISCARD_NOTHING};
    struct volume *vol;

    rig.loop = sim_loop_create((uint64_t)_i);
    random_seed(&rng, (uint64_t)_i);
    data_disk = crash_disk_create(&rng, (uint64_t)NR_BLOCKS * BLOCK, &quiet);
    meta_disk = crash_disk_create(&rng, META_SIZE, &quiet);
    make_pool(older, newer);

    ck_ok(try_open(false));
    crash_disk_fail_nth(meta_disk, 1u << DEVICE_WRITE, (uint64_t)_i % NR_FAILS, -EIO);
    vol = NULL;
    memset(block, 'n', sizeof(block));
    if (rig_volume(&rig, "vol", &vol) == 0)
        (void)rig_write(&rig, vol, NR_FULL * BLOCK, block, BLOCK);
    crash_disk_fail_nth(meta_disk, 0, 0, 0);
    power_cut();
    volume_close(vol);

    ck_ok(try_open(false));
    ck_ok(rig_volume(&rig, "vol", &vol));
    for (unsigned i = 0; i < NR_FULL; i++) {
        ck_ok(rig_read(&rig, vol, (uint64_t)i * BLOCK, block, BLOCK));
        for (unsigned at = 0; at < BLOCK; at++)
            if (block[at] != 'o' && (i > 0 || block[at] != 0))
                ck_abort_msg("block %u at %u has '%c'", i, at, block[at]);
    }
    volume_close(vol);
    ck_ok(rig_close(&rig, true));
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(rig.loop);
}
END_TEST

/* Where it cannot be written, nothing is built on it. */
START_TEST(a_superblock_that_cannot_be_written_leaves_the_pool_read_only)
{
    static uint8_t older[METADATA_BLOCK_SIZE], newer[METADATA_BLOCK_SIZE];
    struct pool_info info;
    uint64_t nr;

    rig.loop = sim_loop_create(1);
    random_seed(&rng, 1);
    data_disk = crash_disk_create(&rng, (uint64_t)NR_BLOCKS * BLOCK, NULL);
    meta_disk = crash_disk_create(&rng, META_SIZE, NULL);
    make_pool(older, newer);
    crash_disk_fail_nth(meta_disk, 1u << DEVICE_WRITE, 1, -EIO);
    nr = crash_disk_nr_op(meta_disk, DEVICE_WRITE);
    ck_ok(try_open(false));
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    ck_assert_uint_eq(crash_disk_nr_op(meta_disk, DEVICE_WRITE), nr);
    ck_assert_int_ne(rig_create(&rig, "other", BLOCK), 0);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_READ_ONLY);
    ck_assert_ptr_nonnull(strstr(info.why, "superblock"));
    ck_assert_int_ne(rig_create(&rig, "other", BLOCK), 0);
    ck_ok(rig_close(&rig, false));
    ck_assert_uint_eq(crash_disk_nr_op(meta_disk, DEVICE_WRITE), nr + 1);
    crash_disk_destroy(data_disk);
    crash_disk_destroy(meta_disk);
    sim_loop_destroy(rig.loop);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("settle");
    TCase *tc = tcase_create("settle");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, the_older_state_does_not_come_back_over_reused_blocks, 0, 24);
    tcase_add_test(tc, a_superblock_that_cannot_be_written_leaves_the_pool_read_only);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
