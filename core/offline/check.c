#include "core/offline/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/ondisk/details.h"
#include "core/ondisk/mapping.h"

/* The live trees and those of the held snapshot. */
enum { LIVE = 1, HELD = 2 };

struct check_device {
    uint64_t dev_id;
    mblock_t root;
    unsigned sets;
};

struct check_details {
    uint64_t dev_id;
    unsigned sets;
    struct device_details details;
};

struct trees {
    struct check *c;
    struct check_device *devices;
    size_t nr_devices, room_devices;
    struct check_details *details;
    size_t nr_details, room_details;
    struct superblock held;
    bool have_held;
    uint64_t nr_mapping_leaf_faults;
};

void
check_result_fini(struct check_result *res)
{
    counts_fini(&res->refs);
    counts_fini(&res->tree_refs);
    counts_fini(&res->data);
    free(res->miscounts);
    res->miscounts = NULL;
}

/* ---- superblocks --------------------------------------------------------------------- */

static int
check_superblock(struct check *c, struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    struct superblock *sb = &c->res->sb;
    struct thin_error words;
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "check the superblock");
    r = source_read(c->src, SUPERBLOCK_LOCATION, block, err);
    if (r < 0)
        return r;
    thin_error_init(&words);
    if (!superblock_is_thin(block) &&
        block_check(BLOCK_SUPERBLOCK, block, SUPERBLOCK_LOCATION, NULL) < 0) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0,
                   "superblock: neither magic number nor checksum fit; this is no thin "
                   "metadata, or its superblock is lost");
        return 0;
    }
    r = block_check(BLOCK_SUPERBLOCK, block, SUPERBLOCK_LOCATION, &words);
    if (r < 0) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0, "superblock: %s",
                   thin_error_text(&words, r));
        return 0;
    }
    if (!superblock_is_thin(block)) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0,
                   "superblock: wrong magic number");
        return 0;
    }
    superblock_decode(sb, block);
    r = superblock_judge(sb, true, &words);
    if (r < 0) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0, "superblock: %s",
                   thin_error_text(&words, r));
        return 0;
    }
    c->res->sb_good = true;
    c->res->trans_id = sb->trans_id;
    if (c->opts->mapping_root)
        sb->data_mapping_root = c->opts->mapping_root;
    c->res->needs_check = sb->flags & SUPERBLOCK_NEEDS_CHECK;
    if (sb->flags & ~SUPERBLOCK_NEEDS_CHECK)
        report_add(c->rep, REPORT_NOTE, REPORT_AT_SUPERBLOCK, 0,
                   "superblock: unknown flags %08" PRIx32, sb->flags);
    if (sb->time > POOL_TIME_MAX)
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0,
                   "superblock: time %" PRIu32 " does not fit in a mapping's 24 bits",
                   sb->time);
    return 0;
}

/* How many metadata blocks pointers may name, and data blocks are counted. */
static void
judge_sizes(struct check *c)
{
    const struct superblock *sb = &c->res->sb;
    uint64_t nr = sb->metadata_sm.nr_blocks;

    if (nr == 0 || nr > METADATA_BLOCKS_MAX) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0,
                   "superblock: %" PRIu64 " metadata blocks, must be 1 to %u", nr,
                   METADATA_BLOCKS_MAX);
        nr = c->src->nr_blocks;
    } else if (nr > c->src->nr_blocks) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0,
                   "superblock: %" PRIu64
                   " metadata blocks are recorded, the device has %" PRIu64,
                   nr, c->src->nr_blocks);
        nr = c->src->nr_blocks;
    }
    if (nr > METADATA_BLOCKS_MAX)
        nr = METADATA_BLOCKS_MAX;
    c->res->metadata_blocks = nr;

    /* Each 16320 data blocks need a bitmap of their own: more is not possible. */
    c->nr_data = sb->data_sm.nr_blocks;
    if (c->nr_data > DATA_BLOCK_NR_MAX + 1 || c->nr_data / BITMAP_ENTRIES > nr) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_SUPERBLOCK, 0,
                   "superblock: %" PRIu64 " data blocks cannot be counted in %" PRIu64
                   " metadata blocks",
                   c->nr_data, nr);
        c->nr_data = nr * BITMAP_ENTRIES;
    }
    c->res->data_blocks = c->nr_data;
}

