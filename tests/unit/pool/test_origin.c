/* Volumes over an external origin: what comes from it, what never comes back. */
#include <errno.h>

#include "core/device/driver.h"
#include "tests/unit/pool/admin_rig.h"

#define NR_BLOCKS   300u
#define ORIGIN_MAX  (40u * RIG_BLOCK)
#define ORIGIN_SIZE (10u * RIG_BLOCK + 7 * 512u) /* ends inside a block */
#define VOL_BLOCKS  16u
#define VOL_SIZE    (VOL_BLOCKS * RIG_BLOCK)

/* ---- an origin in memory, that breaks off --------------------------------------------------- */

static uint8_t origin_bytes[ORIGIN_MAX];
static uint64_t origin_size;
static char origin_identity[32];
static bool origin_gone;   /* cannot be opened */
static bool origin_is_bad; /* reads fail */
static bool origin_breaks; /* and the device is lost */
static unsigned nr_opens, nr_devices;

struct image {
    struct device dev;
};

static void
image_submit(struct device *dev, struct device_io *io)
{
    if (origin_is_bad) {
        dev->lost = dev->lost || origin_breaks;
        device_finish(dev, io, origin_breaks ? -THIN_E_LOST : -EIO);
        return;
    }
    ck_assert_int_eq(io->op, DEVICE_READ);
    device_iov_from_buf(io, 0, origin_bytes + io->offset, io->len);
    device_finish(dev, io, 0);
}

static void
image_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    nr_devices--;
    free(dev);
    closed(arg);
}

static const struct device_ops image_ops = {
    .kind = "image", .submit = image_submit, .close = image_close};

struct asked {
    struct thin_timer timer;
    struct thin_loop *loop;
    pool_origin_opened_fn opened;
    void *arg;
};

static void
answer(struct thin_timer *timer)
{
    struct asked *asked = container_of(timer, struct asked, timer);
    struct thin_error err;

    thin_error_init(&err);
    nr_opens++;
    if (origin_gone) {
        thin_fail_code(&err, -ENOENT, "open /images/base");
        asked->opened(asked->arg, NULL, NULL, -ENOENT, &err);
    } else {
        struct image *image = calloc(1, sizeof(*image));

        device_init(&image->dev, &image_ops, asked->loop, "base");
        image->dev.size = origin_size;
        image->dev.read_only = true;
        nr_devices++;
        asked->opened(asked->arg, &image->dev, origin_identity, 0, &err);
    }
    free(asked);
}

static void
origin_open(void *arg, struct thin_loop *loop, const char *uri,
            pool_origin_opened_fn opened, void *opened_arg)
{
    struct asked *asked = calloc(1, sizeof(*asked));

    ck_assert_ptr_null(arg);
    ck_assert_str_eq(uri, "/images/base");
    asked->timer.fire = answer;
    asked->loop = loop;
    asked->opened = opened;
    asked->arg = opened_arg;
    ck_assert_int_eq(
        loop_timer_set(loop, &asked->timer, loop_now_ns(loop) + 3 * NS_PER_MS), 0);
}

/* ---- fixture ------------------------------------------------------------------------------------ */

static uint8_t model[VOL_SIZE], buf[VOL_SIZE];
static struct volume *vol;

static void
model_from_origin(void)
{
    memset(model, 0, sizeof(model));
    memcpy(model, origin_bytes,
           origin_size < sizeof(model) ? origin_size : sizeof(model));
}

static void
create_async(const char *name, struct pool_done done)
{
    const struct volume_spec spec = {
        .name = name, .size = VOL_SIZE, .origin = "/images/base"};

    pool_volume_create(rig.pool, &spec, done);
}

static void
start_with(uint64_t size, uint32_t block_bytes)
{
    rig_init((block_bytes > RIG_BLOCK ? 40u : NR_BLOCKS) * (block_bytes / RIG_BLOCK),
             1024);
    rig.block_bytes = block_bytes;
    origin_gone = origin_is_bad = origin_breaks = false;
    nr_opens = nr_devices = 0;
    origin_size = size;
    snprintf(origin_identity, sizeof(origin_identity), "size=%" PRIu64, size);
    for (size_t i = 0; i < sizeof(origin_bytes); i++)
        origin_bytes[i] = (uint8_t)(1 + random_u64(&rig.rng) % 255);
    rig.params.origin_open = origin_open;
    rig_open(true);
    rig_ok(create_async("vol", RIG_DONE));
    vol = rig_open_volume("vol");
    model_from_origin();
}

