/* Real clients: libnbd in this process, nbdinfo and nbdcopy as children, over sockets. */
#include <check.h>
#include <fcntl.h>
#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/random.h"
#include "tests/unit/nbd/ram_export.h"

/* ---- a small server: one thread, poll ---------------------------------------------- */

#define PEERS   16
#define IN_SIZE 65536u

struct peer {
    int fd;
    struct ram *ram;
    size_t have; /* bytes in `in` not yet consumed */
    uint8_t in[IN_SIZE];
};

struct server {
    char path[64];
    int listener;
    pthread_t thread;
    atomic_bool stop;
    struct peer *peers[PEERS];
    unsigned nr_peers;
    struct ram *first; /* has the disk that all share */
    unsigned flags;
    unsigned most_in_flight;
    unsigned direct; /* payloads received in place */
    struct thin_random rng;
};

static void
peer_add(struct server *s)
{
    int fd = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK);
    struct peer *p = calloc(1, sizeof(*p));

    THIN_ASSERT(fd >= 0);
    THIN_ASSERT(p != NULL);
    THIN_ASSERT(s->nr_peers < PEERS);
    p->fd = fd;
    p->ram = ram_create(NBD_TLS_OFF, 16);
    free(p->ram->disk);
    free(p->ram->mapped);
    p->ram->disk = s->first->disk;
    p->ram->mapped = s->first->mapped;
    p->ram->shares_disk = true;
    p->ram->flags = s->flags;
    s->peers[s->nr_peers++] = p;
}

static void
peer_drop(struct server *s, unsigned i)
{
    struct peer *p = s->peers[i];

    s->peers[i] = s->peers[--s->nr_peers];
    close(p->fd);
    ram_destroy(p->ram);
    free(p);
}

static void
peer_use_input(struct peer *p)
{
    size_t used;

    used = nbd_conn_input(p->ram->conn, p->in, p->have);
    p->have -= used;
    memmove(p->in, p->in + used, p->have);
    /* Opened at once, requests later and in any order. */
    p->ram->defer = nbd_conn_phase(p->ram->conn) != NBD_PHASE_HANDSHAKE;
}

/* False: the peer has gone. */
static bool
peer_receive(struct server *s, struct peer *p)
{
    struct iovec iov[8];
    unsigned n;
    ssize_t r;

    n = p->have == 0 ? nbd_conn_want(p->ram->conn, iov, 8) : 0;
    if (n > 0) {
        r = readv(p->fd, iov, (int)n);
        if (r > 0) {
            s->direct++;
            nbd_conn_received(p->ram->conn, (size_t)r);
        }
    } else {
        r = read(p->fd, p->in + p->have, IN_SIZE - p->have);
        if (r > 0)
            p->have += (size_t)r;
    }
    return r > 0 || (r < 0 && errno == EAGAIN);
}

static bool
peer_send(struct peer *p)
{
    struct iovec iov[64];
    struct msghdr msg = {.msg_iov = iov};
    ssize_t r;

    while ((msg.msg_iovlen = nbd_conn_output(p->ram->conn, iov, 64)) > 0) {
        r = sendmsg(p->fd, &msg, MSG_NOSIGNAL);
        if (r < 0)
            return errno == EAGAIN;
        nbd_conn_sent(p->ram->conn, (size_t)r);
    }
    return true;
}

/* False: the connection is over. */
static bool
peer_turn(struct server *s, struct peer *p, short events)
{
    struct ram *ram = p->ram;
    unsigned some;

    if ((events & (POLLIN | POLLHUP | POLLERR)) && nbd_conn_wants_input(ram->conn) &&
        p->have < IN_SIZE && !peer_receive(s, p))
        return false;
    peer_use_input(p);
    if (ram->nr_waiting > s->most_in_flight)
        s->most_in_flight = ram->nr_waiting;
    for (some = ram->nr_waiting; some > 0; some--)
        ram_answer_one(ram, (unsigned)random_below(&s->rng, ram->nr_waiting));
    if (!peer_send(p))
        return false;
    peer_use_input(p);
    return nbd_conn_phase(ram->conn) != NBD_PHASE_FINISHED;
}

