/*
 * Servers of the NBD device that fall silent, die and come back, or lie: what was owed is
 * told, the rest goes on.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "core/base/bytes.h"
#include "tests/unit/device/nbd_fixture.h"

/* A regular file of 1 MiB, so that a server which comes back has what it had. */
static void
make_file(void)
{
    char path[160];
    int fd;

    snprintf(path, sizeof(path), "%s/disk", server.dir);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, MIB), 0);
    close(fd);
}

/* ---- lost connections ---------------------------------------------------------------------------- */

static const char *const file_args = "file $DIR/disk";

START_TEST(a_clean_device_connects_again)
{
    struct request q, f;

    setup();
    make_file();
    serve(file_args);
    for (unsigned round = 0; round < 3; round++) {
        ck_assert_int_eq(device_write_wait(dev, 4096, a + round, 4096, 0), 0);
        ck_assert_int_eq(device_flush_wait(dev), 0);
        nbdkit_kill(&server);
        start(&q, DEVICE_READ, 4096, b, 4096);
        start(&f, DEVICE_FLUSH, 0, NULL, 0);
        run_for_ms(50);
        ck_assert_uint_eq(q.nr_done, 0);
        nbdkit_start(&server, file_args);
        ck_assert_int_eq(wait_for(&q), 0);
        ck_assert_int_eq(wait_for(&f), 0);
        ck_assert_mem_eq(b, a + round, 4096);
    }
    /* FUA owes nothing either; and a write that was not sent waits. */
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, DEVICE_FUA), 0);
    nbdkit_kill(&server);
    run_for_ms(20);
    start(&q, DEVICE_WRITE, 8192, a, 4096);
    nbdkit_start(&server, file_args);
    ck_assert_int_eq(wait_for(&q), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    ck_assert(!dev->lost);
    teardown();
}
END_TEST

START_TEST(reads_in_flight_are_asked_again)
{
    enum { N = 20 };
    static struct request q[N];
    char args[200];

    setup();
    make_file();
    params.connections = 2;
    serve(file_args);
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, DEVICE_FUA), 0);
    nbdkit_kill(&server);
    snprintf(args, sizeof(args), "--filter=delay %s rdelay=2", file_args);
    nbdkit_start(&server, args);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    for (unsigned i = 0; i < N; i++)
        start(&q[i], DEVICE_READ, i * 32768, b + i * 32768, 32768);
    run_for_ms(100);
    nbdkit_kill(&server);
    run_for_ms(20);
    nbdkit_start(&server, file_args);
    for (unsigned i = 0; i < N; i++)
        ck_assert_int_eq(wait_for(&q[i]), 0);
    ck_assert_mem_eq(a, b, N * 32768);
    ck_assert(!dev->lost);
    teardown();
}
END_TEST

START_TEST(a_flush_after_lost_writes_fails)
{
    struct request f, r;

    setup();
    make_file();
    serve(file_args);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    nbdkit_kill(&server);
    nbdkit_start(&server, file_args);
    start(&f, DEVICE_FLUSH, 0, NULL, 0);
    start(&r, DEVICE_READ, 0, b, 4096);
    ck_assert_int_eq(wait_for(&f), -THIN_E_LOST);
    ck_assert_int_eq(wait_for(&r), -THIN_E_LOST);
    ck_assert(dev->lost);
    ck_assert_int_eq(device_flush_wait(dev), -THIN_E_LOST);
    ck_assert_int_eq(device_read_wait(dev, 0, b, 512), -THIN_E_LOST);
    device_close_wait(take(dev));
    must_open();
    ck_assert_int_eq(device_flush_wait(dev), 0);
    teardown();
}
END_TEST

/* Also when nothing is asked of it, and when the loss is seen long before the flush. */
START_TEST(an_idle_device_that_owes_writes_is_lost)
{
    setup();
    make_file();
    serve(file_args);
    ck_assert_int_eq(device_zero_wait(dev, 0, 4096, 0), 0);
    nbdkit_kill(&server);
    nbdkit_start(&server, file_args);
    run_for_ms(50);
    ck_assert(dev->lost);
    ck_assert_int_eq(device_flush_wait(dev), -THIN_E_LOST);
    teardown();
}
END_TEST

