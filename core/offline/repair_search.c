/* Finding again what no pointer leads to. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/offline/repair.h"
#include "core/ondisk/node.h"

/* Reads a scanned node again and believes nothing. */
static bool
read_node(struct repair_plan *plan, mblock_t b, uint32_t value_size, uint8_t *data)
{
    return source_read(plan->pool.src, b, data, NULL) == 0 &&
           block_check(BLOCK_NODE, data, b, NULL) == 0 &&
           node_judge(data, value_size, NULL) == 0;
}

static bool
is_tree_node(const struct scan *scan, mblock_t b)
{
    return b && b < scan->nr_blocks &&
           (scan->blocks[b].kind == SCAN_INTERNAL || scan->blocks[b].kind == SCAN_LEAF);
}

/* ---- details ------------------------------------------------------------------------------ */

/* The later of two records of one device. */
static bool
is_later(const struct device_details *a, const struct device_details *b)
{
    const struct scan_age ages[] = {
        {a->snapshotted_time, a->transaction_id, .mapped = a->mapped_blocks},
        {b->snapshotted_time, b->transaction_id, .mapped = b->mapped_blocks},
    };

    return scan_is_later(&ages[0], &ages[1]);
}

static int
take_details(struct repair_plan *plan, const uint8_t *data, const uint8_t *had)
{
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        struct device_details d;
        struct live_device *dev;
        uint64_t id = node_key(data, i);

        if (id > DEV_ID_MAX)
            break;
        if (had[id / 8] >> (id % 8) & 1u)
            continue; /* its own tree has told */
        device_details_decode(&d, node_value(data, i));
        dev = repair_device(plan, id);
        if (!dev)
            return -ENOMEM;
        if (!dev->have_details || is_later(&d, &dev->details))
            dev->details = d;
        dev->have_details = true;
    }
    return 0;
}

static int
search_details(struct repair_plan *plan)
{
    struct scan *scan = &plan->scan;
    AUTO_FREE uint8_t *data = malloc(METADATA_BLOCK_SIZE);
    AUTO_FREE uint8_t *had = calloc((DEV_ID_MAX + 1) / 8, 1);
    int r = data && had ? 0 : -ENOMEM;

    for (size_t i = 0; i < plan->pool.nr_devices && r >= 0; i++) {
        uint64_t id = plan->pool.devices[i].dev_id;

        if (plan->pool.devices[i].have_details)
            had[id / 8] |= (uint8_t)(1u << (id % 8));
    }
    for (mblock_t b = 0; b < scan->nr_blocks && r >= 0; b++) {
        const struct scan_block *s = &scan->blocks[b];

        if (s->kind == SCAN_DETAILS && (!scan->counts_known || (s->flags & SCAN_LIVE)) &&
            read_node(plan, b, VALUE_SIZE_DETAILS, data))
            r = take_details(plan, data, had);
    }
    return r;
}

/* ---- roots of devices ------------------------------------------------------------------------ */

/* How far a root can be believed to be that of a device; greater is better. */
static unsigned
root_rank(struct repair_plan *plan, const struct live_device *dev, mblock_t leaf,
          mblock_t root)
{
    struct scan *scan = &plan->scan;
    bool fits = dev->have_details && scan_total(scan, root) == dev->details.mapped_blocks;
    bool live = scan->counts_known && (scan->blocks[root].flags & SCAN_LIVE);
    bool leaf_live = scan->counts_known && (scan->blocks[leaf].flags & SCAN_LIVE);

    return (fits && live ? 8u : 0) | (live && leaf_live ? 4u : 0) | (fits ? 2u : 0) |
           (live ? 1u : 0);
}

/* Of two roots of equal rank: the fuller one, as nothing must be lost; where they hold
   equally much, the later one. */
static bool
is_preferred(struct scan *scan, mblock_t root, mblock_t had)
{
    uint64_t total = scan_total(scan, root), had_total = scan_total(scan, had);
    struct scan_age age = scan_age_of_root(scan, root);
    struct scan_age had_age = scan_age_of_root(scan, had);

    return total != had_total ? total > had_total : scan_is_later(&age, &had_age);
}

/* Whether a top-level leaf may bring devices of which there are no details. */
enum new_ids { NEW_NONE, NEW_LIVE, NEW_ALL };

static int
weigh_leaf(struct repair_plan *plan, mblock_t leaf, const uint8_t *data,
           enum new_ids new_ids)
{
    struct scan *scan = &plan->scan;
    bool leaf_live = scan->counts_known && (scan->blocks[leaf].flags & SCAN_LIVE);

    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        uint64_t id = node_key(data, i);
        mblock_t root = node_value64(data, i);
        const struct live_device *known;
        struct live_device *dev;
        unsigned rank;

