/*
 * The metadata snapshot (FORMAT.md section 15): a copy of the superblock that keeps the
 * two trees of a moment.
 *
 * Release works in steps, and its only memory is the held copy itself: each step takes
 * something off the held trees, from the highest device down, and writes their new roots
 * into the copy. So the counts are exact after each step, whatever comes between, and
 * a release that was interrupted goes on when it is asked for again.
 *
 *   reserve ─► held ─► release_step: one device less (or a piece of one), … ─► no device
 *                      left ─► details dropped in pieces ─► copy dropped, held_root 0
 */
#include <inttypes.h>
#include <string.h>

#include "core/metadata/metadata_private.h"

int
metadata_reserve_snap(struct metadata *md, struct thin_error *err)
{
    BLOCK_LOCK struct bm_block *b = NULL;
    struct superblock copy;
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    if (md->now.sb.held_root)
        return thin_fail(err, -THIN_E_BUSY,
                         "a metadata snapshot is held already at block %" PRIu64,
                         md->now.sb.held_root);

    /* The held details must fit the held mappings. More than one operation can hold
       means: after a commit, which merges them all. */
    while (md->nr_changed) {
        r = device_merge_details(md, TAILQ_FIRST(&md->changed), err);
        if (r == -THIN_E_LIMIT)
            r = -THIN_E_NEED_COMMIT;
        if (r < 0)
            return thin_wrap(err, r, "reserve a metadata snapshot");
    }

    r = tm_inc(md->tm, md->now.sb.data_mapping_root, 1, err);
    if (r == 0)
        r = tm_inc(md->tm, md->now.sb.device_details_root, 1, err);
    if (r == 0)
        r = tm_new_block(md->tm, &md_superblock_validator, &b, err);
    if (r < 0)
        return thin_wrap(err, r, "reserve a metadata snapshot");

    copy = md->now.sb;
    copy.held_root = 0;
    memset(&copy.data_sm, 0, sizeof(copy.data_sm));
    memset(&copy.metadata_sm, 0, sizeof(copy.metadata_sm));
    /* The trailer names the live catalogue and its owner: not the copy's to repeat. */
    memset(copy.trailer, 0, sizeof(copy.trailer));
    superblock_encode(&copy, bm_data_rw(b));

    md->now.sb.held_root = bm_location(b);
    md->now.share_gen++;
    md->now.changed = true;
    return 0;
}

/* What a step of the release works on. */
struct held {
    struct metadata *md;
    mblock_t mapping_root, details_root;
    bool moved; /* the copy must be written anew */
};

/* Drops a whole tree that has other holders, leaving an empty one in its place.
   *ret_shared false: it has none. */
static int
drop_if_shared(struct held *held, const struct btree *tree, mblock_t *root,
               bool *ret_shared, struct thin_error *err)
{
    uint32_t count;
    int r;

    r = tm_ref(held->md->tm, *root, &count, err);
    if (r < 0)
        return r;
    *ret_shared = count > 1;
    if (count <= 1)
        return 0;
    r = tm_dec(held->md->tm, *root, err);
    if (r < 0)
        return r;
    held->moved = true;
    return btree_create(tree, root, err);
}

/* Stores the root, or rather makes the path to it private: see md_words. */
static int
store_root(struct held *held, uint64_t id, mblock_t root, struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_MAPPING];
    bool inserted;

    store_le64(value, root);
    held->moved = true;
    return btree_insert(&held->md->top_replace, held->mapping_root, id, value,
                        &held->mapping_root, &inserted, err);
}

static int
lower_mapped(struct held *held, uint64_t id, uint64_t removed, struct thin_error *err)
{
    struct metadata *md = held->md;
    struct device_details details;
    uint8_t value[VALUE_SIZE_DETAILS];
    bool found, inserted;
    int r;

    r = btree_lookup(&md->details, held->details_root, id, value, &found, err);
    if (r < 0 || !found)
        return r;
    device_details_decode(&details, value);
    details.mapped_blocks -=
        removed < details.mapped_blocks ? removed : details.mapped_blocks;
    device_details_encode(&details, value);
    return btree_insert(&md->details, held->details_root, id, value, &held->details_root,
                        &inserted, err);
}

/* Takes a piece of the held device `id`, or all that is left of it. */
static int
release_device(struct held *held, uint64_t id, mblock_t root, uint32_t budget,
               struct thin_error *err)
{
    struct metadata *md = held->md;
    uint64_t removed, end = 0;
    mblock_t trimmed;
    uint32_t count;
    bool found;
    int r;

    r = store_root(held, id, root, err);
    if (r < 0)
        return r;
    r = tm_ref(md->tm, root, &count, err);
    if (r < 0)
        return r;
    if (count <= 1) {
        r = btree_trim(&md->bottom, root, 0, UINT64_MAX, budget, &trimmed, &removed, &end,
                       err);
        if (r < 0)
            return r;
        if (trimmed != root) {
            r = store_root(held, id, trimmed, err);
            if (r < 0)
                return r;
        }
        if (end > 0)
            return lower_mapped(held, id, removed, err);
    }
    r = btree_remove(&md->top, held->mapping_root, id, &held->mapping_root, &found, err);
    if (r < 0)
        return r;
    return btree_remove(&md->details, held->details_root, id, &held->details_root, &found,
                        err);
}

