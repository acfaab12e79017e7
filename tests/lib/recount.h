/*
 * A full recount of a metadata image on a memory device: walks everything that the
 * superblock in block 0 reaches, held root included, and compares with what is stored.
 *
 * Rules of FORMAT.md: 2 (checks of blocks), 4 (I1 to I7), 6 (both trees hold the same
 * ids, mapped_blocks exact), 7 (bitmaps, index entries in the kernel's convention,
 * overflow entries exactly for counts above 2, nothing beyond the end), 8 (all counts
 * of both maps, nr_allocated). Leaks are errors here: we make none.
 *
 * It shares no code with the engine but the codecs of core/ondisk.
 */
#ifndef THIN_TESTS_LIB_RECOUNT_H
#define THIN_TESTS_LIB_RECOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/device/device.h"
#include "core/ondisk/details.h"
#include "core/ondisk/superblock.h"

/* What the walk tells; either may be NULL. Devices in id order, the mappings of each
   in order behind it. `held`: of the metadata snapshot. */
struct recount_visitor {
    void (*device)(void *arg, bool held, uint32_t id,
                   const struct device_details *details);
    void (*mapping)(void *arg, bool held, uint32_t id, uint64_t vblock, uint64_t value);
    void *arg;
};

struct recount {
    struct superblock sb;
    uint64_t metadata_used, data_used; /* blocks with a count */
    uint64_t nr_nodes, nr_devices, nr_mappings;
    char why[256]; /* the first thing that is wrong */
};

/*
 * 0, or -1 with `why`. `mem` is a device of device_mem_open. `visitor` may be NULL.
 * Aborts when out of memory.
 */
int recount_image(struct device *mem, const struct recount_visitor *visitor,
                  struct recount *ret);

/* As recount_image, of an image that lies elsewhere: `page` gives 4 KiB, NULL for a hole
   that was never written. */
struct recount_source {
    const void *(*page)(void *arg, uint64_t index);
    void *arg;
    uint64_t size; /* bytes */
    /* Of a pool in which blocks had gone bad: what lost its last pointer may keep its
       count; the counts of data are not looked at. */
    bool leaks, no_data_counts;
};
int recount_pages(const struct recount_source *source,
                  const struct recount_visitor *visitor, struct recount *ret);

#endif