static int
check_held_superblock(struct trees *t, mblock_t where, struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    struct check *c = t->c;
    struct thin_error words;
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "check the held superblock");
    if (!walk_count_block(&c->walk, where, REPORT_AT_HELD, "held superblock"))
        return 0;
    thin_error_init(&words);
    r = source_read(c->src, where, block, &words);
    if (r == 0)
        r = block_check(BLOCK_SUPERBLOCK, block, where, &words);
    if (r < 0) {
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_HELD, where, "held superblock: %s",
                   thin_error_text(&words, r));
        c->walk.nr_damaged++;
        return 0;
    }
    superblock_decode(&t->held, block);
    t->have_held = true;
    if (c->opts->metadata_snap)
        c->res->trans_id = t->held.trans_id;
    if (t->held.held_root)
        report_add(c->rep, REPORT_NOTE, REPORT_AT_HELD, where,
                   "held superblock %" PRIu64 " names a held root of its own, %" PRIu64,
                   where, t->held.held_root);
    if (t->held.data_block_size != c->res->sb.data_block_size)
        report_add(c->rep, REPORT_DAMAGE, REPORT_AT_HELD, where,
                   "held superblock %" PRIu64 ": data blocks of %" PRIu32
                   " sectors, the pool has %" PRIu32,
                   where, t->held.data_block_size, c->res->sb.data_block_size);
    return 0;
}

/* ---- devices --------------------------------------------------------------------------- */

/* Which sets a shared leaf belongs to: owner 0 is the live tree, 1 the held one. */
static unsigned
sets_of(const struct walk_node *node)
{
    if (node->flags & WALK_MANY)
        return LIVE | HELD;
    return node->owner == 0 ? LIVE : HELD;
}

static int
more_room(void **array, size_t nr, size_t *room, size_t size)
{
    size_t wanted = *room ? *room * 2 : 64;
    void *bigger;

    if (nr < *room)
        return 0;
    bigger = realloc(*array, wanted * size);
    if (!bigger)
        return -ENOMEM;
    *array = bigger;
    *room = wanted;
    return 0;
}

static bool
id_fits(struct check *c, enum report_place place, mblock_t block, uint64_t id)
{
    if (id <= DEV_ID_MAX)
        return true;
    report_add(c->rep, REPORT_DAMAGE, place, block,
               "node %" PRIu64 ": device id %" PRIu64 " is greater than %u", block, id,
               DEV_ID_MAX);
    return false;
}

static int
details_leaf(void *arg, struct walk_node *node, const uint8_t *data)
{
    struct trees *t = arg;
    uint32_t nr = node_nr_entries(data);

    for (uint32_t i = 0; i < nr; i++) {
        struct check_details d = {.dev_id = node_key(data, i), .sets = sets_of(node)};
        void *array = t->details;

        if (!id_fits(t->c, REPORT_AT_DETAILS, node->block, d.dev_id))
            break;
        device_details_decode(&d.details, node_value(data, i));
        if (more_room(&array, t->nr_details, &t->room_details, sizeof(d)) < 0)
            return -ENOMEM;
        t->details = array;
        t->details[t->nr_details++] = d;
    }
    return 0;
}

static int
top_leaf(void *arg, struct walk_node *node, const uint8_t *data)
{
    struct trees *t = arg;
    uint32_t nr = node_nr_entries(data);

    for (uint32_t i = 0; i < nr; i++) {
        struct check_device d = {.dev_id = node_key(data, i),
                                 .root = node_value64(data, i),
                                 .sets = sets_of(node)};
        void *array = t->devices;

        if (!id_fits(t->c, REPORT_AT_TOP, node->block, d.dev_id))
            break;
        if (more_room(&array, t->nr_devices, &t->room_devices, sizeof(d)) < 0)
            return -ENOMEM;
        t->devices = array;
        t->devices[t->nr_devices++] = d;
    }
    return 0;
}

static int
compare_devices(const void *pa, const void *pb)
{
    const struct check_device *a = pa, *b = pb;

    if (a->dev_id != b->dev_id)
        return (a->dev_id > b->dev_id) - (a->dev_id < b->dev_id);
    return (a->sets > b->sets) - (a->sets < b->sets);
}

static int
compare_details(const void *pa, const void *pb)
{
    const struct check_details *a = pa, *b = pb;

    if (a->dev_id != b->dev_id)
        return (a->dev_id > b->dev_id) - (a->dev_id < b->dev_id);
    return (a->sets > b->sets) - (a->sets < b->sets);
}

