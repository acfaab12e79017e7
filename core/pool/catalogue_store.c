/* Changes of the log: encoding, room, and what follows in memory. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/pool/catalogue_private.h"

uint64_t
catalogue_pages_for(uint64_t live_bytes)
{
    /* Two neighbouring pages hold more than one page's payload together, or the second
       one's first record would stand in the first. */
    return 2 * live_bytes / CATALOGUE_PAYLOAD_BYTES + 1;
}

uint64_t
catalogue_spare_need(const struct catalogue *cat, uint64_t more_bytes, uint64_t more_nr)
{
    uint64_t nr = cat->records.by_id.nr_items + more_nr;

    return catalogue_pages_for(cat->records.live_bytes + more_bytes +
                               nr * CATALOGUE_ALLOWANCE) +
           CATALOGUE_KEEP;
}

/* ---- a change ------------------------------------------------------------------------------ */

void
catalogue_change_put(struct catalogue_change *change, struct catalogue_record *record)
{
    THIN_ASSERT(change->nr < CATALOGUE_CHANGE_MAX);
    change->items[change->nr].record = record;
    change->items[change->nr].dev_id = record->dev_id;
    change->nr++;
}

void
catalogue_change_remove(struct catalogue_change *change, uint32_t dev_id)
{
    THIN_ASSERT(change->nr < CATALOGUE_CHANGE_MAX);
    change->items[change->nr].record = NULL;
    change->items[change->nr].dev_id = dev_id;
    change->nr++;
}

void
catalogue_change_fini(struct catalogue_change *change)
{
    for (uint32_t i = 0; i < change->nr; i++)
        catalogue_record_destroy(change->items[i].record);
    free(change->pages);
    memset(change, 0, sizeof(*change));
}

/* Seals the page being filled and opens the next one. */
static void
seal_page(struct catalogue *cat, struct catalogue_change *change, uint32_t len_bytes)
{
    struct catalogue_root *root = &change->root;
    uint8_t *page = change->pages + (size_t)change->nr_pages * CATALOGUE_PAGE_BYTES;

    root->sequence++;
    root->last_crc =
        catalogue_page_seal(page, cat->trailer.uuid, root->first + root->nr_pages,
                            root->sequence, root->last_crc, len_bytes);
    root->nr_pages++;
    change->nr_pages++;
}

int
catalogue_change_encode(struct catalogue *cat, struct catalogue_change *change,
                        struct thin_error *err)
{
    uint8_t one[CATALOGUE_PAYLOAD_BYTES];
    uint32_t len_bytes = 0;
    int r;

    THIN_ASSERT(change->nr > 0);
    THIN_ASSERT(cat->trailer.root.nr_pages > 0);
    free(change->pages);
    change->nr_pages = 0;
    change->root = cat->trailer.root;
    /* At most one record a page. */
    change->pages = calloc(change->nr, CATALOGUE_PAGE_BYTES);
    if (!change->pages)
        return thin_fail_code(err, -ENOMEM, "encode a change of the catalogue");
    r = catalogue_records_reserve(&cat->records, change->nr);
    if (r < 0)
        return thin_fail_code(err, r, "encode a change of the catalogue");

    for (uint32_t i = 0; i < change->nr; i++) {
        struct catalogue_record *record = change->items[i].record;
        uint32_t n;

        if (record) {
            r = catalogue_encode_record(record, one, err);
            if (r < 0)
                return r;
            n = (uint32_t)r;
            record->encoded_bytes = n;
        } else {
            n = catalogue_encode_tombstone(change->items[i].dev_id, one);
        }
        if (len_bytes + n > CATALOGUE_PAYLOAD_BYTES) {
            seal_page(cat, change, len_bytes);
            len_bytes = 0;
        }
        memcpy(change->pages + (size_t)change->nr_pages * CATALOGUE_PAGE_BYTES +
                   CATALOGUE_HEADER_BYTES + len_bytes,
               one, n);
        len_bytes += n;
    }
    seal_page(cat, change, len_bytes);
    return 0;
}

void
catalogue_set_trailer(struct catalogue *cat, const struct catalogue_root *root,
                      uint32_t dev_id)
{
    struct catalogue_trailer trailer = cat->trailer;
    uint8_t bytes[SUPERBLOCK_TRAILER_BYTES];

    trailer.root = *root;
    trailer.dev_id = dev_id;
    trailer.flags = cat->unrecorded ? CATALOGUE_UNRECORDED : 0;
    trailer.stamp = 0; /* filled at the cut */
    catalogue_trailer_encode(&trailer, bytes);
    metadata_set_trailer(cat->pool->md, bytes);
}

