/*
 * What the files of core/metadata share. Not for other rooms.
 *
 * Everything that an operation may change in memory stands in `struct md_state` (saved
 * whole when the operation begins) or in a device's `now` (saved in `before` by
 * device_touch before its first change in an operation). So undo is: tm_op_undo, state
 * back, touched devices back.
 */
#ifndef THIN_CORE_METADATA_METADATA_PRIVATE_H
#define THIN_CORE_METADATA_METADATA_PRIVATE_H

#include <string.h>
#include <sys/queue.h>

/*
 * A hash table that cannot grow leaves the element out: see device_add. Keys are device
 * ids of 4 bytes; uthash's own function for any bytes does more than they need (and
 * falls through its cases without saying so, which clang minds).
 */
#define HASH_NONFATAL_OOM 1
#define HASH_FUNCTION(keyptr, keylen, hashv)           \
    do {                                               \
        uint32_t hash_key;                             \
        memcpy(&hash_key, (keyptr), sizeof(hash_key)); \
        (hashv) = hash_key * 2654435761u;              \
        (hashv) ^= (hashv) >> 15;                      \
    } while (0)
#include <uthash.h>

#include "core/base/assert.h"
#include "core/metadata/metadata.h"

#define DEVICES_CACHED_MAX  4096u /* devices remembered; changed ones count too */
#define DEVICES_CHANGED_MAX 2048u /* with details to be merged; more: NEED_COMMIT */
#define MERGE_DETAILS_STEP  8u    /* details put into the tree in one merge step */
#define GROW_BITMAPS_STEP   8u    /* bitmaps added in one operation */
#define TRIM_BUDGET_MIN     12u   /* nodes: a path down with room for its neighbours */
#define TRIM_BUDGET_MAX     32u   /* leaves room for the top level in TM_OP_NODES_MAX */

/* What an operation may change of a device. */
struct md_words {
    struct device_details details;
    mblock_t root;
    /*
     * The top-level path to this device was made private (unshared, of the open
     * transaction) in transaction `private_txn`, when md_state.share_gen was
     * `private_gen`: only then may the device's own root be shadowed, since before,
     * the root's count does not show that the leaf above it is shared.
     */
    uint64_t private_txn;
    uint32_t private_gen;
    uint32_t times_end; /* every mapping's time is below; for one just loaded, above the
                           pool's: nothing better is known without reading all */
    bool changed;       /* details differ from the tree's; in md->changed */
    bool absent;        /* deleted, or not created yet */
};

struct md_device {
    uint32_t id;
    struct md_words now, before;
    bool touched; /* by the open operation; in md->touched */
    TAILQ_ENTRY(md_device) use_link, changed_link, touched_link;
    UT_hash_handle hh;
};

TAILQ_HEAD(md_device_list, md_device);

struct md_state {
    struct superblock sb; /* space map roots are filled at the cut */
    bool changed;         /* the open transaction has a change */
    uint32_t share_gen;   /* rises when the top level's root becomes shared */
};

struct metadata {
    struct metadata_params params;
    struct block_manager *bm;
    struct transaction_manager *tm;
    struct space_map *data_sm; /* NULL until loaded or formatted */
    bool half_loaded;          /* the metadata space map is, and that was told */
    bool suspected;            /* it looked damaged once */
    char counts_lost[THIN_ERROR_TEXT_MAX]; /* why it cannot be used; empty: it can */
    uint64_t txn;

    struct md_state now, before;
    bool op_open;
    int op_refused; /* why op_end will refuse whatever was done; 0 */

    struct btree top;         /* id to root; an overwritten root is dropped */
    struct btree top_replace; /* the same tree; an overwritten root is not dropped */
    struct btree bottom;      /* vblock to mapping */
    struct btree details;     /* id to details */

    struct md_device *by_id;                      /* uthash */
    struct md_device_list used, changed, touched; /* used: least recently used first */
    uint32_t nr_devices, nr_changed;

    uint8_t *sb_block; /* 4096 bytes: what block 0 held last, then what is being cut */
};

/* ---- pool_metadata.c ------------------------------------------------------------- */

/* For block 0 and the held copy. */
extern const struct bm_validator md_superblock_validator;
/* 0, or why nothing can be asked of it (not loaded yet). */
int md_check_open(const struct metadata *md, struct thin_error *err);
/* The same for a changing call; asserts that an operation is open. */
int md_check_changing(struct metadata *md, struct thin_error *err);

/* ---- thin_device.c --------------------------------------------------------------- */

/* Finds or loads the device. -THIN_E_NOT_FOUND, -THIN_E_BAD_BLOCK. Borrowed until the
   next call. */
int device_get(struct metadata *md, uint32_t id, struct md_device **ret_dev,
               struct thin_error *err);
/* Saves the device's words for undo. Before the first change in an operation. */
void device_touch(struct metadata *md, struct md_device *dev);
/* Details changed: they will be merged. -THIN_E_NEED_COMMIT. */
int device_note_details(struct metadata *md, struct md_device *dev,
                        struct thin_error *err);
void device_clear_changed(struct metadata *md, struct md_device *dev);
/* Makes the top-level path private (see md_words); must come before any change of the
   device's own tree. */
int device_make_private(struct metadata *md, struct md_device *dev,
                        struct thin_error *err);
/* The device's tree has this root now: tells the top level if it moved. */
int device_set_root(struct metadata *md, struct md_device *dev, mblock_t root,
                    struct thin_error *err);
void devices_undo(struct metadata *md);
void devices_keep(struct metadata *md);
void devices_forget(struct metadata *md); /* all of them */

/* ---- mapping.c ------------------------------------------------------------------- */

/* Sets up md's four trees over the present tm. */
void trees_init(struct metadata *md);
/* As metadata_unmap_step, without looking first. */
int device_trim(struct metadata *md, struct md_device *dev, vblock_t begin, vblock_t end,
                uint32_t budget, vblock_t *ret_end, uint64_t *ret_removed,
                struct thin_error *err);

/* ---- commit.c -------------------------------------------------------------------- */

/* Upper bound of blocks that the merge of changed details may allocate. */
uint64_t details_merge_need(const struct metadata *md);
/* Writes the details of one changed device into the tree. */
int device_merge_details(struct metadata *md, struct md_device *dev,
                         struct thin_error *err);

static inline uint32_t
trim_budget(uint32_t budget)
{
    if (budget < TRIM_BUDGET_MIN)
        return TRIM_BUDGET_MIN;
    return budget > TRIM_BUDGET_MAX ? TRIM_BUDGET_MAX : budget;
}

#endif
