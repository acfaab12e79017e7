/*
 * Thin metadata: a pool's devices, mappings and snapshots as records. The one header
 * that the pool reads; knows no data I/O and no names.
 *
 * One thread. Changing calls run inside an operation (metadata_op_begin ... keep or
 * undo) and may return -THIN_E_WOULD_BLOCK: the owner undoes, fetches what is missing
 * (bm_fetch on metadata_bm) and runs the whole operation again. Reading calls need no
 * operation and may be -THIN_E_WOULD_BLOCK likewise. Any other negative code: undo;
 * the request that asked fails with it, nothing else does.
 *
 * Life of a transaction:
 *
 *    operations ... ─► metadata_merge_step until no more (each an operation)
 *                   ─► metadata_cut (an operation; fixes all; opens the next)
 *                   ─► write: data flush ∥ bm_write_cut; then bm_flush; then superblock
 *                   ─► metadata_durable
 *
 * Between cut and durable the next transaction is open and goes on.
 */
#ifndef THIN_CORE_METADATA_METADATA_H
#define THIN_CORE_METADATA_METADATA_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ondisk/details.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/superblock.h"
#include "core/persist/btree.h"
#include "core/persist/space_map.h"

struct metadata;

struct metadata_params {
    struct device *dev;    /* the metadata device, borrowed */
    uint32_t cache_blocks; /* of 4 KiB */
    uint32_t cache_clean;  /* as bm_params.nr_clean */
    bool waiting;          /* tools and tests */
    bool read_only;
    uint32_t leaf_max, internal_max; /* 0: the format's; tests use 6 */
};

/* Allocates; reads nothing. */
int metadata_create(const struct metadata_params *params, struct metadata **ret_md);
/* No operation open, no I/O in flight. NULL is fine. */
void metadata_destroy(struct metadata *md);
struct block_manager *metadata_bm(struct metadata *md);
struct transaction_manager *metadata_tm(struct metadata *md);

/*
 * Makes fresh metadata in the open transaction (nothing is written: a commit follows):
 * empty trees, a data space map of `nr_data_blocks`, or of as many as one transaction
 * and the cache can hold: metadata_data_space tells; the rest is metadata_grow_data's,
 * after the commit. Right after metadata_create or metadata_reset; its operations are
 * its own. On failure the object is as after metadata_reset. -THIN_E_INVALID for a block
 * size or a size that the format cannot hold; -THIN_E_NO_METADATA_SPACE.
 */
int metadata_format(struct metadata *md, uint32_t data_block_sectors,
                    uint64_t nr_data_blocks, struct thin_error *err);

/*
 * Loads superblock and metadata space map; right after metadata_create or metadata_reset.
 * -THIN_E_WOULD_BLOCK: fetch and call again (also once in between, with nothing missing,
 * so that a step is short). After any other error: metadata_reset first.
 * -THIN_E_NOT_THIN for a device that holds no pool (all zeros: words say so),
 * -THIN_E_CHECKSUM, -THIN_E_UNSUPPORTED, -THIN_E_RANGE if the device is smaller than
 * recorded (with both sizes).
 */
int metadata_load(struct metadata *md, struct thin_error *err);
/* A metadata space map that is damaged keeps nobody from reading: all is loaded, nothing can
   be changed, and this tells why. NULL: it is sound. */
const char *metadata_counts_lost(const struct metadata *md);

/* ---- operations --------------------------------------------------------------------- */

void metadata_op_begin(struct metadata *md, enum tm_purse purse);
/* Admits and keeps; on a negative code the operation was undone. */
int metadata_op_end(struct metadata *md, struct thin_error *err);
void metadata_op_undo(struct metadata *md);

/* ---- devices -------------------------------------------------------------------------- */

/* *ret_found; details as they stand. */
int metadata_get_device(struct metadata *md, uint32_t id, struct device_details *ret,
                        bool *ret_found, struct thin_error *err);
/* First device with an id at or after `id`. */
int metadata_next_device(struct metadata *md, uint32_t id, uint32_t *ret_id,
                         struct device_details *ret, bool *ret_found,
                         struct thin_error *err);
/* Highest mapped virtual block; *ret_found false if nothing is mapped. */
int metadata_highest_mapped(struct metadata *md, uint32_t id, vblock_t *ret,
                            bool *ret_found, struct thin_error *err);

/* -THIN_E_EXISTS, -THIN_E_INVALID for an id above DEV_ID_MAX. */
int metadata_create_thin(struct metadata *md, uint32_t id, struct thin_error *err);

/*
 * Shares the origin's root in constant time. Time ticks only if the origin may hold a
 * mapping of the present time. -THIN_E_EXISTS, -THIN_E_NOT_FOUND, -THIN_E_LIMIT when
 * no tick is left (24 bits). All origins of a group are shared in one operation.
 */
