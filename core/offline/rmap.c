#include "core/offline/rmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/node.h"

struct collector {
    const struct rmap_region *regions;
    size_t nr_regions;
    dblock_t least, end; /* of all regions */
    struct rmap_run *runs;
    size_t nr, room;
    struct rmap_run open; /* len 0: none */
    uint64_t dev_id;
};

static int
end_run(struct collector *c)
{
    if (!c->open.len)
        return 0;
    if (c->nr == c->room) {
        size_t room = c->room ? c->room * 2 : 256;
        struct rmap_run *bigger = realloc(c->runs, room * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        c->runs = bigger;
        c->room = room;
    }
    c->runs[c->nr++] = c->open;
    c->open.len = 0;
    return 0;
}

static bool
wanted(const struct collector *c, dblock_t b)
{
    if (b < c->least || b >= c->end)
        return false;
    for (size_t i = 0; i < c->nr_regions; i++)
        if (b >= c->regions[i].begin && b < c->regions[i].end)
            return true;
    return false;
}

static int
leaf_seen(void *arg, const struct leaf_ref *ref, const uint8_t *data)
{
    struct collector *c = arg;
    const uint8_t *values = node_value(data, 0);

    (void)ref;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        dblock_t b = mapping_block(load_le64(values + 8 * (size_t)i));
        vblock_t v;
        int r;

        if (!wanted(c, b))
            continue;
        v = node_key(data, i);
        if (c->open.len && v == c->open.virt + c->open.len &&
            b == c->open.data + c->open.len) {
            c->open.len++;
            continue;
        }
        r = end_run(c);
        if (r < 0)
            return r;
        c->open = (struct rmap_run){b, c->dev_id, v, 1};
    }
    return 0;
}

/* Drops leaves that an earlier device has shown, and marks the rest. */
static void
drop_seen(struct leaf_list *list, uint8_t *seen, mblock_t nr_blocks)
{
    size_t kept = 0;

    for (size_t i = 0; i < list->nr; i++) {
        const struct leaf_ref ref = list->refs[i];

        if (ref.block < nr_blocks) {
            if (seen[ref.block / 8] >> (ref.block % 8) & 1u)
                continue;
            seen[ref.block / 8] |= (uint8_t)(1u << (ref.block % 8));
        }
        list->refs[kept++] = ref;
    }
    list->nr = kept;
}

static int
collect(struct live_pool *pool, struct collector *c, struct thin_error *err)
{
    struct tree_shape tree = live_mapping_tree(pool, false);
    AUTO_FREE uint8_t *seen = calloc(pool->nr_blocks / 8 + 1, 1);
    int r = seen ? 0 : -ENOMEM;

    for (size_t i = 0; i < pool->nr_devices && r >= 0; i++) {
        struct leaf_list list = {0};

        c->dev_id = pool->devices[i].dev_id;
        r = leaves_list(&tree, pool->devices[i].root, &list, err);
        drop_seen(&list, seen, pool->nr_blocks);
        if (r >= 0)
            r = leaves_read(&tree, &list, leaf_seen, c, err);
        if (r >= 0)
            r = end_run(c);
        if (r < 0)
            r = thin_wrap(err, r, "device %" PRIu64, c->dev_id);
        leaf_list_fini(&list);
    }
    return r;
}

static int
compare_runs(const void *pa, const void *pb)
{
    const struct rmap_run *a = pa, *b = pb;

    if (a->data != b->data)
        return (a->data > b->data) - (a->data < b->data);
    if (a->dev_id != b->dev_id)
        return (a->dev_id > b->dev_id) - (a->dev_id < b->dev_id);
    return (a->virt > b->virt) - (a->virt < b->virt);
}

int
rmap(struct live_pool *pool, const struct rmap_region *regions, size_t nr_regions,
     rmap_run_fn *run, void *arg, struct thin_error *err)
{
    struct collector c = {.regions = regions, .nr_regions = nr_regions};
    int r;

    c.least = UINT64_MAX;
    for (size_t i = 0; i < nr_regions; i++) {
        if (regions[i].begin < c.least)
            c.least = regions[i].begin;
        if (regions[i].end > c.end)
            c.end = regions[i].end;
    }
    r = collect(pool, &c, err);
    if (r >= 0 && c.nr)
        qsort(c.runs, c.nr, sizeof(*c.runs), compare_runs);
    for (size_t i = 0; i < c.nr && r >= 0; i++)
        r = run(arg, &c.runs[i]);
    free(c.runs);
    return r;
}
