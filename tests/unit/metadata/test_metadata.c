/* Each call of metadata.h and its errors, on a memory device with a waiting cache. */
#include <check.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/poll_loop.h"
#include "core/metadata/metadata.h"
#include "tests/lib/recount.h"
#include "tests/lib/test_cache.h"

#define NR_METADATA 2048u
#define NR_DATA     5000u

static struct thin_loop *loop;
static struct device *dev;
static struct metadata *md;
static struct thin_error err;

/* One operation: begins, does, ends or undoes. */
#define OP_OF(purse, expr)                         \
    __extension__({                                \
        int op_result;                             \
                                                   \
        thin_error_init(&err);                     \
        metadata_op_begin(md, purse);              \
        op_result = (expr);                        \
        if (op_result < 0)                         \
            metadata_op_undo(md);                  \
        else                                       \
            op_result = metadata_op_end(md, &err); \
        op_result;                                 \
    })
#define OP(expr) OP_OF(TM_NORMAL, expr)

#define ck_ok(expr)                                                                    \
    do {                                                                               \
        int ok_result = (expr);                                                        \
        ck_assert_msg(ok_result == 0, "%s: %s: %s", #expr, thin_error_name(ok_result), \
                      thin_error_text(&err, ok_result));                               \
    } while (0)
#define ck_code(expr, code)                                                              \
    do {                                                                                 \
        int code_result = (expr);                                                        \
        ck_assert_msg(code_result == -THIN_E_##code, "%s: %s: %s", #expr,                \
                      thin_error_name(code_result), thin_error_text(&err, code_result)); \
    } while (0)
#define ck_words(part) \
    ck_assert_msg(strstr(err.text, part) != NULL, "no \"%s\" in: %s", part, err.text)

static void
open_md(bool read_only)
{
    const struct metadata_params params = {.dev = dev,
                                           .cache_blocks = 1024,
                                           .cache_clean = test_cache_clean(),
                                           .waiting = true,
                                           .read_only = read_only};

    ck_assert_int_eq(metadata_create(&params, &md), 0);
}

static void
set_up_blank(void)
{
    loop = poll_loop_create();
    ck_assert_ptr_nonnull(loop);
    ck_assert_int_eq(device_mem_open(loop, NR_METADATA * 4096ull, &dev), 0);
    thin_error_init(&err);
    open_md(false);
}

static void
set_up(void)
{
    set_up_blank();
    ck_ok(metadata_format(md, 128, NR_DATA, &err));
    ck_ok(metadata_commit_wait(md, NULL, &err));
}

static void
tear_down(void)
{
    metadata_destroy(md);
    device_close_wait(dev);
    poll_loop_destroy(loop);
}

static void
reload(void)
{
    metadata_reset(md);
    thin_error_init(&err);
    ck_ok(metadata_load(md, &err));
}

static void
commit_and_recount(struct recount *ret)
{
    struct recount unused;

    ck_ok(metadata_commit_wait(md, NULL, &err));
    if (!ret)
        ret = &unused;
    ck_assert_msg(recount_image(dev, NULL, ret) == 0, "%s", ret->why);
}

static dblock_t
find_free(dblock_t from)
{
    dblock_t b = 0, next = from;
    uint64_t len = 0;

    /* One call passes a bounded number of blocks that are taken and not yet merged. */
    while (len == 0 && next < NR_DATA)
        ck_ok(metadata_find_free(md, next, NR_DATA, 1, &b, &len, &next, &err));
    ck_assert_uint_eq(len, 1);
    return b;
}

static int
map_in_op(uint32_t id, vblock_t vblock)
{
    dblock_t b = find_free(0);
    uint64_t value;
    int r = metadata_take_data(md, b, &err);

    return r < 0 ? r : metadata_insert(md, id, vblock, b, &value, &err);
}

static void
map_blocks(uint32_t id, vblock_t begin, vblock_t end)
{
    for (vblock_t v = begin; v < end; v++)
        ck_ok(OP(map_in_op(id, v)));
}

static struct device_details
details_of(uint32_t id)
{
    struct device_details details = {0};
    bool found = false;

    ck_ok(metadata_get_device(md, id, &details, &found, &err));
    ck_assert(found);
    return details;
}

static bool
exists(uint32_t id)
{
    struct device_details details;
    bool found = false;

    ck_ok(metadata_get_device(md, id, &details, &found, &err));
    return found;
}

static uint64_t
value_at(uint32_t id, vblock_t vblock)
{
    uint64_t value = UINT64_MAX;
    bool found;

    ck_ok(metadata_lookup(md, id, vblock, &value, &found, &err));
    return found ? value : UINT64_MAX;
}

static unsigned
delete_whole(uint32_t id, uint32_t budget)
{
    unsigned steps = 0;
    bool done = false;

    while (!done) {
        ck_ok(OP_OF(TM_RESERVE, metadata_delete_step(md, id, budget, &done, &err)));
        steps++;
    }
    return steps;
}

static unsigned
release_whole(uint32_t budget)
{
    unsigned steps = 0;
    bool done = false;

    while (!done) {
        ck_ok(OP_OF(TM_RESERVE, metadata_release_snap_step(md, budget, &done, &err)));
        steps++;
        commit_and_recount(NULL);
    }
    return steps;
}

/* Changes block `b` on the device, and mends its checksum if `kind` is not negative. */
static void
patch_block(mblock_t b, size_t offset, uint8_t byte, int kind)
{
    uint8_t block[METADATA_BLOCK_SIZE];

    ck_assert_int_eq(device_read_wait(dev, b * 4096, block, sizeof(block)), 0);
    block[offset] = byte;
    if (kind >= 0)
        block_seal((enum block_kind)kind, block, b);
    ck_assert_int_eq(device_write_wait(dev, b * 4096, block, sizeof(block), 0), 0);
}