static void *
server_run(void *arg)
{
    struct server *s = arg;

    while (!s->stop) {
        struct pollfd fds[PEERS + 1];
        unsigned i, nr = s->nr_peers;

        for (i = 0; i < nr; i++) {
            struct nbd_conn *conn = s->peers[i]->ram->conn;

            fds[i] = (struct pollfd){.fd = s->peers[i]->fd};
            if (nbd_conn_wants_input(conn) || nbd_conn_phase(conn) >= NBD_PHASE_DRAINING)
                fds[i].events |= POLLIN;
            if (nbd_conn_has_output(conn))
                fds[i].events |= POLLOUT;
        }
        fds[nr] = (struct pollfd){.fd = s->listener, .events = POLLIN};
        if (poll(fds, nr + 1, 5) < 0)
            continue;
        for (i = nr; i-- > 0;)
            if ((fds[i].revents || s->peers[i]->ram->nr_waiting > 0) &&
                !peer_turn(s, s->peers[i], fds[i].revents))
                peer_drop(s, i);
        if (fds[nr].revents & POLLIN)
            peer_add(s);
    }
    return NULL;
}

static struct server *
server_start(unsigned flags)
{
    static unsigned number;
    struct server *s = calloc(1, sizeof(*s));
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    THIN_ASSERT(s != NULL);
    random_seed(&s->rng, 42);
    s->flags = flags;
    s->first = ram_create(NBD_TLS_OFF, 1);
    snprintf(s->path, sizeof(s->path), "/tmp/thin-nbd-test-%d-%u", (int)getpid(),
             number++);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", s->path);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(s->listener, 0);
    ck_assert_int_eq(bind(s->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
    ck_assert_int_eq(listen(s->listener, 16), 0);
    ck_assert_int_eq(pthread_create(&s->thread, NULL, server_run, s), 0);
    return s;
}

static void
server_stop(struct server *s)
{
    s->stop = true;
    pthread_join(s->thread, NULL);
    while (s->nr_peers > 0)
        peer_drop(s, 0);
    close(s->listener);
    unlink(s->path);
    ram_destroy(s->first);
    free(s);
}

/* ---- libnbd ------------------------------------------------------------------------ */

/* What libnbd says when something fails. */
#define nbd_ok(expr) ck_assert_msg((expr) != -1, "%s: %s", #expr, nbd_get_error())

static struct nbd_handle *
client_start(struct server *s, bool structured)
{
    struct nbd_handle *nbd = nbd_create();

    ck_assert_ptr_nonnull(nbd);
    nbd_ok(nbd_set_request_structured_replies(nbd, structured));
    if (structured) {
        nbd_ok(nbd_add_meta_context(nbd, "base:allocation"));
        nbd_ok(nbd_add_meta_context(nbd, "thin:delta:monday"));
    }
    nbd_ok(nbd_set_export_name(nbd, "e0"));
    nbd_ok(nbd_connect_unix(nbd, s->path));
    return nbd;
}

static void
client_end(struct nbd_handle *nbd)
{
    nbd_ok(nbd_shutdown(nbd, 0));
    nbd_close(nbd);
}

struct seen {
    unsigned data, holes, errors;
    uint64_t sum;
    char contexts[64];
    uint32_t nr, extents[64];
};

static int
on_chunk(void *arg, const void *buf, size_t len, uint64_t offset, unsigned status,
         int *error)
{
    struct seen *seen = arg;

    (void)buf;
    (void)offset;
    (void)error;
    if (status == LIBNBD_READ_DATA)
        seen->data++;
    else if (status == LIBNBD_READ_HOLE)
        seen->holes++;
    else
        seen->errors++;
    seen->sum += len;
    return 0;
}

START_TEST(libnbd_reads_data_and_holes)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    struct nbd_handle *nbd = client_start(s, true);
    static uint8_t buf[RAM_SIZE], want[RAM_SIZE];
    struct seen seen = {0};

    ck_assert_int_eq(nbd_get_size(nbd), RAM_SIZE);
    ck_assert_int_eq(nbd_get_structured_replies_negotiated(nbd), 1);
    ck_assert_int_eq(nbd_can_fua(nbd), 1);
    ck_assert_int_eq(nbd_can_df(nbd), 1);
    ck_assert_int_eq(nbd_can_fast_zero(nbd), 1);
    ck_assert_int_eq(nbd_can_multi_conn(nbd), 1);
    ck_assert_int_eq(nbd_can_cache(nbd), 1);
    ck_assert_int_eq(nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM), 1);
    ck_assert_int_eq(nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM), 32 << 20);
    memset(want + 100000, 'w', 300000);
    nbd_ok(nbd_pwrite(nbd, want + 100000, 300000, 100000, LIBNBD_CMD_FLAG_FUA));
    memset(buf, 1, sizeof(buf));
    nbd_ok(nbd_pread_structured(
        nbd, buf, RAM_SIZE, 0,
        (nbd_chunk_callback){.callback = on_chunk, .user_data = &seen}, 0));
    ck_assert_mem_eq(buf, want, RAM_SIZE);
    ck_assert_uint_eq(seen.data, 1);
    ck_assert_uint_eq(seen.holes, 2);
    ck_assert_uint_eq(seen.sum, RAM_SIZE);
    memset(&seen, 0, sizeof(seen));
    nbd_ok(nbd_pread_structured(
        nbd, buf, RAM_SIZE, 0,
        (nbd_chunk_callback){.callback = on_chunk, .user_data = &seen},
        LIBNBD_CMD_FLAG_DF));
    ck_assert_mem_eq(buf, want, RAM_SIZE);
    ck_assert_uint_eq(seen.data, 1);
    ck_assert_uint_eq(seen.holes, 0);
    client_end(nbd);
    ck_assert_uint_gt(s->direct, 0);
    server_stop(s);
}
END_TEST

