#include "proto/message.h"

#include <stdalign.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/log.h"
#include "core/base/name.h"
#include "proto/frame.h"

/*
 * protobuf-c copies a string and forgets its length, merges a message that comes twice,
 * and takes any bytes for text. So the bytes are walked once by the descriptors before
 * it sees them: a NUL, bad UTF-8 and a second body never get as far as the structs.
 */

/* ---- arena ------------------------------------------------------------------------- */

void
message_arena_init(struct message_arena *arena, void *memory, size_t size)
{
    arena->memory = memory;
    arena->size = size;
    arena->used = 0;
    arena->exhausted = false;
}

static void *
arena_alloc(void *data, size_t size)
{
    struct message_arena *arena = data;
    size_t align = alignof(max_align_t);
    size_t begin = arena->used;
    size_t odd = ((uintptr_t)arena->memory + begin) % align;

    if (odd)
        begin += align - odd;
    if (!range_inside(begin, size, arena->size)) {
        arena->exhausted = true;
        return NULL;
    }
    arena->used = begin + size;
    return arena->memory + begin;
}

/* Memory comes back all at once, when the arena's owner takes it back. */
static void
arena_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

/* ---- the walk before decoding ------------------------------------------------------ */

struct cursor {
    const uint8_t *at, *end;
};

static bool
read_varint(struct cursor *c, uint64_t *ret)
{
    uint64_t v = 0;

    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte;

        if (c->at == c->end)
            return false;
        byte = *c->at++;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *ret = v;
            return true;
        }
    }
    return false;
}

static bool
skip(struct cursor *c, uint64_t len)
{
    if (len > (uint64_t)(c->end - c->at))
        return false;
    c->at += len;
    return true;
}

/* Well-formed UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF), no NUL.
    */
static bool
text_is_clean(const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        uint8_t c = *p++;
        uint8_t low = 0x80, high = 0xbf; /* allowed in the second byte */
        unsigned more;

        if (c == 0)
            return false;
        if (c < 0x80)
            continue;
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2;
            if (c == 0xe0)
                low = 0xa0;
            if (c == 0xed)
                high = 0x9f;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3;
            if (c == 0xf0)
                low = 0x90;
            if (c == 0xf4)
                high = 0x8f;
        } else {
            return false;
        }
        for (; more > 0; more--) {
            if (p == end || *p < low || *p > high)
                return false;
            p++;
            low = 0x80;
            high = 0xbf;
        }
    }
    return true;
}

enum {
    WIRE_VARINT = 0,
    WIRE_64 = 1,
    WIRE_BYTES = 2,
    WIRE_32 = 5,
    DEPTH_MAX = 8, /* Message, Request, VolumeSnapshot, SnapshotPair: 4 today */
};

static int walk_message(const ProtobufCMessageDescriptor *type, struct cursor c,
                        unsigned depth, struct thin_error *err);

/* One length-delimited field, whose bytes are `body`. `field` is NULL when not known. */
static int
walk_bytes(const ProtobufCMessageDescriptor *type, const ProtobufCFieldDescriptor *field,
           struct cursor body, unsigned depth, struct thin_error *err)
{
    if (field && field->type == PROTOBUF_C_TYPE_STRING &&
        !text_is_clean(body.at, body.end))
        return thin_fail(err, -THIN_E_PROTOCOL,
                         "%s.%s is not clean text (UTF-8 without NUL)", type->name,
                         field->name);
    if (field && field->type == PROTOBUF_C_TYPE_MESSAGE)
        return walk_message(field->descriptor, body, depth + 1, err);
    return 0;
}

static int
walk_message(const ProtobufCMessageDescriptor *type, struct cursor c, unsigned depth,
             struct thin_error *err)
{
    bool body_seen = false;

