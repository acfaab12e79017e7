/*
 * One suite for every driver and wrapper: what device.h promises. Each case runs once
 * for each kind in the table below, over a loop of its own.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/poll_loop.h"
#include "core/base/random.h"
#include "core/device/device_nbd.h"
#include "core/device/file_private.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/device_fault.h"
#include "tests/lib/device_log.h"
#include "tests/lib/nbdkit.h"
#include "tests/lib/sim_loop.h"

#define SIZE    (1u << 20)
#define SECTORS (SIZE / 512)

enum backing { MEM, FILE_BACKED, FAULT, LOG, CRASH, NBD };

static const struct kind {
    const char *name;
    enum backing backing;
    enum device_file_way way;
    bool direct;
    bool big_sectors; /* as on a disk of 4096-byte sectors */
} kinds[] = {
    {"memory", MEM, 0, false, false},
    {"file-auto", FILE_BACKED, DEVICE_WAY_AUTO, false, false},
    {"file-uring", FILE_BACKED, DEVICE_WAY_URING, false, false},
    {"file-threads", FILE_BACKED, DEVICE_WAY_THREADS, false, false},
    {"file-inline", FILE_BACKED, DEVICE_WAY_INLINE, false, false},
    {"file-auto-direct", FILE_BACKED, DEVICE_WAY_AUTO, true, false},
    {"file-uring-direct", FILE_BACKED, DEVICE_WAY_URING, true, false},
    {"file-threads-direct", FILE_BACKED, DEVICE_WAY_THREADS, true, false},
    {"file-inline-direct", FILE_BACKED, DEVICE_WAY_INLINE, true, false},
    {"file-auto-direct-4k", FILE_BACKED, DEVICE_WAY_AUTO, true, true},
    {"file-threads-direct-4k", FILE_BACKED, DEVICE_WAY_THREADS, true, true},
    {"file-inline-direct-4k", FILE_BACKED, DEVICE_WAY_INLINE, true, true},
    {"fault", FAULT, 0, false, false},
    {"log", LOG, 0, false, false},
    {"crash", CRASH, 0, false, false},
    {"nbd", NBD, 0, false, false},
};
#define NR_KINDS ((int)(sizeof(kinds) / sizeof(kinds[0])))

/* ---- a device of the kind under test ------------------------------------------------- */

static const struct kind *kind;
static struct thin_loop *loop;
static struct device *dev;
static struct device_log *dlog;
static struct crash_disk *disk;
static struct nbdkit server;
static struct thin_random rng;
static char path[256];
static bool on_sim;

static void
make_path(void)
{
    const char *dir = getenv("TMPDIR");

    snprintf(path, sizeof(path), "%s/thin-contract-%d-%s", dir ? dir : "/var/tmp",
             (int)getpid(), kind->name);
    unlink(path);
}

static struct device *
open_mem(uint64_t size)
{
    struct device *mem;

    ck_assert_int_eq(device_mem_open(loop, size, &mem), 0);
    return mem;
}

static struct device *
open_file(uint64_t create_size, bool read_only)
{
    struct device_file_params params = {.path = path,
                                        .way = kind->way,
                                        .direct = kind->direct,
                                        .create = create_size > 0,
                                        .create_size = create_size,
                                        .read_only = read_only};
    struct device *file = NULL;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = device_file_open(loop, &params, &file, &err);
    ck_assert_msg(r == 0, "%s: %s", kind->name, thin_error_text(&err, r));
    if (kind->big_sectors) {
        struct file_device *f = container_of(file, struct file_device, base);

        f->offset_align = 4096;
        f->mem_align = 4096;
    }
    return file;
}

static struct device *
open_nbd(void)
{
    struct device_nbd_params params = {.uri = server.uri, .connections = 2};
    struct device *nbd = NULL;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = device_nbd_open_wait(loop, &params, &nbd, &err);
    ck_assert_msg(r == 0, "%s", thin_error_text(&err, r));
    return nbd;
}

