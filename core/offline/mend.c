#include "core/offline/mend.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "core/base/cleanup.h"
#include "core/offline/build.h"

/* Changes the superblock where it stands, the rest of its bytes kept. */
static int
rewrite_superblock(struct meta_source *src, const struct superblock *new_sb,
                   struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "write the superblock");
    r = source_read(src, SUPERBLOCK_LOCATION, block, err);
    if (r == 0)
        r = block_check(BLOCK_SUPERBLOCK, block, SUPERBLOCK_LOCATION, err);
    if (r == 0)
        r = source_flush(src, err);
    if (r < 0)
        return thin_wrap(err, r, "rewrite the superblock");
    superblock_encode(new_sb, block);
    block_seal(BLOCK_SUPERBLOCK, block, SUPERBLOCK_LOCATION);
    r = source_write(src, SUPERBLOCK_LOCATION, block, 1, err);
    return r < 0 ? r : source_flush(src, err);
}

int
mend_clear_needs_check(struct meta_source *src, struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    struct superblock sb;
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "clear needs_check");
    r = source_read(src, SUPERBLOCK_LOCATION, block, err);
    if (r == 0)
        r = block_check(BLOCK_SUPERBLOCK, block, SUPERBLOCK_LOCATION, err);
    if (r < 0)
        return thin_wrap(err, r, "clear needs_check");
    superblock_decode(&sb, block);
    if (!(sb.flags & SUPERBLOCK_NEEDS_CHECK))
        return 0;
    sb.flags &= ~SUPERBLOCK_NEEDS_CHECK;
    return rewrite_superblock(src, &sb, err);
}

static int
build_maps(struct block_out *out, const struct check_result *res,
           struct superblock *new_sb)
{
    int r = build_data_space_map(out, &res->data, new_sb->data_sm.nr_blocks,
                                 &new_sb->data_sm);

    if (r >= 0)
        r = build_metadata_space_map(out, new_sb->metadata_sm.nr_blocks,
                                     &new_sb->metadata_sm);
    return r;
}

int
mend_space_maps(struct meta_source *src, const struct report *rep,
                const struct check_result *res, struct thin_error *err)
{
    struct superblock new_sb = res->sb;
    struct block_out out;
    /* Whatever is wrong in the space maps is made anew. */
    uint64_t mendable =
        rep->nr_damage_at[REPORT_AT_DATA_SM] + rep->nr_damage_at[REPORT_AT_METADATA_SM];
    int r;

    if (!res->trees_known || rep->nr_class[REPORT_DAMAGE] != mendable)
        return thin_fail(err, -THIN_E_INVALID,
                         "there is damage that cannot be mended in place; "
                         "use repair onto another device");
    r = block_out_init(&out, src, res->sb.metadata_sm.nr_blocks, &res->tree_refs, err);
    out.busy = &res->refs;
    if (r >= 0)
        r = build_maps(&out, res, &new_sb);
    block_out_fini(&out);
    return r < 0 ? r : rewrite_superblock(src, &new_sb, err);
}
