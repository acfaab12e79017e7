/*
 * The changes that a check may make to the device it has checked: clearing the
 * needs_check flag, making both space maps anew from what the walk has counted (leaks,
 * wrong counts, wrong sums and hints), and with them the details tree, where the numbers
 * of mapped blocks in it are wrong. What is new goes to blocks that nothing
 * reaches; one write of the superblock then switches over, so an interruption leaves
 * the old state. Bytes of the superblock that are not concerned stay as they are.
 */
#ifndef THIN_CORE_OFFLINE_MEND_H
#define THIN_CORE_OFFLINE_MEND_H

#include "core/offline/check.h"

int mend_clear_needs_check(struct meta_source *src, struct thin_error *err);

/*
 * `res` is of a check of the same source, made with the lock that is still held.
 * -THIN_E_INVALID if the walk was not whole, or there is damage that this cannot mend;
 * -THIN_E_NO_METADATA_SPACE if the new maps find no room.
 */
int mend_counts(struct meta_source *src, const struct report *rep,
                const struct check_result *res, struct thin_error *err);

#endif
