/* Merge, cut, durable; and the waiting commit of tools and tests. */
#include <inttypes.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/seeded_bug.h"
#include "core/metadata/metadata_private.h"

#define DEVICES_MAX        (DEV_ID_MAX + 1ull)
#define FREE_METADATA_STEP 1024u /* metadata blocks freed by one metadata_free_some */
#define FULL_TRIES_MAX     256u  /* of a step that goes on where it stopped: a load */

/*
 * Each changed record overwrites one entry: it copies a leaf, and on each level above a
 * node, which the way down may have to split (a neighbour is copied too, one is new, two
 * at the root). The number of nodes on a level is bounded by the ids there can be and
 * the least fill of nodes.
 */
uint64_t
details_merge_need(const struct metadata *md)
{
    uint32_t leaf_max = md->params.leaf_max ? md->params.leaf_max
                                            : node_max_entries_for(VALUE_SIZE_DETAILS);
    uint32_t internal_max = md->params.internal_max
                                ? md->params.internal_max
                                : node_max_entries_for(VALUE_SIZE_MAPPING);
    uint64_t nr_nodes = div_up_u64(DEVICES_MAX, leaf_max / 3);
    uint64_t need = md->nr_changed;

    if (md->nr_changed == 0)
        return 0;
    for (unsigned depth = 1; depth < BTREE_DEPTH_MAX && nr_nodes > 1; depth++) {
        nr_nodes = div_up_u64(nr_nodes, internal_max / 3);
        need += 3 * min_u64(nr_nodes, md->nr_changed);
    }
    return need + 2;
}

int
device_merge_details(struct metadata *md, struct md_device *dev, struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_DETAILS];
    mblock_t root;
    bool inserted;
    int r;

    device_details_encode(&dev->now.details, value);
    r = btree_insert(&md->details, md->now.sb.device_details_root, dev->id, value, &root,
                     &inserted, err);
    if (r < 0)
        return thin_wrap(err, r, "store the details of device %" PRIu32, dev->id);
    if (inserted)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "device %" PRIu32 " has lost its details", dev->id);
    md->now.sb.device_details_root = root;
    md->now.changed = true;
    device_touch(md, dev);
    device_clear_changed(md, dev);
    return 0;
}

