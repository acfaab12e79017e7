/* The library against the fake server beside this file, in one thread, by turns. */
#include <inttypes.h>
#include <time.h>

#include "client/lib/call.h"
#include "client/lib/thinclient.h"
#include "core/base/random.h"
#include "proto/pki.h"
#include "tests/unit/client/fake_server.h"

static char dir[] = "/tmp/test-client-XXXXXX";
static struct fake_server *server;
static struct thin_client *client;
static struct thin_client_volume *volume;
static struct thin_random rng;
static unsigned nr_events;
static struct thin_client_event last_event;

/* ---- running ----------------------------------------------------------------------- */

static uint64_t
now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* One turn, just as an event loop would: the client only when its descriptor says so. */
static void
turn(int wait_ms)
{
    struct pollfd pfd = {.fd = thin_client_fd(client), .events = POLLIN};

    fake_step(server);
    if (poll(&pfd, 1, wait_ms) > 0)
        thin_client_ready(client);
}

/* Until *flag, 5 s at most: nothing here takes that long. */
#define RUN_UNTIL(condition)                                              \
    do {                                                                  \
        uint64_t end_ = now_ms() + 20000;                                 \
        while (!(condition)) {                                            \
            turn(1);                                                      \
            ck_assert_msg(now_ms() < end_, "never true: %s", #condition); \
        }                                                                 \
    } while (0)

struct outcome {
    unsigned calls;
    int result;
};

static void
on_done(void *arg, int result)
{
    struct outcome *o = arg;

    o->calls++;
    o->result = result;
}

static void
on_opened(void *arg, int result, struct thin_client_volume *v)
{
    on_done(arg, result);
    volume = v;
}

static void
on_event(void *arg, const struct thin_client_event *event)
{
    (void)arg;
    nr_events++;
    last_event = *event;
}

static int
finish(struct outcome *o)
{
    RUN_UNTIL(o->calls > 0);
    ck_assert_uint_eq(o->calls, 1);
    return o->result;
}

/* ---- fixtures ---------------------------------------------------------------------- */

static void
set_up_files(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void
set_up(void)
{
    const char *given = getenv("SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    char path[100], address[120];

    printf("SEED=%" PRIu64 "\n", seed);
    random_seed(&rng, seed);
    snprintf(path, sizeof(path), "%s/sock", dir);
    server = fake_create(path);
    client = thin_client_create();
    ck_assert_ptr_nonnull(client);
    snprintf(address, sizeof(address), "unix:%s", path);
    ck_assert_int_eq(thin_client_set_server(client, address), 0);
    thin_client_set_event_callback(client, on_event, NULL);
    volume = NULL;
    nr_events = 0;
}

static void
tear_down(void)
{
    thin_client_destroy(client);
    fake_destroy(server);
}

static void
connect_now(void)
{
    struct outcome o = {0};

    ck_assert_int_eq(thin_client_connect(client, on_done, &o), 0);
    ck_assert_uint_eq(o.calls, 0); /* never from inside the call */
    ck_assert_msg(finish(&o) == 0, "%s", thin_client_error(client));
}

static void
open_now(void)
{
    struct outcome o = {0};

    connect_now();
    ck_assert_int_eq(thin_client_open(client, "tank/vol", 0, on_opened, &o), 0);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_ptr_nonnull(volume);
}

static int
write_now(const void *bytes, size_t len, uint64_t offset, unsigned flags)
{
    struct outcome o = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    int r = thin_client_write(volume, &iov, 1, offset, flags, on_done, &o);

    return r < 0 ? r : finish(&o);
}

static int
read_now(void *bytes, size_t len, uint64_t offset)
{
    struct outcome o = {0};
    struct iovec iov = {bytes, len};
    int r = thin_client_read(volume, &iov, 1, offset, on_done, &o);

    return r < 0 ? r : finish(&o);
}

static int
flush_now(void)
{
    struct outcome o = {0};
    int r = thin_client_flush(volume, on_done, &o);

    return r < 0 ? r : finish(&o);
}

static void
fill(uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(random_u64(&rng) | 1);
}

/* ---- the plain way ----------------------------------------------------------------- */

START_TEST(what_is_written_is_read)
{
    static uint8_t out[300000], in[300000];
    struct iovec iov[20];
    struct outcome o = {0};
    size_t at = 0;

    open_now();
    ck_assert_uint_eq(thin_client_volume_size(volume), FAKE_SIZE);
    ck_assert_uint_eq(thin_client_volume_block_size(volume), FAKE_BLOCK);
    ck_assert_str_eq(thin_client_volume_name(volume), "tank/vol");
    ck_assert_str_eq(thin_client_server_version(client), "fake 1");
    fill(out, sizeof(out));
    memset(out + 8192, 0, 20000); /* comes back as holes */
    memset(out + sizeof(out) - 9000, 0, 9000);
    ck_assert_int_eq(write_now(out, sizeof(out), 4096, 0), 0);
    ck_assert_mem_eq(server->disk + 4096, out, sizeof(out));
    memset(in, 0xee, sizeof(in));
    ck_assert_int_eq(read_now(in, sizeof(in), 4096), 0);
    ck_assert_mem_eq(in, out, sizeof(in));
    /* In many pieces of odd sizes, with empty ones between. */
    memset(in, 0xee, sizeof(in));
    for (unsigned i = 0; i < 20; i++) {
        size_t len = i % 4 == 3 ? 0 : 1 + random_below(&rng, 30000);

        if (i == 19 || len > sizeof(in) - at)
            len = sizeof(in) - at;
        iov[i] = (struct iovec){in + at, len};
        at += len;
    }
    ck_assert_int_eq(thin_client_read(volume, iov, 20, 4096, on_done, &o), 0);
    memset(iov, 0, sizeof(iov)); /* the array is not borrowed */
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_mem_eq(in, out, sizeof(in));
}
END_TEST

START_TEST(all_kinds_of_requests_work)
{
    static uint8_t bytes[8192];
    struct outcome o = {0};

    open_now();
    memset(bytes, 0x55, sizeof(bytes));
    ck_assert_int_eq(write_now(bytes, sizeof(bytes), 0, THIN_CLIENT_FUA), 0);
    ck_assert_mem_eq(server->durable, bytes, sizeof(bytes));
    ck_assert_int_eq(thin_client_discard(volume, 0, 4096, 0, on_done, &o), 0);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_int_eq(server->disk[0], 0);
    o.calls = 0;
    ck_assert_int_eq(
        thin_client_write_zeroes(volume, 4096, 100, THIN_CLIENT_NO_HOLE, on_done, &o), 0);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_int_eq(server->disk[4195], 0);
    ck_assert_int_eq(server->disk[4196], 0x55);
    ck_assert_int_eq(flush_now(), 0);
    ck_assert_mem_eq(server->durable, server->disk, FAKE_SIZE);
    ck_assert_int_eq(write_now(bytes, 0, 0, 0), 0); /* nothing, and that is fine */
}
END_TEST

static struct thin_client_extent seen[4];
static unsigned nr_seen;

static void
on_status(void *arg, int result, const struct thin_client_extent *extents, unsigned nr)
{
    ck_assert_uint_le(nr, 4);
    nr_seen = nr;
    if (nr > 0)
        memcpy(seen, extents, nr * sizeof(*extents));
    on_done(arg, result);
}

START_TEST(block_status_tells_extents)
{
    struct outcome o = {0};

    open_now();
    ck_assert_int_eq(thin_client_block_status(volume, 0, 65536, NULL, on_status, &o), 0);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_uint_eq(nr_seen, 2);
    ck_assert_uint_eq(seen[0].len_bytes + seen[1].len_bytes, 65536);
    ck_assert_uint_eq(seen[0].flags, 0);
    ck_assert_uint_eq(seen[1].flags, THIN_CLIENT_EXTENT_HOLE | THIN_CLIENT_EXTENT_ZERO);
    o.calls = 0;
    ck_assert_int_eq(thin_client_block_status(volume, 0, 65536, "snap", on_status, &o),
                     0);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_uint_eq(seen[0].flags, THIN_CLIENT_EXTENT_CHANGED);
}
END_TEST

START_TEST(what_cannot_be_is_refused_at_once)
{
    uint8_t byte = 0;
    struct iovec iov = {&byte, 1};
    struct iovec huge = {&byte, 2u << 20};
    struct outcome o = {0};

    ck_assert_int_eq(thin_client_open(client, "tank/vol", 0, on_opened, &o),
                     -THIN_CLIENT_E_DISCONNECTED);
    open_now();
    ck_assert_int_eq(thin_client_read(volume, &iov, 1, FAKE_SIZE, on_done, &o),
                     -THIN_CLIENT_E_RANGE);
    ck_assert_int_eq(thin_client_read(volume, &iov, 1, UINT64_MAX, on_done, &o),
                     -THIN_CLIENT_E_RANGE);
    ck_assert_int_eq(thin_client_read(volume, &huge, 1, 0, on_done, &o),
                     -THIN_CLIENT_E_LIMIT);
    ck_assert_int_eq(thin_client_discard(volume, 1, UINT64_MAX, 0, on_done, &o),
                     -THIN_CLIENT_E_RANGE);
    ck_assert_int_eq(thin_client_open(client, "tank", 0, on_opened, &o),
                     -THIN_CLIENT_E_INVALID);
    ck_assert_ptr_nonnull(strstr(thin_client_error(client), "POOL/VOLUME"));
    ck_assert_int_eq(thin_client_set_server(client, "tcp:host:1"),
                     -THIN_CLIENT_E_INVALID);
    ck_assert_uint_eq(o.calls, 0);
}
END_TEST

START_TEST(a_volume_that_is_not_there_is_told)
{
    struct outcome o = {0};

    connect_now();
    ck_assert_int_eq(thin_client_open(client, "tank/other", 0, on_opened, &o), 0);
    ck_assert_int_eq(finish(&o), -THIN_CLIENT_E_NOT_FOUND);
    ck_assert_ptr_null(volume);
    ck_assert_str_eq(thin_client_error(client), "no such volume");
}
END_TEST

START_TEST(a_read_only_volume_is_not_written)
{
    struct outcome o = {0};
    uint8_t byte = 1;

    connect_now();
    ck_assert_int_eq(
        thin_client_open(client, "tank/vol", THIN_CLIENT_OPEN_READ_ONLY, on_opened, &o),
        0);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert(thin_client_volume_is_read_only(volume));
    ck_assert_int_eq(write_now(&byte, 1, 0, 0), -THIN_CLIENT_E_READ_ONLY);
    ck_assert_int_eq(read_now(&byte, 1, 0), 0);
}
END_TEST

START_TEST(errors_of_the_server_reach_the_caller)
{
    uint8_t byte = 1;

    open_now();
    server->fail_writes = -THIN_E_NO_DATA_SPACE;
    ck_assert_int_eq(write_now(&byte, 1, 0, 0), -THIN_CLIENT_E_NO_DATA_SPACE);
    ck_assert_int_eq(thin_client_errno(-THIN_CLIENT_E_NO_DATA_SPACE), ENOSPC);
    ck_assert_int_eq(read_now(&byte, 1, 0), 0);
}
END_TEST

/* More requests than slots, larger than the credits, answered in any order. */
START_TEST(many_requests_wait_for_slots_and_credits)
{
    enum { NR = 100, LEN = 300000 };
    static uint8_t out[NR * 512], in[NR * 512], large[8][LEN];
    struct outcome o[NR] = {{0}}, p[8] = {{0}};

    open_now();
    server->reverse = true;
    fill(out, sizeof(out));
    thin_client_cork(client);
    for (unsigned i = 0; i < NR; i++) {
        struct iovec iov = {out + (size_t)i * 512, 512};

        ck_assert_int_eq(
            thin_client_write(volume, &iov, 1, (uint64_t)i * 512, 0, on_done, &o[i]), 0);
    }
    ck_assert_uint_eq(server->nr_requests, 1); /* the open */
    thin_client_uncork(client);
    for (unsigned i = 0; i < NR; i++)
        ck_assert_int_eq(finish(&o[i]), 0);
    for (unsigned i = 0; i < 8; i++) {
        struct iovec iov = {large[i], LEN};

        ck_assert_int_eq(thin_client_read(volume, &iov, 1, 0, on_done, &p[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_int_eq(finish(&p[i]), 0);
        ck_assert_mem_eq(large[i], server->disk, LEN);
    }
    ck_assert_int_eq(read_now(in, sizeof(in), 0), 0);
    ck_assert_mem_eq(in, out, sizeof(in));
    for (unsigned i = 0; i < NR; i++)
        ck_assert_uint_eq(o[i].calls, 1);
}
END_TEST

START_TEST(data_checksums_find_a_changed_byte)
{
    uint8_t bytes[5000];

    thin_client_set_data_checksums(client, true);
    open_now();
    fill(bytes, sizeof(bytes));
    ck_assert_int_eq(write_now(bytes, sizeof(bytes), 0, 0), 0); /* the fake checks it */
    ck_assert_int_eq(read_now(bytes, sizeof(bytes), 0), 0);
    server->bad_crc = true;
    ck_assert_int_eq(read_now(bytes, sizeof(bytes), 0), -THIN_E_CHECKSUM);
    server->bad_crc = false;
    ck_assert_int_eq(read_now(bytes, sizeof(bytes), 0), 0);
    ck_assert_uint_eq(server->nr_hello, 1); /* no reason to reconnect */
}
END_TEST

/* ---- connections end --------------------------------------------------------------- */

START_TEST(a_request_done_but_not_answered_is_not_done_twice)
{
    uint8_t byte = 7;

    open_now();
    server->drop_after_request = 1;
    ck_assert_int_eq(write_now(&byte, 1, 10, 0), 0);
    ck_assert_uint_eq(server->nr_writes_done, 1);
    ck_assert_uint_eq(server->nr_repeated, 1);
    ck_assert_uint_eq(server->nr_resumed, 1);
    ck_assert_int_eq(server->disk[10], 7);
    ck_assert_int_eq(thin_client_volume_state(volume), 0);
    ck_assert_uint_eq(server->nr_opens, 1); /* the session had it open all the time */
}
END_TEST

START_TEST(a_request_that_was_lost_is_sent_again)
{
    uint8_t byte = 7;

    open_now();
    server->drop_before_request = 1;
    ck_assert_int_eq(write_now(&byte, 1, 10, 0), 0);
    ck_assert_uint_eq(server->nr_writes_done, 1);
    ck_assert_uint_eq(server->nr_repeated, 0);
}
END_TEST

START_TEST(everything_in_flight_survives_a_lost_connection)
{
    enum { NR = 40 };
    static uint8_t out[NR * 4096];
    struct outcome o[NR] = {{0}};

    open_now();
    fill(out, sizeof(out));
    server->hold = true;
    for (unsigned i = 0; i < NR; i++) {
        struct iovec iov = {out + (size_t)i * 4096, 4096};

        ck_assert_int_eq(
            thin_client_write(volume, &iov, 1, (uint64_t)i * 4096, 0, on_done, &o[i]), 0);
    }
    for (int i = 0; i < 20; i++)
        turn(1);
    fake_drop(server);
    server->hold = false;
    for (unsigned i = 0; i < NR; i++)
        ck_assert_int_eq(finish(&o[i]), 0);
    ck_assert_mem_eq(server->disk, out, sizeof(out));
    ck_assert_uint_eq(server->nr_writes_done, NR);
    ck_assert_uint_eq(nr_events, 2); /* disconnected, connected */
}
END_TEST

START_TEST(after_a_restart_the_volume_is_opened_again_and_requests_go_on)
{
    uint8_t byte = 7, got = 0;
    struct outcome o = {0};
    struct iovec iov = {&got, 1};

    open_now();
    ck_assert_int_eq(write_now(&byte, 1, 10, 0), 0);
    ck_assert_int_eq(flush_now(), 0);
    server->hold = true;
    ck_assert_int_eq(thin_client_read(volume, &iov, 1, 10, on_done, &o), 0);
    turn(5);
    turn(5);
    fake_restart(server, true); /* nothing unflushed: nothing lost */
    server->hold = false;
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_int_eq(got, 7);
    ck_assert_uint_eq(server->nr_opens, 2);
    ck_assert_int_eq(write_now(&byte, 1, 11, 0), 0);
}
END_TEST

/* Never silently: he was told that the write was done, and it is gone. */
static void
lose_a_write(void)
{
    uint8_t byte = 7;
    struct outcome o = {0};

    open_now();
    ck_assert_int_eq(flush_now(), 0);
    ck_assert_int_eq(write_now(&byte, 1, 10, 0), 0);
    fake_restart(server, true);
    RUN_UNTIL(thin_client_volume_state(volume) != 0);
    ck_assert_int_eq(thin_client_volume_state(volume), -THIN_CLIENT_E_ROLLED_BACK);
    ck_assert_int_eq(flush_now(), -THIN_CLIENT_E_ROLLED_BACK);
    ck_assert_int_eq(read_now(&byte, 1, 10), -THIN_CLIENT_E_ROLLED_BACK);
    ck_assert_int_eq(last_event.kind, THIN_CLIENT_EVENT_ROLLED_BACK);
    /* Opened anew it is of use again. */
    ck_assert_int_eq(thin_client_close(volume, on_done, &o), 0);
    ck_assert_int_eq(finish(&o), 0);
    o.calls = 0;
    ck_assert_int_eq(thin_client_open(client, "tank/vol", 0, on_opened, &o), 0);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_int_eq(read_now(&byte, 1, 10), 0);
    ck_assert_int_eq(byte, 0);
}

START_TEST(lost_writes_are_told)
{
    lose_a_write();
}
END_TEST

START_TEST(lost_writes_are_told_without_change_numbers)
{
    server->no_changes = true;
    lose_a_write();
}
END_TEST

START_TEST(a_restart_that_loses_nothing_is_only_a_pause)
{
    uint8_t byte = 7;

    open_now();
    ck_assert_int_eq(write_now(&byte, 1, 10, 0), 0);
    fake_restart(server, false);
    ck_assert_int_eq(write_now(&byte, 1, 11, 0), 0);
    ck_assert_int_eq(thin_client_volume_state(volume), 0);
}
END_TEST

START_TEST(a_volume_that_another_one_took_is_stale)
{
    uint8_t byte = 7;

    open_now();
    fake_restart(server, false);
    server->epoch++;
    ck_assert_int_eq(write_now(&byte, 1, 10, 0), -THIN_CLIENT_E_STALE);
    ck_assert_int_eq(write_now(&byte, 1, 10, 0), -THIN_CLIENT_E_STALE);
    ck_assert_uint_eq(server->nr_writes_done, 0);
    ck_assert_int_eq(last_event.kind, THIN_CLIENT_EVENT_FENCED);
}
END_TEST

START_TEST(a_volume_that_is_busy_for_a_moment_is_asked_for_again)
{
    uint8_t byte = 7;
    struct outcome o = {0};
    struct iovec iov = {&byte, 1};

    open_now();
    fake_restart(server, false);
    server->fail_open = -THIN_E_BUSY;
    ck_assert_int_eq(thin_client_write(volume, &iov, 1, 10, 0, on_done, &o), 0);
    RUN_UNTIL(server->nr_opens == 2);
    ck_assert_uint_eq(o.calls, 0);
    server->fail_open = 0;
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_uint_eq(server->nr_opens, 3);
}
END_TEST

START_TEST(a_silent_server_is_noticed)
{
    uint8_t byte;
    struct outcome o = {0};
    struct iovec iov = {&byte, 1};

    open_now();
    RUN_UNTIL(server->nr_pings >= 2);
    ck_assert_uint_eq(server->nr_hello, 1); /* pings were answered */
    server->deaf = true;
    ck_assert_int_eq(thin_client_read(volume, &iov, 1, 0, on_done, &o), 0);
    RUN_UNTIL(!thin_client_is_connected(client));
    server->deaf = false;
    ck_assert_int_eq(finish(&o), 0);
}
END_TEST

/* A ping waits behind a megabyte that trickles; the bytes taken are signs of life. */
START_TEST(a_slow_link_is_not_a_dead_one)
{
    static uint8_t out[1u << 20];
    struct outcome o = {0};
    struct iovec iov = {out, sizeof(out)};
    size_t frame = sizeof(out) + FRAME_PREFIX_BYTES;
    uint64_t begin = now_ms();
    ssize_t n;

    /* Long enough that a busy machine does not look like a dead link. */
    server->keepalive_ms = 3000;
    open_now();
    fill(out, sizeof(out));
    server->deaf = true;
    ck_assert_int_eq(thin_client_write(volume, &iov, 1, 0, 0, on_done, &o), 0);
    while (server->in_len < frame) {
        n = channel_read(server->channel, server->in + server->in_len, 10000, NULL);
        ck_assert(n > 0 || n == -EAGAIN);
        server->in_len += n > 0 ? (size_t)n : 0;
        usleep(60000);
        turn(0);
        ck_assert_uint_lt(now_ms() - begin, 60000);
    }
    ck_assert_uint_gt(now_ms() - begin, 6000); /* twice the keepalive */
    server->deaf = false;
    fake_parse(server);
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_uint_eq(server->nr_hello, 1);
    ck_assert_mem_eq(server->disk, out, sizeof(out));
}
END_TEST

START_TEST(a_server_that_breaks_the_rules_is_left)
{
    uint8_t byte;
    struct outcome o = {0};
    struct iovec iov = {&byte, 1};

    open_now();
    server->nonsense = true;
    ck_assert_int_eq(thin_client_read(volume, &iov, 1, 0, on_done, &o), 0);
    RUN_UNTIL(nr_events > 0);
    server->nonsense = false;
    ck_assert_int_eq(finish(&o), 0);
    ck_assert_uint_ge(server->nr_resumed, 1);
}
END_TEST

START_TEST(after_the_offline_timeout_requests_fail)
{
    uint8_t byte = 1;
    struct outcome o = {0};
    struct iovec iov = {&byte, 1};

    thin_client_set_offline_timeout_ms(client, 100);
    open_now();
    server->hold = true;
    ck_assert_int_eq(thin_client_write(volume, &iov, 1, 0, 0, on_done, &o), 0);
    turn(5);
    close(server->listen_fd);
    fake_drop(server);
    ck_assert_int_eq(finish(&o), -THIN_CLIENT_E_DISCONNECTED);
    ck_assert_int_eq(write_now(&byte, 1, 0, 0), -THIN_CLIENT_E_DISCONNECTED);
    /* It comes back by itself. */
    server->hold = false;
    fake_listen(server);
    RUN_UNTIL(thin_client_is_connected(client));
    RUN_UNTIL(server->nr_opens >= 2);
    ck_assert_int_eq(write_now(&byte, 1, 0, 0), 0);
    ck_assert_uint_eq(server->nr_resumed, 0);
}
END_TEST

START_TEST(a_first_connect_that_fails_is_told)
{
    struct outcome o = {0};
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__ServerStatus status = THIN__SERVER_STATUS__INIT;
    struct thin_error err;

    ck_assert_int_eq(thin_client_set_server(client, "unix:/nowhere/at/all"), 0);
    ck_assert_int_eq(thin_client_connect(client, on_done, &o), 0);
    ck_assert_int_eq(finish(&o), -ENOENT);
    ck_assert_ptr_nonnull(strstr(thin_client_error(client), "unix:/nowhere/at/all"));
    request.body_case = THIN__REQUEST__BODY_SERVER_STATUS;
    request.server_status = &status;
    ck_assert_int_eq(client_call_wait(client, &request, NULL, NULL, &err), -ENOENT);
    ck_assert_int_eq(thin_client_connect_wait(client), -ENOENT);
}
END_TEST

START_TEST(a_first_connect_may_be_repeated_until_it_works)
{
    struct outcome o = {0};

    close(server->listen_fd);
    unlink(server->path);
    thin_client_set_retry_first(client, true);
    ck_assert_int_eq(thin_client_connect(client, on_done, &o), 0);
    for (int i = 0; i < 30; i++)
        turn(5);
    ck_assert_uint_eq(o.calls, 0);
    fake_listen(server);
    ck_assert_int_eq(finish(&o), 0);
}
END_TEST

START_TEST(a_refused_hello_tells_why)
{
    struct outcome o = {0};

    server->refuse_hello = -THIN_E_VERSION;
    ck_assert_int_eq(thin_client_connect(client, on_done, &o), 0);
    ck_assert_int_eq(finish(&o), -THIN_E_VERSION);
    ck_assert_ptr_nonnull(strstr(thin_client_error(client), "not today"));
}
END_TEST

START_TEST(a_server_that_says_nothing_times_out)
{
    struct outcome o = {0};

    thin_client_set_connect_timeout_ms(client, 50);
    server->deaf = true;
    ck_assert_int_eq(thin_client_connect(client, on_done, &o), 0);
    ck_assert_int_eq(finish(&o), -THIN_CLIENT_E_TIMED_OUT);
}
END_TEST

/* Connections end anywhere, also in the middle of frames; each write is done once, and
   what was read is what was written. */
START_TEST(random_losses_change_nothing)
{
    enum { NR = 8 };
    static uint8_t out[NR][70000], in[NR][70000];
    struct outcome o[NR];
    unsigned writes = 0;

    open_now();
    for (int round = 0; round < 60; round++) {
        bool reading = round % 2;
        size_t len = 1 + random_below(&rng, sizeof(out[0]) - 1);

        memset(o, 0, sizeof(o));
        if (random_below(&rng, 2))
            server->drop_after_request = 1 + (int)random_below(&rng, NR);
        else
            server->drop_before_request = 1 + (int)random_below(&rng, NR);
        for (unsigned i = 0; i < NR; i++) {
            struct iovec iov = {reading ? in[i] : out[i], len};
            uint64_t at = i * sizeof(out[0]);

            if (!reading)
                fill(out[i], 100);
            ck_assert_int_eq(
                reading ? thin_client_read(volume, &iov, 1, at, on_done, &o[i])
                        : thin_client_write(volume, &iov, 1, at, 0, on_done, &o[i]),
                0);
            writes += !reading;
            if (random_below(&rng, 4) == 0)
                turn(0);
            if (random_below(&rng, 20) == 0)
                fake_drop(server); /* in the middle of whatever is under way */
        }
        for (unsigned i = 0; i < NR; i++) {
            ck_assert_int_eq(finish(&o[i]), 0);
            ck_assert_mem_eq(server->disk + i * sizeof(out[0]), out[i],
                             reading ? 1 : len);
            if (reading)
                ck_assert_mem_eq(in[i], server->disk + i * sizeof(out[0]), len);
        }
        server->drop_after_request = server->drop_before_request = 0;
    }
    ck_assert_uint_eq(server->nr_writes_done, writes);
    ck_assert_uint_eq(server->nr_opens, 1);
}
END_TEST

/* ---- closing ----------------------------------------------------------------------- */

START_TEST(close_waits_for_what_was_sent_and_cancels_the_rest)
{
    enum { NR = 20 };
    uint8_t byte = 1;
    struct outcome o[NR] = {{0}}, closed = {0};
    unsigned done = 0, cancelled = 0;

    open_now();
    server->hold = true;
    for (unsigned i = 0; i < NR; i++) {
        struct iovec iov = {&byte, 1};

        ck_assert_int_eq(thin_client_write(volume, &iov, 1, i, 0, on_done, &o[i]), 0);
    }
    turn(5);
    ck_assert_int_eq(thin_client_close(volume, on_done, &closed), 0);
    ck_assert_int_eq(thin_client_close(volume, on_done, &closed), -THIN_CLIENT_E_INVALID);
    for (int i = 0; i < 10; i++)
        turn(1);
    ck_assert_uint_eq(closed.calls, 0);
    server->hold = false;
    ck_assert_int_eq(finish(&closed), 0);
    for (unsigned i = 0; i < NR; i++) {
        ck_assert_uint_eq(o[i].calls, 1);
        done += o[i].result == 0;
        cancelled += o[i].result == -THIN_CLIENT_E_CANCELLED;
    }
    ck_assert_uint_eq(done, FAKE_SLOTS);
    ck_assert_uint_eq(cancelled, NR - FAKE_SLOTS);
    ck_assert_uint_eq(server->nr_closes, 1);
}
END_TEST

static struct thin_client_volume *first;

/* What a callback starts while the client is destroyed is refused. */
static void
on_done_start_more(void *arg, int result)
{
    static uint8_t byte;
    static struct iovec iov = {&byte, 1};

    on_done(arg, result);
    ck_assert_int_eq(thin_client_connect(client, NULL, NULL), -THIN_CLIENT_E_BUSY);
    ck_assert_int_eq(thin_client_read(first, &iov, 1, 0, on_done, arg),
                     -THIN_CLIENT_E_CANCELLED);
    (void)thin_client_close(first, NULL, NULL);
}

START_TEST(destroy_cancels_everything_once)
{
    enum { NR = 20 };
    static uint8_t byte;
    static struct outcome o[NR], p;

    open_now();
    first = volume;
    server->hold = true;
    for (unsigned i = 0; i < NR; i++) {
        struct iovec iov = {&byte, 1};

        ck_assert_int_eq(
            thin_client_write(volume, &iov, 1, i, 0,
                              i == 3 || i == 15 ? on_done_start_more : on_done, &o[i]),
            0);
    }
    ck_assert_int_eq(thin_client_open(client, "tank/vol", 0, on_opened, &p), 0);
    turn(5);
    thin_client_destroy(client);
    client = NULL;
    for (unsigned i = 0; i < NR; i++) {
        ck_assert_uint_eq(o[i].calls, 1);
        ck_assert_int_eq(o[i].result, -THIN_CLIENT_E_CANCELLED);
    }
    ck_assert_uint_eq(p.calls, 1);
}
END_TEST

START_TEST(an_idle_client_says_goodbye)
{
    open_now();
    thin_client_destroy(client);
    client = NULL;
    for (int i = 0; i < 5; i++)
        fake_step(server);
    ck_assert_uint_eq(server->nr_byes, 1);
}
END_TEST

/* ---- events ------------------------------------------------------------------------ */

START_TEST(events_reach_the_caller)
{
    open_now();
    fake_event(server, "resized", 3, 8u << 20);
    RUN_UNTIL(nr_events == 1);
    ck_assert_int_eq(last_event.kind, THIN_CLIENT_EVENT_RESIZED);
    ck_assert_ptr_eq(last_event.volume, volume);
    ck_assert_uint_eq(thin_client_volume_size(volume), 8u << 20);
    fake_event(server, "low-water", 0, 0);
    RUN_UNTIL(nr_events == 2);
    ck_assert_int_eq(last_event.kind, THIN_CLIENT_EVENT_OTHER);
    fake_event(server, "fenced", 3, 0);
    RUN_UNTIL(nr_events == 3);
    ck_assert_int_eq(flush_now(), -THIN_CLIENT_E_STALE);
}
END_TEST

/* ---- management -------------------------------------------------------------------- */

struct seen_replies {
    unsigned nr, volumes;
    char text[64];
    int answer;
};

static int
on_reply(void *arg, const Thin__Reply *reply, const void *payload, size_t len)
{
    struct seen_replies *seen_replies = arg;

    seen_replies->nr++;
    if (reply->body_case == THIN__REPLY__BODY_VOLUME_LIST)
        seen_replies->volumes += (unsigned)reply->volume_list->n_volumes;
    if (len > 0)
        strncat(seen_replies->text, payload, len);
    return seen_replies->answer;
}

static void
on_called(void *arg, int result, const char *words)
{
    ck_assert_ptr_nonnull(words);
    on_done(arg, result);
}

struct call {
    struct outcome o;
    struct seen_replies replies;
};

static int
call_reply(void *arg, const Thin__Reply *reply, const void *payload, size_t len)
{
    return on_reply(&((struct call *)arg)->replies, reply, payload, len);
}

static void
call_done(void *arg, int result, const char *words)
{
    on_called(&((struct call *)arg)->o, result, words);
}

static int
list_now(struct call *call)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeList list = THIN__VOLUME_LIST__INIT;

    request.body_case = THIN__REQUEST__BODY_VOLUME_LIST;
    request.volume_list = &list;
    ck_assert_int_eq(
        client_call_start(client, &request, call_reply, call_done, call, NULL), 0);
    return finish(&call->o);
}

START_TEST(a_call_connects_and_brings_its_replies)
{
    struct call call = {.o = {0}}, dump = {.o = {0}};
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolDump pool_dump = THIN__POOL_DUMP__INIT;

    server->big_list = true; /* larger than the arena for data replies */
    ck_assert_int_eq(list_now(&call), 0);
    ck_assert_uint_eq(call.replies.nr, 3);
    ck_assert_uint_eq(call.replies.volumes, 3 * PROTO_LIST_MAX);
    request.body_case = THIN__REQUEST__BODY_POOL_DUMP;
    request.pool_dump = &pool_dump;
    ck_assert_int_eq(
        client_call_start(client, &request, call_reply, call_done, &dump, NULL), 0);
    ck_assert_int_eq(finish(&dump.o), 0);
    ck_assert_str_eq(dump.replies.text, "first second");
}
END_TEST

START_TEST(an_answer_cut_in_the_middle_is_told_and_its_slot_comes_back)
{
    struct call call = {.o = {0}};

    connect_now();
    server->big_list = server->cut_list = true;
    ck_assert_int_eq(list_now(&call), -THIN_CLIENT_E_DISCONNECTED);
    ck_assert_uint_eq(call.replies.nr, 2);
    for (unsigned i = 0; i < 3 * FAKE_SLOTS; i++) {
        struct call again = {.o = {0}};

        ck_assert_int_eq(list_now(&again), 0);
        ck_assert_uint_eq(again.replies.nr, 3);
    }
    ck_assert_uint_eq(call.o.calls, 1);
}
END_TEST

START_TEST(a_caller_may_have_enough)
{
    struct call call = {.replies = {.answer = -THIN_E_CANCELLED}}, again = {.o = {0}};

    connect_now();
    server->big_list = true;
    ck_assert_int_eq(list_now(&call), -THIN_E_CANCELLED);
    ck_assert_uint_eq(call.replies.nr, 1);
    ck_assert_int_eq(list_now(&again), 0);
    ck_assert_uint_eq(server->nr_cancels, 1);
}
END_TEST

START_TEST(a_change_whose_answer_died_with_the_server_is_of_unknown_outcome)
{
    struct call change = {.o = {0}}, list = {.o = {0}};
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolOpen pool_open = THIN__POOL_OPEN__INIT;
    Thin__VolumeList volume_list = THIN__VOLUME_LIST__INIT;

    connect_now();
    server->hold = true;
    request.body_case = THIN__REQUEST__BODY_POOL_OPEN;
    request.pool_open = &pool_open;
    ck_assert_int_eq(
        client_call_start(client, &request, call_reply, call_done, &change, NULL), 0);
    request.body_case = THIN__REQUEST__BODY_VOLUME_LIST;
    request.volume_list = &volume_list;
    ck_assert_int_eq(
        client_call_start(client, &request, call_reply, call_done, &list, NULL), 0);
    turn(5);
    fake_restart(server, false);
    server->hold = false;
    ck_assert_int_eq(finish(&change.o), -THIN_CLIENT_E_UNKNOWN_OUTCOME);
    ck_assert_int_eq(finish(&list.o), 0); /* a question is asked again */
}
END_TEST

/* ---- TLS --------------------------------------------------------------------------- */

static char *
pem(const char *who, const char *name)
{
    static char paths[8][200];
    static unsigned next;
    char *path = paths[next++ % 8];

    snprintf(path, 200, "%s/pki/%s/%s", dir, who, name);
    return path;
}

/* Both ends over TLS on 127.0.0.1: the same requests, the same losses. */
START_TEST(it_all_works_over_tls)
{
    static uint8_t out[200000], in[200000];
    char pki[100], address[64];
    struct thin_error err;
    struct pki_issue_params store = {.name = "store", .server = true};
    struct pki_issue_params host = {.name = "host7"};
    struct channel_tls_params params;
    struct socket_address listen;
    struct socket_listen_params listen_params = {.backlog = 8};
    int fds[SOCKET_ADDRESSES_MAX];
    unsigned nr;

    snprintf(pki, sizeof(pki), "%s/pki", dir);
    ck_assert_msg(pki_init(pki, &err) == 0, "%s", err.text);
    ck_assert_int_eq(pki_issue(pki, &store, &err), 0);
    ck_assert_int_eq(pki_issue(pki, &host, &err), 0);
    params = (struct channel_tls_params){.cert = pem("store", "server-cert.pem"),
                                         .key = pem("store", "server-key.pem"),
                                         .ca = pem("store", "ca-cert.pem"),
                                         .server = true};
    ck_assert_int_eq(channel_tls_create(&params, &server->tls, &err), 0);
    ck_assert_int_eq(socket_address_parse_host("127.0.0.1:0", 0, &listen, &err), 0);
    ck_assert_int_eq(socket_listen(&listen, &listen_params, fds, &nr, &err), 0);
    close(server->listen_fd);
    server->listen_fd = fds[0];
    snprintf(address, sizeof(address), "tls://127.0.0.1:%u", socket_local_port(fds[0]));
    ck_assert_int_eq(thin_client_set_server(client, address), 0);
    ck_assert_int_eq(thin_client_connect(client, NULL, NULL), -THIN_CLIENT_E_INVALID);
    ck_assert_int_eq(thin_client_set_tls(client, pem("host7", "client-cert.pem"),
                                         pem("host7", "client-key.pem"),
                                         pem("host7", "ca-cert.pem"), NULL),
                     0);
    open_now();
    fill(out, sizeof(out));
    server->drop_after_request = 2;
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(write_now(out, sizeof(out), 77, 0), 0);
        ck_assert_int_eq(read_now(in, sizeof(in), 77), 0);
        ck_assert_mem_eq(in, out, sizeof(in));
    }
    ck_assert_uint_eq(server->nr_resumed, 1);
}
END_TEST

static void
remove_files(void)
{
    char command[64];

    snprintf(command, sizeof(command), "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

int
main(void)
{
    Suite *s = suite_create("client");
    TCase *tc = tcase_create("client");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_unchecked_fixture(tc, set_up_files, remove_files);
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, what_is_written_is_read);
    tcase_add_test(tc, all_kinds_of_requests_work);
    tcase_add_test(tc, block_status_tells_extents);
    tcase_add_test(tc, what_cannot_be_is_refused_at_once);
    tcase_add_test(tc, a_volume_that_is_not_there_is_told);
    tcase_add_test(tc, a_read_only_volume_is_not_written);
    tcase_add_test(tc, errors_of_the_server_reach_the_caller);
    tcase_add_test(tc, many_requests_wait_for_slots_and_credits);
    tcase_add_test(tc, data_checksums_find_a_changed_byte);
    tcase_add_test(tc, a_request_done_but_not_answered_is_not_done_twice);
    tcase_add_test(tc, a_request_that_was_lost_is_sent_again);
    tcase_add_test(tc, everything_in_flight_survives_a_lost_connection);
    tcase_add_test(tc, after_a_restart_the_volume_is_opened_again_and_requests_go_on);
    tcase_add_test(tc, lost_writes_are_told);
    tcase_add_test(tc, lost_writes_are_told_without_change_numbers);
    tcase_add_test(tc, a_restart_that_loses_nothing_is_only_a_pause);
    tcase_add_test(tc, a_volume_that_another_one_took_is_stale);
    tcase_add_test(tc, a_volume_that_is_busy_for_a_moment_is_asked_for_again);
    tcase_add_test(tc, a_silent_server_is_noticed);
    tcase_add_test(tc, a_slow_link_is_not_a_dead_one);
    tcase_add_test(tc, a_server_that_breaks_the_rules_is_left);
    tcase_add_test(tc, after_the_offline_timeout_requests_fail);
    tcase_add_test(tc, a_first_connect_that_fails_is_told);
    tcase_add_test(tc, a_first_connect_may_be_repeated_until_it_works);
    tcase_add_test(tc, a_refused_hello_tells_why);
    tcase_add_test(tc, a_server_that_says_nothing_times_out);
    tcase_add_test(tc, random_losses_change_nothing);
    tcase_add_test(tc, close_waits_for_what_was_sent_and_cancels_the_rest);
    tcase_add_test(tc, destroy_cancels_everything_once);
    tcase_add_test(tc, an_idle_client_says_goodbye);
    tcase_add_test(tc, events_reach_the_caller);
    tcase_add_test(tc, a_call_connects_and_brings_its_replies);
    tcase_add_test(tc, an_answer_cut_in_the_middle_is_told_and_its_slot_comes_back);
    tcase_add_test(tc, a_caller_may_have_enough);
    tcase_add_test(tc, a_change_whose_answer_died_with_the_server_is_of_unknown_outcome);
    tcase_add_test(tc, it_all_works_over_tls);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