        if (id > DEV_ID_MAX || !is_tree_node(scan, root))
            continue;
        known = live_find(&plan->pool, id);
        /* An id that no record knows may be of a device that was deleted long ago, or
           of one that only the held snapshot has. */
        if (!known && !(new_ids == NEW_ALL || (new_ids == NEW_LIVE && leaf_live)))
            continue;
        dev = repair_device(plan, id);
        if (!dev)
            return -ENOMEM;
        if (dev->root && dev->origin == REPAIR_OWN)
            continue;
        if (!dev->fullest || scan_total(scan, root) > scan_total(scan, dev->fullest))
            dev->fullest = root;
        rank = root_rank(plan, dev, leaf, root);
        /* An empty older version saves nothing, and would hide that all is lost. */
        if (!rank && !scan_total(scan, root))
            continue;
        if (dev->root) {
            unsigned old = dev->rank;

            if (rank < old || (rank == old && !is_preferred(scan, root, dev->root)))
                continue;
        }
        dev->root = root;
        dev->rank = rank;
        dev->origin = rank & 5u ? REPAIR_FOUND : REPAIR_OLDER;
    }
    return 0;
}

static int
search_roots(struct repair_plan *plan, enum new_ids new_ids)
{
    struct scan *scan = &plan->scan;
    AUTO_FREE uint8_t *data = malloc(METADATA_BLOCK_SIZE);
    int r = data ? 0 : -ENOMEM;

    for (mblock_t b = 0; b < scan->nr_blocks && r >= 0; b++)
        if ((scan->blocks[b].flags & SCAN_TOP) &&
            read_node(plan, b, VALUE_SIZE_MAPPING, data))
            r = weigh_leaf(plan, b, data, new_ids);
    return r;
}

/* In use, a tree of mappings, and nobody in use points to it. */
static bool
is_orphan(const struct scan *scan, mblock_t b)
{
    const struct scan_block *s = &scan->blocks[b];

    return is_tree_node(scan, b) && (s->flags & SCAN_LIVE) &&
           !(s->flags & (SCAN_REFERENCED | SCAN_TOP | SCAN_REACHED));
}

static bool
is_better_known(const struct live_device *dev)
{
    return dev->root && (dev->origin == REPAIR_OWN || dev->rank >= 8);
}

/* A root that nobody names, but whose number of mappings only one device has. */
static void
match_orphans(struct repair_plan *plan)
{
    struct scan *scan = &plan->scan;

    for (size_t i = 0; i < plan->pool.nr_devices; i++) {
        struct live_device *dev = &plan->pool.devices[i];
        mblock_t found = 0;
        unsigned nr = 0;

        if (is_better_known(dev) || !dev->have_details || !dev->details.mapped_blocks)
            continue;
        for (size_t j = 0; j < plan->pool.nr_devices; j++)
            if (j != i && plan->pool.devices[j].have_details &&
                !is_better_known(&plan->pool.devices[j]) &&
                plan->pool.devices[j].details.mapped_blocks == dev->details.mapped_blocks)
                nr = 2;
        for (mblock_t b = 1; b < scan->nr_blocks && nr < 2; b++)
            if (is_orphan(scan, b) && scan_total(scan, b) == dev->details.mapped_blocks) {
                found = b;
                nr++;
            }
        if (nr != 1)
            continue;
        dev->root = found;
        dev->origin = REPAIR_FOUND;
        scan->blocks[found].flags |= SCAN_REACHED;
    }
}

/* Roots that cannot be read are no roots; those that can are not orphans. */
static void
sort_out_own_roots(struct repair_plan *plan)
{
    struct scan *scan = &plan->scan;

    for (size_t i = 0; i < plan->pool.nr_devices; i++) {
        struct live_device *dev = &plan->pool.devices[i];

        if (!is_tree_node(scan, dev->root)) {
            dev->lost_root = dev->root;
            dev->root = 0;
        } else {
            dev->origin = REPAIR_OWN;
            scan->blocks[dev->root].flags |= SCAN_REACHED;
        }
    }
    if (!plan->superblock_lost && plan->pool.sb.data_mapping_root < scan->nr_blocks)
        scan->blocks[plan->pool.sb.data_mapping_root].flags |= SCAN_REACHED;
}

int
repair_search(struct repair_plan *plan, bool top_whole, bool details_whole,
              struct thin_error *err)
{
    bool details_lost;
    int r = 0;

