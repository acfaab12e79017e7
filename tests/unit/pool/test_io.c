/* Requests of a volume over memory devices: contents, sharing, parts of sectors, space. */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "core/pool/pool_private.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define BLOCK     65536u
#define NR_BLOCKS 256u
#define META_SIZE (4u << 20)
#define VOL_SIZE  (8u << 20)

static struct pool_rig rig;
static struct device *data, *meta;
static struct device *data_mem, *meta_mem;
static struct volume *vol;
static unsigned char buf[4u << 20], back[4u << 20];

static void
fill(unsigned char *at, size_t len, uint64_t seed)
{
    struct thin_random rng;

    random_seed(&rng, seed);
    for (size_t i = 0; i < len; i += 8) {
        uint64_t n = random_u64(&rng);

        memcpy(at + i, &n, len - i < 8 ? len - i : 8);
    }
}

static void
open_pool(uint64_t nr_blocks, void (*change)(struct pool_params *params))
{
    struct pool_params params;

    rig.loop = sim_loop_create(7);
    ck_assert_int_eq(device_mem_open(rig.loop, nr_blocks * BLOCK, &data_mem), 0);
    ck_assert_int_eq(device_mem_open(rig.loop, META_SIZE, &meta_mem), 0);
    data = device_fault_open(data_mem);
    meta = device_fault_open(meta_mem);
    rig_params(&rig, &params, data, meta);
    params.format = true;
    if (change)
        change(&params);
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", VOL_SIZE));
    ck_ok(rig_volume(&rig, "vol", &vol));
}

static void
check_image(void)
{
    struct recount rc;

    ck_ok(rig_commit(&rig));
    ck_assert_msg(recount_image(meta_mem, NULL, &rc) == 0, "%s", rc.why);
}

static void
set_up(void)
{
    open_pool(NR_BLOCKS, NULL);
}

static void
tear_down(void)
{
    if (rig.pool) {
        check_image();
        ck_ok(rig_close(&rig, true));
        volume_close(vol);
    }
    sim_loop_destroy(rig.loop);
}

static void
check_reads(struct volume *volume, uint64_t offset, const unsigned char *wanted,
            size_t len)
{
    memset(back, 0xee, len);
    ck_ok(rig_read(&rig, volume, offset, back, len));
    for (size_t i = 0; memcmp(back, wanted, len) != 0 && i < len; i++)
        ck_assert_msg(back[i] == wanted[i],
                      "byte %zu (offset %" PRIu64 "): %02x, not %02x", i, offset + i,
                      back[i], wanted[i]);
}

static uint64_t
data_used(void)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    return info.data_used / BLOCK;
}

START_TEST(holes_read_as_zeros_and_take_no_space)
{
    uint64_t before = data_used();

    memset(buf, 0, BLOCK * 3);
    check_reads(vol, 0, buf, BLOCK * 3);
    check_reads(vol, 12345, buf, 100);
    ck_assert_uint_eq(data_used(), before);
}
END_TEST

START_TEST(what_is_written_reads_back)
{
    fill(buf, sizeof(buf), 1);
    ck_ok(rig_write(&rig, vol, 4096, buf, 8192));
    check_reads(vol, 4096, buf, 8192);
    ck_ok(rig_write(&rig, vol, BLOCK * 3 - 512, buf, BLOCK * 5));
    check_reads(vol, BLOCK * 3 - 512, buf, BLOCK * 5);
    ck_ok(rig_write(&rig, vol, BLOCK * 16, buf, sizeof(buf)));
    check_reads(vol, BLOCK * 16, buf, sizeof(buf));
}
END_TEST

START_TEST(the_rest_of_a_new_block_is_zeros_whatever_the_device_held)
{
    unsigned char *junk = malloc(NR_BLOCKS * BLOCK);

    memset(junk, 0xdd, NR_BLOCKS * BLOCK);
    /* All the blocks that nobody uses yet, but for the first, which may be in use. */
    ck_assert_int_eq(
        device_write_wait(data_mem, 32 * BLOCK, junk, (NR_BLOCKS - 32) * BLOCK, 0), 0);
    free(junk);
    memset(buf, 0, sizeof(buf));
    for (unsigned i = 0; i < 100; i++) {
        memset(buf + 1024, (int)i + 1, 512);
        ck_ok(rig_write(&rig, vol, i * BLOCK + 1024, buf + 1024, 512));
        check_reads(vol, i * BLOCK, buf, BLOCK);
    }
}
END_TEST

