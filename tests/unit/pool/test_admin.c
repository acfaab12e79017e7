/* Changes of the pool by name: each call, its refusals, and that it survives. */
#include "tests/unit/pool/admin_rig.h"

static void
set_up(void)
{
    rig_init(512, 1024);
    rig_open(true);
}

/* Room for the root that each volume has. */
static void
set_up_many(void)
{
    rig_init(512, 4096);
    rig_open(true);
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

START_TEST(a_fresh_pool_is_empty_and_hides_its_catalogue)
{
    struct volume_info info;

    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 0);
    ck_assert(!pool_volume_next(rig.pool, NULL, &info));
    ck_assert_uint_eq(catalogue_dev_id(rig.pool), DEV_ID_MAX);
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 0);
    ck_assert_uint_eq(catalogue_dev_id(rig.pool), DEV_ID_MAX);
}
END_TEST

START_TEST(a_created_volume_is_there_after_reopening)
{
    rig_create("vol0", 1 << 20);
    rig_create("vol1", 512);
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 2);
    ck_assert_str_eq(rig.infos[0].name, "vol0");
    ck_assert_uint_eq(rig.infos[0].size, 1 << 20);
    ck_assert_uint_eq(rig.infos[0].dev_id, 1);
    ck_assert_uint_eq(rig.infos[0].mapped, 0);
    ck_assert_uint_ge(rig.infos[0].created, 1700000000);
    ck_assert(!rig.infos[0].size_unknown);
    ck_assert_str_eq(rig.infos[1].name, "vol1");
    ck_assert_uint_eq(rig.infos[1].dev_id, 2);
}
END_TEST

START_TEST(create_refuses_what_is_wrong)
{
    struct volume_spec spec = {.name = "v", .size = 512};

    rig_create("v", 512);
    rig_fails(pool_volume_create(rig.pool, &spec, RIG_DONE), EXISTS);
    spec.name = "w";
    spec.size = 513;
    rig_fails(pool_volume_create(rig.pool, &spec, RIG_DONE), INVALID);
    spec.size = 0;
    rig_fails(pool_volume_create(rig.pool, &spec, RIG_DONE), INVALID);
    spec.size = 1ull << 60;
    rig_fails(pool_volume_create(rig.pool, &spec, RIG_DONE), LIMIT);
    spec.size = 512;
    spec.name = "";
    rig_fails(pool_volume_create(rig.pool, &spec, RIG_DONE), INVALID);
    spec.name = "a/b";
    rig_fails(pool_volume_create(rig.pool, &spec, RIG_DONE), INVALID);
    spec.name = "w";
    spec.origin = "/etc/passwd";
    rig_fails(pool_volume_create(rig.pool, &spec, RIG_DONE), UNSUPPORTED);
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 1);
}
END_TEST

START_TEST(a_snapshot_shares_and_keeps_the_old_state)
{
    rig_create("vol", 4 * RIG_BLOCK);
    rig_fill("vol", 0, 2 * RIG_BLOCK, 'a');
    rig_snap("vol", "snap");
    rig_fill("vol", 0, RIG_BLOCK, 'b');
    ck_assert(rig_holds("snap", 0, 2 * RIG_BLOCK, 'a'));
    ck_assert(rig_holds("snap", 2 * RIG_BLOCK, 2 * RIG_BLOCK, 0));
    ck_assert(rig_holds("vol", 0, RIG_BLOCK, 'b'));
    rig_reopen();
    ck_assert(rig_holds("snap", 0, 2 * RIG_BLOCK, 'a'));
    ck_assert(rig_holds("vol", 0, RIG_BLOCK, 'b'));
    rig_list_exclusive();
    ck_assert_str_eq(rig_info("snap")->parent, "vol");
    ck_assert_str_eq(rig_info("vol")->parent, "");
    ck_assert_uint_eq(rig_info("vol")->mapped, 2 * RIG_BLOCK);
    ck_assert_uint_eq(rig_info("snap")->mapped, 2 * RIG_BLOCK);
    ck_assert_uint_eq(rig_info("vol")->exclusive, RIG_BLOCK);
    ck_assert_uint_eq(rig_info("snap")->exclusive, RIG_BLOCK);
}
END_TEST

