#include "core/offline/mend.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "core/base/cleanup.h"
#include "core/offline/build.h"
#include "core/offline/leaves.h"
#include "core/offline/owner.h"
#include "core/ondisk/details.h"

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
    owner_sign_foreign(block);
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

/* ---- details ---------------------------------------------------------------------- */

struct details_copy {
    const struct check_result *res;
    struct tree_build tree;
    size_t at; /* next miscount: both come by device id */
};

static int
details_seen(void *arg, const struct leaf_ref *ref, const uint8_t *data)
{
    struct details_copy *copy = arg;
    const struct check_result *res = copy->res;
    int r = 0;

    (void)ref;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr && r >= 0; i++) {
        uint64_t dev_id = node_key(data, i);
        uint8_t value[VALUE_SIZE_DETAILS];
        struct device_details details;

        device_details_decode(&details, node_value(data, i));
        if (copy->at < res->nr_miscounts && res->miscounts[copy->at].dev_id == dev_id)
            details.mapped_blocks = res->miscounts[copy->at++].mapped_blocks;
        device_details_encode(&details, value);
        r = tree_build_add(&copy->tree, dev_id, value);
    }
    return r;
}

/* Takes the pointer to node b from the counts, and what it alone reached: the held
   snapshot may go on using the rest. */
static int
drop_node(struct meta_source *src, struct counts *refs, mblock_t b,
          struct thin_error *err)
{
    AUTO_FREE uint8_t *data = NULL;
    int r;

    counts_dec(refs, b);
    if (counts_get(refs, b))
        return 0;
    data = malloc(METADATA_BLOCK_SIZE);
    if (!data)
        return thin_fail_code(err, -ENOMEM, "release node %" PRIu64, b);
    r = source_read(src, b, data, err);
    if (r == 0)
        r = block_check(BLOCK_NODE, data, b, err);
    if (r == 0)
        r = node_judge(data, VALUE_SIZE_DETAILS, err);
    if (r < 0 || node_is_leaf(data))
        return r;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr && r >= 0; i++)
        r = drop_node(src, refs, node_value64(data, i), err);
    return r;
}

static int
build_details(struct block_out *out, const struct check_result *res,
              struct superblock *new_sb)
{
    struct details_copy copy = {.res = res};
    struct tree_shape old = {.src = out->src,
                             .nr_blocks = res->metadata_blocks,
                             .value_size = VALUE_SIZE_DETAILS};
    int r = tree_build_init(&copy.tree, out, VALUE_SIZE_DETAILS);

    if (r >= 0)
        r = leaves_each(&old, res->sb.device_details_root, details_seen, &copy, out->err);
    if (r >= 0)
        r = tree_build_end(&copy.tree, &new_sb->device_details_root);
    tree_build_fini(&copy.tree);
    if (r >= 0)
        r = drop_node(out->src, &out->refs, res->sb.device_details_root, out->err);
    return r < 0 ? thin_wrap(out->err, r, "device details") : 0;
}

int
mend_counts(struct meta_source *src, const struct report *rep,
            const struct check_result *res, struct thin_error *err)
{
    struct superblock new_sb = res->sb;
    struct block_out out;
    /* Whatever is wrong in the space maps is made anew. */
    uint64_t mendable = rep->nr_damage_at[REPORT_AT_DATA_SM] +
                        rep->nr_damage_at[REPORT_AT_METADATA_SM] + res->nr_miscounts;
    int r;

    if (!res->trees_known || rep->nr_class[REPORT_DAMAGE] != mendable)
        return thin_fail(err, -THIN_E_INVALID,
                         "there is damage that cannot be mended in place; "
                         "use repair onto another device");
    r = block_out_init(&out, src, res->sb.metadata_sm.nr_blocks, &res->tree_refs, err);
    out.busy = &res->refs;
    if (r >= 0 && res->nr_miscounts)
        r = build_details(&out, res, &new_sb);
    if (r >= 0)
        r = build_maps(&out, res, &new_sb);
    block_out_fini(&out);
    return r < 0 ? r : rewrite_superblock(src, &new_sb, err);
}