START_TEST(libnbd_without_structured_replies_sees_zeros)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    struct nbd_handle *nbd = client_start(s, false);
    static uint8_t buf[RAM_SIZE], want[RAM_SIZE];

    memset(want + 5, 'w', 100);
    nbd_ok(nbd_pwrite(nbd, want + 5, 100, 5, 0));
    nbd_ok(nbd_pread(nbd, buf, RAM_SIZE, 0, 0));
    ck_assert_mem_eq(buf, want, RAM_SIZE);
    client_end(nbd);
    server_stop(s);
}
END_TEST

static int
on_extents(void *arg, const char *context, uint64_t offset, uint32_t *entries,
           size_t nr_entries, int *error)
{
    struct seen *seen = arg;

    (void)offset;
    (void)error;
    strncat(seen->contexts, context, sizeof(seen->contexts) - strlen(seen->contexts) - 1);
    seen->nr = (uint32_t)min_u64(nr_entries, 64);
    memcpy(seen->extents, entries, seen->nr * sizeof(entries[0]));
    return 0;
}

START_TEST(libnbd_learns_the_block_status_of_each_context)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    struct nbd_handle *nbd = client_start(s, true);
    const nbd_extent_callback cb = {.callback = on_extents};
    nbd_extent_callback mine = cb;
    struct seen seen = {0};
    uint8_t block[RAM_BLOCK] = {1};

    mine.user_data = &seen;
    nbd_ok(nbd_pwrite(nbd, block, RAM_BLOCK, RAM_BLOCK * 3, 0));
    nbd_ok(nbd_block_status(nbd, RAM_SIZE, 0, mine, 0));
    ck_assert_str_eq(seen.contexts, "base:allocationthin:delta:monday");
    ck_assert_uint_eq(seen.nr, 6);
    ck_assert_uint_eq(seen.extents[0], 3 * RAM_BLOCK);
    ck_assert_uint_eq(seen.extents[1], 0);
    ck_assert_uint_eq(seen.extents[2], RAM_BLOCK);
    ck_assert_uint_eq(seen.extents[3], 1);
    nbd_ok(nbd_block_status(nbd, RAM_SIZE, 0, mine, LIBNBD_CMD_FLAG_REQ_ONE));
    ck_assert_uint_eq(seen.nr, 2);
    client_end(nbd);
    server_stop(s);
}
END_TEST