static void
setup(int i)
{
    const char *seed_text = getenv("SEED");
    uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL);

    kind = &kinds[i];
    printf("%s: SEED=%" PRIu64 "\n", kind->name, seed);
    random_seed(&rng, seed);
    on_sim = kind->backing == CRASH;
    loop = on_sim ? sim_loop_create(seed) : poll_loop_create();
    ck_assert_ptr_nonnull(loop);
    switch (kind->backing) {
    case MEM:
        dev = open_mem(SIZE);
        break;
    case FILE_BACKED:
        make_path();
        dev = open_file(SIZE, false);
        break;
    case FAULT:
        dev = device_fault_open(open_mem(SIZE));
        break;
    case LOG:
        dlog = device_log_create();
        dev = device_log_open(dlog, open_mem(SIZE));
        break;
    case CRASH:
        disk = crash_disk_create(&rng, SIZE, NULL);
        dev = crash_disk_open(disk, loop);
        break;
    case NBD:
        nbdkit_init(&server);
        nbdkit_start(&server, "memory 1M");
        dev = open_nbd();
        break;
    }
}

static void
teardown(void)
{
    device_close_wait(dev);
    if (on_sim)
        sim_loop_destroy(loop);
    else
        poll_loop_destroy(loop);
    device_log_destroy(take(dlog));
    crash_disk_destroy(take(disk));
    if (kind->backing == FILE_BACKED)
        unlink(path);
    if (kind->backing == NBD)
        nbdkit_fini(&server);
}

/* ---- requests -------------------------------------------------------------------------- */

struct request {
    struct device_io io;
    struct iovec iov[4];
    char *buf;
    bool submitting;
    unsigned nr_done;
    int result;
};

static void
request_done(struct device_io *io, int result)
{
    struct request *q = container_of(io, struct request, io);

    ck_assert_msg(!q->submitting, "done inside submit");
    q->nr_done++;
    q->result = result;
}

static void
submit(struct request *q)
{
    q->io.done = request_done;
    q->submitting = true;
    device_submit(dev, &q->io);
    q->submitting = false;
}

static void
wait_for(struct request *q)
{
    while (q->nr_done == 0)
        ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_uint_eq(q->nr_done, 1);
}

static int
run(struct request *q)
{
    q->nr_done = 0;
    submit(q);
    wait_for(q);
    return q->result;
}

static int
run_op(enum device_op op, uint64_t offset, uint64_t len, unsigned flags)
{
    struct request q = {.io = {.op = op, .offset = offset, .len = len, .flags = flags}};
    char *buf = NULL;
    int r;

    if (op == DEVICE_READ || op == DEVICE_WRITE) {
        buf = calloc(1, len ? len : 1);
        q.iov[0] = (struct iovec){.iov_base = buf, .iov_len = len};
        q.io.iov = q.iov;
        q.io.nr_iov = 1;
    }
    r = run(&q);
    free(buf);
    return r;
}

static void
fill(char *buf, size_t len)
{
    for (size_t i = 0; i + 8 <= len; i += 8) {
        uint64_t v = random_u64(&rng);

        memcpy(buf + i, &v, 8);
    }
}

/* ---- cases ------------------------------------------------------------------------------- */

START_TEST(what_was_written_is_read)
{
    static char a[8192], b[8192];

    setup(_i);
    ck_assert_int_eq(device_read_wait(dev, 0, b, sizeof(b)), 0);
    for (size_t i = 0; i < sizeof(b); i++)
        ck_assert_int_eq(b[i], 0);
    fill(a, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, 512, a, sizeof(a), 0), 0);
    ck_assert_int_eq(device_read_wait(dev, 512, b, sizeof(b)), 0);
    ck_assert_mem_eq(a, b, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, SIZE - 512, a, 512, DEVICE_FUA), 0);
    ck_assert_int_eq(device_read_wait(dev, SIZE - 512, b, 512), 0);
    ck_assert_mem_eq(a, b, 512);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    teardown();
}
END_TEST

