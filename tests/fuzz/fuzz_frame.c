/*
 * Bytes from a peer: prefix, CRC, message. The CRC is made right before the message is
 * decoded, since no fuzzer would guess it; what decodes is encoded and decoded again,
 * and must be the same.
 */
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/bytes.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t arenas[3][1u << 20] __attribute__((aligned(16)));
static uint8_t again[2][FRAME_PREFIX_BYTES + (1u << 20)];

static Thin__Message *
decode(unsigned which, size_t arena_bytes, const uint8_t *bytes, size_t len)
{
    struct message_arena arena;
    struct thin_error err;
    Thin__Message *message = NULL;
    int r;

    message_arena_init(&arena, arenas[which], arena_bytes);
    r = message_decode(&arena, bytes, len, &message, &err);
    THIN_ASSERT(r == 0 || r == -THIN_E_PROTOCOL || r == -THIN_E_LIMIT);
    THIN_ASSERT(arena.used <= arena.size);
    return r == 0 ? message : NULL;
}

static void
try_message(const uint8_t *bytes, size_t len)
{
    Thin__Message *first, *second;
    size_t n1, n2;

    (void)decode(0, PROTO_ARENA_BYTES, bytes, len);
    first = decode(0, sizeof(arenas[0]), bytes, len);
    if (!first)
        return;
    /* Packed lists may be written longer than they came. */
    if (message_encoded_bytes(first) > sizeof(again[0]) - FRAME_PREFIX_BYTES)
        return;
    n1 = message_encode(first, 0, again[0]);
    second = decode(1, sizeof(arenas[1]), again[0] + FRAME_PREFIX_BYTES,
                    n1 - FRAME_PREFIX_BYTES);
    if (!second)
        return; /* fits no more: only the arena can be the reason */
    n2 = message_encode(second, 0, again[1]);
    THIN_ASSERT(n1 == n2 && memcmp(again[0], again[1], n1) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frame_prefix prefix;
    struct thin_error err;
    uint8_t *frame;
    size_t len;

    if (size < FRAME_PREFIX_BYTES)
        return 0;
    if (frame_prefix_decode(data, PROTO_MESSAGE_MAX, PROTO_PAYLOAD_MAX, &prefix, &err) ==
            0 &&
        prefix.message_bytes <= size - FRAME_PREFIX_BYTES)
        (void)frame_check(data, &prefix, data + FRAME_PREFIX_BYTES, &err);
    len = size - FRAME_PREFIX_BYTES;
    if (len > PROTO_MESSAGE_MAX)
        return 0;
    frame = malloc(size);
    if (!frame)
        return 0;
    memcpy(frame, data, size);
    frame_prefix_encode(frame, frame + FRAME_PREFIX_BYTES, (uint32_t)len, 0);
    THIN_ASSERT(frame_prefix_decode(frame, PROTO_MESSAGE_MAX, 0, &prefix, &err) == 0);
    THIN_ASSERT(frame_check(frame, &prefix, frame + FRAME_PREFIX_BYTES, &err) == 0);
    try_message(frame + FRAME_PREFIX_BYTES, len);
    free(frame);
    return 0;
}
