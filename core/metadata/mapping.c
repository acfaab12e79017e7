/* The trees' value types, and the mapping calls. */
#include <inttypes.h>
#include <stddef.h>

#include "core/base/checked.h"
#include "core/base/log.h"
#include "core/metadata/metadata_private.h"

/* ---- what the trees' values refer to ---------------------------------------------- */

static int
roots_inc(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err)
{
    struct metadata *md = context;

    for (uint32_t i = 0; i < nr; i++) {
        int r = tm_inc(md->tm, load_le64(values + 8 * (size_t)i), 1, err);

        if (r < 0)
            return thin_wrap(err, r, "share a device's root");
    }
    return 0;
}

/*
 * A device's root loses a holder. The last one may only go when the tree is an empty
 * leaf: device trees are trimmed in steps before.
 */
static int
root_dec(struct metadata *md, mblock_t root, struct thin_error *err)
{
    uint32_t count;
    int r;

    r = tm_ref(md->tm, root, &count, err);
    if (r < 0)
        return r;
    if (count == 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "a device's root, metadata block %" PRIu64
                         ", is free in the space map",
                         root);
    if (count == 1) {
        BLOCK_LOCK struct bm_block *b = NULL;
        struct bm_validator v;

        btree_validator(&md->bottom, &v);
        r = tm_read_lock(md->tm, root, &v, &b, err);
        if (r < 0)
            return r;
        if (!node_is_leaf(bm_data(b)) || node_nr_entries(bm_data(b)) != 0)
            return thin_fail(err, -THIN_E_BAD_BLOCK,
                             "the tree at metadata block %" PRIu64
                             " still has mappings and cannot be dropped",
                             root);
    }
    return tm_dec(md->tm, root, err);
}

static int
roots_dec(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err)
{
    for (uint32_t i = 0; i < nr; i++) {
        int r = root_dec(context, load_le64(values + 8 * (size_t)i), err);

        if (r < 0)
            return thin_wrap(err, r, "drop a device's root");
    }
    return 0;
}

static bool
roots_are_replaced(void *context, const uint8_t *a, const uint8_t *b)
{
    (void)context;
    (void)a;
    (void)b;
    return true;
}

/* Calls `change` for each run of neighbouring data blocks. */
static int
data_runs(struct metadata *md, const uint8_t *values, uint32_t nr,
          int (*change)(struct space_map *sm, dblock_t begin, dblock_t end,
                        struct thin_error *err),
          struct thin_error *err)
{
    uint32_t i = 0;

