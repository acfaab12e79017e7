/* The authority; whether its certificates are of use to TLS is test_channel's matter. */
#include <check.h>
#include <errno.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/pki.h"

static char base[] = "/tmp/test-pki-XXXXXX";
static char dir[100];
static struct thin_error err;
static unsigned nr_dirs;

static const char *
path(const char *name)
{
    static char bufs[4][200];
    static unsigned next;
    char *buf = bufs[next++ % 4];

    snprintf(buf, 200, "%s/%s", dir, name);
    return buf;
}

static X509 *
load_cert(const char *name)
{
    FILE *f = fopen(path(name), "r");
    X509 *cert;

    ck_assert_msg(f != NULL, "%s", path(name));
    cert = PEM_read_X509(f, NULL, NULL, NULL);
    fclose(f);
    ck_assert_ptr_nonnull(cert);
    return cert;
}

static int
mode_of(const char *name)
{
    struct stat st;

    ck_assert_msg(stat(path(name), &st) == 0, "%s", path(name));
    return st.st_mode & 07777;
}

static void
set_up_base(void)
{
    ck_assert_ptr_nonnull(mkdtemp(base));
}

static void
tear_down_base(void)
{
    char command[64];

    snprintf(command, sizeof(command), "rm -rf %s", base);
    ck_assert_int_eq(system(command), 0);
}

/* Each test its own authority, in a folder that is not there yet. */
static void
set_up(void)
{
    snprintf(dir, sizeof(dir), "%s/%u-%d/deep/pki", base, nr_dirs++, (int)getpid());
    ck_assert_msg(pki_init(dir, &err) == 0, "%s", err.text);
}

static int
issue(const char *name, bool server, const char *const *hosts, unsigned nr, unsigned days,
      const char *out)
{
    struct pki_issue_params params = {name, server, hosts, nr, days, out};

    return pki_issue(dir, &params, &err);
}

START_TEST(an_authority_is_made_once)
{
    X509 *ca = load_cert("ca/ca-cert.pem");

    ck_assert_int_eq(mode_of("ca/ca-key.pem"), 0600);
    ck_assert_int_eq(mode_of("ca/ca-cert.pem"), 0644);
    ck_assert_int_eq(X509_check_ca(ca), 1);
    ck_assert_uint_eq(X509_get_key_usage(ca), KU_KEY_CERT_SIGN | KU_CRL_SIGN);
    X509_free(ca);
    ck_assert_int_eq(pki_init(dir, &err), -THIN_E_EXISTS);
    ck_assert_int_eq(issue("host7", false, NULL, 0, 0, NULL), 0);
}
END_TEST

START_TEST(a_client_certificate_is_what_others_take)
{
    X509 *cert, *ca = load_cert("ca/ca-cert.pem");
    char uri[100] = "";
    GENERAL_NAMES *names;

    ck_assert_msg(issue("host7", false, NULL, 0, 30, NULL) == 0, "%s", err.text);
    ck_assert_int_eq(mode_of("host7/client-key.pem"), 0600);
    ck_assert_int_eq(mode_of("host7/client-cert.pem"), 0644);
    ck_assert_int_eq(mode_of("host7/ca-cert.pem"), 0644);
    cert = load_cert("host7/client-cert.pem");
    ck_assert_int_eq(X509_verify(cert, X509_get0_pubkey(ca)), 1);
    ck_assert_int_eq(X509_check_issued(ca, cert), X509_V_OK);
    ck_assert_int_eq(X509_check_ca(cert), 0);
    ck_assert_uint_eq(X509_get_key_usage(cert), KU_DIGITAL_SIGNATURE);
    ck_assert_uint_eq(X509_get_extended_key_usage(cert), XKU_SSL_CLIENT);
    names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    ck_assert_int_eq(sk_GENERAL_NAME_num(names), 1);
    snprintf(uri, sizeof(uri), "%s",
             ASN1_STRING_get0_data(sk_GENERAL_NAME_value(names, 0)->d.ia5));
    ck_assert_str_eq(uri, "thin:host7");
    GENERAL_NAMES_free(names);
    X509_free(cert);
    X509_free(ca);
}
END_TEST

