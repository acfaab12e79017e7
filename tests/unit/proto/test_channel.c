/*
 * Channels over socket pairs and TCP, with an authority made for the occasion. Both
 * ends are driven in turns by one thread.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "proto/channel.h"
#include "proto/pki.h"

static char dir[] = "/tmp/test-channel-XXXXXX";
static struct thin_error err, err2;
static struct channel *a, *b; /* client and server */

/* ---- certificates ------------------------------------------------------------------ */

static const char *
file(char *buf, const char *sub, const char *name)
{
    snprintf(buf, 256, "%s/%s/%s", dir, sub, name);
    return buf;
}

static void
issue(const char *authority, const char *name, bool server)
{
    char ca[128];
    struct pki_issue_params params = {.name = name, .server = server};

    snprintf(ca, sizeof(ca), "%s/%s", dir, authority);
    ck_assert_msg(pki_issue(ca, &params, &err) == 0, "%s", err.text);
}

static void
make_certificates(void)
{
    char ca[128];

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(ca, sizeof(ca), "%s/a", dir);
    ck_assert_msg(pki_init(ca, &err) == 0, "%s", err.text);
    snprintf(ca, sizeof(ca), "%s/b", dir);
    ck_assert_msg(pki_init(ca, &err) == 0, "%s", err.text);
    issue("a", "store", true);
    issue("a", "host7", false);
    issue("b", "stranger", false);
    issue("b", "other", true);
}

static struct channel_tls *
load(const char *sub, bool server, const char *authority, const char *crl)
{
    char cert[256], key[256], ca[256];
    struct channel_tls_params params = {
        .cert = file(cert, sub, server ? "server-cert.pem" : "client-cert.pem"),
        .key = file(key, sub, server ? "server-key.pem" : "client-key.pem"),
        .ca = file(ca, authority, "ca/ca-cert.pem"),
        .crl = crl,
        .server = server,
    };
    struct channel_tls *tls = NULL;

    ck_assert_msg(channel_tls_create(&params, &tls, &err) == 0, "%s", err.text);
    return tls;
}

/* ---- two ends ---------------------------------------------------------------------- */

static void
pair(int fds[2])
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
}

static void
start(struct channel_tls *client, struct channel_tls *server, const char *name)
{
    int fds[2];

    pair(fds);
    ck_assert_int_eq(channel_tls_start(client, fds[0], name, &a, &err), 0);
    ck_assert_int_eq(channel_tls_start(server, fds[1], NULL, &b, &err), 0);
    channel_tls_put(client);
    channel_tls_put(server);
}

static void
stop(void)
{
    channel_destroy(a);
    channel_destroy(b);
    a = b = NULL;
}

/* Both handshakes, in turns; *ret are the final results. */
static void
shake(int *ret_a, int *ret_b)
{
    int ra = -EAGAIN, rb = -EAGAIN;

    for (int i = 0; i < 100 && (ra == -EAGAIN || rb == -EAGAIN); i++) {
        if (ra == -EAGAIN)
            ra = channel_handshake(a, &err);
        if (rb == -EAGAIN)
            rb = channel_handshake(b, &err2);
        if (ra < 0 && ra != -EAGAIN && rb == -EAGAIN && i > 10)
            break;
    }
    *ret_a = ra;
    *ret_b = rb;
}

static void
start_good(void)
{
    int ra, rb;

    start(load("a/host7", false, "a", NULL), load("a/store", true, "a", NULL),
          "localhost");
    shake(&ra, &rb);
    ck_assert_msg(ra == 0, "%s", err.text);
    ck_assert_msg(rb == 0, "%s", err2.text);
}

/* ---- cases ------------------------------------------------------------------------- */

START_TEST(both_sides_know_each_other)
{
    start_good();
    ck_assert_str_eq(channel_identity(b), "cert:host7");
    ck_assert_str_eq(channel_identity(a), "cert:store");
    stop();
}
END_TEST

START_TEST(an_address_is_checked_as_an_address)
{
    int ra, rb;

    start(load("a/host7", false, "a", NULL), load("a/store", true, "a", NULL),
          "127.0.0.1");
    shake(&ra, &rb);
    ck_assert_int_eq(ra, 0);
    stop();
    start(load("a/host7", false, "a", NULL), load("a/store", true, "a", NULL), "::1");
    shake(&ra, &rb);
    ck_assert_int_eq(ra, 0);
    stop();
    start(load("a/host7", false, "a", NULL), load("a/store", true, "a", NULL),
          "127.0.0.2");
    shake(&ra, &rb);
    ck_assert_int_eq(ra, -THIN_E_TLS);
    ck_assert_ptr_nonnull(strstr(err.text, "mismatch"));
    stop();
}
END_TEST

