#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/limits.h"
#include "proto/socket.h"

static char dir[] = "/tmp/test-socket-XXXXXX";
static struct thin_error err;
static struct socket_address address;

START_TEST(addresses_are_read_as_they_are_written)
{
    static const struct {
        const char *text;
        bool tls;
        const char *host; /* NULL: refused */
        unsigned port;
        const char *again;
    } cases[] = {
        {"tls://store:1", true, "store", 1, "tls://store:1"},
        {"tls://store", true, "store", 10819, "tls://store:10819"},
        {"tls:store:7", true, "store", 7, "tls://store:7"},
        {"tcp:127.0.0.1:65535", false, "127.0.0.1", 65535, "tcp:127.0.0.1:65535"},
        {"tcp://[::1]:80", false, "::1", 80, "tcp:[::1]:80"},
        {"tls://[fe80::1%eth0]", true, "fe80::1%eth0", 10819, NULL},
        {"tcp:*:0", false, "", 0, "tcp:*:0"},
        {"tcp::5", false, "", 5, "tcp:*:5"},
        {"tls://::1:80", false, NULL, 0, NULL},
        {"tls://[::1", false, NULL, 0, NULL},
        {"tls://[::1]x", false, NULL, 0, NULL},
        {"tls://[store]:1", false, NULL, 0, NULL},
        {"tls://store:", false, NULL, 0, NULL},
        {"tls://store:65536", false, NULL, 0, NULL},
        {"tls://store:-1", false, NULL, 0, NULL},
        {"tls://store:1x", false, NULL, 0, NULL},
        {"tls://a b:1", false, NULL, 0, NULL},
        {"tls://store/x:1", false, NULL, 0, NULL},
        {"store:1", false, NULL, 0, NULL},
        {"http://store:1", false, NULL, 0, NULL},
        {"", false, NULL, 0, NULL},
    };
    char buf[SOCKET_TEXT_MAX];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int r = socket_address_parse(cases[i].text, PROTO_PORT, &address, &err);

        if (!cases[i].host) {
            ck_assert_msg(r == -THIN_E_INVALID, "%s: %d", cases[i].text, r);
            continue;
        }
        ck_assert_msg(r == 0, "%s: %s", cases[i].text, err.text);
        ck_assert_int_eq(address.kind, SOCKET_TCP);
        ck_assert(address.tls == cases[i].tls);
        ck_assert_str_eq(address.host, cases[i].host);
        ck_assert_uint_eq(address.port, cases[i].port);
        if (cases[i].again)
            ck_assert_str_eq(socket_address_text(&address, buf, sizeof(buf)),
                             cases[i].again);
    }
    ck_assert_int_eq(socket_address_parse("unix:/run/x", 0, &address, &err), 0);
    ck_assert_int_eq(address.kind, SOCKET_UNIX);
    ck_assert_str_eq(socket_address_text(&address, buf, sizeof(buf)), "unix:/run/x");
    ck_assert_int_eq(socket_address_parse("unix:", 0, &address, &err), -THIN_E_INVALID);
    ck_assert_int_eq(socket_address_parse_host("store", 0, &address, &err),
                     -THIN_E_INVALID);
}
END_TEST

START_TEST(a_path_too_long_for_a_socket_is_refused)
{
    char text[200] = "unix:/";

    memset(text + 6, 'x', 107);
    text[5 + 107] = '\0';
    ck_assert_int_eq(socket_address_parse(text, 0, &address, &err), 0);
    text[5 + 107] = 'x';
    text[5 + 108] = '\0';
    ck_assert_int_eq(socket_address_parse(text, 0, &address, &err), -THIN_E_INVALID);
    ck_assert_ptr_nonnull(strstr(err.text, "108"));
}
END_TEST

static void
unix_address(const char *name)
{
    char text[200];

    snprintf(text, sizeof(text), "unix:%s/%s", dir, name);
    ck_assert_int_eq(socket_address_parse(text, 0, &address, &err), 0);
}

