/* The file device where it meets the world: locks, words, limits, failing ways. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/poll_loop.h"
#include "core/device/file_private.h"
#include "tests/lib/sim_loop.h"

enum { SIZE = 1 << 20 };

static char dir[200], path[256];
static struct thin_loop *loop;
static struct thin_error err;

static void
setup(void)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(dir, sizeof(dir), "%.150s/thin-file-XXXXXX", tmp ? tmp : "/var/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/f", dir);
    loop = poll_loop_create();
    ck_assert_ptr_nonnull(loop);
    thin_error_init(&err);
    unsetenv("THIN_FILE_WAY");
}

static void
teardown(void)
{
    poll_loop_destroy(loop);
    unlink(path);
    rmdir(dir);
}

static int
try_open(struct device_file_params params, struct device **ret_dev)
{
    thin_error_init(&err);
    if (!params.path)
        params.path = path;
    return device_file_open(loop, &params, ret_dev, &err);
}

static struct device *
open_ok(struct device_file_params params)
{
    struct device *dev = NULL;
    int r = try_open(params, &dev);

    ck_assert_msg(r == 0, "%s", thin_error_text(&err, r));
    return dev;
}

static struct device *
make(void)
{
    return open_ok((struct device_file_params){.create = true, .create_size = SIZE});
}

static void
refused(struct device_file_params params, int code, const char *words)
{
    struct device *dev = NULL;

    ck_assert_int_eq(try_open(params, &dev), code);
    ck_assert_ptr_null(dev);
    ck_assert_msg(strstr(err.text, words), "\"%s\" lacks \"%s\"", err.text, words);
}

static struct file_device *
inside(struct device *dev)
{
    return container_of(dev, struct file_device, base);
}

/* ---- opening ----------------------------------------------------------------------- */

START_TEST(refusals_say_what_and_why)
{
    char folder[300], fifo[300];

    refused((struct device_file_params){0}, -ENOENT, "No such file");
    ck_assert_ptr_nonnull(strstr(err.text, path));
    refused((struct device_file_params){.path = dir}, -THIN_E_INVALID,
            "neither a regular file nor a block device");
    snprintf(fifo, sizeof(fifo), "%s/fifo", dir);
    ck_assert_int_eq(mkfifo(fifo, 0600), 0);
    refused((struct device_file_params){.path = fifo}, -THIN_E_INVALID, "neither");
    unlink(fifo);
    snprintf(folder, sizeof(folder), "%s/none/f", dir);
    refused(
        (struct device_file_params){.path = folder, .create = true, .create_size = SIZE},
        -ENOENT, "create");
    refused((struct device_file_params){.create = true, .create_size = 1000},
            -THIN_E_INVALID, "multiple of 512");
    device_close_wait(make());
    refused((struct device_file_params){.create = true, .create_size = SIZE}, -EEXIST,
            "File exists");
}
END_TEST

START_TEST(a_new_file_has_its_size_and_its_place)
{
    struct device *dev = open_ok((struct device_file_params){
        .create = true, .create_size = SIZE, .allocate_in_full = true});
    struct device_extent extent;
    struct device_io io = {
        .op = DEVICE_EXTENTS, .len = SIZE, .extents = &extent, .max_extents = 1};
    struct stat st;

    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(st.st_size, SIZE);
    ck_assert_int_ge(st.st_blocks * 512, SIZE);
    ck_assert_int_eq(st.st_mode & 0777, 0600);
    ck_assert_int_eq(device_wait(dev, &io), 0);
    /* Written, not only allocated. */
    ck_assert_int_eq(extent.kind, DEVICE_EXTENT_DATA);
    ck_assert_uint_eq(extent.len, SIZE);
    device_close_wait(dev);
}
END_TEST