static void
start(uint64_t size)
{
    start_with(size, RIG_BLOCK);
}

static void
stop(void)
{
    struct recount rc;

    volume_close(vol);
    rig_close();
    ck_assert_uint_eq(nr_devices, 0);
    rig_recount(&rc);
    rig_fini();
}

static void
set_up(void)
{
    start(ORIGIN_SIZE);
}

static void
check_all(struct volume *volume)
{
    size_t at = 0;

    memset(buf, 0xee, sizeof(buf));
    ck_assert_int_eq(rig_io(volume, VOLUME_READ, 0, VOL_SIZE, buf, 0), 0);
    /* An assertion costs a message to the framework: one, not one for each byte. */
    if (memcmp(buf, model, VOL_SIZE) == 0)
        return;
    while (at < VOL_SIZE && buf[at] == model[at])
        at++;
    ck_abort_msg("byte %zu (block %zu): %02x, not %02x", at, at / RIG_BLOCK, buf[at],
                 model[at]);
}

static void
change(enum volume_op op, uint64_t offset, uint64_t len, unsigned flags, int byte)
{
    memset(model + offset, byte, len);
    ck_assert_int_eq(rig_io(vol, op, offset, len, model + offset, flags), 0);
}

static uint64_t
mapped(const char *name)
{
    rig_list(NULL, 10);
    return rig_info(name)->mapped / RIG_BLOCK;
}

/* ---- cases ---------------------------------------------------------------------------------------- */

START_TEST(what_is_not_mapped_comes_from_the_origin_and_takes_no_space)
{
    check_all(vol);
    for (unsigned i = 0; i < 50; i++) {
        uint64_t at = random_below(&rig.rng, VOL_SIZE - 200000);
        uint64_t len = 1 + random_below(&rig.rng, 200000);

        ck_assert_int_eq(rig_io(vol, VOLUME_READ, at, len, buf, 0), 0);
        ck_assert_int_eq(memcmp(buf, model + at, len), 0);
    }
    ck_assert_uint_eq(mapped("vol"), 0);
}
END_TEST

START_TEST(a_first_write_copies_the_rest_of_its_block)
{
    change(VOLUME_WRITE, 5000, 700, 0, 1);                  /* parts of sectors */
    change(VOLUME_WRITE, 2 * RIG_BLOCK + 4096, 4096, 0, 2); /* within one block */
    change(VOLUME_WRITE, 3 * RIG_BLOCK, RIG_BLOCK, 0, 3);   /* a whole one */
    change(VOLUME_WRITE, 5 * RIG_BLOCK - 512, 1024, 0, 4);  /* across two */
    change(VOLUME_WRITE, 10 * RIG_BLOCK + 512, 512, 0, 5);  /* where it ends */
    change(VOLUME_WRITE, 12 * RIG_BLOCK + 777, 100, 0, 6);  /* beyond it */
    change(VOLUME_WRITE, 10 * RIG_BLOCK + 6 * 512 + 100, 1000, 0, 7);
    check_all(vol);
    ck_assert_uint_eq(mapped("vol"), 7);
    /* Mapped blocks never look at it again. */
    for (size_t i = 0; i < ORIGIN_MAX; i++)
        if (i / RIG_BLOCK == 0 || i / RIG_BLOCK == 2 || i / RIG_BLOCK == 10)
            origin_bytes[i] = 0;
    check_all(vol);
}
END_TEST

START_TEST(zeroes_and_discards_never_bring_old_data_back)
{
    change(VOLUME_WRITE, 0, 8 * RIG_BLOCK, 0, 9);
    change(VOLUME_WRITE_ZEROES, 100, 3 * RIG_BLOCK, 0, 0);
    change(VOLUME_DISCARD, 4 * RIG_BLOCK, 2 * RIG_BLOCK, 0, 0);
    check_all(vol);
    /* Over what was never written, zeroes are zeros; a discard takes nothing. */
    change(VOLUME_WRITE_ZEROES, 8 * RIG_BLOCK + 512, 2 * RIG_BLOCK, 0, 0);
    check_all(vol);
    ck_assert_uint_eq(mapped("vol"), 11);
    ck_assert_int_eq(rig_io(vol, VOLUME_DISCARD, 0, VOL_SIZE, NULL, 0), 0);
    memset(model, 0, ORIGIN_SIZE);
    check_all(vol);
    ck_assert_uint_eq(mapped("vol"), 11);
    /* Beyond its end blocks go as ever. */
    change(VOLUME_WRITE, 12 * RIG_BLOCK, 2 * RIG_BLOCK, 0, 9);
    ck_assert_uint_eq(mapped("vol"), 13);
    change(VOLUME_DISCARD, 9 * RIG_BLOCK, 7 * RIG_BLOCK, 0, 0);
    check_all(vol);
    ck_assert_uint_eq(mapped("vol"), 11);
    change(VOLUME_WRITE_ZEROES, 0, VOL_SIZE, 0, 0);
    check_all(vol);
}
END_TEST