START_TEST(broken_shapes_are_refused)
{
    struct iovec two[2] = {{NULL, SIZE_MAX}, {NULL, 513}};
    struct request q = {.io = {.op = DEVICE_READ, .len = 512, .iov = two, .nr_iov = 2}};

    setup(_i);
    ck_assert_int_eq(run_op(DEVICE_READ, 1, 512, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_READ, 0, 513, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_WRITE, 0, 0, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_DISCARD, 256, 512, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_READ, 0, 512, DEVICE_FUA), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_WRITE, 0, 512, DEVICE_NO_UNMAP), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_EXTENTS, 0, 512, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_GROW, SIZE - 512, 0, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run_op(DEVICE_GROW, SIZE + 1, 0, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run_op((enum device_op)99, 0, 512, 0), -THIN_E_INVALID);
    ck_assert_int_eq(run(&q), -THIN_E_INVALID); /* the pieces' sum overflows */
    q.io.nr_iov = 0;
    ck_assert_int_eq(run(&q), -THIN_E_INVALID);
    q.io.nr_iov = 2;
    two[0].iov_len = 511; /* 1024, not 512 */
    ck_assert_int_eq(run(&q), -THIN_E_INVALID);
    teardown();
}
END_TEST

START_TEST(nothing_beyond_the_end_is_touched)
{
    static const enum device_op ops[] = {DEVICE_READ, DEVICE_WRITE, DEVICE_WRITE_ZEROES,
                                         DEVICE_DISCARD, DEVICE_ALLOCATE};

    setup(_i);
    for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        ck_assert_int_eq(run_op(ops[i], SIZE, 512, 0), -THIN_E_RANGE);
        ck_assert_int_eq(run_op(ops[i], SIZE - 512, 1024, 0), -THIN_E_RANGE);
        ck_assert_int_eq(run_op(ops[i], UINT64_MAX - 511, 512, 0), -THIN_E_RANGE);
        ck_assert_int_eq(run_op(ops[i], UINT64_MAX - 511, 4096, 0), -THIN_E_RANGE);
    }
    ck_assert_uint_eq(dev->size, SIZE);
    if (kind->backing == FILE_BACKED) {
        struct stat st;

        ck_assert_int_eq(stat(path, &st), 0);
        ck_assert_int_eq(st.st_size, SIZE);
    }
    teardown();
}
END_TEST

START_TEST(a_read_only_device_is_not_changed)
{
    static char a[512], b[512];

    setup(_i);
    fill(a, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, 0, a, sizeof(a), 0), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    if (kind->backing == FILE_BACKED) {
        device_close_wait(dev);
        dev = open_file(0, true);
    } else {
        dev->read_only = true;
    }
    ck_assert_int_eq(run_op(DEVICE_WRITE, 0, 512, 0), -THIN_E_READ_ONLY);
    ck_assert_int_eq(run_op(DEVICE_WRITE_ZEROES, 0, 512, 0), -THIN_E_READ_ONLY);
    ck_assert_int_eq(run_op(DEVICE_DISCARD, 0, 512, 0), -THIN_E_READ_ONLY);
    ck_assert_int_eq(run_op(DEVICE_GROW, 2 * SIZE, 0, 0), -THIN_E_READ_ONLY);
    ck_assert_int_eq(run_op(DEVICE_ALLOCATE, 0, 512, 0), -THIN_E_READ_ONLY);
    ck_assert_int_eq(device_read_wait(dev, 0, b, sizeof(b)), 0);
    ck_assert_mem_eq(a, b, sizeof(a));
    teardown();
}
END_TEST

START_TEST(a_lost_device_fails_everything)
{
    setup(_i);
    dev->lost = true;
    ck_assert_int_eq(run_op(DEVICE_READ, 0, 512, 0), -THIN_E_LOST);
    ck_assert_int_eq(run_op(DEVICE_FLUSH, 0, 0, 0), -THIN_E_LOST);
    teardown();
}
END_TEST

