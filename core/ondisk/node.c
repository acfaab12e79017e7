#include "core/ondisk/node.h"

#include <inttypes.h>
#include <string.h>

void
node_init(void *b, bool leaf, uint32_t max_entries, uint32_t value_size)
{
    memset(b, 0, METADATA_BLOCK_SIZE);
    store_le32((uint8_t *)b + NODE_FLAGS, leaf ? NODE_LEAF : NODE_INTERNAL);
    store_le32((uint8_t *)b + NODE_MAX_ENTRIES, max_entries);
    store_le32((uint8_t *)b + NODE_VALUE_SIZE, value_size);
}

int
node_lower_bound(const void *b, uint64_t key)
{
    int lo = -1, hi = (int)node_nr_entries(b);

    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;

        if (node_key(b, (uint32_t)mid) <= key)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

int
node_judge(const void *b, uint32_t value_size, struct thin_error *err)
{
    uint32_t flags = load_le32((const uint8_t *)b + NODE_FLAGS);
    uint32_t nr = node_nr_entries(b), max = node_max_entries(b);
    uint32_t size = node_value_size(b);
    uint32_t wanted = flags == NODE_INTERNAL ? VALUE_SIZE_MAPPING : value_size;
    mblock_t own = node_own_number(b);

    if (flags != NODE_INTERNAL && flags != NODE_LEAF)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 ": flags are %" PRIu32 ", must be 1 or 2", own,
                         flags);
    if (size != wanted)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 ": values of %" PRIu32
                         " bytes, must be %" PRIu32,
                         own, size, wanted);
    if (max == 0 || max % 3 || max > node_max_entries_for(size))
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 ": room for %" PRIu32
                         " entries, must be a multiple of 3 up to %" PRIu32,
                         own, max, node_max_entries_for(size));
    if (nr > max)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "node %" PRIu64 ": %" PRIu32 " entries in room for %" PRIu32,
                         own, nr, max);
    if (flags == NODE_INTERNAL && nr == 0)
        return thin_fail(err, -THIN_E_BAD_BLOCK, "node %" PRIu64 ": internal and empty",
                         own);
    for (uint32_t i = 1; i < nr; i++)
        if (node_key(b, i) <= node_key(b, i - 1))
            return thin_fail(err, -THIN_E_BAD_BLOCK,
                             "node %" PRIu64 ": key %" PRIu64 " follows key %" PRIu64,
                             own, node_key(b, i), node_key(b, i - 1));
    return 0;
}
