/*
 * Copies of blocks that a sweep met and had no use for yet, in rising order, within a
 * bound.
 */
#ifndef THIN_CORE_OFFLINE_SOURCE_SWEEP_H
#define THIN_CORE_OFFLINE_SOURCE_SWEEP_H

#include "core/offline/source_ahead.h"

#define ASIDE_BLOCKS_MAX 8192u /* 32 MiB */
#define SWEEP_PIECES     8u    /* on their way at once: 4 MiB */
/* After so many blocks a sweep must have been of use for half of them. */
#define SWEEP_TRIED_BLOCKS 16384u

struct source_aside;

/* Or NULL. *ret_code is that of block_check for `kind`. */
const uint8_t *aside_find(const struct source_aside *aside, mblock_t b,
                          enum block_kind kind, int *ret_code);
void aside_free(struct source_aside *aside); /* NULL is fine */

#endif