START_TEST(another_host_is_refused)
{
    int ra, rb;

    start(load("a/host7", false, "a", NULL), load("a/store", true, "a", NULL),
          "elsewhere.example");
    shake(&ra, &rb);
    ck_assert_int_eq(ra, -THIN_E_TLS);
    ck_assert_ptr_nonnull(strstr(err.text, "mismatch"));
    /* Final: said again by every later call. */
    ck_assert_int_eq(channel_handshake(a, &err2), -THIN_E_TLS);
    ck_assert_str_eq(err.text, err2.text);
    stop();
}
END_TEST

START_TEST(a_client_must_say_whom_it_means)
{
    int fds[2];
    struct channel_tls *tls = load("a/host7", false, "a", NULL);

    pair(fds);
    ck_assert_int_eq(channel_tls_start(tls, fds[0], NULL, &a, &err), -THIN_E_INVALID);
    channel_tls_put(tls);
    close(fds[0]); /* not taken */
    close(fds[1]);
}
END_TEST

START_TEST(a_stranger_is_refused_and_told_so)
{
    int ra, rb;
    char byte;

    /* The client trusts the server, but its own certificate is another authority's. */
    start(load("b/stranger", false, "a", NULL), load("a/store", true, "a", NULL),
          "localhost");
    shake(&ra, &rb);
    ck_assert_int_eq(rb, -THIN_E_TLS);
    ck_assert_ptr_nonnull(strstr(err2.text, "the peer's certificate"));
    /* In TLS 1.3 the client learns it with its first read. */
    if (ra == 0)
        ra = (int)channel_read(a, &byte, 1, &err);
    ck_assert_int_eq(ra, -THIN_E_TLS);
    ck_assert_msg(strstr(err.text, "refused our certificate") != NULL, "%s", err.text);
    stop();
}
END_TEST

START_TEST(a_false_server_is_refused)
{
    int ra, rb;

    start(load("a/host7", false, "a", NULL), load("b/other", true, "a", NULL),
          "localhost");
    shake(&ra, &rb);
    ck_assert_int_eq(ra, -THIN_E_TLS);
    stop();
}
END_TEST

/* A client's certificate must not serve: whoever holds one could play the server. */
START_TEST(a_client_certificate_is_no_server)
{
    char cert[256], key[256], ca[256];
    struct channel_tls_params params = {
        .cert = file(cert, "a/host7", "client-cert.pem"),
        .key = file(key, "a/host7", "client-key.pem"),
        .ca = file(ca, "a", "ca/ca-cert.pem"),
        .server = true,
    };
    struct channel_tls *tls = NULL;
    int ra, rb;

    ck_assert_int_eq(channel_tls_create(&params, &tls, &err), 0);
    /* An honest owner is told before any client has to refuse it. */
    ck_assert_int_eq(channel_tls_check_use(tls, &err), -THIN_E_TLS);
    start(load("a/host7", false, "a", NULL), tls, "localhost");
    shake(&ra, &rb);
    ck_assert_int_eq(ra, -THIN_E_TLS);
    stop();
}
END_TEST

START_TEST(a_revoked_certificate_is_refused)
{
    char path[128], crl[256];
    unsigned nr = 0;
    int ra, rb;

    snprintf(path, sizeof(path), "%s/a", dir);
    issue("a", "fired", false);
    ck_assert_int_eq(pki_revoke(path, "fired", &nr, &err), 0);
    ck_assert_uint_eq(nr, 1);
    start(load("a/fired", false, "a", NULL),
          load("a/store", true, "a", file(crl, "a", "ca/ca-crl.pem")), "localhost");
    shake(&ra, &rb);
    ck_assert_int_eq(rb, -THIN_E_TLS);
    ck_assert_msg(strstr(err2.text, "revoked") != NULL, "%s", err2.text);
    stop();
    /* Others go on. */
    start(load("a/host7", false, "a", NULL),
          load("a/store", true, "a", file(crl, "a", "ca/ca-crl.pem")), "localhost");
    shake(&ra, &rb);
    ck_assert_msg(rb == 0, "%s", err2.text);
    stop();
}
END_TEST

