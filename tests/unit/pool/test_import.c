/* Pools that somebody else made, changed, or damaged: names stay with their volumes or go. */
#include <errno.h>

#include "tests/unit/pool/admin_rig.h"

static struct metadata *md; /* of "the kernel", while the pool is closed */
static struct device *md_dev;

static void
set_up(void)
{
    rig_init(256, 1024);
    rig_open(true);
}

/* A pool that the kernel made. */
static void
set_up_foreign(void)
{
    rig_init(256, 1024);
}

static void
tear_down(void)
{
    struct recount re;

    if (rig.pool)
        rig_close();
    rig_recount(&re);
    rig_fini();
}

#define md_ok(expr)                                                          \
    do {                                                                     \
        int md_r;                                                            \
                                                                             \
        thin_error_init(&rig.err);                                           \
        md_r = (expr);                                                       \
        ck_assert_msg(md_r == 0, "%s: %s: %s", #expr, thin_error_name(md_r), \
                      rig.err.text);                                         \
    } while (0)

#define md_op(expr)                           \
    do {                                      \
        metadata_op_begin(md, TM_NORMAL);     \
        md_ok(expr);                          \
        md_ok(metadata_op_end(md, &rig.err)); \
    } while (0)

static void
kernel_begin(bool format)
{
    struct metadata_params params = {.cache_blocks = 1024, .waiting = true};

    md_dev = crash_disk_open(rig.metadata, rig.loop);
    params.dev = md_dev;
    ck_assert_int_eq(metadata_create(&params, &md), 0);
    if (format)
        md_ok(metadata_format(md, RIG_BLOCK / 512, 256, &rig.err));
    else
        md_ok(metadata_load(md, &rig.err));
}

static void
kernel_end(void)
{
    md_ok(metadata_commit_wait(md, NULL, &rig.err));
    metadata_destroy(md);
    device_close_wait(md_dev);
}

static void
kernel_delete(uint32_t id)
{
    bool done = false;

    while (!done)
        md_op(metadata_delete_step(md, id, 100, &done, &rig.err));
}

static int
map_one(uint32_t id, vblock_t v)
{
    dblock_t begin = 0, next;
    uint64_t len = 0, value;
    int r = metadata_find_free(md, 0, 256, 1, &begin, &len, &next, &rig.err);

    ck_assert_uint_ge(len, 1);
    if (r == 0)
        r = metadata_take_data(md, begin, &rig.err);
    return r < 0 ? r : metadata_insert(md, id, v, begin, &value, &rig.err);
}

/* The names that stand, joined by blanks. */
static const char *
names(void)
{
    static char text[4096];
    size_t n = 0;
    struct volume_info info;

    text[0] = '\0';
    for (const char *after = NULL; pool_volume_next(rig.pool, after, &info);
         after = info.name)
        n +=
            (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", n ? " " : "", info.name);
    return text;
}

static uint64_t
writes(void)
{
    return crash_disk_nr_op(rig.data, DEVICE_WRITE) +
           crash_disk_nr_op(rig.data, DEVICE_WRITE_ZEROES) +
           crash_disk_nr_op(rig.metadata, DEVICE_WRITE);
}

/* ---- somebody else committed ------------------------------------------------------------- */

START_TEST(names_stay_with_the_right_volumes_or_go)
{
    uint64_t before;

    rig_create("one", RIG_BLOCK);
    rig_create("two", 2 * RIG_BLOCK);
    rig_create("three", 3 * RIG_BLOCK);
    rig_fill("one", 0, RIG_BLOCK, 1);
    rig_close();

    kernel_begin(false);
    kernel_delete(2);
    kernel_delete(3);
    md_op(metadata_set_trans_id(md, 0, 1, &rig.err));
    md_op(metadata_create_thin(md, 3, &rig.err));
    md_op(metadata_create_snap(md, 100, 1, &rig.err));
    md_op(map_one(100, 9));
    kernel_end();

    before = writes();
    rig_open(false);
    ck_assert_str_eq(names(), "one thin-100 thin-3");
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig_info("thin-100")->size, 10 * RIG_BLOCK);
    ck_assert(rig_info("thin-100")->size_unknown);
    ck_assert_uint_eq(rig_info("thin-3")->size, 0);
    ck_assert_uint_eq(rig_info("one")->size, RIG_BLOCK);
    ck_assert(!rig_info("one")->size_unknown);
    rig_reopen();
    ck_assert_str_eq(names(), "one thin-100 thin-3");
    /* Looking changes nothing. */
    ck_assert_uint_eq(writes(), before);

    /* A commit without a change of names must not make the old log look right. */
    rig_fill("one", 0, RIG_BLOCK, 2);
    rig_reopen();
    ck_assert_str_eq(names(), "one thin-100 thin-3");
    ck_assert(rig_holds("thin-100", 0, RIG_BLOCK, 1));
    ck_assert(rig_holds("one", 0, RIG_BLOCK, 2));

    rig_ok(pool_volume_rename(rig.pool, "thin-100", "hundred", RIG_DONE));
    rig_ok(pool_volume_resize(rig.pool, "hundred", 20 * RIG_BLOCK, false, RIG_DONE));
    ck_assert(!rig.pool->catalogue->unrecorded);
    rig_reopen();
    ck_assert(!rig.pool->catalogue->unrecorded);
    ck_assert_str_eq(names(), "hundred one thin-3");
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig_info("hundred")->size, 20 * RIG_BLOCK);
    ck_assert(!rig_info("hundred")->size_unknown);
}
END_TEST

