#include "core/offline/live.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/build.h"
#include "core/offline/owner.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/node.h"

/* ---- superblock and devices ------------------------------------------------------- */

static int
read_superblock(struct meta_source *src, mblock_t where, struct superblock *ret,
                struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "read the superblock");
    r = source_read(src, where, block, err);
    if (r < 0)
        return thin_wrap(err, r, "read the superblock");
    if (!superblock_is_thin(block))
        return thin_fail(err, -THIN_E_NOT_THIN,
                         "superblock: wrong magic number, this is no thin metadata");
    r = block_check(BLOCK_SUPERBLOCK, block, where, err);
    if (r < 0)
        return thin_wrap(err, r, "read the superblock");
    superblock_decode(ret, block);
    return superblock_judge(ret, true, err);
}

static int
add_device(struct live_pool *pool, const struct live_device *dev)
{
    if (pool->nr_devices == pool->room) {
        size_t room = pool->room ? pool->room * 2 : 64;
        struct live_device *bigger = realloc(pool->devices, room * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        pool->devices = bigger;
        pool->room = room;
    }
    pool->devices[pool->nr_devices++] = *dev;
    return 0;
}

static int
top_seen(void *arg, const struct leaf_ref *ref, const uint8_t *data)
{
    struct live_pool *pool = arg;

    (void)ref;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        struct live_device dev = {.dev_id = node_key(data, i),
                                  .root = node_value64(data, i)};
        int r = dev.dev_id > DEV_ID_MAX ? -THIN_E_BAD_BLOCK : add_device(pool, &dev);

        if (r < 0)
            return r;
    }
    return 0;
}

static int
compare_ids(const void *pa, const void *pb)
{
    const struct live_device *a = pa, *b = pb;

    return (a->dev_id > b->dev_id) - (a->dev_id < b->dev_id);
}

const struct live_device *
live_find(const struct live_pool *pool, uint64_t dev_id)
{
    struct live_device key = {.dev_id = dev_id};

    if (!pool->nr_devices)
        return NULL;
    return bsearch(&key, pool->devices, pool->nr_devices, sizeof(key), compare_ids);
}

static int
details_seen(void *arg, const struct leaf_ref *ref, const uint8_t *data)
{
    struct live_pool *pool = arg;

    (void)ref;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        const struct live_device *found = live_find(pool, node_key(data, i));
        struct live_device *dev;

        if (!found)
            continue;
        dev = &pool->devices[found - pool->devices];
        device_details_decode(&dev->details, node_value(data, i));
        dev->have_details = true;
    }
    return 0;
}

static int
read_devices(struct live_pool *pool, const struct live_options *opts,
             struct thin_error *err)
{
    struct tree_shape tree = {.src = pool->src,
                              .nr_blocks = pool->nr_blocks,
                              .value_size = VALUE_SIZE_MAPPING,
                              .lenient = opts->lenient,
                              .nr_skipped = &pool->nr_skipped};
    int r = leaves_each(&tree, pool->sb.data_mapping_root, top_seen, pool, err);

    if (r < 0)
        return thin_wrap(err, r, "top-level mapping tree");
    tree.value_size = VALUE_SIZE_DETAILS;
    r = leaves_each(&tree, pool->sb.device_details_root, details_seen, pool, err);
    if (r < 0)
        return thin_wrap(err, r, "device details tree");
    for (size_t i = 0; i < pool->nr_devices; i++)
        if (!pool->devices[i].have_details && !opts->lenient)
            return thin_fail(err, -THIN_E_BAD_BLOCK,
                             "device %" PRIu64 " has mappings and no details",
                             pool->devices[i].dev_id);
    return 0;
}

int
live_open(struct meta_source *src, const struct live_options *opts, struct live_pool *ret,
          struct thin_error *err)
{
    struct superblock live;
    int r;