START_TEST(odd_pieces_are_put_together)
{
    static const size_t cuts[] = {1, 511, 3, 4096, 600, 0, 700};
    enum { LEN = 6144 };
    struct iovec iov[8];
    static char a[LEN], b[LEN + 1];
    struct request q = {
        .io = {.op = DEVICE_WRITE, .offset = 1536, .len = LEN, .iov = iov}};
    size_t at = 0;

    setup(_i);
    fill(a, sizeof(a));
    for (unsigned i = 0; i < 7; i++) {
        iov[i] = (struct iovec){.iov_base = a + at, .iov_len = cuts[i]};
        at += cuts[i];
    }
    iov[7] = (struct iovec){.iov_base = a + at, .iov_len = LEN - at};
    q.io.nr_iov = 8;
    ck_assert_int_eq(run(&q), 0);
    ck_assert_int_eq(device_read_wait(dev, 1536, b + 1, LEN), 0); /* odd address */
    ck_assert_mem_eq(a, b + 1, LEN);
    memset(b, 0, sizeof(b));
    for (unsigned i = 0, from = 0; i < 8; i++) {
        iov[i].iov_base = b + from;
        from += (unsigned)iov[i].iov_len;
    }
    q.io.op = DEVICE_READ;
    ck_assert_int_eq(run(&q), 0);
    ck_assert_mem_eq(a, b, LEN);
    teardown();
}
END_TEST

START_TEST(many_pieces_and_large_requests_work)
{
    enum { LEN = DEVICE_IOV_MAX * 2048 }; /* 512 KiB: the large way */
    struct iovec iov[DEVICE_IOV_MAX];
    char *a = aligned_alloc(4096, LEN), *b = aligned_alloc(4096, LEN);
    struct request q = {.io = {.op = DEVICE_WRITE,
                               .offset = 4096,
                               .len = LEN,
                               .iov = iov,
                               .nr_iov = DEVICE_IOV_MAX,
                               .flags = DEVICE_FUA}};

    setup(_i);
    ck_assert(a && b);
    fill(a, LEN);
    for (unsigned i = 0; i < DEVICE_IOV_MAX; i++)
        iov[i] = (struct iovec){.iov_base = a + i * 2048, .iov_len = 2048};
    ck_assert_int_eq(run(&q), 0);
    ck_assert_int_eq(device_read_wait(dev, 4096, b, LEN), 0);
    ck_assert_mem_eq(a, b, LEN);
    free(a);
    free(b);
    teardown();
}
END_TEST

static bool
reads_zero(uint64_t offset, uint64_t len)
{
    char *buf = malloc(len);
    bool zero = true;

    ck_assert_ptr_nonnull(buf);
    memset(buf, 0x5a, len);
    ck_assert_int_eq(device_read_wait(dev, offset, buf, len), 0);
    for (uint64_t i = 0; i < len; i++)
        zero = zero && buf[i] == 0;
    free(buf);
    return zero;
}

START_TEST(zeroes_are_zeros_and_spare_their_neighbours)
{
    static const unsigned flags[] = {0, DEVICE_NO_UNMAP, DEVICE_FUA,
                                     DEVICE_NO_UNMAP | DEVICE_FUA};
    static const uint64_t lens[] = {512, 4096, 12288, 65536 + 512, 300 * 1024};
    char *a = malloc(SIZE), *b = malloc(SIZE);

    setup(_i);
    ck_assert(a && b);
    for (unsigned i = 0; i < 4; i++)
        for (unsigned j = 0; j < 5; j++) {
            uint64_t at = 512 * (1 + random_below(&rng, 100));

            fill(a, SIZE);
            ck_assert_int_eq(device_write_wait(dev, 0, a, SIZE, 0), 0);
            ck_assert_int_eq(device_zero_wait(dev, at, lens[j], flags[i]), 0);
            memset(a + at, 0, lens[j]);
            ck_assert_int_eq(device_read_wait(dev, 0, b, SIZE), 0);
            ck_assert_mem_eq(a, b, SIZE);
        }
    ck_assert(reads_zero(0, 512) == false);
    free(a);
    free(b);
    teardown();
}
END_TEST

START_TEST(fast_zeroes_are_zeros_or_change_nothing)
{
    static char a[4096], b[4096];
    int r;

    setup(_i);
    fill(a, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, 8192, a, sizeof(a), 0), 0);
    r = run_op(DEVICE_WRITE_ZEROES, 8192, 4096, DEVICE_ONLY_FAST);
    if (r == -EOPNOTSUPP) {
        ck_assert_int_eq(device_read_wait(dev, 8192, b, sizeof(b)), 0);
        ck_assert_mem_eq(a, b, sizeof(b));
    } else {
        ck_assert_int_eq(r, 0);
        ck_assert(reads_zero(8192, 4096));
    }
    teardown();
}
END_TEST

