/*
 * Damage found by the merge. The blocks whose counts cannot be read or are not to be
 * believed are neither allocated nor freed from then on: their changes are dropped, now
 * and later, and the rest of the transaction can be committed. What stands on disk is
 * then no longer what the mappings say: the owner marks the pool as needing a check.
 */
#include <inttypes.h>

#include "core/persist/sm_private.h"

#define SM_PARKED_MAX 4096u /* single blocks; beyond it whole bitmaps are parked */

bool
sm_is_parked(const struct space_map *sm, dblock_t b)
{
    uint32_t unused;

    return bitset_test(&sm->parked, b / BITMAP_ENTRIES) ||
           (sm->nr_parked_blocks && u64_map_get(&sm->parked_blocks, b, &unused));
}

static int
drop_group(struct space_map *sm, uint64_t k, struct thin_error *err)
{
    uint32_t at;

    while (u64_map_get(&sm->group_at, k, &at)) {
        int r = sm_delta_remove(sm, sm->deltas[sm->groups[at].first].block, err);

        if (r < 0)
            return r;
    }
    return 0;
}

int
sm_merge_park(struct space_map *sm, dblock_t *ret_begin, dblock_t *ret_end,
              struct thin_error *err)
{
    uint64_t k = sm->merge_block / BITMAP_ENTRIES;
    dblock_t b = sm->merge_block;
    int r;

    if (sm->merge_at == SM_AT_NOTHING)
        return thin_fail(err, -THIN_E_INVALID, "no merge of data counts has failed");
    if (sm->merge_at == SM_AT_BLOCK && sm->nr_parked_blocks < SM_PARKED_MAX &&
        sm_delta_find(sm, b) && u64_map_reserve(&sm->parked_blocks, 1) == 0) {
        r = sm_delta_remove(sm, b, err);
        if (r < 0)
            return r;
        u64_map_set(&sm->parked_blocks, b, 1);
        sm->nr_parked_blocks++;
        *ret_begin = b;
        *ret_end = b + 1;
    } else {
        r = drop_group(sm, k, err);
        if (r < 0)
            return r;
        bitset_set(&sm->parked, k);
        bitset_set(&sm->full, k);
        *ret_begin = k * BITMAP_ENTRIES;
        *ret_end = *ret_begin + BITMAP_ENTRIES;
        if (*ret_end > sm->core.root.nr_blocks)
            *ret_end = sm->core.root.nr_blocks;
    }
    /* Knowledge of damage: an undo does not take it back. */
    sm->merge_at = SM_AT_NOTHING;
    return 0;
}