/* ---- format and load ---------------------------------------------------------------- */

START_TEST(a_blank_device_is_not_thin)
{
    ck_code(metadata_load(md, &err), NOT_THIN);
    ck_words("all zeros");
}
END_TEST

START_TEST(format_refuses_what_the_format_cannot_hold)
{
    ck_code(metadata_format(md, 64, 10, &err), INVALID);
    ck_code(metadata_format(md, 200, 10, &err), INVALID);
    ck_code(metadata_format(md, DATA_BLOCK_SECTORS_MAX + 128, 10, &err), INVALID);
    ck_code(metadata_format(md, 128, DATA_BLOCK_NR_MAX + 2, &err), INVALID);
    ck_code(metadata_format(md, DATA_BLOCK_SECTORS_MAX, 1ull << 40, &err), INVALID);
    ck_ok(metadata_format(md, 128, 10, &err));
}
END_TEST

START_TEST(format_without_room_fails_and_leaves_nothing)
{
    struct metadata_space space;

    /* 4000 bitmaps do not fit into 2048 blocks. */
    ck_code(metadata_format(md, 128, 4000ull * 16320, &err), NO_METADATA_SPACE);
    metadata_data_space(md, &space);
    ck_assert_uint_eq(space.nr_blocks, 0);
    ck_assert_ptr_null(device_mem_page(dev, 0));
    ck_ok(metadata_format(md, 128, 100, &err));
    commit_and_recount(NULL);
}
END_TEST

START_TEST(format_holds_what_was_asked_for)
{
    struct recount recount;
    struct metadata_space space;
    uint64_t reserve;

    ck_ok(metadata_format(md, 256, NR_DATA, &err));
    ck_assert(metadata_changed(md));
    commit_and_recount(&recount);
    ck_assert(!metadata_changed(md));
    ck_assert_uint_eq(recount.sb.data_block_size, 256);
    ck_assert_uint_eq(recount.sb.data_sm.nr_blocks, NR_DATA);
    ck_assert_uint_eq(recount.sb.metadata_nr_blocks, NR_METADATA);
    ck_assert_uint_eq(recount.sb.time, 0);

    reload();
    ck_assert_uint_eq(metadata_superblock(md)->data_block_size, 256);
    metadata_data_space(md, &space);
    ck_assert_uint_eq(space.nr_free, NR_DATA);
    metadata_own_space(md, &space, &reserve);
    ck_assert_uint_eq(space.nr_blocks, NR_METADATA);
    ck_assert_uint_eq(reserve, NR_METADATA / 10);
    ck_assert_uint_eq(space.nr_free + space.nr_pending,
                      NR_METADATA - reserve - recount.metadata_used);
}
END_TEST

START_TEST(a_damaged_superblock_is_a_checksum_error)
{
    patch_block(0, 100, 0x55, -1);
    metadata_reset(md);
    ck_code(metadata_load(md, &err), CHECKSUM);
}
END_TEST

START_TEST(unknown_features_are_refused)
{
    patch_block(0, 360, 1, BLOCK_SUPERBLOCK);
    metadata_reset(md);
    ck_code(metadata_load(md, &err), UNSUPPORTED);
    patch_block(0, 360, 0, BLOCK_SUPERBLOCK);
    patch_block(0, 40, 3, BLOCK_SUPERBLOCK);
    metadata_reset(md);
    ck_code(metadata_load(md, &err), VERSION);
}
END_TEST

START_TEST(a_device_cut_off_is_refused_with_both_sizes)
{
    dev->size = 1000 * 4096;
    metadata_reset(md);
    ck_code(metadata_load(md, &err), RANGE);
    ck_words("1000");
    ck_words("2048");
    dev->size = NR_METADATA * 4096ull;
}
END_TEST

START_TEST(roots_beyond_the_end_are_damage)
{
    patch_block(0, 327, 1, BLOCK_SUPERBLOCK);
    metadata_reset(md);
    ck_code(metadata_load(md, &err), BAD_BLOCK);
}
END_TEST

START_TEST(fields_that_are_not_ours_survive_commits)
{
    const uint8_t *page;

    patch_block(0, 20, 0xab, BLOCK_SUPERBLOCK);  /* uuid */
    patch_block(0, 370, 0xcd, BLOCK_SUPERBLOCK); /* unused */
    patch_block(0, 4, 0x82, BLOCK_SUPERBLOCK);   /* unknown flags */
    reload();
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    commit_and_recount(NULL);
    page = device_mem_page(dev, 0);
    ck_assert_uint_eq(page[20], 0xab);
    ck_assert_uint_eq(page[370], 0xcd);
    ck_assert_uint_eq(page[4], 0x82);
}
END_TEST

START_TEST(a_read_only_pool_is_read_and_not_changed)
{
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 3);
    commit_and_recount(NULL);
    metadata_destroy(md);
    open_md(true);
    ck_code(metadata_format(md, 128, 1, &err), READ_ONLY);
    ck_ok(metadata_load(md, &err));
    ck_assert(value_at(1, 2) != UINT64_MAX);
    ck_code(OP(metadata_create_thin(md, 2, &err)), READ_ONLY);
    ck_code(OP(map_in_op(1, 7)), READ_ONLY);
    ck_ok(metadata_commit_wait(md, NULL, &err));
}
END_TEST

START_TEST(calls_before_the_load_are_refused)
{
    struct device_details details;
    bool found;

    ck_code(metadata_get_device(md, 1, &details, &found, &err), INVALID);
    ck_code(OP(metadata_create_thin(md, 1, &err)), INVALID);
}
END_TEST

/* ---- devices ------------------------------------------------------------------------- */

