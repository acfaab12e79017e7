/* What a check will read, by the metadata space map's own word: a hint, never believed. */
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/check.h"
#include "core/ondisk/bitmap.h"

struct named {
    mblock_t block;
    uint64_t k;
};

struct used {
    const struct named *named; /* by place in the row */
    uint8_t *bits;
    mblock_t nr_blocks;
};

static int
bitmap_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct used *u = arg;
    mblock_t first = u->named[index].k * BITMAP_ENTRIES;
    mblock_t end = min_u64(first + BITMAP_ENTRIES, u->nr_blocks);

    if (!data || code < 0)
        return 0;
    for (mblock_t b = first; b < end; b++)
        if (bitmap_get(data, (uint32_t)(b - first)))
            u->bits[b / 8] |= (uint8_t)(1u << (b % 8));
    return 0;
}

static int
compare_named(const void *pa, const void *pb)
{
    const struct named *a = pa, *b = pb;

    return (a->block > b->block) - (a->block < b->block);
}

struct source_prefetch *
check_prefetch(struct meta_source *src, mblock_t index_block, mblock_t nr_blocks)
{
    AUTO_FREE uint8_t *index = malloc(METADATA_BLOCK_SIZE);
    AUTO_FREE uint8_t *bits = calloc(nr_blocks / 8 + 1, 1);
    struct named named[INDEX_BLOCK_ENTRIES];
    mblock_t blocks[INDEX_BLOCK_ENTRIES];
    struct used used = {named, bits, nr_blocks};
    size_t nr = 0;

    if (!index || !bits || !src->ops->will_read ||
        source_read(src, index_block, index, NULL) < 0 ||
        block_check(BLOCK_INDEX, index, index_block, NULL) < 0)
        return NULL;
    for (uint32_t k = 0; k < div_up_u64(nr_blocks, BITMAP_ENTRIES); k++) {
        struct index_entry e;

        if (k >= INDEX_BLOCK_ENTRIES)
            break;
        index_entry_decode(&e, index_block_entry_ro(index, k));
        if (e.blocknr < nr_blocks)
            named[nr++] = (struct named){e.blocknr, k};
    }
    qsort(named, nr, sizeof(*named), compare_named);
    for (size_t i = 0; i < nr; i++)
        blocks[i] = named[i].block;
    if (source_read_many(src, blocks, nr, BLOCK_BITMAP, bitmap_seen, &used) < 0 ||
        !source_is_slow(src))
        return NULL;
    return prefetch_start(src, bits, nr_blocks);
}
