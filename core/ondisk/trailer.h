/*
 * What stands in the superblock for those who keep a catalogue in the pool: dm-thin has
 * no use for these bytes and keeps them. Pure functions.
 *
 * ---- trailer: bytes 384 to 511 of the superblock, little-endian ------------------------
 *
 *     0  u64  magic           8  u8[16]  pool UUID        24  u32  version
 *    28  u32  catalogue's device id (CATALOGUE_NONE: there is no catalogue, no root)
 *    32  u64  root: address of the first page, in pages of the device's virtual space
 *    40  u32  root: number of pages                       44  u32  root: last page's CRC
 *    48  u64  root: last page's sequence
 *    56  u64  generation: how often the pool was opened
 *    64  u64  changes: our own number of the transaction, rising over all openings
 *    72  u8[16] owner's host  88  u8[16] owner's boot    104  u32  owner's start, Unix s
 *   108  u32  flags          112  u64  incarnation
 *   120  u32  stamp: superblock_stamp of the block in which the trailer stands
 *   124  u32  CRC-32C of bytes 0 to 123
 *
 * A stamp that does not fit: somebody else committed since. Fields are changed by a change
 * of the open transaction (metadata_set_trailer); stamp and CRC are filled at the cut.
 */
#ifndef THIN_CORE_ONDISK_TRAILER_H
#define THIN_CORE_ONDISK_TRAILER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/ondisk/superblock.h"

#define CATALOGUE_TRAILER_MAGIC 0x314c525454494854ull /* "THITTRL1" */
#define CATALOGUE_VERSION       1u
#define CATALOGUE_NONE          0xffffffffu

/* Trailer flags. */
#define CATALOGUE_UNRECORDED 1u /* some devices have no record yet: scan at open */
/* Closed in good order: all that was acknowledged is in this transaction, and nothing was
   acknowledged since. Only then does the incarnation outlive the opening. */
#define CATALOGUE_CLEAN 2u

struct catalogue_root {
    uint64_t first; /* page */
    uint32_t nr_pages;
    uint32_t last_crc;
    uint64_t sequence; /* of the last page */
};

struct catalogue_trailer {
    uint8_t uuid[16];
    uint32_t dev_id;
    struct catalogue_root root;
    uint64_t generation, changes, incarnation;
    uint8_t owner_host[16], owner_boot[16];
    uint32_t owner_start;
    uint32_t flags;
    uint32_t stamp;
};
void catalogue_trailer_encode(const struct catalogue_trailer *trailer,
                              uint8_t bytes[SUPERBLOCK_TRAILER_BYTES]);
/* False if there is none: no magic, or a CRC that does not fit. -THIN_E_VERSION. */
int catalogue_trailer_decode(const uint8_t bytes[SUPERBLOCK_TRAILER_BYTES],
                             struct catalogue_trailer *ret, bool *ret_found,
                             struct thin_error *err);

#endif