void
catalogue_change_set_trailer(struct catalogue *cat, const struct catalogue_change *change)
{
    catalogue_set_trailer(cat, &change->root, cat->trailer.dev_id);
}

void
catalogue_change_apply(struct catalogue *cat, struct catalogue_change *change)
{
    cat->trailer.root = change->root;
    catalogue_change_apply_records(cat, change);
}

void
catalogue_change_apply_records(struct catalogue *cat, struct catalogue_change *change)
{
    for (uint32_t i = 0; i < change->nr; i++) {
        if (change->items[i].record)
            catalogue_records_put(&cat->records, take(change->items[i].record));
        else
            catalogue_records_remove(&cat->records, change->items[i].dev_id);
        catalogue_checkpoint_note(cat, change->items[i].dev_id);
    }
}

/* ---- room ----------------------------------------------------------------------------------- */

enum catalogue_room
catalogue_judge_room(struct catalogue *cat, const struct catalogue_change *change,
                     enum catalogue_growth growth, unsigned *ret_area,
                     uint64_t *ret_blocks)
{
    uint64_t used = cat->trailer.root.nr_pages;
    uint64_t room = area_pages(cat, cat->current) - used;
    uint64_t live = catalogue_pages_for(cat->records.live_bytes);
    uint64_t more_bytes = 0, need;

    if (growth == GROWS_NOT)
        return room >= change->nr_pages ? ROOM_ENOUGH : ROOM_CHECKPOINT;

    for (uint32_t i = 0; i < change->nr; i++)
        if (change->items[i].record)
            more_bytes += change->items[i].record->encoded_bytes;
    need = catalogue_spare_need(cat, more_bytes, change->nr);
    if (growth == GROWS_RECORDS)
        need = catalogue_pages_for(cat->records.live_bytes + more_bytes) + CATALOGUE_KEEP;
    if (area_pages(cat, !cat->current) < need) {
        *ret_area = !cat->current;
        *ret_blocks = div_up_u64(need + CATALOGUE_SLACK, pages_per_block(cat));
        return ROOM_MAP;
    }
    if (room >= change->nr_pages)
        return ROOM_ENOUGH;
    if (used > 2 * live + CATALOGUE_SLACK)
        return ROOM_CHECKPOINT;
    *ret_area = cat->current;
    *ret_blocks =
        div_up_u64(used + change->nr_pages + CATALOGUE_KEEP, pages_per_block(cat));
    return ROOM_MAP;
}

bool
catalogue_wants_checkpoint(const struct catalogue *cat)
{
    uint64_t used = cat->trailer.root.nr_pages;
    uint64_t mapped = area_pages(cat, cat->current);
    uint64_t live = catalogue_pages_for(cat->records.live_bytes);
    uint64_t bound = 2 * live + CATALOGUE_SLACK;

    if (!cat->present || cat->checkpoint->state != CHECKPOINT_IDLE)
        return false;
    /* Dead pages in a block that is mapped anyway cost only time at the next open. */
    if (mapped > CATALOGUE_KEEP)
        bound = max_u64(bound,
                        min_u64(mapped - CATALOGUE_KEEP, 2 * live + CATALOGUE_SLACK_MAX));
    return used > bound;
}

/* ---- mapping ---------------------------------------------------------------------------------- */

static int
map_run(struct metaop *op, struct thin_error *err)
{
    struct catalogue_mapping *m = container_of(op, struct catalogue_mapping, op);
    struct metadata *md = m->cat->pool->md;
    struct catalogue_area *area = &m->cat->areas[m->area];
    uint64_t left = m->nr_blocks > area->nr_blocks ? m->nr_blocks - area->nr_blocks : 0;
    uint32_t wanted = (uint32_t)min_u64(left, CATALOGUE_MAP_BATCH);
    vblock_t vblock = area->begin / pages_per_block(m->cat) + area->nr_blocks;

    m->nr_got = 0;
    /* Another one may have mapped them meanwhile. */
    if (wanted == 0)
        return 0;
    if (catalogue_area_reserve(area, area->nr_blocks + wanted) < 0)
        return thin_fail_code(err, -ENOMEM, "map room for the catalogue");
    while (m->nr_got < wanted) {
        dblock_t begin = 0;
        uint64_t len = 0;
        int r = space_find(m->cat->pool, wanted - m->nr_got, &begin, &len, err);

        if (r < 0)
            return r;
        if (len == 0)
            break;
        for (uint64_t i = 0; i < len; i++) {
            uint64_t value;

            r = metadata_take_data(md, begin + i, err);
            if (r == 0)
                r = metadata_insert(md, m->cat->trailer.dev_id, vblock + m->nr_got,
                                    begin + i, &value, err);
            if (r < 0)
                return r;
            m->got[m->nr_got++] = begin + i;
        }
    }
    if (m->nr_got == 0) {
        struct metadata_space space;

        metadata_data_space(md, &space);
        return thin_fail_code(
            err, space.nr_pending ? -THIN_E_NEED_COMMIT : -THIN_E_NO_DATA_SPACE,
            "map room for the catalogue");
    }
    return 0;
}

