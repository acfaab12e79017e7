/* libthinmeta's public calls over memory, and repair and pack through them. */
#include "core/offline/thinmeta.h"
#include "core/ondisk/superblock.h"
#include "tests/unit/offline/fixture.h"

static struct thinmeta *
api_open(struct mem_device *m, bool writable)
{
    struct thinmeta_io io = {.size = sizeof(io),
                             .arg = m,
                             .device_bytes = m->len,
                             .read = mem_read,
                             .write = writable ? mem_write : NULL,
                             .flush = mem_flush};
    struct thinmeta *tm = NULL;

    ck_assert_int_eq(thinmeta_open_io(&io, &tm, NULL), 0);
    return tm;
}

static char *
api_dump(struct thinmeta *tm)
{
    struct text_sink sink = {0};
    struct thinmeta_error err = {0};
    int r = thinmeta_dump(tm, NULL, text_sink_write, &sink, &err);

    ck_assert_msg(r == 0, "%s", err.text);
    return sink.bytes;
}

static uint64_t
api_damage(struct thinmeta *tm)
{
    struct thinmeta_check_result res = {.size = sizeof(res)};

    ck_assert_int_eq(thinmeta_check(tm, NULL, &res, NULL), 0);
    return res.nr_damage;
}

START_TEST(format_makes_an_empty_clean_pool)
{
    struct mem_device m = mem_new(1u << 20);
    struct thinmeta *tm = api_open(&m, true);
    struct thinmeta_info info = {.size = sizeof(info)};
    struct thinmeta_error err;

    ck_assert_int_eq(thinmeta_format(tm, 64 << 10, 10ull << 30, &err), 0);
    ck_assert_uint_eq(api_damage(tm), 0);
    ck_assert_int_eq(thinmeta_get_info(tm, THINMETA_LIVE, &info, &err), 0);
    ck_assert_uint_eq(info.nr_data_blocks, 163840);
    ck_assert_uint_eq(info.nr_metadata_blocks, 256);
    ck_assert_int_eq(thinmeta_format(tm, 1000, 10ull << 30, &err), THINMETA_E_INVALID);
    ck_assert_int_eq(thinmeta_get_info(tm, THINMETA_SNAP, &info, &err),
                     THINMETA_E_NOT_FOUND);
    thinmeta_close(tm);
    free(m.bytes);
}
END_TEST

START_TEST(read_only_handles_do_not_write)
{
    struct mem_device m = mem_new(1u << 20);
    struct thinmeta *tm = api_open(&m, false);

    ck_assert_int_eq(thinmeta_format(tm, 64 << 10, 10ull << 30, NULL),
                     THINMETA_E_READ_ONLY);
    ck_assert_uint_eq(m.nr_writes, 0);
    thinmeta_close(tm);
    free(m.bytes);
}
END_TEST

static int
count_device(void *arg, const struct thinmeta_device *dev)
{
    (void)dev;
    ++*(unsigned *)arg;
    return 0;
}

static int
stop_at_two(void *arg, const struct thinmeta_device *dev)
{
    (void)dev;
    return ++*(unsigned *)arg == 2;
}

static int
add_run(void *arg, const struct thinmeta_run *run)
{
    *(uint64_t *)arg += run->length;
    return 0;
}

START_TEST(callbacks_get_devices_and_runs_and_may_stop)
{
    struct mem_device m = fixture_pool("few-thins");
    struct thinmeta *tm = api_open(&m, false);
    uint64_t mapped = 0;
    unsigned nr = 0;

    ck_assert_int_eq(thinmeta_list(tm, THINMETA_LIVE, count_device, &nr, NULL), 0);
    ck_assert_uint_eq(nr, 4);
    nr = 0;
    ck_assert_int_eq(thinmeta_list(tm, THINMETA_LIVE, stop_at_two, &nr, NULL),
                     THINMETA_E_CANCELLED);
    ck_assert_uint_eq(nr, 2);
    ck_assert_int_eq(thinmeta_map(tm, THINMETA_LIVE, 7, add_run, &mapped, NULL), 0);
    ck_assert_uint_eq(mapped, 27);
    ck_assert_int_eq(thinmeta_map(tm, THINMETA_LIVE, 8, add_run, &mapped, NULL),
                     THINMETA_E_NOT_FOUND);
    thinmeta_close(tm);
    free(m.bytes);
}
END_TEST