static int
merge_some(struct metadata *md, struct thin_error *err)
{
    bool more;
    int r;

    if (sm_nr_deltas(md->data_sm)) {
        r = sm_merge_step(md->data_sm, &more, err);
        if (r < 0)
            return thin_wrap(err, r, "merge counts of data blocks");
        return 0;
    }
    if (!md->nr_changed)
        return tm_merge_step(md->tm, err);
    for (unsigned i = 0; i < MERGE_DETAILS_STEP && md->nr_changed; i++) {
        r = device_merge_details(md, TAILQ_FIRST(&md->changed), err);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool
merge_left(const struct metadata *md)
{
    return sm_nr_deltas(md->data_sm) || md->nr_changed || tm_merge_left(md->tm);
}

int
metadata_merge_step(struct metadata *md, bool *ret_more, struct thin_error *err)
{
    int r;

    r = md_check_open(md, err);
    if (r < 0)
        return r;
    if (merge_left(md)) {
        metadata_op_begin(md, TM_COMMIT);
        r = merge_some(md, err);
        if (r < 0) {
            metadata_op_undo(md);
            return r;
        }
        r = metadata_op_end(md, err);
        if (r < 0)
            return r;
    }
    *ret_more = merge_left(md);
    return 0;
}

int
metadata_merge_park(struct metadata *md, dblock_t *ret_begin, dblock_t *ret_end,
                    struct thin_error *err)
{
    int r = md_check_open(md, err);

    if (r < 0)
        return r;
    if (!sm_nr_deltas(md->data_sm))
        return thin_fail(err, -THIN_E_INVALID, "the counts of data blocks are merged");
    metadata_op_begin(md, TM_COMMIT);
    r = sm_merge_park(md->data_sm, ret_begin, ret_end, err);
    if (r < 0) {
        metadata_op_undo(md);
        return r;
    }
    if (!seeded_bug(SEEDED_DAMAGE_UNMARKED))
        metadata_set_needs_check(md, true);
    return metadata_op_end(md, err);
}

int
metadata_cut(struct metadata *md, void (*finish_trailer)(void *arg, uint8_t *superblock),
             void *arg, uint64_t *ret_txn, void **ret_superblock, struct thin_error *err)
{
    struct space_map_root metadata_root = {0};
    int r;

    r = md_check_open(md, err);
    if (r < 0)
        return r;
    THIN_ASSERT(!merge_left(md));

    THIN_ASSERT(!md->op_open);
    if (md->params.read_only)
        return thin_fail(err, -THIN_E_READ_ONLY, "the metadata is opened read-only");
    r = tm_prepare_cut(md->tm, &metadata_root, err);
    if (r < 0)
        return thin_wrap(err, r, "write out the metadata space map");
    md->now.sb.metadata_sm = metadata_root;
    sm_get_root(md->data_sm, &md->now.sb.data_sm);

    superblock_encode(&md->now.sb, md->sb_block);
    if (finish_trailer) {
        finish_trailer(arg, md->sb_block);
        memcpy(md->now.sb.trailer, md->sb_block + SUPERBLOCK_TRAILER_OFFSET,
               SUPERBLOCK_TRAILER_BYTES);
    }
    *ret_txn = tm_cut(md->tm);
    THIN_ASSERT(*ret_txn == md->txn);
    if (seeded_bug(SEEDED_REUSE_IN_CUT))
        sm_durable(md->data_sm, *ret_txn, NULL, NULL);
    md->txn++;
    md->now.changed = false;
    *ret_superblock = md->sb_block;
    return 0;
}

void
metadata_set_durable(struct metadata *md, uint64_t txn)
{
    tm_set_durable(md->tm, txn);
}

bool
metadata_free_some(struct metadata *md, uint64_t max_data_blocks,
                   void (*freed)(void *arg, dblock_t begin, dblock_t end), void *arg)
{
    bool more = tm_free_some(md->tm, FREE_METADATA_STEP);

    return sm_durable_some(md->data_sm, tm_freed_up_to(md->tm), max_data_blocks, freed,
                           arg) ||
           more;
}

void
metadata_durable(struct metadata *md, uint64_t txn,
                 void (*freed)(void *arg, dblock_t begin, dblock_t end), void *arg)
{
    metadata_set_durable(md, txn);
    while (metadata_free_some(md, UINT64_MAX, freed, arg))
        ;
}

/* ---- waiting forms ------------------------------------------------------------------ */

struct waiter {
    bool done;
    int result;
};

static void
waiter_done(void *arg, int result)
{
    struct waiter *w = arg;

    w->result = result;
    w->done = true;
}

struct fetch_waiter {
    struct bm_fetch fetch;
    struct waiter waiter;
};

static void
fetch_done(struct bm_fetch *fetch, int result)
{
    waiter_done(&container_of(fetch, struct fetch_waiter, fetch)->waiter, result);
}

static int
wait_for(struct metadata *md, const struct waiter *w)
{
    while (!w->done) {
        int r = loop_run_once(md->params.dev->loop);

        /* A loop with nothing to do would never call back: ours to find, not to hang. */
        THIN_ASSERT(r == 0 || w->done);
    }
    return w->result;
}

int
metadata_retry_wait(struct metadata *md,
                    int (*step)(struct metadata *md, void *arg, struct thin_error *err),
                    void *arg, struct thin_error *err)
{
    struct fetch_waiter fw = {.waiter = {.done = false}};
    unsigned full = 0;
    int r;

    bm_fetch_init(&fw.fetch, md->bm, fetch_done);
    for (;;) {
        bm_clear_missing(md->bm);
        r = step(md, arg, err);
        if (r != -THIN_E_WOULD_BLOCK)
            break;
        fw.waiter.done = false;
        bm_fetch_start(&fw.fetch);
        r = wait_for(md, &fw.waiter);
        if (r == -THIN_E_CACHE_FULL && full++ < FULL_TRIES_MAX) {
            /* What an earlier pass read may be needed no more. */
            bm_fetch_fini(&fw.fetch);
            bm_fetch_init(&fw.fetch, md->bm, fetch_done);
            fw.fetch.alone = true;
            continue;
        }
        if (r < 0) {
            thin_fail_code(err, r, "read metadata blocks");
            break;
        }
    }
    bm_fetch_fini(&fw.fetch);
    return r;
}

static int
merge_one(struct metadata *md, void *arg, struct thin_error *err)
{
    return metadata_merge_step(md, arg, err);
}

struct cut_result {
    uint64_t txn;
    void *superblock;
};

static int
cut_one(struct metadata *md, void *arg, struct thin_error *err)
{
    struct cut_result *cut = arg;

    return metadata_cut(md, NULL, NULL, &cut->txn, &cut->superblock, err);
}

/* Data, metadata blocks, superblock: each durable before the next begins. */
static int
write_cut(struct metadata *md, struct device *data_dev, void *superblock,
          struct thin_error *err)
{
    struct waiter w = {.done = false};
    int r;

    if (data_dev) {
        r = device_flush_wait(data_dev);
        if (r < 0)
            return thin_fail_code(err, r, "flush the data device");
    }
    bm_write_cut(md->bm, waiter_done, &w);
    r = wait_for(md, &w);
    if (r < 0)
        return thin_fail_code(err, r, "write metadata blocks");
    w.done = false;
    bm_flush(md->bm, waiter_done, &w);
    r = wait_for(md, &w);
    if (r < 0)
        return thin_fail_code(err, r, "flush the metadata device");
    w.done = false;
    bm_write_superblock(md->bm, superblock, waiter_done, &w);
    r = wait_for(md, &w);
    if (r < 0)
        return thin_fail_code(err, r, "write the superblock");
    return 0;
}

int
metadata_commit_wait(struct metadata *md, struct device *data_dev, struct thin_error *err)
{
    struct cut_result cut;
    bool more = true;
    int r;

    r = md_check_open(md, err);
    if (r < 0)
        return r;
    if (!md->now.changed)
        return 0;
    while (more) {
        r = metadata_retry_wait(md, merge_one, &more, err);
        if (r < 0)
            return thin_wrap(err, r, "commit");
    }
    r = metadata_retry_wait(md, cut_one, &cut, err);
    if (r == 0)
        r = write_cut(md, data_dev, cut.superblock, err);
    if (r < 0)
        return thin_wrap(err, r, "commit");
    metadata_durable(md, cut.txn, NULL, NULL);
    return 0;
}

struct grow_request {
    uint64_t nr_blocks;
    bool done;
};

static int
grow_one(struct metadata *md, void *arg, struct thin_error *err)
{
    struct grow_request *req = arg;
    int r;

    metadata_op_begin(md, TM_NORMAL);
    r = metadata_grow_data(md, req->nr_blocks, &req->done, err);
    if (r < 0) {
        metadata_op_undo(md);
        return r;
    }
    return metadata_op_end(md, err);
}

int
metadata_grow_data_wait(struct metadata *md, uint64_t nr_blocks, struct device *data_dev,
                        struct thin_error *err)
{
    struct grow_request req = {.nr_blocks = nr_blocks};
    bool committed = false;
    int r;

    while (!req.done) {
        r = metadata_retry_wait(md, grow_one, &req, err);
        if ((r == -THIN_E_NEED_COMMIT || r == -THIN_E_CACHE_FULL) && !committed) {
            r = metadata_commit_wait(md, data_dev, err);
            committed = true;
        } else if (r == 0) {
            committed = false;
        }
        if (r < 0)
            return r;
    }
    return metadata_commit_wait(md, data_dev, err);
}

int
metadata_format_wait(struct metadata *md, uint32_t data_block_sectors,
                     uint64_t nr_data_blocks, struct device *data_dev,
                     struct thin_error *err)
{
    int r;

    r = metadata_format(md, data_block_sectors, nr_data_blocks, err);
    if (r < 0)
        return r;
    r = metadata_commit_wait(md, data_dev, err);
    if (r < 0)
        return r;
    return metadata_grow_data_wait(md, nr_data_blocks, data_dev, err);
}