START_TEST(parts_of_sectors_do_not_tear_their_neighbours)
{
    fill(buf, BLOCK * 2, 2);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 2));
    memset(buf + 700, 'x', 3);
    ck_ok(rig_write(&rig, vol, 700, buf + 700, 3));
    check_reads(vol, 0, buf, BLOCK * 2);
    memset(buf + BLOCK - 5, 'y', 600);
    ck_ok(rig_write(&rig, vol, BLOCK - 5, buf + BLOCK - 5, 600));
    check_reads(vol, 0, buf, BLOCK * 2);
    check_reads(vol, 1, buf + 1, 1);
    check_reads(vol, 511, buf + 511, 70000);
    /* Into a hole. */
    memset(back, 0, BLOCK);
    memset(back + 10, 'z', 20);
    ck_ok(rig_write(&rig, vol, BLOCK * 8 + 10, back + 10, 20));
    memcpy(buf, back, BLOCK);
    check_reads(vol, BLOCK * 8, buf, BLOCK);
}
END_TEST

START_TEST(part_writes_of_one_sector_are_none_lost)
{
    static struct rig_io ios[64];

    fill(buf, 4096, 3);
    for (unsigned i = 0; i < 64; i++)
        rig_io_start(&rig, vol, &ios[i], VOLUME_WRITE, 0, 1000 + i * 9, buf + i * 9, 9);
    for (unsigned i = 0; i < 64; i++)
        ck_ok(rig_io_wait(&ios[i]));
    check_reads(vol, 1000, buf, 64 * 9);
}
END_TEST

START_TEST(a_request_in_many_pieces_is_one)
{
    static struct iovec iov[700];
    struct rig_io rio;
    size_t at = 0;

    fill(buf, 1 << 20, 4);
    memset(&rio, 0, sizeof(rio));
    for (unsigned i = 0; i < 700; i++) {
        size_t len = i % 7 == 0 ? 0 : i % 5 == 0 ? 3 : 700;

        iov[i].iov_base = buf + at;
        iov[i].iov_len = len;
        at += len;
    }
    for (unsigned turn = 0; turn < 2; turn++) {
        memset(&rio, 0, sizeof(rio));
        rig_io_start(&rig, vol, &rio, VOLUME_FLUSH, 0, 0, NULL, 0);
        ck_ok(rig_io_wait(&rio));
        rio.done = false;
        rio.io.op = VOLUME_WRITE;
        rio.io.offset = 3 * 512;
        rio.io.len = at;
        rio.io.iov = iov;
        rio.io.nr_iov = 700;
        volume_submit(vol, &rio.io);
        ck_ok(rig_io_wait(&rio));
        check_reads(vol, 3 * 512, buf, at);
    }
    memcpy(back, buf, at);
    memset(buf, 0, at);
    rio.done = false;
    rio.io.op = VOLUME_READ;
    volume_submit(vol, &rio.io);
    ck_ok(rig_io_wait(&rio));
    ck_assert_int_eq(memcmp(buf, back, at), 0);
}
END_TEST

START_TEST(beyond_the_end_is_refused)
{
    ck_code(rig_read(&rig, vol, VOL_SIZE - 512, back, 1024), RANGE);
    ck_code(rig_write(&rig, vol, VOL_SIZE, back, 1), RANGE);
    ck_code(rig_io(&rig, vol, VOLUME_DISCARD, 0, UINT64_MAX - 5, NULL, 10), RANGE);
    ck_ok(rig_read(&rig, vol, VOL_SIZE, back, 0));
}
END_TEST