START_TEST(a_write_in_flight_is_not_sent_twice)
{
    static struct request q[8];

    setup();
    serve("--filter=log --filter=delay memory 1M wdelay=5 logfile=$DIR/log");
    for (unsigned i = 0; i < 8; i++)
        start(&q[i], DEVICE_WRITE, i * 65536, a, 65536);
    run_for_ms(50);
    nbdkit_kill(&server);
    nbdkit_start(&server, "memory 1M");
    for (unsigned i = 0; i < 8; i++)
        ck_assert_int_eq(wait_for(&q[i]), -THIN_E_LOST);
    ck_assert(dev->lost);
    teardown();
}
END_TEST

/* The flush covers what had ended when it was sent, not the write that ended since. */
START_TEST(a_flush_does_not_cover_later_writes)
{
    struct request f;

    setup();
    make_file();
    serve("eval get_size='echo 1048576' can_write='exit 0' can_flush='exit 0' "
          "thread_model='echo parallel' "
          "pread='dd if=/dev/zero bs=$3 count=1 status=none' pwrite='cat >/dev/null' "
          "flush='sleep 0.5'");
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    start(&f, DEVICE_FLUSH, 0, NULL, 0);
    ck_assert_int_eq(device_write_wait(dev, 4096, a, 4096, 0), 0);
    ck_assert_uint_eq(f.nr_done, 0);
    ck_assert_int_eq(wait_for(&f), 0);
    nbdkit_kill(&server);
    run_for_ms(50);
    ck_assert(dev->lost);
    teardown();
}
END_TEST

START_TEST(a_shrunk_export_is_another)
{
    setup();
    serve("memory 1M");
    nbdkit_kill(&server);
    nbdkit_start(&server, "memory 512K");
    ck_assert_int_eq(device_read_wait(dev, 0, b, 512), -THIN_E_LOST);
    teardown();
}
END_TEST

static uint64_t seen_size;

static void
see_size(struct device *d, uint64_t size, void *arg)
{
    ck_assert_ptr_eq(d, dev);
    ck_assert_ptr_eq(arg, &seen_size);
    seen_size = size;
}

START_TEST(a_grown_export_is_told_and_taken)
{
    setup();
    serve("memory 1M");
    dev->resized = see_size;
    dev->resized_arg = &seen_size;
    nbdkit_kill(&server);
    nbdkit_start(&server, "memory 2M");
    ck_assert_int_eq(device_read_wait(dev, 0, b, 512), 0);
    run_for_ms(1);
    ck_assert_uint_eq(seen_size, 2 * MIB);
    ck_assert_uint_eq(dev->size, MIB);
    ck_assert_int_eq(device_grow_wait(dev, 3 * MIB), -THIN_E_UNSUPPORTED);
    ck_assert_int_eq(device_grow_wait(dev, 2 * MIB), 0);
    ck_assert_uint_eq(dev->size, 2 * MIB);
    ck_assert_int_eq(device_read_wait(dev, MIB, b, MIB), 0);
    teardown();
}
END_TEST

START_TEST(waiting_for_a_server_ends)
{
    struct request q;

    setup();
    params.answer_timeout_ms = 200;
    serve("memory 1M");
    nbdkit_kill(&server);
    start(&q, DEVICE_READ, 0, b, 4096);
    ck_assert_int_eq(wait_for(&q), -THIN_E_TIMED_OUT);
    start(&q, DEVICE_FLUSH, 0, NULL, 0);
    ck_assert_int_eq(wait_for(&q), -THIN_E_TIMED_OUT);
    nbdkit_start(&server, "memory 1M");
    run_for_ms(1000);
    ck_assert_int_eq(device_read_wait(dev, 0, b, 4096), 0);
    teardown();
}
END_TEST

static void
stop_server(void)
{
    int status;

    kill(server.pid, SIGSTOP);
    ck_assert_int_eq(waitpid(server.pid, &status, WUNTRACED), server.pid);
    ck_assert(WIFSTOPPED(status));
}

