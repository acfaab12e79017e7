/*
 * Reservations and quotas of volumes, in data blocks. In memory only; the records say how
 * much, the mappings how much of it is used.
 *
 * A reservation promises a block for every write, until as many blocks are the volume's
 * own (mapped, and not shared by time). Its *need* is what is promised and not yet taken:
 *
 *      need(v)     = reserve(v) - own(v), at least 0
 *      committed   = sum over volumes of max(need(v), claimed(v))
 *      unreserved  = free + pending - committed
 *
 * Nobody gets a block that is not unreserved, but a volume out of its own need. A snapshot
 * makes all that the volume maps shared: its need is the whole reservation again, and it
 * is refused if that does not fit. So does a metadata snapshot (the format's held root):
 * what was mapped then stays written in place, but a discard does not give it back, so it
 * is not the volume's own while the root is held.
 *
 * After an open, and after an unmapping that cannot be told apart, own(v) is counted by a
 * walk in bounded steps; until it has ended own(v) is taken too low, never too high.
 * Meanwhile a volume gets what nobody else was promised, or what was promised to it if all
 * that it maps were its own; who would be refused waits for the end of the walks.
 *
 * A quota is a bound on mapped blocks; who would pass it fails with -THIN_E_QUOTA alone.
 *
 * One thread: the pool's. "blocks" are data blocks.
 */
#ifndef THIN_CORE_POOL_LIMITS_H
#define THIN_CORE_POOL_LIMITS_H

#include "core/pool/io_private.h"

struct catalogue_record;

int limits_create(struct pool *pool); /* after the geometry is known; -ENOMEM */
void limits_destroy(struct pool *pool);
/* The records were read, or read again: starts from them. -ENOMEM. */
int limits_load(struct pool *pool);
/* Closing, or rolling back: no more walks. */
void limits_stop(struct pool *pool);

/* ---- for the administrator: calls that fail come before the change is kept --------------- */

/* Whether the reservation of `dev_id` (UINT32_MAX: a new volume) may become `bytes`, all
   that it maps being shared if `all_shared`. -THIN_E_NO_DATA_SPACE, with what is missing. */
int limits_judge(struct pool *pool, uint32_t dev_id, uint64_t bytes, bool all_shared,
                 struct thin_error *err);
/* What more the pool must promise if all that these volumes map becomes shared. */
int limits_judge_shared(struct pool *pool, const uint32_t *dev_ids, uint32_t nr,
                        struct thin_error *err);
/* Both at once: the volume's, made anew from a snapshot that may have one as well. */
int limits_judge_rollback(struct pool *pool, uint32_t dev_id, uint64_t bytes,
                          uint32_t origin_id, struct thin_error *err);
/* The same for all that have a reservation. */
int limits_judge_held(struct pool *pool, struct thin_error *err);
/* Whether the volumes may have so many bytes more together (overcommit). -THIN_E_LIMIT. */
int limits_judge_virtual(const struct pool *pool, uint64_t more_bytes,
                         struct thin_error *err);
/* As many entries can be added without failing. -ENOMEM. */
int limits_prepare(struct pool *pool);
/* The record of `dev_id` stands. `fresh`: the volume maps nothing yet. */
void limits_follow(struct pool *pool, uint32_t dev_id, uint64_t reserve_bytes,
                   bool fresh);
/* All that it maps is shared now. */
void limits_shared(struct pool *pool, uint32_t dev_id);
/* A held root keeps all that is mapped; it was released. */
void limits_held(struct pool *pool);
void limits_released(struct pool *pool);
void limits_gone(struct pool *pool, uint32_t dev_id);
/* Bytes promised and not yet taken, of all volumes. */
uint64_t limits_reserved_bytes(const struct pool *pool);

/* ---- for the data path ----------------------------------------------------------------------- */

/*
 * How many of `wanted` blocks from `v` on the fragment may claim: *ret_nr at least 1, and
 * frag->claim.holes tells which of them are holes now. 1: it waits, and is run again.
 * -THIN_E_QUOTA, -THIN_E_NO_DATA_SPACE.
 */
int limits_admit(struct volume_frag *frag, vblock_t v, unsigned wanted, unsigned *ret_nr);
/* It has claimed frag->claim.nr of them. */
void limits_claimed(struct volume_frag *frag);
/* The claim ends; `mapped`: frag->claim.nr blocks became the volume's own. */
void limits_claim_ended(struct volume_frag *frag, bool mapped);
/* `nr` mappings in [begin, end) went. */
void limits_unmapped(struct pool *pool, uint32_t dev_id, uint64_t nr);
/* Somebody without a reservation could get a block. */
bool limits_room(const struct pool *pool);
/* How many; for the catalogue's own needs. */
uint64_t limits_unreserved(const struct pool *pool);

#endif
