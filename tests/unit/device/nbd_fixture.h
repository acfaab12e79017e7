/* What the tests of the NBD device share: a server, a loop, a device, requests. */
#ifndef THIN_TESTS_UNIT_DEVICE_NBD_FIXTURE_H
#define THIN_TESTS_UNIT_DEVICE_NBD_FIXTURE_H

#include <check.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/poll_loop.h"
#include "core/device/device_nbd.h"
#include "tests/lib/nbdkit.h"

#define MIB (1u << 20)

static struct nbdkit server;
static struct thin_loop *loop;
static struct device *dev;
static struct device_nbd_params params;
static struct thin_error words;
static char a[MIB], b[MIB];

static inline void
setup(void)
{
    nbdkit_init(&server);
    loop = poll_loop_create();
    ck_assert_ptr_nonnull(loop);
    params = (struct device_nbd_params){.uri = server.uri, .connect_timeout_ms = 5000};
    for (size_t i = 0; i < sizeof(a); i++)
        a[i] = (char)(i * 7 + i / 512 + 1);
}

static inline void
teardown(void)
{
    device_close_wait(take(dev));
    poll_loop_destroy(loop);
    nbdkit_fini(&server);
}

static inline int
try_open(void)
{
    thin_error_init(&words);
    return device_nbd_open_wait(loop, &params, &dev, &words);
}

static inline void
must_open(void)
{
    int r = try_open();

    ck_assert_msg(r == 0, "%s", thin_error_text(&words, r));
}

static inline void
serve(const char *args)
{
    nbdkit_start(&server, args);
    must_open();
}

static inline int
listen_at(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ck_assert_int_ge(fd, 0);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    ck_assert_int_eq(listen(fd, 5), 0);
    return fd;
}

/* ---- requests in flight ---------------------------------------------------------------- */

struct request {
    struct device_io io;
    struct iovec iov;
    unsigned nr_done;
    int result;
};

static inline void
request_done(struct device_io *io, int result)
{
    struct request *q = container_of(io, struct request, io);

    q->nr_done++;
    q->result = result;
}

static inline void
start(struct request *q, enum device_op op, uint64_t offset, void *buf, uint64_t len)
{
    *q = (struct request){
        .io = {.op = op, .offset = offset, .len = len, .nr_iov = 1},
        .iov = {.iov_base = buf, .iov_len = len},
    };
    q->io.iov = &q->iov;
    q->io.done = request_done;
    device_submit(dev, &q->io);
}

static inline int
wait_for(struct request *q)
{
    while (q->nr_done == 0)
        ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_uint_eq(q->nr_done, 1);
    return q->result;
}

static inline void
stop_waiting(struct thin_timer *timer)
{
    timer->when_ns = 0;
}

static inline void
run_for_ms(unsigned ms)
{
    struct thin_timer timer = {.fire = stop_waiting};

    ck_assert_int_eq(loop_timer_set(loop, &timer, loop_now_ns(loop) + ms * NS_PER_MS), 0);
    while (timer.when_ns)
        ck_assert_int_eq(loop_run_once(loop), 0);
}

#endif