START_TEST(a_silent_server_counts_as_gone)
{
    struct request q;

    setup();
    params.answer_timeout_ms = 200;
    params.connect_timeout_ms = 200;
    serve("memory 1M");
    stop_server();
    start(&q, DEVICE_READ, 0, b, 4096);
    ck_assert_int_eq(wait_for(&q), -THIN_E_TIMED_OUT);
    kill(server.pid, SIGCONT);
    run_for_ms(1000);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    stop_server();
    start(&q, DEVICE_FLUSH, 0, NULL, 0);
    ck_assert_int_eq(wait_for(&q), -THIN_E_LOST);
    kill(server.pid, SIGCONT);
    teardown();
}
END_TEST

START_TEST(closing_does_not_wait_for_a_server_to_come_back)
{
    struct request q;
    uint64_t began;

    setup();
    serve("memory 1M");
    nbdkit_kill(&server);
    start(&q, DEVICE_READ, 0, b, 4096);
    run_for_ms(50);
    began = loop_now_ns(loop);
    device_close_wait(take(dev));
    ck_assert_uint_lt(loop_now_ns(loop) - began, 3 * NS_PER_SEC);
    ck_assert_uint_eq(q.nr_done, 1);
    ck_assert_int_eq(q.result, -THIN_E_DISCONNECTED);
    teardown();
}
END_TEST

/* ---- a server that lies ------------------------------------------------------------------------- */

enum lie {
    LIE_SHORT_READ, /* half of what was asked, and "that was all" */
    LIE_SHUTDOWN,   /* every write: shutting down */
    LIE_STRANGER,   /* an answer to a question that nobody asked */
};

static void
must_send(int fd, const void *buf, size_t len)
{
    if (send(fd, buf, len, MSG_NOSIGNAL) != (ssize_t)len)
        _exit(0);
}

static void
must_recv(int fd, void *buf, size_t len)
{
    if (len > 0 && recv(fd, buf, len, MSG_WAITALL) != (ssize_t)len)
        _exit(0);
}

static void
option_reply(int fd, uint32_t option, uint32_t type, const void *buf, uint32_t len)
{
    unsigned char head[20];

    store_be64(head, 0x3e889045565a9ull);
    store_be32(head + 8, option);
    store_be32(head + 12, type);
    store_be32(head + 16, len);
    must_send(fd, head, sizeof(head));
    if (len > 0)
        must_send(fd, buf, len);
}

static void
lying_handshake(int fd)
{
    unsigned char buf[512] = "NBDMAGICIHAVEOPT";
    uint32_t option;

    store_be16(buf + 16, 3);
    must_send(fd, buf, 18);
    must_recv(fd, buf, 4);
    do {
        must_recv(fd, buf, 16);
        option = load_be32(buf + 8);
        must_recv(fd, buf, load_be32(buf + 12));
        if (option == 7) {
            store_be16(buf, 0);
            store_be64(buf + 2, MIB);
            store_be16(buf + 10, 1 | 4 | 8); /* flush, FUA */
            option_reply(fd, option, 3, buf, 12);
        }
        option_reply(fd, option, option == 7 || option == 8 ? 1 : 0x80000001u, NULL, 0);
    } while (option != 7);
}

static void
lying_answer(int fd, enum lie lie, const unsigned char *request, uint32_t len)
{
    static unsigned char data[MIB];
    unsigned char head[28];

    if (lie == LIE_SHORT_READ) {
        store_be32(head, 0x668e33efu);
        store_be16(head + 4, 1); /* done */
        store_be16(head + 6, 1); /* data */
        memcpy(head + 8, request + 8, 8);
        store_be32(head + 16, 8 + len / 2);
        memcpy(head + 20, request + 16, 8);
        must_send(fd, head, 28);
        must_send(fd, data, len / 2);
        return;
    }
    store_be32(head, 0x67446698u);
    store_be32(head + 4, 108);
    memcpy(head + 8, request + 8, 8);
    if (lie == LIE_STRANGER)
        head[15] ^= 0x55;
    must_send(fd, head, 16);
}