START_TEST(a_discard_of_what_is_the_origin_s_leaves_it)
{
    ck_assert_int_eq(rig_io(vol, VOLUME_DISCARD, 0, VOL_SIZE, NULL, 0), 0);
    check_all(vol);
    ck_assert_uint_eq(mapped("vol"), 0);
    /* Shared with a snapshot: zeroed here, kept there. */
    change(VOLUME_WRITE, 0, 2 * RIG_BLOCK, 0, 7);
    rig_snap("vol", "snap");
    change(VOLUME_DISCARD, 0, RIG_BLOCK, 0, 0);
    ck_assert_int_eq(rig_io(vol, VOLUME_DISCARD, 0, 8 * RIG_BLOCK, NULL, 0), 0);
    memset(model, 0, 2 * RIG_BLOCK);
    check_all(vol);
    ck_assert(rig_holds("snap", 0, 2 * RIG_BLOCK, 7));
    ck_assert_uint_eq(mapped("vol"), 2);
}
END_TEST

START_TEST(snapshots_and_reopened_pools_stand_on_it_too)
{
    struct volume *snap;
    struct volume_info info;

    change(VOLUME_WRITE, 4096, 4096, 0, 1);
    rig_snap("vol", "snap");
    snap = rig_open_volume("snap");
    check_all(snap);
    ck_assert(pool_volume_peek(rig.pool, "snap", &info));
    ck_assert_str_eq(info.origin, "/images/base");
    /* A first write of the snapshot, and one of the volume, in the same block. */
    memset(buf, 2, 512);
    ck_assert_int_eq(rig_io(snap, VOLUME_WRITE, RIG_BLOCK, 512, buf, 0), 0);
    check_all(vol);
    change(VOLUME_WRITE, RIG_BLOCK + 512, 512, 0, 3);
    check_all(vol);
    volume_close(snap);
    volume_close(vol);
    rig_settle();
    ck_assert_uint_eq(nr_devices, 0); /* closed with the last of them */
    rig_reopen();
    vol = rig_open_volume("vol");
    check_all(vol);
    volume_close(vol);
    rig_ok(pool_volume_rollback(rig.pool, "vol", "snap", RIG_DONE));
    vol = rig_open_volume("vol");
    model_from_origin();
    memset(model + 4096, 1, 4096);
    memset(model + RIG_BLOCK, 2, 512);
    check_all(vol);
}
END_TEST

START_TEST(status_tells_what_is_the_origin_s)
{
    struct volume_extent extents[16];
    struct volume_io io = {.op = VOLUME_STATUS,
                           .len = VOL_SIZE,
                           .extents = extents,
                           .max_extents = 16,
                           .done = rig_io_done};
    static const struct volume_extent wanted[] = {
        {2 * RIG_BLOCK, VOLUME_EXTENT_ORIGIN},
        {RIG_BLOCK, 0},
        {ORIGIN_SIZE - 3 * RIG_BLOCK, VOLUME_EXTENT_ORIGIN},
        {12 * RIG_BLOCK - ORIGIN_SIZE, VOLUME_EXTENT_HOLE | VOLUME_EXTENT_ZERO},
        {RIG_BLOCK, 0},
        {3 * RIG_BLOCK, VOLUME_EXTENT_HOLE | VOLUME_EXTENT_ZERO}};

    change(VOLUME_WRITE, 2 * RIG_BLOCK, 512, 0, 1);
    change(VOLUME_WRITE, 12 * RIG_BLOCK, 512, 0, 1);
    rig_begin();
    volume_submit(vol, &io);
    ck_assert_int_eq(rig_wait(), 0);
    ck_assert_uint_eq(io.ret_nr_extents, 6);
    for (unsigned i = 0; i < 6; i++) {
        ck_assert_uint_eq(extents[i].len, wanted[i].len);
        ck_assert_uint_eq(extents[i].flags, wanted[i].flags);
    }
    /* A read with a map calls it data. */
    io.op = VOLUME_READ;
    io.iov = &(struct iovec){buf, VOL_SIZE};
    io.nr_iov = 1;
    rig_begin();
    volume_submit(vol, &io);
    ck_assert_int_eq(rig_wait(), 0);
    ck_assert_uint_eq(extents[0].flags, 0);
    ck_assert_uint_eq(extents[0].len, ORIGIN_SIZE);
    ck_assert_int_eq(memcmp(buf, model, ORIGIN_SIZE), 0);
}
END_TEST

