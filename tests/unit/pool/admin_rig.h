/*
 * A pool on two simulated disks that outlive it, driven step by step: opened, changed,
 * closed or cut off, opened again, recounted.
 */
#ifndef THIN_TESTS_UNIT_POOL_ADMIN_RIG_H
#define THIN_TESTS_UNIT_POOL_ADMIN_RIG_H

#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/random.h"
#include "core/pool/admin_private.h"
#include "tests/lib/device_crash.h"
#include "tests/lib/recount.h"
#include "tests/lib/sim_loop.h"
#include "tests/lib/test_cache.h"

#define RIG_BLOCK 65536u

struct rig {
    struct thin_random rng;
    struct thin_loop *loop;
    struct crash_disk *data, *metadata;
    struct pool_params params;
    uint32_t block_bytes; /* 0: RIG_BLOCK */
    struct pool *pool;
    int result; /* of the last call */
    struct thin_error err;
    bool told;
    struct volume_info infos[ADMIN_LIST_MAX];
    uint32_t nr_infos;
    struct volume *volume;
};

static struct rig rig;

static inline uint64_t
rig_seed(void)
{
    const char *text = getenv("SEED");

    return text ? strtoull(text, NULL, 0) : 7;
}

static inline void
rig_done(void *arg, int result, const struct thin_error *err)
{
    (void)arg;
    ck_assert(!rig.told);
    rig.told = true;
    rig.result = result;
    if (err)
        rig.err = *err;
}

static inline void
rig_opened(void *arg, struct pool *pool, int result, const struct thin_error *err)
{
    rig.pool = pool;
    rig_done(arg, result, err);
}

#define RIG_DONE ((struct pool_done){rig_done, NULL})

static inline void
rig_begin(void)
{
    rig.told = false;
    thin_error_init(&rig.err);
}

static inline int
rig_wait(void)
{
    while (!rig.told)
        ck_assert_msg(sim_loop_step(rig.loop), "nothing is left to do, and no answer");
    return rig.result;
}

/* `call` takes RIG_DONE; its outcome. */
#define rig_call(call) (rig_begin(), (call), ck_assert(!rig.told), rig_wait())

#define rig_ok(call)                                                           \
    do {                                                                       \
        int rig_r = rig_call(call);                                            \
        ck_assert_msg(rig_r == 0, "%s: %s: %s", #call, thin_error_name(rig_r), \
                      rig.err.text);                                           \
    } while (0)
#define rig_fails(call, code)                                       \
    do {                                                            \
        int rig_r = rig_call(call);                                 \
        ck_assert_msg(rig_r == -THIN_E_##code, "%s: %s: %s", #call, \
                      thin_error_name(rig_r), rig.err.text);        \
    } while (0)

static inline int
rig_try_open(bool format)
{
    rig.params.loop = rig.loop;
    rig.params.name = "tank";
    rig.params.data = crash_disk_open(rig.data, rig.loop);
    rig.params.metadata = crash_disk_open(rig.metadata, rig.loop);
    rig.params.format = format;
    rig.params.data_block_sectors = (rig.block_bytes ? rig.block_bytes : RIG_BLOCK) / 512;
    rig.params.seed = random_u64(&rig.rng);
    rig.params.wall_clock_s = 1700000000;
    rig_begin();
    pool_open(&rig.params, rig_opened, NULL);
    return rig_wait();
}

static inline void
rig_open(bool format)
{
    int r = rig_try_open(format);

    ck_assert_msg(r == 0, "open: %s: %s", thin_error_name(r), rig.err.text);
}

static inline void
rig_init(uint64_t data_blocks, uint64_t metadata_blocks)
{
    memset(&rig, 0, sizeof(rig));
    printf("seed %" PRIu64 "\n", rig_seed());
    random_seed(&rig.rng, rig_seed());
    rig.loop = sim_loop_create(rig_seed());
    rig.data = crash_disk_create(&rig.rng, data_blocks * RIG_BLOCK, NULL);
    rig.metadata = crash_disk_create(&rig.rng, metadata_blocks * 4096, NULL);
    pool_config_default(&rig.params.config);
    rig.params.config.metadata_cache_blocks = 2048;
    rig.params.cache_clean = test_cache_clean();
    rig.params.config.mapping_cache_pages = 64;
    rig.params.config.commit_max_dirty = 1024;
}

static inline void
rig_close(void)
{
    rig_ok(pool_close(rig.pool, false, RIG_DONE));
    rig.pool = NULL;
    sim_loop_run_until_idle(rig.loop, 0);
}

static inline void
rig_fini(void)
{
    if (rig.pool)
        rig_close();
    crash_disk_destroy(rig.data);
    crash_disk_destroy(rig.metadata);
    sim_loop_destroy(rig.loop);
}

/* Power cut: the pool's remains end by force, on devices that are lost. */
static inline void
rig_cut(void)
{
    crash_disk_cut(rig.data);
    crash_disk_cut(rig.metadata);
    (void)rig_call(pool_close(rig.pool, true, RIG_DONE));
    rig.pool = NULL;
    sim_loop_run_until_idle(rig.loop, 0);
}

