/* The metadata object: life, format, load, operations, the superblock's fields, space. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/metadata/metadata_private.h"
#include "core/ondisk/bitmap.h"

/* ---- life ------------------------------------------------------------------------- */

/* A tm of its own for each epoch: it has nothing that a reset should keep. */
static int
open_tm(struct metadata *md)
{
    const struct tm_params params = {
        .bm = md->bm, .reserve = UINT32_MAX, .node_max = md->params.leaf_max};
    struct tm_stats stats;
    int r;

    r = tm_create(&params, &md->tm);
    if (r < 0)
        return r;
    tm_get_stats(md->tm, &stats);
    md->txn = stats.txn;
    trees_init(md);
    return 0;
}

static int
need_tm(struct metadata *md, struct thin_error *err)
{
    int r;

    if (md->tm)
        return 0;
    r = open_tm(md);
    if (r < 0)
        return thin_fail_code(err, r, "start a transaction");
    return 0;
}

int
metadata_create(const struct metadata_params *params, struct metadata **ret_md)
{
    const struct bm_params bm_params = {
        .dev = params->dev,
        .nr_frames = params->cache_blocks,
        .nr_clean = params->cache_clean,
        .waiting = params->waiting,
    };
    struct metadata *md;
    int r;

    md = calloc(1, sizeof(*md));
    if (!md)
        return -ENOMEM;
    md->params = *params;
    TAILQ_INIT(&md->used);
    TAILQ_INIT(&md->changed);
    TAILQ_INIT(&md->touched);
    md->sb_block = aligned_alloc(METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE);
    if (!md->sb_block) {
        metadata_destroy(md);
        return -ENOMEM;
    }
    memset(md->sb_block, 0, METADATA_BLOCK_SIZE);
    r = bm_create(&bm_params, &md->bm);
    if (r == 0)
        r = open_tm(md);
    if (r < 0) {
        metadata_destroy(md);
        return r;
    }
    *ret_md = md;
    return 0;
}

/* All that one epoch knows, except the cache's frames. */
static void
forget(struct metadata *md)
{
    devices_forget(md);
    sm_destroy(md->data_sm);
    md->data_sm = NULL;
    tm_destroy(md->tm);
    md->tm = NULL;
    md->half_loaded = md->suspected = false;
    memset(&md->now, 0, sizeof(md->now));
}

void
metadata_destroy(struct metadata *md)
{
    if (!md)
        return;
    THIN_ASSERT(!md->op_open);
    forget(md);
    bm_destroy(md->bm);
    free(md->sb_block);
    free(md);
}

void
metadata_reset(struct metadata *md)
{
    THIN_ASSERT(!md->op_open);
    forget(md);
    bm_reset(md->bm);
    memset(md->sb_block, 0, METADATA_BLOCK_SIZE);
    /* Out of memory: metadata_load and metadata_format try again and report it. */
    if (open_tm(md) < 0)
        md->tm = NULL;
}

struct block_manager *
metadata_bm(struct metadata *md)
{
    return md->bm;
}

struct transaction_manager *
metadata_tm(struct metadata *md)
{
    return md->tm;
}

int
md_check_open(const struct metadata *md, struct thin_error *err)
{
    if (!md->tm || !md->data_sm)
        return thin_fail(err, -THIN_E_INVALID, "the metadata is not loaded");
    return 0;
}

int
md_check_changing(struct metadata *md, struct thin_error *err)
{
    THIN_ASSERT(md->op_open);
    if (md->params.read_only)
        return thin_fail(err, -THIN_E_READ_ONLY, "the metadata is opened read-only");
    return md_check_open(md, err);
}

/* ---- operations ------------------------------------------------------------------- */

void
metadata_op_begin(struct metadata *md, enum tm_purse purse)
{
    THIN_ASSERT(!md->op_open);
    THIN_ASSERT(TAILQ_EMPTY(&md->touched));
    md->op_open = true;
    md->before = md->now;
    tm_op_begin(md->tm, purse);
}

void
metadata_op_undo(struct metadata *md)
{
    THIN_ASSERT(md->op_open);
    tm_op_undo(md->tm);
    devices_undo(md);
    md->now = md->before;
    md->op_open = false;
}

