/*
 * Random requests of any alignment, several at a time, over block sizes of all kinds,
 * against plain copies of the volumes. Also devices that are too small, too large, full
 * below, and growing by themselves. SEED= repeats a run.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "tests/lib/check_codes.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/pool_rig.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"

#define VOLUMES   4u
#define META_SIZE (8u << 20)
#define AT_ONCE   8u

static struct pool_rig rig;
static struct device *data_mem, *meta_mem, *data;

static struct pool_params
make_devices(uint64_t data_size, uint32_t sectors)
{
    struct pool_params params;

    rig.loop = sim_loop_create(3);
    ck_assert_int_eq(device_mem_open(rig.loop, data_size, &data_mem), 0);
    ck_assert_int_eq(device_mem_open(rig.loop, META_SIZE, &meta_mem), 0);
    data = device_fault_open(data_mem);
    rig_params(&rig, &params, data, meta_mem);
    params.format = true;
    params.data_block_sectors = sectors;
    return params;
}

/* ---- random requests ------------------------------------------------------------------------ */

struct plain {
    struct volume *volume;
    unsigned char *bytes; /* NULL: no such volume */
};

struct piece {
    struct rig_io rio;
    struct plain *p;
    uint64_t offset, len;
    unsigned char *bytes;
};

static const char *const names[VOLUMES] = {"a", "b", "c", "d"};

static void
piece_end(struct piece *piece)
{
    ck_ok(rig_io_wait(&piece->rio));
    if (piece->rio.io.op == VOLUME_READ)
        ck_assert_msg(memcmp(piece->bytes, piece->p->bytes + piece->offset, piece->len) ==
                          0,
                      "volume %s differs in %llu+%llu", volume_name(piece->p->volume),
                      (unsigned long long)piece->offset, (unsigned long long)piece->len);
    free(piece->bytes);
    piece->bytes = NULL;
}

static void
piece_start(struct thin_random *rng, struct piece *piece, struct plain *p, uint64_t size,
            uint64_t block)
{
    uint64_t dice = random_below(rng, 10);
    enum volume_op op = dice < 3   ? VOLUME_READ
                        : dice < 8 ? VOLUME_WRITE
                                   : VOLUME_WRITE_ZEROES;
    unsigned flags = 0;

    memset(piece, 0, sizeof(*piece));
    piece->p = p;
    piece->offset = random_below(rng, size);
    if (random_below(rng, 3) == 0)
        piece->offset -= piece->offset % block;
    piece->len = 1 + random_below(rng, random_below(rng, 2) ? 3000 : 2 * block);
    if (piece->len > size - piece->offset)
        piece->len = size - piece->offset;
    if (piece->len > (3u << 20))
        piece->len = 3u << 20;
    piece->bytes = malloc(piece->len);
    for (uint64_t i = 0; i < piece->len; i += 8) {
        uint64_t n = random_u64(rng);

        memcpy(piece->bytes + i, &n, piece->len - i < 8 ? piece->len - i : 8);
    }
    if (op == VOLUME_WRITE) {
        memcpy(p->bytes + piece->offset, piece->bytes, piece->len);
    } else if (op == VOLUME_WRITE_ZEROES) {
        memset(p->bytes + piece->offset, 0, piece->len);
        flags = random_below(rng, 2) ? VOLUME_NO_HOLE : 0;
    }
    rig_io_start(&rig, p->volume, &piece->rio, op, flags, piece->offset, piece->bytes,
                 piece->len);
}

/* True if it shares a byte with one that is running. */
static bool
overlaps(const struct piece *pieces, const struct piece *new_one)
{
    for (unsigned i = 0; i < AT_ONCE; i++)
        if (pieces[i].bytes && pieces[i].p == new_one->p &&
            pieces[i].offset < new_one->offset + new_one->len &&
            new_one->offset < pieces[i].offset + pieces[i].len)
            return true;
    return false;
}