static inline void
rig_reopen(void)
{
    rig_close();
    rig_open(false);
}

/* Background work ends, the interval's commit is made. */
static inline void
rig_settle(void)
{
    sim_loop_run_until_idle(rig.loop, 0);
}

/* The metadata disk as it is now, on a device in memory. */
static inline struct device *
rig_image(void)
{
    struct device *mem;
    uint8_t block[4096];

    ck_assert_int_eq(device_mem_open(rig.loop, crash_disk_size(rig.metadata), &mem), 0);
    for (uint64_t at = 0; at < crash_disk_size(rig.metadata); at += sizeof(block)) {
        crash_disk_read(rig.metadata, at, block, sizeof(block));
        ck_assert_int_eq(device_write_wait(mem, at, block, sizeof(block), 0), 0);
    }
    return mem;
}

static inline void
rig_recount(struct recount *ret)
{
    struct device *mem = rig_image();

    ck_assert_msg(recount_image(mem, NULL, ret) == 0, "%s", ret->why);
    device_close_wait(mem);
}

/* ---- calls -------------------------------------------------------------------------------- */

static inline void
rig_create_async(const char *name, uint64_t size, struct pool_done done)
{
    const struct volume_spec spec = {.name = name, .size = size};

    pool_volume_create(rig.pool, &spec, done);
}
#define rig_create(name, size) rig_ok(rig_create_async(name, size, RIG_DONE))

static inline void
rig_snap_async(const char *origin, const char *name, struct pool_done done)
{
    pool_volume_snapshot(rig.pool, &origin, &name, 1, done);
}
#define rig_snap(origin, name) rig_ok(rig_snap_async(origin, name, RIG_DONE))

static inline void
rig_listed(void *arg, int result, const struct thin_error *err,
           const struct volume_info *infos, uint32_t nr)
{
    if (nr)
        memcpy(rig.infos, infos, nr * sizeof(*infos));
    rig.nr_infos = nr;
    rig_done(arg, result, err);
}
#define rig_list(after, max) \
    rig_ok(pool_volume_list(rig.pool, after, max, false, rig_listed, NULL))
#define rig_list_exclusive() \
    rig_ok(pool_volume_list(rig.pool, NULL, ADMIN_LIST_MAX, true, rig_listed, NULL))

static inline const struct volume_info *
rig_info(const char *name)
{
    for (uint32_t i = 0; i < rig.nr_infos; i++)
        if (strcmp(rig.infos[i].name, name) == 0)
            return &rig.infos[i];
    ck_abort_msg("%s is not listed", name);
    return NULL;
}

static inline void
rig_volume_opened(void *arg, struct volume *volume, int result,
                  const struct thin_error *err)
{
    rig.volume = volume;
    rig_done(arg, result, err);
}

static inline struct volume *
rig_open_volume(const char *name)
{
    rig_ok(pool_volume_open(rig.pool, name, false, rig_volume_opened, NULL));
    return rig.volume;
}

static inline void
rig_io_done(struct volume_io *io, int result)
{
    (void)io;
    rig_done(NULL, result, NULL);
}

static inline int
rig_io(struct volume *volume, enum volume_op op, uint64_t offset, uint64_t len, void *buf,
       unsigned flags)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct volume_io io = {.op = op,
                           .flags = flags,
                           .offset = offset,
                           .len = len,
                           .iov = &iov,
                           .nr_iov = 1,
                           .done = rig_io_done};

    rig_begin();
    volume_submit(volume, &io);
    return rig_wait();
}

/* Fills a range with one byte, through a handle of its own. */
static inline void
rig_fill(const char *name, uint64_t offset, uint64_t len, uint8_t byte)
{
    struct volume *volume = rig_open_volume(name);
    uint8_t *buf = malloc(len);

    ck_assert_ptr_nonnull(buf);
    memset(buf, byte, len);
    ck_assert_int_eq(rig_io(volume, VOLUME_WRITE, offset, len, buf, 0), 0);
    ck_assert_int_eq(rig_io(volume, VOLUME_FLUSH, 0, 0, NULL, 0), 0);
    volume_close(volume);
    free(buf);
}

/* True if the range holds nothing but that byte. */
static inline bool
rig_holds(const char *name, uint64_t offset, uint64_t len, uint8_t byte)
{
    struct volume *volume;
    uint8_t *buf = malloc(len);
    bool holds = true;

    ck_assert_ptr_nonnull(buf);
    rig_ok(pool_volume_open(rig.pool, name, true, rig_volume_opened, NULL));
    volume = rig.volume;
    ck_assert_int_eq(rig_io(volume, VOLUME_READ, offset, len, buf, 0), 0);
    for (uint64_t i = 0; i < len && holds; i++)
        holds = buf[i] == byte;
    volume_close(volume);
    free(buf);
    return holds;
}

#endif