/* Serves one connection after another, in a child process, until it is killed. */
static pid_t
serve_lies(enum lie lie)
{
    int fd = listen_at(server.socket);
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid > 0) {
        close(fd);
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        int c = accept(fd, NULL, NULL);
        unsigned char request[28];

        if (fork() != 0) {
            close(c);
            while (waitpid(-1, NULL, WNOHANG) > 0)
                continue;
            continue;
        }
        lying_handshake(c);
        for (;;) {
            static unsigned char data[MIB];
            uint32_t len;

            must_recv(c, request, sizeof(request));
            len = load_be32(request + 24);
            if (load_be16(request + 6) == 2)
                _exit(0);
            if (load_be16(request + 6) == 1)
                must_recv(c, data, len);
            lying_answer(c, lie, request, len);
        }
    }
}

static void
end_lies(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    unlink(server.socket);
}

START_TEST(a_read_cut_short_is_an_error)
{
    pid_t pid;

    setup();
    pid = serve_lies(LIE_SHORT_READ);
    must_open();
    ck_assert_int_eq(device_read_wait(dev, 0, b, 4096), -EIO);
    ck_assert_int_eq(device_read_wait(dev, 0, b, 512), -EIO);
    end_lies(pid);
    teardown();
}
END_TEST

START_TEST(a_write_that_meets_a_shutdown_is_lost)
{
    pid_t pid;

    setup();
    pid = serve_lies(LIE_SHUTDOWN);
    must_open();
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), -THIN_E_LOST);
    ck_assert(dev->lost);
    end_lies(pid);
    teardown();
}
END_TEST

/* Each time it is asked it breaks the protocol: the device tries again, and gives up. */
START_TEST(a_server_that_talks_nonsense_is_not_asked_for_ever)
{
    pid_t pid;

    setup();
    params.answer_timeout_ms = 400;
    pid = serve_lies(LIE_STRANGER);
    must_open();
    ck_assert_int_eq(device_read_wait(dev, 0, b, 4096), -THIN_E_TIMED_OUT);
    ck_assert(!dev->lost);
    end_lies(pid);
    teardown();
}
END_TEST

/* ---- an export that grows --------------------------------------------------------------------- */

static void
set_file_size(uint64_t size)
{
    char path[160];

    snprintf(path, sizeof(path), "%s/disk", server.dir);
    ck_assert_int_eq(truncate(path, (off_t)size), 0);
}

static void
check_grown_export(unsigned connections, unsigned flushed)
{
    static struct request before[40], after[40], grow, again;

    setup();
    make_file();
    params.connections = connections;
    serve(file_args);
    ck_assert_int_eq(device_grow_wait(dev, 2 * MIB), -THIN_E_UNSUPPORTED);
    ck_assert_uint_eq(dev->size, MIB);
    set_file_size(3 * MIB);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    if (flushed)
        ck_assert_int_eq(device_flush_wait(dev), 0);
    for (unsigned i = 0; i < 40; i++)
        start(&before[i], i % 4 == 3 ? DEVICE_FLUSH : DEVICE_WRITE, (i + 1) * 4096, a + i,
              i % 4 == 3 ? 0 : 4096);
    start(&grow, DEVICE_GROW, 2 * MIB, NULL, 0);
    start(&again, DEVICE_GROW, 3 * MIB, NULL, 0);
    for (unsigned i = 0; i < 40; i++)
        start(&after[i], DEVICE_WRITE, (i + 60) * 4096, a + i, 4096);
    ck_assert_int_eq(wait_for(&grow), 0);
    ck_assert_int_eq(wait_for(&again), 0);
    ck_assert_uint_eq(dev->size, 3 * MIB);
    for (unsigned i = 0; i < 40; i++) {
        ck_assert_int_eq(wait_for(&before[i]), 0);
        ck_assert_int_eq(wait_for(&after[i]), 0);
    }
    ck_assert_int_eq(device_write_wait(dev, 2 * MIB, a, MIB, DEVICE_FUA), 0);
    ck_assert_int_eq(device_read_wait(dev, 2 * MIB, b, MIB), 0);
    ck_assert_mem_eq(a, b, MIB);
    for (unsigned i = 0; i < 40; i++) {
        if (i % 4 != 3) {
            ck_assert_int_eq(device_read_wait(dev, (i + 1) * 4096, b, 4096), 0);
            ck_assert_mem_eq(a + i, b, 4096);
        }
        ck_assert_int_eq(device_read_wait(dev, (i + 60) * 4096, b, 4096), 0);
        ck_assert_mem_eq(a + i, b, 4096);
    }
    ck_assert_int_eq(device_grow_wait(dev, 4 * MIB), -THIN_E_UNSUPPORTED);
    ck_assert(!dev->lost);
    teardown();
}

