#include "proto/frame.h"

#include <string.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_FLAGS = 6,
    AT_MESSAGE = 8,
    AT_PAYLOAD = 12,
    AT_CRC = 16,
    AT_ZERO = 20,
    CRC_COVERS = 16, /* bytes of the prefix under the CRC */
};

static uint32_t
frame_crc(const void *prefix_bytes, const void *message, uint32_t message_bytes)
{
    uint32_t crc = crc32c_update(CRC32C_INIT, prefix_bytes, CRC_COVERS);

    return ~crc32c_update(crc, message, message_bytes);
}

int
frame_prefix_decode(const void *bytes, uint32_t message_max, uint32_t payload_max,
                    struct frame_prefix *ret, struct thin_error *err)
{
    const uint8_t *p = bytes;
    struct frame_prefix prefix = {
        .message_bytes = load_le32(p + AT_MESSAGE),
        .payload_bytes = load_le32(p + AT_PAYLOAD),
        .crc = load_le32(p + AT_CRC),
    };

    if (load_le32(p + AT_MAGIC) != FRAME_MAGIC)
        return thin_fail(err, -THIN_E_PROTOCOL,
                         "frame begins with 0x%08x instead of 0x%08x: the peer speaks "
                         "another protocol",
                         load_le32(p + AT_MAGIC), FRAME_MAGIC);
    if (load_le16(p + AT_VERSION) != FRAME_VERSION)
        return thin_fail(err, -THIN_E_PROTOCOL, "frame version %u, known is %u",
                         load_le16(p + AT_VERSION), FRAME_VERSION);
    if (load_le16(p + AT_FLAGS) != 0)
        return thin_fail(err, -THIN_E_PROTOCOL, "frame flags 0x%04x, none are known",
                         load_le16(p + AT_FLAGS));
    if (load_le32(p + AT_ZERO) != 0)
        return thin_fail(err, -THIN_E_PROTOCOL,
                         "frame prefix ends with 0x%08x instead of zero",
                         load_le32(p + AT_ZERO));
    if (prefix.message_bytes > message_max)
        return thin_fail(err, -THIN_E_LIMIT,
                         "message of %u bytes, at most %u are allowed",
                         prefix.message_bytes, message_max);
    if (prefix.payload_bytes > payload_max)
        return thin_fail(err, -THIN_E_LIMIT,
                         "payload of %u bytes, at most %u are allowed",
                         prefix.payload_bytes, payload_max);
    *ret = prefix;
    return 0;
}

int
frame_check(const void *prefix_bytes, const struct frame_prefix *prefix,
            const void *message, struct thin_error *err)
{
    uint32_t crc = frame_crc(prefix_bytes, message, prefix->message_bytes);

    if (crc != prefix->crc)
        return thin_fail(err, -THIN_E_CHECKSUM, "frame has checksum 0x%08x, says 0x%08x",
                         crc, prefix->crc);
    return 0;
}

void
frame_prefix_encode(void *ret_bytes, const void *message, uint32_t message_bytes,
                    uint32_t payload_bytes)
{
    uint8_t *p = ret_bytes;

    store_le32(p + AT_MAGIC, FRAME_MAGIC);
    store_le16(p + AT_VERSION, FRAME_VERSION);
    store_le16(p + AT_FLAGS, 0);
    store_le32(p + AT_MESSAGE, message_bytes);
    store_le32(p + AT_PAYLOAD, payload_bytes);
    store_le32(p + AT_CRC, frame_crc(p, message, message_bytes));
    store_le32(p + AT_ZERO, 0);
}