START_TEST(libnbd_zeroes_trims_flushes_and_caches)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    struct nbd_handle *nbd = client_start(s, true);
    static uint8_t buf[RAM_SIZE], zero[RAM_SIZE];
    int error;

    memset(buf, 'x', sizeof(buf));
    nbd_ok(nbd_pwrite(nbd, buf, RAM_SIZE, 0, 0));
    nbd_ok(nbd_zero(nbd, RAM_SIZE / 2, 0, LIBNBD_CMD_FLAG_NO_HOLE | LIBNBD_CMD_FLAG_FUA));
    nbd_ok(nbd_zero(nbd, RAM_SIZE / 4, RAM_SIZE / 2, LIBNBD_CMD_FLAG_FAST_ZERO));
    nbd_ok(nbd_trim(nbd, RAM_SIZE / 4, RAM_SIZE / 4 * 3, LIBNBD_CMD_FLAG_FUA));
    nbd_ok(nbd_flush(nbd, 0));
    nbd_ok(nbd_cache(nbd, RAM_SIZE, 0, 0));
    nbd_ok(nbd_pread(nbd, buf, RAM_SIZE, 0, 0));
    ck_assert_mem_eq(buf, zero, RAM_SIZE);
    for (unsigned b = 0; b < RAM_BLOCKS; b++)
        ck_assert_uint_eq(s->first->mapped[b], b < RAM_BLOCKS / 2);

    /* Refused by the server, not by libnbd: and the connection goes on. */
    nbd_ok(nbd_set_strict_mode(nbd, 0));
    ck_assert_int_eq(nbd_pwrite(nbd, buf, 512, RAM_SIZE, 0), -1);
    ck_assert_int_eq(nbd_get_errno(), ENOSPC);
    ck_assert_int_eq(nbd_pread(nbd, buf, 512, RAM_SIZE, 0), -1);
    error = nbd_get_errno();
    ck_assert_int_eq(error, EINVAL);
    nbd_ok(nbd_pread(nbd, buf, 512, 0, 0));
    client_end(nbd);
    server_stop(s);
}
END_TEST

START_TEST(a_read_only_export_is_read_only_for_libnbd)
{
    struct server *s = server_start(NBD_EXPORT_READ_ONLY | NBD_EXPORT_FLUSH);
    struct nbd_handle *nbd = client_start(s, true);
    uint8_t buf[512] = {0};

    ck_assert_int_eq(nbd_is_read_only(nbd), 1);
    nbd_ok(nbd_set_strict_mode(nbd, 0));
    ck_assert_int_eq(nbd_pwrite(nbd, buf, 512, 0, 0), -1);
    ck_assert_int_eq(nbd_get_errno(), EPERM);
    nbd_ok(nbd_pread(nbd, buf, 512, 0, 0));
    client_end(nbd);
    server_stop(s);
}
END_TEST

