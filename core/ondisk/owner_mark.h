/*
 * The owner mark in the superblock's trailer: which machine has a pool open, or had it when
 * it died. A lock tells of owners on this machine; the mark, of all others.
 *
 *   no mark, or zeros         nobody's: never opened by us, or closed in good order
 *   this machine, other boot  whoever that was is dead
 *   this machine, this boot   the lock decides, and it is ours by now
 *   another machine           refused: its lock may not reach here
 */
#ifndef THIN_CORE_ONDISK_OWNER_MARK_H
#define THIN_CORE_ONDISK_OWNER_MARK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

/*
 * For those who are about to write, with the lock held; `block` is block 0 as read. 0:
 * nobody stands in the way, or `takeover`. -THIN_E_BUSY with words: a mark of another
 * machine than `machine`. -THIN_E_VERSION: a trailer of a later version.
 */
int owner_mark_judge(const void *block, const uint8_t machine[16], bool takeover,
                     struct thin_error *err);

#endif
