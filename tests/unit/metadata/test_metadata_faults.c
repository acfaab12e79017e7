/*
 * One request after another of the metadata device fails, for each n until none is left
 * to fail: what asked fails and has changed nothing, everything else goes on.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "core/base/poll_loop.h"
#include "core/metadata/metadata.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/recount.h"
#include "tests/lib/test_cache.h"

#define NR_BLOCKS 1200u /* mapped in device 1: a root and several leaves */

static struct thin_loop *loop;
static struct device *mem, *dev;
static struct metadata *md;
static struct thin_error err;
static unsigned nr_failed; /* calls that failed in this pass */

static void
open_md(uint32_t node_max)
{
    const struct metadata_params params = {.dev = dev,
                                           .cache_blocks = 256,
                                           .cache_clean = test_cache_clean(),
                                           .waiting = true,
                                           .leaf_max = node_max,
                                           .internal_max = node_max};

    ck_assert_int_eq(metadata_create(&params, &md), 0);
}

static void
set_up(void)
{
    loop = poll_loop_create();
    ck_assert_ptr_nonnull(loop);
    ck_assert_int_eq(device_mem_open(loop, 4096ull * 4096, &mem), 0);
    dev = device_fault_open(mem);
    thin_error_init(&err);
}

static void
tear_down(void)
{
    device_close_wait(dev);
    poll_loop_destroy(loop);
}

static void
recount(struct recount *ret)
{
    ck_assert_msg(recount_image(mem, NULL, ret) == 0, "%s", ret->why);
}

/* ---- the calls, each run until it goes through ------------------------------------------ */

struct call {
    int (*run)(struct call *call);
    enum tm_purse purse;
    uint32_t id, origin;
    vblock_t vblock, end;
    bool done;
};

static int
do_create(struct call *c)
{
    return metadata_create_thin(md, c->id, &err);
}

static int
do_snap(struct call *c)
{
    return metadata_create_snap(md, c->id, c->origin, &err);
}

static int
do_map(struct call *c)
{
    dblock_t b = 0, next;
    uint64_t len = 0, value;
    int r;

    r = metadata_find_free(md, c->vblock, 5000, 1, &b, &len, &next, &err);
    if (r < 0)
        return r;
    ck_assert_uint_eq(len, 1);
    r = metadata_take_data(md, b, &err);
    return r < 0 ? r : metadata_insert(md, c->id, c->vblock, b, &value, &err);
}

static int
do_unmap(struct call *c)
{
    uint64_t unmapped;
    int r;

    r = metadata_unmap_step(md, c->id, c->vblock, c->end, 16, &c->end, &unmapped, &err);
    if (r == 0)
        c->done = c->end == c->vblock;
    return r;
}

static int
do_delete(struct call *c)
{
    return metadata_delete_step(md, c->id, 16, &c->done, &err);
}

static int
do_reserve(struct call *c)
{
    (void)c;
    return metadata_reserve_snap(md, &err);
}

static int
do_release(struct call *c)
{
    return metadata_release_snap_step(md, 16, &c->done, &err);
}

static void
note_failure(int r)
{
    ck_assert_msg(r == -EIO || r == -THIN_E_CHECKSUM, "%s: %s", thin_error_name(r),
                  err.text);
    ck_assert_uint_lt(++nr_failed, 50);
}

/* Steps until done. Each order fails one request, so a second try goes through. */
static void
call(struct call c)
{
    do {
        vblock_t end = c.end;
        int r;

        c.done = true;
        thin_error_init(&err);
        metadata_op_begin(md, c.purse);
        r = c.run(&c);
        if (r < 0)
            metadata_op_undo(md);
        else
            r = metadata_op_end(md, &err);
        if (r < 0) {
            note_failure(r);
            c.end = end;
            c.done = false;
        }
    } while (!c.done);
}

static void
load(void)
{
    int r;

    while ((r = metadata_load(md, &err)) < 0) {
        note_failure(r);
        metadata_reset(md);
    }
}

static void
make_pool(uint32_t node_max)
{
    open_md(node_max);
    ck_assert_int_eq(metadata_format_wait(md, 128, 5000, NULL, &err), 0);
    call((struct call){.run = do_create, .id = 1});
    for (vblock_t v = 0; v < NR_BLOCKS; v++) {
        call((struct call){.run = do_map, .id = 1, .vblock = v});
        if (v % 100 == 99)
            ck_assert_int_eq(metadata_commit_wait(md, NULL, &err), 0);
    }
    call((struct call){.run = do_snap, .id = 2, .origin = 1});
    ck_assert_int_eq(metadata_commit_wait(md, NULL, &err), 0);
    metadata_destroy(md);
}