int metadata_create_snap(struct metadata *md, uint32_t id, uint32_t origin,
                         struct thin_error *err);

/*
 * Moves time on, whatever was mapped: who shares origins in the same operation then knows
 * beforehand what time their snapshots get. -THIN_E_LIMIT when no tick is left.
 */
int metadata_tick(struct metadata *md, struct thin_error *err);

/*
 * One bounded step of deleting a device: `budget` nodes at most. *ret_done: device and
 * details are gone. Between steps the pool is valid and mapped_blocks exact. A device
 * whose root is shared is gone after the first step. -THIN_E_NOT_FOUND.
 */
int metadata_delete_step(struct metadata *md, uint32_t id, uint32_t budget,
                         bool *ret_done, struct thin_error *err);

/* ---- mappings ------------------------------------------------------------------------- */

#define MAPPING_SLOTS_MAX 252u

struct mapping_slot {
    uint64_t vblock;
    uint64_t value; /* mapping_pack */
};

/*
 * Copies the leaf that covers `vblock`. The leaf answers for all of [*ret_begin,
 * *ret_end): a block not among the slots is not mapped. Room for MAPPING_SLOTS_MAX slots.
 */
int metadata_read_leaf(struct metadata *md, uint32_t id, vblock_t vblock,
                       struct mapping_slot *slots, uint32_t *ret_nr, vblock_t *ret_begin,
                       vblock_t *ret_end, struct thin_error *err);

int metadata_lookup(struct metadata *md, uint32_t id, vblock_t vblock,
                    uint64_t *ret_value, bool *ret_found, struct thin_error *err);

/*
 * Maps `vblock` to `dblock` (which metadata_alloc_data gave in this operation) with
 * the present time; an old mapping loses its reference. mapped_blocks follows.
 * *ret_value: the mapping as stored.
 */
int metadata_insert(struct metadata *md, uint32_t id, vblock_t vblock, dblock_t dblock,
                    uint64_t *ret_value, struct thin_error *err);

/*
 * Unmaps [begin, end) in bounded steps from the highest block down. *ret_end: at and
 * above it all is unmapped; done when it equals begin.
 */
int metadata_unmap_step(struct metadata *md, uint32_t id, vblock_t begin, vblock_t end,
                        uint32_t budget, vblock_t *ret_end, uint64_t *ret_unmapped,
                        struct thin_error *err);

/* ---- space ---------------------------------------------------------------------------- */

struct metadata_space {
    uint64_t nr_blocks, nr_free; /* free: may be handed out now */
    uint64_t nr_pending;         /* free, but not yet */
    uint64_t nr_used;            /* neither */
};
void metadata_data_space(const struct metadata *md, struct metadata_space *ret);
/* nr_free is net of the reserve; `ret_reserve` tells it. */
void metadata_own_space(const struct metadata *md, struct metadata_space *ret,
                        uint64_t *ret_reserve);

/* As sm_find_free: looks, takes nothing. Needs no operation. */
int metadata_find_free(struct metadata *md, dblock_t begin, dblock_t end, uint64_t wanted,
                       dblock_t *ret_begin, uint64_t *ret_len, dblock_t *ret_next,
                       struct thin_error *err);
/* Takes one free data block inside an operation; it must be mapped in the same one. */
int metadata_take_data(struct metadata *md, dblock_t b, struct thin_error *err);

/* While held, a freed data block is not handed out. Counted; see sm_hold. */
int metadata_hold_data(struct metadata *md, dblock_t b);
void metadata_release_data(struct metadata *md, dblock_t b);

/*
 * Growth: one bounded step inside the caller's operation; *ret_done when all of
 * `nr_blocks` are there. -THIN_E_NEEDS_CHECK; -THIN_E_INVALID for fewer than now or more
 * than the format holds; metadata_grow_own: -THIN_E_LIMIT, and -THIN_E_RANGE if the
 * device is smaller.
 */
int metadata_grow_data(struct metadata *md, uint64_t nr_blocks, bool *ret_done,
                       struct thin_error *err);
int metadata_grow_own(struct metadata *md, uint64_t nr_blocks, struct thin_error *err);

/* ---- the superblock's own fields --------------------------------------------------------- */

/* As it would be cut now, but for roots and stamp. */
const struct superblock *metadata_superblock(const struct metadata *md);

/*
 * Writes the superblock that was loaded once more, with FUA. What was read may be the
 * trace of a write that failed: readable, and gone with the power. Nothing was changed
 * since the load. `done` on the loop, once.
 */
void metadata_settle(struct metadata *md, void (*done)(void *arg, int result), void *arg);
/* Each is a change of the open transaction (inside an operation). */
void metadata_set_trailer(struct metadata *md,
                          const uint8_t trailer[SUPERBLOCK_TRAILER_BYTES]);