static int
stop_now(void *arg, const char *what, uint64_t done, uint64_t total)
{
    (void)what;
    (void)done;
    (void)total;
    ++*(unsigned *)arg;
    return 1;
}

START_TEST(progress_may_cancel_a_check)
{
    struct mem_device m = fixture_pool("snapshots");
    struct thinmeta *tm = api_open(&m, false);
    struct thinmeta_check_result res = {.size = sizeof(res)};
    unsigned asked = 0;

    thinmeta_set_progress(tm, stop_now, &asked);
    ck_assert_int_eq(thinmeta_check(tm, NULL, &res, NULL), THINMETA_E_CANCELLED);
    ck_assert_uint_eq(asked, 1);
    thinmeta_close(tm);
    free(m.bytes);
}
END_TEST

START_TEST(a_packed_device_unpacks_to_the_same)
{
    struct mem_device m = fixture_pool(fixture_pools[_i]);
    struct mem_device copy = mem_new(m.len);
    struct thinmeta *tm = api_open(&m, false), *to = api_open(&copy, true);
    struct text_sink pack = {0};
    struct text_pull pull;
    char *a, *b;

    ck_assert_int_eq(thinmeta_pack(tm, text_sink_write, &pack, NULL), 0);
    pull = (struct text_pull){pack.bytes, pack.bytes + pack.len, 0};
    ck_assert_int_eq(thinmeta_unpack(to, text_pull_read, &pull, NULL), 0);
    a = api_dump(tm);
    b = api_dump(to);
    ck_assert_str_eq(a, b);
    ck_assert_uint_eq(api_damage(to), 0);
    free(a);
    free(b);
    free(pack.bytes);
    thinmeta_close(tm);
    thinmeta_close(to);
    free(m.bytes);
    free(copy.bytes);
}
END_TEST

START_TEST(a_damaged_pack_is_refused_and_leaves_no_pool)
{
    struct mem_device m = fixture_pool("snapshots");
    struct mem_device copy = mem_new(m.len);
    struct thinmeta *tm = api_open(&m, false), *to = api_open(&copy, true);
    struct text_sink pack = {0};

    ck_assert_int_eq(thinmeta_pack(tm, text_sink_write, &pack, NULL), 0);
    for (size_t i = 0; i < pack.len; i += 97) {
        struct text_pull pull = {pack.bytes, pack.bytes + pack.len, 0};

        pack.bytes[i] ^= 0x20;
        ck_assert_int_lt(thinmeta_unpack(to, text_pull_read, &pull, NULL), 0);
        ck_assert(!superblock_is_thin(copy.bytes));
        pack.bytes[i] ^= 0x20;
        pull = (struct text_pull){pack.bytes, pack.bytes + i, 0};
        ck_assert_int_lt(thinmeta_unpack(to, text_pull_read, &pull, NULL), 0);
    }
    free(pack.bytes);
    thinmeta_close(tm);
    thinmeta_close(to);
    free(m.bytes);
    free(copy.bytes);
}
END_TEST

/* ---- repair ------------------------------------------------------------------------------ */

struct told {
    uint64_t kept, nr_devices, nr_lost;
};

static int
on_repaired(void *arg, const struct thinmeta_repaired *dev)
{
    struct told *t = arg;

    t->kept += dev->kept_mappings;
    t->nr_devices++;
    return 0;
}

static int
on_lost(void *arg, const struct thinmeta_affected *lost)
{
    struct told *t = arg;

    (void)lost;
    t->nr_lost++;
    return 0;
}

static mblock_t
details_root(struct mem_device *m)
{
    struct superblock sb;

    superblock_decode(&sb, m->bytes);
    return sb.device_details_root;
}

static mblock_t
top_root(struct mem_device *m)
{
    struct superblock sb;

    superblock_decode(&sb, m->bytes);
    return sb.data_mapping_root;
}

static mblock_t
index_block(struct mem_device *m)
{
    struct superblock sb;

    superblock_decode(&sb, m->bytes);
    return sb.metadata_sm.bitmap_root;
}

static mblock_t
block_zero(struct mem_device *m)
{
    (void)m;
    return 0;
}