START_TEST(a_commit_of_others_that_changed_no_device_changes_no_name)
{
    rig_create("one", RIG_BLOCK);
    rig_create("two", RIG_BLOCK);
    rig_close();
    kernel_begin(false);
    md_op(map_one(1, 0));
    kernel_end();
    rig_open(false);
    ck_assert_str_eq(names(), "one two");
    ck_assert(!rig.pool->catalogue->unrecorded);
    rig_create("three", RIG_BLOCK);
    rig_reopen();
    ck_assert_str_eq(names(), "one three two");
}
END_TEST

START_TEST(a_device_deleted_by_others_while_deleting_is_forgotten)
{
    struct volume *volume;

    rig_create("one", 200 * RIG_BLOCK);
    volume = rig_open_volume("one");
    for (uint64_t i = 0; i < 60; i++) {
        uint8_t sector[512] = {1};

        ck_assert_int_eq(rig_io(volume, VOLUME_WRITE, 2 * i * RIG_BLOCK, 512, sector, 0),
                         0);
    }
    volume_close(volume);
    rig_ok(pool_volume_delete(rig.pool, "one", RIG_DONE));
    rig_cut();
    rig_open(false);
    rig_settle();
    rig_close();
    kernel_begin(false);
    kernel_end();
    rig_open(false);
    rig_settle();
    ck_assert_str_eq(names(), "");
    ck_assert_ptr_null(catalogue_next_id(&rig.pool->catalogue->records, 0));
}
END_TEST

START_TEST(without_the_hidden_device_volumes_get_made_up_names)
{
    rig_create("one", RIG_BLOCK);
    rig_create("two", RIG_BLOCK);
    rig_close();
    kernel_begin(false);
    kernel_delete(DEV_ID_MAX);
    kernel_end();
    rig_open(false);
    ck_assert_str_eq(names(), "thin-1 thin-2");
    rig_ok(pool_volume_rename(rig.pool, "thin-1", "one", RIG_DONE));
    rig_reopen();
    ck_assert_str_eq(names(), "one thin-2");
    ck_assert_uint_eq(catalogue_dev_id(rig.pool), DEV_ID_MAX);
}
END_TEST

/* ---- pools without a catalogue ------------------------------------------------------------ */

static void
make_foreign(void)
{
    kernel_begin(true);
    md_op(metadata_create_thin(md, 0, &rig.err));
    md_op(metadata_create_thin(md, 5, &rig.err));
    md_op(metadata_create_thin(md, DEV_ID_MAX, &rig.err));
    md_op(map_one(5, 3));
    md_op(map_one(DEV_ID_MAX, 0));
    kernel_end();
}

