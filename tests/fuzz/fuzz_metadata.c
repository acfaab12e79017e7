/*
 * Hostile metadata with good checksums: a small pool is made, the input patches it, the
 * blocks are sealed again, and everything that reads metadata is let loose on it. What
 * repair makes of it must be a pool that the check finds nothing wrong with.
 *
 * Input: patches of 4 + n bytes: block, offset (2 bytes), length and flags, n bytes.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/offline/check.h"
#include "core/offline/delta.h"
#include "core/offline/mend.h"
#include "core/offline/repair.h"
#include "core/offline/rmap.h"
#include "core/offline/shares.h"
#include "core/offline/text_write.h"
#include "core/offline/xml_read.h"

#define NR_BLOCKS 64u
#define BYTES     (NR_BLOCKS * METADATA_BLOCK_SIZE)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static uint8_t base[BYTES], image[BYTES], output[BYTES];
static enum block_kind kinds[NR_BLOCKS];
static bool known[NR_BLOCKS];

static int
mem_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    if (offset + len > BYTES)
        abort();
    memcpy(buf, (uint8_t *)arg + offset, len);
    return 0;
}

static int
mem_write(void *arg, uint64_t offset, const void *buf, size_t len)
{
    if (offset + len > BYTES)
        abort();
    memcpy((uint8_t *)arg + offset, buf, len);
    return 0;
}

static int
mem_flush(void *arg)
{
    (void)arg;
    return 0;
}

static struct meta_source *
open_mem(uint8_t *bytes)
{
    static const struct source_ops ops = {
        .read = mem_read, .write = mem_write, .flush = mem_flush};
    struct meta_source *src = NULL;

    if (source_open_ops(&ops, bytes, BYTES, true, &src) < 0)
        abort();
    return src;
}

/* Devices with trees of one and of two levels, and shared data blocks. */
static void
make_base(void)
{
    struct ir_superblock sb = {
        .time = 3, .version = 2, .data_block_size = 128, .nr_data_blocks = 20000};
    struct meta_source *src = open_mem(base);
    struct builder b;
    const struct ir_visitor *v = &builder_visitor;
    int r = builder_init(&b, src, NULL, NULL);

    r |= v->superblock(&b, &sb);
    for (uint64_t dev = 0; dev < 5; dev++) {
        struct ir_device d = {.dev_id = dev * dev, .snap_time = 3};

        r |= v->device_begin(&b, &d);
        for (uint64_t i = 0; i < 40 * dev * dev; i++) {
            struct ir_run run = {3 * i, 7 * i + dev, 1 + i % 3, i % 4};

            r |= v->run(&b, &run);
        }
        r |= v->device_end(&b);
    }
    r |= v->end(&b);
    builder_fini(&b);
    source_close(src);
    if (r)
        abort();
    for (uint32_t i = 0; i < NR_BLOCKS; i++)
        known[i] = block_guess_kind(base + (size_t)i * METADATA_BLOCK_SIZE, &kinds[i]);
}

static void
patch(const uint8_t *bytes, size_t len)
{
    memcpy(image, base, BYTES);
    while (len >= 4) {
        uint32_t block = bytes[0] % NR_BLOCKS;
        uint32_t offset = (bytes[1] | (uint32_t)bytes[2] << 8) % METADATA_BLOCK_SIZE;
        size_t n = 1 + bytes[3] % 16;

        bytes += 4;
        len -= 4;
        if (n > len)
            n = len;
        if (n > METADATA_BLOCK_SIZE - offset)
            n = METADATA_BLOCK_SIZE - offset;
        memcpy(image + (size_t)block * METADATA_BLOCK_SIZE + offset, bytes, n);
        bytes += n;
        len -= n;
    }
    for (uint32_t i = 0; i < NR_BLOCKS; i++)
        if (known[i])
            block_seal(kinds[i], image + (size_t)i * METADATA_BLOCK_SIZE, i);
}

static int
drop_text(void *arg, const char *bytes, size_t len)
{
    (void)arg;
    (void)bytes;
    (void)len;
    return 0;
}

static void
dump(struct meta_source *src, bool lenient)
{
    struct live_options opts = {.lenient = lenient};
    struct textbuf text;
    struct text_writer writer = {.text = &text};

    if (textbuf_init(&text, drop_text, NULL) < 0)
        return;
    (void)live_read(src, &opts, &xml_writer, &writer, NULL);
    textbuf_fini(&text);
}

static int
on_delta(void *arg, const struct delta_run *run)
{
    (void)arg;
    (void)run;
    return 0;
}

static int
on_rmap(void *arg, const struct rmap_run *run)
{
    (void)arg;
    (void)run;
    return 0;
}

static void
compare(struct meta_source *src)
{
    struct live_options opts = {0};
    struct rmap_region region = {0, 5000};
    struct live_pool pool;
    struct device_shares *shares;

    if (live_open(src, &opts, &pool, NULL) < 0)
        return;
    shares = calloc(pool.nr_devices + 1, sizeof(*shares));
    if (shares)
        (void)shares_count(&pool, shares, NULL);
    free(shares);
    if (pool.nr_devices > 1)
        (void)delta_devices(&pool, &pool.devices[0], &pool.devices[pool.nr_devices - 1],
                            false, on_delta, NULL, NULL);
    (void)rmap(&pool, &region, 1, on_rmap, NULL, NULL);
    live_close(&pool);
}

static uint64_t
check(struct meta_source *src, bool mend)
{
    struct check_options opts = {0};
    struct check_result res;
    struct report rep;
    uint64_t damage = 1;

    report_init(&rep);
    if (check_run(src, &opts, &rep, &res, NULL) == 0) {
        damage = rep.nr_class[REPORT_DAMAGE];
        if (mend && res.trees_known && mend_counts(src, &rep, &res, NULL) == 0)
            damage = UINT64_MAX; /* mended: the caller looks again */
    }
    check_result_fini(&res);
    report_fini(&rep);
    return damage;
}

static void
repair(struct meta_source *src)
{
    struct meta_source *dst = open_mem(output);
    struct build_override over = {.have_trans_id = true,
                                  .have_data_block_size = true,
                                  .have_nr_data_blocks = true,
                                  .data_block_size = 128,
                                  .nr_data_blocks = 20000};
    struct repair_plan plan;
    struct builder b;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    memset(output, 0, BYTES);
    r = repair_plan_make(&plan, src, &over, NULL, &err);
    if (r == 0) {
        r = builder_init(&b, dst, NULL, &err);
        if (r == 0)
            r = repair_plan_feed(&plan, &builder_visitor, &b, &err);
        builder_fini(&b);
        /* Mappings that many leaves of a hostile tree repeat may not fit. */
        if (r < 0 && r != -THIN_E_NO_METADATA_SPACE) {
            fprintf(stderr, "%s\n", err.text);
            abort();
        }
        if (r == 0 && check(dst, false) != 0)
            abort();
    }
    repair_plan_fini(&plan);
    source_close(dst);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static bool made;
    struct meta_source *src;

    if (!made)
        make_base();
    made = true;
    patch(bytes, len);
    src = open_mem(image);
    (void)check(src, false);
    dump(src, false);
    dump(src, true);
    compare(src);
    repair(src);
    if (check(src, true) == UINT64_MAX && check(src, false) != 0)
        abort();
    source_close(src);
    return 0;
}