int
metadata_op_end(struct metadata *md, struct thin_error *err)
{
    uint64_t need;
    int r;

    THIN_ASSERT(md->op_open);
    /* What the commit must be able to allocate, this operation's changes included. */
    need = details_merge_need(md);
    if (md->data_sm)
        need += sm_merge_need(md->data_sm);
    tm_set_commit_need(md->tm, need);
    r = tm_op_admit(md->tm, err);
    if (r < 0) {
        metadata_op_undo(md);
        return r;
    }
    tm_op_keep(md->tm);
    devices_keep(md);
    md->op_open = false;
    return 0;
}

/* ---- format ----------------------------------------------------------------------- */

static int
check_geometry(uint32_t data_block_sectors, uint64_t nr_data_blocks,
               struct thin_error *err)
{
    uint64_t sectors, bytes;

    if (data_block_sectors < DATA_BLOCK_SECTORS_MIN ||
        data_block_sectors > DATA_BLOCK_SECTORS_MAX ||
        data_block_sectors % DATA_BLOCK_SECTORS_MIN)
        return thin_fail(err, -THIN_E_INVALID,
                         "data block size of %" PRIu32
                         " sectors, must be a multiple of %u from %u to %u",
                         data_block_sectors, DATA_BLOCK_SECTORS_MIN,
                         DATA_BLOCK_SECTORS_MIN, DATA_BLOCK_SECTORS_MAX);
    if (nr_data_blocks > DATA_BLOCK_NR_MAX + 1 ||
        !checked_mul_u64(nr_data_blocks, data_block_sectors, &sectors) ||
        !checked_mul_u64(sectors, SECTOR_SIZE, &bytes) || bytes > INT64_MAX)
        return thin_fail(err, -THIN_E_INVALID,
                         "%" PRIu64 " data blocks of %" PRIu32
                         " sectors are more than the format can hold",
                         nr_data_blocks, data_block_sectors);
    return 0;
}

/* A map that can never fit is refused before anything is made. A lower bound: bitmaps,
   the leaves of their index, and a block for each root. */
static int
check_room(struct metadata *md, uint64_t nr_data_blocks, struct thin_error *err)
{
    uint64_t nr = md->now.sb.metadata_nr_blocks;
    uint64_t bitmaps = div_up_u64(nr_data_blocks, BITMAP_ENTRIES);
    uint64_t need = bitmaps + bitmaps / node_max_entries_for(VALUE_SIZE_INDEX) + 8;

    if (need > nr)
        return thin_fail(err, -THIN_E_NO_METADATA_SPACE,
                         "%" PRIu64 " data blocks need at least %" PRIu64
                         " metadata blocks, the device has %" PRIu64,
                         nr_data_blocks, need, nr);
    return 0;
}

/* Inside an operation: the empty trees and the empty data space map. */
static int
format_trees(struct metadata *md, struct thin_error *err)
{
    int r;

    r = sm_create(md->tm, &md->data_sm, err);
    if (r < 0)
        return r;
    r = btree_create(&md->top, &md->now.sb.data_mapping_root, err);
    if (r < 0)
        return r;
    return btree_create(&md->details, &md->now.sb.device_details_root, err);
}

static int
format_all(struct metadata *md, uint64_t nr_data_blocks, struct thin_error *err)
{
    bool done = false;
    int r;

    r = tm_format(md->tm, md->now.sb.metadata_nr_blocks, err);
    if (r < 0)
        return r;

    metadata_op_begin(md, TM_NORMAL);
    r = format_trees(md, err);
    if (r < 0) {
        metadata_op_undo(md);
        return r;
    }
    r = metadata_op_end(md, err);
    if (r < 0)
        return r;

    while (!done) {
        metadata_op_begin(md, TM_NORMAL);
        r = metadata_grow_data(md, nr_data_blocks, &done, err);
        if (r < 0)
            metadata_op_undo(md);
        else
            r = metadata_op_end(md, err);
        /* More than one transaction may hold: the caller goes on after a commit. */
        if (r == -THIN_E_NEED_COMMIT || r == -THIN_E_CACHE_FULL)
            return 0;
        if (r < 0)
            return r;
    }
    return 0;
}