START_TEST(a_snapshot_keeps_what_was_there)
{
    struct volume *snap;
    uint64_t used;

    fill(buf, BLOCK * 4, 5);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 4));
    used = data_used();
    ck_ok(rig_snapshot(&rig, "vol", "snap"));
    ck_ok(rig_volume(&rig, "snap", &snap));
    memcpy(back, buf, BLOCK * 4);
    /* Part of a block: copied; a whole one: not read at all; a part of a sector. */
    memset(buf + 4096, 1, 4096);
    ck_ok(rig_write(&rig, vol, 4096, buf + 4096, 4096));
    memset(buf + BLOCK, 2, BLOCK);
    ck_ok(rig_write(&rig, vol, BLOCK, buf + BLOCK, BLOCK));
    memset(buf + BLOCK * 2 + 5, 3, 10);
    ck_ok(rig_write(&rig, vol, BLOCK * 2 + 5, buf + BLOCK * 2 + 5, 10));
    check_reads(vol, 0, buf, BLOCK * 4);
    fill(buf, BLOCK * 4, 5);
    check_reads(snap, 0, buf, BLOCK * 4);
    ck_assert_uint_eq(data_used(), used + 3);
    /* The snapshot may be written, and the origin does not see it. */
    memset(buf + 100, 9, 1000);
    ck_ok(rig_write(&rig, snap, 100, buf + 100, 1000));
    check_reads(snap, 0, buf, BLOCK * 4);
    check_image();
    volume_close(snap);
}
END_TEST

START_TEST(writes_in_flight_at_a_snapshot_are_in_it_once_answered)
{
    static struct rig_io ios[8];
    struct volume *snap;

    fill(buf, BLOCK * 8, 6);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 8));
    memset(buf, 0x5a, BLOCK * 8);
    device_fault_order(data, FAULT_DELAY, FAULT_OP(DEVICE_WRITE), 1, 8, 0, 3000000);
    for (unsigned i = 0; i < 8; i++)
        rig_io_start(&rig, vol, &ios[i], VOLUME_WRITE, 0, i * BLOCK, buf, 4096);
    ck_ok(rig_snapshot(&rig, "vol", "snap"));
    for (unsigned i = 0; i < 8; i++)
        ck_assert(ios[i].done);
    ck_ok(rig_volume(&rig, "snap", &snap));
    for (unsigned i = 0; i < 8; i++) {
        check_reads(snap, i * BLOCK, buf, 4096);
        check_reads(vol, i * BLOCK, buf, 4096);
    }
    volume_close(snap);
}
END_TEST

START_TEST(a_discard_unmaps_whole_blocks_only)
{
    uint64_t used = data_used();

    fill(buf, BLOCK * 4, 7);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 4));
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 512, NULL, BLOCK * 3));
    memset(buf + BLOCK, 0, BLOCK * 2);
    check_reads(vol, 0, buf, BLOCK * 4);
    ck_ok(rig_flush(&rig, vol));
    ck_assert_uint_eq(data_used(), used + 2);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, VOL_SIZE));
    ck_ok(rig_flush(&rig, vol));
    ck_assert_uint_eq(data_used(), used);
}
END_TEST

START_TEST(write_zeroes_reads_as_zeros_everywhere)
{
    uint64_t used = data_used();

    fill(buf, BLOCK * 5, 8);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 5));
    memset(buf + 777, 0, BLOCK * 3);
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, 0, 777, NULL, BLOCK * 3));
    check_reads(vol, 0, buf, BLOCK * 5);
    ck_ok(rig_flush(&rig, vol));
    ck_assert_uint_eq(data_used(), used + 3);
    /* Over holes: nothing is mapped; with no-hole all of it is. */
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, 0, BLOCK * 10 + 5, NULL, BLOCK * 2));
    ck_assert_uint_eq(data_used(), used + 3);
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, VOLUME_NO_HOLE, BLOCK * 10, NULL,
                 BLOCK * 20));
    ck_assert_uint_eq(data_used(), used + 23);
    memset(buf, 0, BLOCK * 20);
    check_reads(vol, BLOCK * 10, buf, BLOCK * 20);
    /* No-hole inside mapped blocks stays where it is. */
    fill(buf, BLOCK, 9);
    ck_ok(rig_write(&rig, vol, BLOCK * 10, buf, BLOCK));
    memset(buf + 100, 0, 5000);
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, VOLUME_NO_HOLE, BLOCK * 10 + 100, NULL,
                 5000));
    check_reads(vol, BLOCK * 10, buf, BLOCK);
    ck_assert_uint_eq(data_used(), used + 23);
}
END_TEST

