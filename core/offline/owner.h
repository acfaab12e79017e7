/*
 * Whose a metadata device is: the trailer in its superblock (core/ondisk/trailer.h) says
 * which machine served it last, and which device of the pool is no volume but the
 * catalogue. A lock tells of owners on this machine; the mark, of all others.
 */
#ifndef THIN_CORE_OFFLINE_OWNER_H
#define THIN_CORE_OFFLINE_OWNER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/offline/source.h"
#include "core/ondisk/trailer.h"

/*
 * For those who are about to write, with the lock held. 0: no mark, one of this machine
 * (whoever that was is gone: the lock is ours), or `takeover`. -THIN_E_BUSY with words: a
 * mark of another machine. -THIN_E_VERSION: a trailer of a later version.
 */
int owner_judge(struct meta_source *src, bool takeover, struct thin_error *err);

/* This machine's id, as the mark has it; zeros where it has none. */
void owner_this_host(uint8_t ret[16]);

/* False if there is no catalogue. */
bool owner_catalogue_device(const struct superblock *sb, uint32_t *ret_dev_id);

#endif