static void
random_requests(uint32_t sectors, uint64_t size, unsigned nr_ops, uint64_t seed)
{
    uint64_t block = (uint64_t)sectors * 512;
    struct pool_params params =
        make_devices((VOLUMES * (size / block + 2) + 8) * block, sectors);
    struct plain plains[VOLUMES];
    static struct piece pieces[AT_ONCE];
    struct thin_random rng, peek;
    struct recount rc;
    unsigned there = 1;

    printf("block size %u sectors, SEED=%llu\n", sectors, (unsigned long long)seed);
    random_seed(&rng, seed);
    memset(plains, 0, sizeof(plains));
    memset(pieces, 0, sizeof(pieces));
    params.config.mapping_cache_pages = 8;
    params.leaf_max = params.internal_max = 6;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, names[0], size));
    ck_ok(rig_volume(&rig, names[0], &plains[0].volume));
    plains[0].bytes = calloc(1, size);
    for (unsigned i = 0; i < nr_ops; i++) {
        struct piece *piece = &pieces[random_below(&rng, AT_ONCE)];
        struct plain *p = &plains[random_below(&rng, there)];
        struct piece probe;

        if (piece->bytes)
            piece_end(piece);
        if (there < VOLUMES && random_below(&rng, nr_ops / 8) == 0) {
            for (unsigned k = 0; k < AT_ONCE; k++)
                if (pieces[k].bytes)
                    piece_end(&pieces[k]);
            plains[there].bytes = malloc(size);
            memcpy(plains[there].bytes, p->bytes, size);
            ck_ok(rig_snapshot(&rig, names[p - plains], names[there]));
            ck_ok(rig_volume(&rig, names[there], &plains[there].volume));
            there++;
            continue;
        }
        if (random_below(&rng, 20) == 0)
            ck_ok(rig_flush(&rig, p->volume));
        /* What it will be, to keep off those that run. */
        peek = rng;
        (void)random_below(&peek, 10);
        probe.p = p;
        probe.offset = random_below(&peek, size);
        if (random_below(&peek, 3) == 0)
            probe.offset -= probe.offset % block;
        probe.len = 1 + random_below(&peek, random_below(&peek, 2) ? 3000 : 2 * block);
        if (overlaps(pieces, &probe)) {
            (void)random_u64(&rng);
            continue;
        }
        piece_start(&rng, piece, p, size, block);
    }
    for (unsigned k = 0; k < AT_ONCE; k++)
        if (pieces[k].bytes)
            piece_end(&pieces[k]);
    for (unsigned v = 0; v < there; v++) {
        unsigned char *back = malloc(size);

        for (uint64_t at = 0; at < size; at += 4u << 20) {
            uint64_t len = size - at < (4u << 20) ? size - at : 4u << 20;

            ck_ok(rig_read(&rig, plains[v].volume, at, back + at, len));
        }
        ck_assert_msg(memcmp(back, plains[v].bytes, size) == 0, "volume %s differs",
                      names[v]);
        free(back);
        free(plains[v].bytes);
        volume_close(plains[v].volume);
    }
    ck_ok(rig_commit(&rig));
    ck_assert_msg(recount_image(meta_mem, NULL, &rc) == 0, "%s", rc.why);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
}

static uint64_t
seed_or(uint64_t otherwise)
{
    const char *given = getenv("SEED");

    return given ? strtoull(given, NULL, 0) : otherwise;
}

START_TEST(requests_of_any_alignment_do_as_plain_memory_does)
{
    const uint32_t sizes[] = {128, 384, 1024, 8192};

    for (unsigned i = 0; i < 4; i++)
        for (uint64_t s = 0; s < 3; s++)
            random_requests(sizes[i], sizes[i] * 512ull * 6 - 700 * 512,
                            sizes[i] > 1024 ? 60 : 400, seed_or(100 + s * 10 + i));
}
END_TEST

START_TEST(huge_blocks_are_zeroed_and_copied_in_pieces)
{
    random_requests(65536 * 2, 2 * 65536 * 2 * 512ull, 24, seed_or(7));
}
END_TEST

/* ---- devices ------------------------------------------------------------------------------------- */

START_TEST(a_data_device_that_shrank_is_refused_with_both_sizes)
{
    struct pool_params params = make_devices(64 * 65536, 128);
    struct thin_error err;
    unsigned char *image = malloc(META_SIZE);

    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_commit(&rig));
    ck_assert_int_eq(device_read_wait(meta_mem, 0, image, META_SIZE), 0);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
    params = make_devices(63 * 65536, 128);
    params.format = false;
    ck_assert_int_eq(device_write_wait(meta_mem, 0, image, META_SIZE, 0), 0);
    ck_code(rig_open(&rig, &params), RANGE);
    err = rig.err;
    ck_assert_ptr_nonnull(strstr(err.text, "4194304"));
    ck_assert_ptr_nonnull(strstr(err.text, "4128768"));
    sim_loop_destroy(rig.loop);
    /* A larger one is used as it was recorded. */
    params = make_devices(200 * 65536, 128);
    params.format = false;
    ck_assert_int_eq(device_write_wait(meta_mem, 0, image, META_SIZE, 0), 0);
    ck_ok(rig_open(&rig, &params));
    {
        struct pool_info info;

        pool_get_info(rig.pool, &info);
        ck_assert_uint_eq(info.data_size, 64 * 65536);
    }
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
    free(image);
}
END_TEST