    if (depth >= DEPTH_MAX)
        return thin_fail(err, -THIN_E_PROTOCOL, "messages nested %u deep", depth);
    while (c.at < c.end) {
        const ProtobufCFieldDescriptor *field = NULL;
        struct cursor body;
        uint64_t tag, len = 0;
        bool whole;
        int r;

        if (!read_varint(&c, &tag) || tag >> 32 || tag >> 3 == 0)
            return thin_fail(err, -THIN_E_PROTOCOL, "%s: bad tag", type->name);
        field = protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3));
        if (field && (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)) {
            if (body_seen)
                return thin_fail(err, -THIN_E_PROTOCOL, "%s: more than one body",
                                 type->name);
            body_seen = true;
        }
        switch (tag & 7) {
        case WIRE_VARINT:
            whole = read_varint(&c, &len);
            break;
        case WIRE_64:
            whole = skip(&c, 8);
            break;
        case WIRE_32:
            whole = skip(&c, 4);
            break;
        case WIRE_BYTES:
            whole = read_varint(&c, &len);
            body.at = c.at;
            whole = whole && skip(&c, len);
            body.end = c.at;
            if (whole) {
                r = walk_bytes(type, field, body, depth, err);
                if (r < 0)
                    return r;
            }
            break;
        default:
            return thin_fail(err, -THIN_E_PROTOCOL, "%s: wire type %u is not known",
                             type->name, (unsigned)(tag & 7));
        }
        if (!whole)
            return thin_fail(err, -THIN_E_PROTOCOL, "%s: cut short in field %u",
                             type->name, (unsigned)(tag >> 3));
    }
    return 0;
}

/* ---- messages ---------------------------------------------------------------------- */

int
message_decode(struct message_arena *arena, const void *bytes, size_t len_bytes,
               Thin__Message **ret, struct thin_error *err)
{
    struct cursor all = {bytes, (const uint8_t *)bytes + len_bytes};
    ProtobufCAllocator allocator = {arena_alloc, arena_free, arena};
    Thin__Message *message;
    int r;

    r = walk_message(&thin__message__descriptor, all, 0, err);
    if (r < 0)
        return thin_wrap(err, r, "message");
    arena->exhausted = false;
    message = thin__message__unpack(&allocator, len_bytes, bytes);
    if (!message && arena->exhausted)
        return thin_fail(err, -THIN_E_LIMIT,
                         "message of %zu bytes does not fit in %zu bytes when decoded",
                         len_bytes, arena->size);
    if (!message)
        return thin_fail(err, -THIN_E_PROTOCOL, "message of %zu bytes is malformed",
                         len_bytes);
    *ret = message;
    return 0;
}

size_t
message_encoded_bytes(const Thin__Message *message)
{
    return thin__message__get_packed_size(message);
}

size_t
message_encode(const Thin__Message *message, uint32_t payload_bytes, void *ret_bytes)
{
    uint8_t *body = (uint8_t *)ret_bytes + FRAME_PREFIX_BYTES;
    size_t len = thin__message__pack(message, body);

    frame_prefix_encode(ret_bytes, body, (uint32_t)len, payload_bytes);
    return FRAME_PREFIX_BYTES + len;
}

int
message_split_name(const char *name, char ret_pool[128], char ret_volume[128],
                   struct thin_error *err)
{
    const char *slash = strchr(name, '/');
    size_t len = strlen(name);
    size_t pool_len;
    char quoted[160];
    int r;

    if (!slash)
        return thin_fail(err, -THIN_E_INVALID, "bad name %s: write it as POOL/VOLUME",
                         thin_log_quote(quoted, sizeof(quoted), name, len));
    pool_len = (size_t)(slash - name);
    r = name_check(name, pool_len, err);
    if (r < 0)
        return thin_wrap(err, r, "pool");
    r = name_check(slash + 1, len - pool_len - 1, err);
    if (r < 0)
        return thin_wrap(err, r, "volume");
    memcpy(ret_pool, name, pool_len);
    ret_pool[pool_len] = '\0';
    memcpy(ret_volume, slash + 1, len - pool_len); /* with its NUL */
    return 0;
}
