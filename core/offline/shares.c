#include "core/offline/shares.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/offline/walk.h"
#include "core/ondisk/mapping.h"

struct sharing {
    struct live_pool *pool;
    struct walk walk;
    struct counts data;
    struct device_shares *shares;
    uint64_t nr_data;
    bool any; /* data block that is mapped more than once */
};

static int
count_leaf(void *arg, struct walk_node *node, const uint8_t *data)
{
    struct sharing *s = arg;
    bool many = node->flags & WALK_MANY, any = many;
    /* Neighbours are mapped to neighbours: the chunk of counts is looked up rarely. */
    struct count_chunk *chunk = NULL;
    uint64_t begin = 0;

    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        dblock_t b = mapping_block(node_value64(data, i));
        uint8_t *low;

        if (b >= s->nr_data)
            return -THIN_E_BAD_BLOCK;
        if (!chunk || b - begin >= BITMAP_ENTRIES) {
            begin = b - b % BITMAP_ENTRIES;
            chunk = counts_touch(&s->data, b / BITMAP_ENTRIES);
            if (!chunk)
                return -ENOMEM;
        }
        /* Only 1 is told from more. */
        low = &chunk->low[b - begin];
        any |= *low != 0;
        *low = *low || many ? 2 : 1;
    }
    s->any |= any;
    return 0;
}

/* Second pass: the leaves that one device has for itself. */
struct second {
    struct sharing *s;
    const uint32_t *records;
};

static int
exclusive_leaf(void *arg, size_t index, const uint8_t *data, int code)
{
    struct second *second = arg;
    struct sharing *s = second->s;
    const struct walk_node *node = &s->walk.nodes[second->records[index]];
    const struct count_chunk *chunk = NULL;
    uint64_t exclusive = 0, begin = 0;

    /* Read and judged a moment ago; what has changed since is told, not trusted. */
    if (!data)
        return code;
    if (code < 0 || node_judge(data, VALUE_SIZE_MAPPING, NULL) < 0)
        return -THIN_E_BAD_BLOCK;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        dblock_t b = mapping_block(node_value64(data, i));

        if (b >= s->nr_data)
            continue;
        if (!chunk || b - begin >= BITMAP_ENTRIES) {
            begin = b - b % BITMAP_ENTRIES;
            chunk = s->data.chunk[b / BITMAP_ENTRIES];
        }
        exclusive += chunk && chunk->low[b - begin] == 1;
    }
    s->shares[node->owner].exclusive += exclusive;
    return 0;
}

struct block_record {
    mblock_t block;
    uint32_t record;
};

static int
compare(const void *pa, const void *pb)
{
    const struct block_record *a = pa, *b = pb;

    return (a->block > b->block) - (a->block < b->block);
}

static int
add_exclusive(struct sharing *s)
{
    const struct walk *w = &s->walk;
    size_t nr = 0, room = w->nr_nodes + 1;
    AUTO_FREE struct block_record *sort = malloc(room * sizeof(*sort));
    AUTO_FREE mblock_t *blocks = malloc(room * sizeof(*blocks));
    AUTO_FREE uint32_t *records = malloc(room * sizeof(*records));
    struct second second = {s, records};

    if (!sort || !blocks || !records)
        return -ENOMEM;
    for (uint32_t i = 0; i < w->nr_nodes; i++)
        if (w->nodes[i].height == 0 && !(w->nodes[i].flags & WALK_MANY))
            sort[nr++] = (struct block_record){w->nodes[i].block, i};
    if (!nr)
        return 0;
    qsort(sort, nr, sizeof(*sort), compare);
    for (size_t i = 0; i < nr; i++) {
        blocks[i] = sort[i].block;
        records[i] = sort[i].record;
    }
    return source_read_many(w->src, blocks, nr, BLOCK_NODE, exclusive_leaf, &second);
}

/* The last key below a root: down the rightmost children. */
static int
find_highest(struct sharing *s, mblock_t root, struct device_shares *ret)
{
    AUTO_FREE uint8_t *data = malloc(METADATA_BLOCK_SIZE);
    mblock_t b = root;

    for (unsigned depth = 0; data && depth <= WALK_HEIGHT_MAX; depth++) {
        uint32_t nr;
        int r = source_read(s->pool->src, b, data, NULL);

        if (r == 0)
            r = block_check(BLOCK_NODE, data, b, NULL);
        if (r == 0)
            r = node_judge(data, VALUE_SIZE_MAPPING, NULL);
        if (r < 0)
            return r;
        nr = node_nr_entries(data);
        if (node_is_leaf(data)) {
            ret->any = nr > 0;
            ret->highest = nr ? node_key(data, nr - 1) : 0;
            return 0;
        }
        b = node_value64(data, nr - 1);
    }
    return data ? -THIN_E_BAD_BLOCK : -ENOMEM;
}

static int
count_all(struct sharing *s)
{
    struct live_pool *pool = s->pool;
    AUTO_FREE struct walk_root *roots = malloc((pool->nr_devices + 1) * sizeof(*roots));
    int r = roots ? 0 : -ENOMEM;

    for (size_t i = 0; i < pool->nr_devices && r >= 0; i++)
        roots[i] = (struct walk_root){pool->devices[i].root, (uint32_t)i};
    if (r >= 0)
        r = walk_trees(&s->walk, WALK_MAPPING, roots, pool->nr_devices, count_leaf, s);
    if (r >= 0 && s->walk.nr_damaged)
        r = -THIN_E_BAD_BLOCK;
    if (r >= 0)
        r = walk_sum(&s->walk, WALK_MAPPING);
    /* Where nothing is shared no leaf has to be looked at again. */
    if (r >= 0 && s->any)
        r = add_exclusive(s);
    for (size_t i = 0; i < pool->nr_devices && r >= 0; i++) {
        s->shares[i].mapped = walk_find(&s->walk, pool->devices[i].root)->total;
        if (!s->any)
            s->shares[i].exclusive = s->shares[i].mapped;
        r = find_highest(s, pool->devices[i].root, &s->shares[i]);
    }
    return r;
}

int
shares_count(struct live_pool *pool, struct device_shares *ret, struct thin_error *err)
{
    struct sharing s = {
        .pool = pool, .shares = ret, .nr_data = pool->sb.data_sm.nr_blocks};
    int r;

    memset(ret, 0, pool->nr_devices * sizeof(*ret));
    /* A held superblock has no size of the data device; each block number fits anyway. */
    if (s.nr_data == 0 || s.nr_data / BITMAP_ENTRIES > pool->nr_blocks)
        s.nr_data = (uint64_t)pool->nr_blocks * BITMAP_ENTRIES;
    r = counts_init(&s.data, s.nr_data);
    if (r >= 0)
        r = walk_init(&s.walk, pool->src, pool->nr_blocks, NULL);
    if (r >= 0)
        r = count_all(&s);
    counts_fini(&s.data);
    walk_fini(&s.walk);
    if (r == -THIN_E_BAD_BLOCK)
        return thin_fail(err, r, "the mapping trees are damaged");
    return r < 0 ? thin_fail_code(err, r, "count shared blocks") : 0;
}