START_TEST(a_file_too_large_leaves_nothing_behind)
{
    struct rlimit old, small = {.rlim_cur = 4096, .rlim_max = RLIM_INFINITY};
    struct device *dev = NULL;
    int r;

    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    r = try_open((struct device_file_params){.create = true, .create_size = SIZE}, &dev);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    ck_assert_int_eq(r, -EFBIG);
    ck_assert_int_eq(access(path, F_OK), -1);
}
END_TEST

START_TEST(a_second_writer_is_refused_in_the_same_process)
{
    struct device *dev = make(), *reader;

    refused((struct device_file_params){0}, -THIN_E_BUSY, "in use by another process");
    refused((struct device_file_params){.read_only = true}, -THIN_E_BUSY, "in use");
    reader = open_ok((struct device_file_params){.read_only = true, .no_lock = true});
    device_close_wait(reader);
    device_close_wait(dev);
    device_close_wait(open_ok((struct device_file_params){0}));
}
END_TEST

START_TEST(two_readers_share_and_keep_writers_out)
{
    struct device *a, *b;

    device_close_wait(make());
    a = open_ok((struct device_file_params){.read_only = true});
    b = open_ok((struct device_file_params){.read_only = true});
    refused((struct device_file_params){0}, -THIN_E_BUSY, "in use");
    device_close_wait(a);
    refused((struct device_file_params){0}, -THIN_E_BUSY, "in use");
    device_close_wait(b);
    device_close_wait(open_ok((struct device_file_params){0}));
}
END_TEST