int
metadata_format(struct metadata *md, uint32_t data_block_sectors, uint64_t nr_data_blocks,
                struct thin_error *err)
{
    int r;

    THIN_ASSERT(!md->op_open);
    THIN_ASSERT(!md->data_sm);
    if (md->params.read_only)
        return thin_fail(err, -THIN_E_READ_ONLY, "cannot format: opened read-only");
    r = check_geometry(data_block_sectors, nr_data_blocks, err);
    if (r < 0)
        return r;
    r = need_tm(md, err);
    if (r < 0)
        return r;

    memset(&md->now, 0, sizeof(md->now));
    memset(md->sb_block, 0, METADATA_BLOCK_SIZE);
    md->now.sb.version = SUPERBLOCK_VERSION;
    md->now.sb.data_block_size = data_block_sectors;
    md->now.sb.metadata_block_size = METADATA_BLOCK_SECTORS;
    md->now.sb.metadata_nr_blocks = min_u64(bm_nr_blocks(md->bm), METADATA_BLOCKS_MAX);
    md->now.changed = true;

    r = check_room(md, nr_data_blocks, err);
    if (r == 0)
        r = format_all(md, nr_data_blocks, err);
    if (r < 0) {
        metadata_reset(md); /* half a format is of no use to anyone */
        return thin_wrap(err, r, "format the metadata");
    }
    return 0;
}

/* ---- load ------------------------------------------------------------------------- */

static int
judge_superblock(const void *block, mblock_t location, uint32_t arg,
                 struct thin_error *err)
{
    (void)arg;
    if (!superblock_is_thin(block))
        return thin_fail(err, -THIN_E_NOT_THIN,
                         "metadata block %" PRIu64
                         " does not have the magic of thin-pool metadata",
                         location);
    return 0;
}

const struct bm_validator md_superblock_validator = {
    .kind = BLOCK_SUPERBLOCK,
    .judge = judge_superblock,
};

/* What must hold before anything that the superblock names is read. */
static int
judge_roots(const struct metadata *md, const struct superblock *sb,
            struct thin_error *err)
{
    uint64_t nr = sb->metadata_sm.nr_blocks;

    if (nr > METADATA_BLOCKS_MAX || nr == 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "the superblock says %" PRIu64
                         " metadata blocks, the format holds 1 to %u",
                         nr, METADATA_BLOCKS_MAX);
    if (nr > bm_nr_blocks(md->bm))
        return thin_fail(err, -THIN_E_RANGE,
                         "the metadata device has %" PRIu64
                         " blocks of 4 KiB, the pool was made with %" PRIu64
                         "; the device must have been cut off",
                         bm_nr_blocks(md->bm), nr);
    if (sb->data_sm.nr_blocks > DATA_BLOCK_NR_MAX + 1)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "the superblock says %" PRIu64
                         " data blocks, more than the format can hold",
                         sb->data_sm.nr_blocks);
    if (sb->data_mapping_root == 0 || sb->data_mapping_root >= nr ||
        sb->device_details_root == 0 || sb->device_details_root >= nr ||
        sb->held_root >= nr)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "the superblock names roots %" PRIu64 ", %" PRIu64
                         " and held root %" PRIu64 ", blocks end at %" PRIu64,
                         sb->data_mapping_root, sb->device_details_root, sb->held_root,
                         nr);
    if (sb->time > POOL_TIME_MAX)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "the pool's clock is at %" PRIu32 ", its highest is %u",
                         sb->time, POOL_TIME_MAX);
    return 0;
}