    while (i < nr) {
        dblock_t begin = mapping_block(load_le64(values + 8 * (size_t)i));
        dblock_t end = begin + 1;
        int r;

        for (i++; i < nr && mapping_block(load_le64(values + 8 * (size_t)i)) == end; i++)
            end++;
        r = change(md->data_sm, begin, end, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int
mappings_inc(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err)
{
    return data_runs(context, values, nr, sm_inc, err);
}

static int
mappings_dec(void *context, const uint8_t *values, uint32_t nr, struct thin_error *err)
{
    return data_runs(context, values, nr, sm_dec, err);
}

static bool
mappings_equal(void *context, const uint8_t *a, const uint8_t *b)
{
    (void)context;
    return mapping_block(load_le64(a)) == mapping_block(load_le64(b));
}

void
trees_init(struct metadata *md)
{
    const struct btree plain = {
        .tm = md->tm,
        .leaf_max = md->params.leaf_max,
        .internal_max = md->params.internal_max,
    };

    md->top = plain;
    md->top.value = (struct btree_value_type){
        .size = VALUE_SIZE_MAPPING, .context = md, .inc = roots_inc, .dec = roots_dec};
    md->top_replace = md->top;
    md->top_replace.value.equal = roots_are_replaced;

    md->bottom = plain;
    md->bottom.value = (struct btree_value_type){.size = VALUE_SIZE_MAPPING,
                                                 .context = md,
                                                 .inc = mappings_inc,
                                                 .dec = mappings_dec,
                                                 .equal = mappings_equal};

    md->details = plain;
    md->details.value = (struct btree_value_type){.size = VALUE_SIZE_DETAILS};
}

/* ---- reading ---------------------------------------------------------------------- */

/* A slot is an entry of the tree under another name: no copy between them. */
_Static_assert(sizeof(struct mapping_slot) == sizeof(struct btree_entry64), "slot");
_Static_assert(offsetof(struct mapping_slot, vblock) ==
                   offsetof(struct btree_entry64, key),
               "slot");
_Static_assert(offsetof(struct mapping_slot, value) ==
                   offsetof(struct btree_entry64, value),
               "slot");

int
metadata_read_leaf(struct metadata *md, uint32_t id, vblock_t vblock,
                   struct mapping_slot *slots, uint32_t *ret_nr, vblock_t *ret_begin,
                   vblock_t *ret_end, struct thin_error *err)
{
    struct md_device *dev;
    int r;

    r = device_get(md, id, &dev, err);
    if (r < 0)
        return r;
    r = btree_read_leaf(&md->bottom, dev->now.root, vblock,
                        (struct btree_entry64 *)(void *)slots, MAPPING_SLOTS_MAX, ret_nr,
                        ret_begin, ret_end, err);
    if (r < 0)
        return thin_wrap(err, r, "device %" PRIu32 ": read the mapping of block %" PRIu64,
                         id, vblock);
    return 0;
}

int
metadata_lookup(struct metadata *md, uint32_t id, vblock_t vblock, uint64_t *ret_value,
                bool *ret_found, struct thin_error *err)
{
    struct md_device *dev;
    uint8_t value[VALUE_SIZE_MAPPING];
    bool found;
    int r;

    r = device_get(md, id, &dev, err);
    if (r < 0)
        return r;
    r = btree_lookup(&md->bottom, dev->now.root, vblock, value, &found, err);
    if (r < 0)
        return thin_wrap(err, r, "device %" PRIu32 ": look up block %" PRIu64, id,
                         vblock);
    if (found)
        *ret_value = load_le64(value);
    *ret_found = found;
    return 0;
}

int
metadata_highest_mapped(struct metadata *md, uint32_t id, vblock_t *ret, bool *ret_found,
                        struct thin_error *err)
{
    struct md_device *dev;
    int r;

    r = device_get(md, id, &dev, err);
    if (r < 0)
        return r;
    r = btree_highest(&md->bottom, dev->now.root, ret, ret_found, err);
    if (r < 0)
        return thin_wrap(err, r, "device %" PRIu32 ": find the highest mapping", id);
    return 0;
}

/* ---- changing --------------------------------------------------------------------- */

int
metadata_insert(struct metadata *md, uint32_t id, vblock_t vblock, dblock_t dblock,
                uint64_t *ret_value, struct thin_error *err)
{
    struct md_device *dev;
    uint64_t value;
    uint8_t packed[VALUE_SIZE_MAPPING];
    mblock_t root;
    bool inserted;
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    THIN_ASSERT(dblock <= DATA_BLOCK_NR_MAX);
    r = device_get(md, id, &dev, err);
    if (r < 0)
        return r;
    r = device_make_private(md, dev, err);
    if (r < 0)
        return r;

    value = mapping_pack(dblock, md->now.sb.time);
    store_le64(packed, value);
    r = btree_insert(&md->bottom, dev->now.root, vblock, packed, &root, &inserted, err);
    if (r < 0)
        return thin_wrap(err, r, "device %" PRIu32 ": map block %" PRIu64, id, vblock);
    r = device_set_root(md, dev, root, err);
    if (r < 0)
        return r;
    dev->now.times_end = md->now.sb.time + 1;
    if (inserted) {
        dev->now.details.mapped_blocks++;
        r = device_note_details(md, dev, err);
        if (r < 0)
            return r;
    }
    md->now.changed = true;
    *ret_value = value;
    return 0;
}

int
device_trim(struct metadata *md, struct md_device *dev, vblock_t begin, vblock_t end,
            uint32_t budget, vblock_t *ret_end, uint64_t *ret_removed,
            struct thin_error *err)
{
    mblock_t root;
    vblock_t trimmed_to;
    uint64_t removed;
    int r;

    r = device_make_private(md, dev, err);
    if (r < 0)
        return r;
    r = btree_trim(&md->bottom, dev->now.root, begin, end, trim_budget(budget), &root,
                   &removed, &trimmed_to, err);
    if (r < 0)
        return thin_wrap(err, r, "device %" PRIu32 ": unmap blocks", dev->id);
    r = device_set_root(md, dev, root, err);
    if (r < 0)
        return r;
    if (removed > dev->now.details.mapped_blocks) {
        log_warning("a device had more mappings than its record says dev_id=%" PRIu32,
                    dev->id);
        removed = dev->now.details.mapped_blocks;
    }
    if (removed) {
        dev->now.details.mapped_blocks -= removed;
        r = device_note_details(md, dev, err);
        if (r < 0)
            return r;
    }
    md->now.changed = true;
    *ret_end = trimmed_to;
    *ret_removed = removed;
    return 0;
}

int
metadata_unmap_step(struct metadata *md, uint32_t id, vblock_t begin, vblock_t end,
                    uint32_t budget, vblock_t *ret_end, uint64_t *ret_unmapped,
                    struct thin_error *err)
{
    struct md_device *dev;
    uint8_t value[VALUE_SIZE_MAPPING];
    uint64_t first = 0;
    bool found = false;
    int r;

    r = md_check_changing(md, err);
    if (r == 0)
        r = sm_learn(md->data_sm, err);
    if (r < 0)
        return r;
    if (begin > end)
        return thin_fail(err, -THIN_E_INVALID,
                         "range begins at block %" PRIu64 ", behind its end %" PRIu64,
                         begin, end);
    r = device_get(md, id, &dev, err);
    if (r < 0)
        return r;

    /* A range with nothing in it changes nothing: a discard of holes costs no copy. */
    if (begin < end) {
        r = btree_lookup_next(&md->bottom, dev->now.root, begin, &first, value, &found,
                              err);
        if (r < 0)
            return thin_wrap(err, r, "device %" PRIu32 ": find mapped blocks", id);
    }
    if (!found || first >= end) {
        *ret_end = begin;
        *ret_unmapped = 0;
        return 0;
    }
    return device_trim(md, dev, begin, end, budget, ret_end, ret_unmapped, err);
}