START_TEST(each_root_that_is_lost_is_found_again)
{
    static mblock_t (*const victims[])(struct mem_device *) = {details_root, top_root,
                                                               index_block, block_zero};
    static const char *const pools[] = {"few-thins", "snapshots", "held-root"};
    struct mem_device m = fixture_pool(pools[_i % 3]);
    struct mem_device copy = mem_new(m.len);
    struct thinmeta *from = api_open(&m, false), *to = api_open(&copy, true);
    struct superblock sb;
    struct told told = {0};
    struct thinmeta_repair_options opts = {.size = sizeof(opts),
                                           .have_transaction_id = 1,
                                           .device = on_repaired,
                                           .lost = on_lost,
                                           .arg = &told};
    struct thinmeta_error err = {0};
    char *before = api_dump(from), *after;
    mblock_t victim = victims[_i / 3](&m);
    uint8_t *image = malloc(m.len);
    int r;

    superblock_decode(&sb, m.bytes);
    opts.transaction_id = sb.trans_id;
    opts.data_block_bytes = sb.data_block_size * 512ull;
    opts.nr_data_blocks = sb.data_sm.nr_blocks;
    memset(mem_block(&m, victim), 0xee, 4096);
    memcpy(image, m.bytes, m.len);
    r = thinmeta_repair(from, to, &opts, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    ck_assert_uint_eq(api_damage(to), 0);
    ck_assert_uint_eq(told.nr_lost, 0);
    after = api_dump(to);
    /* Made-up details differ; the mappings must not. */
    if (victim != details_root(&copy) && _i / 3 != 0 && _i / 3 != 3)
        ck_assert_str_eq(before, after);
    ck_assert_mem_eq(image, m.bytes, m.len);
    free(image);
    free(before);
    free(after);
    thinmeta_close(from);
    thinmeta_close(to);
    free(m.bytes);
    free(copy.bytes);
}
END_TEST

START_TEST(a_lost_superblock_needs_what_it_held)
{
    struct mem_device m = fixture_pool("few-thins");
    struct thinmeta *from = api_open(&m, false);
    struct thinmeta_error err = {0};

    memset(m.bytes, 0, 4096);
    ck_assert_int_eq(thinmeta_repair(from, NULL, NULL, &err), THINMETA_E_INVALID);
    ck_assert_ptr_nonnull(strstr(err.text, "--nr-data-blocks"));
    thinmeta_close(from);
    free(m.bytes);
}
END_TEST

static int
free_bytes(void *arg, uint64_t begin, uint64_t end)
{
    *(uint64_t *)arg += end - begin;
    return 0;
}

START_TEST(free_space_is_what_nobody_maps)
{
    struct mem_device m = fixture_pool("few-thins");
    struct thinmeta *tm = api_open(&m, false);
    uint64_t bytes = 0;

    ck_assert_int_eq(thinmeta_free_space(tm, free_bytes, &bytes, NULL), 0);
    ck_assert_uint_eq(bytes, (640 - 107) * 65536ull);
    memset(mem_block(&m, details_root(&m)), 0, 4096);
    bytes = 0;
    ck_assert_int_lt(thinmeta_free_space(tm, free_bytes, &bytes, NULL), 0);
    ck_assert_uint_eq(bytes, 0);
    thinmeta_close(tm);
    free(m.bytes);
}
END_TEST

START_TEST(sizes_are_those_of_thin_metadata_size)
{
    ck_assert_uint_eq(thinmeta_size(64 << 10, 1ull << 30, 10), 1128 * 512ull);
    ck_assert_uint_eq(thinmeta_size(64 << 10, 10ull << 40, 1000), 5330104ull << 10);
    ck_assert_uint_eq(thinmeta_size(0, 10ull << 40, 1000), 0);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("libthinmeta");
    TCase *tc = tcase_create("api");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, format_makes_an_empty_clean_pool);
    tcase_add_test(tc, read_only_handles_do_not_write);
    tcase_add_test(tc, callbacks_get_devices_and_runs_and_may_stop);
    tcase_add_test(tc, progress_may_cancel_a_check);
    tcase_add_loop_test(tc, a_packed_device_unpacks_to_the_same, 0, NR_FIXTURE_POOLS);
    tcase_add_test(tc, a_damaged_pack_is_refused_and_leaves_no_pool);
    tcase_add_loop_test(tc, each_root_that_is_lost_is_found_again, 0, 12);
    tcase_add_test(tc, a_lost_superblock_needs_what_it_held);
    tcase_add_test(tc, free_space_is_what_nobody_maps);
    tcase_add_test(tc, sizes_are_those_of_thin_metadata_size);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