START_TEST(a_discard_spares_its_neighbours)
{
    char *a = malloc(SIZE), *b = malloc(SIZE);
    enum { AT = 4096 + 512, LEN = 3 * 4096 };

    setup(_i);
    ck_assert(a && b);
    fill(a, SIZE);
    ck_assert_int_eq(device_write_wait(dev, 0, a, SIZE, 0), 0);
    ck_assert_int_eq(run_op(DEVICE_DISCARD, AT, LEN, 0), 0);
    ck_assert_int_eq(device_read_wait(dev, 0, b, SIZE), 0);
    ck_assert_mem_eq(a, b, AT);
    ck_assert_mem_eq(a + AT + LEN, b + AT + LEN, SIZE - AT - LEN);
    free(a);
    free(b);
    teardown();
}
END_TEST

static unsigned
get_extents(uint64_t offset, uint64_t len, struct device_extent *extents, unsigned max)
{
    struct request q = {.io = {.op = DEVICE_EXTENTS,
                               .offset = offset,
                               .len = len,
                               .extents = extents,
                               .max_extents = max}};
    uint64_t sum = 0;

    ck_assert_int_eq(run(&q), 0);
    ck_assert_uint_ge(q.io.ret_nr_extents, 1);
    ck_assert_uint_le(q.io.ret_nr_extents, max);
    for (unsigned i = 0; i < q.io.ret_nr_extents; i++) {
        ck_assert_uint_gt(extents[i].len, 0);
        ck_assert_uint_eq(extents[i].len % 512, 0);
        sum += extents[i].len;
    }
    ck_assert_uint_le(sum, len);
    return q.io.ret_nr_extents;
}

/* Where extents say zeros, zeros are read. */
static void
check_extents(unsigned max)
{
    struct device_extent extents[64];
    uint64_t at = 0;

    while (at < SIZE) {
        unsigned n = get_extents(at, SIZE - at, extents, max);

        for (unsigned i = 0; i < n; i++) {
            if (extents[i].kind != DEVICE_EXTENT_DATA)
                ck_assert(reads_zero(at, extents[i].len));
            at += extents[i].len;
        }
    }
    ck_assert_uint_eq(at, SIZE);
}

START_TEST(extents_prove_zeros)
{
    struct device_extent extents[64];
    static char a[16384];

    setup(_i);
    if (dev->limits.zeroes_fresh) {
        ck_assert_uint_eq(get_extents(0, SIZE, extents, 64), 1);
        ck_assert_int_eq(extents[0].kind, DEVICE_EXTENT_HOLE);
        ck_assert_uint_eq(extents[0].len, SIZE);
    }
    fill(a, sizeof(a));
    for (unsigned i = 0; i < 8; i++) {
        uint64_t at = 512 * random_below(&rng, SECTORS - 32);
        int r = run_op(DEVICE_ALLOCATE, at, sizeof(a), 0);

        ck_assert(r == 0 || r == -THIN_E_UNSUPPORTED);
        at = 512 * random_below(&rng, SECTORS - 32);
        /* Dirty pages over an unwritten extent are data. */
        ck_assert_int_eq(device_write_wait(dev, at, a, sizeof(a), 0), 0);
        at = 512 * random_below(&rng, SECTORS - 32);
        ck_assert_int_eq(
            device_zero_wait(dev, at, sizeof(a), i % 2 ? DEVICE_NO_UNMAP : 0), 0);
        at = 512 * random_below(&rng, SECTORS - 32);
        ck_assert_int_eq(run_op(DEVICE_DISCARD, at, sizeof(a), 0), 0);
        check_extents(64);
        check_extents(1);
    }
    teardown();
}
END_TEST

