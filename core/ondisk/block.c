#include "core/ondisk/block.h"

#include <inttypes.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"
#include "core/base/seeded_bug.h"
#include "core/ondisk/superblock.h"

/* All four kinds keep their own number in the same place. */
#define OWN_NUMBER_OFFSET 8

static const struct {
    uint32_t salt;
    const char *name;
} kinds[BLOCK_KINDS] = {
    [BLOCK_SUPERBLOCK] = {160774, "superblock"},
    [BLOCK_NODE] = {121107, "btree node"},
    [BLOCK_BITMAP] = {240779, "bitmap"},
    [BLOCK_INDEX] = {160478, "index block"},
};

const char *
block_kind_name(enum block_kind kind)
{
    return kinds[kind].name;
}

static uint32_t
unsalted(const void *block)
{
    return crc32c_update(CRC32C_INIT, (const char *)block + 4, METADATA_BLOCK_SIZE - 4);
}

uint32_t
block_checksum(enum block_kind kind, const void *block)
{
    return unsalted(block) ^ kinds[kind].salt;
}

void
block_seal(enum block_kind kind, void *block, mblock_t location)
{
    store_le64((char *)block + OWN_NUMBER_OFFSET, location);
    store_le32(block, block_checksum(kind, block));
}

static bool
is_all_zeros(const uint8_t *block)
{
    return block[0] == 0 && memcmp(block, block + 1, METADATA_BLOCK_SIZE - 1) == 0;
}

int
block_check(enum block_kind kind, const void *block, mblock_t location,
            struct thin_error *err)
{
    uint32_t wanted = block_checksum(kind, block);
    uint32_t found = load_le32(block);
    uint64_t own = load_le64((const char *)block + OWN_NUMBER_OFFSET);

    /* Magic before checksum, as the kernel looks: a device that never held a pool is
       not a damaged one. */
    if (kind == BLOCK_SUPERBLOCK && !superblock_is_thin(block))
        return thin_fail(
            err, -THIN_E_NOT_THIN,
            "metadata block %" PRIu64 " is no thin-pool superblock (%s)", location,
            is_all_zeros(block) ? "all zeros: not formatted" : "other magic number");
    if (found != wanted && !seeded_bug(SEEDED_CHECKSUM_IGNORED))
        return thin_fail(err, -THIN_E_CHECKSUM,
                         "metadata block %" PRIu64 " (%s): checksum is %08" PRIx32
                         ", should be %08" PRIx32,
                         location, kinds[kind].name, found, wanted);
    if (own != location)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "metadata block %" PRIu64
                         " (%s): says that it is block %" PRIu64,
                         location, kinds[kind].name, own);
    return 0;
}

bool
block_guess_kind(const void *block, enum block_kind *ret_kind)
{
    uint32_t salt = unsalted(block) ^ load_le32(block);

    for (int k = 0; k < BLOCK_KINDS; k++)
        if (kinds[k].salt == salt) {
            *ret_kind = (enum block_kind)k;
            return true;
        }
    return false;
}