/* Two-tree walk of one kind: the live root and the held one, as far as wanted. */
static int
walk_pair(struct trees *t, enum walk_tree tree, mblock_t live, mblock_t held,
          walk_leaf_fn *leaf)
{
    struct walk_root roots[2];
    size_t nr = 0;

    if (!t->c->opts->metadata_snap)
        roots[nr++] = (struct walk_root){live, 0};
    if (t->have_held)
        roots[nr++] = (struct walk_root){held, 1};
    return walk_trees(&t->c->walk, tree, roots, nr, leaf, t);
}

/* ---- mappings ---------------------------------------------------------------------------- */

static void
bad_mapping(struct trees *t, struct walk_node *node, const uint8_t *data, uint32_t i)
{
    struct check *c = t->c;
    uint64_t value = node_value64(data, i);
    char path[128];

    if (!(node->flags & WALK_DAMAGED))
        c->walk.nr_damaged++;
    node->flags |= WALK_DAMAGED;
    report_add(c->rep, REPORT_DAMAGE, REPORT_AT_MAPPING, node->block,
               "node %" PRIu64 ": virtual block %" PRIu64
               " is mapped to data block %" PRIu64 " of %" PRIu64 " (path %s)",
               node->block, node_key(data, i), mapping_block(value), c->nr_data,
               walk_path(&c->walk, node, path, sizeof(path)));
}

/* Nothing is wrong with the block; but whether it is shared can be misjudged. */
static void
note_ahead(struct check *c, mblock_t node, uint32_t time)
{
    if (c->nr_ahead++ == 0)
        c->first_ahead = node;
    c->time_ahead = (uint32_t)max_u64(c->time_ahead, time);
}

