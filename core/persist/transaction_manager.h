/*
 * Transactions over metadata blocks: copy-on-write, operations that happen whole or
 * not at all, and the metadata space map.
 *
 * **An operation** is everything between tm_op_begin and tm_op_keep or tm_op_undo. It
 * may touch many nodes and counts and may meet an error at any point (a block that is
 * not cached, a bad checksum, no space). tm_op_undo then puts everything back: node
 * contents, counts, allocations, deltas of the data space map, the in-core words that
 * were registered. So the first pass of an operation *prepares* (it finds what is
 * missing and counts exactly what it costs), and the pass that meets nothing missing
 * and is admitted is *kept*. There is no second code path that has to guess what the
 * first will touch. Nothing outside sees an operation half done: all is on one thread
 * and no callback runs inside one.
 *
 * **A transaction** is a row of kept operations, numbered from 1. tm_cut ends it: from
 * then on its frames never change, and the next one is open at once (its first change
 * of any node shadows it to a new place). At most one transaction is being written.
 *
 * Rules kept here (FORMAT.md section 9), each asserted:
 *   - a block that the durable superblock reaches is never written in place (T1);
 *   - a block freed in transaction n is not handed out before tm_durable(n) (T2);
 *   - a metadata block's count is exactly the number of pointers to it.
 */
#ifndef THIN_CORE_PERSIST_TRANSACTION_MANAGER_H
#define THIN_CORE_PERSIST_TRANSACTION_MANAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ondisk/superblock.h"
#include "core/persist/block_manager.h"

#define TM_OP_NODES_MAX \
    128u /* nodes of this transaction that one operation may change; more is LIMIT */
#define TM_OP_LOG_MAX    131072u  /* changes that one operation may log; more is LIMIT */
#define TM_OP_SAVES_MAX  32u      /* tm_op_save calls in one operation ... */
#define TM_OP_SAVE_BYTES 256u     /* ... of so many bytes each */
#define TM_PENDING_MAX   1048576u /* metadata blocks freed and not yet reusable */
#define TM_OVERFLOW_MAX  8192u    /* counts above 2 changed in one transaction */
#define TM_FRAMES_MARGIN 16u      /* frames that one operation needs beside the commit */

struct transaction_manager;

struct tm_params {
    struct block_manager *bm; /* borrowed */
    uint32_t reserve;  /* blocks that only operations marked so may use; UINT32_MAX: the
                                  format's min(4096, nr_blocks / 10) */
    uint32_t node_max; /* entries in a node of the space maps' trees; 0: the format's */
};

struct tm_stats {
    uint64_t txn; /* the open one's number */
    uint64_t nr_blocks, nr_allocated, nr_pending, reserve;
    uint32_t bm_dirty;
    uint32_t op_nodes_high_water;
};

int tm_create(const struct tm_params *params, struct transaction_manager **ret_tm);
void tm_destroy(struct transaction_manager *tm); /* no operation open; NULL is fine */
struct block_manager *tm_bm(struct transaction_manager *tm);
void tm_get_stats(const struct transaction_manager *tm, struct tm_stats *ret_stats);

/*
 * A fresh metadata space map for a device of `nr_blocks`, block 0 taken; all in the
 * open transaction. The rest of a format follows as ordinary operations.
 */
int tm_format(struct transaction_manager *tm, uint64_t nr_blocks, struct thin_error *err);

/*
 * Loads the metadata space map of a durable root. -THIN_E_WOULD_BLOCK: fetch and call
 * again (it goes on where it stopped). Bitmaps are held whole; overflow entries are
 * read when first needed.
 */
int tm_load(struct transaction_manager *tm, const struct space_map_root *root,
            struct thin_error *err);

/* ---- operations ------------------------------------------------------------------- */

/* Where the operation may take its blocks from. */
enum tm_purse {
    TM_NORMAL,  /* free less the commit's need less the reserve */
    TM_DISCARD, /* discards: as deletes if they leave no more blocks in use than before;
                   else free less the commit's need less half of the reserve */
    TM_RESERVE, /* deletes: free less the commit's need */
    TM_COMMIT,  /* the commit itself: whatever is free */
};

void tm_op_begin(struct transaction_manager *tm, enum tm_purse purse);

/*
 * Judges the cost: 0, or -THIN_E_NO_METADATA_SPACE (would waiting for a commit help?
 * then -THIN_E_NEED_COMMIT), or -THIN_E_CACHE_FULL: a commit makes frames clean (as it
 * does when a lock or a fetch says so). What costs nothing is always admitted. Call
 * last, before keep, after tm_set_commit_need.
 */
int tm_op_admit(struct transaction_manager *tm, struct thin_error *err);
void tm_op_keep(struct transaction_manager *tm);
void tm_op_undo(struct transaction_manager *tm);
bool tm_op_open(const struct transaction_manager *tm);

/* In-core words that an operation changes: saved here, put back by undo. At most
   TM_OP_SAVE_BYTES each, TM_OP_SAVES_MAX an operation; the same words again cost
   nothing. Call before the change. */
void tm_op_save(struct transaction_manager *tm, void *words, size_t bytes);

