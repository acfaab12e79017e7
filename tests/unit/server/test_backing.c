/* Paths and URIs, who may name which, and what tells one block device from another. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/bytes.h"
#include "server/backing.h"
#include "server/block_identity.h"

START_TEST(a_uri_is_no_path)
{
    ck_assert(backing_is_uri("nbd://host/x"));
    ck_assert(backing_is_uri("http://host/x"));
    ck_assert(!backing_is_uri("/srv/nbd://host/x"));
    ck_assert(!backing_is_uri("./nbd://host"));
    ck_assert(!backing_is_uri("://x"));
    ck_assert(!backing_is_uri("/dev/sda"));
    ck_assert_int_eq(backing_check("/dev/sda", NULL), 0);
    ck_assert_int_eq(backing_check("nbd+unix:///x?socket=/s", NULL), 0);
    ck_assert_int_eq(backing_check("nbds://host:1/x", NULL), 0);
    ck_assert_int_eq(backing_check("http://host/x", NULL), -THIN_E_INVALID);
    ck_assert_int_eq(backing_check("relative", NULL), -THIN_E_INVALID);
    ck_assert_int_eq(backing_check("", NULL), -THIN_E_INVALID);
}
END_TEST

static int
remote(const char *allowed, const char *text)
{
    struct server_config config = {.origin_uris = {(char *)(uintptr_t)allowed},
                                   .nr_origin_uris = 1,
                                   .device_dirs = {(char *)(uintptr_t)allowed},
                                   .nr_device_dirs = 1};

    return backing_check_remote(&config, text, NULL);
}

START_TEST(the_network_names_what_the_configuration_lets_it)
{
    static const struct server_config none;

    ck_assert_int_eq(backing_check_remote(&none, "/srv/x", NULL), -THIN_E_DENIED);
    ck_assert_int_eq(backing_check_remote(&none, "nbd://h/x", NULL), -THIN_E_DENIED);
    ck_assert_int_eq(remote("/srv", "/srv/x"), 0);
    ck_assert_int_eq(remote("/srv/", "/srv/a/b"), 0);
    ck_assert_int_eq(remote("/srv", "/srv"), -THIN_E_DENIED);
    ck_assert_int_eq(remote("/srv", "/srvx/x"), -THIN_E_DENIED);
    ck_assert_int_eq(remote("/srv", "/srv/../etc/shadow"), -THIN_E_DENIED);
    ck_assert_int_eq(remote("/srv", "/srv/a/./x"), -THIN_E_DENIED);
    ck_assert_int_eq(remote("/srv", "/srv//x"), -THIN_E_DENIED);

    ck_assert_int_eq(remote("nbd://host", "nbd://host"), 0);
    ck_assert_int_eq(remote("nbd://host", "nbd://host/x"), 0);
    ck_assert_int_eq(remote("nbd://host/images/", "nbd://host/images/x"), 0);
    ck_assert_int_eq(remote("nbd://host", "nbd://host.example/x"), -THIN_E_DENIED);
    ck_assert_int_eq(remote("nbd://host", "nbd://host@example/x"), -THIN_E_DENIED);
    ck_assert_int_eq(remote("nbd://host", "nbd://host:99/x"), -THIN_E_DENIED);
    ck_assert_int_eq(remote("nbd://host/images", "nbd://host/images2"), -THIN_E_DENIED);
    /* Parameters name files of the server. */
    ck_assert_int_eq(remote("nbds://host", "nbds://host/x?tls-psk-file=/etc/shadow"),
                     -THIN_E_DENIED);
    ck_assert_int_eq(remote("nbd+unix:///x?socket=/s", "nbd+unix:///x?socket=/s"), 0);
    ck_assert_int_eq(remote("nbd+unix:///x?socket=/s", "nbd+unix:///x?socket=/s2"),
                     -THIN_E_DENIED);
}
END_TEST

/* A device of 64 KiB that holds swap space of this UUID. */
static void
put_swap(int fd, char uuid)
{
    uint8_t page[4096] = {0};

    store_le32(page + 1024, 1); /* version */
    store_le32(page + 1028, 15);
    memset(page + 1036, uuid, 16);
    memcpy(page + 4086, "SWAPSPACE2", 10);
    ck_assert_int_eq(ftruncate(fd, 65536), 0);
    ck_assert_int_eq(pwrite(fd, page, sizeof(page), 0), sizeof(page));
}

START_TEST(a_device_is_known_by_what_it_holds)
{
    char path[] = "/tmp/thin-identity.XXXXXX";
    char empty[BLOCK_IDENTITY_MAX], first[BLOCK_IDENTITY_MAX], other[BLOCK_IDENTITY_MAX];
    int fd = mkstemp(path);
    struct stat st;

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, 65536), 0);
    ck_assert_int_eq(fstat(fd, &st), 0);
    st.st_rdev = 0; /* no device: nothing in sysfs */
    block_identity(path, &st, empty);
    ck_assert_str_eq(empty, "");
    put_swap(fd, 0x11);
    block_identity(path, &st, first);
    ck_assert_str_eq(first, " holds=swap:11111111-1111-1111-1111-111111111111");
    put_swap(fd, 0x22);
    block_identity(path, &st, other);
    ck_assert_str_eq(other, " holds=swap:22222222-2222-2222-2222-222222222222");
    unlink(path);
    /* Who cannot look says nothing. */
    block_identity(path, &st, other);
    ck_assert_str_eq(other, "");
    close(fd);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("backing");
    TCase *tc = tcase_create("backing");
    SRunner *sr;
    int failed;

    tcase_add_test(tc, a_uri_is_no_path);
    tcase_add_test(tc, the_network_names_what_the_configuration_lets_it);
    tcase_add_test(tc, a_device_is_known_by_what_it_holds);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