START_TEST(an_origin_that_changed_is_read_only)
{
    volume_close(vol);
    rig_settle();
    snprintf(origin_identity, sizeof(origin_identity), "another");
    rig_fails(pool_volume_open(rig.pool, "vol", false, rig_volume_opened, NULL),
              READ_ONLY);
    ck_assert_ptr_nonnull(strstr(rig.err.text, "origin is not what it was"));
    rig_ok(pool_volume_open(rig.pool, "vol", true, rig_volume_opened, NULL));
    vol = rig.volume;
    check_all(vol);
    volume_close(vol);
    rig_settle();
    snprintf(origin_identity, sizeof(origin_identity), "size=%" PRIu64, origin_size);
    vol = rig_open_volume("vol");
    change(VOLUME_WRITE, 4096, 4096, 0, 1);
    check_all(vol);
}
END_TEST

START_TEST(an_origin_that_breaks_off_fails_what_needs_it_and_heals)
{
    unsigned opens = 0;

    change(VOLUME_WRITE, 0, RIG_BLOCK, 0, 1);
    origin_is_bad = true;
    for (unsigned turn = 0; turn < 2; turn++) {
        origin_breaks = turn == 1;
        opens = nr_opens;
        ck_assert_int_eq(rig_io(vol, VOLUME_READ, 2 * RIG_BLOCK, 512, buf, 0), -EIO);
        ck_assert_int_eq(rig_io(vol, VOLUME_WRITE, 2 * RIG_BLOCK, 512, buf, 0), -EIO);
        ck_assert_int_eq(rig_io(vol, VOLUME_WRITE, 2 * RIG_BLOCK, 5, buf, 0), -EIO);
        /* What is copied, what is beyond, and what needs no copy goes on. */
        change(VOLUME_WRITE, 4096, 4096, 0, 2);
        change(VOLUME_WRITE, 12 * RIG_BLOCK, 4096, 0, 3);
        change(VOLUME_WRITE, (4 + turn) * RIG_BLOCK, RIG_BLOCK, 0, 4);
        ck_assert_int_eq(rig_io(vol, VOLUME_READ, 0, RIG_BLOCK, buf, 0), 0);
        ck_assert_uint_eq(nr_opens, opens);
    }
    origin_is_bad = false;
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 2 * NS_PER_SEC);
    check_all(vol);
    ck_assert_uint_eq(nr_opens, opens + 1);
    change(VOLUME_WRITE, 2 * RIG_BLOCK, 512, 0, 5);
    check_all(vol);
    /* Gone while the pool was closed. */
    volume_close(vol);
    origin_gone = true;
    rig_reopen();
    vol = rig_open_volume("vol");
    ck_assert_int_eq(rig_io(vol, VOLUME_READ, 3 * RIG_BLOCK, 512, buf, 0), -EIO);
    ck_assert_int_eq(rig_io(vol, VOLUME_READ, 0, RIG_BLOCK, buf, 0), 0);
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 2 * NS_PER_SEC);
    ck_assert_int_eq(rig_io(vol, VOLUME_READ, 3 * RIG_BLOCK, 512, buf, 0), -EIO);
    origin_gone = false;
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 2 * NS_PER_SEC);
    check_all(vol);
    /* It returns as another one: nothing of that comes into the volume. */
    origin_is_bad = origin_breaks = true;
    ck_assert_int_eq(rig_io(vol, VOLUME_READ, 3 * RIG_BLOCK, 512, buf, 0), -EIO);
    origin_is_bad = origin_breaks = false;
    snprintf(origin_identity, sizeof(origin_identity), "another");
    sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 2 * NS_PER_SEC);
    ck_assert_int_eq(rig_io(vol, VOLUME_READ, 3 * RIG_BLOCK, 512, buf, 0), 0);
    ck_assert_int_eq(rig_io(vol, VOLUME_WRITE, 3 * RIG_BLOCK, 512, buf, 0),
                     -THIN_E_READ_ONLY);
}
END_TEST

