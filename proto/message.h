/*
 * Messages between bytes and structs: protobuf-c over a fixed arena, so that a data
 * request needs no malloc and a hostile message no more memory than the arena.
 *
 * The generated header is proto/thin.pb-c.h; its structs are what both ends use.
 */
#ifndef THIN_PROTO_MESSAGE_H
#define THIN_PROTO_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <proto/thin.pb-c.h>

#include "core/base/error.h"

/* A bump allocator over memory of the caller's. Zero-cost reset. */
struct message_arena {
    uint8_t *memory;
    size_t size, used;
    bool exhausted; /* an allocation did not fit */
};
void message_arena_init(struct message_arena *arena, void *memory, size_t size);

/*
 * Decodes into the arena; the message lives as long as the arena's memory. Checks all
 * that can be checked without context: that strings hold no NUL and are UTF-8, that
 * one body is set (a body that is not known gives *ret with body not set: the caller
 * answers UNSUPPORTED). -THIN_E_PROTOCOL; -THIN_E_LIMIT when the arena is too small.
 */
int message_decode(struct message_arena *arena, const void *bytes, size_t len_bytes,
                   Thin__Message **ret, struct thin_error *err);

/* Bytes that message_encode will write. */
size_t message_encoded_bytes(const Thin__Message *message);

/*
 * Writes prefix and message to `ret_bytes` (room: FRAME_PREFIX_BYTES plus
 * message_encoded_bytes). Returns the bytes written. The payload follows on the wire.
 */
size_t message_encode(const Thin__Message *message, uint32_t payload_bytes,
                      void *ret_bytes);

/* Splits "POOL/VOLUME" in place of a copy; checks both names. -THIN_E_INVALID. */
int message_split_name(const char *name, char ret_pool[128], char ret_volume[128],
                       struct thin_error *err);

#endif