START_TEST(allocating_keeps_the_contents)
{
    static char a[4096], b[4096];
    struct device_extent extents[8];
    int r;

    setup(_i);
    fill(a, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, 65536, a, sizeof(a), 0), 0);
    r = run_op(DEVICE_ALLOCATE, 0, 131072, 0);
    ck_assert(r == 0 || r == -THIN_E_UNSUPPORTED);
    ck_assert_int_eq(device_read_wait(dev, 65536, b, sizeof(b)), 0);
    ck_assert_mem_eq(a, b, sizeof(b));
    ck_assert(reads_zero(0, 65536));
    if (r == 0) {
        unsigned n = get_extents(0, 65536, extents, 8);

        for (unsigned i = 0; i < n; i++)
            ck_assert_int_ne(extents[i].kind, DEVICE_EXTENT_HOLE);
    }
    teardown();
}
END_TEST

START_TEST(growing_adds_zeros_and_keeps_the_rest)
{
    static char a[512], b[512];

    setup(_i);
    fill(a, sizeof(a));
    ck_assert_int_eq(device_write_wait(dev, SIZE - 512, a, 512, 0), 0);
    ck_assert_int_eq(device_grow_wait(dev, SIZE), 0);
    ck_assert_uint_eq(dev->size, SIZE);
    if (kind->backing == NBD) {
        /* Only the server can. */
        ck_assert_int_eq(device_grow_wait(dev, 3 * SIZE), -THIN_E_UNSUPPORTED);
        teardown();
        return;
    }
    ck_assert_int_eq(device_grow_wait(dev, 3 * SIZE), 0);
    ck_assert_uint_eq(dev->size, 3 * SIZE);
    ck_assert_int_eq(device_read_wait(dev, SIZE - 512, b, 512), 0);
    ck_assert_mem_eq(a, b, 512);
    ck_assert(reads_zero(SIZE, 2 * SIZE));
    ck_assert_int_eq(device_write_wait(dev, 3 * SIZE - 512, a, 512, 0), 0);
    ck_assert_int_eq(run_op(DEVICE_READ, 3 * SIZE, 512, 0), -THIN_E_RANGE);
    if (kind->backing == FILE_BACKED) {
        ck_assert_int_eq(device_flush_wait(dev), 0);
        device_close_wait(dev);
        dev = open_file(0, false);
        ck_assert_uint_eq(dev->size, 3 * SIZE);
        ck_assert_int_eq(device_read_wait(dev, 3 * SIZE - 512, b, 512), 0);
        ck_assert_mem_eq(a, b, 512);
    }
    teardown();
}
END_TEST

static void
note_closed(void *arg)
{
    *(bool *)arg = true;
}

START_TEST(close_waits_for_what_was_submitted)
{
    enum { N = 40 };
    static struct request q[N];
    static char buf[N][4096];
    bool closed = false;

    setup(_i);
    memset(q, 0, sizeof(q));
    for (unsigned i = 0; i < N; i++) {
        q[i].iov[0] = (struct iovec){.iov_base = buf[i], .iov_len = 4096};
        q[i].io = (struct device_io){.op = i % 3 ? DEVICE_WRITE : DEVICE_READ,
                                     .offset = i * 4096u,
                                     .len = 4096,
                                     .iov = q[i].iov,
                                     .nr_iov = 1,
                                     .flags = i % 3 == 2 ? DEVICE_FUA : 0};
        submit(&q[i]);
    }
    ck_assert_uint_eq(dev->in_flight, N);
    device_close(dev, note_closed, &closed);
    ck_assert(!closed);
    q[0].nr_done = 0;
    while (!closed)
        ck_assert_int_eq(loop_run_once(loop), 0);
    for (unsigned i = 0; i < N; i++) {
        ck_assert_uint_eq(q[i].nr_done, 1);
        ck_assert_int_eq(q[i].result, 0);
    }
    dev = NULL;
    teardown();
}
END_TEST

/* A request submitted from `done` while the device closes is refused, and told so. */
static struct request late;

static void
submit_late(struct device_io *io, int result)
{
    request_done(io, result);
    submit(&late);
}

