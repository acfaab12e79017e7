/*
 * The n-th I/O fails, and then the n-th allocation, for each n until none fails: through
 * open, create, snapshot, write, discard, write zeroes, resize, delete and close. Each
 * call is answered, somebody is told, nothing is left behind, what is on the disks is a
 * sound pool that opens again and holds what was promised.
 *
 * The disks are two arrays here, which outlive the pool and allocate nothing.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/device/driver.h"
#include "core/pool/pool.h"
#include "tests/lib/nomem.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"
#include "tests/lib/test_cache.h"

#define BLOCK          65536u
#define DATA_BYTES     (100ull * BLOCK)
#define METADATA_BYTES (512ull * 4096)
#define GROWN_BYTES    (600ull * 4096) /* of the metadata */
#define ROUNDS_MAX     20000u
#define NR_DELETED     2u /* their records are ended behind the answer: the log tells */

/* ---- what fails --------------------------------------------------------------------- */

#ifdef NOMEM
static bool of_memory; /* what is counted down: allocations, else I/Os */
#endif
static bool armed, failed;
static unsigned countdown;

static void
arm(unsigned n)
{
#ifdef NOMEM
    if (of_memory) {
        nomem_arm(n);
        return;
    }
#endif
    countdown = n;
    failed = false;
    armed = true;
}

static bool
disarm(void)
{
#ifdef NOMEM
    if (of_memory)
        return nomem_disarm();
#endif
    armed = false;
    return failed;
}

static bool
io_fails(void)
{
    if (!armed || failed || countdown-- > 0)
        return false;
    failed = true;
    return true;
}

/* ---- disks ------------------------------------------------------------------------------ */

struct disk {
    struct device dev;
    uint8_t *bytes;
    uint64_t size, max;
    bool open;
};

static struct disk data, metadata;
static uint8_t data_bytes[DATA_BYTES], metadata_bytes[GROWN_BYTES];
static uint8_t base_data[DATA_BYTES], base_metadata[GROWN_BYTES];
static enum device_op failed_op;
static bool failed_data; /* on which disk */

static void
disk_submit(struct device *dev, struct device_io *io)
{
    struct disk *disk = container_of(dev, struct disk, dev);
    int r = 0;

    if (io_fails()) {
        failed_op = io->op;
        failed_data = disk == &data;
        device_finish(dev, io, -EIO);
        return;
    }
    switch (io->op) {
    case DEVICE_READ:
        device_iov_from_buf(io, 0, disk->bytes + io->offset, io->len);
        break;
    case DEVICE_WRITE:
        device_iov_to_buf(io, 0, disk->bytes + io->offset, io->len);
        break;
    case DEVICE_WRITE_ZEROES:
    case DEVICE_DISCARD:
        memset(disk->bytes + io->offset, 0, io->len);
        break;
    case DEVICE_FLUSH:
    case DEVICE_ALLOCATE:
        break;
    case DEVICE_GROW:
        if (io->offset > disk->max)
            r = -ENOSPC;
        else
            disk->size = io->offset;
        break;
    case DEVICE_EXTENTS:
        device_extent_add(io, io->len, DEVICE_EXTENT_DATA);
        break;
    }
    device_finish(dev, io, r);
}

static void
disk_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    container_of(dev, struct disk, dev)->open = false;
    if (closed)
        closed(arg);
}

static const struct device_ops disk_ops = {
    .kind = "array",
    .submit = disk_submit,
    .close = disk_close,
};

static struct device *
disk_open(struct disk *disk, struct thin_loop *loop)
{
    if (disk->open)
        abort();
    memset(&disk->dev, 0, sizeof(disk->dev));
    device_init(&disk->dev, &disk_ops, loop, "array");
    disk->dev.size = disk->size;
    disk->dev.limits = (struct device_limits){
        .alignment = 512, .best_io_bytes = 1u << 20, .discards = true, .grows = true};
    disk->open = true;
    return &disk->dev;
}

/* ---- calls ------------------------------------------------------------------------------- */

/* Check itself allocates in its asserts, so these are plain while something may fail. */
static struct thin_loop *loop;
static struct pool *pool;
static struct volume *volume;
static unsigned nr_told, nr_errors;
static int outcome;
static uint8_t payload[4 * BLOCK], back[4 * BLOCK];

static void
told(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    (void)err;
    outcome = result;
    nr_errors += result < 0;
    nr_told++;
}

static void
opened(void *arg, struct pool *ret_pool, int result, const struct thin_error *err)
{
    if ((result == 0) != (ret_pool != NULL))
        abort();
    pool = ret_pool;
    told(arg, result, err);
}

static void
volume_opened(void *arg, struct volume *ret_volume, int result,
              const struct thin_error *err)
{
    volume = result == 0 ? ret_volume : NULL;
    told(arg, result, err);
}

static void
io_done(struct volume_io *io, int result)
{
    (void)io;
    told(NULL, result, NULL);
}