/* One pass of all kinds of work; ends with the state that it began with. */
static void
work(void)
{
    struct device_details details;
    bool found;

    call((struct call){.run = do_create, .id = 700});
    call((struct call){.run = do_reserve});
    call((struct call){.run = do_map, .id = 2, .vblock = 600});
    call((struct call){.run = do_map, .id = 2, .vblock = NR_BLOCKS});
    call((struct call){.run = do_snap, .id = 3, .origin = 2});
    call((struct call){
        .run = do_unmap, .purse = TM_RESERVE, .id = 3, .vblock = 100, .end = 400});
    call((struct call){.run = do_delete, .purse = TM_RESERVE, .id = 3});
    call((struct call){.run = do_delete, .purse = TM_RESERVE, .id = 2});
    call((struct call){.run = do_delete, .purse = TM_RESERVE, .id = 700});
    call((struct call){.run = do_release, .purse = TM_RESERVE});
    call((struct call){.run = do_snap, .id = 2, .origin = 1});
    ck_assert_int_eq(metadata_get_device(md, 2, &details, &found, &err), 0);
    ck_assert(found);
    ck_assert_uint_eq(details.mapped_blocks, NR_BLOCKS);
}

static void
fail_reads(enum fault_kind kind, uint32_t node_max)
{
    struct recount first, now;
    uint64_t nth = 0, met;

    make_pool(node_max);
    recount(&first);
    do {
        nr_failed = 0;
        met = device_fault_nr_met(dev);
        open_md(node_max);
        device_fault_order(dev, kind, FAULT_OP(DEVICE_READ), ++nth, 1, -EIO, 1000);
        load();
        work();
        /* The merge reads too; a read that fails there fails the step, which is tried
           again, as the commit may be. */
        for (int r; (r = metadata_commit_wait(md, NULL, &err)) < 0;)
            note_failure(r);
        device_fault_clear(dev);
        metadata_destroy(md);
        recount(&now);
        ck_assert_uint_eq(now.data_used, first.data_used);
        ck_assert_uint_eq(now.metadata_used, first.metadata_used);
        /* Damage may also be stepped around, with no call failing. */
    } while (device_fault_nr_met(dev) > met);
    ck_assert_uint_gt(nth, 10);
    ck_assert_uint_eq(nr_failed, 0);
}

START_TEST(a_failed_read_fails_one_call_and_no_more)
{
    fail_reads(FAULT_FAIL, 0);
}
END_TEST

START_TEST(a_corrupt_read_fails_one_call_and_no_more)
{
    fail_reads(FAULT_CORRUPT, 0);
}
END_TEST

/* ---- commits that fail -------------------------------------------------------------------- */

START_TEST(a_failed_commit_leaves_the_durable_state)
{
    struct recount first, now;
    uint64_t nth = 0;
    int r;

    make_pool(0);
    recount(&first);
    do {
        open_md(0);
        ck_assert_int_eq(metadata_load(md, &err), 0);
        call((struct call){.run = do_map, .id = 2, .vblock = 5});
        call((struct call){.run = do_map, .id = 2, .vblock = NR_BLOCKS + 7});
        call((struct call){.run = do_create, .id = 9});
        device_fault_order(dev, FAULT_FAIL,
                           FAULT_OP(DEVICE_WRITE) | FAULT_OP(DEVICE_FLUSH), ++nth, 1,
                           -EIO, 0);
        r = metadata_commit_wait(md, NULL, &err);
        device_fault_clear(dev);
        recount(&now);
        if (r < 0) {
            ck_assert_int_eq(r, -EIO);
            ck_assert_uint_eq(now.data_used, first.data_used);
            ck_assert_uint_eq(now.nr_devices, first.nr_devices);
            /* And the object comes back to it. */
            metadata_reset(md);
            ck_assert_int_eq(metadata_load(md, &err), 0);
            call((struct call){.run = do_create, .id = 9});
            call((struct call){.run = do_delete, .purse = TM_RESERVE, .id = 9});
            ck_assert_int_eq(metadata_commit_wait(md, NULL, &err), 0);
            recount(&now);
            ck_assert_uint_eq(now.data_used, first.data_used);
        }
        metadata_destroy(md);
    } while (r < 0 && nth < 1000);
    ck_assert_uint_gt(nth, 3);
    ck_assert_uint_eq(now.nr_devices, first.nr_devices + 1);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("metadata faults");
    TCase *tcase = tcase_create("nth request");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, a_failed_read_fails_one_call_and_no_more);
    tcase_add_test(tcase, a_corrupt_read_fails_one_call_and_no_more);
    tcase_add_test(tcase, a_failed_commit_leaves_the_durable_state);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
