#include "core/ondisk/trailer.h"

#include <string.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"

enum {
    TRAILER_MAGIC = 0,
    TRAILER_UUID = 8,
    TRAILER_VERSION = 24,
    TRAILER_DEV_ID = 28,
    TRAILER_FIRST = 32,
    TRAILER_NR_PAGES = 40,
    TRAILER_LAST_CRC = 44,
    TRAILER_SEQUENCE = 48,
    TRAILER_GENERATION = 56,
    TRAILER_CHANGES = 64,
    TRAILER_HOST = 72,
    TRAILER_BOOT = 88,
    TRAILER_START = 104,
    TRAILER_FLAGS = 108,
    TRAILER_INCARNATION = 112,
    TRAILER_STAMP = 120,
    TRAILER_CRC = 124,
};
_Static_assert(TRAILER_CRC + 4 == SUPERBLOCK_TRAILER_BYTES, "the trailer is full");

void
catalogue_trailer_encode(const struct catalogue_trailer *trailer,
                         uint8_t bytes[SUPERBLOCK_TRAILER_BYTES])
{
    memset(bytes, 0, SUPERBLOCK_TRAILER_BYTES);
    store_le64(bytes + TRAILER_MAGIC, CATALOGUE_TRAILER_MAGIC);
    memcpy(bytes + TRAILER_UUID, trailer->uuid, 16);
    store_le32(bytes + TRAILER_VERSION, CATALOGUE_VERSION);
    store_le32(bytes + TRAILER_DEV_ID, trailer->dev_id);
    store_le64(bytes + TRAILER_FIRST, trailer->root.first);
    store_le32(bytes + TRAILER_NR_PAGES, trailer->root.nr_pages);
    store_le32(bytes + TRAILER_LAST_CRC, trailer->root.last_crc);
    store_le64(bytes + TRAILER_SEQUENCE, trailer->root.sequence);
    store_le64(bytes + TRAILER_GENERATION, trailer->generation);
    store_le64(bytes + TRAILER_CHANGES, trailer->changes);
    memcpy(bytes + TRAILER_HOST, trailer->owner_host, 16);
    memcpy(bytes + TRAILER_BOOT, trailer->owner_boot, 16);
    store_le32(bytes + TRAILER_START, trailer->owner_start);
    store_le32(bytes + TRAILER_FLAGS, trailer->flags);
    store_le64(bytes + TRAILER_INCARNATION, trailer->incarnation);
    store_le32(bytes + TRAILER_STAMP, trailer->stamp);
    store_le32(bytes + TRAILER_CRC, crc32c(bytes, TRAILER_CRC));
}

int
catalogue_trailer_decode(const uint8_t bytes[SUPERBLOCK_TRAILER_BYTES],
                         struct catalogue_trailer *ret, bool *ret_found,
                         struct thin_error *err)
{
    if (load_le64(bytes + TRAILER_MAGIC) != CATALOGUE_TRAILER_MAGIC ||
        load_le32(bytes + TRAILER_CRC) != crc32c(bytes, TRAILER_CRC)) {
        *ret_found = false;
        return 0;
    }
    if (load_le32(bytes + TRAILER_VERSION) != CATALOGUE_VERSION)
        return thin_fail(err, -THIN_E_VERSION, "catalogue version %u, known is %u",
                         load_le32(bytes + TRAILER_VERSION), CATALOGUE_VERSION);
    memcpy(ret->uuid, bytes + TRAILER_UUID, 16);
    ret->dev_id = load_le32(bytes + TRAILER_DEV_ID);
    ret->root.first = load_le64(bytes + TRAILER_FIRST);
    ret->root.nr_pages = load_le32(bytes + TRAILER_NR_PAGES);
    ret->root.last_crc = load_le32(bytes + TRAILER_LAST_CRC);
    ret->root.sequence = load_le64(bytes + TRAILER_SEQUENCE);
    ret->generation = load_le64(bytes + TRAILER_GENERATION);
    ret->changes = load_le64(bytes + TRAILER_CHANGES);
    memcpy(ret->owner_host, bytes + TRAILER_HOST, 16);
    memcpy(ret->owner_boot, bytes + TRAILER_BOOT, 16);
    ret->owner_start = load_le32(bytes + TRAILER_START);
    ret->flags = load_le32(bytes + TRAILER_FLAGS);
    ret->incarnation = load_le64(bytes + TRAILER_INCARNATION);
    ret->stamp = load_le32(bytes + TRAILER_STAMP);
    *ret_found = true;
    return 0;
}