START_TEST(a_grown_export_is_seen_while_it_is_used)
{
    for (unsigned flushed = 0; flushed < 2; flushed++) {
        check_grown_export(1, flushed);
        check_grown_export(3, flushed);
    }
}
END_TEST

/* A server that is not there, then one that does not greet: told, and in time. */
START_TEST(a_look_that_does_not_come_about_harms_nobody)
{
    struct request q;
    int fd;

    setup();
    make_file();
    params.connect_timeout_ms = 300;
    serve(file_args);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, DEVICE_FUA), 0);
    ck_assert_int_eq(unlink(server.socket), 0);
    ck_assert_int_eq(device_grow_wait(dev, 2 * MIB), -ENOENT);
    fd = listen_at(server.socket);
    ck_assert_int_eq(device_grow_wait(dev, 2 * MIB), -THIN_E_TIMED_OUT);
    ck_assert_int_eq(device_read_wait(dev, 0, b, 4096), 0);
    ck_assert_mem_eq(a, b, 4096);
    /* A device is closed while it looks. */
    start(&q, DEVICE_GROW, 2 * MIB, NULL, 0);
    device_close_wait(take(dev));
    ck_assert_int_eq(q.result, -THIN_E_TIMED_OUT);
    close(fd);
    teardown();
}
END_TEST

/* The server dies between the look and its end, with writes that it owes, and without. */
START_TEST(a_server_lost_in_the_middle_of_growing_is_told)
{
    for (unsigned owed = 0; owed < 2; owed++)
        for (int ms = 0; ms < 12; ms += 3) {
            struct request q;
            int r;

            setup();
            make_file();
            serve(file_args);
            set_file_size(2 * MIB);
            ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, owed ? 0 : DEVICE_FUA),
                             0);
            start(&q, DEVICE_GROW, 2 * MIB, NULL, 0);
            run_for_ms(ms);
            nbdkit_kill(&server);
            r = wait_for(&q);
            ck_assert_msg(!dev->lost || (owed && r < 0), "after %d ms: %d", ms, r);
            if (!dev->lost) {
                nbdkit_start(&server, file_args);
                ck_assert_int_eq(device_grow_wait(dev, 2 * MIB), 0);
                ck_assert_int_eq(device_read_wait(dev, 0, b, 4096), 0);
                ck_assert_mem_eq(a, b, 4096);
            }
            teardown();
        }
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("nbd_lost");
    TCase *tc = tcase_create("nbd_lost");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_clean_device_connects_again);
    tcase_add_test(tc, a_grown_export_is_seen_while_it_is_used);
    tcase_add_test(tc, a_look_that_does_not_come_about_harms_nobody);
    tcase_add_test(tc, a_server_lost_in_the_middle_of_growing_is_told);
    tcase_add_test(tc, reads_in_flight_are_asked_again);
    tcase_add_test(tc, a_flush_after_lost_writes_fails);
    tcase_add_test(tc, an_idle_device_that_owes_writes_is_lost);
    tcase_add_test(tc, a_write_in_flight_is_not_sent_twice);
    tcase_add_test(tc, a_flush_does_not_cover_later_writes);
    tcase_add_test(tc, a_shrunk_export_is_another);
    tcase_add_test(tc, a_grown_export_is_told_and_taken);
    tcase_add_test(tc, waiting_for_a_server_ends);
    tcase_add_test(tc, a_silent_server_counts_as_gone);
    tcase_add_test(tc, closing_does_not_wait_for_a_server_to_come_back);
    tcase_add_test(tc, a_read_cut_short_is_an_error);
    tcase_add_test(tc, a_write_that_meets_a_shutdown_is_lost);
    tcase_add_test(tc, a_server_that_talks_nonsense_is_not_asked_for_ever);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
