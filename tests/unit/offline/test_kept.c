/* Superblocks kept outside of the pool: the file, and what a repair makes of it. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/offline/kept.h"
#include "core/offline/repair.h"
#include "core/ondisk/superblock.h"
#include "tests/unit/offline/fixture.h"

static char folder[] = "/tmp/test_kept.XXXXXX";
static char file[256];

static void
make_folder(void)
{
    snprintf(folder, sizeof(folder), "/tmp/test_kept.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/tank", folder);
    ck_assert_int_eq(mkdir(file, 0700), 0);
    snprintf(file, sizeof(file), "%s/tank/%s", folder, KEPT_FILE_NAME);
}

static void
drop_folder(void)
{
    char path[256];

    unlink(file);
    snprintf(path, sizeof(path), "%s/tank", folder);
    rmdir(path);
    rmdir(folder);
}

static void
put(uint64_t offset, const void *bytes, size_t len)
{
    int fd = open(file, O_WRONLY | O_CREAT, 0600);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, bytes, len, (off_t)offset), (ssize_t)len);
    close(fd);
}

static void
put_head(const char *path)
{
    uint8_t head[KEPT_HEAD_BYTES];

    kept_encode_head(path, head);
    put(0, head, sizeof(head));
}

static void
put_slot(uint64_t sequence, const void *superblock)
{
    uint8_t slot[KEPT_SLOT_BYTES];

    kept_encode_slot(sequence, 1000 + sequence, superblock, slot);
    put(kept_slot_offset(sequence), slot, sizeof(slot));
}

static int
plan_with(struct mem_device *m, const struct kept *kept, struct repair_plan *plan)
{
    struct meta_source *src = mem_open(m);
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = repair_plan_make(plan, src, NULL, kept, &err);
    source_close(src);
    return r;
}

START_TEST(newest_sixteen_come_back_in_order)
{
    size_t len;
    char *image = fixture_read("pools/few-thins/meta.img.xz", &len);
    struct kept kept;

    make_folder();
    put_head("/dev/somewhere");
    for (uint64_t i = 5; i < 30; i++)
        put_slot(i, image);
    ck_assert_int_eq(kept_read(file, &kept, NULL), 0);
    ck_assert_str_eq(kept.path, "/dev/somewhere");
    ck_assert_uint_eq(kept.nr, KEPT_MAX);
    for (unsigned i = 0; i < kept.nr; i++) {
        ck_assert_uint_eq(kept.all[i].sequence, 29 - i);
        ck_assert_uint_eq(kept.all[i].unix_s, 1029 - i);
        ck_assert_mem_eq(kept.all[i].block, image, METADATA_BLOCK_SIZE);
    }
    kept_fini(&kept);
    free(image);
    drop_folder();
}
END_TEST

START_TEST(torn_slots_and_short_files_are_passed_over)
{
    size_t len;
    char *image = fixture_read("pools/few-thins/meta.img.xz", &len);
    struct kept kept;

    make_folder();
    put_head("/m");
    put_slot(3, image);
    put_slot(4, image);
    put_slot(5, image);
    put(kept_slot_offset(4) + 2000, "torn", 4);
    put(kept_slot_offset(5) + 9, "torn", 4);
    ck_assert_int_eq(kept_read(file, &kept, NULL), 0);
    ck_assert_uint_eq(kept.nr, 1);
    ck_assert_uint_eq(kept.all[0].sequence, 3);
    kept_fini(&kept);
    /* A head that is none is no file of ours. */
    put(100, "x", 1);
    ck_assert_int_eq(kept_read(file, &kept, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(truncate(file, 100), 0);
    ck_assert_int_eq(kept_read(file, &kept, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(kept_read("/nowhere/at/all", &kept, NULL), -ENOENT);
    free(image);
    drop_folder();
}
END_TEST

START_TEST(file_of_a_device_is_found_by_its_path)
{
    char found[512], other[300];
    int fd;

    make_folder();
    snprintf(other, sizeof(other), "%s/meta", folder);
    fd = open(other, O_WRONLY | O_CREAT, 0600);
    ck_assert_int_ge(fd, 0);
    close(fd);
    put_head("/not/this");
    ck_assert_int_eq(kept_find(folder, other, found, sizeof(found)), -THIN_E_NOT_FOUND);
    put_head(other);
    ck_assert_int_eq(kept_find(folder, other, found, sizeof(found)), 0);
    ck_assert_str_eq(found, file);
    ck_assert_int_eq(kept_find("/nowhere", other, found, sizeof(found)),
                     -THIN_E_NOT_FOUND);
    unlink(other);
    drop_folder();
}
END_TEST

/* Without its block 0, and without anybody's numbers, nothing of the pool is lost. */
START_TEST(lost_superblock_comes_back)
{
    static const char *const pools[] = {"pools/few-thins/meta.img.xz",
                                        "pools/snapshots/meta.img.xz",
                                        "pools/many-thins/meta.img.xz"};
    struct mem_device m = {0};
    static struct kept_superblock one = {.sequence = 1, .unix_s = 77};
    struct kept kept = {.all = &one, .nr = 1};
    struct repair_plan plan;
    uint64_t wanted;

    m.bytes = (uint8_t *)fixture_read(pools[_i], &m.len);
    ck_assert_int_eq(plan_with(&m, NULL, &plan), 0);
    ck_assert(plan.trees_whole && !plan.from_kept);
    wanted = plan.recovered;
    ck_assert_uint_gt(wanted, 0);
    repair_plan_fini(&plan);

    memcpy(one.block, m.bytes, METADATA_BLOCK_SIZE);
    memset(m.bytes, 0, METADATA_BLOCK_SIZE);
    ck_assert_int_eq(plan_with(&m, NULL, &plan), -THIN_E_INVALID);
    repair_plan_fini(&plan);
    ck_assert_int_eq(plan_with(&m, &kept, &plan), 0);
    ck_assert(plan.trees_whole && plan.from_kept);
    ck_assert_uint_eq(plan.kept_unix_s, 77);
    ck_assert_uint_eq(plan.recovered, wanted);
    repair_plan_fini(&plan);
    free(m.bytes);
}
END_TEST

/* The newest leads to a damaged root: the one before it is whole. */
START_TEST(damaged_ones_are_passed_over)
{
    struct mem_device m = {0};
    static struct kept_superblock two[2] = {{.sequence = 2, .unix_s = 2},
                                            {.sequence = 1, .unix_s = 1}};
    struct kept kept = {.all = two, .nr = 2};
    struct repair_plan plan;
    struct superblock sb;

    m.bytes = (uint8_t *)fixture_read("pools/snapshots/meta.img.xz", &m.len);
    memcpy(two[1].block, m.bytes, METADATA_BLOCK_SIZE);
    memcpy(two[0].block, m.bytes, METADATA_BLOCK_SIZE);
    superblock_decode(&sb, two[0].block);
    sb.data_mapping_root++; /* whatever that is, it is not the root */
    superblock_encode(&sb, two[0].block);
    block_seal(BLOCK_SUPERBLOCK, two[0].block, SUPERBLOCK_LOCATION);
    memcpy(m.bytes, two[0].block, METADATA_BLOCK_SIZE);
    ck_assert_int_eq(plan_with(&m, &kept, &plan), 0);
    ck_assert(plan.trees_whole && plan.from_kept);
    ck_assert_uint_eq(plan.kept_unix_s, 1);
    repair_plan_fini(&plan);
    free(m.bytes);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("kept");
    TCase *tc = tcase_create("kept");
    SRunner *runner;
    int failed;

    tcase_add_test(tc, newest_sixteen_come_back_in_order);
    tcase_add_test(tc, torn_slots_and_short_files_are_passed_over);
    tcase_add_test(tc, file_of_a_device_is_found_by_its_path);
    tcase_add_loop_test(tc, lost_superblock_comes_back, 0, 3);
    tcase_add_test(tc, damaged_ones_are_passed_over);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