/* *ret_empty: both held trees are empty leaves of count 1 now. */
static int
release_some(struct held *held, uint32_t budget, bool *ret_empty, struct thin_error *err)
{
    struct metadata *md = held->md;
    uint8_t value[VALUE_SIZE_MAPPING];
    uint64_t id, removed, end;
    bool shared, found;
    int r;

    r = drop_if_shared(held, &md->top, &held->mapping_root, &shared, err);
    if (r < 0)
        return r;
    if (!shared) {
        r = btree_highest(&md->top, held->mapping_root, &id, &found, err);
        if (r < 0)
            return r;
        if (found) {
            r = btree_lookup(&md->top, held->mapping_root, id, value, &found, err);
            if (r < 0)
                return r;
            *ret_empty = false;
            return release_device(held, id, load_le64(value), budget, err);
        }
    }

    /* What is left of the details once no device is: all of them if the mapping tree
       went in one piece. */
    r = drop_if_shared(held, &md->details, &held->details_root, &shared, err);
    if (r < 0)
        return r;
    if (!shared) {
        mblock_t root = held->details_root;

        r = btree_trim(&md->details, root, 0, UINT64_MAX, budget, &held->details_root,
                       &removed, &end, err);
        if (r < 0)
            return r;
        held->moved = held->moved || root != held->details_root;
        if (end > 0) {
            *ret_empty = false;
            return 0;
        }
    }
    *ret_empty = true;
    return 0;
}

/* Writes the roots that the held trees have now into the held copy. */
static int
write_copy(struct held *held, struct thin_error *err)
{
    struct metadata *md = held->md;
    BLOCK_LOCK struct bm_block *b = NULL;
    struct superblock copy;
    bool inc_children;
    int r;

    r = tm_shadow_block(md->tm, md->now.sb.held_root, &md_superblock_validator, &b,
                        &inc_children, err);
    if (r < 0)
        return r;
    /* Nobody but the superblock points to the copy, so it cannot be shared. */
    if (inc_children)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "the held superblock, metadata block %" PRIu64
                         ", is counted more than once",
                         md->now.sb.held_root);
    superblock_decode(&copy, bm_data(b));
    copy.data_mapping_root = held->mapping_root;
    copy.device_details_root = held->details_root;
    superblock_encode(&copy, bm_data_rw(b));
    md->now.sb.held_root = bm_location(b);
    return 0;
}

static int
release_step(struct metadata *md, uint32_t budget, bool *ret_done, struct thin_error *err)
{
    struct held held = {.md = md};
    bool empty;
    int r;

    {
        BLOCK_LOCK struct bm_block *b = NULL;
        struct superblock copy;

        r = tm_read_lock(md->tm, md->now.sb.held_root, &md_superblock_validator, &b, err);
        if (r < 0)
            return r;
        superblock_decode(&copy, bm_data(b));
        held.mapping_root = copy.data_mapping_root;
        held.details_root = copy.device_details_root;
    }

    r = release_some(&held, trim_budget(budget), &empty, err);
    if (r < 0)
        return r;
    md->now.changed = true;
    if (!empty) {
        *ret_done = false;
        return write_copy(&held, err);
    }
    r = tm_dec(md->tm, held.mapping_root, err);
    if (r == 0)
        r = tm_dec(md->tm, held.details_root, err);
    if (r == 0)
        r = tm_dec(md->tm, md->now.sb.held_root, err);
    if (r < 0)
        return r;
    md->now.sb.held_root = 0;
    *ret_done = true;
    return 0;
}

int
metadata_release_snap_step(struct metadata *md, uint32_t budget, bool *ret_done,
                           struct thin_error *err)
{
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    if (!md->now.sb.held_root)
        return thin_fail(err, -THIN_E_NOT_FOUND, "no metadata snapshot is held");
    r = release_step(md, budget, ret_done, err);
    if (r < 0)
        return thin_wrap(err, r, "release the metadata snapshot at block %" PRIu64,
                         md->now.sb.held_root);
    return 0;
}

int
metadata_read_held_leaf(struct metadata *md, uint32_t id, vblock_t vblock,
                        struct mapping_slot *slots, uint32_t *ret_nr, vblock_t *ret_end,
                        struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_MAPPING];
    struct superblock copy;
    vblock_t begin;
    bool found;
    int r;

    r = md_check_open(md, err);
    if (r < 0)
        return r;
    *ret_nr = 0;
    *ret_end = UINT64_MAX;
    if (!md->now.sb.held_root)
        return 0;
    {
        BLOCK_LOCK struct bm_block *b = NULL;

        r = tm_read_lock(md->tm, md->now.sb.held_root, &md_superblock_validator, &b, err);
        if (r < 0)
            return thin_wrap(err, r, "read the metadata snapshot");
        superblock_decode(&copy, bm_data(b));
    }
    r = btree_lookup(&md->top, copy.data_mapping_root, id, value, &found, err);
    if (r < 0)
        return thin_wrap(err, r, "the metadata snapshot's device %" PRIu32, id);
    if (!found)
        return 0;
    r = btree_read_leaf(&md->bottom, load_le64(value), vblock,
                        (struct btree_entry64 *)(void *)slots, MAPPING_SLOTS_MAX, ret_nr,
                        &begin, ret_end, err);
    if (r < 0)
        return thin_wrap(err, r,
                         "the metadata snapshot's device %" PRIu32 ", block %" PRIu64, id,
                         vblock);
    return 0;
}