START_TEST(an_open_origin_finds_its_blocks_shared_at_once)
{
    struct volume *volume;
    uint8_t buf[4096];

    rig_create("vol", RIG_BLOCK);
    volume = rig_open_volume("vol");
    memset(buf, 'a', sizeof(buf));
    ck_assert_int_eq(rig_io(volume, VOLUME_WRITE, 0, sizeof(buf), buf, 0), 0);
    rig_snap("vol", "s1");
    memset(buf, 'b', sizeof(buf));
    ck_assert_int_eq(rig_io(volume, VOLUME_WRITE, 0, sizeof(buf), buf, 0), 0);
    rig_snap("vol", "s2");
    memset(buf, 'c', sizeof(buf));
    ck_assert_int_eq(rig_io(volume, VOLUME_WRITE, 0, sizeof(buf), buf, 0), 0);
    ck_assert(rig_holds("s1", 0, sizeof(buf), 'a'));
    ck_assert(rig_holds("s2", 0, sizeof(buf), 'b'));
    ck_assert(rig_holds("vol", 0, sizeof(buf), 'c'));
    volume_close(volume);
}
END_TEST

static char told_event[64];

static void
note_event(void *arg, struct pool *pool, const char *event, const char *words)
{
    (void)arg;
    (void)pool;
    (void)words;
    if (strcmp(event, "few-snapshots-left") == 0)
        snprintf(told_event, sizeof(told_event), "%s", event);
}

START_TEST(the_end_of_snapshots_is_told_in_time)
{
    struct superblock *sb;
    struct pool_info info;

    rig_close();
    rig.params.event = note_event;
    rig_open(false);
    rig_create("a", 4 * RIG_BLOCK);
    rig_fill("a", 0, RIG_BLOCK, 1);
    /* As if so many had been taken. */
    sb = (struct superblock *)(uintptr_t)metadata_superblock(rig.pool->md);
    sb->time = POOL_TIME_MAX - POOL_TICKS_FEW - 2;
    rig_fill("a", RIG_BLOCK, RIG_BLOCK, 1);
    rig_snap("a", "s1");
    ck_assert_str_eq(told_event, "");
    rig_fill("a", RIG_BLOCK, RIG_BLOCK, 2);
    rig_snap("a", "s2");
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.time_left, POOL_TICKS_FEW);
    ck_assert_str_eq(told_event, "few-snapshots-left");
    rig.params.event = NULL;
}
END_TEST

START_TEST(a_group_is_taken_whole_or_not_at_all)
{
    const char *origins[] = {"a", "b", "c"};
    const char *names[] = {"as", "bs", "cs"};
    const char *clash[] = {"xs", "ys", "xs"};
    uint32_t time;

    rig_create("a", RIG_BLOCK);
    rig_create("b", RIG_BLOCK);
    rig_fails(pool_volume_snapshot(rig.pool, origins, names, 3, RIG_DONE), NOT_FOUND);
    rig_create("c", RIG_BLOCK);
    rig_fails(pool_volume_snapshot(rig.pool, origins, clash, 3, RIG_DONE), EXISTS);
    rig_fails(pool_volume_snapshot(rig.pool, origins, names, 0, RIG_DONE), INVALID);
    rig_fails(
        pool_volume_snapshot(rig.pool, origins, names, POOL_GROUP_MAX + 1, RIG_DONE),
        INVALID);
    rig_fill("a", 0, RIG_BLOCK, 1);
    rig_fill("c", 0, RIG_BLOCK, 3);
    time = metadata_superblock(rig.pool->md)->time;
    rig_ok(pool_volume_snapshot(rig.pool, origins, names, 3, RIG_DONE));
    ck_assert_uint_eq(metadata_superblock(rig.pool->md)->time, time + 1);
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 6);
    ck_assert(rig_holds("as", 0, RIG_BLOCK, 1));
    ck_assert(rig_holds("bs", 0, RIG_BLOCK, 0));
    ck_assert(rig_holds("cs", 0, RIG_BLOCK, 3));
    ck_assert_str_eq(rig_info("bs")->parent, "b");
}
END_TEST

/* Each had been planned with the time that the first one got, again and again. */
START_TEST(a_group_may_begin_before_time_ticks)
{
    const char *origins[] = {"a", "b", "c"};
    const char *names[] = {"as", "bs", "cs"};

    rig_create("a", RIG_BLOCK);
    rig_create("b", RIG_BLOCK);
    rig_create("c", RIG_BLOCK);
    rig_fill("b", 0, RIG_BLOCK, 2);
    rig_ok(pool_volume_snapshot(rig.pool, origins, names, 3, RIG_DONE));
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 6);
    ck_assert(rig_holds("bs", 0, RIG_BLOCK, 2));
}
END_TEST

