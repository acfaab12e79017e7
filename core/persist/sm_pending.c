/*
 * Data blocks that are free and not to be handed out yet: freed in a transaction that
 * is not durable, or held. Runs in the order of their freeing, and a bit for each block.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/persist/sm_private.h"

#define PAGES_FIRST 16u
#define RUNS_FIRST  64u

/* ---- a bit for each block ---------------------------------------------------------------- */

static struct sm_page *
page_of(const struct space_map *sm, dblock_t b)
{
    uint32_t at;

    return u64_map_get(&sm->page_at, b / SM_PAGE_BLOCKS, &at) ? &sm->pages[at] : NULL;
}

static uint64_t
bit_of(dblock_t b)
{
    return 1ull << (b % 64);
}

static uint64_t *
word_of(struct sm_page *page, dblock_t b)
{
    return &page->bits[b % SM_PAGE_BLOCKS / 64];
}

bool
sm_is_pending(const struct space_map *sm, dblock_t b)
{
    struct sm_page *page = sm->nr_pending ? page_of(sm, b) : NULL;

    return page && (*word_of(page, b) & bit_of(b));
}

static int
set_bit(struct space_map *sm, dblock_t b)
{
    struct sm_page *page = page_of(sm, b);
    uint32_t at;

    if (!page) {
        if (sm->free_page == SM_NONE && sm->used_pages == sm->cap_pages) {
            uint32_t cap = sm->cap_pages ? sm->cap_pages * 2 : PAGES_FIRST;
            struct sm_page *bigger = realloc(sm->pages, cap * sizeof(*bigger));

            if (!bigger)
                return -ENOMEM;
            sm->pages = bigger;
            sm->cap_pages = cap;
        }
        if (u64_map_reserve(&sm->page_at, 1) < 0)
            return -ENOMEM;
        at = sm->free_page;
        if (at != SM_NONE)
            sm->free_page = sm->pages[at].next;
        else
            at = sm->used_pages++;
        page = &sm->pages[at];
        memset(page, 0, sizeof(*page));
        u64_map_set(&sm->page_at, b / SM_PAGE_BLOCKS, at);
    }
    THIN_ASSERT(!(*word_of(page, b) & bit_of(b)));
    *word_of(page, b) |= bit_of(b);
    page->nr++;
    sm->nr_pending++;
    return 0;
}

static void
clear_bit(struct space_map *sm, dblock_t b)
{
    struct sm_page *page = page_of(sm, b);

    THIN_ASSERT(page && (*word_of(page, b) & bit_of(b)));
    *word_of(page, b) &= ~bit_of(b);
    sm->nr_pending--;
    if (--page->nr == 0) {
        u64_map_remove(&sm->page_at, b / SM_PAGE_BLOCKS);
        page->next = sm->free_page;
        sm->free_page = (uint32_t)(page - sm->pages);
    }
}

/* ---- runs ----------------------------------------------------------------------------------- */

static struct sm_run *
run_at(const struct space_map *sm, uint32_t i)
{
    return &sm->runs[(sm->runs_head + i) % sm->cap_runs];
}

static int
push_block(struct space_map *sm, uint64_t txn, dblock_t b)
{
    if (sm->nr_runs) {
        struct sm_run *last = run_at(sm, sm->nr_runs - 1);

        if (last->txn == txn && last->begin + last->len == b) {
            last->len++;
            return 0;
        }
    }
    if (sm->nr_runs == sm->cap_runs) {
        uint32_t cap = sm->cap_runs ? sm->cap_runs * 2 : RUNS_FIRST;
        struct sm_run *bigger = malloc(cap * sizeof(*bigger));

        if (!bigger)
            return -ENOMEM;
        for (uint32_t i = 0; i < sm->nr_runs; i++)
            bigger[i] = *run_at(sm, i);
        free(sm->runs);
        sm->runs = bigger;
        sm->runs_head = 0;
        sm->cap_runs = cap;
    }
    *run_at(sm, sm->nr_runs++) = (struct sm_run){.txn = txn, .begin = b, .len = 1};
    return 0;
}

static void
undo_pend(void *arg, uint64_t b, uint64_t unused)
{
    struct space_map *sm = arg;
    struct sm_run *last = run_at(sm, sm->nr_runs - 1);

    (void)unused;
    THIN_ASSERT(sm->nr_runs && last->begin + last->len - 1 == b);
    if (--last->len == 0)
        sm->nr_runs--;
    clear_bit(sm, b);
}