static int
listen_now(int *fd)
{
    struct socket_listen_params params = {.mode = 0660};
    int fds[SOCKET_ADDRESSES_MAX];
    unsigned nr = 0;
    int r = socket_listen(&address, &params, fds, &nr, &err);

    if (r == 0) {
        ck_assert_uint_ge(nr, 1);
        *fd = fds[0];
        for (unsigned i = 1; i < nr; i++)
            close(fds[i]);
    }
    return r;
}

START_TEST(a_stale_socket_is_replaced_and_a_live_one_is_not)
{
    int fd, second;
    struct stat st;
    FILE *f;

    unix_address("sock");
    ck_assert_msg(listen_now(&fd) == 0, "%s", err.text);
    ck_assert_int_eq(stat(address.path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 07777, 0660);
    ck_assert_int_eq(listen_now(&second), -THIN_E_BUSY);
    ck_assert_ptr_nonnull(strstr(err.text, "another process listens"));
    close(fd);
    ck_assert_int_eq(stat(address.path, &st), 0); /* left behind, as after a kill */
    ck_assert_msg(listen_now(&fd) == 0, "%s", err.text);
    close(fd);

    unix_address("file");
    f = fopen(address.path, "w");
    ck_assert_ptr_nonnull(f);
    fputs("precious", f);
    fclose(f);
    ck_assert_int_eq(listen_now(&fd), -THIN_E_EXISTS);
    ck_assert_int_eq(stat(address.path, &st), 0);
    ck_assert_int_eq(st.st_size, 8);

    unix_address("no/such/folder");
    ck_assert_int_eq(listen_now(&fd), -ENOENT);
}
END_TEST

START_TEST(a_full_backlog_is_somebody_who_listens)
{
    struct socket_listen_params params = {.backlog = 1};
    struct socket_targets targets;
    int fds[SOCKET_ADDRESSES_MAX], clients[8], nr_clients = 0, fd;
    unsigned nr;

    unix_address("full");
    ck_assert_int_eq(socket_listen(&address, &params, fds, &nr, &err), 0);
    ck_assert_int_eq(socket_resolve(&address, false, &targets, &err), 0);
    while (nr_clients < 8 &&
           socket_connect_start(&targets.list[0], &clients[nr_clients], &err) == 0)
        nr_clients++;
    ck_assert_int_lt(nr_clients, 8);
    ck_assert_int_eq(listen_now(&fd), -THIN_E_BUSY);
    while (nr_clients > 0)
        close(clients[--nr_clients]);
    close(fds[0]);
}
END_TEST

static int
accept_now(int fd)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    int got = -1;

    ck_assert_int_eq(poll(&pfd, 1, 30000), 1);
    ck_assert_int_eq(socket_accept(fd, &got), 0);
    return got;
}

static int
option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof(value);

    ck_assert_int_eq(getsockopt(fd, level, name, &value, &len), 0);
    return value;
}

START_TEST(tcp_connections_are_tuned_and_named)
{
    int fd, client, peer;
    char buf[SOCKET_TEXT_MAX], port[16];
    struct socket_credentials cred;

    ck_assert_int_eq(socket_address_parse("tcp:127.0.0.1:0", 0, &address, &err), 0);
    ck_assert_int_eq(listen_now(&fd), 0);
    ck_assert_int_eq(socket_accept(fd, &peer), -EAGAIN);
    address.port = socket_local_port(fd);
    ck_assert_uint_ne(address.port, 0);
    ck_assert_int_eq(socket_connect_wait(&address, 1000, &client, &err), 0);
    peer = accept_now(fd);
    ck_assert_int_eq(option(peer, IPPROTO_TCP, TCP_NODELAY), 1);
    ck_assert_int_eq(option(client, IPPROTO_TCP, TCP_NODELAY), 1);
    ck_assert_int_eq(option(peer, SOL_SOCKET, SO_KEEPALIVE), 1);
    ck_assert_int_eq(option(peer, IPPROTO_TCP, TCP_USER_TIMEOUT), PROTO_KEEPALIVE_MS);
    ck_assert(fcntl(peer, F_GETFL) & O_NONBLOCK);
    ck_assert(fcntl(peer, F_GETFD) & FD_CLOEXEC);
    snprintf(port, sizeof(port), ":%u", socket_local_port(client));
    ck_assert_ptr_nonnull(strstr(socket_peer_text(peer, buf, sizeof(buf)), port));
    ck_assert_ptr_nonnull(strstr(buf, "tcp:127.0.0.1:"));
    ck_assert_int_eq(socket_peer_credentials(peer, &cred), -THIN_E_INVALID);
    ck_assert(!socket_peer_in_group(peer, getgid()));
    close(client);
    close(peer);
    close(fd);
    ck_assert_int_eq(socket_connect_wait(&address, 1000, &client, &err), -ECONNREFUSED);
}
END_TEST

