#include "core/offline/build.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/owner.h"
#include "core/ondisk/details.h"
#include "core/ondisk/mapping.h"

int
builder_init(struct builder *b, struct meta_source *dst,
             const struct build_override *over, struct thin_error *err)
{
    memset(b, 0, sizeof(*b));
    b->err = err;
    if (over)
        b->over = *over;
    return block_out_init(&b->out, dst, min_u64(dst->nr_blocks, METADATA_BLOCKS_MAX),
                          NULL, err);
}

void
builder_rehearse(struct builder *b)
{
    b->out.rehearsal = true;
}

void
builder_fini(struct builder *b)
{
    tree_build_fini(&b->top);
    tree_build_fini(&b->details);
    tree_build_fini(&b->mappings);
    counts_fini(&b->data);
    block_out_fini(&b->out);
}

/*
 * Puts something in block 0 that is neither a superblock nor zeros (the kernel formats
 * a device whose block 0 is zero). The trailer stays in its place.
 */
static int
mark_unfinished(struct builder *b)
{
    static const char words[] = "thinmeta: this metadata is being built, not finished\n";
    AUTO_FREE uint8_t *block = calloc(1, METADATA_BLOCK_SIZE);
    AUTO_FREE uint8_t *old = calloc(1, METADATA_BLOCK_SIZE);
    int r;

    if (!block || !old)
        return thin_fail_code(b->err, -ENOMEM, "build metadata");
    /* One that cannot be read or is no superblock has no trailer to keep. */
    if (!b->keep_trailer &&
        source_read(b->out.src, SUPERBLOCK_LOCATION, old, NULL) == 0 &&
        (block_check(BLOCK_SUPERBLOCK, old, SUPERBLOCK_LOCATION, NULL) == 0 ||
         memcmp(old, words, sizeof(words)) == 0))
        memcpy(b->trailer, old + SUPERBLOCK_TRAILER_OFFSET, sizeof(b->trailer));
    memcpy(block, words, sizeof(words));
    memcpy(block + SUPERBLOCK_TRAILER_OFFSET, b->trailer, sizeof(b->trailer));
    r = source_write(b->out.src, SUPERBLOCK_LOCATION, block, 1, b->err);
    return r < 0 ? r : source_flush(b->out.src, b->err);
}

static int
build_superblock(void *arg, const struct ir_superblock *ir)
{
    struct builder *b = arg;
    uint64_t block_size =
        b->over.have_data_block_size ? b->over.data_block_size : ir->data_block_size;
    uint64_t nr_data =
        b->over.have_nr_data_blocks ? b->over.nr_data_blocks : ir->nr_data_blocks;
    int r;

    if (b->begun)
        return thin_fail(b->err, -THIN_E_INVALID, "a second superblock");
    b->sb = (struct superblock){
        .flags = ir->flags,
        .version = ir->version,
        .time = ir->time,
        .trans_id = b->over.have_trans_id ? b->over.trans_id : ir->trans_id,
        .data_block_size = (uint32_t)min_u64(block_size, UINT32_MAX),
        .metadata_block_size = METADATA_BLOCK_SECTORS,
    };
    r = superblock_judge(&b->sb, false, b->err);
    if (r < 0)
        return r;
    if (b->sb.time > POOL_TIME_MAX)
        return thin_fail(b->err, -THIN_E_INVALID, "time %" PRIu32 " is over 24 bits",
                         b->sb.time);
    if (nr_data / BITMAP_ENTRIES >= b->out.nr_blocks)
        return thin_fail(b->err, -THIN_E_NO_METADATA_SPACE,
                         "%" PRIu64 " data blocks cannot be counted in %" PRIu64
                         " metadata blocks",
                         nr_data, b->out.nr_blocks);
    if (counts_init(&b->data, nr_data) < 0)
        return thin_fail_code(b->err, -ENOMEM, "build metadata");
    b->begun = true;
    r = tree_build_init(&b->top, &b->out, VALUE_SIZE_MAPPING);
    if (r >= 0)
        r = tree_build_init(&b->details, &b->out, VALUE_SIZE_DETAILS);
    if (r >= 0)
        r = tree_build_init(&b->mappings, &b->out, VALUE_SIZE_MAPPING);
    return r < 0 || b->out.rehearsal ? r : mark_unfinished(b);
}

static int
build_device_begin(void *arg, const struct ir_device *dev)
{
    struct builder *b = arg;

    if (!b->begun || b->in_device)
        return thin_fail(b->err, -THIN_E_INVALID, "a device in the wrong place");
    if (dev->dev_id > DEV_ID_MAX)
        return thin_fail(b->err, -THIN_E_INVALID,
                         "device id %" PRIu64 " is greater than %u", dev->dev_id,
                         DEV_ID_MAX);
    if (b->any_device && dev->dev_id <= b->dev.dev_id)
        return thin_fail(b->err, -THIN_E_INVALID,
                         "device %" PRIu64 " comes after device %" PRIu64, dev->dev_id,
                         b->dev.dev_id);
    if (dev->creation_time > POOL_TIME_MAX || dev->snap_time > POOL_TIME_MAX)
        return thin_fail(b->err, -THIN_E_INVALID,
                         "device %" PRIu64 ": creation time %" PRIu32
                         ", snap time %" PRIu32 ", at most %" PRIu32 " is possible",
                         dev->dev_id, dev->creation_time, dev->snap_time,
                         (uint32_t)POOL_TIME_MAX);
    b->dev = *dev;
    b->any_device = true;
    b->in_device = true;
    b->nr_mapped = 0;
    b->next_virt = 0;
    return 0;
}

