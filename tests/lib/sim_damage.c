/* Where the metadata blocks in use stand, and so what each takes with it when it goes bad. */
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/ondisk/bitmap.h"
#include "core/ondisk/node.h"
#include "core/ondisk/superblock.h"
#include "core/ondisk/trailer.h"
#include "tests/lib/sim_drive.h"

struct places {
    const struct recount_source *source;
    struct sim_place *list;
    unsigned nr;
    uint32_t names; /* the catalogue's device, or CATALOGUE_NONE */
};

static const void *
page(const struct places *p, uint64_t b)
{
    const void *bytes = p->source->page(p->source->arg, b);

    THIN_ASSERT(bytes); /* it was recounted before */
    return bytes;
}

/* False: known already. `device`: of SIM_BELOW_VOLUME. */
static bool
add(struct places *p, uint64_t b, enum sim_damage damage, uint32_t device)
{
    struct sim_place *place;
    unsigned i = 0;

    while (i < p->nr && p->list[i].block != b)
        i++;
    place = &p->list[i];
    if (i == p->nr) {
        THIN_ASSERT(p->nr < SIM_PLACES);
        p->nr++;
        *place = (struct sim_place){.block = b, .damage = damage};
    } else if (damage != SIM_BELOW_VOLUME) {
        return false;
    }
    if (damage == SIM_BELOW_VOLUME && place->nr_devices <= SIM_VOLUMES)
        place->devices[place->nr_devices++] = device;
    return true;
}

static void
add_tree(struct places *p, uint64_t b, enum sim_damage damage, uint32_t device)
{
    const void *node = page(p, b);

    if (!add(p, b, damage, device) || node_is_leaf(node))
        return;
    for (uint32_t i = 0; i < node_nr_entries(node); i++)
        add_tree(p, node_value64(node, i), damage, device);
}

/* The top level: its leaves name the devices' trees. */
static void
add_devices(struct places *p, uint64_t b)
{
    const void *node = page(p, b);

    add(p, b, SIM_ABOVE_ALL, 0);
    for (uint32_t i = 0; i < node_nr_entries(node); i++) {
        uint32_t device = (uint32_t)node_key(node, i);

        if (!node_is_leaf(node))
            add_devices(p, node_value64(node, i));
        else
            add_tree(p, node_value64(node, i),
                     device == p->names ? SIM_BELOW_NAMES : SIM_BELOW_VOLUME, device);
    }
}

/* The leaves of the index of data's bitmaps. */
static void
add_bitmaps(struct places *p, uint64_t b)
{
    const void *node = page(p, b);

    add(p, b, SIM_ABOVE_ALL, 0);
    for (uint32_t i = 0; i < node_nr_entries(node); i++) {
        struct index_entry entry;

        if (!node_is_leaf(node)) {
            add_bitmaps(p, node_value64(node, i));
            continue;
        }
        index_entry_decode(&entry, node_value(node, i));
        add(p, entry.blocknr, SIM_IN_COUNTS, 0);
    }
}

unsigned
sim_places(const struct recount_source *source, struct sim_place *ret_places)
{
    struct places p = {.source = source, .list = ret_places, .names = CATALOGUE_NONE};
    struct catalogue_trailer trailer;
    struct superblock sb;
    struct thin_error err;
    const void *index;
    bool found = false;

    thin_error_init(&err);
    superblock_decode(&sb, page(&p, SUPERBLOCK_LOCATION));
    if (catalogue_trailer_decode(sb.trailer, &trailer, &found, &err) == 0 && found)
        p.names = trailer.dev_id;
    add(&p, SUPERBLOCK_LOCATION, SIM_AT_ONCE, 0);
    add_devices(&p, sb.data_mapping_root);
    add_tree(&p, sb.device_details_root, SIM_ABOVE_ALL, 0);
    add(&p, sb.metadata_sm.bitmap_root, SIM_AT_ONCE, 0);
    index = page(&p, sb.metadata_sm.bitmap_root);
    for (uint32_t i = 0; i < div_up_u64(sb.metadata_sm.nr_blocks, BITMAP_ENTRIES); i++) {
        struct index_entry entry;

        index_entry_decode(&entry, index_block_entry_ro(index, i));
        add(&p, entry.blocknr, SIM_AT_ONCE, 0);
    }
    add_tree(&p, sb.metadata_sm.ref_count_root, SIM_ABOVE_ALL, 0);
    add_bitmaps(&p, sb.data_sm.bitmap_root);
    add_tree(&p, sb.data_sm.ref_count_root, SIM_IN_COUNTS, 0);
    return p.nr;
}
