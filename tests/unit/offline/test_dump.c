/* Dump and restore against what the official tools print for kernel-made pools. */
#include "core/offline/build.h"
#include "core/offline/check.h"
#include "core/offline/live.h"
#include "core/offline/text_write.h"
#include "core/offline/xml_read.h"
#include "tests/unit/offline/fixture.h"

static char *
dump(struct meta_source *src, const struct live_options *opts,
     const struct ir_visitor *form)
{
    struct text_sink sink = {0};
    struct textbuf text;
    struct text_writer writer = {.text = &text};
    struct thin_error err;
    int r;

    thin_error_init(&err);
    ck_assert_int_eq(textbuf_init(&text, text_sink_write, &sink), 0);
    r = live_read(src, opts, form, &writer, &err);
    ck_assert_msg(r == 0, "%s", thin_error_text(&err, r));
    textbuf_fini(&text);
    return sink.bytes;
}

static char *
expected(const char *pool, const char *file)
{
    char path[256];
    size_t len;

    snprintf(path, sizeof(path), "pools/%s/%s", pool, file);
    return fixture_read(path, &len);
}

static int
restore(struct mem_device *m, const char *xml, size_t most, struct thin_error *err)
{
    struct text_pull pull = {xml, xml + strlen(xml), most};
    struct meta_source *src = mem_open(m);
    struct builder b;
    int r;

    thin_error_init(err);
    r = builder_init(&b, src, NULL, err);
    if (r >= 0)
        r = xml_read(text_pull_read, &pull, &builder_visitor, &b, err);
    builder_fini(&b);
    source_close(src);
    return r;
}

static void
assert_clean(struct mem_device *m)
{
    struct meta_source *src = mem_open(m);
    struct check_options opts = {0};
    struct check_result res;
    struct report rep;

    report_init(&rep);
    ck_assert_int_eq(check_run(src, &opts, &rep, &res, NULL), 0);
    ck_assert_msg(rep.nr == 0, "%s", rep.nr ? rep.findings[0].text : "");
    check_result_fini(&res);
    report_fini(&rep);
    source_close(src);
}

START_TEST(dump_is_what_thin_dump_prints)
{
    const char *pool = fixture_pools[_i];
    struct mem_device m = fixture_pool(pool);
    struct meta_source *src = mem_open(&m);
    struct live_options opts = {0};
    char *wanted = expected(pool, "dump.xml.xz");
    char *got = dump(src, &opts, &xml_writer);

    ck_assert_str_eq(got, wanted);
    free(got);
    free(wanted);
    source_close(src);
    free(m.bytes);
}
END_TEST

START_TEST(dump_of_the_held_snapshot_is_what_thin_dump_prints)
{
    struct mem_device m = fixture_pool("held-root");
    struct meta_source *src = mem_open(&m);
    struct live_options opts = {.metadata_snap = true};
    char *wanted = expected("held-root", "dump-metadata-snap.xml.xz");
    char *got = dump(src, &opts, &xml_writer);

    ck_assert_str_eq(got, wanted);
    free(got);
    free(wanted);
    source_close(src);
    free(m.bytes);
}
END_TEST

START_TEST(no_held_snapshot_is_an_error)
{
    struct mem_device m = fixture_pool("empty");
    struct meta_source *src = mem_open(&m);
    struct live_options opts = {.metadata_snap = true};
    struct live_pool pool;

    ck_assert_int_eq(live_open(src, &opts, &pool, NULL), -THIN_E_NOT_FOUND);
    source_close(src);
    free(m.bytes);
}
END_TEST

START_TEST(one_device_can_be_dumped_alone)
{
    struct mem_device m = fixture_pool("few-thins");
    struct meta_source *src = mem_open(&m);
    static const uint64_t ids[] = {7};
    struct live_options opts = {.dev_ids = ids, .nr_dev_ids = 1};
    char *got = dump(src, &opts, &xml_writer);

    ck_assert_ptr_nonnull(strstr(got, "dev_id=\"7\""));
    ck_assert_ptr_null(strstr(got, "dev_id=\"1\""));
    free(got);
    source_close(src);
    free(m.bytes);
}
END_TEST

START_TEST(human_and_json_name_the_same_runs)
{
    struct mem_device m = fixture_pool("few-thins");
    struct meta_source *src = mem_open(&m);
    struct live_options opts = {0};
    char *human = dump(src, &opts, &human_writer);
    char *json = dump(src, &opts, &json_writer);

    ck_assert_ptr_nonnull(strstr(human, "    (0..39) -> (0..39), 0\n"));
    ck_assert_ptr_nonnull(strstr(human, "\nend superblock\n"));
    ck_assert_ptr_nonnull(strstr(json, "[0, 0, 40, 0]"));
    free(human);
    free(json);
    source_close(src);
    free(m.bytes);
}
END_TEST