static int
wait_told(void)
{
    while (nr_told == 0)
        if (!sim_loop_step(loop))
            abort(); /* not answered */
    if (nr_told != 1)
        abort();
    return outcome;
}

#define DONE       ((struct pool_done){told, NULL})
#define CALL(call) (nr_told = 0, (call), wait_told())

static int
open_pool(bool format)
{
    struct pool_params params = {.loop = loop, .name = "tank", .format = format};

    params.data = disk_open(&data, loop);
    params.metadata = disk_open(&metadata, loop);
    pool_config_default(&params.config);
    params.config.metadata_cache_blocks = 256;
    params.cache_clean = test_cache_clean();
    params.config.mapping_cache_pages = 16;
    params.config.on_full = POOL_ERROR;
    params.data_block_sectors = BLOCK / 512;
    params.seed = 5;
    params.wall_clock_s = 1700000000;
    params.leaf_max = params.internal_max = 6;
    return CALL(pool_open(&params, opened, NULL));
}

static void
close_pool(void)
{
    (void)CALL(pool_close(pool, true, DONE));
    pool = NULL;
    if (volume)
        volume_close(volume);
    volume = NULL;
    sim_loop_run_until_idle(loop, 0);
    if (data.open || metadata.open)
        abort(); /* a device was left behind */
}

static int
request(enum volume_op op, uint64_t offset, uint64_t len, uint8_t *buf)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct volume_io io = {.op = op, .offset = offset, .len = len, .done = io_done};

    if (op == VOLUME_READ || op == VOLUME_WRITE) {
        io.iov = &iov;
        io.nr_iov = 1;
    }
    return CALL(volume_submit(volume, &io));
}

static int
create(const char *name)
{
    const struct volume_spec spec = {.name = name, .size = 8 * BLOCK};

    return CALL(pool_volume_create(pool, &spec, DONE));
}

static int
snapshot(const char *origin, const char *name)
{
    return CALL(pool_volume_snapshot(pool, &origin, &name, 1, DONE));
}

/* ---- the story ----------------------------------------------------------------------------- */

/* What a run was promised, to be held against the disks afterwards. */
struct promise {
    bool flushed;         /* block 0 and 1 of a hold `payload` */
    bool created, gone_s; /* b is there, s is not */
};

static void
story(struct promise *ret)
{
    if (open_pool(false) < 0) {
        sim_loop_run_until_idle(loop, 0);
        if (data.open || metadata.open)
            abort();
        return;
    }
    ret->created = create("b") == 0;
    (void)snapshot("a", "t");
    if (CALL(pool_volume_open(pool, "a", false, volume_opened, NULL)) == 0) {
        /* Shared blocks, a part of one, new blocks. */
        bool wrote = request(VOLUME_WRITE, 0, 2 * BLOCK, payload) == 0;

        (void)request(VOLUME_WRITE, 2 * BLOCK + 1000, 512, payload);
        (void)request(VOLUME_WRITE, 5 * BLOCK + 100, 300, payload);
        ret->flushed = request(VOLUME_FLUSH, 0, 0, NULL) == 0 && wrote;
        (void)request(VOLUME_DISCARD, 3 * BLOCK, BLOCK, NULL);
        (void)request(VOLUME_WRITE_ZEROES, 2 * BLOCK, BLOCK, NULL);
        (void)request(VOLUME_READ, 0, 4 * BLOCK, back);
        (void)request(VOLUME_FLUSH, 0, 0, NULL);
        volume_close(volume);
        volume = NULL;
    }
    (void)CALL(pool_volume_resize(pool, "a", 7 * BLOCK, true, DONE));
    (void)CALL(pool_volume_resize(pool, "a", 9 * BLOCK, false, DONE));
    ret->gone_s = CALL(pool_volume_delete(pool, "s", DONE)) == 0;
    (void)CALL(pool_volume_delete(pool, "t", DONE));
    (void)CALL(pool_grow(pool, 0, GROWN_BYTES, DONE));
    sim_loop_run_until_idle(loop, 0);
    close_pool();
}

static const void *
page(void *arg, uint64_t index)
{
    (void)arg;
    return metadata.bytes + index * 4096;
}

/* Whatever failed: the disks hold a sound pool with all that was answered. */
static void
check_disks(const struct promise *promise, unsigned n)
{
    const struct recount_source source = {.page = page, .size = metadata.size};
    struct volume_info info;
    struct recount re;

    ck_assert_msg(recount_pages(&source, NULL, &re) == 0, "n %u: %s", n, re.why);
    ck_assert_msg(open_pool(false) == 0, "n %u: it does not open again", n);
    ck_assert(!promise->created || pool_volume_peek(pool, "b", &info));
    ck_assert(!promise->gone_s || !pool_volume_peek(pool, "s", &info));
    ck_assert_int_eq(CALL(pool_volume_open(pool, "a", false, volume_opened, NULL)), 0);
    ck_assert_int_eq(request(VOLUME_READ, 0, 2 * BLOCK, back), 0);
    if (promise->flushed)
        ck_assert_msg(memcmp(back, payload, 2 * BLOCK) == 0,
                      "n %u: a flushed write is lost", n);
    /* It works on. */
    ck_assert_int_eq(request(VOLUME_WRITE, 0, BLOCK, payload), 0);
    ck_assert_int_eq(request(VOLUME_FLUSH, 0, 0, NULL), 0);
    close_pool();
    ck_assert_msg(recount_pages(&source, NULL, &re) == 0, "n %u: %s", n, re.why);
}

