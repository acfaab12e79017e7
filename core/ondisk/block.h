/*
 * What every metadata block has in common: 4096 bytes, a checksum at offset 0 salted
 * by the block's kind, and the block's own number.
 * Source: FORMAT.md section 2 (dm-thin's block validators).
 */
#ifndef THIN_CORE_ONDISK_BLOCK_H
#define THIN_CORE_ONDISK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

#define METADATA_BLOCK_SIZE    4096u
#define METADATA_BLOCK_SECTORS 8u

/* Three block spaces. */
typedef uint64_t mblock_t; /* metadata block */
typedef uint64_t dblock_t; /* data block of the pool */
typedef uint64_t vblock_t; /* virtual block of one thin device */

#define SUPERBLOCK_LOCATION ((mblock_t)0)

enum block_kind { BLOCK_SUPERBLOCK, BLOCK_NODE, BLOCK_BITMAP, BLOCK_INDEX, BLOCK_KINDS };

/* "superblock", "btree node", "bitmap", "index block". */
const char *block_kind_name(enum block_kind kind);

/* The checksum that `block` should carry. Any thread. */
uint32_t block_checksum(enum block_kind kind, const void *block);

/* Stores own number and checksum; the last thing done before a block is written. */
void block_seal(enum block_kind kind, void *block, mblock_t location);

/*
 * Checks checksum and own number. -THIN_E_CHECKSUM or -THIN_E_BAD_BLOCK, with both
 * values in words; -THIN_E_NOT_THIN for a superblock without the magic, looked at first.
 */
int block_check(enum block_kind kind, const void *block, mblock_t location,
                struct thin_error *err);

/*
 * The kind whose checksum fits, for scans of a damaged device: true and *ret_kind if
 * one of the four does. The own number is not looked at.
 */
bool block_guess_kind(const void *block, enum block_kind *ret_kind);

#endif