/* Many requests at once, answered in any order, more than the server holds. */
START_TEST(many_requests_in_flight_are_all_answered)
{
    static uint8_t data[200][RAM_BLOCK], back[200][RAM_BLOCK];
    struct server *s = server_start(RAM_ALL_FLAGS);
    struct nbd_handle *nbd = client_start(s, _i == 1);

    for (unsigned i = 0; i < 200; i++) {
        memset(data[i], (int)i + 1, RAM_BLOCK);
        nbd_ok(nbd_aio_pwrite(nbd, data[i], RAM_BLOCK, (uint64_t)i * RAM_BLOCK,
                              NBD_NULL_COMPLETION, i % 3 ? 0 : LIBNBD_CMD_FLAG_FUA));
    }
    while (nbd_aio_in_flight(nbd) > 0) {
        int64_t cookie;

        nbd_ok(nbd_poll(nbd, 1000));
        while ((cookie = nbd_aio_peek_command_completed(nbd)) > 0)
            nbd_ok(nbd_aio_command_completed(nbd, (uint64_t)cookie));
    }
    for (unsigned i = 0; i < 200; i++)
        nbd_ok(nbd_aio_pread(nbd, back[i], RAM_BLOCK, (uint64_t)i * RAM_BLOCK,
                             NBD_NULL_COMPLETION, 0));
    while (nbd_aio_in_flight(nbd) > 0) {
        int64_t cookie;

        nbd_ok(nbd_poll(nbd, 1000));
        while ((cookie = nbd_aio_peek_command_completed(nbd)) > 0)
            nbd_ok(nbd_aio_command_completed(nbd, (uint64_t)cookie));
    }
    ck_assert_mem_eq(back, data, sizeof(data));
    client_end(nbd);
    ck_assert_uint_gt(s->most_in_flight, 4);
    ck_assert_uint_le(s->most_in_flight, 16);
    server_stop(s);
}
END_TEST

START_TEST(a_client_that_breaks_off_leaves_nothing_behind)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    static uint8_t buf[RAM_SIZE];

    for (unsigned i = 0; i < 10; i++) {
        struct nbd_handle *nbd = client_start(s, true);

        for (unsigned k = 0; k < 20; k++)
            nbd_ok(nbd_aio_pread(nbd, buf, RAM_SIZE / 2, 0, NBD_NULL_COMPLETION, 0));
        nbd_close(nbd);
    }
    server_stop(s); /* asserts that all buffers came back */
}
END_TEST

static int
on_export(void *arg, const char *name, const char *description)
{
    (void)description;
    strcat(arg, name);
    return 0;
}

START_TEST(libnbd_negotiates_step_by_step)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    struct nbd_handle *nbd = nbd_create();
    char names[64] = "";

    nbd_ok(nbd_set_opt_mode(nbd, true));
    nbd_ok(nbd_connect_unix(nbd, s->path));
    ck_assert_int_eq(
        nbd_opt_list(nbd, (nbd_list_callback){.callback = on_export, .user_data = names}),
        3);
    ck_assert_str_eq(names, "e0e1e2");
    nbd_ok(nbd_set_export_name(nbd, "absent"));
    ck_assert_int_eq(nbd_opt_info(nbd), -1);
    ck_assert_int_eq(nbd_get_errno(), ENOENT);
    nbd_ok(nbd_set_full_info(nbd, true));
    nbd_ok(nbd_set_export_name(nbd, ""));
    nbd_ok(nbd_opt_info(nbd));
    ck_assert_int_eq(nbd_get_size(nbd), RAM_SIZE);
    nbd_ok(nbd_opt_go(nbd));
    client_end(nbd);

    nbd = nbd_create();
    nbd_ok(nbd_set_opt_mode(nbd, true));
    nbd_ok(nbd_connect_unix(nbd, s->path));
    nbd_ok(nbd_opt_abort(nbd));
    nbd_close(nbd);
    server_stop(s);
}
END_TEST

/* ---- programs ---------------------------------------------------------------------- */

/* Runs a shell line, its output into `text`; returns the exit status. */
static int
shell(const char *line, char *text, size_t size)
{
    FILE *f = popen(line, "r");
    size_t n;

    ck_assert_ptr_nonnull(f);
    n = fread(text, 1, size - 1, f);
    text[n] = 0;
    return pclose(f);
}

