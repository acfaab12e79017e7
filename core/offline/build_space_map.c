#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/build.h"
#include "core/ondisk/bitmap.h"

/* Fills one bitmap; its large counts go to the overflow tree. Returns non-zero ones. */
static int
fill_bitmap(uint8_t *bytes, const struct count_chunk *chunk, uint64_t k, uint32_t end,
            struct tree_build *overflow, struct index_entry *entry)
{
    uint32_t used = 0, first_free = end;

    for (uint32_t e = 0; chunk && e < end; e++) {
        uint64_t count = count_chunk_get(chunk, e);

        if (!count) {
            if (first_free == end)
                first_free = e;
            continue;
        }
        used++;
        if (bytes)
            bitmap_set(bytes, e, count > 2 ? BITMAP_COUNT_OVERFLOW : (unsigned)count);
        if (count > 2 && overflow) {
            uint8_t value[VALUE_SIZE_COUNT];
            int r;

            store_le32(value, count > UINT32_MAX ? UINT32_MAX : (uint32_t)count);
            r = tree_build_add(overflow, k * BITMAP_ENTRIES + e, value);
            if (r < 0)
                return r;
        }
    }
    entry->nr_free = BITMAP_ENTRIES - used;
    entry->none_free_before = chunk ? first_free : 0;
    return 0;
}

static const struct count_chunk *
chunk_of(const struct counts *counts, uint64_t k)
{
    return k < counts->nr_chunks ? counts->chunk[k] : NULL;
}

static uint32_t
entries_of(uint64_t nr_blocks, uint64_t k)
{
    return (uint32_t)min_u64(nr_blocks - k * BITMAP_ENTRIES, BITMAP_ENTRIES);
}

static uint64_t
count_used(const struct counts *counts, uint64_t nr_blocks)
{
    uint64_t used = 0;

    for (uint64_t k = 0; k * BITMAP_ENTRIES < nr_blocks; k++) {
        struct index_entry entry = {0};

        (void)fill_bitmap(NULL, chunk_of(counts, k), k, entries_of(nr_blocks, k), NULL,
                          &entry);
        used += BITMAP_ENTRIES - entry.nr_free;
    }
    return used;
}

static int
add_bitmap(struct block_out *out, const struct counts *counts, uint64_t k, uint32_t end,
           struct tree_build *index, struct tree_build *overflow)
{
    struct index_entry entry = {0};
    uint8_t value[INDEX_ENTRY_BYTES];
    AUTO_FREE uint8_t *bytes = calloc(1, METADATA_BLOCK_SIZE);
    uint8_t *placed = NULL;
    int r;

    if (!bytes)
        return thin_fail_code(out->err, -ENOMEM, "build a space map");
    /* Filled aside: adding to the overflow tree may itself place blocks. */
    r = fill_bitmap(bytes, chunk_of(counts, k), k, end, overflow, &entry);
    if (r >= 0)
        r = block_out_alloc(out, &entry.blocknr);
    if (r >= 0)
        r = block_out_place(out, entry.blocknr, &placed);
    if (r < 0)
        return r;
    block_seal(BLOCK_BITMAP, bytes, entry.blocknr);
    memcpy(placed, bytes, METADATA_BLOCK_SIZE);
    index_entry_encode(&entry, value);
    return tree_build_add(index, k, value);
}

int
build_data_space_map(struct block_out *out, const struct counts *counts,
                     uint64_t nr_blocks, struct space_map_root *ret)
{
    struct tree_build index, overflow;
    int r = tree_build_init(&index, out, VALUE_SIZE_INDEX);
    int r2 = tree_build_init(&overflow, out, VALUE_SIZE_COUNT);

    if (r >= 0)
        r = r2;
    for (uint64_t k = 0; k * BITMAP_ENTRIES < nr_blocks && r >= 0; k++)
        r = add_bitmap(out, counts, k, entries_of(nr_blocks, k), &index, &overflow);
    if (r >= 0)
        r = tree_build_end(&index, &ret->bitmap_root);
    if (r >= 0)
        r = tree_build_end(&overflow, &ret->ref_count_root);
    tree_build_fini(&index);
    tree_build_fini(&overflow);
    if (r < 0)
        return thin_wrap(out->err, r, "data space map");
    ret->nr_blocks = nr_blocks;
    ret->nr_allocated = count_used(counts, nr_blocks);
    return 0;
}

/* Counts over 2 of the blocks so far; the map's own blocks have a count of 1. */
static int
metadata_overflow(struct block_out *out, uint64_t nr_blocks, mblock_t *ret_root)
{
    struct tree_build overflow;
    int r = tree_build_init(&overflow, out, VALUE_SIZE_COUNT);

    for (uint64_t k = 0; k * BITMAP_ENTRIES < nr_blocks && r >= 0; k++) {
        struct index_entry entry;

        r = fill_bitmap(NULL, chunk_of(&out->refs, k), k, entries_of(nr_blocks, k),
                        &overflow, &entry);
    }
    if (r >= 0)
        r = tree_build_end(&overflow, ret_root);
    tree_build_fini(&overflow);
    return r;
}

static int
write_metadata_bitmap(struct block_out *out, uint64_t nr_blocks, uint64_t k,
                      struct index_entry *entry)
{
    uint8_t *bytes = NULL;
    int r = block_out_place(out, entry->blocknr, &bytes);

    if (r >= 0)
        r = fill_bitmap(bytes, chunk_of(&out->refs, k), k, entries_of(nr_blocks, k), NULL,
                        entry);
    if (r >= 0)
        block_seal(BLOCK_BITMAP, bytes, entry->blocknr);
    return r;
}

int
build_metadata_space_map(struct block_out *out, uint64_t nr_blocks,
                         struct space_map_root *ret)
{
    struct index_entry entries[INDEX_BLOCK_ENTRIES] = {0};
    uint32_t nr = (uint32_t)div_up_u64(nr_blocks, BITMAP_ENTRIES);
    uint8_t *bytes = NULL;
    int r = metadata_overflow(out, nr_blocks, &ret->ref_count_root);

    if (r >= 0)
        r = block_out_alloc(out, &ret->bitmap_root);
    /* All are handed out before the first is filled. */
    for (uint32_t k = 0; k < nr && r >= 0; k++)
        r = block_out_alloc(out, &entries[k].blocknr);
    for (uint32_t k = 0; k < nr && r >= 0; k++)
        r = write_metadata_bitmap(out, nr_blocks, k, &entries[k]);
    if (r >= 0)
        r = block_out_place(out, ret->bitmap_root, &bytes);
    if (r < 0)
        return thin_wrap(out->err, r, "metadata space map");
    for (uint32_t k = 0; k < nr; k++)
        index_entry_encode(&entries[k], index_block_entry(bytes, k));
    block_seal(BLOCK_INDEX, bytes, ret->bitmap_root);
    ret->nr_blocks = nr_blocks;
    ret->nr_allocated = count_used(&out->refs, nr_blocks);
    return block_out_finish(out);
}