START_TEST(a_new_device_is_empty_and_dated)
{
    struct device_details details;
    vblock_t highest;
    bool found;

    ck_ok(OP(metadata_set_trans_id(md, 0, 7, &err)));
    ck_ok(OP(metadata_create_thin(md, 5, &err)));
    details = details_of(5);
    ck_assert_uint_eq(details.mapped_blocks, 0);
    ck_assert_uint_eq(details.transaction_id, 7);
    ck_assert_uint_eq(details.creation_time, 0);
    ck_ok(metadata_highest_mapped(md, 5, &highest, &found, &err));
    ck_assert(!found);
    ck_code(OP(metadata_create_thin(md, 5, &err)), EXISTS);
    ck_code(OP(metadata_create_thin(md, DEV_ID_MAX + 1, &err)), INVALID);
    ck_ok(OP(metadata_create_thin(md, DEV_ID_MAX, &err)));
    commit_and_recount(NULL);
    reload();
    ck_assert(exists(5) && exists(DEV_ID_MAX) && !exists(6));
}
END_TEST

START_TEST(a_device_that_is_not_there_is_not_found)
{
    uint64_t value, unmapped;
    vblock_t v;
    bool found;

    ck_code(metadata_lookup(md, 9, 0, &value, &found, &err), NOT_FOUND);
    ck_words("9");
    ck_code(metadata_highest_mapped(md, 9, &v, &found, &err), NOT_FOUND);
    ck_code(OP(metadata_create_snap(md, 1, 9, &err)), NOT_FOUND);
    ck_code(OP(metadata_delete_step(md, 9, 16, &found, &err)), NOT_FOUND);
    ck_code(OP(metadata_unmap_step(md, 9, 0, 5, 16, &v, &unmapped, &err)), NOT_FOUND);
}
END_TEST

START_TEST(devices_come_in_order_with_their_present_details)
{
    struct device_details details;
    uint32_t id = 0;
    bool found;

    for (uint32_t i = 0; i < 20; i++)
        ck_ok(OP(metadata_create_thin(md, (i * 7) % 20 * 100, &err)));
    map_blocks(300, 0, 4);
    for (uint32_t i = 0; i < 20; i++) {
        ck_ok(metadata_next_device(md, id, &id, &details, &found, &err));
        ck_assert(found);
        ck_assert_uint_eq(id, i * 100);
        ck_assert_uint_eq(details.mapped_blocks, id == 300 ? 4 : 0);
        id++;
    }
    ck_ok(metadata_next_device(md, id, &id, &details, &found, &err));
    ck_assert(!found);
}
END_TEST

START_TEST(what_is_undone_never_was)
{
    uint64_t before, value;
    struct metadata_space space;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 10);
    before = value_at(1, 3);

    metadata_op_begin(md, TM_NORMAL);
    ck_ok(metadata_create_thin(md, 2, &err));
    ck_ok(metadata_create_snap(md, 3, 1, &err));
    ck_ok(map_in_op(1, 3));
    ck_ok(map_in_op(1, 50));
    ck_ok(map_in_op(2, 0));
    metadata_set_needs_check(md, true);
    metadata_op_undo(md);

    ck_assert(!exists(2) && !exists(3));
    ck_assert_uint_eq(metadata_superblock(md)->time, 0);
    ck_assert_uint_eq(metadata_superblock(md)->flags, 0);
    ck_assert_uint_eq(details_of(1).mapped_blocks, 10);
    ck_assert_uint_eq(details_of(1).snapshotted_time, 0);
    ck_assert_uint_eq(value_at(1, 3), before);
    ck_assert_uint_eq(value_at(1, 50), UINT64_MAX);
    metadata_data_space(md, &space);
    ck_assert_uint_eq(space.nr_free, NR_DATA - 10);

    metadata_op_begin(md, TM_NORMAL);
    ck_ok(metadata_insert(md, 1, 60, find_free(100), &value, &err));
    metadata_op_undo(md);
    commit_and_recount(NULL);
}
END_TEST

START_TEST(a_device_deleted_and_undone_is_still_there)
{
    bool done;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 3);
    metadata_op_begin(md, TM_RESERVE);
    ck_ok(metadata_delete_step(md, 1, 16, &done, &err));
    ck_assert(done);
    ck_assert(!exists(1));
    ck_ok(metadata_create_thin(md, 1, &err));
    ck_assert_uint_eq(details_of(1).mapped_blocks, 0);
    metadata_op_undo(md);
    ck_assert_uint_eq(details_of(1).mapped_blocks, 3);
    commit_and_recount(NULL);
}
END_TEST

START_TEST(more_devices_than_the_cache_remembers)
{
    enum { NR = 4500 };
    struct recount recount;

    for (uint32_t i = 0; i < NR; i++) {
        ck_ok(OP(metadata_create_thin(md, i, &err)));
        if (metadata_dirty_blocks(md) > 400)
            ck_ok(metadata_commit_wait(md, NULL, &err));
        if (i % 1500 == 7)
            map_blocks(i, 0, 2);
        /* Metadata is small here, so empty devices make room again. */
        if (i >= 700 && (i - 700) % 1500 != 7)
            delete_whole(i - 700, 16);
    }
    for (uint32_t i = 7; i < NR; i += 1500)
        ck_assert(exists(i) && details_of(i).mapped_blocks == 2);
    commit_and_recount(&recount);
    ck_assert_uint_eq(recount.data_used, 6);
}
END_TEST

/* ---- snapshots and time ----------------------------------------------------------------- */

