/*
 * A metadata device in a file that can be sent to somebody who is asked for help: the
 * blocks that are in use and those that look as if they had been (damage included),
 * never user data. Self-describing and checked; little-endian.
 *
 *      header      64 bytes: magic "thinmeta", version 1, block size, number of blocks
 *                  of the device, number of packed blocks, CRC-32C of the bytes before
 *      records     zstd: block number (8 bytes), CRC-32C of the block (4), 4096 bytes;
 *                  at the end the number UINT64_MAX and the CRC-32C of all block CRCs
 */
#ifndef THIN_CORE_OFFLINE_PACK_H
#define THIN_CORE_OFFLINE_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "core/offline/source.h"

typedef int pack_write_fn(void *arg, const void *bytes, size_t len);
/* Bytes read, 0 at the end, or negative. */
typedef long pack_read_fn(void *arg, void *buf, size_t room);

/*
 * *ret_packed blocks were written. What cannot be read is left out. The device may be in
 * use: what does not change meanwhile (a pinned view, a held snapshot) is whole in the
 * copy. Memory: one bit for each block of the device.
 */
int pack_device(struct meta_source *src, pack_write_fn *write, void *arg,
                uint64_t *ret_packed, struct thin_error *err);

/*
 * The other way; blocks that are not in the file become zeros. Block 0 comes last, so
 * that an unfinished device is no pool. `dst` NULL: the whole file is only judged.
 * -THIN_E_INVALID, -THIN_E_CHECKSUM for a file
 * that is none or is damaged; -THIN_E_NO_METADATA_SPACE if `dst` is too small.
 */
int unpack_device(pack_read_fn *read, void *arg, struct meta_source *dst,
                  struct thin_error *err);

/* The size of the device that a pack was made of, from its first 64 bytes. */
#define PACK_HEADER_BYTES 64u
int pack_judge_header(const uint8_t *header, uint64_t *ret_nr_blocks,
                      struct thin_error *err);

#endif
