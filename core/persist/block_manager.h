/*
 * The cache of metadata blocks: frames of 4 KiB, read once, checked once, locked for
 * reading or writing, written only by a transaction.
 *
 * One thread. Calls never wait for the device: a lock on a block that is not cached
 * returns -THIN_E_WOULD_BLOCK, notes the block's number (bm_missing), and has changed
 * nothing; bm_fetch reads it. With `waiting` (tools, tests) the lock reads by itself.
 *
 * Locks find our own mistakes: taking a block that is locked already (read-write,
 * write-read, write-write; any number of readers is fine, but a reader of the same
 * operation that locks again for writing is not) is -THIN_E_RECURSIVE_LOCK, in every
 * build, naming both places. There is nobody to wait for.
 *
 *      absent --bm_fetch--> loading --> unchecked --first lock--> clean
 *      bm_new (zeroed) --> dirty(open) --bm_cut--> writing --written--> clean
 *
 * A frame that is `writing` is never changed again: a later transaction shadows it.
 */
#ifndef THIN_CORE_PERSIST_BLOCK_MANAGER_H
#define THIN_CORE_PERSIST_BLOCK_MANAGER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/device/device.h"
#include "core/ondisk/block.h"

#define BM_MISSING_MAX  8u  /* block numbers remembered by one failed pass */
#define BM_READS_MAX    32u /* reads that the device has at a time; more wait */
#define BM_WRITES_MAX   32u /* writes of one cut that the device has at a time */
#define BM_WRITE_BLOCKS 16u /* neighbours joined in one write */

/* Locks held at once: the bound that `make lint` derives from the calls of the engine
   (tests/lint/lock_bound.py). Asserted with every lock. */
#define BM_LOCKS_MAX 10u

/* So many clean frames are enough to go on, and so many may be dirty before a clean one
   must give way: the blocks of one smallest transaction and its commit. An operation that
   needs more blocks than are clean at the same time is tried alone, and then reads into
   what is left of the room for dirty ones. */
#define BM_CLEAN_MIN  (BM_LOCKS_MAX + 1u)
#define BM_DIRTY_MIN  29u
#define BM_FRAMES_MIN (BM_CLEAN_MIN + BM_DIRTY_MIN)

struct block_manager;
struct bm_block; /* a locked block */

struct bm_params {
    struct device *dev; /* borrowed while the manager lives */
    uint32_t nr_frames; /* cache size, in blocks */
    uint32_t nr_clean;  /* so many may be clean; 0: all but BM_DIRTY_MIN */
    bool waiting;       /* read inside the lock calls: tools and tests only */
};

struct bm_stats {
    uint64_t hits, misses, reads, writes, write_ios;
    uint32_t frames, frames_clean, frames_dirty, frames_writing;
    uint32_t locks_held, locks_high_water;
};

int bm_create(const struct bm_params *params, struct block_manager **ret_bm);
/* No lock held, no I/O in flight. NULL is fine. */
void bm_destroy(struct block_manager *bm);

mblock_t bm_nr_blocks(const struct block_manager *bm); /* of the device, now */
void bm_get_stats(const struct block_manager *bm, struct bm_stats *ret_stats);
/* Starts a new count of bm_stats.locks_high_water. */
void bm_reset_high_water(struct block_manager *bm);

/*
 * Called once for each block when it comes from the device, after checksum and own
 * number were found good: judges the contents. `arg` is value_size for nodes.
 */
struct bm_validator {
    enum block_kind kind;
    int (*judge)(const void *block, mblock_t location, uint32_t arg,
                 struct thin_error *err);
    uint32_t arg;
};

/* Names the caller in -THIN_E_RECURSIVE_LOCK. */
#define BM_HERE_(f, l)  f ":" #l
#define BM_HERE_2(f, l) BM_HERE_(f, l)
#define BM_HERE         BM_HERE_2(__FILE__, __LINE__)

/*
 * Locks. `v` says what the block must be. 0; -THIN_E_WOULD_BLOCK; -THIN_E_RANGE;
 * -THIN_E_CHECKSUM / -THIN_E_BAD_BLOCK (the frame is dropped, the next try reads
 * again); -THIN_E_RECURSIVE_LOCK; -THIN_E_CACHE_FULL (nothing clean to give way);
 * with `waiting` also the device's errors.
 */
int bm_read_lock_at(struct block_manager *bm, mblock_t b, const struct bm_validator *v,
                    struct bm_block **ret_block, const char *where,
                    struct thin_error *err);
int bm_write_lock_at(struct block_manager *bm, mblock_t b, const struct bm_validator *v,
                     struct bm_block **ret_block, const char *where,
                     struct thin_error *err);