START_TEST(bad_files_are_named)
{
    char cert[256], key[256], ca[256];
    struct channel_tls_params params = {
        .cert = file(cert, "a/host7", "no-such.pem"),
        .key = file(key, "a/host7", "client-key.pem"),
        .ca = file(ca, "a", "ca/ca-cert.pem"),
    };
    struct channel_tls *tls = NULL;

    ck_assert_int_eq(channel_tls_create(&params, &tls, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "no-such.pem"));
    params.cert = file(cert, "a/host7", "client-key.pem"); /* no certificate in it */
    ck_assert_int_eq(channel_tls_create(&params, &tls, &err), -THIN_E_TLS);
    ck_assert_ptr_nonnull(strstr(err.text, "client-key.pem"));
    params.cert = file(cert, "a/store", "server-cert.pem"); /* another one's */
    ck_assert_int_eq(channel_tls_create(&params, &tls, &err), -THIN_E_TLS);
    ck_assert_msg(strstr(err.text, "belong") || strstr(err.text, "mismatch"), "%s",
                  err.text);
    params.cert = NULL;
    ck_assert_int_eq(channel_tls_create(&params, &tls, &err), -THIN_E_INVALID);
}
END_TEST

START_TEST(a_peer_without_tls_is_named_as_such)
{
    int fds[2];
    struct channel_tls *tls = load("a/store", true, "a", NULL);

    pair(fds);
    ck_assert_int_eq(channel_tls_start(tls, fds[1], NULL, &b, &err), 0);
    channel_tls_put(tls);
    ck_assert_int_eq(write(fds[0], "THIN\1\0\0\0aaaabbbbcccc", 20), 20);
    ck_assert_int_eq(channel_handshake(b, &err), -THIN_E_TLS);
    ck_assert_msg(strstr(err.text, "does not speak TLS") != NULL, "%s", err.text);
    close(fds[0]);
    stop();
}
END_TEST

/* Pieces of all sizes through a small pipe, both ways, to and fro. */
static void
pump(size_t total)
{
    static uint8_t out[3u << 20], in[3u << 20];
    size_t sent = 0, got = 0;
    unsigned round = 0;

    ck_assert_uint_le(total, sizeof(out));
    for (size_t i = 0; i < total; i++)
        out[i] = (uint8_t)(i * 7 + i / 251);
    while (got < total) {
        struct iovec iov[40];
        unsigned nr = 0;
        size_t at = sent;
        ssize_t n;

        /* What was not taken is offered again, with more behind it. */
        for (; nr < 40 && at < total; nr++) {
            size_t len = nr % 3 == 0 ? 60 : nr % 3 == 1 ? 4096 : (nr == 5 ? 50000 : 0);

            if (len > total - at)
                len = total - at;
            iov[nr] = (struct iovec){out + at, len};
            at += len;
        }
        n = channel_writev(a, iov, nr, &err);
        if (n > 0)
            sent += (size_t)n;
        else
            ck_assert(n == -EAGAIN || nr == 0);
        if (n == -EAGAIN)
            ck_assert(channel_wants(a) & CHANNEL_WANT_WRITE);
        if (round++ % 3 == 0 || n == -EAGAIN || sent == total) {
            size_t room = 1 + round * 977 % 70000;

            n = channel_read(b, in + got, room < total - got ? room : total - got, &err2);
            if (n > 0)
                got += (size_t)n;
            else
                ck_assert_int_eq(n, -EAGAIN);
        }
    }
    ck_assert_mem_eq(in, out, total);
}

START_TEST(what_is_sent_arrives_over_tls)
{
    struct channel *c;

    start_good();
    pump(3u << 20);
    c = a;
    a = b;
    b = c;
    pump(1u << 20);
    stop();
}
END_TEST

START_TEST(what_is_sent_arrives_in_the_open)
{
    int fds[2];

    pair(fds);
    ck_assert_int_eq(channel_plain_create(fds[0], &a), 0);
    ck_assert_int_eq(channel_plain_create(fds[1], &b), 0);
    ck_assert_int_eq(channel_handshake(a, &err), 0);
    ck_assert_str_eq(channel_identity(b), "");
    pump(3u << 20);
    stop();
}
END_TEST