START_TEST(a_closing_device_takes_nothing_new)
{
    struct request q = {.io = {.op = DEVICE_FLUSH}};
    bool closed = false;

    setup(_i);
    late = (struct request){.io = {.op = DEVICE_FLUSH}};
    q.io.done = submit_late;
    device_submit(dev, &q.io);
    device_close(dev, note_closed, &closed);
    while (!closed)
        ck_assert_int_eq(loop_run_once(loop), 0);
    ck_assert_uint_eq(q.nr_done, 1);
    ck_assert_uint_eq(late.nr_done, 1);
    ck_assert_int_eq(late.result, -THIN_E_SHUTDOWN);
    dev = NULL;
    teardown();
}
END_TEST

/* ---- random requests against a model --------------------------------------------------------- */

enum { LANES = 16, LANE_BYTES = SIZE / LANES, STEPS = 1500 };

struct lane {
    struct request q;
    bool busy;
    uint64_t at, len;
    unsigned base;
    char data[LANE_BYTES + 64];
    struct device_extent extents[16];
};

static char model[SIZE];
static bool unknown[SECTORS]; /* discarded: may read as anything */

static void
check_lane_read(struct lane *l)
{
    for (uint64_t i = 0; i < l->len; i += 512)
        if (!unknown[(l->at + i) / 512])
            ck_assert_mem_eq(l->data + l->base + i, model + l->at + i, 512);
}

static void
lane_settle(struct lane *l)
{
    const struct device_io *io = &l->q.io;

    ck_assert_uint_eq(l->q.nr_done, 1);
    ck_assert_int_eq(l->q.result, 0);
    l->busy = false;
    switch (io->op) {
    case DEVICE_READ:
        check_lane_read(l);
        break;
    case DEVICE_WRITE:
        memcpy(model + l->at, l->data + l->base, l->len);
        memset(unknown + l->at / 512, 0, l->len / 512);
        break;
    case DEVICE_WRITE_ZEROES:
        memset(model + l->at, 0, l->len);
        memset(unknown + l->at / 512, 0, l->len / 512);
        break;
    case DEVICE_DISCARD:
        memset(unknown + l->at / 512, 1, l->len / 512);
        break;
    default:
        break;
    }
}

static void
lane_start(struct lane *l, unsigned index)
{
    static const unsigned zero_flags[] = {0, DEVICE_NO_UNMAP, DEVICE_FUA};
    uint64_t unit = random_below(&rng, 3) ? 4096 : 512;
    uint64_t at = random_below(&rng, LANE_BYTES / unit) * unit;
    uint64_t len = unit * (1 + random_below(&rng, (LANE_BYTES - at) / unit));
    unsigned pick = (unsigned)random_below(&rng, 20);
    struct device_io *io = &l->q.io;

    l->at = index * (uint64_t)LANE_BYTES + at;
    l->len = len;
    l->base = random_below(&rng, 2) ? 0 : (unsigned)random_below(&rng, 64);
    memset(&l->q, 0, sizeof(l->q));
    io->offset = l->at;
    io->len = len;
    if (pick < 15) {
        uint64_t cut = random_below(&rng, len + 1);

        io->op = pick < 7 ? DEVICE_READ : DEVICE_WRITE;
        if (io->op == DEVICE_WRITE) {
            fill(l->data, sizeof(l->data));
            io->flags = pick == 7 ? DEVICE_FUA : 0;
        }
        l->q.iov[0] =
            (struct iovec){l->data + l->base, random_below(&rng, 2) ? len : cut};
        l->q.iov[1] = (struct iovec){l->data + l->base + l->q.iov[0].iov_len,
                                     len - l->q.iov[0].iov_len};
        io->iov = l->q.iov;
        io->nr_iov = l->q.iov[1].iov_len ? 2 : 1;
    } else if (pick == 15) {
        io->op = DEVICE_WRITE_ZEROES;
        io->flags = zero_flags[random_below(&rng, 3)];
    } else if (pick == 16) {
        io->op = DEVICE_DISCARD;
    } else if (pick == 17) {
        io->op = DEVICE_EXTENTS;
        io->extents = l->extents;
        io->max_extents = 16;
    } else {
        io->op = DEVICE_FLUSH;
    }
    l->busy = true;
    submit(&l->q);
}