START_TEST(an_origin_that_is_not_there_makes_no_volume)
{
    origin_gone = true;
    ck_assert_int_eq(rig_call(create_async("other", RIG_DONE)), -ENOENT);
    ck_assert_ptr_nonnull(strstr(rig.err.text, "/images/base"));
    rig_list(NULL, 10);
    ck_assert_uint_eq(rig.nr_infos, 1);
}
END_TEST

START_TEST(a_volume_that_shrank_and_grew_shows_zeros_there)
{
    volume_close(vol);
    rig_ok(pool_volume_resize(rig.pool, "vol", 4 * RIG_BLOCK + 512, true, RIG_DONE));
    rig_ok(pool_volume_resize(rig.pool, "vol", VOL_SIZE, false, RIG_DONE));
    memset(model + 4 * RIG_BLOCK + 512, 0, VOL_SIZE - 4 * RIG_BLOCK - 512);
    vol = rig_open_volume("vol");
    check_all(vol);
    change(VOLUME_WRITE, 4 * RIG_BLOCK + 4096, 4096, 0, 1);
    check_all(vol);
    volume_close(vol);
    rig_reopen();
    vol = rig_open_volume("vol");
    check_all(vol);
}
END_TEST

/* Its last block holds what the origin has behind the old end, which nobody saw. */
START_TEST(a_volume_of_a_part_of_a_block_that_shrank_and_grew_shows_zeros_there)
{
    const struct volume_spec spec = {
        .name = "part", .size = 4 * RIG_BLOCK + 8 * 512, .origin = "/images/base"};
    struct volume *part;

    rig_ok(pool_volume_create(rig.pool, &spec, RIG_DONE));
    part = rig_open_volume("part");
    memset(buf, 1, 512);
    ck_assert_int_eq(rig_io(part, VOLUME_WRITE, 4 * RIG_BLOCK, 512, buf, 0), 0);
    volume_close(part);
    rig_ok(pool_volume_resize(rig.pool, "part", 4 * RIG_BLOCK + 1024, true, RIG_DONE));
    rig_ok(pool_volume_resize(rig.pool, "part", VOL_SIZE, false, RIG_DONE));
    part = rig_open_volume("part");
    memset(model + 4 * RIG_BLOCK, 1, 512);
    memset(model + 4 * RIG_BLOCK + 1024, 0, VOL_SIZE - 4 * RIG_BLOCK - 1024);
    check_all(part);
    volume_close(part);
}
END_TEST

START_TEST(an_origin_larger_than_the_volume_shows_as_it_grows)
{
    volume_close(vol);
    rig_close();
    rig_fini();
    start(ORIGIN_MAX);
    check_all(vol);
    change(VOLUME_WRITE, VOL_SIZE - 512, 512, 0, 1);
    check_all(vol);
    rig_ok(pool_volume_resize(rig.pool, "vol", 2 * VOL_SIZE, false, RIG_DONE));
    ck_assert_int_eq(rig_io(vol, VOLUME_READ, VOL_SIZE, VOL_SIZE, buf, 0), 0);
    ck_assert_int_eq(memcmp(buf, origin_bytes + VOL_SIZE, VOL_SIZE), 0);
    /* And once more, as an open volume. */
    rig_ok(pool_volume_resize(rig.pool, "vol", ORIGIN_MAX, false, RIG_DONE));
    ck_assert_int_eq(
        rig_io(vol, VOLUME_READ, 2 * VOL_SIZE, ORIGIN_MAX - 2 * VOL_SIZE, buf, 0), 0);
    ck_assert_int_eq(memcmp(buf, origin_bytes + 2 * VOL_SIZE, ORIGIN_MAX - 2 * VOL_SIZE),
                     0);
}
END_TEST