START_TEST(a_foreign_pool_is_served_and_nothing_is_written)
{
    uint64_t before;

    make_foreign();
    before = writes();
    rig.params.import = true;
    rig_open(false);
    ck_assert_str_eq(names(), "thin-0 thin-16777215 thin-5");
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig_info("thin-0")->size, 0);
    ck_assert_uint_eq(rig_info("thin-5")->size, 4 * RIG_BLOCK);
    ck_assert_uint_eq(rig_info("thin-5")->mapped, RIG_BLOCK);
    ck_assert_uint_eq(rig_info("thin-16777215")->size, RIG_BLOCK);
    rig_reopen();
    ck_assert_uint_eq(writes(), before);
    /* Data may be written without a catalogue. */
    rig_fill("thin-5", 0, RIG_BLOCK, 9);
    rig_reopen();
    ck_assert_str_eq(names(), "thin-0 thin-16777215 thin-5");
    ck_assert(rig_holds("thin-5", 0, RIG_BLOCK, 9));
    ck_assert_uint_eq(catalogue_dev_id(rig.pool), CATALOGUE_NONE);
}
END_TEST

START_TEST(the_first_change_makes_the_catalogue_beside_what_is_there)
{
    make_foreign();
    rig.params.import = true;
    rig_open(false);
    rig_create("mine", RIG_BLOCK);
    rig.params.import = false;
    rig_reopen();
    ck_assert_str_eq(names(), "mine thin-0 thin-16777215 thin-5");
    ck_assert_uint_eq(catalogue_dev_id(rig.pool), DEV_ID_MAX - 1);
    rig_list(NULL, 10);
    /* From the top downwards: LVM counts upwards. */
    ck_assert_uint_eq(rig_info("mine")->dev_id, DEV_ID_MAX - 2);
    rig_snap("thin-5", "snap");
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig_info("snap")->dev_id, DEV_ID_MAX - 3);
    ck_assert_str_eq(rig_info("snap")->parent, "thin-5");
    ck_assert(rig_info("snap")->size_unknown);
    rig_ok(pool_volume_delete(rig.pool, "thin-16777215", RIG_DONE));
    rig_settle();
    rig_reopen();
    ck_assert_str_eq(names(), "mine snap thin-0 thin-5");
}
END_TEST

START_TEST(the_administrator_gives_names_and_sizes)
{
    struct pool_import_volume volumes[] = {
        {.dev_id = 5, .name = "root", .size = 1 << 20},
        {.dev_id = 0, .name = NULL, .size = 512},
        {.dev_id = 77, .name = "nobody", .size = 512},
    };

    make_foreign();
    rig.params.import = true;
    rig.params.import_volumes = volumes;
    rig.params.nr_import_volumes = 3;
    rig_open(false);
    ck_assert_str_eq(names(), "root thin-0 thin-16777215");
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig_info("root")->size, 1 << 20);
    ck_assert(!rig_info("root")->size_unknown);
    ck_assert_uint_eq(rig_info("thin-0")->size, 512);
    rig_create("mine", 512);
    rig.params.import = false;
    rig_reopen();
    ck_assert_str_eq(names(), "mine root thin-0 thin-16777215");
    rig_close();

    make_foreign();
    rig.params.import = true;
    volumes[1].name = "root";
    ck_assert_int_eq(rig_try_open(false), -THIN_E_EXISTS);
    volumes[1].name = "a/b";
    ck_assert_int_eq(rig_try_open(false), -THIN_E_INVALID);
    sim_loop_run_until_idle(rig.loop, 0);
}
END_TEST

START_TEST(many_foreign_devices_are_recorded_by_the_first_change)
{
    struct volume_info info;
    uint32_t nr = 0;

    kernel_begin(true);
    for (uint32_t i = 0; i < 300; i++) {
        md_op(metadata_create_thin(md, 3 * i, &rig.err));
        if (i % 50 == 0)
            md_ok(metadata_commit_wait(md, NULL, &rig.err));
    }
    kernel_end();
    rig.params.import = true;
    rig_open(false);
    rig_create("zzz", 512);
    rig.params.import = false;
    rig_reopen();
    ck_assert(!rig.pool->catalogue->unrecorded);
    for (const char *after = NULL; pool_volume_next(rig.pool, after, &info);
         after = info.name)
        nr++;
    ck_assert_uint_eq(nr, 301);
    ck_assert(pool_volume_peek(rig.pool, "thin-897", &info));
    ck_assert(pool_volume_peek(rig.pool, "zzz", &info));
}
END_TEST