/* Its superblock cannot be written: what the volume had become is lost. */
START_TEST(an_open_volume_is_rolled_back_with_its_record)
{
    struct volume *volume;
    int r;

    rig_create("vol", 4 * RIG_BLOCK);
    volume = rig_open_volume("vol");
    ck_assert_int_eq(rig_io(volume, VOLUME_FLUSH, 0, 0, NULL, 0), 0);
    crash_disk_fail_nth(rig.metadata, 1u << DEVICE_FLUSH, 1, -EIO);
    if (_i == 0)
        r = rig_call(pool_volume_resize(rig.pool, "vol", 9 * RIG_BLOCK, false, RIG_DONE));
    else if (_i == 1)
        r = rig_call(pool_volume_resize(rig.pool, "vol", RIG_BLOCK, true, RIG_DONE));
    else
        r = rig_call(pool_volume_rename(rig.pool, "vol", "other", RIG_DONE));
    ck_assert_int_lt(r, 0);
    ck_assert(crash_disk_failed(rig.metadata));
    rig_settle();
    ck_assert_uint_eq(volume_size(volume), 4 * RIG_BLOCK);
    ck_assert_str_eq(volume_name(volume), "vol");
    volume_close(volume);
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 1);
    ck_assert_uint_eq(rig_info("vol")->size, 4 * RIG_BLOCK);
}
END_TEST

/* Time does not tick for empty volumes, and each node has to be read first. */
START_TEST(a_group_is_learned_of_while_its_nodes_are_read)
{
    enum { NR = 24 };
    char names[NR][16], snaps[NR][16];
    const char *name_list[NR], *snap_list[NR];

    rig_close();
    rig.params.leaf_max = 6;
    rig.params.internal_max = 6;
    rig_open(true);
    for (uint32_t i = 0; i < NR; i++) {
        /* Apart from each other, in nodes of their own. */
        uint32_t at = i * 5 % NR;

        snprintf(names[at], sizeof(names[at]), "v%u", i);
        snprintf(snaps[at], sizeof(snaps[at]), "s%u", i);
        name_list[at] = names[at];
        snap_list[at] = snaps[at];
        rig_create(names[at], RIG_BLOCK);
    }
    rig_reopen();
    rig_ok(pool_volume_snapshot(rig.pool, name_list, snap_list, NR, RIG_DONE));
    rig_reopen();
    rig_list(NULL, ADMIN_LIST_MAX);
    ck_assert_uint_eq(rig.nr_infos, 2 * NR);
}
END_TEST

#define NR_WRITTEN 32u

static struct volume *written[NR_WRITTEN];
static struct volume_io writes[NR_WRITTEN];
static unsigned nr_ended;

static void
one_written(struct volume_io *io, int result)
{
    (void)io;
    ck_assert_int_eq(result, 0);
    nr_ended++;
}

/* A first write to one volume after the other, the last of the group first: each time that
   it is planned again another one has a mapping of the present time. */
START_TEST(a_group_is_taken_whatever_is_written_meanwhile)
{
    char names[NR_WRITTEN][16], snaps[NR_WRITTEN][16];
    const char *name_list[NR_WRITTEN], *snap_list[NR_WRITTEN];
    static unsigned char bytes[4096];
    struct iovec iov = {bytes, sizeof(bytes)};
    unsigned left = NR_WRITTEN;

    for (uint32_t i = 0; i < NR_WRITTEN; i++) {
        snprintf(names[i], sizeof(names[i]), "v%02u", i);
        snprintf(snaps[i], sizeof(snaps[i]), "s%02u", i);
        name_list[i] = names[i];
        snap_list[i] = snaps[i];
        rig_create(names[i], RIG_BLOCK);
        written[i] = rig_open_volume(names[i]);
    }
    nr_ended = 0;
    rig_begin();
    pool_volume_snapshot(rig.pool, name_list, snap_list, NR_WRITTEN, RIG_DONE);
    while (!rig.told) {
        if (left > 0 && NR_WRITTEN - left < nr_ended + (unsigned)_i) {
            left--;
            writes[left] = (struct volume_io){.op = VOLUME_WRITE,
                                              .len = sizeof(bytes),
                                              .iov = &iov,
                                              .nr_iov = 1,
                                              .done = one_written};
            volume_submit(written[left], &writes[left]);
        }
        ck_assert(sim_loop_step(rig.loop));
    }
    ck_assert_msg(rig.result == 0, "%s: %s", thin_error_name(rig.result), rig.err.text);
    while (nr_ended < NR_WRITTEN - left)
        ck_assert(sim_loop_step(rig.loop));
    for (uint32_t i = 0; i < NR_WRITTEN; i++)
        volume_close(written[i]);
    rig_reopen();
    rig_list(NULL, ADMIN_LIST_MAX);
    ck_assert_uint_eq(rig.nr_infos, 2 * NR_WRITTEN);
}
END_TEST

