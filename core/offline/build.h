/*
 * Builds metadata bottom up, in one pass over sorted contents: full leaves, blocks
 * handed out in rising order and written in large pieces, each once; the superblock
 * alone and last, after a flush. Memory: one byte for each data block that is mapped,
 * and one pending node for each level of a tree.
 *
 * Full leaves are right: the kernel splits them where writes come (FORMAT.md 5.2).
 *
 *      block_out          hands out block numbers, writes what is filled
 *      tree_build         entries in rising order of keys -> root
 *      build_*_space_map  counts -> bitmaps, index, overflow tree
 *      builder            a visitor (ir.h): contents of a pool -> a whole device
 */
#ifndef THIN_CORE_OFFLINE_BUILD_H
#define THIN_CORE_OFFLINE_BUILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/offline/counts.h"
#include "core/offline/ir.h"
#include "core/offline/source.h"
#include "core/ondisk/node.h"
#include "core/ondisk/superblock.h"

#define BUILD_PIECE_BLOCKS 256u /* written at once: 1 MiB */
#define BUILD_LEVELS_MAX   12u

/* ---- blocks --------------------------------------------------------------------------- */

struct block_out {
    struct meta_source *src;
    struct counts refs;        /* of the new state: 1 for each block handed out */
    const struct counts *busy; /* blocks that must not be touched, or NULL */
    mblock_t nr_blocks;        /* limit of the device */
    mblock_t next;
    uint8_t *piece; /* BUILD_PIECE_BLOCKS, aligned */
    mblock_t piece_at;
    uint32_t piece_len;
    bool rehearsal;         /* nothing is written */
    struct thin_error *err; /* for words; borrowed */
};

/*
 * `refs`: counts to begin with (copied), or NULL for an empty device with nothing but
 * its superblock. -ENOMEM. Ended by block_out_fini also after failure.
 */
int block_out_init(struct block_out *out, struct meta_source *src, mblock_t nr_blocks,
                   const struct counts *refs, struct thin_error *err);
void block_out_fini(struct block_out *out);

/* The number of a fresh block, counted. -THIN_E_NO_METADATA_SPACE, -ENOMEM. */
int block_out_alloc(struct block_out *out, mblock_t *ret_block);
/*
 * 4096 zeroed bytes for block b, written sooner or later: fill and seal them before the
 * next call. Rising numbers are joined.
 */
int block_out_place(struct block_out *out, mblock_t b, uint8_t **ret_bytes);
/* Writes what is still held back; no flush of the device. */
int block_out_finish(struct block_out *out);

/* ---- trees ---------------------------------------------------------------------------- */

struct tree_level {
    uint32_t value_size, max;
    uint32_t nr;            /* pending entries, fewer than 2 * max */
    bool written;           /* a node of this level is out */
    uint8_t *keys, *values; /* little-endian, room for 2 * max */
};

struct tree_build {
    struct block_out *out;
    uint32_t value_size;
    unsigned nr_levels;
    struct tree_level levels[BUILD_LEVELS_MAX];
};

int tree_build_init(struct tree_build *t, struct block_out *out, uint32_t value_size);
void tree_build_fini(struct tree_build *t);
/* `value` is encoded, value_size bytes; keys must rise (the caller has checked). */
int tree_build_add(struct tree_build *t, uint64_t key, const void *value);
/* The same for `nr` keys in a row, whose 8-byte values rise by `step`. */
int tree_build_add_run(struct tree_build *t, uint64_t key, uint64_t value, uint64_t step,
                       uint64_t nr);
/* Writes the rest and the levels above; the tree may then be initialised anew. */
int tree_build_end(struct tree_build *t, mblock_t *ret_root);

/* ---- space maps ------------------------------------------------------------------------ */

int build_data_space_map(struct block_out *out, const struct counts *counts,
                         uint64_t nr_blocks, struct space_map_root *ret);
/* Everything else must have been handed out; nothing is, afterwards. */
int build_metadata_space_map(struct block_out *out, uint64_t nr_blocks,
                             struct space_map_root *ret);

/* ---- a whole device --------------------------------------------------------------------- */

/* In place of what the superblock event says, where given. */
struct build_override {
    bool have_trans_id, have_data_block_size, have_nr_data_blocks;
    uint64_t trans_id, data_block_size, nr_data_blocks;
};

static inline void
build_override_apply(const struct build_override *over, struct ir_superblock *ir)
{
    if (over->have_trans_id)
        ir->trans_id = over->trans_id;
    if (over->have_data_block_size)
        ir->data_block_size = (uint32_t)over->data_block_size;
    if (over->have_nr_data_blocks)
        ir->nr_data_blocks = over->nr_data_blocks;
}

struct builder {
    struct block_out out;
    struct build_override over;
    struct superblock sb;
    struct counts data;
    struct tree_build top, details, mappings;
    struct ir_device dev;
    bool begun, in_device, any_device;
    uint64_t nr_mapped; /* of the device */
    uint64_t next_virt;
    bool keep_trailer; /* `trailer` is set: else that of the device's old superblock */
    uint8_t trailer[SUPERBLOCK_TRAILER_BYTES];
    struct thin_error *err;
};

extern const struct ir_visitor builder_visitor; /* `arg` is the struct builder */

/*
 * Prepares to fill `dst`. Nothing is written before the superblock event; from then on
 * until `end` the device holds a block 0 that nothing accepts, so that an unfinished
 * build is never taken for a pool.
 * The visitor's calls: -THIN_E_INVALID for contents that no pool can have,
 * -THIN_E_NO_METADATA_SPACE, the device's codes; words in `err`.
 */
int builder_init(struct builder *b, struct meta_source *dst,
                 const struct build_override *over, struct thin_error *err);
void builder_fini(struct builder *b);

/*
 * After builder_init: everything is judged, and the room on `dst` with it, but nothing
 * is written. What passes once with an input passes again, but for errors of `dst`.
 */
void builder_rehearse(struct builder *b);

#endif