/* No decrypted byte may wait where poll does not see it. */
START_TEST(what_waits_inside_is_told)
{
    static uint8_t bytes[40000];
    struct iovec iov = {bytes, sizeof(bytes)};
    ssize_t n;
    size_t got = 0;

    start_good();
    ck_assert_int_eq(channel_writev(a, &iov, 1, &err), sizeof(bytes));
    for (;;) {
        struct pollfd pfd = {.fd = channel_fd(b), .events = POLLIN};
        uint8_t small[100];

        if (!channel_pending(b) && poll(&pfd, 1, 0) == 0)
            break;
        n = channel_read(b, small, sizeof(small), &err2);
        if (n == -EAGAIN) {
            ck_assert(!channel_pending(b));
            continue;
        }
        ck_assert_int_gt(n, 0);
        got += (size_t)n;
    }
    ck_assert_uint_eq(got, sizeof(bytes));
    stop();
}
END_TEST

START_TEST(an_orderly_end_is_zero_and_a_cut_is_an_error)
{
    uint8_t buf[10] = "some";
    struct iovec iov = {buf, 5};
    int fd;

    start_good();
    ck_assert_int_eq(channel_writev(a, &iov, 1, &err), 5);
    channel_destroy(a);
    a = NULL;
    ck_assert_int_eq(channel_read(b, buf, sizeof(buf), &err2), 5);
    ck_assert(channel_pending(b)); /* the end is known and not told */
    ck_assert_int_eq(channel_read(b, buf, sizeof(buf), &err2), 0);
    ck_assert(!channel_pending(b));
    ck_assert_int_eq(channel_read(b, buf, sizeof(buf), &err2), 0);
    stop();

    start_good();
    fd = dup(channel_fd(a));
    ck_assert_int_eq(shutdown(fd, SHUT_RDWR), 0);
    close(fd);
    ck_assert_int_lt(channel_read(b, buf, sizeof(buf), &err2), 0);
    ck_assert_msg(strstr(err2.text, "cut") != NULL, "%s", err2.text);
    stop();
}
END_TEST

/* The default action of SIGPIPE would end this program. */
START_TEST(writing_to_a_lost_peer_raises_no_signal)
{
    uint8_t buf[1000] = {0};
    struct iovec iov = {buf, sizeof(buf)};
    int fds[2], r;

    signal(SIGPIPE, SIG_DFL);
    start_good();
    channel_destroy(b);
    b = NULL;
    do
        r = (int)channel_writev(a, &iov, 1, &err);
    while (r > 0);
    ck_assert_int_eq(r, -EPIPE);
    stop();
    pair(fds);
    ck_assert_int_eq(channel_plain_create(fds[0], &a), 0);
    close(fds[1]);
    ck_assert_int_eq(channel_writev(a, &iov, 1, &err), -EPIPE);
    ck_assert_int_eq(channel_writev(a, &iov, 1, &err), -EPIPE);
    stop();
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("channel");
    TCase *tc = tcase_create("channel");
    SRunner *sr = srunner_create(s);
    char command[64];
    int failed;

    tcase_add_unchecked_fixture(tc, make_certificates, NULL);
    tcase_add_test(tc, both_sides_know_each_other);
    tcase_add_test(tc, an_address_is_checked_as_an_address);
    tcase_add_test(tc, another_host_is_refused);
    tcase_add_test(tc, a_client_must_say_whom_it_means);
    tcase_add_test(tc, a_stranger_is_refused_and_told_so);
    tcase_add_test(tc, a_false_server_is_refused);
    tcase_add_test(tc, a_client_certificate_is_no_server);
    tcase_add_test(tc, a_revoked_certificate_is_refused);
    tcase_add_test(tc, bad_files_are_named);
    tcase_add_test(tc, a_peer_without_tls_is_named_as_such);
    tcase_add_test(tc, what_is_sent_arrives_over_tls);
    tcase_add_test(tc, what_is_sent_arrives_in_the_open);
    tcase_add_test(tc, what_waits_inside_is_told);
    tcase_add_test(tc, an_orderly_end_is_zero_and_a_cut_is_an_error);
    tcase_add_test(tc, writing_to_a_lost_peer_raises_no_signal);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command) || failed ? 1 : 0;
}