START_TEST(unix_peers_are_known)
{
    int fd, client, peer;
    struct socket_credentials cred;
    char buf[SOCKET_TEXT_MAX];

    unix_address("peers");
    ck_assert_int_eq(listen_now(&fd), 0);
    ck_assert_int_eq(socket_connect_wait(&address, 1000, &client, &err), 0);
    peer = accept_now(fd);
    ck_assert_int_eq(socket_peer_credentials(peer, &cred), 0);
    ck_assert_int_eq(cred.uid, getuid());
    ck_assert(socket_peer_in_group(peer, getgid()));
    ck_assert(!socket_peer_in_group(peer, 4242424));
    ck_assert_ptr_nonnull(strstr(socket_peer_text(peer, buf, sizeof(buf)), "uid="));
    ck_assert_ptr_nonnull(strstr(socket_local_text(fd, buf, sizeof(buf)), address.path));
    close(client);
    close(peer);
    close(fd);
}
END_TEST

START_TEST(both_families_may_listen_on_one_port)
{
    struct socket_listen_params params = {.backlog = 0};
    int fds[SOCKET_ADDRESSES_MAX], fd;
    unsigned nr = 0;

    ck_assert_int_eq(socket_address_parse_host("127.0.0.1:0", 0, &address, &err), 0);
    ck_assert_int_eq(listen_now(&fd), 0);
    ck_assert_int_eq(
        socket_address_parse_host("*", socket_local_port(fd), &address, &err), 0);
    close(fd);
    ck_assert_msg(socket_listen(&address, &params, fds, &nr, &err) == 0, "%s", err.text);
    ck_assert_uint_ge(nr, 1);
    while (nr > 0)
        close(fds[--nr]);
}
END_TEST

START_TEST(an_unknown_host_is_told_by_name)
{
    int fd;

    ck_assert_int_eq(
        socket_address_parse("tcp:no-such-host.invalid:1", 0, &address, &err), 0);
    ck_assert_int_eq(socket_connect_wait(&address, 1000, &fd, &err), -THIN_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.text, "no-such-host.invalid"));
}
END_TEST

static void
set_up(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void
tear_down(void)
{
    char command[64];

    snprintf(command, sizeof(command), "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

int
main(void)
{
    Suite *s = suite_create("socket");
    TCase *tc = tcase_create("socket");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_unchecked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 30);
    tcase_add_test(tc, addresses_are_read_as_they_are_written);
    tcase_add_test(tc, a_path_too_long_for_a_socket_is_refused);
    tcase_add_test(tc, a_stale_socket_is_replaced_and_a_live_one_is_not);
    tcase_add_test(tc, a_full_backlog_is_somebody_who_listens);
    tcase_add_test(tc, tcp_connections_are_tuned_and_named);
    tcase_add_test(tc, unix_peers_are_known);
    tcase_add_test(tc, both_families_may_listen_on_one_port);
    tcase_add_test(tc, an_unknown_host_is_told_by_name);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