START_TEST(a_device_without_a_pool_does_not_open)
{
    struct pool_params params = make_devices(64 * 65536, 128);

    params.format = false;
    ck_code(rig_open(&rig, &params), NOT_THIN);
    sim_loop_destroy(rig.loop);
}
END_TEST

START_TEST(a_full_file_system_is_out_of_data_space_before_the_write)
{
    struct pool_params params = make_devices(256 * 65536, 128);
    static unsigned char buf[65536];
    struct volume *vol;
    struct pool_info info;

    params.config.on_full = POOL_ERROR;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", 16u << 20));
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_write(&rig, vol, 0, buf, sizeof(buf)));
    device_fault_order(data, FAULT_FAIL, FAULT_OP(DEVICE_ALLOCATE), 1, 0, -ENOSPC, 0);
    ck_code(rig_write(&rig, vol, 8u << 20, buf, sizeof(buf)), NO_DATA_SPACE);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_OUT_OF_DATA_SPACE);
    ck_ok(rig_write(&rig, vol, 0, buf, sizeof(buf)));
    device_fault_clear(data);
    ck_ok(rig_write(&rig, vol, 8u << 20, buf, sizeof(buf)));
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    volume_close(vol);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
}
END_TEST

/* A window is more than one write needs. */
START_TEST(a_file_system_that_is_nearly_full_gives_its_last_blocks)
{
    struct pool_params params = make_devices(256 * 65536, 128);
    static unsigned char buf[65536];
    struct volume *vol;
    struct pool_info info;

    params.config.on_full = POOL_ERROR;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", 16u << 20));
    ck_ok(rig_volume(&rig, "vol", &vol));
    ck_ok(rig_write(&rig, vol, 0, buf, sizeof(buf)));
    /* The next one has a neighbour: many blocks are asked for, and are not there. */
    device_fault_order(data, FAULT_FAIL, FAULT_OP(DEVICE_ALLOCATE), 1, 1, -ENOSPC, 0);
    ck_ok(rig_write(&rig, vol, 40 * 65536, buf, sizeof(buf)));
    ck_ok(rig_write(&rig, vol, 41 * 65536, buf, sizeof(buf)));
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    device_fault_clear(data);
    volume_close(vol);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
}
END_TEST

START_TEST(writes_that_wait_for_a_full_file_system_go_on_when_it_has_room)
{
    struct pool_params params = make_devices(256 * 65536, 128);
    static unsigned char buf[65536];
    struct volume *vol;
    struct pool_info info;
    struct rig_io rio;

    params.config.on_full = POOL_QUEUE;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", 16u << 20));
    ck_ok(rig_volume(&rig, "vol", &vol));
    device_fault_order(data, FAULT_FAIL, FAULT_OP(DEVICE_ALLOCATE), 1, 0, -ENOSPC, 0);
    rig_io_start(&rig, vol, &rio, VOLUME_WRITE, 0, 8u << 20, buf, sizeof(buf));
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 5 * NS_PER_SEC);
    ck_assert(!rio.done);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_OUT_OF_DATA_SPACE);
    /* The pool has free blocks: who looks must learn what is full. */
    ck_assert_msg(strstr(info.why, "file system"), "why: %s", info.why);
    /* Nobody writes anything, grows or deletes: room came from outside. */
    device_fault_clear(data);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 3 * NS_PER_SEC);
    ck_assert(rio.done);
    ck_ok(rio.result);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);

    /* One that stays full ends the wait as any other. */
    device_fault_order(data, FAULT_FAIL, FAULT_OP(DEVICE_ALLOCATE), 1, 0, -ENOSPC, 0);
    ck_code(rig_write(&rig, vol, 0, buf, sizeof(buf)), NO_DATA_SPACE);
    volume_close(vol);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
}
END_TEST