START_TEST(restored_pools_are_clean_and_dump_the_same)
{
    const char *pool = fixture_pools[_i];
    struct mem_device m = fixture_pool(pool), copy = mem_new(m.len);
    char *wanted = expected(pool, "dump.xml.xz");
    struct live_options opts = {0};
    struct meta_source *src;
    struct thin_error err;
    int r = restore(&copy, wanted, 0, &err);
    char *got;

    ck_assert_msg(r == 0, "%s", err.text);
    assert_clean(&copy);
    src = mem_open(&copy);
    got = dump(src, &opts, &xml_writer);
    ck_assert_str_eq(got, wanted);
    free(got);
    free(wanted);
    source_close(src);
    free(m.bytes);
    free(copy.bytes);
}
END_TEST

START_TEST(xml_may_come_in_any_pieces)
{
    static const size_t pieces[] = {1, 3, 17, 4096};
    char *xml = expected("snapshots", "dump.xml.xz");
    struct mem_device one = mem_new(4u << 20), other = mem_new(4u << 20);
    struct thin_error err;

    ck_assert_int_eq(restore(&one, xml, 0, &err), 0);
    ck_assert_int_eq(restore(&other, xml, pieces[_i], &err), 0);
    ck_assert_mem_eq(one.bytes, other.bytes, one.len);
    free(one.bytes);
    free(other.bytes);
    free(xml);
}
END_TEST

START_TEST(what_only_expat_knows_is_read_as_well)
{
    /* The comment comes first, in the middle, and at the end. */
    static const char *const docs[] = {
        "<?xml version=\"1.0\"?>\n<!-- a -->%s%s%s%s",
        "%s<!-- in the superblock -->%s%s%s",
        "%s%s<!-- in the device -->%s%s",
        "%s%s%s%s<!-- behind -->\n",
        ("%s%s%s<single_mapping origin_block='9' data_block='&#57;' "
         "time='0'></single_mapping>%s"),
    };
    static const char head[] = "<superblock uuid=\"\" time=\"0\" transaction=\"1\" "
                               "data_block_size=\"128\" nr_data_blocks=\"100\">\n";
    static const char dev[] =
        "<device dev_id=\"1\" mapped_blocks=\"1\" transaction=\"0\" "
        "creation_time=\"0\" snap_time=\"0\">\n";
    static const char one[] =
        "<single_mapping origin_block=\"1\" data_block=\"2\" time=\"0\"/>\n";
    static const char tail[] = "</device></superblock>\n";
    struct mem_device m = mem_new(1u << 20);
    char xml[1024];
    struct thin_error err;
    int r;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(xml, sizeof(xml), docs[_i], head, dev, one, tail);
#pragma GCC diagnostic pop
    r = restore(&m, xml, 0, &err);
    ck_assert_msg(r == 0, "%s", err.text);
    assert_clean(&m);
    free(m.bytes);
}
END_TEST

