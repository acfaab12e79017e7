#include "core/offline/size.h"

#include "core/ondisk/node.h"

uint64_t
metadata_size_sectors(uint64_t block_size, uint64_t pool_size, uint64_t max_thins)
{
    uint64_t entries = node_max_entries_for(VALUE_SIZE_MAPPING);
    uint64_t blocks = 1 + 2 * pool_size / block_size / entries + max_thins;

    return blocks * METADATA_BLOCK_SECTORS;
}