/* A zeroed frame for a block that nobody reads from the device; write-locked, dirty. */
int bm_new_lock_at(struct block_manager *bm, mblock_t b, const struct bm_validator *v,
                   struct bm_block **ret_block, const char *where,
                   struct thin_error *err);
#define bm_read_lock(bm, b, v, ret, err)  bm_read_lock_at(bm, b, v, ret, BM_HERE, err)
#define bm_write_lock(bm, b, v, ret, err) bm_write_lock_at(bm, b, v, ret, BM_HERE, err)
#define bm_new_lock(bm, b, v, ret, err)   bm_new_lock_at(bm, b, v, ret, BM_HERE, err)
void bm_unlock(struct bm_block *block);

const void *bm_data(const struct bm_block *block);
void *bm_data_rw(struct bm_block *block); /* asserts the write lock */
mblock_t bm_location(const struct bm_block *block);

static inline void
block_lock_cleanup(struct bm_block **block)
{
    if (*block)
        bm_unlock(*block);
}
#define BLOCK_LOCK __attribute__((cleanup(block_lock_cleanup)))

/* ---- reading what was missing ---------------------------------------------------- */

/* Blocks that lock calls missed since the last bm_clear_missing: the newest
   BM_MISSING_MAX of them. */
unsigned bm_missing(const struct block_manager *bm, mblock_t *ret_blocks);
void bm_clear_missing(struct block_manager *bm);

#define BM_PINNED_MAX 32u /* frames that one operation keeps over its passes */

/* One fetch waiting for one frame that is being read. */
struct bm_wait {
    struct bm_fetch *fetch;
    struct bm_block *frame; /* NULL: not in use */
    TAILQ_ENTRY(bm_wait) link;
};

/*
 * Reads what is missing and keeps it pinned for the operation that asked.
 * Embed one in each operation that may run again.
 */
struct bm_fetch {
    void (*done)(struct bm_fetch *fetch,
                 int result); /* on the loop, once, never inside bm_fetch_start */
    struct block_manager *bm;
    struct bm_wait waits[BM_MISSING_MAX];
    unsigned nr_left;
    int result;
    /* Beyond the limit the oldest pin goes: then a pass may miss that block again. */
    struct bm_block *pinned[BM_PINNED_MAX];
    unsigned nr_pinned;
    bool running;
    bool alone; /* may use the room of dirty frames; set by the owner, after init */
    struct thin_task task;
};
void bm_fetch_init(struct bm_fetch *fetch, struct block_manager *bm,
                   void (*done)(struct bm_fetch *fetch, int result));
/*
 * Starts reading all of bm_missing (joined with another's reads of the same blocks) and
 * clears it. `done` gets 0 when the pass may be tried again, else the first error:
 * -THIN_E_CACHE_FULL when no frame could be had for any of them, -THIN_E_CANCELLED
 * after bm_reset, or the device's.
 */
void bm_fetch_start(struct bm_fetch *fetch);
/* Lets the pins go: when the operation has ended, however it ended. While a fetch is
   running this gives it up: `done` is not called any more. */
void bm_fetch_fini(struct bm_fetch *fetch);

/* ---- transactions ------------------------------------------------------------------ */

uint32_t bm_nr_dirty(const struct block_manager *bm);
uint32_t bm_clean_max(const struct block_manager *bm); /* how many it may keep clean */

/* Forgets a frame whose block was freed in the transaction that made it: not written. */
void bm_forget(struct block_manager *bm, mblock_t b);

/*
 * The cut: all dirty frames become `writing`; O(1), for number and checksum are set as
 * each goes out. Asserts that no lock is held and that nothing is being written.
 * Returns their number.
 */
uint32_t bm_cut(struct block_manager *bm);

/*
 * Writes the cut's frames in block order, neighbours joined, a bounded number in
 * flight. Frames are clean after success; after failure they stay `writing` and the
 * only way on is bm_reset. No flush. `done` on the loop, once.
 */
void bm_write_cut(struct block_manager *bm, void (*done)(void *arg, int result),
                  void *arg);

/*
 * Seals `superblock` (4096 bytes, borrowed until done) for block 0 and writes it with
 * DEVICE_FUA. The caller has flushed the device before.
 */
void bm_write_superblock(struct block_manager *bm, void *superblock,
                         void (*done)(void *arg, int result), void *arg);

/* Flushes the metadata device. */
void bm_flush(struct block_manager *bm, void (*done)(void *arg, int result), void *arg);

/*
 * Roll-back: every frame is dropped; reads in flight end with -THIN_E_CANCELLED.
 * Asserts that no lock is held and no write is in flight.
 */
void bm_reset(struct block_manager *bm);

#endif
