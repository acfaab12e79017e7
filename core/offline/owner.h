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

/* owner_mark_judge (core/ondisk/owner_mark.h) of what stands on the device. */
int owner_judge(struct meta_source *src, bool takeover, struct thin_error *err);

/*
 * To be called with a superblock's bytes before a tool seals them: the trailer's stamp
 * does not fit afterwards, and it was no clean end. The same blocks in the same places
 * may hold other mappings now, so that a stamp that still fitted would tell a lie.
 */
void owner_sign_foreign(void *superblock);

/* False if there is no catalogue. */
bool owner_catalogue_device(const struct superblock *sb, uint32_t *ret_dev_id);

#endif
