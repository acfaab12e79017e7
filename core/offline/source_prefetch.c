#include "core/offline/source_prefetch.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

struct prefetch_piece {
    uint32_t begin, nr; /* metadata blocks */
};

struct source_prefetch {
    const struct source_ops *ops;
    void *arg;
    uint8_t *block; /* for one block that is waited for */
    struct prefetch_piece *pieces;
    size_t nr, room;
    atomic_bool ending;
    pthread_t thread;
};

static void
free_all(struct source_prefetch *p)
{
    free(p->block);
    free(p->pieces);
    free(p);
}

static int
add_block(struct source_prefetch *p, uint32_t b)
{
    struct prefetch_piece *last = p->nr ? &p->pieces[p->nr - 1] : NULL;

    if (last && b - last->begin < PREFETCH_PIECE_BLOCKS &&
        b - (last->begin + last->nr - 1) <= SOURCE_GAP_BLOCKS) {
        last->nr = b - last->begin + 1;
        return 0;
    }
    if (p->nr == p->room) {
        size_t room = p->room ? p->room * 2 : 256;
        struct prefetch_piece *bigger = realloc(p->pieces, room * sizeof(*bigger));

        if (!bigger)
            return -1;
        p->pieces = bigger;
        p->room = room;
    }
    p->pieces[p->nr++] = (struct prefetch_piece){b, 1};
    return 0;
}

static int
plan(struct source_prefetch *p, const uint8_t *wanted, mblock_t nr_blocks)
{
    uint32_t left = PREFETCH_BLOCKS_MAX;

    for (mblock_t b = 0; b < nr_blocks && left > 0; b++)
        if (wanted[b / 8] >> (b % 8) & 1u) {
            if (add_block(p, (uint32_t)b) < 0)
                return -1;
            left--;
        }
    return 0;
}

static void *
run(void *arg)
{
    struct source_prefetch *p = arg;

    for (size_t i = 0; i < p->nr && !atomic_load(&p->ending); i++) {
        const struct prefetch_piece *next = &p->pieces[i];

        p->ops->will_read(p->arg, (uint64_t)next->begin * METADATA_BLOCK_SIZE,
                          (size_t)next->nr * METADATA_BLOCK_SIZE);
        if (i < PREFETCH_DEPTH)
            continue;
        /* Waits until that piece is there; more on their way would only make others,
           who need one block now, wait longer. */
        next = &p->pieces[i - PREFETCH_DEPTH];
        (void)p->ops->read(p->arg,
                           (uint64_t)(next->begin + next->nr - 1) * METADATA_BLOCK_SIZE,
                           p->block, METADATA_BLOCK_SIZE);
    }
    return NULL;
}

struct source_prefetch *
prefetch_start(struct meta_source *src, const uint8_t *wanted, mblock_t nr_blocks)
{
    struct source_prefetch *p;
    sigset_t all, before;
    int r;

    if (!src->ops->will_read || !src->ops->any_thread)
        return NULL;
    p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    p->ops = src->ops;
    p->arg = src->arg;
    p->block = aligned_alloc(METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE);
    if (!p->block || plan(p, wanted, nr_blocks) < 0) {
        free_all(p);
        return NULL;
    }
    /* Signals are the owner's. */
    sigfillset(&all);
    r = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (r == 0) {
        r = pthread_create(&p->thread, NULL, run, p);
        (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (r) {
        free_all(p);
        return NULL;
    }
    return p;
}

void
prefetch_end(struct source_prefetch *p)
{
    if (!p)
        return;
    atomic_store(&p->ending, true);
    pthread_join(p->thread, NULL);
    free_all(p);
}