int
metadata_load(struct metadata *md, struct thin_error *err)
{
    struct superblock sb;
    int r;

    THIN_ASSERT(!md->op_open);
    THIN_ASSERT(!md->data_sm);
    r = need_tm(md, err);
    if (r < 0)
        return r;
    {
        BLOCK_LOCK struct bm_block *b = NULL;

        r = bm_read_lock(md->bm, SUPERBLOCK_LOCATION, &md_superblock_validator, &b, err);
        if (r < 0)
            return thin_wrap(err, r, "read the superblock");
        superblock_decode(&sb, bm_data(b));
        memcpy(md->sb_block, bm_data(b), METADATA_BLOCK_SIZE);
    }
    r = superblock_judge(&sb, md->params.read_only, err);
    if (r < 0)
        return r;
    r = judge_roots(md, &sb, err);
    if (r < 0)
        return r;
    r = md->counts_lost[0] ? 0 : tm_load(md->tm, &sb.metadata_sm, err);
    if (is_damage(r) && !md->suspected) {
        md->suspected = true; /* it may have been the transfer */
        r = tm_load(md->tm, &sb.metadata_sm, err);
    }
    if (is_damage(r)) {
        /* Reading needs no counts of metadata blocks, changing does. */
        snprintf(md->counts_lost, sizeof(md->counts_lost), "%s", thin_error_text(err, r));
        md->params.read_only = true;
    } else if (r < 0) {
        return thin_wrap(err, r, "load the metadata space map");
    }
    if (!md->params.waiting && !md->half_loaded) {
        /* What follows makes large tables: a step of its own. */
        md->half_loaded = true;
        return -THIN_E_WOULD_BLOCK;
    }
    memset(&md->now, 0, sizeof(md->now));
    md->now.sb = sb;
    r = sm_open(md->tm, &sb.data_sm, &md->data_sm, err);
    if (r < 0)
        return thin_wrap(err, r, "load the data space map");
    return 0;
}

const char *
metadata_counts_lost(const struct metadata *md)
{
    return md->counts_lost[0] ? md->counts_lost : NULL;
}

/* ---- space ------------------------------------------------------------------------ */

void
metadata_data_space(const struct metadata *md, struct metadata_space *ret)
{
    struct sm_stats stats = {0};
    uint64_t used;

    if (md->data_sm)
        sm_get_stats(md->data_sm, &stats);
    used = stats.nr_allocated + stats.nr_pending;
    ret->nr_blocks = stats.nr_blocks;
    ret->nr_pending = stats.nr_pending;
    ret->nr_used = stats.nr_allocated;
    ret->nr_free = stats.nr_blocks > used ? stats.nr_blocks - used : 0;
}

void
metadata_own_space(const struct metadata *md, struct metadata_space *ret,
                   uint64_t *ret_reserve)
{
    struct tm_stats stats = {0};
    uint64_t used;

    if (md->data_sm)
        tm_get_stats(md->tm, &stats);
    used = stats.nr_allocated + stats.nr_pending + stats.reserve;
    ret->nr_blocks = stats.nr_blocks;
    ret->nr_pending = stats.nr_pending;
    ret->nr_used = stats.nr_allocated;
    ret->nr_free = stats.nr_blocks > used ? stats.nr_blocks - used : 0;
    *ret_reserve = stats.reserve;
}

int
metadata_find_free(struct metadata *md, dblock_t begin, dblock_t end, uint64_t wanted,
                   dblock_t *ret_begin, uint64_t *ret_len, dblock_t *ret_next,
                   struct thin_error *err)
{
    int r;

    r = md_check_open(md, err);
    if (r < 0)
        return r;
    r = sm_find_free(md->data_sm, begin, end, wanted, ret_begin, ret_len, ret_next, err);
    if (r < 0)
        return thin_wrap(err, r, "find a free data block");
    return 0;
}

int
metadata_take_data(struct metadata *md, dblock_t b, struct thin_error *err)
{
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    r = sm_alloc(md->data_sm, b, b + 1, err);
    if (r < 0)
        return thin_wrap(err, r, "take data block %" PRIu64, b);
    md->now.changed = true;
    return 0;
}

int
metadata_hold_data(struct metadata *md, dblock_t b)
{
    THIN_ASSERT(md->data_sm);
    return sm_hold(md->data_sm, b);
}

void
metadata_release_data(struct metadata *md, dblock_t b)
{
    THIN_ASSERT(md->data_sm);
    sm_release(md->data_sm, b);
}

static int
check_may_grow(const struct metadata *md, struct thin_error *err)
{
    if (md->now.sb.flags & SUPERBLOCK_NEEDS_CHECK)
        return thin_fail(err, -THIN_E_NEEDS_CHECK,
                         "cannot grow: the pool needs a check first");
    return 0;
}