START_TEST(another_process_keeps_us_out_until_it_dies)
{
    int to_us[2];
    char byte;
    pid_t pid;

    device_close_wait(make());
    ck_assert_int_eq(pipe(to_us), 0);
    pid = fork();
    if (pid == 0) {
        struct device *dev = NULL;

        loop = poll_loop_create();
        if (try_open((struct device_file_params){0}, &dev) == 0 &&
            write(to_us[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    ck_assert_int_gt(pid, 0);
    ck_assert_int_eq(read(to_us[0], &byte, 1), 1);
    refused((struct device_file_params){0}, -THIN_E_BUSY, "in use by another process");
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    device_close_wait(open_ok((struct device_file_params){0}));
    close(to_us[0]);
    close(to_us[1]);
}
END_TEST

START_TEST(an_odd_size_is_rounded_down)
{
    struct device *dev;

    device_close_wait(make());
    ck_assert_int_eq(truncate(path, 1000), 0);
    dev = open_ok((struct device_file_params){0});
    ck_assert_uint_eq(dev->size, 512);
    device_close_wait(dev);
}
END_TEST

START_TEST(an_odd_end_is_read_with_zeros_behind_it)
{
    static const enum device_file_way ways[] = {DEVICE_WAY_AUTO, DEVICE_WAY_THREADS,
                                                DEVICE_WAY_INLINE};
    char buf[1024];
    struct device *dev;

    dev = make();
    memset(buf, 7, sizeof(buf));
    ck_assert_int_eq(device_write_wait(dev, 0, buf, sizeof(buf), 0), 0);
    device_close_wait(dev);
    ck_assert_int_eq(truncate(path, 1000), 0);
    for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        dev = open_ok((struct device_file_params){
            .read_only = true, .pad_tail = true, .way = ways[i]});
        ck_assert_uint_eq(dev->size, 1024);
        memset(buf, 1, sizeof(buf));
        ck_assert_int_eq(device_read_wait(dev, 0, buf, 1024), 0);
        for (unsigned at = 0; at < 1024; at++)
            ck_assert_int_eq(buf[at], at < 1000 ? 7 : 0);
        memset(buf, 1, sizeof(buf));
        ck_assert_int_eq(device_read_wait(dev, 512, buf, 512), 0);
        ck_assert_int_eq(buf[487], 7);
        ck_assert_int_eq(buf[488], 0);
        ck_assert_int_eq(buf[511], 0);
        ck_assert_int_eq(truncate(path, 700), 0);
        ck_assert_int_eq(device_read_wait(dev, 512, buf, 512), -EIO);
        ck_assert_int_eq(truncate(path, 1000), 0);
        device_close_wait(dev);
        /* What was cut off came back as zeros. */
        memset(buf, 7, sizeof(buf));
        ck_assert_int_eq(truncate(path, 1024), 0);
        dev = open_ok((struct device_file_params){0});
        ck_assert_int_eq(device_write_wait(dev, 0, buf, 1024, 0), 0);
        device_close_wait(dev);
        ck_assert_int_eq(truncate(path, 1000), 0);
    }
}
END_TEST

/* ---- the way ------------------------------------------------------------------------- */

START_TEST(the_environment_chooses_the_way)
{
    static const struct {
        const char *word;
        enum device_file_way way;
    } ways[] = {{"auto", DEVICE_WAY_AUTO},
                {"uring", DEVICE_WAY_URING},
                {"threads", DEVICE_WAY_THREADS},
                {"inline", DEVICE_WAY_INLINE}};
    struct device *dev;

    device_close_wait(make());
    for (unsigned i = 0; i < 4; i++) {
        setenv("THIN_FILE_WAY", ways[i].word, 1);
        dev = open_ok((struct device_file_params){0});
        ck_assert_int_eq(inside(dev)->way, ways[i].way);
        device_close_wait(dev);
    }
    dev = open_ok((struct device_file_params){.way = DEVICE_WAY_THREADS});
    ck_assert_int_eq(inside(dev)->way, DEVICE_WAY_THREADS);
    device_close_wait(dev);
    setenv("THIN_FILE_WAY", "turbo", 1);
    refused((struct device_file_params){0}, -THIN_E_INVALID, "turbo");
    unsetenv("THIN_FILE_WAY");
}
END_TEST

static unsigned
nr_threads(struct device *dev)
{
    unsigned n = 0;

    for (unsigned i = 0; i < FILE_LANES; i++)
        n += inside(dev)->lanes[i].nr_threads;
    return n;
}

START_TEST(small_cached_requests_start_no_thread)
{
    static char buf[4096];
    struct device *dev = make();

    for (unsigned i = 0; i < 64; i++) {
        ck_assert_int_eq(device_write_wait(dev, i * 4096u, buf, 4096, 0), 0);
        ck_assert_int_eq(device_read_wait(dev, i * 4096u, buf, 4096), 0);
    }
    ck_assert_uint_eq(nr_threads(dev), 0);
    ck_assert_ptr_null(inside(dev)->ring);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    ck_assert_uint_eq(nr_threads(dev), 1);
    device_close_wait(dev);
}
END_TEST

START_TEST(inline_needs_no_thread_and_no_descriptor)
{
    static char buf[300 * 1024];
    struct device *dev;

    poll_loop_destroy(loop);
    loop = sim_loop_create(1);
    dev = open_ok((struct device_file_params){
        .create = true, .create_size = SIZE, .way = DEVICE_WAY_INLINE});
    ck_assert_int_eq(device_write_wait(dev, 512, buf, sizeof(buf), DEVICE_FUA), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    ck_assert_int_eq(device_zero_wait(dev, 0, SIZE, 0), 0);
    ck_assert_uint_eq(nr_threads(dev), 0);
    device_close_wait(dev);
    sim_loop_destroy(loop);
    loop = poll_loop_create();
}
END_TEST

/* The loop can watch nothing: what would go to ring or threads is done at once. */
START_TEST(without_ring_and_threads_the_loop_does_the_work)
{
    static char a[300 * 1024], b[300 * 1024];
    struct device *dev;

    poll_loop_destroy(loop);
    loop = sim_loop_create(1);
    dev = make();
    memset(a, 7, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, 512, a, sizeof(a), DEVICE_FUA), 0);
    ck_assert_int_eq(device_read_wait(dev, 512, b, sizeof(b)), 0);
    ck_assert_mem_eq(a, b, sizeof(a));
    ck_assert_int_eq(device_flush_wait(dev), 0);
    device_close_wait(dev);
    sim_loop_destroy(loop);
    loop = poll_loop_create();
}
END_TEST

START_TEST(a_lane_without_threads_falls_back_on_the_loop)
{
    static char a[300 * 1024], b[300 * 1024];
    struct device *dev = make();

    memset(a, 7, sizeof(a));
    for (unsigned i = 0; i < FILE_LANES; i++)
        inside(dev)->lanes[i].max_threads = 0;
    ck_assert_int_eq(device_write_wait(dev, 512, a, sizeof(a), DEVICE_FUA), 0);
    ck_assert_int_eq(device_read_wait(dev, 512, b, sizeof(b)), 0);
    ck_assert_mem_eq(a, b, sizeof(a));
    ck_assert_int_eq(device_flush_wait(dev), 0);
    device_close_wait(dev);
}
END_TEST

START_TEST(where_io_uring_is_refused_threads_read)
{
    static char buf[4096] __attribute__((aligned(4096)));
    struct device *dev = open_ok(
        (struct device_file_params){.create = true, .create_size = SIZE, .direct = true});

    inside(dev)->ring_refused = true;
    ck_assert_int_eq(device_read_wait(dev, 0, buf, 4096), 0);
    ck_assert_int_eq(device_write_wait(dev, 0, buf, 4096, 0), 0);
    ck_assert_ptr_null(inside(dev)->ring);
    ck_assert_uint_gt(inside(dev)->lanes[FILE_LANE_IO].nr_threads, 0);
    device_close_wait(dev);
}
END_TEST

/* Puts something else in the place of the ring's descriptor. */
static unsigned
break_ring(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;
    struct dirent *e;

    ck_assert_ptr_nonnull(d);
    while ((e = readdir(d))) {
        char link[300], target[256] = "";

        snprintf(link, sizeof(link), "/proc/self/fd/%s", e->d_name);
        if (readlink(link, target, sizeof(target) - 1) > 0 &&
            strstr(target, "[io_uring]")) {
            int null = open("/dev/null", O_RDWR);

            ck_assert_int_ge(dup2(null, atoi(e->d_name)), 0);
            close(null);
            n++;
        }
    }
    closedir(d);
    return n;
}

START_TEST(a_ring_that_breaks_gives_way_to_threads)
{
    static char a[4096], b[4096];
    struct device *dev = open_ok((struct device_file_params){
        .create = true, .create_size = SIZE, .way = DEVICE_WAY_URING});

    memset(a, 5, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, 0, a, sizeof(a), 0), 0);
    ck_assert_uint_eq(break_ring(), 1);
    ck_assert_int_eq(device_read_wait(dev, 0, b, sizeof(b)), 0);
    ck_assert_mem_eq(a, b, sizeof(a));
    ck_assert(inside(dev)->ring_refused);
    ck_assert_int_eq(device_write_wait(dev, 8192, a, sizeof(a), DEVICE_FUA), 0);
    device_close_wait(dev);
}
END_TEST

/* ---- failures --------------------------------------------------------------------------- */

START_TEST(a_file_cut_short_under_us_is_an_error)
{
    static const enum device_file_way ways[] = {DEVICE_WAY_AUTO, DEVICE_WAY_URING,
                                                DEVICE_WAY_THREADS, DEVICE_WAY_INLINE};
    static char buf[8192] __attribute__((aligned(4096)));

    for (unsigned i = 0; i < 8; i++) {
        struct device *dev = open_ok((struct device_file_params){
            .create = true, .create_size = SIZE, .way = ways[i % 4], .direct = i >= 4});

        ck_assert_int_eq(truncate(path, 4096), 0);
        ck_assert_int_eq(device_read_wait(dev, 0, buf, 4096), 0);
        ck_assert_int_eq(device_read_wait(dev, 8192, buf, 4096), -EIO);
        ck_assert_int_eq(device_read_wait(dev, 0, buf, 8192), -EIO);
        ck_assert_int_eq(device_read_wait(dev, 4608, buf, 512), -EIO);
        device_close_wait(dev);
        unlink(path);
    }
}
END_TEST

START_TEST(a_write_past_a_limit_fails_and_names_it)
{
    static char buf[300 * 1024];
    struct rlimit old, small;
    struct device *dev = make();

    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){.rlim_cur = SIZE / 2, .rlim_max = old.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    ck_assert_int_eq(device_write_wait(dev, SIZE - 4096, buf, 4096, 0), -EFBIG);
    ck_assert_int_eq(device_write_wait(dev, SIZE / 2 - 4096, buf, sizeof(buf), 0),
                     -EFBIG);
    ck_assert_int_eq(device_grow_wait(dev, 2 * SIZE), -EFBIG);
    ck_assert_uint_eq(dev->size, SIZE);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    ck_assert_int_eq(device_grow_wait(dev, 2 * SIZE), 0);
    device_close_wait(dev);
}
END_TEST

START_TEST(a_failed_flush_never_becomes_a_success)
{
    static const enum device_file_way ways[] = {DEVICE_WAY_AUTO, DEVICE_WAY_URING,
                                                DEVICE_WAY_THREADS, DEVICE_WAY_INLINE};
    static char buf[4096];

    for (unsigned i = 0; i < 4; i++) {
        struct device *dev = open_ok((struct device_file_params){
            .create = true, .create_size = SIZE, .way = ways[i]});
        int saved = dup(inside(dev)->fd), pipe_fds[2];

        ck_assert_int_ge(saved, 0);
        ck_assert_int_eq(device_write_wait(dev, 0, buf, 4096, 0), 0);
        ck_assert_int_eq(pipe(pipe_fds), 0);
        ck_assert_int_ge(dup2(pipe_fds[1], inside(dev)->fd), 0);
        ck_assert_int_eq(device_flush_wait(dev), -EINVAL);
        ck_assert_int_ge(dup2(saved, inside(dev)->fd), 0);
        ck_assert_int_eq(device_flush_wait(dev), -EINVAL);
        ck_assert_int_eq(device_write_wait(dev, 0, buf, 4096, DEVICE_FUA), -EINVAL);
        ck_assert_int_eq(device_write_wait(dev, 0, buf, 4096, 0), 0);
        ck_assert_int_eq(device_read_wait(dev, 0, buf, 4096), 0);
        device_close_wait(dev);
        close(saved);
        close(pipe_fds[0]);
        close(pipe_fds[1]);
        unlink(path);
    }
}
END_TEST

/* In place of the C library's, here and in the driver: waits while `gate` names a pipe. */
static int gate = -1;

int
fallocate(int fd, int mode, off_t offset, off_t len)
{
    char byte;

    if (gate >= 0 && read(gate, &byte, 1) < 0)
        return -1;
    return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

static unsigned nr_done;

static void
count_done(struct device_io *io, int result)
{
    (void)io;
    ck_assert_int_eq(result, 0);
    nr_done++;
}

/* Punching a hole into a file on a slow disk held the inode's lock for a second, and the
   loop in a small write with it. */
START_TEST(while_space_is_given_back_no_write_is_the_loops)
{
    static char buf[4096];
    struct iovec iov = {buf, sizeof(buf)};
    struct device_io hole = {
        .op = DEVICE_DISCARD, .offset = 512 << 10, .len = 65536, .done = count_done};
    struct device_io io = {.op = DEVICE_WRITE,
                           .len = sizeof(buf),
                           .iov = &iov,
                           .nr_iov = 1,
                           .done = count_done};
    struct device *dev = make();
    int fds[2];

    nr_done = 0;
    ck_assert_int_eq(device_write_wait(dev, 0, buf, sizeof(buf), 0), 0);
    ck_assert_int_eq(pipe(fds), 0);
    gate = fds[0];
    device_submit(dev, &hole);
    device_submit(dev, &io);
    ck_assert_uint_eq(inside(dev)->lanes[FILE_LANE_WRITE].nr_threads, 1);
    ck_assert_int_eq(write(fds[1], "", 1), 1);
    close(fds[1]); /* and none waits any more */
    while (nr_done < 2)
        ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_uint_eq(inside(dev)->nr_space, 0);
    device_close_wait(dev);
    gate = -1;
    close(fds[0]);
}
END_TEST

START_TEST(more_requests_than_the_ring_holds_all_end)
{
    enum { N = 3 * FILE_RING_DEPTH };
    static char buf[N][512];
    static struct device_io io[N];
    static struct iovec iov[N];
    struct device *dev = open_ok((struct device_file_params){
        .create = true, .create_size = SIZE, .way = DEVICE_WAY_URING});

    nr_done = 0;
    for (unsigned i = 0; i < N; i++) {
        iov[i] = (struct iovec){buf[i], 512};
        io[i] = (struct device_io){.op = i % 2 ? DEVICE_READ : DEVICE_WRITE,
                                   .offset = i * 512u,
                                   .len = 512,
                                   .iov = &iov[i],
                                   .nr_iov = 1,
                                   .done = count_done};
        device_submit(dev, &io[i]);
    }
    while (nr_done < N)
        ck_assert_int_eq(loop_run_once(loop), 0);
    device_close_wait(dev);
}
END_TEST

START_TEST(many_buffered_writes_start_writeback_and_all_end)
{
    enum { N = 512, LEN = 64 * 1024 };
    static char buf[LEN];
    static struct device_io io[N];
    static struct iovec iov = {buf, LEN};
    struct device *dev = open_ok(
        (struct device_file_params){.create = true, .create_size = (uint64_t)N * LEN});

    nr_done = 0;
    for (unsigned i = 0; i < N; i++) {
        io[i] = (struct device_io){.op = DEVICE_WRITE,
                                   .offset = (uint64_t)i * LEN,
                                   .len = LEN,
                                   .iov = &iov,
                                   .nr_iov = 1,
                                   .done = count_done};
        device_submit(dev, &io[i]);
    }
    ck_assert_uint_gt(inside(dev)->lanes[FILE_LANE_FLUSH].nr_threads, 0);
    while (nr_done < N)
        ck_assert_int_eq(loop_run_once(loop), 0);
    device_close_wait(dev); /* waits for the writeback's end, not for the disk */
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("file");
    TCase *tc = tcase_create("file");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, refusals_say_what_and_why);
    tcase_add_test(tc, a_new_file_has_its_size_and_its_place);
    tcase_add_test(tc, a_file_too_large_leaves_nothing_behind);
    tcase_add_test(tc, a_second_writer_is_refused_in_the_same_process);
    tcase_add_test(tc, two_readers_share_and_keep_writers_out);
    tcase_add_test(tc, another_process_keeps_us_out_until_it_dies);
    tcase_add_test(tc, an_odd_size_is_rounded_down);
    tcase_add_test(tc, an_odd_end_is_read_with_zeros_behind_it);
    tcase_add_test(tc, the_environment_chooses_the_way);
    tcase_add_test(tc, small_cached_requests_start_no_thread);
    tcase_add_test(tc, inline_needs_no_thread_and_no_descriptor);
    tcase_add_test(tc, without_ring_and_threads_the_loop_does_the_work);
    tcase_add_test(tc, a_lane_without_threads_falls_back_on_the_loop);
    tcase_add_test(tc, where_io_uring_is_refused_threads_read);
    tcase_add_test(tc, a_ring_that_breaks_gives_way_to_threads);
    tcase_add_test(tc, a_file_cut_short_under_us_is_an_error);
    tcase_add_test(tc, a_write_past_a_limit_fails_and_names_it);
    tcase_add_test(tc, a_failed_flush_never_becomes_a_success);
    tcase_add_test(tc, while_space_is_given_back_no_write_is_the_loops);
    tcase_add_test(tc, more_requests_than_the_ring_holds_all_end);
    tcase_add_test(tc, many_buffered_writes_start_writeback_and_all_end);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