void metadata_set_needs_check(struct metadata *md, bool set);
int metadata_set_trans_id(struct metadata *md, uint64_t expected, uint64_t wanted,
                          struct thin_error *err);

/* Held root: FORMAT.md section 15. -THIN_E_BUSY / -THIN_E_NOT_FOUND. Release is
   stepped: *ret_done. */
int metadata_reserve_snap(struct metadata *md, struct thin_error *err);
int metadata_release_snap_step(struct metadata *md, uint32_t budget, bool *ret_done,
                               struct thin_error *err);
/* As metadata_read_leaf, of the held device `id`: up to *ret_end the held root maps these
   and no others (nothing at all where none is held, or not this device). */
int metadata_read_held_leaf(struct metadata *md, uint32_t id, vblock_t vblock,
                            struct mapping_slot *slots, uint32_t *ret_nr,
                            vblock_t *ret_end, struct thin_error *err);

/* ---- commit --------------------------------------------------------------------------- */

/* True if the open transaction has any change. */
bool metadata_changed(const struct metadata *md);
uint64_t metadata_txn(const struct metadata *md); /* number of the open transaction */
uint32_t metadata_dirty_blocks(const struct metadata *md);

/*
 * One bounded step of putting counts and changed details into the trees; an operation
 * of its own, begun and ended inside. *ret_more. -THIN_E_WOULD_BLOCK: fetch, again.
 */
int metadata_merge_step(struct metadata *md, bool *ret_more, struct thin_error *err);

/*
 * After metadata_merge_step, or the fetch of what it missed, has failed for damage: gives
 * up the data counts that it failed at (sm_merge_park), marks the pool as needing a
 * check, and the merge can go on. An operation inside. [*ret_begin, *ret_end): data
 * blocks that are neither allocated nor freed any more. -THIN_E_INVALID: the damage lies
 * elsewhere, and there is no commit over it.
 */
int metadata_merge_park(struct metadata *md, dblock_t *ret_begin, dblock_t *ret_end,
                        struct thin_error *err);

/*
 * The cut: must follow a merge that left nothing. An operation inside.
 * `finish_trailer`, if not NULL, is called with the encoded superblock before it is
 * sealed, to fill the trailer's stamp. *ret_superblock: 4096 bytes owned by md, alive
 * until durable or reload; the caller writes them with bm_write_superblock.
 */
int metadata_cut(struct metadata *md,
                 void (*finish_trailer)(void *arg, uint8_t *superblock), void *arg,
                 uint64_t *ret_txn, void **ret_superblock, struct thin_error *err);

/* The cut is on disk. `freed`: runs of data blocks that are free for good from here. */
void metadata_durable(struct metadata *md, uint64_t txn,
                      void (*freed)(void *arg, dblock_t begin, dblock_t end), void *arg);
/*
 * The same in steps: says it, and then lets go a bounded number of metadata blocks and
 * `max_data_blocks` data blocks a call, also what views held back that have gone; true:
 * some are left.
 */
void metadata_set_durable(struct metadata *md, uint64_t txn);
bool metadata_free_some(struct metadata *md, uint64_t max_data_blocks,
                        void (*freed)(void *arg, dblock_t begin, dblock_t end),
                        void *arg);

/*
 * Roll-back: forgets all that is not durable. No write may be in flight, no operation
 * open. Then metadata_load again, as after create. The transaction manager is a new one:
 * transaction numbers start from 1 again, pins (tm_pin_view) must have been taken back
 * before, held data blocks (metadata_hold_data) are forgotten, not to be released.
 */
void metadata_reset(struct metadata *md);

/*
 * Waiting forms for tools, tests and format, with a cache that waits or not. `data_dev`
 * may be NULL.
 *
 * Merge, cut, write, flush, superblock, durable; nothing if nothing has changed. After
 * an error only metadata_reset helps.
 */
int metadata_commit_wait(struct metadata *md, struct device *data_dev,
                         struct thin_error *err);
/* Grows and commits, in as many transactions as it takes. */
int metadata_grow_data_wait(struct metadata *md, uint64_t nr_blocks,
                            struct device *data_dev, struct thin_error *err);
/* Formats whole and commits. */
int metadata_format_wait(struct metadata *md, uint32_t data_block_sectors,
                         uint64_t nr_data_blocks, struct device *data_dev,
                         struct thin_error *err);
/*
 * Calls `step` until it is anything but -THIN_E_WOULD_BLOCK, reading between the calls
 * what was missing. `step` begins its operation and ends or undoes it, if it has one.
 */
int metadata_retry_wait(struct metadata *md,
                        int (*step)(struct metadata *md, void *arg,
                                    struct thin_error *err),
                        void *arg, struct thin_error *err);

#endif
