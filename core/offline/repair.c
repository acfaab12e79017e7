#include "core/offline/repair.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/ondisk/node.h"
#include "core/ondisk/trailer.h"

const char *
repair_origin_name(enum repair_origin origin)
{
    static const char *const names[] = {"own tree", "found in use", "older version",
                                        "nothing found"};

    return names[origin];
}

void
repair_plan_fini(struct repair_plan *plan)
{
    for (size_t i = 0; i < plan->pool.nr_devices; i++)
        free(plan->pool.devices[i].extra);
    live_close(&plan->pool);
    free(plan->devices);
    report_fini(&plan->lost);
    scan_fini(&plan->scan);
    memset(plan, 0, sizeof(*plan));
}

struct live_device *
repair_device(struct repair_plan *plan, uint64_t dev_id)
{
    struct live_pool *pool = &plan->pool;
    size_t at = pool->nr_devices, lo = 0;

    while (lo < at) {
        size_t mid = lo + (at - lo) / 2;

        if (pool->devices[mid].dev_id < dev_id)
            lo = mid + 1;
        else
            at = mid;
    }
    if (at < pool->nr_devices && pool->devices[at].dev_id == dev_id)
        return &pool->devices[at];
    if (pool->nr_devices == pool->room) {
        size_t room = pool->room ? pool->room * 2 : 64;
        struct live_device *bigger = realloc(pool->devices, room * sizeof(*bigger));

        if (!bigger)
            return NULL;
        pool->devices = bigger;
        pool->room = room;
    }
    memmove(pool->devices + at + 1, pool->devices + at,
            (pool->nr_devices - at) * sizeof(*pool->devices));
    pool->nr_devices++;
    pool->devices[at] = (struct live_device){.dev_id = dev_id};
    return &pool->devices[at];
}

/* ---- superblock ----------------------------------------------------------------------- */

static int
lost_superblock(struct repair_plan *plan, const struct build_override *over,
                struct thin_error *err)
{
    plan->superblock_lost = true;
    if (!over->have_trans_id || !over->have_data_block_size || !over->have_nr_data_blocks)
        return thin_fail(
            err, -THIN_E_INVALID,
            "the superblock is lost: --transaction-id, --data-block-size and "
            "--nr-data-blocks must say what it held");
    plan->pool.sb = (struct superblock){
        .version = SUPERBLOCK_VERSION,
        .trans_id = over->trans_id,
        .metadata_block_size = METADATA_BLOCK_SECTORS,
    };
    return 0;
}

/* `kept`: a superblock that stands in for the device's own, or NULL. */
static int
find_superblock(struct repair_plan *plan, struct meta_source *src,
                const struct build_override *over, const void *kept,
                struct thin_error *err)
{
    AUTO_FREE uint8_t *block = calloc(1, METADATA_BLOCK_SIZE);
    struct superblock *sb = &plan->pool.sb;
    struct thin_error why;
    bool good;
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "repair");
    thin_error_init(&why);
    if (kept)
        memcpy(block, kept, METADATA_BLOCK_SIZE);
    good = (kept || source_read(src, SUPERBLOCK_LOCATION, block, &why) == 0) &&
           superblock_is_thin(block) &&
           block_check(BLOCK_SUPERBLOCK, block, SUPERBLOCK_LOCATION, &why) == 0;
    if (good) {
        superblock_decode(sb, block);
        good = superblock_judge(sb, true, &why) == 0;
    }
    /* The trailer has a checksum of its own: it may be good where the rest is not. */
    if (superblock_is_thin(block))
        memcpy(plan->trailer, block + SUPERBLOCK_TRAILER_OFFSET, sizeof(plan->trailer));
    if (!good) {
        r = lost_superblock(plan, over, err);
        if (r < 0)
            return r;
    }
    if (!good || sb->time > POOL_TIME_MAX) {
        plan->time_lost = true;
        sb->time = POOL_TIME_MAX; /* until the survey tells */
    }
    if (over->have_trans_id)
        sb->trans_id = over->trans_id;
    if (over->have_data_block_size)
        sb->data_block_size = (uint32_t)min_u64(over->data_block_size, UINT32_MAX);
    if (over->have_nr_data_blocks)
        sb->data_sm.nr_blocks = over->nr_data_blocks;
    plan->pool.nr_blocks = good ? sb->metadata_sm.nr_blocks : src->nr_blocks;
    if (plan->pool.nr_blocks == 0 || plan->pool.nr_blocks > src->nr_blocks)
        plan->pool.nr_blocks = src->nr_blocks;
    plan->pool.nr_blocks = min_u64(plan->pool.nr_blocks, METADATA_BLOCKS_MAX);
    return superblock_judge(sb, true, err);
}

