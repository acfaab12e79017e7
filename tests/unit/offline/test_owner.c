/* The owner mark, and which device is the catalogue. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/host.h"
#include "core/offline/owner.h"
#include "tests/unit/offline/fixture.h"

static uint8_t bytes[2 * METADATA_BLOCK_SIZE];
static struct mem_device mem = {.bytes = bytes, .len = sizeof(bytes)};
static struct catalogue_trailer trailer;
static struct meta_source *src;
static struct thin_error err;

static void
set_up(void)
{
    memset(bytes, 0, sizeof(bytes));
    memset(&trailer, 0, sizeof(trailer));
    trailer.dev_id = CATALOGUE_NONE;
    thin_error_init(&err);
    src = mem_open(&mem);
}

static void
tear_down(void)
{
    source_close(src);
}

static void
mark(uint8_t first_byte_of_host)
{
    host_machine_id(trailer.owner_host);
    trailer.owner_host[0] ^= first_byte_of_host;
    trailer.owner_host[15] |= 1; /* also where this machine has no id */
    catalogue_trailer_encode(&trailer, bytes + SUPERBLOCK_TRAILER_OFFSET);
}

START_TEST(without_a_mark_anybody_may_write)
{
    ck_assert_int_eq(owner_judge(src, false, &err), 0);
    catalogue_trailer_encode(&trailer, bytes + SUPERBLOCK_TRAILER_OFFSET);
    ck_assert_int_eq(owner_judge(src, false, &err), 0);
}
END_TEST

START_TEST(an_owner_on_this_machine_is_the_locks_affair)
{
    host_machine_id(trailer.owner_host);
    memset(trailer.owner_boot, 7, 16);
    catalogue_trailer_encode(&trailer, bytes + SUPERBLOCK_TRAILER_OFFSET);
    ck_assert_int_eq(owner_judge(src, false, &err), 0);
}
END_TEST

START_TEST(another_machine_is_refused_unless_taken_over)
{
    mark(1);
    ck_assert_int_eq(owner_judge(src, false, &err), -THIN_E_BUSY);
    ck_assert_ptr_nonnull(strstr(err.text, "another machine"));
    ck_assert_ptr_nonnull(strstr(err.text, "--force-takeover"));
    ck_assert_int_eq(owner_judge(src, true, &err), 0);
}
END_TEST

START_TEST(a_damaged_mark_says_nothing)
{
    mark(1);
    bytes[SUPERBLOCK_TRAILER_OFFSET + 80] ^= 1;
    ck_assert_int_eq(owner_judge(src, false, &err), 0);
}
END_TEST

START_TEST(what_a_tool_writes_has_no_stamp_that_fits)
{
    uint8_t block[METADATA_BLOCK_SIZE] = {0};
    struct superblock sb = {.trans_id = 7, .version = 2};
    struct catalogue_trailer after;
    bool found = false;

    superblock_encode(&sb, block);
    trailer.stamp = superblock_stamp(block);
    trailer.flags = CATALOGUE_CLEAN | CATALOGUE_UNRECORDED;
    catalogue_trailer_encode(&trailer, block + SUPERBLOCK_TRAILER_OFFSET);
    owner_sign_foreign(block);
    ck_assert_int_eq(
        catalogue_trailer_decode(block + SUPERBLOCK_TRAILER_OFFSET, &after, &found, NULL),
        0);
    ck_assert(found);
    ck_assert_uint_ne(after.stamp, superblock_stamp(block));
    ck_assert_uint_eq(after.flags, CATALOGUE_UNRECORDED);
    ck_assert_mem_eq(after.uuid, trailer.uuid, sizeof(after.uuid));

    /* Where there is none, none is made. */
    memset(block + SUPERBLOCK_TRAILER_OFFSET, 0, SUPERBLOCK_TRAILER_BYTES);
    owner_sign_foreign(block);
    for (unsigned i = 0; i < SUPERBLOCK_TRAILER_BYTES; i++)
        ck_assert_uint_eq(block[SUPERBLOCK_TRAILER_OFFSET + i], 0);
}
END_TEST

START_TEST(the_catalogues_device_is_known)
{
    struct superblock sb = {0};
    uint32_t dev_id = 5;

    ck_assert(!owner_catalogue_device(&sb, &dev_id));
    catalogue_trailer_encode(&trailer, sb.trailer);
    ck_assert(!owner_catalogue_device(&sb, &dev_id));
    ck_assert_uint_eq(dev_id, 5);
    trailer.dev_id = 16777215;
    catalogue_trailer_encode(&trailer, sb.trailer);
    ck_assert(owner_catalogue_device(&sb, &dev_id));
    ck_assert_uint_eq(dev_id, 16777215);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("owner");
    TCase *tc = tcase_create("owner");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, without_a_mark_anybody_may_write);
    tcase_add_test(tc, an_owner_on_this_machine_is_the_locks_affair);
    tcase_add_test(tc, another_machine_is_refused_unless_taken_over);
    tcase_add_test(tc, a_damaged_mark_says_nothing);
    tcase_add_test(tc, what_a_tool_writes_has_no_stamp_that_fits);
    tcase_add_test(tc, the_catalogues_device_is_known);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