START_TEST(a_pool_grows_by_itself_up_to_its_limit)
{
    struct pool_params params = make_devices(64 * 65536, 128);
    static unsigned char buf[65536];
    struct volume *vol;
    struct pool_info info;
    uint64_t at = 0;
    int r = 0;

    params.config.on_full = POOL_ERROR;
    params.config.extend_data.percent = 80;
    params.config.extend_data.step_bytes = 32 * 65536;
    params.config.extend_data.limit_bytes = 160 * 65536;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", 16u << 20));
    ck_ok(rig_volume(&rig, "vol", &vol));
    while (r == 0) {
        r = rig_write(&rig, vol, at, buf, sizeof(buf));
        at += sizeof(buf);
    }
    ck_code(r, NO_DATA_SPACE);
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.data_size, 160 * 65536);
    ck_assert_uint_ge(at, 140 * 65536);
    volume_close(vol);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
}
END_TEST

static int
fill_scattered(struct volume *vol, unsigned nr)
{
    static unsigned char buf[512];
    int r = 0;

    for (unsigned i = 0; i < nr && r == 0; i++)
        r = rig_write(&rig, vol, (uint64_t)(i * 7919 % nr) * 65536, buf, sizeof(buf));
    return r;
}

static struct volume *
open_small_metadata(bool extend)
{
    struct pool_params params = make_devices(2048 * 65536, 128);
    struct volume *vol;

    device_close_wait(meta_mem);
    ck_assert_int_eq(device_mem_open(rig.loop, 1u << 20, &meta_mem), 0);
    params.metadata = meta_mem;
    params.leaf_max = params.internal_max = 6;
    params.config.extend_metadata = extend;
    ck_ok(rig_open(&rig, &params));
    ck_ok(rig_create(&rig, "vol", 1200 * 65536));
    ck_ok(rig_volume(&rig, "vol", &vol));
    return vol;
}

START_TEST(metadata_grows_by_itself)
{
    struct volume *vol = open_small_metadata(true);
    struct pool_info info;
    struct recount rc;

    ck_ok(fill_scattered(vol, 1200));
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    ck_assert_uint_gt(info.metadata_size, 1u << 20);
    volume_close(vol);
    ck_ok(rig_commit(&rig));
    ck_assert_msg(recount_image(meta_mem, NULL, &rc) == 0, "%s", rc.why);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
}
END_TEST

START_TEST(full_metadata_refuses_writes_and_lets_discards_through)
{
    struct volume *vol = open_small_metadata(false);
    struct pool_info info;
    struct recount rc;

    ck_code(fill_scattered(vol, 1200), NO_METADATA_SPACE);
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_OUT_OF_METADATA_SPACE);
    ck_ok(rig_io(&rig, vol, VOLUME_DISCARD, 0, 0, NULL, 1200 * 65536));
    ck_ok(rig_flush(&rig, vol));
    ck_ok(rig_commit(&rig));
    pool_get_info(rig.pool, &info);
    ck_assert_int_eq(info.mode, POOL_WRITE);
    ck_ok(fill_scattered(vol, 50));
    volume_close(vol);
    ck_ok(rig_commit(&rig));
    ck_assert_msg(recount_image(meta_mem, NULL, &rc) == 0, "%s", rc.why);
    ck_ok(rig_close(&rig, false));
    sim_loop_destroy(rig.loop);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("geometry");
    TCase *tcase = tcase_create("geometry");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, requests_of_any_alignment_do_as_plain_memory_does);
    tcase_add_test(tcase, huge_blocks_are_zeroed_and_copied_in_pieces);
    tcase_add_test(tcase, a_data_device_that_shrank_is_refused_with_both_sizes);
    tcase_add_test(tcase, a_device_without_a_pool_does_not_open);
    tcase_add_test(tcase, a_full_file_system_is_out_of_data_space_before_the_write);
    tcase_add_test(tcase, a_file_system_that_is_nearly_full_gives_its_last_blocks);
    tcase_add_test(tcase, writes_that_wait_for_a_full_file_system_go_on_when_it_has_room);
    tcase_add_test(tcase, a_pool_grows_by_itself_up_to_its_limit);
    tcase_add_test(tcase, metadata_grows_by_itself);
    tcase_add_test(tcase, full_metadata_refuses_writes_and_lets_discards_through);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