START_TEST(zeroes_over_a_shared_block_leave_the_snapshot_alone)
{
    struct volume *snap;

    fill(buf, BLOCK * 3, 10);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 3));
    ck_ok(rig_snapshot(&rig, "vol", "snap"));
    ck_ok(rig_volume(&rig, "snap", &snap));
    ck_ok(rig_io(&rig, vol, VOLUME_WRITE_ZEROES, 0, BLOCK / 2, NULL, BLOCK * 2));
    check_reads(snap, 0, buf, BLOCK * 3);
    memset(buf + BLOCK / 2, 0, BLOCK * 2);
    check_reads(vol, 0, buf, BLOCK * 3);
    volume_close(snap);
}
END_TEST

START_TEST(status_tells_holes_data_and_sharing)
{
    struct volume_extent extents[16];
    struct rig_io rio;

    ck_ok(rig_write(&rig, vol, BLOCK * 2, buf, BLOCK * 2));
    ck_ok(rig_snapshot(&rig, "vol", "snap"));
    ck_ok(rig_write(&rig, vol, BLOCK * 3, buf, BLOCK * 2));
    memset(&rio, 0, sizeof(rio));
    rio.io.extents = extents;
    rio.io.max_extents = 16;
    rig_io_start(&rig, vol, &rio, VOLUME_STATUS, 0, 100, NULL, VOL_SIZE - 100);
    ck_ok(rig_io_wait(&rio));
    ck_assert_uint_eq(rio.io.ret_nr_extents, 4);
    ck_assert_uint_eq(extents[0].len, BLOCK * 2 - 100);
    ck_assert_uint_eq(extents[0].flags, VOLUME_EXTENT_HOLE | VOLUME_EXTENT_ZERO);
    ck_assert_uint_eq(extents[1].len, BLOCK);
    ck_assert_uint_eq(extents[1].flags, VOLUME_EXTENT_SHARED);
    ck_assert_uint_eq(extents[2].len, BLOCK * 2);
    ck_assert_uint_eq(extents[2].flags, 0);
    ck_assert_uint_eq(extents[3].len, VOL_SIZE - BLOCK * 5);
    rio.io.max_extents = 2;
    rig_io_start(&rig, vol, &rio, VOLUME_STATUS, 0, 0, NULL, VOL_SIZE);
    ck_ok(rig_io_wait(&rio));
    ck_assert_uint_eq(rio.io.ret_nr_extents, 2);
    rig_io_start(&rig, vol, &rio, VOLUME_STATUS, VOLUME_ONE_EXTENT, BLOCK, NULL,
                 VOL_SIZE - BLOCK);
    ck_ok(rig_io_wait(&rio));
    ck_assert_uint_eq(rio.io.ret_nr_extents, 1);
    ck_assert_uint_eq(extents[0].len, BLOCK);
}
END_TEST

START_TEST(a_read_may_tell_its_holes)
{
    struct volume_extent extents[8];
    struct rig_io rio;

    fill(buf, BLOCK * 6, 11);
    ck_ok(rig_write(&rig, vol, BLOCK, buf, BLOCK));
    ck_ok(rig_write(&rig, vol, BLOCK * 3, buf, BLOCK));
    memset(&rio, 0, sizeof(rio));
    memset(back, 0xcc, BLOCK * 6);
    rio.io.extents = extents;
    rio.io.max_extents = 8;
    rig_io_start(&rig, vol, &rio, VOLUME_READ, 0, 0, back, BLOCK * 5);
    ck_ok(rig_io_wait(&rio));
    ck_assert_uint_eq(rio.io.ret_nr_extents, 5);
    ck_assert_uint_eq(extents[2].flags, VOLUME_EXTENT_HOLE | VOLUME_EXTENT_ZERO);
    ck_assert_uint_eq(back[0], 0xcc);
    ck_assert_int_eq(memcmp(back + BLOCK, buf, BLOCK), 0);
    /* A map that does not fit: all is data. */
    memset(back, 0xcc, BLOCK * 6);
    rio.io.max_extents = 3;
    rig_io_start(&rig, vol, &rio, VOLUME_READ, 0, 0, back, BLOCK * 5);
    ck_ok(rig_io_wait(&rio));
    ck_assert_uint_eq(rio.io.ret_nr_extents, 1);
    ck_assert_uint_eq(extents[0].len, BLOCK * 5);
    ck_assert_uint_eq(extents[0].flags, 0);
    ck_assert_uint_eq(back[0] | back[BLOCK * 3 - 1] | back[BLOCK * 5 - 1], 0);
    ck_assert_int_eq(memcmp(back + BLOCK, buf, BLOCK), 0);
}
END_TEST