static void
restore(void)
{
    memcpy(data_bytes, base_data, sizeof(data_bytes));
    memcpy(metadata_bytes, base_metadata, sizeof(metadata_bytes));
    metadata.size = METADATA_BYTES;
}

/* The pool that each round begins with: a with four blocks, and its snapshot s. */
static void
set_up(void)
{
    thin_log_set_level(THIN_LOG_ERROR);
    loop = sim_loop_create(1);
    data = (struct disk){.bytes = data_bytes, .size = DATA_BYTES, .max = DATA_BYTES};
    metadata = (struct disk){
        .bytes = metadata_bytes, .size = METADATA_BYTES, .max = GROWN_BYTES};
    memset(data_bytes, 0xdb, sizeof(data_bytes));
    memset(metadata_bytes, 0, sizeof(metadata_bytes));
    ck_assert_int_eq(open_pool(true), 0);
    ck_assert_int_eq(create("a"), 0);
    ck_assert_int_eq(CALL(pool_volume_open(pool, "a", false, volume_opened, NULL)), 0);
    memset(payload, 1, sizeof(payload));
    ck_assert_int_eq(request(VOLUME_WRITE, 0, 4 * BLOCK, payload), 0);
    ck_assert_int_eq(snapshot("a", "s"), 0);
    close_pool();
    memset(payload, 2, sizeof(payload));
    memcpy(base_data, data_bytes, sizeof(base_data));
    memcpy(base_metadata, metadata_bytes, sizeof(base_metadata));
}

static void
tear_down(void)
{
    sim_loop_destroy(loop);
}

static bool
one_round(unsigned n, struct promise *ret)
{
    memset(ret, 0, sizeof(*ret));
    restore();
    nr_errors = 0;
    arm(n);
    story(ret);
    return disarm();
}

START_TEST(each_failed_request_is_an_error_and_loses_nothing)
{
    struct promise promise;
    unsigned n = 0, nr_silent = 0;

    while (one_round(n, &promise)) {
        /* A read is tried again where it may have been the transfer; what is passed
           down is only a hint, and where it will come to lie is only a question. */
        if ((failed_op == DEVICE_WRITE || failed_op == DEVICE_FLUSH ||
             failed_op == DEVICE_WRITE_ZEROES) &&
            nr_errors == 0 && ++nr_silent > NR_DELETED)
            ck_abort_msg("n %u: nobody was told that operation %d failed on the %s", n,
                         (int)failed_op, failed_data ? "data" : "metadata");
        check_disks(&promise, n);
        ck_assert_uint_lt(++n, ROUNDS_MAX);
    }
    ck_assert_uint_eq(nr_errors, 0);
    ck_assert(promise.flushed && promise.created && promise.gone_s);
    check_disks(&promise, n);
    ck_assert_uint_ge(n, 50);
    printf("%u requests failed\n", n);
}
END_TEST

#ifdef NOMEM
START_TEST(each_failed_allocation_is_an_error_and_loses_nothing)
{
    struct promise promise;
    unsigned n = 0, nr_silent = 0;
    long before;

    of_memory = true;
    /* What lives on, as the loop's room for timers, is there after one round. */
    (void)one_round(UINT32_MAX - 1, &promise);
    before = nomem.live;
    while (one_round(n, &promise)) {
        ck_assert_msg(nomem.live == before, "n %u: %ld pieces of memory are lost", n,
                      nomem.live - before);
        nr_silent += nr_errors == 0;
        check_disks(&promise, n);
        before = nomem.live; /* asserts may keep something */
        ck_assert_uint_lt(++n, ROUNDS_MAX);
    }
    ck_assert_uint_eq(nr_errors, 0);
    ck_assert_uint_ge(n, 50);
    of_memory = false;
    printf("%u allocations failed, %u of them were done without\n", n, nr_silent);
    ck_assert_uint_le(nr_silent, n / 5);
}
END_TEST
#endif

int
main(void)
{
    Suite *suite = suite_create("n-th failure");
    TCase *tcase = tcase_create("story");
    SRunner *runner;
    int failures;

    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, each_failed_request_is_an_error_and_loses_nothing);
#ifdef NOMEM
    tcase_add_test(tcase, each_failed_allocation_is_an_error_and_loses_nothing);
#endif
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