static int
judge_run(struct builder *b, const struct ir_run *run)
{
    if (!b->in_device)
        return thin_fail(b->err, -THIN_E_INVALID, "a mapping outside of a device");
    if (run->len == 0)
        return thin_fail(b->err, -THIN_E_INVALID, "a mapping of no length");
    if (b->nr_mapped && run->virt < b->next_virt)
        return thin_fail(b->err, -THIN_E_INVALID,
                         "virtual block %" PRIu64 " comes after block %" PRIu64,
                         run->virt, b->next_virt - 1);
    if (run->len > UINT64_MAX - run->virt)
        return thin_fail(b->err, -THIN_E_INVALID,
                         "virtual block %" PRIu64 " and %" PRIu64 " further ones",
                         run->virt, run->len);
    if (!range_inside(run->data, run->len, b->data.nr))
        return thin_fail(b->err, -THIN_E_INVALID,
                         "data block %" PRIu64 " and %" PRIu64
                         " further ones, there are %" PRIu64,
                         run->data, run->len - 1, b->data.nr);
    if (run->time > POOL_TIME_MAX)
        return thin_fail(b->err, -THIN_E_INVALID,
                         "virtual block %" PRIu64 " has time %" PRIu32
                         ", at most %" PRIu32 " is possible",
                         run->virt, run->time, (uint32_t)POOL_TIME_MAX);
    return 0;
}

static int
build_run(void *arg, const struct ir_run *run)
{
    struct builder *b = arg;
    int r = judge_run(b, run);

    if (r >= 0)
        r = counts_inc_run(&b->data, run->data, run->len);
    if (r >= 0)
        r = tree_build_add_run(&b->mappings, run->virt,
                               mapping_pack(run->data, run->time),
                               1ull << MAPPING_TIME_BITS, run->len);
    if (r < 0)
        return r;
    b->nr_mapped += run->len;
    b->next_virt = run->virt + run->len;
    return 0;
}

static int
build_device_end(void *arg)
{
    struct builder *b = arg;
    struct device_details d = {
        .mapped_blocks = b->nr_mapped, /* what there is, whatever the source said */
        .transaction_id = b->dev.trans_id,
        .creation_time = b->dev.creation_time,
        .snapshotted_time = b->dev.snap_time,
    };
    uint8_t value[VALUE_SIZE_DETAILS], root_value[8];
    mblock_t root;
    int r;

    b->in_device = false;
    r = tree_build_end(&b->mappings, &root);
    if (r < 0)
        return r;
    store_le64(root_value, root);
    device_details_encode(&d, value);
    r = tree_build_add(&b->top, b->dev.dev_id, root_value);
    return r < 0 ? r : tree_build_add(&b->details, b->dev.dev_id, value);
}

static int
write_superblock(struct builder *b)
{
    AUTO_FREE uint8_t *block = calloc(1, METADATA_BLOCK_SIZE);
    int r;

    if (!block)
        return thin_fail_code(b->err, -ENOMEM, "write the superblock");
    memcpy(b->sb.trailer, b->trailer, sizeof(b->trailer));
    superblock_encode(&b->sb, block);
    owner_sign_foreign(block);
    block_seal(BLOCK_SUPERBLOCK, block, SUPERBLOCK_LOCATION);
    r = source_flush(b->out.src, b->err);
    if (r >= 0)
        r = source_write(b->out.src, SUPERBLOCK_LOCATION, block, 1, b->err);
    return r < 0 ? r : source_flush(b->out.src, b->err);
}

static int
build_end(void *arg)
{
    struct builder *b = arg;
    int r;

    if (!b->begun || b->in_device)
        return thin_fail(b->err, -THIN_E_INVALID, "the metadata ends too early");
    r = tree_build_end(&b->top, &b->sb.data_mapping_root);
    if (r >= 0)
        r = tree_build_end(&b->details, &b->sb.device_details_root);
    if (r >= 0)
        r = build_data_space_map(&b->out, &b->data, b->data.nr, &b->sb.data_sm);
    if (r >= 0)
        r = build_metadata_space_map(&b->out, b->out.nr_blocks, &b->sb.metadata_sm);
    if (r < 0)
        return r;
    b->sb.metadata_nr_blocks = b->out.nr_blocks;
    return b->out.rehearsal ? 0 : write_superblock(b);
}

const struct ir_visitor builder_visitor = {
    .superblock = build_superblock,
    .device_begin = build_device_begin,
    .run = build_run,
    .device_end = build_device_end,
    .end = build_end,
};