/* Requests and closings at the same moment: each is answered, nothing is left. */
START_TEST(a_pool_closes_while_its_origin_opens)
{
    struct volume_io io = {.op = VOLUME_READ,
                           .len = VOL_SIZE,
                           .iov = &(struct iovec){buf, VOL_SIZE},
                           .nr_iov = 1,
                           .done = rig_io_done};

    for (unsigned steps = 0; steps < 12; steps++) {
        origin_is_bad = origin_breaks = true;
        (void)rig_io(vol, VOLUME_READ, 0, 512, buf, 0);
        origin_is_bad = origin_breaks = false;
        sim_loop_run_until(rig.loop, loop_now_ns(rig.loop) + 2 * NS_PER_SEC);
        rig_begin();
        volume_submit(vol, &io);
        for (unsigned i = 0; i < steps && !rig.told; i++)
            sim_loop_step(rig.loop);
        (void)rig_wait();
        rig_begin();
        pool_volume_open(rig.pool, "vol", false, rig_volume_opened, NULL);
        (void)rig_wait();
        volume_close(rig.volume);
        volume_close(vol);
        rig_begin();
        pool_volume_open(rig.pool, "vol", false, rig_volume_opened, NULL);
        for (unsigned i = 0; i < steps && !rig.told; i++)
            sim_loop_step(rig.loop);
        if (rig.told) {
            volume_close(rig.volume);
            rig_close();
        } else {
            struct pool *pool = rig.pool;

            rig.pool = NULL;
            rig_wait();
            if (rig.volume)
                volume_close(rig.volume);
            rig_ok(pool_close(pool, true, RIG_DONE));
            sim_loop_run_until_idle(rig.loop, 0);
        }
        ck_assert_uint_eq(nr_devices, 0);
        rig_open(false);
        vol = rig_open_volume("vol");
    }
}
END_TEST

/* Against a model, with the pool opened anew and a snapshot between. */
static void
random_requests(unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        static const enum volume_op ops[] = {VOLUME_WRITE, VOLUME_WRITE, VOLUME_WRITE,
                                             VOLUME_WRITE_ZEROES};
        enum volume_op op = ops[random_below(&rig.rng, 4)];
        uint64_t at = random_below(&rig.rng, VOL_SIZE), len;

        len = 1 + random_below(&rig.rng, random_below(&rig.rng, 2) ? 3000 : 150000);
        if (at + len > VOL_SIZE)
            len = VOL_SIZE - at;
        if (random_below(&rig.rng, 3) == 0) {
            at = at / 512 * 512;
            len = (len + 511) / 512 * 512;
            if (at + len > VOL_SIZE)
                len = VOL_SIZE - at;
        }
        change(op, at, len, random_below(&rig.rng, 4) ? 0 : VOLUME_FUA,
               op == VOLUME_WRITE ? (int)(1 + random_below(&rig.rng, 255)) : 0);
        if (i % 50 == 0)
            check_all(vol);
        if (i == nr / 3 || i == nr / 3 * 2) {
            volume_close(vol);
            if (i > nr / 2)
                rig_snap("vol", "snap");
            rig_reopen();
            vol = rig_open_volume("vol");
        }
    }
    check_all(vol);
}

START_TEST(random_requests_give_what_the_model_says)
{
    random_requests(600);
}
END_TEST

START_TEST(blocks_larger_than_a_copy_go_in_pieces)
{
    volume_close(vol);
    rig_close();
    rig_fini();
    start_with(ORIGIN_SIZE, 2u << 20);
    random_requests(60);
    /* Several blocks, and an origin that ends in the second. */
    volume_close(vol);
    rig_close();
    rig_fini();
    start_with(10 * RIG_BLOCK + 512, 9 * RIG_BLOCK);
    random_requests(60);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("origin");
    TCase *tcase = tcase_create("origin");
    SRunner *runner;
    int failed;

    thin_log_set_level(THIN_LOG_ERROR);
    tcase_add_checked_fixture(tcase, set_up, stop);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, what_is_not_mapped_comes_from_the_origin_and_takes_no_space);
    tcase_add_test(tcase, a_first_write_copies_the_rest_of_its_block);
    tcase_add_test(tcase, zeroes_and_discards_never_bring_old_data_back);
    tcase_add_test(tcase, a_discard_of_what_is_the_origin_s_leaves_it);
    tcase_add_test(tcase, snapshots_and_reopened_pools_stand_on_it_too);
    tcase_add_test(tcase, status_tells_what_is_the_origin_s);
    tcase_add_test(tcase, an_origin_that_changed_is_read_only);
    tcase_add_test(tcase, an_origin_that_breaks_off_fails_what_needs_it_and_heals);
    tcase_add_test(tcase, an_origin_that_is_not_there_makes_no_volume);
    tcase_add_test(tcase, a_volume_that_shrank_and_grew_shows_zeros_there);
    tcase_add_test(tcase,
                   a_volume_of_a_part_of_a_block_that_shrank_and_grew_shows_zeros_there);
    tcase_add_test(tcase, an_origin_larger_than_the_volume_shows_as_it_grows);
    tcase_add_test(tcase, a_pool_closes_while_its_origin_opens);
    tcase_add_test(tcase, random_requests_give_what_the_model_says);
    tcase_add_test(tcase, blocks_larger_than_a_copy_go_in_pieces);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