START_TEST(a_cut_while_the_catalogue_is_made_leaves_the_foreign_pool)
{
    for (unsigned steps = 5; steps < 400; steps += 23) {
        make_foreign();
        rig.params.import = true;
        rig_open(false);
        rig_begin();
        rig_create_async("mine", 512, RIG_DONE);
        for (unsigned i = 0; i < steps && !rig.told; i++)
            sim_loop_step(rig.loop);
        if (!rig.told) {
            crash_disk_cut(rig.data);
            crash_disk_cut(rig.metadata);
            rig_wait();
        }
        rig_cut();
        rig_open(false);
        if (rig.pool->catalogue->records.by_name.nr_items == 4)
            ck_assert_str_eq(names(), "mine thin-0 thin-16777215 thin-5");
        else
            ck_assert_str_eq(names(), "thin-0 thin-16777215 thin-5");
        rig_create("other", 512);
        rig_close();
    }
}
END_TEST

START_TEST(a_full_foreign_pool_is_served_and_a_delete_makes_room)
{
    kernel_begin(true);
    md_op(metadata_create_thin(md, 1, &rig.err));
    md_op(metadata_create_thin(md, 2, &rig.err));
    for (uint32_t i = 0; i < 256; i++)
        md_op(map_one(1 + (i & 1), i));
    kernel_end();
    rig.params.import = true;
    rig_open(false);
    ck_assert_str_eq(names(), "thin-1 thin-2");
    rig_fails(rig_create_async("mine", 512, RIG_DONE), NO_DATA_SPACE);
    rig_fails(pool_volume_rename(rig.pool, "thin-1", "one", RIG_DONE), NO_DATA_SPACE);
    rig_fill("thin-1", 0, RIG_BLOCK, 3);
    rig.params.import = false;
    rig_reopen();
    ck_assert_str_eq(names(), "thin-1 thin-2");
    rig_ok(pool_volume_delete(rig.pool, "thin-2", RIG_DONE));
    rig_cut();
    rig_open(false);
    ck_assert_str_eq(names(), "thin-1");
    rig_create("mine", 512);
    rig_reopen();
    ck_assert_str_eq(names(), "mine thin-1");
    ck_assert(!rig.pool->catalogue->unrecorded);
    ck_assert(rig_holds("thin-1", 0, RIG_BLOCK, 3));
}
END_TEST

/* ---- a lost trailer, damaged pages ---------------------------------------------------------- */

static void
lose_trailer(void)
{
    static const uint8_t zeros[SUPERBLOCK_TRAILER_BYTES];
    uint8_t block[4096];

    crash_disk_read(rig.metadata, 0, block, sizeof(block));
    memcpy(block + SUPERBLOCK_TRAILER_OFFSET, zeros, sizeof(zeros));
    block_seal(BLOCK_SUPERBLOCK, block, 0);
    crash_disk_write(rig.metadata, 0, block, sizeof(block));
}

START_TEST(a_lost_trailer_is_found_again_when_the_catalogue_is_named)
{
    for (int i = 0; i < 40; i++) {
        char name[32];

        snprintf(name, sizeof(name), "v%02d", i);
        rig_create(name, 512);
        rig_settle();
    }
    for (int i = 0; i < 40; i++)
        if (i % 10) {
            char name[32];

            snprintf(name, sizeof(name), "v%02d", i);
            rig_ok(pool_volume_delete(rig.pool, name, RIG_DONE));
        }
    rig_settle();
    rig_close();
    lose_trailer();
    rig.params.import = true;
    rig.params.import_catalogue_id = 12;
    ck_assert_int_eq(rig_try_open(false), -THIN_E_NOT_FOUND);
    rig.params.import_catalogue_id = 1;
    ck_assert_int_eq(rig_try_open(false), -THIN_E_CATALOGUE);
    rig.params.import_catalogue_id = DEV_ID_MAX;
    rig_open(false);
    ck_assert_str_eq(names(), "v00 v10 v20 v30");
    rig_create("w", 512);
    rig.params.import = false;
    rig_reopen();
    ck_assert_str_eq(names(), "v00 v10 v20 v30 w");
}
END_TEST