START_TEST(the_largest_group_fits_in_one_operation)
{
    char names[POOL_GROUP_MAX][16], snaps[POOL_GROUP_MAX][16];
    const char *name_list[POOL_GROUP_MAX], *snap_list[POOL_GROUP_MAX];

    for (uint32_t i = 0; i < POOL_GROUP_MAX; i++) {
        snprintf(names[i], sizeof(names[i]), "v%u", i);
        snprintf(snaps[i], sizeof(snaps[i]), "s%u", i);
        name_list[i] = names[i];
        snap_list[i] = snaps[i];
        rig_create(names[i], RIG_BLOCK);
        rig_fill(names[i], 0, 4096, (uint8_t)(i + 1));
    }
    rig_ok(
        pool_volume_snapshot(rig.pool, name_list, snap_list, POOL_GROUP_MAX, RIG_DONE));
    rig_reopen();
    rig_list(NULL, ADMIN_LIST_MAX);
    ck_assert_uint_eq(rig.nr_infos, 2 * POOL_GROUP_MAX);
    ck_assert(rig_holds("s7", 0, 4096, 8));
}
END_TEST

START_TEST(a_deleted_volume_gives_everything_back)
{
    struct pool_info before, after;

    rig_create("keep", 64 * RIG_BLOCK);
    rig_fill("keep", 0, RIG_BLOCK, 'k');
    rig_settle();
    pool_get_info(rig.pool, &before);
    rig_create("vol", 64 * RIG_BLOCK);
    rig_fill("vol", 0, 20 * RIG_BLOCK, 'v');
    rig_snap("vol", "snap");
    rig_fill("vol", 0, 10 * RIG_BLOCK, 'w');
    rig_ok(pool_volume_delete(rig.pool, "vol", RIG_DONE));
    rig_fails(pool_volume_delete(rig.pool, "vol", RIG_DONE), NOT_FOUND);
    /* The name is free at once. */
    rig_create("vol", 512);
    ck_assert(rig_holds("snap", 0, 20 * RIG_BLOCK, 'v'));
    rig_ok(pool_volume_delete(rig.pool, "vol", RIG_DONE));
    rig_ok(pool_volume_delete(rig.pool, "snap", RIG_DONE));
    rig_settle();
    pool_get_info(rig.pool, &after);
    ck_assert_uint_eq(after.data_used, before.data_used);
    ck_assert_uint_eq(after.nr_volumes, 1);
    ck_assert_ptr_null(catalogue_next_pending(&rig.pool->catalogue->records, 0));
    rig_reopen();
    ck_assert(rig_holds("keep", 0, RIG_BLOCK, 'k'));
}
END_TEST

START_TEST(a_volume_in_use_or_protected_is_not_deleted)
{
    struct volume *volume;

    rig_create("vol", RIG_BLOCK);
    volume = rig_open_volume("vol");
    rig_fails(pool_volume_delete(rig.pool, "vol", RIG_DONE), BUSY);
    volume_close(volume);
    rig_ok(pool_volume_set(rig.pool, "vol", VOLUME_PROTECTED, 1, RIG_DONE));
    rig_fails(pool_volume_delete(rig.pool, "vol", RIG_DONE), BUSY);
    rig_reopen();
    rig_fails(pool_volume_delete(rig.pool, "vol", RIG_DONE), BUSY);
    rig_ok(pool_volume_set(rig.pool, "vol", VOLUME_PROTECTED, 0, RIG_DONE));
    rig_ok(pool_volume_delete(rig.pool, "vol", RIG_DONE));
}
END_TEST

START_TEST(a_delete_cut_off_goes_on_after_the_crash)
{
    struct pool_info info;
    uint64_t used;

    rig_create("vol", 512ull * RIG_BLOCK);
    rig_settle();
    pool_get_info(rig.pool, &info);
    used = info.data_used;
    /* Every other block, so that there are many entries and no run. */
    for (int i = 0; i < 100; i++)
        rig_fill("vol", 2ull * i * RIG_BLOCK, 512, 1);
    rig_ok(pool_volume_delete(rig.pool, "vol", RIG_DONE));
    rig_cut();
    rig_open(false);
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 0);
    rig_settle();
    ck_assert_ptr_null(catalogue_next_pending(&rig.pool->catalogue->records, 0));
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.data_used, used);
    rig_create("vol", 512);
}
END_TEST