    memset(ret, 0, sizeof(*ret));
    ret->src = src;
    r = read_superblock(src, SUPERBLOCK_LOCATION, &live, err);
    if (r < 0)
        return r;
    ret->sb = live;
    ret->nr_blocks = live.metadata_sm.nr_blocks;
    if (ret->nr_blocks == 0 || ret->nr_blocks > src->nr_blocks)
        ret->nr_blocks = src->nr_blocks;
    ret->nr_blocks = min_u64(ret->nr_blocks, METADATA_BLOCKS_MAX);
    if (opts->metadata_snap) {
        mblock_t where = opts->snap_block ? opts->snap_block : live.held_root;

        if (!where)
            return thin_fail(err, -THIN_E_NOT_FOUND, "no current metadata snap");
        r = read_superblock(src, where, &ret->sb, err);
        if (r < 0)
            return thin_wrap(err, r, "metadata snapshot");
    }
    source_reads_for(
        src, "metadata blocks read",
        opts->metadata_snap ? 0 : min_u64(live.metadata_sm.nr_allocated, ret->nr_blocks));
    r = read_devices(ret, opts, err);
    if (r < 0)
        live_close(ret);
    return r;
}

void
live_close(struct live_pool *pool)
{
    free(pool->devices);
    memset(pool, 0, sizeof(*pool));
}

struct tree_shape
live_mapping_tree(struct live_pool *pool, bool lenient)
{
    return (struct tree_shape){.src = pool->src,
                               .nr_blocks = pool->nr_blocks,
                               .value_size = VALUE_SIZE_MAPPING,
                               .lenient = lenient,
                               .nr_skipped = &pool->nr_skipped};
}

/* ---- to the visitor ------------------------------------------------------------------ */

void
live_ir_superblock(const struct live_pool *pool, struct ir_superblock *ret)
{
    const struct superblock *sb = &pool->sb;

    /* The official tools never print the uuid bytes. */
    *ret = (struct ir_superblock){.time = sb->time,
                                  .trans_id = sb->trans_id,
                                  .flags = sb->flags,
                                  .version = sb->version,
                                  .data_block_size = sb->data_block_size,
                                  .nr_data_blocks = sb->data_sm.nr_blocks};
    ret->has_catalogue = owner_catalogue_device(sb, &ret->catalogue);
}

void
live_ir_device(const struct live_device *dev, struct ir_device *ret)
{
    *ret = (struct ir_device){.dev_id = dev->dev_id,
                              .mapped_blocks = dev->details.mapped_blocks,
                              .trans_id = dev->details.transaction_id,
                              .creation_time = dev->details.creation_time,
                              .snap_time = dev->details.snapshotted_time};
}

/* Joins entries to runs across the borders of leaves. */
struct joiner {
    const struct live_pool *pool; /* lenient: what mappings must fit; else NULL */
    const struct ir_visitor *visitor;
    void *arg;
    struct ir_run run; /* len 0: none open */
    uint64_t next_key; /* what would go on with it */
    uint64_t next_value;
};

static int
end_run(struct joiner *j)
{
    int r = j->run.len ? j->visitor->run(j->arg, &j->run) : 0;

    j->run.len = 0;
    return r;
}

static bool
mapping_fits(const struct live_pool *pool, uint64_t value)
{
    return mapping_block(value) < pool->sb.data_sm.nr_blocks;
}

static int
mappings_seen(void *arg, const struct leaf_ref *ref, const uint8_t *data)
{
    struct joiner *j = arg;
    uint32_t nr = node_nr_entries(data);
    const uint8_t *keys = data + NODE_KEYS;
    const uint8_t *values = node_value(data, 0);

    (void)ref;
    for (uint32_t i = 0; i < nr; i++) {
        uint64_t key = load_le64(keys + 8 * (size_t)i);
        uint64_t value = load_le64(values + 8 * (size_t)i);

        if (j->pool && !mapping_fits(j->pool, value))
            continue;
        if (j->run.len && key == j->next_key && value == j->next_value) {
            j->run.len++;
        } else {
            int r = end_run(j);

            if (r < 0)
                return r;
            j->run = (struct ir_run){key, mapping_block(value), 1, mapping_time(value)};
        }
        j->next_key = key + 1;
        j->next_value = value + (1ull << MAPPING_TIME_BITS);
    }
    return 0;
}

