/*
 * The free space of a data device: runs of data blocks with a count of 0. Only told
 * when the whole metadata has been checked, since a count that is too low would give
 * somebody's data away.
 */
#ifndef THIN_CORE_OFFLINE_TRIM_H
#define THIN_CORE_OFFLINE_TRIM_H

#include "core/offline/source.h"
#include "core/ondisk/superblock.h"

/* Data blocks [begin, end) are free. Not 0 ends the row. */
typedef int trim_range_fn(void *arg, const struct superblock *sb, dblock_t begin,
                          dblock_t end);

/* -THIN_E_NEEDS_CHECK if the check finds damage or the flag is set: nothing is told. */
int trim_free_ranges(struct meta_source *src, trim_range_fn *range, void *arg,
                     struct thin_error *err);

#endif