/* Calls `undo(arg, a, b)` on undo, last first, before saved words are put back: for
   tables that log their own changes. 0 or -ENOMEM/-THIN_E_LIMIT. */
int tm_op_on_undo(struct transaction_manager *tm,
                  void (*undo)(void *arg, uint64_t a, uint64_t b), void *arg, uint64_t a,
                  uint64_t b);

/* Blocks that the commit of the open transaction needs beyond what is dirty already:
   the owner of other structures (data space map, details) reports an upper bound. */
void tm_set_commit_need(struct transaction_manager *tm, uint64_t blocks);

/* ---- blocks, inside an operation ---------------------------------------------------- */

/* A zeroed block of count 1. -THIN_E_NO_METADATA_SPACE, -THIN_E_NEED_COMMIT, ... */
int tm_new_block_at(struct transaction_manager *tm, const struct bm_validator *v,
                    struct bm_block **ret_block, const char *where,
                    struct thin_error *err);
#define tm_new_block(tm, v, ret, err) tm_new_block_at(tm, v, ret, BM_HERE, err)

/*
 * A writable form of `orig`, of whose pointers the caller holds one: itself if it was
 * made in the open transaction and has count 1, else a copy (one reference to orig is
 * dropped). *ret_inc_children: orig was shared, so everything that the copy points to
 * has one pointer more, which the caller counts.
 */
int tm_shadow_block_at(struct transaction_manager *tm, mblock_t orig,
                       const struct bm_validator *v, struct bm_block **ret_block,
                       bool *ret_inc_children, const char *where, struct thin_error *err);
#define tm_shadow_block(tm, orig, v, ret, ret_inc, err) \
    tm_shadow_block_at(tm, orig, v, ret, ret_inc, BM_HERE, err)

/* Needs no operation. -THIN_E_BAD_BLOCK for block 0 and beyond the space map's end. */
int tm_read_lock_at(struct transaction_manager *tm, mblock_t b,
                    const struct bm_validator *v, struct bm_block **ret_block,
                    const char *where, struct thin_error *err);
#define tm_read_lock(tm, b, v, ret, err) tm_read_lock_at(tm, b, v, ret, BM_HERE, err)
void tm_unlock(struct transaction_manager *tm, struct bm_block *block);

/* Counts of metadata blocks. Loading an overflow entry may be -THIN_E_WOULD_BLOCK. A
   count that would fall below 0, or rise from 0, is -THIN_E_BAD_BLOCK. */
int tm_ref(struct transaction_manager *tm, mblock_t b, uint32_t *ret_count,
           struct thin_error *err);
int tm_inc(struct transaction_manager *tm, mblock_t b, uint32_t by,
           struct thin_error *err);
int tm_dec(struct transaction_manager *tm, mblock_t b, struct thin_error *err);

/* Grows the metadata space map to `nr_blocks` (METADATA_BLOCKS_MAX at most), inside an
   operation. -THIN_E_RANGE for a size that is not larger, or beyond the device. */
int tm_extend(struct transaction_manager *tm, uint64_t nr_blocks, struct thin_error *err);

/* ---- commit -------------------------------------------------------------------------- */

/*
 * Puts some of the counts above 2 that changed into their tree: part of the caller's
 * operation (TM_COMMIT). What tm_merge_left says is to be done before tm_prepare_cut,
 * which does a small rest in one step.
 */
int tm_merge_step(struct transaction_manager *tm, struct thin_error *err);
bool tm_merge_left(const struct transaction_manager *tm);

/*
 * Writes the space map's own changes (overflow tree, bitmaps, index block) into dirty
 * frames and gives the root for the superblock. An operation of its own, begun and
 * ended inside (none may be open): may be -THIN_E_WOULD_BLOCK, and then nothing has
 * changed. No operation may begin between it and tm_cut.
 */
int tm_prepare_cut(struct transaction_manager *tm, struct space_map_root *ret_root,
                   struct thin_error *err);

/* Ends the open transaction, opens the next; returns the ended one's number. The
   frames are then the block manager's to write (bm_write_cut). */
uint64_t tm_cut(struct transaction_manager *tm);

/* Transaction `txn` is durable: what was freed up to it may be handed out, except what
   a pinned view older than the free still needs. */
void tm_durable(struct transaction_manager *tm, uint64_t txn);
/* In two parts: says so, and then frees `max` blocks a call; true: some are left. */
void tm_set_durable(struct transaction_manager *tm, uint64_t txn);
bool tm_free_some(struct transaction_manager *tm, uint32_t max);
/* Frees up to this transaction may be needed neither after a crash nor by a view. */
uint64_t tm_freed_up_to(const struct transaction_manager *tm);

/* Blocks freed in transactions above `txn` stay until the pin goes. Any number. */
struct tm_pin {
    uint64_t txn;
    TAILQ_ENTRY(tm_pin) link;
};
void tm_pin_view(struct transaction_manager *tm,
                 struct tm_pin *pin); /* the durable state now */
/* What it held back is freed by the next tm_free_some. */
void tm_unpin_view(struct transaction_manager *tm, struct tm_pin *pin);

#endif
