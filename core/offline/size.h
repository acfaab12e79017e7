/*
 * How large a metadata device should be, as thin_metadata_size 0.9 says it: more than
 * a pool of that size can need when its leaves are half full.
 */
#ifndef THIN_CORE_OFFLINE_SIZE_H
#define THIN_CORE_OFFLINE_SIZE_H

#include <stdint.h>

/* All in sectors but `max_thins`; block_size is not 0. */
uint64_t metadata_size_sectors(uint64_t block_size, uint64_t pool_size,
                               uint64_t max_thins);

#endif