static uint64_t
page_offset(uint32_t index)
{
    const struct catalogue *cat = rig.pool->catalogue;
    const struct catalogue_area *area = &cat->areas[cat->current];

    return area->dblocks[index / pages_per_block(cat)] * RIG_BLOCK +
           (uint64_t)(index % pages_per_block(cat)) * CATALOGUE_PAGE_BYTES;
}

static void
damage(uint64_t offset)
{
    uint8_t sector[512];

    crash_disk_read(rig.data, offset, sector, sizeof(sector));
    sector[100] ^= 4;
    crash_disk_write(rig.data, offset, sector, sizeof(sector));
}

START_TEST(a_damaged_page_is_found_and_nothing_is_changed_over_it)
{
    uint64_t last;

    rig_create("one", RIG_BLOCK);
    rig_create("two", RIG_BLOCK);
    rig_fill("one", 0, RIG_BLOCK, 1);
    last = page_offset(rig.pool->catalogue->trailer.root.nr_pages - 1);
    rig_close();
    damage(last);
    rig_open(false);
    ck_assert_str_eq(names(), "thin-1 thin-2");
    ck_assert_ptr_nonnull(strstr(rig.pool->catalogue->damage, "checksum"));
    rig_fails(rig_create_async("three", 512, RIG_DONE), CATALOGUE);
    rig_fails(pool_volume_delete(rig.pool, "thin-1", RIG_DONE), CATALOGUE);
    /* Data is served all the same. */
    ck_assert(rig_holds("thin-1", 0, RIG_BLOCK, 1));
    rig_fill("thin-1", 0, RIG_BLOCK, 2);
    rig_reopen();
    rig_fails(rig_create_async("three", 512, RIG_DONE), CATALOGUE);
    rig_close();

    /* What is whole of it can be asked for: the change before the last page. */
    rig.params.import = true;
    rig.params.import_catalogue_id = DEV_ID_MAX;
    rig_open(false);
    ck_assert_str_eq(names(), "one thin-2");
    rig_create("three", 512);
    rig.params.import = false;
    rig_reopen();
    ck_assert_str_eq(names(), "one thin-2 three");
    ck_assert(rig_holds("one", 0, RIG_BLOCK, 2));
}
END_TEST

START_TEST(a_damaged_catalogue_can_be_left_behind)
{
    uint64_t first;

    rig_create("one", RIG_BLOCK);
    first = page_offset(0);
    rig_close();
    damage(first);
    rig.params.import = true;
    rig_open(false);
    ck_assert_str_eq(names(), "thin-1 thin-16777215");
    rig_ok(pool_volume_rename(rig.pool, "thin-1", "one", RIG_DONE));
    rig_ok(pool_volume_delete(rig.pool, "thin-16777215", RIG_DONE));
    rig.params.import = false;
    rig_reopen();
    ck_assert_str_eq(names(), "one");
}
END_TEST

START_TEST(what_stands_behind_the_root_does_not_matter)
{
    uint64_t next;

    rig_create("one", RIG_BLOCK);
    next = page_offset(rig.pool->catalogue->trailer.root.nr_pages);
    rig_close();
    for (uint64_t i = 0; i < CATALOGUE_PAGE_BYTES; i += 512) {
        uint8_t noise[512];

        memset(noise, 0xa5, sizeof(noise));
        crash_disk_write(rig.data, next + i, noise, sizeof(noise));
    }
    rig_open(false);
    ck_assert_str_eq(names(), "one");
    rig_create("two", RIG_BLOCK);
    rig_reopen();
    ck_assert_str_eq(names(), "one two");
}
END_TEST