int
sm_pend(struct space_map *sm, dblock_t b, struct thin_error *err)
{
    struct tm_stats stats;
    int r;

    tm_get_stats(sm->tm, &stats);
    r = set_bit(sm, b);
    if (r == 0) {
        r = push_block(sm, stats.txn, b);
        if (r < 0)
            clear_bit(sm, b);
    }
    if (r == 0) {
        r = tm_op_on_undo(sm->tm, undo_pend, sm, b, 0);
        if (r < 0)
            undo_pend(sm, b, 0);
    }
    return r < 0 ? thin_fail_code(err, r, "freed data block %" PRIu64, b) : 0;
}

int
sm_pending_prepare(struct space_map *sm, uint64_t nr_blocks)
{
    /* About what one transaction frees: its changes are bounded. */
    uint32_t nr_pages =
        (uint32_t)min_u64(div_up_u64(nr_blocks, SM_PAGE_BLOCKS), SM_DELTAS_MAX);
    uint32_t nr_runs = (uint32_t)min_u64(nr_blocks, SM_DELTAS_MAX);

    if (nr_blocks == 0)
        return 0;
    sm->pages = malloc(nr_pages * sizeof(*sm->pages));
    sm->runs = malloc(nr_runs * sizeof(*sm->runs));
    if (!sm->pages || !sm->runs)
        return -ENOMEM;
    sm->cap_pages = nr_pages;
    sm->cap_runs = nr_runs;
    return u64_map_reserve(&sm->page_at, nr_pages);
}

/* ---- holds ------------------------------------------------------------------------------------ */

#define HOLD_ONE    2u
#define HOLD_PARKED 1u /* it is pending for the hold alone */

bool
sm_is_held(const struct space_map *sm, dblock_t b)
{
    uint32_t hold;

    return u64_map_get(&sm->holds, b, &hold);
}

int
sm_hold(struct space_map *sm, dblock_t b)
{
    uint32_t hold = 0;

    if (!u64_map_get(&sm->holds, b, &hold) && u64_map_reserve(&sm->holds, 1) < 0)
        return -ENOMEM;
    THIN_ASSERT(hold < UINT32_MAX - 2 * HOLD_ONE);
    u64_map_set(&sm->holds, b, hold + HOLD_ONE);
    return 0;
}

void
sm_release(struct space_map *sm, dblock_t b)
{
    uint32_t hold = 0;

    THIN_ASSERT(u64_map_get(&sm->holds, b, &hold) && hold >= HOLD_ONE);
    hold -= HOLD_ONE;
    if (hold >= HOLD_ONE) {
        u64_map_set(&sm->holds, b, hold);
        return;
    }
    u64_map_remove(&sm->holds, b);
    if (hold & HOLD_PARKED)
        clear_bit(sm, b);
}

static void
let_go(struct space_map *sm, dblock_t begin, dblock_t end)
{
    for (dblock_t b = begin; b < end; b++) {
        uint32_t hold;

        if (u64_map_get(&sm->holds, b, &hold))
            u64_map_set(&sm->holds, b, hold | HOLD_PARKED);
        else
            clear_bit(sm, b);
    }
}

bool
sm_durable_some(struct space_map *sm, uint64_t txn, uint64_t max_blocks,
                void (*freed)(void *arg, dblock_t begin, dblock_t end), void *arg)
{
    while (sm->nr_runs && run_at(sm, 0)->txn <= txn && max_blocks) {
        struct sm_run *run = run_at(sm, 0);
        dblock_t begin = run->begin, end = begin + min_u64(run->len, max_blocks);

        max_blocks -= end - begin;
        run->begin = end;
        run->len -= end - begin;
        if (run->len == 0) {
            sm->runs_head = (sm->runs_head + 1) % sm->cap_runs;
            sm->nr_runs--;
        }
        /* First, so that what it holds stays out of reach. */
        if (freed)
            freed(arg, begin, end);
        let_go(sm, begin, end);
    }
    return sm->nr_runs && run_at(sm, 0)->txn <= txn;
}

void
sm_durable(struct space_map *sm, uint64_t txn,
           void (*freed)(void *arg, dblock_t begin, dblock_t end), void *arg)
{
    sm_durable_some(sm, txn, UINT64_MAX, freed, arg);
}

void
sm_pending_fini(struct space_map *sm)
{
    u64_map_fini(&sm->page_at);
    u64_map_fini(&sm->holds);
    free(sm->pages);
    free(sm->runs);
}
