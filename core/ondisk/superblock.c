#include "core/ondisk/superblock.h"

#include <inttypes.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/crc32c.h"

/* Offsets in the block. */
enum {
    SB_FLAGS = 4,
    SB_UUID = 16,
    SB_MAGIC = 32,
    SB_VERSION = 40,
    SB_TIME = 44,
    SB_TRANS_ID = 48,
    SB_HELD_ROOT = 56,
    SB_DATA_SM = 64,
    SB_METADATA_SM = 192,
    SB_MAPPING_ROOT = 320,
    SB_DETAILS_ROOT = 328,
    SB_DATA_BLOCK_SIZE = 336,
    SB_METADATA_BLOCK_SIZE = 340,
    SB_METADATA_NR_BLOCKS = 344,
    SB_COMPAT = 352,
    SB_COMPAT_RO = 356,
    SB_INCOMPAT = 360,
    SB_SM_ROOT_BYTES = 128,
    SB_LIVE_BYTES = 512,
};

static void
decode_root(struct space_map_root *ret, const uint8_t *p)
{
    ret->nr_blocks = load_le64(p);
    ret->nr_allocated = load_le64(p + 8);
    ret->bitmap_root = load_le64(p + 16);
    ret->ref_count_root = load_le64(p + 24);
}

static void
encode_root(const struct space_map_root *root, uint8_t *p)
{
    memset(p, 0, SB_SM_ROOT_BYTES);
    store_le64(p, root->nr_blocks);
    store_le64(p + 8, root->nr_allocated);
    store_le64(p + 16, root->bitmap_root);
    store_le64(p + 24, root->ref_count_root);
}

void
superblock_decode(struct superblock *ret_sb, const void *block)
{
    const uint8_t *b = block;

    ret_sb->flags = load_le32(b + SB_FLAGS);
    memcpy(ret_sb->uuid, b + SB_UUID, sizeof(ret_sb->uuid));
    ret_sb->version = load_le32(b + SB_VERSION);
    ret_sb->time = load_le32(b + SB_TIME);
    ret_sb->trans_id = load_le64(b + SB_TRANS_ID);
    ret_sb->held_root = load_le64(b + SB_HELD_ROOT);
    decode_root(&ret_sb->data_sm, b + SB_DATA_SM);
    decode_root(&ret_sb->metadata_sm, b + SB_METADATA_SM);
    ret_sb->data_mapping_root = load_le64(b + SB_MAPPING_ROOT);
    ret_sb->device_details_root = load_le64(b + SB_DETAILS_ROOT);
    ret_sb->data_block_size = load_le32(b + SB_DATA_BLOCK_SIZE);
    ret_sb->metadata_block_size = load_le32(b + SB_METADATA_BLOCK_SIZE);
    ret_sb->metadata_nr_blocks = load_le64(b + SB_METADATA_NR_BLOCKS);
    ret_sb->compat_flags = load_le32(b + SB_COMPAT);
    ret_sb->compat_ro_flags = load_le32(b + SB_COMPAT_RO);
    ret_sb->incompat_flags = load_le32(b + SB_INCOMPAT);
    memcpy(ret_sb->trailer, b + SUPERBLOCK_TRAILER_OFFSET, sizeof(ret_sb->trailer));
}

void
superblock_encode(const struct superblock *sb, void *block)
{
    uint8_t *b = block;

    store_le32(b + SB_FLAGS, sb->flags);
    memcpy(b + SB_UUID, sb->uuid, sizeof(sb->uuid));
    store_le64(b + SB_MAGIC, SUPERBLOCK_MAGIC);
    store_le32(b + SB_VERSION, sb->version);
    store_le32(b + SB_TIME, sb->time);
    store_le64(b + SB_TRANS_ID, sb->trans_id);
    store_le64(b + SB_HELD_ROOT, sb->held_root);
    encode_root(&sb->data_sm, b + SB_DATA_SM);
    encode_root(&sb->metadata_sm, b + SB_METADATA_SM);
    store_le64(b + SB_MAPPING_ROOT, sb->data_mapping_root);
    store_le64(b + SB_DETAILS_ROOT, sb->device_details_root);
    store_le32(b + SB_DATA_BLOCK_SIZE, sb->data_block_size);
    store_le32(b + SB_METADATA_BLOCK_SIZE, sb->metadata_block_size);
    store_le64(b + SB_METADATA_NR_BLOCKS, sb->metadata_nr_blocks);
    store_le32(b + SB_COMPAT, sb->compat_flags);
    store_le32(b + SB_COMPAT_RO, sb->compat_ro_flags);
    store_le32(b + SB_INCOMPAT, sb->incompat_flags);
    memcpy(b + SUPERBLOCK_TRAILER_OFFSET, sb->trailer, sizeof(sb->trailer));
    /* A torn write of block 0 must not tear anything that the checksum covers. */
    memset(b + SB_LIVE_BYTES, 0, METADATA_BLOCK_SIZE - SB_LIVE_BYTES);
}

int
superblock_judge(const struct superblock *sb, bool read_only, struct thin_error *err)
{
    /* Lower ones differ in nothing: thin_restore writes them when the XML says none, and
       the kernel does not look. */
    if (sb->version > SUPERBLOCK_VERSION)
        return thin_fail(err, -THIN_E_VERSION,
                         "metadata version %" PRIu32 ", up to %u is known", sb->version,
                         SUPERBLOCK_VERSION);
    if (sb->metadata_block_size != METADATA_BLOCK_SECTORS)
        return thin_fail(err, -THIN_E_UNSUPPORTED,
                         "metadata blocks of %" PRIu32 " sectors, must be %u",
                         sb->metadata_block_size, METADATA_BLOCK_SECTORS);
    if (sb->data_block_size < DATA_BLOCK_SECTORS_MIN ||
        sb->data_block_size > DATA_BLOCK_SECTORS_MAX ||
        sb->data_block_size % DATA_BLOCK_SECTORS_MIN)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "data blocks of %" PRIu32
                         " sectors, must be a multiple of %u from %u to %u",
                         sb->data_block_size, DATA_BLOCK_SECTORS_MIN,
                         DATA_BLOCK_SECTORS_MIN, DATA_BLOCK_SECTORS_MAX);
    if (sb->incompat_flags)
        return thin_fail(err, -THIN_E_UNSUPPORTED,
                         "unknown incompatible features %08" PRIx32, sb->incompat_flags);
    if (sb->compat_ro_flags && !read_only)
        return thin_fail(err, -THIN_E_UNSUPPORTED,
                         "unknown features %08" PRIx32 " allow only reading",
                         sb->compat_ro_flags);
    return 0;
}

uint32_t
superblock_stamp(const void *block)
{
    return crc32c((const uint8_t *)block + SUPERBLOCK_STAMP_BEGIN,
                  SUPERBLOCK_STAMP_END - SUPERBLOCK_STAMP_BEGIN);
}

bool
superblock_is_thin(const void *block)
{
    return load_le64((const uint8_t *)block + SB_MAGIC) == SUPERBLOCK_MAGIC;
}
