/* The public face (thinmeta.h), second part: repair, pack, and what is asked rarely. */
#include <errno.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/offline/api_private.h"
#include "core/offline/pack.h"
#include "core/offline/repair.h"
#include "core/offline/rmap.h"
#include "core/offline/trim.h"

/* ---- repair ------------------------------------------------------------------------------ */

static int
tell_plan(const struct repair_plan *plan, const struct thinmeta_repair_options *o)
{
    int r = 0;

    for (size_t i = 0; i < plan->pool.nr_devices && r >= 0 && o->device; i++) {
        const struct live_device *dev = &plan->pool.devices[i];
        const struct repair_device *rep = &plan->devices[i];
        struct thinmeta_repaired out = {
            .dev_id = dev->dev_id,
            .kept_mappings = rep->recovered,
            .recorded_mappings = rep->details_made ? 0 : dev->details.mapped_blocks,
            .found_elsewhere = rep->origin != REPAIR_OWN,
            .record_lost = rep->details_made,
        };

        r = api_said(o->device(o->arg, &out));
    }
    for (size_t i = 0; i < plan->lost.nr_affected && r >= 0 && o->lost; i++) {
        const struct affected *a = &plan->lost.affected[i];
        struct thinmeta_affected out = {a->dev_id, a->begin, a->last, a->held, a->block};

        r = api_said(o->lost(o->arg, &out));
    }
    return r;
}

static int
build_plan(struct repair_plan *plan, struct thinmeta *dst, struct thin_error *err)
{
    struct builder b;
    int r = builder_init(&b, dst->src, NULL, err);

    plan->pool.sb.flags &= ~SUPERBLOCK_NEEDS_CHECK;
    b.keep_trailer = true;
    memcpy(b.trailer, plan->trailer, sizeof(b.trailer));
    if (r >= 0)
        r = repair_plan_feed(plan, &builder_visitor, &b, err);
    builder_fini(&b);
    return r;
}

int
thinmeta_repair(struct thinmeta *src, struct thinmeta *dst,
                const struct thinmeta_repair_options *opts, struct thinmeta_error *err)
{
    struct thinmeta_repair_options o = {.size = sizeof(o)};
    struct build_override over = {0};
    struct thin_error *e = api_words(err);
    struct repair_plan plan;
    int r;

    if (opts)
        memcpy(&o, opts, min_u64(opts->size, sizeof(o)));
    if (src == dst)
        return thin_fail(e, -THIN_E_INVALID, "repair needs another device");
    over.have_trans_id = o.have_transaction_id;
    over.trans_id = o.transaction_id;
    over.have_data_block_size = o.data_block_bytes != 0;
    over.data_block_size = o.data_block_bytes / SECTOR_SIZE;
    over.have_nr_data_blocks = o.nr_data_blocks != 0;
    over.nr_data_blocks = o.nr_data_blocks;
    r = repair_plan_make(&plan, src->src, &over, NULL, e);
    if (r >= 0)
        r = tell_plan(&plan, &o);
    if (r >= 0 && dst)
        r = build_plan(&plan, dst, e);
    repair_plan_fini(&plan);
    return r;
}

/* ---- pack ----------------------------------------------------------------------------------- */

struct pack_caller {
    thinmeta_write_fn *write;
    thinmeta_read_fn *read;
    void *arg;
};

static int
pack_write(void *arg, const void *bytes, size_t len)
{
    struct pack_caller *c = arg;

    return api_said(c->write(c->arg, bytes, len));
}

static long
pack_read(void *arg, void *buf, size_t room)
{
    struct pack_caller *c = arg;

    return c->read(c->arg, buf, room);
}

int
thinmeta_pack(struct thinmeta *tm, thinmeta_write_fn *fn, void *arg,
              struct thinmeta_error *err)
{
    struct pack_caller c = {.write = fn, .arg = arg};
    uint64_t nr;

    return pack_device(tm->src, pack_write, &c, &nr, api_words(err));
}

int
thinmeta_unpack(struct thinmeta *tm, thinmeta_read_fn *fn, void *arg,
                struct thinmeta_error *err)
{
    struct pack_caller c = {.read = fn, .arg = arg};

    return unpack_device(pack_read, &c, tm->src, api_words(err));
}

/* ---- data blocks ------------------------------------------------------------------------------ */

struct rmap_caller {
    thinmeta_rmap_fn *fn;
    void *arg;
};

static int
rmap_said(void *arg, const struct rmap_run *run)
{
    struct rmap_caller *c = arg;
    struct thinmeta_rmap_run out = {run->data, run->dev_id, run->virt, run->len};

    return api_said(c->fn(c->arg, &out));
}

int
thinmeta_rmap(struct thinmeta *tm, uint64_t begin, uint64_t end, thinmeta_rmap_fn *fn,
              void *arg, struct thinmeta_error *err)
{
    struct rmap_region region = {begin, end};
    struct rmap_caller c = {fn, arg};
    struct live_options opts = {0};
    struct live_pool pool;
    int r = live_open(tm->src, &opts, &pool, api_words(err));

    if (r < 0)
        return r;
    r = rmap(&pool, &region, 1, rmap_said, &c, api_words(err));
    live_close(&pool);
    return r;
}

struct free_caller {
    thinmeta_free_fn *fn;
    void *arg;
};

static int
free_said(void *arg, const struct superblock *sb, dblock_t begin, dblock_t end)
{
    struct free_caller *c = arg;
    uint64_t block = (uint64_t)sb->data_block_size * SECTOR_SIZE;

    return api_said(c->fn(c->arg, begin * block, end * block));
}

int
thinmeta_free_space(struct thinmeta *tm, thinmeta_free_fn *fn, void *arg,
                    struct thinmeta_error *err)
{
    struct free_caller c = {fn, arg};

    return trim_free_ranges(tm->src, free_said, &c, api_words(err));
}