/* ---- the superblock's own trees ----------------------------------------------------------- */

static int
top_seen(void *arg, const struct leaf_ref *ref, const uint8_t *data)
{
    struct repair_plan *plan = arg;

    (void)ref;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        struct live_device *dev;

        if (node_key(data, i) > DEV_ID_MAX)
            break;
        dev = repair_device(plan, node_key(data, i));
        if (!dev)
            return -ENOMEM;
        dev->root = node_value64(data, i);
    }
    return 0;
}

static int
details_seen(void *arg, const struct leaf_ref *ref, const uint8_t *data)
{
    struct repair_plan *plan = arg;

    (void)ref;
    for (uint32_t i = 0, nr = node_nr_entries(data); i < nr; i++) {
        struct live_device *dev;

        if (node_key(data, i) > DEV_ID_MAX)
            break;
        dev = repair_device(plan, node_key(data, i));
        if (!dev)
            return -ENOMEM;
        device_details_decode(&dev->details, node_value(data, i));
        dev->have_details = true;
    }
    return 0;
}

static int
read_own_trees(struct repair_plan *plan, bool *ret_top_whole, bool *ret_details_whole,
               struct thin_error *err)
{
    struct live_pool *pool = &plan->pool;
    uint64_t skipped = 0;
    struct tree_shape tree = {.src = pool->src,
                              .nr_blocks = pool->nr_blocks,
                              .value_size = VALUE_SIZE_MAPPING,
                              .lenient = true,
                              .nr_skipped = &skipped};
    int r;

    *ret_top_whole = *ret_details_whole = false;
    if (plan->superblock_lost)
        return 0;
    r = leaves_each(&tree, pool->sb.data_mapping_root, top_seen, plan, err);
    *ret_top_whole = skipped == 0;
    skipped = 0;
    tree.value_size = VALUE_SIZE_DETAILS;
    if (r >= 0)
        r = leaves_each(&tree, pool->sb.device_details_root, details_seen, plan, err);
    *ret_details_whole = skipped == 0;
    return r;
}

/* ---- survey: what each device will have ----------------------------------------------------- */

struct survey {
    struct repair_plan *plan;
    size_t at; /* device */
    uint32_t max_time;
};

static int
count_run(void *arg, const struct ir_run *run)
{
    struct survey *s = arg;

    s->plan->devices[s->at].recovered += run->len;
    if (run->time > s->max_time)
        s->max_time = run->time;
    return 0;
}

static const struct ir_visitor counter = {.run = count_run};

static void
note_lost(void *arg, const struct leaf_ref *ref)
{
    struct survey *s = arg;
    const struct live_device *dev = &s->plan->pool.devices[s->at];
    struct affected a = {.dev_id = dev->dev_id,
                         .begin = ref->lo,
                         .last = ref->last,
                         .block = ref->block ? ref->block : dev->lost_root};

    /* An empty device has lost nothing with its root. */
    if (dev->have_details && dev->details.mapped_blocks == 0)
        return;
    s->plan->devices[s->at].nr_lost_ranges++;
    report_affected(&s->plan->lost, &a);
}

