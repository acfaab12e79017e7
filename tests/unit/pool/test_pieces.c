/* Pieces of blocks that are discarded or zeroed one after another unmap them in the end. */
#include <errno.h>

#include "core/pool/pieces.h"
#include "tests/unit/pool/admin_rig.h"

#define VOL_BLOCKS 24u
#define VOL_SIZE   (VOL_BLOCKS * RIG_BLOCK - 3 * 4096u)
#define NR_SECTORS (VOL_SIZE / 512u)

static uint8_t buf[VOL_SIZE], back[VOL_SIZE];
static struct volume *vol;

static void
set_up(void)
{
    rig_init(300, 1024);
    rig_open(true);
    rig_create("vol", VOL_SIZE);
    vol = rig_open_volume("vol");
    memset(buf, 0x77, sizeof(buf));
}

static void
tear_down(void)
{
    struct recount rc;

    volume_close(vol);
    rig_close();
    rig_recount(&rc);
    rig_fini();
}

static uint64_t
mapped(void)
{
    rig_list(NULL, 1);
    return rig.infos[0].mapped / RIG_BLOCK;
}

#define ok(op, offset, len) \
    ck_assert_int_eq(rig_io(vol, VOLUME_##op, offset, len, buf, 0), 0)

START_TEST(a_block_goes_with_its_last_piece)
{
    ok(WRITE, 0, 4 * RIG_BLOCK);
    for (unsigned i = 0; i < 16; i++) {
        ck_assert_uint_eq(mapped(), 4);
        ok(DISCARD, RIG_BLOCK + (i * 5 % 16) * 4096, 4096);
    }
    ck_assert_uint_eq(mapped(), 3);
    ck_assert(rig_holds("vol", RIG_BLOCK, RIG_BLOCK, 0));
    ck_assert(rig_holds("vol", 0, RIG_BLOCK, 0x77));
    ck_assert(rig_holds("vol", 2 * RIG_BLOCK, RIG_BLOCK, 0x77));
    /* Zeroes and discards add up, across borders too. */
    ok(WRITE_ZEROES, 2 * RIG_BLOCK + 512, RIG_BLOCK);
    ck_assert_uint_eq(mapped(), 3);
    ok(DISCARD, 2 * RIG_BLOCK - 512, 1024);
    ck_assert_uint_eq(mapped(), 2);
    ok(DISCARD, 3 * RIG_BLOCK + 512, RIG_BLOCK);
    ck_assert_uint_eq(mapped(), 1);
    ck_assert_int_eq(rig_io(vol, VOLUME_FLUSH, 0, 0, NULL, 0), 0);
}
END_TEST

START_TEST(the_last_block_ends_with_the_volume)
{
    uint64_t at = (VOL_BLOCKS - 1) * RIG_BLOCK;

    ok(WRITE, at, 4096);
    ok(DISCARD, at + 8192, VOL_SIZE - at - 8192);
    ok(DISCARD, at, 4096);
    ck_assert_uint_eq(mapped(), 1);
    ok(DISCARD, at + 4096, 4096);
    ck_assert_uint_eq(mapped(), 0);
}
END_TEST

START_TEST(what_is_written_after_a_discard_stays)
{
    for (unsigned way = 0; way < 4; way++) {
        ok(WRITE, 0, RIG_BLOCK);
        ok(DISCARD, 0, 32768);
        if (way == 0)
            ok(WRITE, 4096, 512);
        else if (way == 1)
            ok(WRITE, 4097, 1);
        else if (way == 2)
            ck_assert_int_eq(
                rig_io(vol, VOLUME_WRITE_ZEROES, 4096, 512, NULL, VOLUME_NO_HOLE), 0);
        else
            ck_assert_int_eq(rig_io(vol, VOLUME_WRITE, 4096, 512, buf, VOLUME_FUA), 0);
        ok(DISCARD, 32768, 32768);
        ck_assert_uint_eq(mapped(), 1);
        if (way != 2)
            ck_assert(rig_holds("vol", 4097, 1, 0x77));
        ok(DISCARD, 4096, 512);
        ck_assert_uint_eq(mapped(), 0);
    }
}
END_TEST

/* The write comes when the block is found empty, and before it is unmapped. */
START_TEST(a_write_in_the_turn_of_the_last_discard_stays)
{
    for (unsigned steps = 0; steps < 6; steps++) {
        struct volume_io discard = {
            .op = VOLUME_DISCARD, .offset = 32768, .len = 32768, .done = rig_io_done};
        uint8_t byte = (uint8_t)(1 + steps);

        ok(WRITE, 0, RIG_BLOCK);
        ok(DISCARD, 0, 32768);
        rig_begin();
        volume_submit(vol, &discard);
        for (unsigned i = 0; i < steps && !rig.told; i++)
            sim_loop_step(rig.loop);
        if (!rig.told) {
            struct volume_io write = {.op = VOLUME_WRITE,
                                      .offset = 4096,
                                      .len = 512,
                                      .iov = &(struct iovec){buf, 512},
                                      .nr_iov = 1,
                                      .done = rig_io_done};

            memset(buf, byte, 512);
            volume_submit(vol, &write);
            (void)rig_wait();
            rig.told = false;
            ck_assert_int_eq(rig_wait(), 0);
            memset(buf, 0x77, 512);
            ck_assert(rig_holds("vol", 4096, 512, byte));
        }
        ok(DISCARD, 0, RIG_BLOCK);
    }
}
END_TEST

START_TEST(nothing_is_noted_where_discards_are_off_or_nothing_is_mapped)
{
    struct pool_config config;
    struct pool_info info;

    ok(DISCARD, 512, 4096);
    pool_get_info(rig.pool, &info);
    config = info.config;
    config.discards = POOL_DISCARD_OFF;
    pool_set_config(rig.pool, &config);
    ok(WRITE, 0, RIG_BLOCK);
    ok(DISCARD, 0, 32768);
    ok(DISCARD, 32768, 32768);
    ck_assert_uint_eq(mapped(), 1);
}
END_TEST

START_TEST(a_snapshot_keeps_what_is_unmapped_piece_by_piece)
{
    ok(WRITE, 0, RIG_BLOCK);
    ok(DISCARD, 0, 4096);
    rig_snap("vol", "wnap");
    for (unsigned i = 0; i < 16; i++)
        ok(DISCARD, i * 4096, 4096);
    ck_assert_uint_eq(mapped(), 0);
    ck_assert(rig_holds("wnap", 0, RIG_BLOCK, 0x77));
}
END_TEST

START_TEST(memory_is_bounded)
{
    uint64_t size = (PIECES_MAX + 500ull) * RIG_BLOCK;

    volume_close(vol);
    rig_close();
    rig_fini();
    rig_init(PIECES_MAX + 600, 2048);
    rig_open(true);
    rig_create("vol", size);
    vol = rig_open_volume("vol");
    for (uint64_t at = 0; at < size; at += RIG_BLOCK)
        ok(WRITE, at, 512);
    for (uint64_t at = 0; at < size; at += RIG_BLOCK)
        ok(DISCARD, at, 32768);
    for (uint64_t at = 0; at < size; at += RIG_BLOCK)
        ok(DISCARD, at + 32768, 32768);
    /* Each second piece made room by forgetting an older first one: those that are kept
       are the newest, and they were pushed out before their turn came. */
    ck_assert_uint_ge(mapped(), 500);
    for (uint64_t at = size; at > 0; at -= RIG_BLOCK) {
        ok(DISCARD, at - RIG_BLOCK, 32768);
        ok(DISCARD, at - RIG_BLOCK + 32768, 32768);
    }
    ck_assert_uint_eq(mapped(), 0);
}
END_TEST

/* ---- many at once -------------------------------------------------------------------------------- */

enum { DEAD = -1 };

struct one {
    struct volume_io io;
    struct iovec iov;
    uint8_t *bytes;
    int value;
    uint64_t first, nr;
    bool done;
};

static int sectors[NR_SECTORS]; /* byte that stands there, or DEAD: that or zeros */
static bool busy[NR_SECTORS];
static unsigned in_flight;

static void
one_done(struct volume_io *io, int result)
{
    struct one *one = container_of(io, struct one, io);

    ck_assert_int_eq(result, 0);
    for (uint64_t i = one->first; i < one->first + one->nr; i++) {
        sectors[i] = one->value;
        busy[i] = false;
    }
    free(one->bytes);
    free(one);
    in_flight--;
}

static void
one_start(void)
{
    uint64_t dice = random_below(&rig.rng, 10);
    struct one *one = calloc(1, sizeof(*one));

    one->first = random_below(&rig.rng, NR_SECTORS);
    one->nr = 1 + random_below(&rig.rng, dice < 4 ? 16 : 140);
    if (one->first + one->nr > NR_SECTORS)
        one->nr = NR_SECTORS - one->first;
    /* Requests that overlap have no order: only those that do not are sent together. */
    for (uint64_t i = 0; i < one->nr; i++) {
        if (busy[one->first + i]) {
            one->nr = i;
            break;
        }
    }
    if (one->nr == 0) {
        free(one);
        return;
    }
    for (uint64_t i = 0; i < one->nr; i++)
        busy[one->first + i] = true;
    one->value = dice < 4 ? (int)(1 + random_below(&rig.rng, 255)) : dice < 6 ? 0 : DEAD;
    one->io.op = dice < 4   ? VOLUME_WRITE
                 : dice < 6 ? VOLUME_WRITE_ZEROES
                            : VOLUME_DISCARD;
    one->io.offset = one->first * 512;
    one->io.len = one->nr * 512;
    one->bytes = malloc(one->io.len);
    memset(one->bytes, one->value, one->io.len);
    one->iov.iov_base = one->bytes;
    one->iov.iov_len = one->io.len;
    one->io.iov = &one->iov;
    one->io.nr_iov = 1;
    one->io.done = one_done;
    in_flight++;
    volume_submit(vol, &one->io);
}

static struct volume_io tail_io, end_io;
static struct iovec tail_iov;
static unsigned nr_ended;

static void
one_ended(struct volume_io *io, int result)
{
    (void)io;
    ck_assert_int_eq(result, 0);
    nr_ended++;
}

/*
 * What reaches the end of a volume takes its last block for whole. If the volume grows
 * meanwhile, and somebody writes behind the old end, his bytes stay.
 */
START_TEST(a_block_that_its_volume_outgrows_is_not_unmapped)
{
    static uint8_t tail[4096];
    uint64_t end = 2 * RIG_BLOCK + 16384;
    enum volume_op op = _i % 2 ? VOLUME_DISCARD : VOLUME_WRITE_ZEROES;
    char name[16];

    memset(tail, 0x77, sizeof(tail));
    for (unsigned i = 0; i < 25; i++)
        for (unsigned k = 0; k < 6; k++) {
            struct volume *volume;

            snprintf(name, sizeof(name), "g%u.%u", i, k);
            rig_create(name, end);
            rig_fill(name, 0, end, 0x11);
            volume = rig_open_volume(name);
            nr_ended = 0;
            end_io = (struct volume_io){.op = op, .len = end, .done = one_ended};
            tail_iov = (struct iovec){tail, sizeof(tail)};
            tail_io = (struct volume_io){.op = VOLUME_WRITE,
                                         .offset = end + 4096,
                                         .len = sizeof(tail),
                                         .iov = &tail_iov,
                                         .nr_iov = 1,
                                         .done = one_ended};
            rig_begin();
            pool_volume_resize(rig.pool, name, 8 * RIG_BLOCK, false, RIG_DONE);
            for (unsigned n = 0; n < i && volume_size(volume) == end; n++)
                ck_assert(sim_loop_step(rig.loop));
            if (volume_size(volume) == end) {
                volume_submit(volume, &end_io);
                while (volume_size(volume) == end)
                    ck_assert(sim_loop_step(rig.loop));
                for (unsigned n = 0; n < k; n++)
                    (void)sim_loop_step(rig.loop);
                volume_submit(volume, &tail_io);
                while (nr_ended < 2)
                    ck_assert(sim_loop_step(rig.loop));
                if (!rig.told)
                    (void)rig_wait();
                volume_close(volume);
                ck_assert_msg(rig_holds(name, end + 4096, sizeof(tail), 0x77),
                              "after %u and %u steps", i, k);
                ck_assert(op == VOLUME_DISCARD || rig_holds(name, 0, end, 0));
                ck_assert(rig_holds(name, end, 4096, 0));
            } else {
                if (!rig.told)
                    (void)rig_wait();
                volume_close(volume);
            }
            rig_ok(pool_volume_delete(rig.pool, name, RIG_DONE));
            rig_settle();
        }
}
END_TEST

START_TEST(writes_beside_discards_are_never_lost)
{
    uint64_t least = VOL_BLOCKS;

    memset(sectors, 0, sizeof(sectors));
    for (unsigned round = 0; round < 60; round++) {
        unsigned bad = 0;

        for (unsigned i = 0; i < 200; i++) {
            if (in_flight < 12)
                one_start();
            for (unsigned k = 0; k < 6; k++)
                sim_loop_step(rig.loop);
        }
        while (in_flight)
            ck_assert(sim_loop_step(rig.loop));
        ck_assert_int_eq(rig_io(vol, VOLUME_READ, 0, VOL_SIZE, back, 0), 0);
        for (uint64_t i = 0; i < NR_SECTORS; i++)
            for (unsigned k = 0; k < 512; k++)
                bad += sectors[i] != DEAD && back[i * 512 + k] != (uint8_t)sectors[i];
        ck_assert_uint_eq(bad, 0);
        if (mapped() < least)
            least = mapped();
        /* Now and then nearly all goes, in pieces. */
        if (round % 8 == 7) {
            for (uint64_t at = 0; at + 8192 <= VOL_SIZE; at += 8192)
                ok(DISCARD, at, 8192);
            for (uint64_t i = 0; i < VOL_SIZE / 8192 * 16; i++)
                sectors[i] = DEAD;
            ck_assert_uint_le(mapped(), 1);
        }
    }
    ck_assert_uint_lt(least, VOL_BLOCKS);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("pieces");
    TCase *tcase = tcase_create("pieces");
    SRunner *runner;
    int failed;

    thin_log_set_level(THIN_LOG_ERROR);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_block_goes_with_its_last_piece);
    tcase_add_test(tcase, the_last_block_ends_with_the_volume);
    tcase_add_test(tcase, what_is_written_after_a_discard_stays);
    tcase_add_test(tcase, a_write_in_the_turn_of_the_last_discard_stays);
    tcase_add_test(tcase, nothing_is_noted_where_discards_are_off_or_nothing_is_mapped);
    tcase_add_test(tcase, a_snapshot_keeps_what_is_unmapped_piece_by_piece);
    tcase_add_test(tcase, memory_is_bounded);
    tcase_add_loop_test(tcase, a_block_that_its_volume_outgrows_is_not_unmapped, 0, 2);
    tcase_add_test(tcase, writes_beside_discards_are_never_lost);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