START_TEST(wrong_xml_is_refused_with_its_line)
{
#define HEAD                                                                      \
    "<superblock uuid=\"\" time=\"3\" transaction=\"1\" data_block_size=\"128\" " \
    "nr_data_blocks=\"100\">\n"
#define DEV                                                                           \
    "<device dev_id=\"1\" mapped_blocks=\"1\" transaction=\"0\" creation_time=\"0\" " \
    "snap_time=\"0\">\n"
#define MAP(v, d, t) \
    "<single_mapping origin_block=\"" v "\" data_block=\"" d "\" time=\"" t "\"/>\n"
#define TAIL "</device></superblock>\n"
    static const struct {
        const char *xml, *words;
    } cases[] = {
        {"", "ends in the middle"},
        {"hello", "line 1"},
        {HEAD DEV MAP("1", "2", "0"), "ends in the middle"},
        {HEAD MAP("1", "2", "0") TAIL, "line 2: <single_mapping> has no place"},
        {HEAD DEV MAP("5", "2", "0") MAP("5", "3", "0") TAIL, "comes after"},
        {HEAD DEV MAP("5", "100", "0") TAIL, "there are 100"},
        {HEAD DEV MAP("5", "2", "16777216") TAIL, "time 16777216"},
        {HEAD DEV MAP("x", "2", "0") TAIL, "line 3: single_mapping: origin_block"},
        {HEAD DEV "<single_mapping origin_block=\"1\"/>" TAIL, "without data_block"},
        {HEAD DEV "</device>" DEV TAIL, "device 1 comes after device 1"},
        {HEAD DEV "<range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"101\" "
                  "time=\"0\"/>" TAIL,
         "there are 100"},
        {HEAD "<what/>" TAIL, "<what> has no place"},
        {HEAD DEV "</superblock>", "closes nothing"},
        {HEAD DEV "text" TAIL, "text between"},
        {"<!DOCTYPE a [<!ENTITY b \"c\">]>" HEAD DEV TAIL, "document type"},
        {HEAD DEV TAIL "<superblock/>", "has no place"},
        {"<superblock uuid=\"\" time=\"3\" transaction=\"1\" data_block_size=\"100\" "
         "nr_data_blocks=\"100\"></superblock>",
         "multiple of 128"},
        {"<superblock uuid=\"\" time=\"3\" transaction=\"1\" data_block_size=\"128\" "
         "nr_data_blocks=\"1000000000000\"></superblock>",
         "cannot be counted"},
    };
    static const size_t nr = sizeof(cases) / sizeof(cases[0]);

    for (size_t i = 0; i < nr; i++) {
        struct mem_device m = mem_new(1u << 20);
        struct thin_error err;

        ck_assert_int_lt(restore(&m, cases[i].xml, 0, &err), 0);
        ck_assert_msg(strstr(err.text, cases[i].words), "%zu: %s", i, err.text);
        free(m.bytes);
    }
}
END_TEST

START_TEST(an_unfinished_restore_is_no_pool_and_not_blank)
{
    char *xml = expected("few-thins", "dump.xml.xz");
    struct mem_device m = fixture_pool("few-thins");
    uint8_t trailer[SUPERBLOCK_TRAILER_BYTES];
    struct superblock sb;
    struct thin_error err;

    /* The old superblock carries a trailer. */
    superblock_decode(&sb, m.bytes);
    memset(sb.trailer, 0x5a, sizeof(sb.trailer));
    memcpy(trailer, sb.trailer, sizeof(trailer));
    superblock_encode(&sb, m.bytes);
    block_seal(BLOCK_SUPERBLOCK, m.bytes, 0);
    for (uint64_t n = 2; n < 4; n++) {
        m.nr_writes = 0;
        m.fail_write = n;
        ck_assert_int_eq(restore(&m, xml, 0, &err), -EIO);
        ck_assert_int_lt(block_check(BLOCK_SUPERBLOCK, m.bytes, 0, NULL), 0);
        ck_assert(!superblock_is_thin(m.bytes));
        ck_assert_uint_ne(m.bytes[0], 0);
    }
    m.fail_write = 0;
    ck_assert_int_eq(restore(&m, xml, 0, &err), 0);
    superblock_decode(&sb, m.bytes);
    ck_assert_mem_eq(sb.trailer, trailer, sizeof(trailer));
    assert_clean(&m);
    free(m.bytes);
    free(xml);
}
END_TEST

START_TEST(too_small_a_device_is_told)
{
    char *xml = expected("discards", "dump.xml.xz");
    struct mem_device m = mem_new(8 * 4096);
    struct thin_error err;

    ck_assert_int_eq(restore(&m, xml, 0, &err), -THIN_E_NO_METADATA_SPACE);
    ck_assert_ptr_nonnull(strstr(err.text, "too small"));
    free(m.bytes);
    free(xml);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("offline dump");
    TCase *tc = tcase_create("dump");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, dump_is_what_thin_dump_prints, 0, NR_FIXTURE_POOLS);
    tcase_add_test(tc, dump_of_the_held_snapshot_is_what_thin_dump_prints);
    tcase_add_test(tc, no_held_snapshot_is_an_error);
    tcase_add_test(tc, one_device_can_be_dumped_alone);
    tcase_add_test(tc, human_and_json_name_the_same_runs);
    tcase_add_loop_test(tc, restored_pools_are_clean_and_dump_the_same, 0,
                        NR_FIXTURE_POOLS);
    tcase_add_loop_test(tc, xml_may_come_in_any_pieces, 0, 4);
    tcase_add_loop_test(tc, what_only_expat_knows_is_read_as_well, 0, 5);
    tcase_add_test(tc, wrong_xml_is_refused_with_its_line);
    tcase_add_test(tc, an_unfinished_restore_is_no_pool_and_not_blank);
    tcase_add_test(tc, too_small_a_device_is_told);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