START_TEST(growing_and_shrinking_change_what_is_there)
{
    struct volume *volume;
    struct pool_info before, after;

    rig_create("vol", 8 * RIG_BLOCK);
    rig_fill("vol", 0, 8 * RIG_BLOCK, 'x');
    volume = rig_open_volume("vol");
    rig_ok(pool_volume_resize(rig.pool, "vol", 10 * RIG_BLOCK, false, RIG_DONE));
    ck_assert_uint_eq(volume_size(volume), 10 * RIG_BLOCK);
    rig_settle();
    pool_get_info(rig.pool, &before);
    rig_fails(pool_volume_resize(rig.pool, "vol", RIG_BLOCK, false, RIG_DONE), INVALID);
    rig_ok(pool_volume_resize(rig.pool, "vol", 2 * RIG_BLOCK + 512, true, RIG_DONE));
    ck_assert_uint_eq(volume_size(volume), 2 * RIG_BLOCK + 512);
    volume_close(volume);
    rig_settle();
    pool_get_info(rig.pool, &after);
    ck_assert_uint_eq(before.data_used - after.data_used, 5 * RIG_BLOCK);
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig_info("vol")->size, 2 * RIG_BLOCK + 512);
    ck_assert_uint_eq(rig_info("vol")->mapped, 3 * RIG_BLOCK);
    /* What was beyond reads as zeros when it comes back. */
    rig_ok(pool_volume_resize(rig.pool, "vol", 8 * RIG_BLOCK, false, RIG_DONE));
    ck_assert(rig_holds("vol", 0, 2 * RIG_BLOCK + 512, 'x'));
    ck_assert(rig_holds("vol", 2 * RIG_BLOCK + 512, 5 * RIG_BLOCK + RIG_BLOCK - 512, 0));
    rig_fails(pool_volume_resize(rig.pool, "vol", 100, true, RIG_DONE), INVALID);
    rig_fails(pool_volume_resize(rig.pool, "none", 512, true, RIG_DONE), NOT_FOUND);
}
END_TEST

START_TEST(a_renamed_volume_has_only_its_new_name)
{
    struct volume *volume;

    rig_create("a", 512);
    rig_create("b", 1024);
    rig_fails(pool_volume_rename(rig.pool, "a", "b", RIG_DONE), EXISTS);
    rig_fails(pool_volume_rename(rig.pool, "x", "y", RIG_DONE), NOT_FOUND);
    rig_fails(pool_volume_rename(rig.pool, "a", "-", RIG_DONE), INVALID);
    rig_ok(pool_volume_rename(rig.pool, "a", "a", RIG_DONE));
    volume = rig_open_volume("a");
    rig_ok(pool_volume_rename(rig.pool, "a", "c", RIG_DONE));
    ck_assert_str_eq(volume_name(volume), "c");
    volume_close(volume);
    rig_ok(pool_volume_rename(rig.pool, "b", "a", RIG_DONE));
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 2);
    ck_assert_uint_eq(rig_info("a")->size, 1024);
    ck_assert_uint_eq(rig_info("c")->size, 512);
}
END_TEST

START_TEST(a_child_keeps_its_parent_over_renames_and_loses_it_with_it)
{
    rig_create("a", RIG_BLOCK);
    rig_snap("a", "s");
    rig_ok(pool_volume_rename(rig.pool, "a", "z", RIG_DONE));
    rig_reopen();
    rig_list(NULL, 10);
    ck_assert_str_eq(rig_info("s")->parent, "z");
    rig_ok(pool_volume_delete(rig.pool, "z", RIG_DONE));
    rig_create("z", RIG_BLOCK);
    rig_list(NULL, 10);
    ck_assert_str_eq(rig_info("s")->parent, "");
}
END_TEST

START_TEST(a_read_only_volume_is_not_opened_for_writing)
{
    rig_create("vol", RIG_BLOCK);
    rig_ok(pool_volume_set(rig.pool, "vol", VOLUME_READ_ONLY, 1, RIG_DONE));
    rig_reopen();
    rig_fails(pool_volume_open(rig.pool, "vol", false, rig_volume_opened, NULL),
              READ_ONLY);
    ck_assert(rig_holds("vol", 0, 512, 0));
    rig_fails(pool_volume_resize(rig.pool, "vol", 512, true, RIG_DONE), READ_ONLY);
    rig_ok(pool_volume_set(rig.pool, "vol", VOLUME_QUOTA, 512, RIG_DONE));
    rig_fails(pool_volume_set(rig.pool, "vol", VOLUME_READ_ONLY, 2, RIG_DONE), INVALID);
}
END_TEST