    sort_out_own_roots(plan);
    if (!details_whole)
        r = search_details(plan);
    details_lost = true;
    for (size_t i = 0; i < plan->pool.nr_devices; i++)
        if (plan->pool.devices[i].have_details)
            details_lost = false;
    if (r >= 0)
        r = search_roots(plan, details_whole || top_whole ? NEW_NONE
                               : details_lost             ? NEW_ALL
                                                          : NEW_LIVE);
    if (r < 0)
        return thin_fail_code(err, r, "repair");
    if (plan->scan.counts_known)
        match_orphans(plan);
    return 0;
}

/* ---- gaps -------------------------------------------------------------------------------------- */

static bool
fits_gap(const struct scan_block *s, const struct affected *gap)
{
    return s->nr && s->first >= gap->begin && s->last <= gap->last;
}

/* What tells the gaps of one damaged block from others: its number, or the device whose
   root is lost together with its number. */
static uint64_t
gap_key(const struct affected *gap)
{
    return gap->block ? gap->block : 1ull << 63 | gap->dev_id;
}

/* The one damaged block whose gaps an orphan fits; 0 if none, or more than one. */
static uint64_t
only_gap(const struct repair_plan *plan, const struct scan_block *s)
{
    uint64_t only = 0;

    for (size_t i = 0; i < plan->lost.nr_affected; i++) {
        const struct affected *gap = &plan->lost.affected[i];

        if (!fits_gap(s, gap))
            continue;
        if (only && only != gap_key(gap))
            return 0;
        only = gap_key(gap);
    }
    return only;
}

static int
add_extra(struct live_device *dev, const struct leaf_ref *ref)
{
    struct leaf_ref *bigger =
        realloc(dev->extra, (dev->nr_extra + 1) * sizeof(*dev->extra));

    if (!bigger)
        return -ENOMEM;
    dev->extra = bigger;
    dev->extra[dev->nr_extra++] = *ref;
    return 0;
}

static int
compare_refs(const void *pa, const void *pb)
{
    const struct leaf_ref *a = pa, *b = pb;

    return (a->lo > b->lo) - (a->lo < b->lo);
}

/* Subtrees that overlap are of different trees, and no one knows which is right. */
static void
drop_overlaps(struct live_device *dev)
{
    size_t kept = 0;
    uint64_t end = 0; /* last key so far */

    if (dev->nr_extra < 2)
        return;
    qsort(dev->extra, dev->nr_extra, sizeof(*dev->extra), compare_refs);
    for (size_t i = 0; i < dev->nr_extra; i++) {
        struct leaf_ref ref = dev->extra[i];
        bool overlaps = (i && ref.lo <= end) ||
                        (i + 1 < dev->nr_extra && dev->extra[i + 1].lo <= ref.last);

        if (i == 0 || ref.last > end)
            end = ref.last;
        if (!overlaps)
            dev->extra[kept++] = ref;
    }
    dev->nr_extra = kept;
}

int
repair_fill_gaps(struct repair_plan *plan, struct thin_error *err)
{
    struct scan *scan = &plan->scan;

    for (mblock_t b = 1; b < scan->nr_blocks; b++) {
        const struct scan_block *s = &scan->blocks[b];
        struct leaf_ref ref = {b, s->first, s->last};
        uint64_t damaged;

        if (!is_orphan(scan, b))
            continue;
        damaged = only_gap(plan, s);
        for (size_t i = 0; damaged && i < plan->lost.nr_affected; i++) {
            const struct affected *gap = &plan->lost.affected[i];
            const struct live_device *dev = live_find(&plan->pool, gap->dev_id);

            if (gap_key(gap) != damaged || !fits_gap(s, gap) || !dev)
                continue;
            if (add_extra(&plan->pool.devices[dev - plan->pool.devices], &ref) < 0)
                return thin_fail_code(err, -ENOMEM, "repair");
        }
    }
    for (size_t i = 0; i < plan->pool.nr_devices; i++)
        drop_overlaps(&plan->pool.devices[i]);
    return 0;
}

/* ---- older, and fuller -------------------------------------------------------------------------- */

bool
repair_take_fuller(struct repair_plan *plan)
{
    bool any = false;

    for (size_t i = 0; i < plan->pool.nr_devices; i++) {
        struct live_device *dev = &plan->pool.devices[i];

        if (dev->origin == REPAIR_OWN || !plan->devices[i].nr_lost_ranges ||
            !dev->fullest || dev->fullest == dev->root ||
            scan_total(&plan->scan, dev->fullest) <= plan->devices[i].recovered)
            continue;
        dev->root = dev->fullest;
        dev->origin = REPAIR_OLDER;
        dev->nr_extra = 0;
        any = true;
    }
    return any;
}