START_TEST(a_server_certificate_holds_its_hosts)
{
    static const char *const hosts[] = {"store.example.org", "192.0.2.7", "2001:db8::7",
                                        "localhost", "*.example.net"};
    char self[256] = "";
    X509 *cert;

    ck_assert_msg(issue("store", true, hosts, 5, 0, path("out")) == 0, "%s", err.text);
    cert = load_cert("out/server-cert.pem");
    ck_assert_uint_eq(X509_get_extended_key_usage(cert), XKU_SSL_SERVER);
    ck_assert_int_eq(X509_check_host(cert, "localhost", 0, 0, NULL), 1);
    ck_assert_int_eq(X509_check_host(cert, "store", 0, 0, NULL), 1);
    ck_assert_int_eq(X509_check_host(cert, "store.example.org", 0, 0, NULL), 1);
    ck_assert_int_eq(X509_check_host(cert, "other.example.org", 0, 0, NULL), 0);
    ck_assert_int_eq(X509_check_ip_asc(cert, "127.0.0.1", 0), 1);
    ck_assert_int_eq(X509_check_ip_asc(cert, "::1", 0), 1);
    ck_assert_int_eq(X509_check_ip_asc(cert, "192.0.2.7", 0), 1);
    ck_assert_int_eq(X509_check_ip_asc(cert, "2001:db8::7", 0), 1);
    ck_assert_int_eq(X509_check_ip_asc(cert, "192.0.2.8", 0), 0);
    ck_assert_int_eq(gethostname(self, sizeof(self) - 1), 0);
    ck_assert_int_eq(X509_check_host(cert, self, 0, 0, NULL), 1);
    X509_free(cert);
}
END_TEST