static int
compare_refs(const void *pa, const void *pb)
{
    const struct leaf_ref *a = pa, *b = pb;

    return (a->lo > b->lo) - (a->lo < b->lo);
}

/* The leaves below the root, and those below what repair has found beside it. */
static int
list_device(const struct tree_shape *tree, const struct live_device *dev,
            struct leaf_list *list, struct thin_error *err)
{
    int r = leaves_list(tree, dev->root, list, err);

    for (size_t i = 0; i < dev->nr_extra && r >= 0; i++)
        r = leaves_list_below(tree, &dev->extra[i], list, err);
    if (r >= 0 && dev->nr_extra && list->nr)
        qsort(list->refs, list->nr, sizeof(*list->refs), compare_refs);
    return r;
}

int
live_read_device(struct live_pool *pool, const struct tree_shape *tree,
                 const struct live_device *dev, const struct ir_visitor *visitor,
                 void *arg, struct thin_error *err)
{
    struct joiner j = {
        .pool = tree->lenient ? pool : NULL, .visitor = visitor, .arg = arg};
    struct leaf_list list = {0};
    int r = list_device(tree, dev, &list, err);

    if (r >= 0)
        r = leaves_read(tree, &list, mappings_seen, &j, err);
    if (r >= 0)
        r = end_run(&j);
    leaf_list_fini(&list);
    return r;
}

static int
read_device(struct live_pool *pool, const struct live_options *opts,
            struct leaf_cache *cache, const struct live_device *dev,
            const struct ir_visitor *visitor, void *arg, struct thin_error *err)
{
    struct tree_shape tree = live_mapping_tree(pool, opts->lenient);
    struct ir_device ir;
    int r;

    tree.cache = cache;
    live_ir_device(dev, &ir);
    r = visitor->device_begin(arg, &ir);
    if (r >= 0 && !opts->skip_mappings)
        r = live_read_device(pool, &tree, dev, visitor, arg, err);
    if (r < 0)
        return thin_wrap(err, r, "device %" PRIu64, dev->dev_id);
    return visitor->device_end(arg);
}

static bool
is_wanted(const struct live_options *opts, uint64_t dev_id)
{
    for (size_t i = 0; i < opts->nr_dev_ids; i++)
        if (opts->dev_ids[i] == dev_id)
            return true;
    return opts->nr_dev_ids == 0;
}

int
live_feed(struct live_pool *pool, const struct live_options *opts,
          const struct ir_visitor *visitor, void *arg, struct thin_error *err)
{
    struct ir_superblock ir;
    struct leaf_cache cache;
    int r = leaf_cache_init(&cache, pool->nr_blocks);

    if (r < 0) {
        leaf_cache_fini(&cache);
        return thin_fail_code(err, r, "read the metadata");
    }
    live_ir_superblock(pool, &ir);
    if (opts->over)
        build_override_apply(opts->over, &ir);
    r = visitor->superblock(arg, &ir);
    for (size_t i = 0; i < pool->nr_devices && r >= 0; i++) {
        const struct live_device *dev = &pool->devices[i];

        if (!is_wanted(opts, dev->dev_id))
            continue;
        if (!dev->have_details)
            continue; /* lenient only: nobody can use it without */
        r = source_tick(pool->src, NULL, 0, 0);
        if (r >= 0)
            r = read_device(pool, opts, &cache, dev, visitor, arg, err);
    }
    leaf_cache_fini(&cache);
    return r < 0 ? r : visitor->end(arg);
}

int
live_read(struct meta_source *src, const struct live_options *opts,
          const struct ir_visitor *visitor, void *arg, struct thin_error *err)
{
    struct live_pool pool;
    int r = live_open(src, opts, &pool, err);

    if (r < 0)
        return r;
    r = live_feed(&pool, opts, visitor, arg, err);
    if (r < 0 && err && err->text[0] == '\0')
        r = thin_fail_code(err, r, "read the metadata");
    live_close(&pool);
    return r;
}