START_TEST(an_overwrite_is_one_device_request)
{
    uint64_t writes;

    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK * 8));
    ck_ok(rig_flush(&rig, vol));
    writes = device_fault_nr_op(data, DEVICE_WRITE);
    ck_ok(rig_write(&rig, vol, 4096, buf, BLOCK * 7));
    ck_assert_uint_eq(device_fault_nr_op(data, DEVICE_WRITE), writes + 1);
    /* A first write of several blocks is one as well: placed behind one another. */
    ck_ok(rig_write(&rig, vol, BLOCK * 16, buf, BLOCK * 16));
    ck_assert_uint_eq(device_fault_nr_op(data, DEVICE_WRITE), writes + 2);
}
END_TEST

START_TEST(a_failed_data_write_fails_only_its_request)
{
    uint64_t used = data_used();

    device_fault_order(data, FAULT_FAIL, FAULT_OP(DEVICE_WRITE), 1, 1, -EIO, 0);
    ck_code(rig_write(&rig, vol, 0, buf, 4096), EIO);
    ck_assert_uint_eq(data_used(), used);
    fill(buf, 4096, 12);
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    check_reads(vol, 0, buf, 4096);
    device_fault_order(data, FAULT_FAIL, FAULT_OP(DEVICE_READ), 1, 1, -EIO, 0);
    ck_code(rig_read(&rig, vol, 0, back, 4096), EIO);
    check_reads(vol, 0, buf, 4096);
}
END_TEST

static void
small_and_error(struct pool_params *params)
{
    params->config.on_full = POOL_ERROR;
}

START_TEST(a_full_pool_fails_writes_and_goes_on)
{
    struct pool_info info;
    uint64_t at = 0;
    int r = 0;

    tear_down();
    open_pool(64, small_and_error);
    fill(buf, BLOCK, 13);
    while (r == 0) {
        r = rig_write(&rig, vol, at, buf, BLOCK);
        if (r == 0)
            at += BLOCK;
    }
    ck_code(r, NO_DATA_SPACE);
    ck_assert_uint_ge(at, 50 * BLOCK);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_OUT_OF_DATA_SPACE);
    ck_assert_uint_eq(info.data_blocks_free, 0);
    check_reads(vol, at - BLOCK, buf, BLOCK);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK));
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, BLOCK * 4));
    ck_ok(rig_write(&rig, vol, at, buf, BLOCK * 2));
    check_reads(vol, at, buf, BLOCK);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
}
END_TEST

/* The blocks were free only when their pass-down had ended, after the last commit: the
   pool stayed out of space until somebody wrote. */
START_TEST(a_full_pool_is_back_when_space_comes_back)
{
    struct pool_info info;
    uint64_t at = 0;

    tear_down();
    open_pool(64, small_and_error);
    while (rig_write(&rig, vol, at, buf, BLOCK) == 0)
        at += BLOCK;
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_OUT_OF_DATA_SPACE);
    device_fault_order(data, FAULT_DELAY, FAULT_OP(DEVICE_DISCARD), 1, 0, 0,
                       3 * NS_PER_SEC);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, BLOCK * 4));
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 2 * NS_PER_SEC);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_OUT_OF_DATA_SPACE);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 8 * NS_PER_SEC);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
}
END_TEST