START_TEST(what_cannot_be_issued_is_refused_and_nothing_is_written)
{
    static const char *const bad[] = {
        "-x", "a..b", "a b", "", "x/y", "DNS:y,IP:1.2.3.4", "under_score"};
    static const char *const good[] = {"host"};
    char name[80];
    struct stat st;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        ck_assert_int_eq(issue("store", true, &bad[i], 1, 0, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(issue("../x", false, NULL, 0, 0, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(issue("a,URI:thin:root", false, NULL, 0, 0, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(issue("", false, NULL, 0, 0, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(issue("ca", false, NULL, 0, 0, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(issue("host7", false, good, 1, 0, NULL), -THIN_E_INVALID);
    ck_assert_int_eq(issue("host7", false, NULL, 0, PKI_DAYS_MAX + 1, NULL),
                     -THIN_E_INVALID);
    ck_assert_int_lt(stat(path("store"), &st), 0);
    ck_assert_int_lt(stat(path("host7"), &st), 0);
    /* Longer than a CN may be: the URI still holds all of it. */
    memset(name, 'n', 70);
    name[70] = '\0';
    ck_assert_msg(issue(name, false, NULL, 0, 0, NULL) == 0, "%s", err.text);
}
END_TEST

START_TEST(another_authoritys_folder_is_left_alone)
{
    char first[100], out[200];

    snprintf(out, sizeof(out), "%s", path("shared"));
    ck_assert_int_eq(issue("a", false, NULL, 0, 0, out), 0);
    snprintf(first, sizeof(first), "%s", dir);
    set_up();
    ck_assert_int_eq(issue("b", false, NULL, 0, 0, out), -THIN_E_EXISTS);
    ck_assert_ptr_nonnull(strstr(err.text, "another authority"));
}
END_TEST

static struct pki_entry entries[10];
static unsigned nr_entries;

static int
collect(void *arg, const struct pki_entry *entry)
{
    (void)arg;
    ck_assert_uint_lt(nr_entries, 10);
    entries[nr_entries++] = *entry;
    return 0;
}

static int
stop_at_once(void *arg, const struct pki_entry *entry)
{
    (void)arg;
    (void)entry;
    return -ECANCELED;
}

static bool
is_revoked(const char *name)
{
    FILE *f = fopen(path("ca/ca-crl.pem"), "r");
    X509 *cert = load_cert(name), *ca = load_cert("ca/ca-cert.pem");
    X509_REVOKED *revoked = NULL;
    X509_CRL *crl;
    bool found;

    ck_assert_ptr_nonnull(f);
    crl = PEM_read_X509_CRL(f, NULL, NULL, NULL);
    fclose(f);
    ck_assert_ptr_nonnull(crl);
    ck_assert_int_eq(X509_CRL_verify(crl, X509_get0_pubkey(ca)), 1);
    found = X509_CRL_get0_by_cert(crl, &revoked, cert) == 1;
    X509_CRL_free(crl);
    X509_free(cert);
    X509_free(ca);
    return found;
}

START_TEST(every_certificate_is_remembered_and_can_be_revoked)
{
    unsigned nr = 0;
    int64_t expires = 0;

    ck_assert_int_eq(issue("a", false, NULL, 0, 1, NULL), 0);
    ck_assert_int_eq(issue("b", true, NULL, 0, 10, NULL), 0);
    ck_assert_int_eq(issue("a", false, NULL, 0, 20, path("again")), 0);
    ck_assert(!is_revoked("a/client-cert.pem"));
    nr_entries = 0;
    ck_assert_int_eq(pki_show(dir, collect, NULL, &expires, &err), 0);
    ck_assert_uint_eq(nr_entries, 3);
    ck_assert_str_eq(entries[0].name, "a");
    ck_assert_str_eq(entries[1].name, "b");
    ck_assert(entries[1].server && !entries[2].server);
    ck_assert_int_eq(entries[2].expires - entries[2].issued, 20 * 86400);
    ck_assert_int_eq(entries[0].revoked, 0);
    ck_assert_str_ne(entries[0].serial, entries[2].serial);
    ck_assert_int_gt(expires, (int64_t)time(NULL) + 3600ll * 86400 / 1000);
    ck_assert_int_eq(pki_revoke(dir, "nobody", &nr, &err), -THIN_E_NOT_FOUND);
    ck_assert_int_eq(pki_revoke(dir, "a", &nr, &err), 0);
    ck_assert_uint_eq(nr, 2);
    ck_assert(is_revoked("a/client-cert.pem"));
    ck_assert(is_revoked("again/client-cert.pem"));
    ck_assert(!is_revoked("b/server-cert.pem"));
    ck_assert_int_eq(pki_revoke(dir, "a", &nr, &err), -THIN_E_NOT_FOUND);
    nr_entries = 0;
    ck_assert_int_eq(pki_show(dir, collect, NULL, NULL, &err), 0);
    ck_assert_int_gt(entries[0].revoked, 0);
    ck_assert_int_eq(entries[1].revoked, 0);
    ck_assert_int_eq(pki_show(dir, stop_at_once, NULL, NULL, &err), -ECANCELED);
}
END_TEST

START_TEST(without_an_authority_the_way_to_one_is_told)
{
    unsigned nr = 0;

    snprintf(dir, sizeof(dir), "%s/nothing-here", base);
    ck_assert_int_eq(issue("a", false, NULL, 0, 0, NULL), -THIN_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.text, "pki init"));
    ck_assert_int_eq(pki_revoke(dir, "a", &nr, &err), -THIN_E_NOT_FOUND);
    ck_assert_int_eq(pki_show(dir, collect, NULL, NULL, &err), -THIN_E_NOT_FOUND);
}
END_TEST

START_TEST(a_damaged_index_is_named_and_not_written_over)
{
    FILE *f = fopen(path("ca/index.txt"), "w");
    struct stat st;

    ck_assert_ptr_nonnull(f);
    fputs("what is this\n", f);
    fclose(f);
    ck_assert_int_eq(issue("a", false, NULL, 0, 0, NULL), -THIN_E_INVALID);
    ck_assert_ptr_nonnull(strstr(err.text, "line 1"));
    ck_assert_int_eq(stat(path("ca/index.txt"), &st), 0);
    ck_assert_int_eq(st.st_size, 13);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("pki");
    TCase *tc = tcase_create("pki");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_unchecked_fixture(tc, set_up_base, tear_down_base);
    tcase_add_checked_fixture(tc, set_up, NULL);
    tcase_set_timeout(tc, 30);
    tcase_add_test(tc, an_authority_is_made_once);
    tcase_add_test(tc, a_client_certificate_is_what_others_take);
    tcase_add_test(tc, a_server_certificate_holds_its_hosts);
    tcase_add_test(tc, what_cannot_be_issued_is_refused_and_nothing_is_written);
    tcase_add_test(tc, another_authoritys_folder_is_left_alone);
    tcase_add_test(tc, every_certificate_is_remembered_and_can_be_revoked);
    tcase_add_test(tc, without_an_authority_the_way_to_one_is_told);
    tcase_add_test(tc, a_damaged_index_is_named_and_not_written_over);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