START_TEST(a_volume_rolls_back_to_its_snapshot)
{
    struct volume *volume;

    rig_create("vol", 4 * RIG_BLOCK);
    rig_fill("vol", 0, RIG_BLOCK, 'a');
    rig_snap("vol", "snap");
    rig_fill("vol", 0, 4 * RIG_BLOCK, 'b');
    rig_ok(pool_volume_resize(rig.pool, "vol", 6 * RIG_BLOCK, false, RIG_DONE));
    volume = rig_open_volume("vol");
    rig_fails(pool_volume_rollback(rig.pool, "vol", "snap", RIG_DONE), BUSY);
    volume_close(volume);
    rig_fails(pool_volume_rollback(rig.pool, "vol", "vol", RIG_DONE), INVALID);
    rig_fails(pool_volume_rollback(rig.pool, "vol", "none", RIG_DONE), NOT_FOUND);
    rig_ok(pool_volume_rollback(rig.pool, "vol", "snap", RIG_DONE));
    ck_assert(rig_holds("vol", 0, RIG_BLOCK, 'a'));
    ck_assert(rig_holds("vol", RIG_BLOCK, 3 * RIG_BLOCK, 0));
    rig_settle();
    rig_reopen();
    rig_list_exclusive();
    ck_assert_uint_eq(rig.nr_infos, 2);
    ck_assert_uint_eq(rig_info("vol")->size, 4 * RIG_BLOCK);
    ck_assert_uint_eq(rig_info("vol")->attachment.epoch, 1);
    ck_assert_str_eq(rig_info("snap")->parent, "vol");
    ck_assert_uint_eq(rig_info("vol")->exclusive, 0);
    rig_fill("vol", 0, RIG_BLOCK, 'c');
    ck_assert(rig_holds("snap", 0, RIG_BLOCK, 'a'));
}
END_TEST

START_TEST(an_attachment_is_kept_and_its_epoch_never_falls)
{
    struct pool_attachment attachment = {
        .epoch = 3, .holder = "cert:host-1", .session = 99, .shared = true};

    rig_create("vol", RIG_BLOCK);
    rig_ok(pool_volume_attach(rig.pool, "vol", &attachment, RIG_DONE));
    rig_cut();
    rig_open(false);
    rig_list(NULL, 1);
    ck_assert_uint_eq(rig.infos[0].attachment.epoch, 3);
    ck_assert_uint_eq(rig.infos[0].attachment.session, 99);
    ck_assert_str_eq(rig.infos[0].attachment.holder, "cert:host-1");
    ck_assert(rig.infos[0].attachment.shared);
    attachment.epoch = 2;
    rig_fails(pool_volume_attach(rig.pool, "vol", &attachment, RIG_DONE), STALE);
    memset(&attachment, 0, sizeof(attachment));
    attachment.epoch = 3;
    rig_ok(pool_volume_attach(rig.pool, "vol", &attachment, RIG_DONE));
    rig_reopen();
    rig_list(NULL, 1);
    ck_assert_str_eq(rig.infos[0].attachment.holder, "");
    ck_assert_uint_eq(rig.infos[0].attachment.epoch, 3);
}
END_TEST

START_TEST(every_answered_change_survives_a_power_cut)
{
    char name[32], other[32];

    for (int round = 0; round < 12; round++) {
        snprintf(name, sizeof(name), "v%d", round);
        snprintf(other, sizeof(other), "s%d", round);
        rig_create(name, RIG_BLOCK);
        rig_cut();
        rig_open(false);
        rig_snap(name, other);
        rig_cut();
        rig_open(false);
        rig_ok(pool_volume_resize(rig.pool, other, 2 * RIG_BLOCK, false, RIG_DONE));
        rig_cut();
        rig_open(false);
        if (round % 3 == 2) {
            snprintf(name, sizeof(name), "v%d", round - 1);
            rig_ok(pool_volume_delete(rig.pool, name, RIG_DONE));
            rig_cut();
            rig_open(false);
        }
        rig_list(NULL, 100);
        ck_assert_uint_eq(rig.nr_infos, 2 * (round + 1) - (round + 1) / 3);
        snprintf(other, sizeof(other), "s%d", round);
        ck_assert_uint_eq(rig_info(other)->size, 2 * RIG_BLOCK);
    }
}
END_TEST

static uint32_t answered, failures;

static void
count_done(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    (void)err;
    answered++;
    failures += result < 0;
}

START_TEST(a_thousand_volumes_come_and_go)
{
    enum { NR = 1000 };
    struct pool_info start, end;
    struct volume_info info;
    char name[32];
    uint32_t nr = 0;

    rig_settle();
    pool_get_info(rig.pool, &start);
    answered = failures = 0;
    for (int i = 0; i < NR; i++) {
        snprintf(name, sizeof(name), "volume-%04d", i);
        rig_create_async(name, 512ull * (i + 1), (struct pool_done){count_done, NULL});
    }
    rig_settle();
    ck_assert_uint_eq(answered, NR);
    ck_assert_uint_eq(failures, 0);
    rig_reopen();
    for (const char *after = NULL; pool_volume_next(rig.pool, after, &info);
         after = info.name) {
        snprintf(name, sizeof(name), "volume-%04u", nr);
        ck_assert_str_eq(info.name, name);
        ck_assert_uint_eq(info.size, 512ull * (nr + 1));
        nr++;
    }
    ck_assert_uint_eq(nr, NR);
    /* Pages of a list. */
    rig_list("volume-0499", 100);
    ck_assert_uint_eq(rig.nr_infos, 100);
    ck_assert_str_eq(rig.infos[0].name, "volume-0500");

    answered = failures = 0;
    for (int i = 0; i < NR; i++) {
        snprintf(name, sizeof(name), "volume-%04d", (i * 7) % NR);
        pool_volume_delete(rig.pool, name, (struct pool_done){count_done, NULL});
    }
    rig_settle();
    ck_assert_uint_eq(answered, NR);
    ck_assert_uint_eq(failures, 0);
    /* The last checkpoints give back what the catalogue had grown to. */
    for (int i = 0; i < 120; i++) {
        rig_create("x", 512);
        rig_ok(pool_volume_delete(rig.pool, "x", RIG_DONE));
    }
    rig_settle();
    pool_get_info(rig.pool, &end);
    ck_assert_uint_eq(end.nr_volumes, 0);
    ck_assert_uint_le(end.data_used, start.data_used + 2 * RIG_BLOCK);
    ck_assert_uint_eq(end.metadata_used, start.metadata_used);
}
END_TEST