static void
map_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct catalogue_mapping *m = container_of(op, struct catalogue_mapping, op);
    struct catalogue_area *area = &m->cat->areas[m->area];

    if (result == 0) {
        for (uint32_t i = 0; i < m->nr_got; i++) {
            /* The operation reserved it. */
            int r = catalogue_area_add(area, m->got[i]);

            THIN_ASSERT(r == 0);
        }
        if (area->nr_blocks < m->nr_blocks) {
            metaop_start(m->cat->pool, op, false);
            return;
        }
    }
    m->done(m, result, err);
}

void
catalogue_map(struct catalogue *cat, struct catalogue_mapping *m)
{
    m->cat = cat;
    memset(&m->op, 0, sizeof(m->op));
    m->op.run = map_run;
    m->op.done = map_done;
    m->op.purse = TM_NORMAL;
    m->op.name = "catalogue map";
    metaop_start(cat->pool, &m->op, false);
}

/* ---- ids ---------------------------------------------------------------------------------------- */

/* The highest id at or below `from` that neither a record nor the hidden device has. */
static bool
free_id_below(const struct catalogue *cat, uint32_t from, uint32_t *ret_id)
{
    for (uint32_t id = from;; id--) {
        if (id != cat->trailer.dev_id && !catalogue_by_id(&cat->records, id)) {
            *ret_id = id;
            return true;
        }
        if (id == 0)
            return false;
    }
}

static bool
free_id_above(const struct catalogue *cat, uint32_t from, uint32_t *ret_id)
{
    for (uint32_t id = from; id <= DEV_ID_MAX; id++)
        if (id != cat->trailer.dev_id && !catalogue_by_id(&cat->records, id)) {
            *ret_id = id;
            return true;
        }
    return false;
}

int
catalogue_pick_id(struct catalogue *cat, uint32_t *ret_id, struct thin_error *err)
{
    bool found;

    if (cat->records.by_id.nr_items >= POOL_VOLUMES_MAX)
        return thin_fail(err, -THIN_E_LIMIT, "the pool has %u volumes, the most it may",
                         POOL_VOLUMES_MAX);
    /* LVM counts upwards: in a pool that may be its, we come from the other end. Ids go
       round before one is used again. */
    if (cat->pool_record.imported)
        found = free_id_below(cat, cat->next_dev_id, ret_id) ||
                free_id_below(cat, DEV_ID_MAX, ret_id);
    else
        found =
            free_id_above(cat, cat->next_dev_id, ret_id) || free_id_above(cat, 1, ret_id);
    if (!found)
        return thin_fail(err, -THIN_E_LIMIT, "every device id is in use");
    return 0;
}

void
catalogue_id_used(struct catalogue *cat, uint32_t dev_id)
{
    if (cat->pool_record.imported)
        cat->next_dev_id = dev_id ? dev_id - 1 : DEV_ID_MAX;
    else
        cat->next_dev_id = dev_id < DEV_ID_MAX ? dev_id + 1 : 1;
}

int
catalogue_pick_hidden_id(const struct catalogue *cat, uint32_t *ret_id,
                         struct thin_error *err)
{
    if (!free_id_below(cat, DEV_ID_MAX, ret_id))
        return thin_fail(err, -THIN_E_LIMIT, "every device id is in use");
    return 0;
}

uint64_t
catalogue_pick_uid(struct catalogue *cat)
{
    uint64_t uid;

    do
        uid = random_u64(&cat->pool->rng);
    while (uid == 0 || catalogue_by_uid(&cat->records, uid));
    return uid;
}