/* A client that was gone kept its volume until the time of its queued writes was over. */
START_TEST(who_is_gone_waits_for_no_room)
{
    static struct rig_io ios[96], late;
    struct volume *other;
    unsigned done = 0, ended = 0;

    tear_down();
    open_pool(64, NULL);
    ck_ok(rig_volume(&rig, "vol", &other));
    for (unsigned i = 0; i < 96; i++)
        rig_io_start(&rig, vol, &ios[i], VOLUME_WRITE, 0, i * BLOCK, buf, BLOCK);
    rig_io_start(&rig, other, &late, VOLUME_WRITE, 0, 100 * BLOCK, buf, BLOCK);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 5 * NS_PER_SEC);
    for (unsigned i = 0; i < 96; i++)
        done += ios[i].done;
    ck_assert_uint_ge(done, 50);
    ck_assert_uint_lt(done, 96);
    volume_drain(vol);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
    for (unsigned i = 0; i < 96; i++)
        ended += ios[i].done && ios[i].result == -THIN_E_SHUTDOWN;
    ck_assert_uint_eq(done + ended, 96);
    /* Nor later ones; what needs no room is done, and others wait on. */
    ck_code(rig_write(&rig, vol, 101 * BLOCK, buf, BLOCK), SHUTDOWN);
    ck_ok(rig_write(&rig, vol, 0, buf, BLOCK));
    ck_ok(rig_flush(&rig, vol));
    ck_assert(!late.done);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, BLOCK * 4));
    ck_ok(rig_io_wait(&late));
    volume_close(other);
}
END_TEST

START_TEST(queued_writes_go_on_when_there_is_room)
{
    static struct rig_io ios[128];
    unsigned done = 0;

    tear_down();
    open_pool(64, NULL);
    fill(buf, VOL_SIZE / 2, 14);
    for (unsigned i = 0; i < 96; i++)
        rig_io_start(&rig, vol, &ios[i], VOLUME_WRITE, 0, i * BLOCK,
                     buf + (i % 32) * BLOCK, BLOCK);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 5 * NS_PER_SEC);
    for (unsigned i = 0; i < 96; i++)
        done += ios[i].done;
    ck_assert_uint_le(done, 64);
    ck_assert_uint_ge(done, 50);
    /* Reads and overwrites meanwhile; then more room. */
    check_reads(vol, 0, buf, BLOCK);
    ck_ok(rig_write(&rig, vol, 0, buf, 4096));
    ck_ok(rig_grow(&rig, 128 * BLOCK));
    for (unsigned i = 0; i < 96; i++)
        ck_ok(rig_io_wait(&ios[i]));
    for (unsigned i = 0; i < 96; i++)
        check_reads(vol, i * BLOCK, buf + (i % 32) * BLOCK, BLOCK);
}
END_TEST

START_TEST(queued_writes_fail_in_the_end_and_at_closing)
{
    static struct rig_io ios[128];
    unsigned failed = 0;
    uint64_t began;

    tear_down();
    open_pool(64, NULL);
    began = loop_now_ns(rig.loop);
    for (unsigned i = 0; i < 96; i++)
        rig_io_start(&rig, vol, &ios[i], VOLUME_WRITE, 0, i * BLOCK, buf, BLOCK);
    for (unsigned i = 0; i < 96; i++)
        failed += rig_io_wait(&ios[i]) == -THIN_E_NO_DATA_SPACE;
    ck_assert_uint_ge(failed, 32);
    ck_assert_uint_ge(loop_now_ns(rig.loop) - began, 60 * NS_PER_SEC);
    rig_io_start(&rig, vol, &ios[0], VOLUME_WRITE, 0, 100 * BLOCK, buf, BLOCK);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + NS_PER_SEC);
    ck_assert(!ios[0].done);
    began = loop_now_ns(rig.loop);
    ck_ok(rig_close(&rig, true));
    ck_assert(ios[0].done);
    ck_assert_str_eq(thin_error_name(ios[0].result), "SHUTDOWN");
    ck_assert_uint_lt(loop_now_ns(rig.loop) - began, NS_PER_SEC);
    ck_code(rig_write(&rig, vol, 0, buf, 512), SHUTDOWN);
    volume_close(vol);
}
END_TEST

START_TEST(a_pool_with_open_volumes_closes_only_by_force)
{
    ck_code(rig_close(&rig, false), BUSY);
    ck_ok(rig_write(&rig, vol, 0, buf, 512));
}
END_TEST