START_TEST(a_snapshot_shares_until_written)
{
    uint64_t old, new_value;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 300);
    commit_and_recount(NULL);
    ck_ok(OP(metadata_create_snap(md, 2, 1, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 1);
    ck_assert_uint_eq(details_of(2).mapped_blocks, 300);
    ck_assert_uint_eq(details_of(2).creation_time, 1);
    ck_assert_uint_eq(details_of(2).snapshotted_time, 1);
    ck_assert_uint_eq(details_of(1).snapshotted_time, 1);
    old = value_at(1, 5);
    ck_assert_uint_eq(value_at(2, 5), old);
    ck_assert(mapping_time(old) < details_of(1).snapshotted_time);

    ck_ok(OP(map_in_op(1, 5)));
    new_value = value_at(1, 5);
    ck_assert_uint_ne(mapping_block(new_value), mapping_block(old));
    ck_assert_uint_eq(mapping_time(new_value), 1);
    ck_assert_uint_eq(value_at(2, 5), old);
    ck_assert_uint_eq(details_of(1).mapped_blocks, 300);
    commit_and_recount(NULL);
    ck_code(OP(metadata_create_snap(md, 2, 1, &err)), EXISTS);
}
END_TEST

START_TEST(time_moves_on_only_when_it_must)
{
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    ck_ok(OP(metadata_create_thin(md, 2, &err)));
    /* Nothing mapped: nothing to tell apart. */
    ck_ok(OP(metadata_create_snap(md, 10, 1, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 0);

    map_blocks(1, 0, 1);
    map_blocks(2, 0, 1);
    ck_ok(OP(metadata_create_snap(md, 11, 1, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 1);
    ck_ok(OP(metadata_create_snap(md, 12, 1, &err)));
    ck_ok(OP(metadata_create_snap(md, 13, 11, &err)));
    /* The other's mapping is of time 0 too, by now older than the pool. */
    ck_ok(OP(metadata_create_snap(md, 14, 2, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 1);
    ck_assert_uint_eq(details_of(2).snapshotted_time, 1);

    map_blocks(1, 5, 6);
    ck_ok(OP(metadata_create_snap(md, 15, 1, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 2);

    /* A device just loaded may hold anything up to the present time. */
    commit_and_recount(NULL);
    reload();
    ck_ok(OP(metadata_create_snap(md, 16, 1, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 3);
    ck_ok(OP(metadata_create_snap(md, 17, 2, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 4);
    ck_ok(OP(metadata_create_snap(md, 18, 2, &err)));
    ck_assert_uint_eq(metadata_superblock(md)->time, 4);
    commit_and_recount(NULL);
}
END_TEST

START_TEST(a_group_takes_one_tick)
{
    for (uint32_t i = 0; i < 8; i++) {
        ck_ok(OP(metadata_create_thin(md, i, &err)));
        map_blocks(i, 0, 2);
    }
    metadata_op_begin(md, TM_NORMAL);
    for (uint32_t i = 0; i < 8; i++)
        ck_ok(metadata_create_snap(md, 100 + i, i, &err));
    ck_ok(metadata_op_end(md, &err));
    ck_assert_uint_eq(metadata_superblock(md)->time, 1);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_uint_eq(details_of(i).snapshotted_time, 1);
    commit_and_recount(NULL);

    /* Also when the origins are only met inside the operation, after its tick. */
    reload();
    metadata_op_begin(md, TM_NORMAL);
    for (uint32_t i = 0; i < 8; i++)
        ck_ok(metadata_create_snap(md, 200 + i, i, &err));
    ck_ok(metadata_op_end(md, &err));
    ck_assert_uint_eq(metadata_superblock(md)->time, 2);
    commit_and_recount(NULL);
}
END_TEST

START_TEST(the_clock_ends_at_24_bits)
{
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    commit_and_recount(NULL);
    for (size_t i = 44; i < 47; i++)
        patch_block(0, i, 0xff, BLOCK_SUPERBLOCK);
    reload();
    ck_assert_uint_eq(metadata_superblock(md)->time, POOL_TIME_MAX);
    map_blocks(1, 0, 1);
    ck_code(OP(metadata_create_snap(md, 2, 1, &err)), LIMIT);
    ck_assert(!exists(2));
    patch_block(0, 47, 1, BLOCK_SUPERBLOCK);
    metadata_reset(md);
    ck_code(metadata_load(md, &err), BAD_BLOCK);
}
END_TEST

/* ---- delete ------------------------------------------------------------------------------- */

START_TEST(a_large_device_goes_in_steps_that_are_each_a_valid_pool)
{
    struct metadata_space space;
    uint64_t left = 4500;
    bool done = false;
    unsigned steps = 0;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    for (vblock_t v = 0; v < 4500; v++) {
        ck_ok(OP(map_in_op(1, v * 3)));
        if (v % 1000 == 0)
            ck_ok(metadata_commit_wait(md, NULL, &err));
    }
    commit_and_recount(NULL);
    while (!done) {
        ck_ok(OP_OF(TM_RESERVE, metadata_delete_step(md, 1, 12, &done, &err)));
        commit_and_recount(NULL);
        steps++;
        if (!done) {
            vblock_t highest;
            bool found;

            ck_assert_uint_lt(details_of(1).mapped_blocks, left);
            left = details_of(1).mapped_blocks;
            ck_ok(metadata_highest_mapped(md, 1, &highest, &found, &err));
            ck_assert_int_eq(found, left > 0);
            if (found)
                ck_assert_uint_eq(highest, (left - 1) * 3);
        }
    }
    ck_assert_uint_gt(steps, 1);
    ck_assert(!exists(1));
    metadata_data_space(md, &space);
    ck_assert_uint_eq(space.nr_free, NR_DATA);
}
END_TEST

START_TEST(a_device_whose_root_is_shared_goes_in_one_step)
{
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    for (vblock_t v = 0; v < 1500; v++)
        ck_ok(OP(map_in_op(1, v)));
    ck_ok(OP(metadata_create_snap(md, 2, 1, &err)));
    commit_and_recount(NULL);
    ck_assert_uint_eq(delete_whole(1, 12), 1);
    commit_and_recount(NULL);
    ck_assert(!exists(1));
    ck_assert_uint_eq(details_of(2).mapped_blocks, 1500);
    delete_whole(2, 12);
    commit_and_recount(NULL);
}
END_TEST

/* ---- mappings --------------------------------------------------------------------------------- */

START_TEST(mapped_blocks_counts_mappings_not_inserts)
{
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 5);
    map_blocks(1, 3, 8);
    ck_assert_uint_eq(details_of(1).mapped_blocks, 8);
    commit_and_recount(NULL);
}
END_TEST

START_TEST(a_leaf_answers_for_holes_too)
{
    struct mapping_slot slots[MAPPING_SLOTS_MAX];
    vblock_t begin, end;
    uint32_t nr;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    ck_ok(metadata_read_leaf(md, 1, 77, slots, &nr, &begin, &end, &err));
    ck_assert_uint_eq(nr, 0);
    ck_assert(begin == 0 && end == UINT64_MAX);
    for (vblock_t v = 0; v < 600; v++)
        ck_ok(OP(map_in_op(1, v * 2)));
    ck_ok(metadata_read_leaf(md, 1, 501, slots, &nr, &begin, &end, &err));
    ck_assert(begin <= 501 && 501 < end && nr > 0);
    for (uint32_t i = 0; i < nr; i++) {
        ck_assert(slots[i].vblock >= begin && slots[i].vblock < end);
        ck_assert_uint_eq(slots[i].value, value_at(1, slots[i].vblock));
    }
}
END_TEST

START_TEST(unmapping_holes_changes_nothing)
{
    vblock_t end = 77;
    uint64_t unmapped = 77;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 10, 20);
    commit_and_recount(NULL);
    ck_ok(OP(metadata_unmap_step(md, 1, 0, 10, 16, &end, &unmapped, &err)));
    ck_assert(end == 0 && unmapped == 0 && !metadata_changed(md));
    ck_ok(OP(metadata_unmap_step(md, 1, 20, 1ull << 50, 16, &end, &unmapped, &err)));
    ck_assert(end == 20 && unmapped == 0 && !metadata_changed(md));
    ck_ok(OP(metadata_unmap_step(md, 1, 15, 15, 16, &end, &unmapped, &err)));
    ck_assert(end == 15 && unmapped == 0 && !metadata_changed(md));
    ck_code(OP(metadata_unmap_step(md, 1, 16, 15, 16, &end, &unmapped, &err)), INVALID);
}
END_TEST

START_TEST(a_range_is_unmapped_from_the_top_in_steps)
{
    vblock_t end = 3900;
    uint64_t sum = 0, unmapped;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    for (vblock_t v = 0; v < 4000; v++)
        ck_ok(OP(map_in_op(1, v)));
    commit_and_recount(NULL);
    while (end > 100) {
        vblock_t was = end;

        ck_ok(OP_OF(TM_RESERVE,
                    metadata_unmap_step(md, 1, 100, end, 12, &end, &unmapped, &err)));
        ck_assert_uint_lt(end, was);
        sum += unmapped;
        ck_assert_uint_eq(details_of(1).mapped_blocks, 4000 - sum);
    }
    ck_assert_uint_eq(sum, 3800);
    ck_assert(value_at(1, 99) != UINT64_MAX && value_at(1, 100) == UINT64_MAX);
    ck_assert(value_at(1, 3900) != UINT64_MAX && value_at(1, 3899) == UINT64_MAX);
    commit_and_recount(NULL);
}
END_TEST

/* ---- space ---------------------------------------------------------------------------------------- */

static dblock_t freed_sum;

static void
note_freed(void *arg, dblock_t begin, dblock_t end)
{
    (void)arg;
    freed_sum += end - begin;
}

static void
count_result(void *arg, int result)
{
    ck_assert_int_eq(result, 0);
    (*(unsigned *)arg)++;
}

/* A commit by hand, so that `freed` is told. */
static void
commit_by_hand(void (*freed)(void *arg, dblock_t begin, dblock_t end))
{
    bool more = true;
    uint64_t txn = 0;
    unsigned done = 0;
    void *superblock = NULL;

    while (more)
        ck_ok(metadata_merge_step(md, &more, &err));
    ck_ok(metadata_cut(md, NULL, NULL, &txn, &superblock, &err));
    ck_assert_uint_eq(metadata_txn(md), txn + 1);
    bm_write_cut(metadata_bm(md), count_result, &done);
    while (done < 1)
        ck_assert_int_eq(loop_run_once(loop), 0);
    bm_write_superblock(metadata_bm(md), superblock, count_result, &done);
    while (done < 2)
        ck_assert_int_eq(loop_run_once(loop), 0);
    metadata_durable(md, txn, freed, NULL);
}

START_TEST(a_freed_block_is_handed_out_only_when_durable_and_let_go)
{
    struct metadata_space space;
    dblock_t b;
    vblock_t end;
    uint64_t unmapped;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 4);
    commit_and_recount(NULL);
    b = mapping_block(value_at(1, 2));
    ck_assert_int_eq(metadata_hold_data(md, b), 0);
    ck_ok(OP(metadata_unmap_step(md, 1, 0, 4, 16, &end, &unmapped, &err)));
    ck_assert_uint_eq(find_free(0), 4);
    freed_sum = 0;
    commit_by_hand(note_freed);
    ck_assert_uint_eq(freed_sum, 4);
    ck_assert_uint_ne(find_free(b), b);
    metadata_release_data(md, b);
    ck_assert_uint_eq(find_free(b), b);
    metadata_data_space(md, &space);
    ck_assert_uint_eq(space.nr_free, NR_DATA);
    commit_and_recount(NULL);
}
END_TEST

START_TEST(data_space_grows_over_many_bitmaps)
{
    struct recount recount;
    struct metadata_space space;
    bool done = false;

    ck_ok(OP(metadata_grow_data(md, NR_DATA, &done, &err)));
    ck_assert(done && !metadata_changed(md));
    ck_code(OP(metadata_grow_data(md, NR_DATA - 1, &done, &err)), INVALID);
    ck_code(OP(metadata_grow_data(md, 1ull << 41, &done, &err)), INVALID);
    ck_ok(metadata_grow_data_wait(md, 60 * 16320 + 5, NULL, &err));
    commit_and_recount(&recount);
    ck_assert_uint_eq(recount.sb.data_sm.nr_blocks, 60 * 16320 + 5);
    metadata_data_space(md, &space);
    ck_assert_uint_eq(space.nr_free, 60 * 16320 + 5);
}
END_TEST

START_TEST(metadata_space_grows_with_its_device)
{
    struct recount recount;

    ck_code(OP(metadata_grow_own(md, NR_METADATA + 1, &err)), RANGE);
    ck_code(OP(metadata_grow_own(md, NR_METADATA - 1, &err)), INVALID);
    ck_code(OP(metadata_grow_own(md, METADATA_BLOCKS_MAX + 1, &err)), LIMIT);
    ck_assert_int_eq(device_grow_wait(dev, 20000ull * 4096), 0);
    ck_ok(OP(metadata_grow_own(md, 20000, &err)));
    commit_and_recount(&recount);
    ck_assert_uint_eq(recount.sb.metadata_sm.nr_blocks, 20000);
    ck_assert_uint_eq(recount.sb.metadata_nr_blocks, NR_METADATA);
    reload();
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    commit_and_recount(NULL);
}
END_TEST

/* 255 bitmaps, a little less than 16 GiB: in steps of any size, and not a block more. */
START_TEST(metadata_space_grows_to_the_format_s_limit)
{
    uint64_t steps[] = {1, 16319, 16320, 16321, 5, 1000000}, nr = NR_METADATA;
    struct metadata_space space;
    struct recount recount;
    uint64_t reserve;
    uint32_t id = 1;

    ck_assert_int_eq(device_grow_wait(dev, (METADATA_BLOCKS_MAX + 5ull) * 4096), 0);
    for (unsigned i = 0; nr < METADATA_BLOCKS_MAX; i++) {
        nr += steps[i % (sizeof(steps) / sizeof(steps[0]))];
        if (nr > METADATA_BLOCKS_MAX)
            nr = METADATA_BLOCKS_MAX;
        ck_ok(OP(metadata_grow_own(md, nr, &err)));
        ck_ok(OP(metadata_create_thin(md, id++, &err)));
        ck_ok(metadata_commit_wait(md, NULL, &err));
        metadata_own_space(md, &space, &reserve);
        ck_assert_uint_eq(space.nr_blocks, nr);
    }
    ck_code(OP(metadata_grow_own(md, METADATA_BLOCKS_MAX + 1, &err)), LIMIT);
    reload();
    ck_ok(OP(metadata_create_thin(md, id, &err)));
    commit_and_recount(&recount);
    ck_assert_uint_eq(recount.sb.metadata_sm.nr_blocks, METADATA_BLOCKS_MAX);
    ck_assert_uint_eq(recount.nr_devices, id);
}
END_TEST

START_TEST(needs_check_is_kept_and_blocks_growth)
{
    bool done;

    metadata_op_begin(md, TM_NORMAL);
    metadata_set_needs_check(md, true);
    ck_ok(metadata_op_end(md, &err));
    commit_and_recount(NULL);
    reload();
    ck_assert(metadata_superblock(md)->flags & SUPERBLOCK_NEEDS_CHECK);
    ck_code(OP(metadata_grow_data(md, NR_DATA + 1, &done, &err)), NEEDS_CHECK);
    ck_code(OP(metadata_grow_own(md, NR_METADATA + 1, &err)), NEEDS_CHECK);
    metadata_op_begin(md, TM_NORMAL);
    metadata_set_needs_check(md, false);
    ck_ok(metadata_op_end(md, &err));
    commit_and_recount(NULL);
    reload();
    ck_assert_uint_eq(metadata_superblock(md)->flags, 0);
}
END_TEST

START_TEST(a_full_metadata_device_refuses_and_still_deletes)
{
    struct thin_error words;
    int r = 0;
    uint32_t id;

    ck_ok(OP(metadata_create_thin(md, 0, &err)));
    map_blocks(0, 0, 500);
    for (id = 1; id < NR_METADATA + 1 && r == 0; id++) {
        r = OP(metadata_create_thin(md, id, &err));
        if (r == -THIN_E_NEED_COMMIT || r == -THIN_E_CACHE_FULL) {
            ck_ok(metadata_commit_wait(md, NULL, &err));
            r = OP(metadata_create_thin(md, id, &err));
        }
    }
    words = err;
    ck_assert_msg(r == -THIN_E_NO_METADATA_SPACE, "%s", thin_error_name(r));
    ck_assert_uint_gt(id, NR_METADATA / 2);
    ck_assert(words.text[0]);
    commit_and_recount(NULL);
    delete_whole(0, 16);
    delete_whole(1, 16);
    commit_and_recount(NULL);
    /* The reserve stays out of reach, but two devices' worth has come back. */
    ck_assert(!exists(1));
}
END_TEST

/* ---- superblock fields ---------------------------------------------------------------------------- */

START_TEST(the_transaction_id_is_compared_and_set)
{
    ck_code(OP(metadata_set_trans_id(md, 3, 4, &err)), INVALID);
    ck_words("3");
    ck_ok(OP(metadata_set_trans_id(md, 0, UINT64_MAX, &err)));
    commit_and_recount(NULL);
    reload();
    ck_assert_uint_eq(metadata_superblock(md)->trans_id, UINT64_MAX);
}
END_TEST

static void
stamp(void *arg, uint8_t *superblock)
{
    (*(unsigned *)arg)++;
    superblock[SUPERBLOCK_TRAILER_OFFSET + 100] = 0x99;
}

START_TEST(the_trailer_is_finished_in_the_encoded_superblock)
{
    uint8_t trailer[SUPERBLOCK_TRAILER_BYTES] = {1, 2, 3};
    unsigned calls = 0;
    bool more = true;
    uint64_t txn;
    void *superblock;

    metadata_op_begin(md, TM_NORMAL);
    metadata_set_trailer(md, trailer);
    ck_ok(metadata_op_end(md, &err));
    while (more)
        ck_ok(metadata_merge_step(md, &more, &err));
    ck_ok(metadata_cut(md, stamp, &calls, &txn, &superblock, &err));
    ck_assert_uint_eq(calls, 1);
    ck_assert_uint_eq(((uint8_t *)superblock)[SUPERBLOCK_TRAILER_OFFSET + 1], 2);
    ck_assert_uint_eq(metadata_superblock(md)->trailer[100], 0x99);
    calls = 0;
    bm_write_cut(metadata_bm(md), count_result, &calls);
    while (calls == 0)
        ck_assert_int_eq(loop_run_once(loop), 0);
}
END_TEST

/* ---- held root ------------------------------------------------------------------------------------------ */

START_TEST(a_metadata_snapshot_keeps_the_trees_of_its_moment)
{
    struct superblock held;
    struct recount recount;
    mblock_t location;

    for (uint32_t i = 0; i < 5; i++) {
        ck_ok(OP(metadata_create_thin(md, i, &err)));
        map_blocks(i, 0, 300);
    }
    ck_ok(OP(metadata_reserve_snap(md, &err)));
    ck_code(OP(metadata_reserve_snap(md, &err)), BUSY);
    location = metadata_superblock(md)->held_root;
    /* In the same transaction: nodes made just now are shared from here on. */
    map_blocks(0, 100, 120);
    map_blocks(1, 300, 310);
    commit_and_recount(&recount);
    ck_assert_uint_eq(recount.sb.held_root, location);
    superblock_decode(&held, device_mem_page(dev, location));
    ck_assert_uint_eq(held.held_root, 0);
    ck_assert_uint_eq(held.data_sm.nr_blocks, 0);
    ck_assert_uint_eq(held.metadata_sm.nr_blocks, 0);
    ck_assert_uint_eq(held.time, recount.sb.time);

    delete_whole(2, 16);
    ck_ok(OP(metadata_create_snap(md, 9, 3, &err)));
    map_blocks(3, 0, 50);
    commit_and_recount(&recount);
    /* What the held trees reach is still counted. */
    ck_assert_uint_eq(recount.data_used, 1500 + 20 + 10 + 50);
    reload();
    release_whole(12);
    ck_assert_uint_eq(metadata_superblock(md)->held_root, 0);
    ck_code(OP(metadata_release_snap_step(md, 12, &(bool){false}, &err)), NOT_FOUND);
    commit_and_recount(&recount);
    ck_assert_uint_eq(recount.data_used, 1200 + 10 + 50);
}
END_TEST

START_TEST(a_metadata_snapshot_is_released_over_a_crash)
{
    bool done;
    unsigned steps = 0;

    for (uint32_t i = 0; i < 3; i++) {
        ck_ok(OP(metadata_create_thin(md, i, &err)));
        for (vblock_t v = 0; v < 1000; v++)
            ck_ok(OP(map_in_op(i, v)));
        ck_ok(metadata_commit_wait(md, NULL, &err));
    }
    ck_ok(OP(metadata_reserve_snap(md, &err)));
    commit_and_recount(NULL);
    /* Everything now has only the held trees as holder. */
    for (uint32_t i = 0; i < 3; i++)
        delete_whole(i, 12);
    commit_and_recount(NULL);
    do {
        ck_ok(OP_OF(TM_RESERVE, metadata_release_snap_step(md, 12, &done, &err)));
        if (steps++ % 2)
            commit_and_recount(NULL);
        else if (!done)
            reload(); /* the step is lost, and done again */
    } while (!done);
    ck_assert_uint_gt(steps, 3);
    commit_and_recount(NULL);
}
END_TEST

START_TEST(an_unused_metadata_snapshot_goes_at_once)
{
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 400);
    ck_ok(OP(metadata_reserve_snap(md, &err)));
    ck_assert_uint_eq(release_whole(12), 1);
}
END_TEST

/* ---- damage --------------------------------------------------------------------------------------------- */

START_TEST(a_damaged_device_tree_harms_no_other_device)
{
    struct recount recount;
    uint64_t value;
    bool found;
    mblock_t top, root;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    ck_ok(OP(metadata_create_thin(md, 2, &err)));
    map_blocks(1, 0, 3);
    map_blocks(2, 0, 3);
    commit_and_recount(&recount);
    top = recount.sb.data_mapping_root;
    root = node_value64(device_mem_page(dev, top), 0);
    patch_block(root, 2100, 0x77, -1);
    reload();
    ck_code(metadata_lookup(md, 1, 0, &value, &found, &err), CHECKSUM);
    ck_words("device 1");
    ck_code(OP(map_in_op(1, 9)), CHECKSUM);
    ck_code(OP(metadata_delete_step(md, 1, 16, &found, &err)), CHECKSUM);
    ck_assert(value_at(2, 0) != UINT64_MAX);
    ck_ok(OP(map_in_op(2, 9)));
    ck_ok(metadata_commit_wait(md, NULL, &err));
}
END_TEST

START_TEST(a_mapping_beyond_the_data_device_is_an_error_when_dropped)
{
    struct recount recount;
    vblock_t end;
    uint64_t unmapped;
    mblock_t root;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 3);
    commit_and_recount(&recount);
    root = node_value64(device_mem_page(dev, recount.sb.data_mapping_root), 0);
    patch_block(root, 32 + 8 * 252 + 6, 0x7f, BLOCK_NODE);
    reload();
    ck_assert_int_lt(OP(metadata_unmap_step(md, 1, 0, 3, 16, &end, &unmapped, &err)), 0);
    ck_assert_uint_eq(details_of(1).mapped_blocks, 3);
    ck_ok(OP(metadata_create_thin(md, 2, &err)));
    ck_ok(metadata_commit_wait(md, NULL, &err));
}
END_TEST

START_TEST(details_without_a_tree_are_damage)
{
    struct recount recount;
    uint64_t value;
    bool found;

    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    commit_and_recount(&recount);
    patch_block(recount.sb.data_mapping_root, 32, 2, BLOCK_NODE);
    reload();
    ck_code(metadata_lookup(md, 1, 0, &value, &found, &err), BAD_BLOCK);
    ck_code(OP(metadata_create_thin(md, 2, &err)), BAD_BLOCK);
}
END_TEST

START_TEST(a_roll_back_forgets_what_is_not_durable)
{
    ck_ok(OP(metadata_create_thin(md, 1, &err)));
    map_blocks(1, 0, 3);
    commit_and_recount(NULL);
    map_blocks(1, 3, 9);
    ck_ok(OP(metadata_create_snap(md, 2, 1, &err)));
    reload();
    ck_assert(!exists(2));
    ck_assert_uint_eq(details_of(1).mapped_blocks, 3);
    ck_assert_uint_eq(metadata_superblock(md)->time, 0);
    map_blocks(1, 3, 9);
    commit_and_recount(NULL);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("metadata");
    TCase *blank = tcase_create("blank device");
    TCase *pool = tcase_create("formatted pool");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(blank, set_up_blank, tear_down);
    tcase_add_checked_fixture(pool, set_up, tear_down);
    tcase_set_timeout(blank, 60);
    tcase_set_timeout(pool, 60);
    tcase_add_test(blank, a_blank_device_is_not_thin);
    tcase_add_test(blank, format_refuses_what_the_format_cannot_hold);
    tcase_add_test(blank, format_without_room_fails_and_leaves_nothing);
    tcase_add_test(blank, format_holds_what_was_asked_for);
    tcase_add_test(blank, calls_before_the_load_are_refused);
    tcase_add_test(pool, a_damaged_superblock_is_a_checksum_error);
    tcase_add_test(pool, unknown_features_are_refused);
    tcase_add_test(pool, a_device_cut_off_is_refused_with_both_sizes);
    tcase_add_test(pool, roots_beyond_the_end_are_damage);
    tcase_add_test(pool, fields_that_are_not_ours_survive_commits);
    tcase_add_test(pool, a_read_only_pool_is_read_and_not_changed);
    tcase_add_test(pool, a_new_device_is_empty_and_dated);
    tcase_add_test(pool, a_device_that_is_not_there_is_not_found);
    tcase_add_test(pool, devices_come_in_order_with_their_present_details);
    tcase_add_test(pool, what_is_undone_never_was);
    tcase_add_test(pool, a_device_deleted_and_undone_is_still_there);
    tcase_add_test(pool, more_devices_than_the_cache_remembers);
    tcase_add_test(pool, a_snapshot_shares_until_written);
    tcase_add_test(pool, time_moves_on_only_when_it_must);
    tcase_add_test(pool, a_group_takes_one_tick);
    tcase_add_test(pool, the_clock_ends_at_24_bits);
    tcase_add_test(pool, a_large_device_goes_in_steps_that_are_each_a_valid_pool);
    tcase_add_test(pool, a_device_whose_root_is_shared_goes_in_one_step);
    tcase_add_test(pool, mapped_blocks_counts_mappings_not_inserts);
    tcase_add_test(pool, a_leaf_answers_for_holes_too);
    tcase_add_test(pool, unmapping_holes_changes_nothing);
    tcase_add_test(pool, a_range_is_unmapped_from_the_top_in_steps);
    tcase_add_test(pool, a_freed_block_is_handed_out_only_when_durable_and_let_go);
    tcase_add_test(pool, data_space_grows_over_many_bitmaps);
    tcase_add_test(pool, metadata_space_grows_with_its_device);
    tcase_add_test(pool, metadata_space_grows_to_the_format_s_limit);
    tcase_add_test(pool, needs_check_is_kept_and_blocks_growth);
    tcase_add_test(pool, a_full_metadata_device_refuses_and_still_deletes);
    tcase_add_test(pool, the_transaction_id_is_compared_and_set);
    tcase_add_test(pool, the_trailer_is_finished_in_the_encoded_superblock);
    tcase_add_test(pool, a_metadata_snapshot_keeps_the_trees_of_its_moment);
    tcase_add_test(pool, a_metadata_snapshot_is_released_over_a_crash);
    tcase_add_test(pool, an_unused_metadata_snapshot_goes_at_once);
    tcase_add_test(pool, a_damaged_device_tree_harms_no_other_device);
    tcase_add_test(pool, a_mapping_beyond_the_data_device_is_an_error_when_dropped);
    tcase_add_test(pool, details_without_a_tree_are_damage);
    tcase_add_test(pool, a_roll_back_forgets_what_is_not_durable);
    suite_add_tcase(suite, blank);
    suite_add_tcase(suite, pool);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