START_TEST(too_many_waiting_changes_are_refused_and_none_is_lost)
{
    answered = failures = 0;
    for (uint32_t i = 0; i < ADMIN_QUEUE_MAX + 50; i++) {
        char name[32];

        snprintf(name, sizeof(name), "v%u", i);
        rig_create_async(name, 512, (struct pool_done){count_done, NULL});
    }
    rig_settle();
    ck_assert_uint_eq(answered, ADMIN_QUEUE_MAX + 50);
    ck_assert_uint_eq(failures, 50);
}
END_TEST

START_TEST(closing_answers_what_waits)
{
    answered = failures = 0;
    for (uint32_t i = 0; i < 20; i++) {
        char name[32];

        snprintf(name, sizeof(name), "v%u", i);
        rig_create_async(name, 512, (struct pool_done){count_done, NULL});
    }
    for (int i = 0; i < 30; i++)
        sim_loop_step(rig.loop);
    rig_close();
    ck_assert_uint_eq(answered, 20);
    rig_open(false);
    rig_list(NULL, 100);
    ck_assert_uint_eq(rig.nr_infos, 20 - failures);
}
END_TEST

START_TEST(a_device_of_a_fixed_size_is_looked_at_again)
{
    struct pool_info info;

    rig.pool->data->limits.grows = false;
    crash_disk_fail_nth(rig.data, 1u << DEVICE_GROW, 1, -THIN_E_RANGE);
    rig_fails(pool_grow(rig.pool, 1000ull * RIG_BLOCK, 0, RIG_DONE), INVALID);
    ck_assert(strstr(rig.err.text, "enlarge it first"));
    /* Somebody did. */
    rig_ok(pool_grow(rig.pool, 1000ull * RIG_BLOCK, 0, RIG_DONE));
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.data_size, 1000ull * RIG_BLOCK);
}
END_TEST

START_TEST(the_pool_grows_in_both_directions)
{
    struct pool_info info;

    rig_fails(pool_grow(rig.pool, RIG_BLOCK, 0, RIG_DONE), INVALID);
    rig_ok(pool_grow(rig.pool, 1000ull * RIG_BLOCK, 2000ull * 4096, RIG_DONE));
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.data_size, 1000ull * RIG_BLOCK);
    ck_assert_uint_eq(info.metadata_size, 2000ull * 4096);
    rig_fails(pool_grow(rig.pool, 0, (METADATA_BLOCKS_MAX + 1ull) * 4096, RIG_DONE),
              LIMIT);
    rig_reopen();
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.data_size, 1000ull * RIG_BLOCK);
    ck_assert_uint_eq(info.metadata_size, 2000ull * 4096);
    rig_create("vol", 900ull * RIG_BLOCK);
    for (int i = 0; i < 18; i++)
        rig_fill("vol", 50ull * i * RIG_BLOCK, 50ull * RIG_BLOCK, 'z');
    ck_assert(rig_holds("vol", 850ull * RIG_BLOCK, 50ull * RIG_BLOCK, 'z'));
}
END_TEST

START_TEST(a_metadata_snapshot_is_held_once_and_released_once)
{
    struct pool_info info;

    rig_create("vol", RIG_BLOCK);
    rig_fails(pool_release_snap(rig.pool, RIG_DONE), NOT_FOUND);
    rig_ok(pool_reserve_snap(rig.pool, RIG_DONE));
    rig_fails(pool_reserve_snap(rig.pool, RIG_DONE), BUSY);
    rig_fill("vol", 0, RIG_BLOCK, 1);
    rig_reopen();
    pool_get_info(rig.pool, &info);
    ck_assert_uint_ne(info.held_root, 0);
    rig_ok(pool_release_snap(rig.pool, RIG_DONE));
    rig_reopen();
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.held_root, 0);
}
END_TEST