/* Many more writes break sharing than copies run at a time. Those that waited for a buffer
   were woken one for each copy that ended; they ended as well, and the rest waited for ever. */
START_TEST(a_forced_close_answers_all_who_wait_to_copy)
{
    static struct rig_io writes[4 * POOL_COPIES_MAX];
    const unsigned nr = 4 * POOL_COPIES_MAX;

    fill(buf, sizeof(buf), 77);
    ck_ok(rig_write(&rig, vol, 0, buf, (uint64_t)nr * BLOCK));
    ck_ok(rig_snapshot(&rig, "vol", "snap"));
    device_fault_order(data, FAULT_HOLD, FAULT_OP(DEVICE_READ), 1, 0, 0, 0);
    for (unsigned i = 0; i < nr; i++)
        rig_io_start(&rig, vol, &writes[i], VOLUME_WRITE, 0, (uint64_t)i * BLOCK, buf,
                     4096);
    for (unsigned i = 0; i < 5000 && sim_loop_step(rig.loop); i++)
        ;
    ck_assert_uint_eq(device_fault_nr_held(data), POOL_COPIES_MAX);
    device_fault_clear(data);
    device_fault_release(data);
    ck_assert_int_eq(rig_close(&rig, true), 0);
    for (unsigned i = 0; i < nr; i++)
        ck_code(rig_io_wait(&writes[i]), SHUTDOWN);
    volume_close(vol);
}
END_TEST

START_TEST(a_repeated_fill_and_discard_loses_no_block)
{
    struct pool_info info;

    for (unsigned turn = 0; turn < 20; turn++) {
        fill(buf, sizeof(buf), 100 + turn);
        ck_ok(rig_write(&rig, vol, 0, buf, sizeof(buf)));
        ck_ok(rig_write(&rig, vol, sizeof(buf), buf, sizeof(buf)));
        check_reads(vol, sizeof(buf), buf, sizeof(buf));
        ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, VOL_SIZE));
    }
    ck_ok(rig_flush(&rig, vol));
    pool_get_info(rig.pool, &info);
    ck_assert_uint_ge(info.data_blocks_free, NR_BLOCKS - 40);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("io");
    TCase *tcase = tcase_create("io");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, holes_read_as_zeros_and_take_no_space);
    tcase_add_test(tcase, what_is_written_reads_back);
    tcase_add_test(tcase, the_rest_of_a_new_block_is_zeros_whatever_the_device_held);
    tcase_add_test(tcase, parts_of_sectors_do_not_tear_their_neighbours);
    tcase_add_test(tcase, part_writes_of_one_sector_are_none_lost);
    tcase_add_test(tcase, a_request_in_many_pieces_is_one);
    tcase_add_test(tcase, beyond_the_end_is_refused);
    tcase_add_test(tcase, a_snapshot_keeps_what_was_there);
    tcase_add_test(tcase, writes_in_flight_at_a_snapshot_are_in_it_once_answered);
    tcase_add_test(tcase, a_discard_unmaps_whole_blocks_only);
    tcase_add_test(tcase, write_zeroes_reads_as_zeros_everywhere);
    tcase_add_test(tcase, zeroes_over_a_shared_block_leave_the_snapshot_alone);
    tcase_add_test(tcase, status_tells_holes_data_and_sharing);
    tcase_add_test(tcase, a_read_may_tell_its_holes);
    tcase_add_test(tcase, an_overwrite_is_one_device_request);
    tcase_add_test(tcase, a_failed_data_write_fails_only_its_request);
    tcase_add_test(tcase, a_full_pool_fails_writes_and_goes_on);
    tcase_add_test(tcase, a_full_pool_is_back_when_space_comes_back);
    tcase_add_test(tcase, queued_writes_go_on_when_there_is_room);
    tcase_add_test(tcase, who_is_gone_waits_for_no_room);
    tcase_add_test(tcase, queued_writes_fail_in_the_end_and_at_closing);
    tcase_add_test(tcase, a_pool_with_open_volumes_closes_only_by_force);
    tcase_add_test(tcase, a_forced_close_answers_all_who_wait_to_copy);
    tcase_add_test(tcase, a_repeated_fill_and_discard_loses_no_block);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