static int
survey(struct repair_plan *plan, struct thin_error *err)
{
    struct live_pool *pool = &plan->pool;
    struct tree_shape tree = live_mapping_tree(pool, true);
    struct survey s = {.plan = plan};
    int r = 0;

    report_fini(&plan->lost);
    plan->recovered = 0;
    if (plan->time_lost)
        pool->sb.time = POOL_TIME_MAX;
    tree.skipped = note_lost;
    tree.skipped_arg = &s;
    for (size_t i = 0; i < pool->nr_devices && r >= 0; i++) {
        struct repair_device *rep = &plan->devices[i];
        struct live_device *dev = &pool->devices[i];

        s.at = i;
        rep->recovered = 0;
        rep->nr_lost_ranges = 0;
        r = live_read_device(pool, &tree, dev, &counter, &s, err);
        plan->recovered += rep->recovered;
        if (dev->have_details)
            s.max_time =
                (uint32_t)max_u64(s.max_time, max_u64(dev->details.creation_time,
                                                      dev->details.snapshotted_time));
    }
    /* The clock must not stand behind anything: what is shared is told by it. */
    if (r >= 0 && (plan->time_lost || s.max_time > pool->sb.time))
        pool->sb.time = s.max_time;
    return r;
}

static bool
survey_is_whole(const struct repair_plan *plan)
{
    for (size_t i = 0; i < plan->pool.nr_devices; i++)
        if (plan->devices[i].nr_lost_ranges || !plan->pool.devices[i].have_details ||
            !plan->pool.devices[i].root)
            return false;
    return true;
}

static int
make_device_plans(struct repair_plan *plan, struct thin_error *err)
{
    free(plan->devices);
    plan->devices = calloc(plan->pool.nr_devices + 1, sizeof(*plan->devices));
    return plan->devices ? 0 : thin_fail_code(err, -ENOMEM, "repair");
}

/* ---- the plan ---------------------------------------------------------------------------------- */

/*
 * A device without a record gets one that errs to the safe side: with the present time
 * as the time of its last snapshot every block counts as shared, and writes copy it.
 */
static void
make_details(struct repair_plan *plan)
{
    for (size_t i = 0; i < plan->pool.nr_devices; i++) {
        struct live_device *dev = &plan->pool.devices[i];

        if (dev->have_details)
            continue;
        plan->devices[i].details_made = true;
        dev->have_details = true;
        dev->details = (struct device_details){
            .mapped_blocks = plan->devices[i].recovered,
            .transaction_id = plan->pool.sb.trans_id,
            .creation_time = 0,
            .snapshotted_time = plan->pool.sb.time,
        };
    }
}

static void
clamp_times(struct repair_plan *plan)
{
    uint32_t time = plan->pool.sb.time;

    for (size_t i = 0; i < plan->pool.nr_devices; i++) {
        struct device_details *d = &plan->pool.devices[i].details;

        if (d->creation_time > time)
            d->creation_time = time;
        if (d->snapshotted_time > time)
            d->snapshotted_time = time;
    }
}

static int
search_all(struct repair_plan *plan, bool top_whole, bool details_whole,
           struct thin_error *err)
{
    struct live_pool *pool = &plan->pool;
    mblock_t index_block = plan->superblock_lost ? 0 : pool->sb.metadata_sm.bitmap_root;
    int r = scan_run(&plan->scan, pool->src, pool->nr_blocks, index_block);

    if (r < 0)
        return thin_fail_code(err, r, "scan the metadata device");
    plan->scanned = true;
    r = repair_search(plan, top_whole, details_whole, err);
    if (r >= 0)
        r = make_device_plans(plan, err);
    if (r >= 0)
        r = survey(plan, err);
    if (r >= 0 && plan->scan.counts_known && !survey_is_whole(plan)) {
        r = repair_fill_gaps(plan, err);
        if (r >= 0)
            r = survey(plan, err);
    }
    if (r >= 0 && repair_take_fuller(plan))
        r = survey(plan, err);
    return r;
}

/* After the search: what became of each device's root. */
static void
name_origins(struct repair_plan *plan)
{
    for (size_t i = 0; i < plan->pool.nr_devices; i++) {
        struct live_device *dev = &plan->pool.devices[i];

        plan->devices[i].origin =
            dev->root == 0 ? REPAIR_NOTHING : (enum repair_origin)dev->origin;
        if (dev->nr_extra && plan->devices[i].origin != REPAIR_OLDER)
            plan->devices[i].origin = REPAIR_FOUND;
    }
}