START_TEST(nbdinfo_is_content)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    static char text[8192];
    char line[256];

    snprintf(line, sizeof(line), "nbdinfo 'nbd+unix:///e0?socket=%s' 2>&1", s->path);
    ck_assert_msg(shell(line, text, sizeof(text)) == 0, "%s", text);
    ck_assert_msg(strstr(text, "base:allocation") != NULL, "%s", text);
    ck_assert_msg(strstr(text, "can_fast_zero: true") != NULL, "%s", text);
    ck_assert_msg(strstr(text, "block_size_preferred: 4096") != NULL, "%s", text);
    snprintf(line, sizeof(line), "nbdinfo --list --json 'nbd+unix:///?socket=%s' 2>&1",
             s->path);
    shell(line, text, sizeof(text));
    ck_assert_msg(strstr(text, "\"e0\"") != NULL, "%s", text);
    snprintf(line, sizeof(line), "nbdinfo --map --totals 'nbd+unix:///e0?socket=%s' 2>&1",
             s->path);
    ck_assert_msg(shell(line, text, sizeof(text)) == 0, "%s", text);
    ck_assert_msg(strstr(text, "100.0%   3 hole,zero") != NULL, "%s", text);
    server_stop(s);
}
END_TEST

START_TEST(nbdcopy_brings_back_what_it_brought)
{
    struct server *s = server_start(RAM_ALL_FLAGS);
    struct thin_random rng;
    static uint8_t data[RAM_SIZE], back[RAM_SIZE];
    char line[512], text[2048], from[96], to[96];
    int fd;

    random_seed(&rng, 7);
    for (size_t b = 0; b < RAM_BLOCKS; b++)
        for (size_t i = 0; i < RAM_BLOCK && random_below(&rng, 3) == 0; i++)
            data[b * RAM_BLOCK + i] = (uint8_t)random_u64(&rng);
    snprintf(from, sizeof(from), "%s-from", s->path);
    snprintf(to, sizeof(to), "%s-to", s->path);
    fd = open(from, O_CREAT | O_RDWR, 0600);
    ck_assert_int_eq(write(fd, data, RAM_SIZE), RAM_SIZE);
    close(fd);
    snprintf(
        line, sizeof(line),
        "u='nbd+unix:///e0?socket=%s'; nbdcopy --flush --connections=4 %s \"$u\" 2>&1 &&"
        " nbdcopy --request-size=65536 \"$u\" %s 2>&1 && nbdcopy \"$u\" null: 2>&1",
        s->path, from, to);
    ck_assert_msg(shell(line, text, sizeof(text)) == 0, "%s", text);
    fd = open(to, O_RDONLY);
    ck_assert_int_eq(read(fd, back, RAM_SIZE), RAM_SIZE);
    close(fd);
    ck_assert_mem_eq(back, data, RAM_SIZE);
    unlink(from);
    unlink(to);
    server_stop(s);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("nbd_libnbd");
    TCase *t = tcase_create("clients");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 30);
    tcase_add_test(t, libnbd_reads_data_and_holes);
    tcase_add_test(t, libnbd_without_structured_replies_sees_zeros);
    tcase_add_test(t, libnbd_learns_the_block_status_of_each_context);
    tcase_add_test(t, libnbd_zeroes_trims_flushes_and_caches);
    tcase_add_test(t, a_read_only_export_is_read_only_for_libnbd);
    tcase_add_loop_test(t, many_requests_in_flight_are_all_answered, 0, 2);
    tcase_add_test(t, a_client_that_breaks_off_leaves_nothing_behind);
    tcase_add_test(t, libnbd_negotiates_step_by_step);
    tcase_add_test(t, nbdinfo_is_content);
    tcase_add_test(t, nbdcopy_brings_back_what_it_brought);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
