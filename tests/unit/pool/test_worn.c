/*
 * Metadata that discards use up: what snapshots share must become a volume's own before a
 * block can go out of it, which takes a block of metadata and gives none back. However
 * many there are, a discard and a delete succeed.
 */
#include "tests/unit/pool/admin_rig.h"

#define SNAPS  1100u
#define BLOCKS 200u

static uint8_t bytes[RIG_BLOCK];

static void
set_up(uint32_t nodes)
{
    rig_init(BLOCKS * 8, 1024);
    rig.params.config.on_full = POOL_ERROR;
    rig.params.config.extend_metadata = false;
    rig.params.leaf_max = rig.params.internal_max = nodes;
    rig_open(true);
    memset(bytes, 0x5a, sizeof(bytes));
}

static void
tear_down(void)
{
    struct recount rc;

    rig_close();
    rig_recount(&rc);
    rig_fini();
}

static const char *
snap_name(unsigned i)
{
    static char name[16];

    snprintf(name, sizeof(name), "s%u", i);
    return name;
}

static void
healthy(const char *when)
{
    struct pool_info info;

    pool_get_info(rig.pool, &info);
    ck_assert_msg(!info.needs_check && info.mode != POOL_READ_ONLY &&
                      info.mode != POOL_FAIL,
                  "%s: %s: %s", when, pool_mode_name(info.mode), info.why);
}

static int
on_block(unsigned i, enum volume_op op, unsigned block)
{
    struct volume *volume = rig_open_volume(snap_name(i));
    int r = rig_io(volume, op, (uint64_t)block * RIG_BLOCK,
                   op == VOLUME_WRITE ? 4096 : RIG_BLOCK, bytes, 0);

    volume_close(volume);
    return r;
}

START_TEST(discards_leave_room_for_deletes_and_for_more_discards)
{
    struct pool_info info;
    unsigned nr = 0, written = 0;
    uint64_t free_before;
    int r = 0;

    set_up(_i == 0 ? 0 : 6); /* as the format has them; small nodes */
    rig_create(snap_name(0), BLOCKS * RIG_BLOCK);
    for (unsigned at = 0; at < BLOCKS; at++)
        ck_assert_int_eq(on_block(0, VOLUME_WRITE, at), 0);
    for (nr = 1; nr < SNAPS; nr++) {
        r = rig_call(rig_snap_async("s0", snap_name(nr), RIG_DONE));
        if (r < 0)
            break;
    }
    ck_assert(r == 0 || r == -THIN_E_NO_METADATA_SPACE);
    /* What ordinary changes may use is used up by writes to some of them. */
    for (r = 0; written < nr && r == 0; written += r == 0)
        r = on_block(written, VOLUME_WRITE, (unsigned)random_below(&rig.rng, BLOCKS));
    ck_assert_msg(r == -THIN_E_NO_METADATA_SPACE, "%u of %u snapshots: %s", written, nr,
                  thin_error_name(r));
    pool_get_info(rig.pool, &info);
    printf("%u volumes, %u written, %" PRIu64 " metadata blocks free\n", nr, written,
           info.metadata_blocks_free);
    free_before = info.metadata_blocks_free;
    ck_assert_uint_gt(nr - written, free_before);
    for (unsigned i = 0; i < nr; i++) {
        r = on_block(i, VOLUME_DISCARD, (unsigned)random_below(&rig.rng, BLOCKS));
        pool_get_info(rig.pool, &info);
        ck_assert_msg(
            r == 0, "discard %u of %u: %s, %" PRIu64 " metadata blocks free of %" PRIu64,
            i, nr, thin_error_name(r), info.metadata_blocks_free, free_before);
    }
    healthy("after the discards");
    for (unsigned i = 0; i < nr; i++) {
        r = rig_call(pool_volume_delete(rig.pool, snap_name(i), RIG_DONE));
        ck_assert_msg(r == 0, "delete %u: %s: %s", i, thin_error_name(r), rig.err.text);
    }
    rig_settle();
    healthy("after the deletes");
    pool_get_info(rig.pool, &info);
    ck_assert_uint_gt(info.metadata_blocks_free, 900);
    tear_down();
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("worn");
    TCase *tcase = tcase_create("worn");
    SRunner *runner;
    int failed;

    thin_log_set_level((enum thin_log_level) - 1);
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, discards_leave_room_for_deletes_and_for_more_discards, 0,
                        2);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
