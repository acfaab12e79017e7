/*
 * A frame: a fixed little-endian prefix, one protobuf message, then the raw payload.
 *
 *   offset size
 *        0    4  magic 0x4e494854 ("THIN")
 *        4    2  version of the frame: 1
 *        6    2  flags: 0
 *        8    4  message length, bytes
 *       12    4  payload length, bytes
 *       16    4  CRC-32C (standard) over bytes 0..15 and the message
 *       20    4  zero
 *       24       message, then payload
 *
 * Lengths are checked against the limits first, then the CRC, and only then is
 * anything believed. Pure functions, any thread, no allocation.
 */
#ifndef THIN_PROTO_FRAME_H
#define THIN_PROTO_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

#define FRAME_PREFIX_BYTES 24u
#define FRAME_MAGIC        0x4e494854u
#define FRAME_VERSION      1u

struct frame_prefix {
    uint32_t message_bytes;
    uint32_t payload_bytes;
    uint32_t crc;
};

/*
 * Reads and judges a prefix of FRAME_PREFIX_BYTES: magic, version, lengths against
 * `message_max` and `payload_max`. -THIN_E_PROTOCOL, -THIN_E_LIMIT with words that name
 * both values. A connection is closed after any of them.
 */
int frame_prefix_decode(const void *bytes, uint32_t message_max, uint32_t payload_max,
                        struct frame_prefix *ret, struct thin_error *err);

/* Checks the CRC of prefix bytes and message. -THIN_E_CHECKSUM. */
int frame_check(const void *prefix_bytes, const struct frame_prefix *prefix,
                const void *message, struct thin_error *err);

/* Writes the prefix in front of a message that is encoded already. */
void frame_prefix_encode(void *ret_bytes, const void *message, uint32_t message_bytes,
                         uint32_t payload_bytes);

#endif