/* As far as the superblock's own trees lead: `kept` in its place, or NULL. */
static int
plan_begin(struct repair_plan *plan, struct meta_source *src,
           const struct build_override *over, const void *kept, bool *ret_top_whole,
           bool *ret_details_whole, struct thin_error *err)
{
    int r;

    memset(plan, 0, sizeof(*plan));
    plan->pool.src = src;
    r = find_superblock(plan, src, over, kept, err);
    if (r >= 0)
        r = read_own_trees(plan, ret_top_whole, ret_details_whole, err);
    if (r >= 0)
        r = make_device_plans(plan, err);
    if (r >= 0)
        r = survey(plan, err);
    if (r >= 0)
        plan->trees_whole = *ret_top_whole && *ret_details_whole && survey_is_whole(plan);
    return r;
}

/* Each device has as many mappings as its record says: no node of another time has come
   to the place of an older one. */
static bool
records_agree(const struct repair_plan *plan)
{
    for (size_t i = 0; i < plan->pool.nr_devices; i++)
        if (plan->pool.devices[i].details.mapped_blocks != plan->devices[i].recovered)
            return false;
    return true;
}

/* Two trailers of one pool, as far as they can tell. */
static bool
same_pool(const uint8_t *a, const uint8_t *b)
{
    struct catalogue_trailer one, other;
    bool found_one = false, found_other = false;

    if (catalogue_trailer_decode(a, &one, &found_one, NULL) < 0 ||
        catalogue_trailer_decode(b, &other, &found_other, NULL) < 0 || !found_one ||
        !found_other)
        return true;
    return memcmp(one.uuid, other.uuid, sizeof(one.uuid)) == 0;
}

/*
 * The newest of the kept superblocks whose trees are whole; 1: there is one, and it is the
 * plan now. It may be some transactions older than what was lost.
 */
static int
try_kept(struct repair_plan *plan, struct meta_source *src,
         const struct build_override *over, const struct kept *kept,
         struct thin_error *err)
{
    for (unsigned i = 0; kept && i < kept->nr; i++) {
        bool top_whole = false, details_whole = false;
        const uint8_t *block = kept->all[i].block;
        struct repair_plan older;
        int r;

        if (!same_pool(plan->trailer, block + SUPERBLOCK_TRAILER_OFFSET))
            continue;
        r = plan_begin(&older, src, over, block, &top_whole, &details_whole, err);

        if (r >= 0 && older.trees_whole && !older.superblock_lost &&
            records_agree(&older)) {
            repair_plan_fini(plan);
            *plan = older;
            plan->from_kept = true;
            plan->kept_unix_s = kept->all[i].unix_s;
            return 1;
        }
        repair_plan_fini(&older);
        if (r == -ENOMEM || r == -THIN_E_CANCELLED)
            return r;
    }
    return 0;
}

int
repair_plan_make(struct repair_plan *plan, struct meta_source *src,
                 const struct build_override *over, const struct kept *kept,
                 struct thin_error *err)
{
    static const struct build_override nothing;
    bool top_whole = false, details_whole = false;
    int r, found;

    over = over ? over : &nothing;
    r = plan_begin(plan, src, over, NULL, &top_whole, &details_whole, err);
    found = r >= 0 && plan->trees_whole ? 0 : try_kept(plan, src, over, kept, err);
    if (found < 0)
        return found;
    if (found == 0 && (r < 0 || plan->superblock_lost) && kept && kept->nr > 0) {
        /* None is whole; the newest still says what the device held. */
        repair_plan_fini(plan);
        r = plan_begin(plan, src, over, kept->all[0].block, &top_whole, &details_whole,
                       err);
        plan->from_kept = true;
        plan->kept_unix_s = kept->all[0].unix_s;
    } else if (found == 1) {
        r = 0;
    }
    if (r < 0)
        return r;
    if (!plan->trees_whole) {
        r = search_all(plan, top_whole, details_whole, err);
        if (r < 0)
            return r;
    }
    if (plan->superblock_lost && !plan->pool.nr_devices)
        return thin_fail(err, -THIN_E_NOT_FOUND,
                         "neither a superblock nor any tree of a pool was found");
    name_origins(plan);
    make_details(plan);
    clamp_times(plan);
    return 0;
}

int
repair_plan_feed(struct repair_plan *plan, const struct ir_visitor *visitor, void *arg,
                 struct thin_error *err)
{
    struct live_options opts = {.lenient = true};

    return live_feed(&plan->pool, &opts, visitor, arg, err);
}
