/*
 * Block 0, and the held copy. Source: FORMAT.md section 3.
 *
 * Bytes 384 to 511 are the trailer, which is ours: it names the catalogue's root. The
 * kernel and thin_check 0.9 keep what stands there.
 */
#ifndef THIN_CORE_ONDISK_SUPERBLOCK_H
#define THIN_CORE_ONDISK_SUPERBLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ondisk/block.h"

#define SUPERBLOCK_MAGIC          27022010u
#define SUPERBLOCK_VERSION        2u
#define SUPERBLOCK_NEEDS_CHECK    1u /* flags, bit 0 */
#define SUPERBLOCK_TRAILER_OFFSET 384
#define SUPERBLOCK_TRAILER_BYTES  128
#define SUPERBLOCK_STAMP_BEGIN    36 /* the bytes that the trailer's stamp covers */
#define SUPERBLOCK_STAMP_END      364

#define DATA_BLOCK_SECTORS_MIN 128u
#define DATA_BLOCK_SECTORS_MAX 2097152u
#define METADATA_BLOCKS_MAX    4161600u /* 255 bitmaps of 16320 */
#define DEV_ID_MAX             16777215u
#define POOL_TIME_MAX          16777215u /* 24 bits in a mapping */
#define DATA_BLOCK_NR_MAX      ((1ull << 40) - 1)

struct space_map_root {
    uint64_t nr_blocks;
    uint64_t nr_allocated;
    mblock_t bitmap_root;
    mblock_t ref_count_root;
};

struct superblock {
    uint32_t flags;
    uint8_t uuid[16];
    uint32_t version;
    uint32_t time;
    uint64_t trans_id;
    mblock_t held_root; /* 0: none */
    struct space_map_root data_sm;
    struct space_map_root metadata_sm;
    mblock_t data_mapping_root;
    mblock_t device_details_root;
    uint32_t data_block_size; /* sectors */
    uint32_t metadata_block_size;
    uint64_t metadata_nr_blocks; /* at format time; stale after growth */
    uint32_t compat_flags;
    uint32_t compat_ro_flags;
    uint32_t incompat_flags;
    uint8_t trailer[SUPERBLOCK_TRAILER_BYTES];
};

/* Reads the fields of a block whose checks have passed; nothing is judged. */
void superblock_decode(struct superblock *ret_sb, const void *block);

/*
 * Writes all 4096 bytes, without own number and checksum (block_seal follows). What
 * stands at 364 to 383 in `block` is kept, so start from the block read or from zeros.
 */
void superblock_encode(const struct superblock *sb, void *block);

/*
 * Judges magic, version, block sizes and feature words for opening read-write (or
 * only reading). -THIN_E_NOT_THIN, -THIN_E_VERSION, -THIN_E_UNSUPPORTED.
 */
int superblock_judge(const struct superblock *sb, bool read_only, struct thin_error *err);

/* True if the magic is there; says nothing of the checksum. */
bool superblock_is_thin(const void *block);

/* CRC-32C (standard) over the encoded bytes 36 to 363: changes with every commit. */
uint32_t superblock_stamp(const void *block);

#endif