START_TEST(random_requests_agree_with_a_model)
{
    struct lane *lanes =
        aligned_alloc(4096, LANES * ((sizeof(struct lane) + 4095) & ~(size_t)4095));
    unsigned steps = STEPS, busy = 0;

    setup(_i);
    ck_assert_ptr_nonnull(lanes);
    memset(lanes, 0, LANES * sizeof(*lanes));
    memset(model, 0, sizeof(model));
    memset(unknown, 0, sizeof(unknown));
    while (steps > 0 || busy > 0) {
        for (unsigned i = 0; i < LANES && steps > 0; i++)
            if (!lanes[i].busy && random_below(&rng, 2)) {
                lane_start(&lanes[i], i);
                steps--;
                busy++;
            }
        if (busy > 0)
            ck_assert_int_eq(loop_run_once(loop), 0);
        for (unsigned i = 0; i < LANES; i++)
            if (lanes[i].busy && lanes[i].q.nr_done > 0) {
                lane_settle(&lanes[i]);
                busy--;
            }
        ck_assert_uint_eq(dev->in_flight, busy);
    }
    free(lanes);
    teardown();
}
END_TEST

/* Neighbouring sectors written at once: each write keeps what the others wrote. */
START_TEST(sectors_of_one_page_do_not_tear_each_other)
{
    enum { N = 64 };
    static struct request q[N];
    static char buf[N][512], got[N * 512];

    setup(_i);
    for (unsigned round = 0; round < 10; round++) {
        memset(q, 0, sizeof(q));
        for (unsigned i = 0; i < N; i++) {
            fill(buf[i], 512);
            q[i].iov[0] = (struct iovec){.iov_base = buf[i], .iov_len = 512};
            q[i].io = (struct device_io){.op = DEVICE_WRITE,
                                         .offset = i * 512u,
                                         .len = 512,
                                         .iov = q[i].iov,
                                         .nr_iov = 1};
            submit(&q[i]);
        }
        for (unsigned i = 0; i < N; i++)
            wait_for(&q[i]);
        ck_assert_int_eq(device_read_wait(dev, 0, got, sizeof(got)), 0);
        for (unsigned i = 0; i < N; i++)
            ck_assert_mem_eq(got + i * 512, buf[i], 512);
    }
    teardown();
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("contract");
    TCase *tc = tcase_create("contract");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, what_was_written_is_read, 0, NR_KINDS);
    tcase_add_loop_test(tc, broken_shapes_are_refused, 0, NR_KINDS);
    tcase_add_loop_test(tc, nothing_beyond_the_end_is_touched, 0, NR_KINDS);
    tcase_add_loop_test(tc, a_read_only_device_is_not_changed, 0, NR_KINDS);
    tcase_add_loop_test(tc, a_lost_device_fails_everything, 0, NR_KINDS);
    tcase_add_loop_test(tc, odd_pieces_are_put_together, 0, NR_KINDS);
    tcase_add_loop_test(tc, many_pieces_and_large_requests_work, 0, NR_KINDS);
    tcase_add_loop_test(tc, zeroes_are_zeros_and_spare_their_neighbours, 0, NR_KINDS);
    tcase_add_loop_test(tc, fast_zeroes_are_zeros_or_change_nothing, 0, NR_KINDS);
    tcase_add_loop_test(tc, a_discard_spares_its_neighbours, 0, NR_KINDS);
    tcase_add_loop_test(tc, extents_prove_zeros, 0, NR_KINDS);
    tcase_add_loop_test(tc, allocating_keeps_the_contents, 0, NR_KINDS);
    tcase_add_loop_test(tc, growing_adds_zeros_and_keeps_the_rest, 0, NR_KINDS);
    tcase_add_loop_test(tc, close_waits_for_what_was_submitted, 0, NR_KINDS);
    tcase_add_loop_test(tc, a_closing_device_takes_nothing_new, 0, NR_KINDS);
    tcase_add_loop_test(tc, random_requests_agree_with_a_model, 0, NR_KINDS);
    tcase_add_loop_test(tc, sectors_of_one_page_do_not_tear_each_other, 0, NR_KINDS);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