START_TEST(a_failed_page_write_fails_its_change_only)
{
    rig_create("one", RIG_BLOCK);
    rig_settle();
    crash_disk_fail_nth(rig.data, 1u << DEVICE_WRITE, 1, -EIO);
    ck_assert_int_eq(rig_call(rig_create_async("two", 512, RIG_DONE)), -EIO);
    ck_assert_str_eq(names(), "one");
    rig_create("two", 512);
    rig_reopen();
    ck_assert_str_eq(names(), "one two");
}
END_TEST

START_TEST(a_failed_commit_rolls_the_names_back)
{
    struct pool_info before, after;

    rig_create("one", RIG_BLOCK);
    rig_settle();
    pool_get_info(rig.pool, &before);
    crash_disk_fail_nth(rig.data, 1u << DEVICE_FLUSH, 1, -EIO);
    rig_fails(rig_create_async("two", 512, RIG_DONE), ROLLED_BACK);
    rig_settle();
    ck_assert_str_eq(names(), "one");
    pool_get_info(rig.pool, &after);
    ck_assert_uint_ne(after.incarnation, before.incarnation);
    rig_fails(rig_create_async("two", 512, RIG_DONE), READ_ONLY);
    rig_close();
    rig_open(false);
    ck_assert_str_eq(names(), "one");
    rig_create("two", 512);
    rig_reopen();
    ck_assert_str_eq(names(), "one two");
}
END_TEST

START_TEST(an_open_reads_the_catalogue_and_not_the_devices)
{
    char name[32];
    uint64_t few, many;

    rig_create("first", 512);
    rig_reopen();
    few = crash_disk_nr_op(rig.metadata, DEVICE_READ);
    rig_reopen();
    few = crash_disk_nr_op(rig.metadata, DEVICE_READ) - few;
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof(name), "v%d", i);
        rig_create(name, 512);
    }
    rig_settle();
    rig_reopen();
    many = crash_disk_nr_op(rig.metadata, DEVICE_READ);
    rig_reopen();
    many = crash_disk_nr_op(rig.metadata, DEVICE_READ) - many;
    /* The trees are a level deeper; 500 details would be dozens of blocks. */
    ck_assert_uint_le(many, few + 4);
    ck_assert_uint_eq(rig.pool->catalogue->records.by_name.nr_items, 501);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("import");
    TCase *ours = tcase_create("our pools");
    TCase *foreign = tcase_create("foreign pools");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(ours, set_up, tear_down);
    tcase_add_checked_fixture(foreign, set_up_foreign, tear_down);
    tcase_set_timeout(ours, 60);
    tcase_set_timeout(foreign, 60);
    tcase_add_test(ours, names_stay_with_the_right_volumes_or_go);
    tcase_add_test(ours, a_commit_of_others_that_changed_no_device_changes_no_name);
    tcase_add_test(ours, a_device_deleted_by_others_while_deleting_is_forgotten);
    tcase_add_test(ours, without_the_hidden_device_volumes_get_made_up_names);
    tcase_add_test(foreign, a_foreign_pool_is_served_and_nothing_is_written);
    tcase_add_test(foreign, the_first_change_makes_the_catalogue_beside_what_is_there);
    tcase_add_test(foreign, the_administrator_gives_names_and_sizes);
    tcase_add_test(foreign, many_foreign_devices_are_recorded_by_the_first_change);
    tcase_add_test(foreign, a_cut_while_the_catalogue_is_made_leaves_the_foreign_pool);
    tcase_add_test(foreign, a_full_foreign_pool_is_served_and_a_delete_makes_room);
    tcase_add_test(ours, a_lost_trailer_is_found_again_when_the_catalogue_is_named);
    tcase_add_test(ours, a_damaged_page_is_found_and_nothing_is_changed_over_it);
    tcase_add_test(ours, a_damaged_catalogue_can_be_left_behind);
    tcase_add_test(ours, what_stands_behind_the_root_does_not_matter);
    tcase_add_test(ours, a_failed_page_write_fails_its_change_only);
    tcase_add_test(ours, a_failed_commit_rolls_the_names_back);
    tcase_add_test(ours, an_open_reads_the_catalogue_and_not_the_devices);
    suite_add_tcase(suite, ours);
    suite_add_tcase(suite, foreign);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