int
metadata_grow_data(struct metadata *md, uint64_t nr_blocks, bool *ret_done,
                   struct thin_error *err)
{
    struct sm_stats stats;
    bool done = false;
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    r = check_may_grow(md, err);
    if (r < 0)
        return r;
    r = check_geometry(md->now.sb.data_block_size, nr_blocks, err);
    if (r < 0)
        return r;
    sm_get_stats(md->data_sm, &stats);
    if (nr_blocks < stats.nr_blocks)
        return thin_fail(err, -THIN_E_INVALID,
                         "cannot shrink the data space from %" PRIu64 " to %" PRIu64
                         " blocks",
                         stats.nr_blocks, nr_blocks);
    if (nr_blocks == stats.nr_blocks) {
        *ret_done = true;
        return 0;
    }
    for (unsigned i = 0; i < GROW_BITMAPS_STEP && !done; i++) {
        r = sm_extend(md->data_sm, nr_blocks, &done, err);
        if (r < 0)
            return thin_wrap(err, r, "grow the data space to %" PRIu64 " blocks",
                             nr_blocks);
    }
    md->now.changed = true;
    *ret_done = done;
    return 0;
}

int
metadata_grow_own(struct metadata *md, uint64_t nr_blocks, struct thin_error *err)
{
    struct tm_stats stats;
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    r = check_may_grow(md, err);
    if (r < 0)
        return r;
    if (nr_blocks > METADATA_BLOCKS_MAX)
        return thin_fail(err, -THIN_E_LIMIT,
                         "%" PRIu64 " metadata blocks, the format holds %u", nr_blocks,
                         METADATA_BLOCKS_MAX);
    if (nr_blocks > bm_nr_blocks(md->bm))
        return thin_fail(err, -THIN_E_RANGE,
                         "cannot grow the metadata to %" PRIu64
                         " blocks, the device has %" PRIu64,
                         nr_blocks, bm_nr_blocks(md->bm));
    tm_get_stats(md->tm, &stats);
    if (nr_blocks < stats.nr_blocks)
        return thin_fail(err, -THIN_E_INVALID,
                         "cannot shrink the metadata from %" PRIu64 " to %" PRIu64
                         " blocks",
                         stats.nr_blocks, nr_blocks);
    if (nr_blocks == stats.nr_blocks)
        return 0;
    r = tm_extend(md->tm, nr_blocks, err);
    if (r < 0)
        return thin_wrap(err, r, "grow the metadata to %" PRIu64 " blocks", nr_blocks);
    md->now.changed = true;
    return 0;
}

/* ---- the superblock's own fields ---------------------------------------------------- */

const struct superblock *
metadata_superblock(const struct metadata *md)
{
    return &md->now.sb;
}

void
metadata_settle(struct metadata *md, void (*done)(void *arg, int result), void *arg)
{
    THIN_ASSERT(md->data_sm && !md->params.read_only);
    bm_write_superblock(md->bm, md->sb_block, done, arg);
}

void
metadata_set_trailer(struct metadata *md, const uint8_t trailer[SUPERBLOCK_TRAILER_BYTES])
{
    THIN_ASSERT(md->op_open);
    memcpy(md->now.sb.trailer, trailer, SUPERBLOCK_TRAILER_BYTES);
    md->now.changed = true;
}

void
metadata_set_needs_check(struct metadata *md, bool set)
{
    THIN_ASSERT(md->op_open);
    if (set)
        md->now.sb.flags |= SUPERBLOCK_NEEDS_CHECK;
    else
        md->now.sb.flags &= ~SUPERBLOCK_NEEDS_CHECK;
    md->now.changed = true;
}

int
metadata_set_trans_id(struct metadata *md, uint64_t expected, uint64_t wanted,
                      struct thin_error *err)
{
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    if (md->now.sb.trans_id != expected)
        return thin_fail(err, -THIN_E_INVALID,
                         "transaction id is %" PRIu64 ", not %" PRIu64,
                         md->now.sb.trans_id, expected);
    md->now.sb.trans_id = wanted;
    md->now.changed = true;
    return 0;
}

bool
metadata_changed(const struct metadata *md)
{
    return md->now.changed;
}

uint64_t
metadata_txn(const struct metadata *md)
{
    return md->txn;
}

uint32_t
metadata_dirty_blocks(const struct metadata *md)
{
    return bm_nr_dirty(md->bm);
}