static int
mapping_leaf(void *arg, struct walk_node *node, const uint8_t *data)
{
    struct trees *t = arg;
    struct check *c = t->c;
    uint32_t nr = node_nr_entries(data);
    const uint8_t *values = node_value(data, 0);
    uint32_t time = c->res->sb.time;
    bool told = false;
    struct counts_near near = {0};

    c->res->nr_mappings += nr;
    for (uint32_t i = 0; i < nr; i++) {
        uint64_t value = load_le64(values + 8 * (size_t)i);
        dblock_t b = mapping_block(value);

        if (__builtin_expect(mapping_time(value) > time, 0))
            note_ahead(c, node->block, mapping_time(value));
        if (__builtin_expect(b >= c->nr_data, 0)) {
            if (!told)
                bad_mapping(t, node, data, i);
            told = true;
            continue;
        }
        if (counts_inc_near(&c->res->data, &near, b) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* Each range below `root` that damage takes away, from the tainted nodes only. */
struct taint {
    struct trees *t;
    const struct check_device *dev;
};

static int
find_affected(struct taint *ta, mblock_t b, uint64_t lo, uint64_t last, unsigned height)
{
    struct check *c = ta->t->c;
    AUTO_FREE uint8_t *data = NULL;
    const struct walk_node *node = walk_find(&c->walk, b);
    struct affected a = {.dev_id = ta->dev->dev_id,
                         .held = ta->dev->sets == HELD,
                         .begin = lo,
                         .last = last,
                         .block = b};
    bool usable;

    if (c->rep->nr_affected_all >= REPORT_AFFECTED_MAX)
        return 0;
    if (node && node->tree == WALK_MAPPING && node->height == height &&
        !(node->flags & (WALK_DAMAGED | WALK_PARTIAL)))
        return 0;
    data = malloc(METADATA_BLOCK_SIZE);
    if (!data)
        return -ENOMEM;
    usable = node && node->height == height && height > 0 &&
             (node->flags & WALK_PARTIAL) && source_read(c->src, b, data, NULL) == 0 &&
             block_check(BLOCK_NODE, data, b, NULL) == 0 &&
             node_judge(data, VALUE_SIZE_MAPPING, NULL) == 0 && !node_is_leaf(data);
    if (!usable) {
        report_affected(c->rep, &a);
        return 0;
    }
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        uint64_t next = i + 1 < nr ? node_key(data, i + 1) - 1 : last;
        int r =
            find_affected(ta, node_value64(data, i), node_key(data, i), next, height - 1);

        if (r < 0)
            return r;
    }
    return 0;
}

static int
name_affected(struct trees *t)
{
    for (size_t i = 0; i < t->nr_devices; i++) {
        struct taint ta = {t, &t->devices[i]};
        const struct walk_node *root = walk_find(&t->c->walk, t->devices[i].root);
        int r = find_affected(&ta, t->devices[i].root, 0, UINT64_MAX,
                              root ? root->height : 0);

        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- details against trees ----------------------------------------------------------------- */

static void
add_miscount(struct check *c, uint64_t dev_id, uint64_t mapped_blocks)
{
    struct check_result *res = c->res;
    void *array = res->miscounts;

    if (more_room(&array, res->nr_miscounts, &res->room_miscounts,
                  sizeof(*res->miscounts)) < 0) {
        c->rep->no_memory = true;
        return;
    }
    res->miscounts = array;
    res->miscounts[res->nr_miscounts++] = (struct check_miscount){dev_id, mapped_blocks};
}

static void
compare_one(struct trees *t, const struct check_device *dev,
            const struct check_details *det, unsigned set)
{
    const char *whose = set == HELD ? "held " : "";
    struct check *c = t->c;
    const struct walk_node *root = walk_find(&c->walk, dev->root);
    const struct device_details *d = &det->details;

    if (d->creation_time > c->res->sb.time || d->snapshotted_time > c->res->sb.time)
        report_add(c->rep, REPORT_NOTE, REPORT_AT_DETAILS, dev->dev_id,
                   "%sdevice %" PRIu64 ": created at time %" PRIu32
                   ", snapshotted at %" PRIu32 ", the pool's time is %" PRIu32,
                   whose, dev->dev_id, d->creation_time, d->snapshotted_time,
                   c->res->sb.time);
    if (c->opts->skip_mappings || !root || root->tree != WALK_MAPPING ||
        (root->flags & (WALK_DAMAGED | WALK_PARTIAL)))
        return;
    if (root->total == d->mapped_blocks)
        return;
    if (set == LIVE)
        add_miscount(c, dev->dev_id, root->total);
    report_add(c->rep, REPORT_DAMAGE, REPORT_AT_DETAILS, dev->dev_id,
               "%sdevice %" PRIu64 ": %" PRIu64
               " mapped blocks are recorded, its tree holds %" PRIu64,
               whose, dev->dev_id, d->mapped_blocks, root->total);
}

/* The two trees of one set must hold the same ids. */
static void
compare_ids(struct trees *t, unsigned set, bool details_whole, bool top_whole)
{
    struct check *c = t->c;
    const char *whose = set == HELD ? "held " : "";
    size_t i = 0, j = 0;

    while (i < t->nr_devices || j < t->nr_details) {
        const struct check_device *dev = i < t->nr_devices ? &t->devices[i] : NULL;
        const struct check_details *det = j < t->nr_details ? &t->details[j] : NULL;

        if (dev && !(dev->sets & set)) {
            i++;
        } else if (det && !(det->sets & set)) {
            j++;
        } else if (dev && det && dev->dev_id == det->dev_id) {
            compare_one(t, dev, det, set);
            i++;
            j++;
        } else if (dev && (!det || dev->dev_id < det->dev_id)) {
            if (details_whole)
                report_add(c->rep, REPORT_DAMAGE, REPORT_AT_DETAILS, dev->dev_id,
                           "%sdevice %" PRIu64 " has mappings and no details", whose,
                           dev->dev_id);
            i++;
        } else if (det) {
            if (top_whole)
                report_add(c->rep, REPORT_DAMAGE, REPORT_AT_TOP, det->dev_id,
                           "%sdevice %" PRIu64 " has details and no mapping tree", whose,
                           det->dev_id);
            j++;
        }
    }
}

static int
walk_mappings(struct trees *t)
{
    AUTO_FREE struct walk_root *roots = NULL;
    struct check *c = t->c;
    int r;

    if (t->nr_devices) {
        roots = malloc(t->nr_devices * sizeof(*roots));
        if (!roots)
            return -ENOMEM;
    }
    for (size_t i = 0; i < t->nr_devices; i++)
        roots[i] = (struct walk_root){t->devices[i].root, (uint32_t)i};
    r = walk_trees(&c->walk, WALK_MAPPING, roots, t->nr_devices, mapping_leaf, t);
    if (c->nr_ahead)
        report_add(c->rep, REPORT_NOTE, REPORT_AT_MAPPING, c->first_ahead,
                   "%" PRIu64 " mappings have a time ahead of the pool's, up to %" PRIu32
                   " of %" PRIu32 " (the first in node %" PRIu64
                   "): what they share can be misjudged; a repair sets the clock right",
                   c->nr_ahead, c->time_ahead, c->res->sb.time, c->first_ahead);
    return r < 0 ? r : walk_sum(&c->walk, WALK_MAPPING);
}

static int
check_trees(struct trees *t, struct thin_error *err)
{
    struct check *c = t->c;
    const struct superblock *sb = &c->res->sb;
    uint64_t damaged, details_damaged, top_damaged;
    int r = 0;

    if (c->opts->metadata_snap || sb->held_root) {
        mblock_t where = c->opts->metadata_snap && c->opts->snap_block
                             ? c->opts->snap_block
                             : sb->held_root;

        if (!where)
            return thin_fail(err, -THIN_E_NOT_FOUND, "no metadata snapshot is held");
        r = check_held_superblock(t, where, err);
        if (r < 0)
            return r;
    }
    damaged = c->walk.nr_damaged;
    r = walk_pair(t, WALK_DETAILS, sb->device_details_root, t->held.device_details_root,
                  details_leaf);
    details_damaged = c->walk.nr_damaged - damaged;
    if (r >= 0)
        r = walk_pair(t, WALK_TOP, sb->data_mapping_root, t->held.data_mapping_root,
                      top_leaf);
    top_damaged = c->walk.nr_damaged - damaged - details_damaged;
    if (r < 0)
        return thin_fail_code(err, r, "walk the trees");
    if (t->nr_devices)
        qsort(t->devices, t->nr_devices, sizeof(*t->devices), compare_devices);
    if (t->nr_details)
        qsort(t->details, t->nr_details, sizeof(*t->details), compare_details);
    c->res->nr_devices = t->nr_devices;
    if (!c->opts->skip_mappings) {
        r = walk_mappings(t);
        if (r >= 0 && c->walk.nr_damaged)
            r = name_affected(t);
        if (r < 0)
            return thin_fail_code(err, r, "walk the mapping trees");
        r = check_sweep_settle(c, err);
        if (r < 0)
            return r;
    }
    if (!c->opts->metadata_snap)
        compare_ids(t, LIVE, !details_damaged, !top_damaged);
    if (t->have_held)
        compare_ids(t, HELD, !details_damaged, !top_damaged);
    return 0;
}

static int
check_all(struct check *c, struct thin_error *err)
{
    struct trees t = {.c = c};
    int r = counts_init(&c->res->data, c->nr_data);

    if (r >= 0)
        r = walk_init(&c->walk, c->src, c->res->metadata_blocks, c->rep);
    if (r < 0)
        return thin_fail_code(err, r, "check");
    c->walk.lax = c->opts->ignore_non_fatal;
    if (counts_inc(&c->walk.refs, SUPERBLOCK_LOCATION) < 0)
        return thin_fail_code(err, -ENOMEM, "check");
    /* The held snapshot and a look without mappings need a part of it only. */
    if (!c->opts->metadata_snap && !c->opts->skip_mappings)
        r = check_sweep(c, c->res->sb.metadata_sm.bitmap_root, err);
    if (r >= 0)
        r = check_trees(&t, err);
    free(t.devices);
    free(t.details);
    /* The held snapshot has no space maps of its own. */
    if (r < 0 || c->opts->metadata_snap)
        return r;
    c->res->trees_known = !c->opts->skip_mappings && !c->walk.nr_damaged;
    r = counts_copy(&c->res->tree_refs, &c->walk.refs);
    if (r >= 0)
        r = check_data_space_map(c);
    if (r >= 0)
        r = check_metadata_space_map(c);
    if (r < 0)
        return thin_fail_code(err, r, "check the space maps");
    return 0;
}

int
check_run(struct meta_source *src, const struct check_options *opts, struct report *rep,
          struct check_result *ret, struct thin_error *err)
{
    struct check c = {.src = src, .opts = opts, .rep = rep, .res = ret};
    int r;

    memset(ret, 0, sizeof(*ret));
    r = check_superblock(&c, err);
    if (r < 0 || !ret->sb_good || opts->super_block_only)
        return r;
    judge_sizes(&c);
    source_reads_for(src, "metadata blocks checked",
                     opts->metadata_snap ? 0
                                         : min_u64(ret->sb.metadata_sm.nr_allocated,
                                                   ret->metadata_blocks));
    r = check_all(&c, err);
    check_sweep_fini(&c);
    /* The counts outlive the walk: repairs are made of them. */
    ret->refs = c.walk.refs;
    memset(&c.walk.refs, 0, sizeof(c.walk.refs));
    walk_fini(&c.walk);
    report_sort(rep);
    if (r >= 0 && rep->no_memory)
        r = thin_fail_code(err, -ENOMEM, "check: not all findings could be kept");
    return r;
}