START_TEST(deleting_works_in_a_full_pool)
{
    struct pool_config config = rig.params.config;
    struct volume *volume;
    uint8_t *buf = calloc(1, RIG_BLOCK);
    struct pool_info info;
    char name[32];
    int r = 0;

    config.on_full = POOL_ERROR;
    pool_set_config(rig.pool, &config);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "v%d", i);
        rig_create(name, 600ull * RIG_BLOCK);
    }
    volume = rig_open_volume("v0");
    memset(buf, 1, RIG_BLOCK);
    for (uint64_t i = 0; i < 600 && r == 0; i++)
        r = rig_io(volume, VOLUME_WRITE, i * RIG_BLOCK, RIG_BLOCK, buf, 0);
    ck_assert_int_eq(r, -THIN_E_NO_DATA_SPACE);
    volume_close(volume);
    /* Each takes a page or two of the catalogue, which cannot grow now. */
    for (int i = 0; i < 100; i++) {
        struct pool_attachment attachment = {.epoch = 1, .session = random_u64(&rig.rng)};

        snprintf(name, sizeof(name), "v%d", i);
        snprintf(attachment.holder, sizeof(attachment.holder),
                 "cert:a-host-with-a-name.of-some.length-%d.example", i);
        rig_ok(pool_volume_attach(rig.pool, name, &attachment, RIG_DONE));
    }
    for (int i = 1; i < 100; i++) {
        snprintf(name, sizeof(name), "v%d", i);
        rig_ok(pool_volume_delete(rig.pool, name, RIG_DONE));
    }
    rig_ok(pool_volume_delete(rig.pool, "v0", RIG_DONE));
    rig_settle();
    pool_get_info(rig.pool, &info);
    ck_assert_uint_eq(info.nr_volumes, 0);
    rig_create("again", RIG_BLOCK);
    rig_fill("again", 0, RIG_BLOCK, 5);
    free(buf);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("admin");
    TCase *tcase = tcase_create("changes by name");
    TCase *many = tcase_create("many volumes");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_fresh_pool_is_empty_and_hides_its_catalogue);
    tcase_add_test(tcase, a_created_volume_is_there_after_reopening);
    tcase_add_test(tcase, create_refuses_what_is_wrong);
    tcase_add_test(tcase, a_snapshot_shares_and_keeps_the_old_state);
    tcase_add_test(tcase, an_open_origin_finds_its_blocks_shared_at_once);
    tcase_add_test(tcase, the_end_of_snapshots_is_told_in_time);
    tcase_add_test(tcase, a_group_is_taken_whole_or_not_at_all);
    tcase_add_test(tcase, a_group_may_begin_before_time_ticks);
    tcase_add_loop_test(tcase, an_open_volume_is_rolled_back_with_its_record, 0, 3);
    tcase_add_test(tcase, a_group_is_learned_of_while_its_nodes_are_read);
    tcase_add_loop_test(tcase, a_group_is_taken_whatever_is_written_meanwhile, 1, 12);
    tcase_add_test(tcase, the_largest_group_fits_in_one_operation);
    tcase_add_test(tcase, a_deleted_volume_gives_everything_back);
    tcase_add_test(tcase, a_volume_in_use_or_protected_is_not_deleted);
    tcase_add_test(tcase, a_delete_cut_off_goes_on_after_the_crash);
    tcase_add_test(tcase, growing_and_shrinking_change_what_is_there);
    tcase_add_test(tcase, a_renamed_volume_has_only_its_new_name);
    tcase_add_test(tcase, a_child_keeps_its_parent_over_renames_and_loses_it_with_it);
    tcase_add_test(tcase, a_read_only_volume_is_not_opened_for_writing);
    tcase_add_test(tcase, a_volume_rolls_back_to_its_snapshot);
    tcase_add_test(tcase, an_attachment_is_kept_and_its_epoch_never_falls);
    tcase_add_test(tcase, every_answered_change_survives_a_power_cut);
    tcase_add_test(many, a_thousand_volumes_come_and_go);
    tcase_add_test(many, too_many_waiting_changes_are_refused_and_none_is_lost);
    tcase_add_test(tcase, closing_answers_what_waits);
    tcase_add_test(tcase, a_device_of_a_fixed_size_is_looked_at_again);
    tcase_add_test(tcase, the_pool_grows_in_both_directions);
    tcase_add_test(tcase, a_metadata_snapshot_is_held_once_and_released_once);
    tcase_add_test(tcase, deleting_works_in_a_full_pool);
    tcase_add_checked_fixture(many, set_up_many, tear_down);
    tcase_set_timeout(many, 60);
    suite_add_tcase(suite, tcase);
    suite_add_tcase(suite, many);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
