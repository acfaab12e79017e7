#include "core/offline/source_ahead.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "core/base/assert.h"

/* The page cache delivers in a third of it. */
#define SLOW_US           40u
#define SLOW_PER_64_BLOCK 160u

#define NOBODY    UINT_MAX
#define ANYBODY   (UINT_MAX - 1)
#define HUGE_PAGE ((size_t)2 << 20)

/*
 * A ring by rising numbers:
 *
 *      taken <= begun <= asked <= taken + nr_pieces
 *
 *  below taken   released, or never asked for
 *  below begun   somebody reads it, or has (`done`)
 *  below asked   waits for whoever comes first, a thread or the owner
 *
 * `slot` names the piece at each place of the ring: one that is taken out of turn changes
 * places with the oldest.
 */
struct source_ahead {
    ahead_read_fn *read;
    void *arg;
    unsigned nr_pieces, piece_blocks;
    struct ahead_piece *pieces;
    bool *done;     /* by piece, as is `awaited` */
    unsigned *slot; /* by place; only the owner changes it */
    uint64_t taken, begun, asked;
    unsigned awaited; /* the piece that the owner waits for, or ANYBODY, or NOBODY */
    bool from_disk, ending, started;
    bool slow; /* the last read waited for a disk */
    uint8_t *bytes;
    pthread_mutex_t lock;   /* guards the numbers, `done`, `ending`, `slow` */
    pthread_cond_t wanted;  /* something is asked for, or the end: for the first thread */
    pthread_cond_t crowded; /* the same, for all others: only while reads are slow */
    pthread_cond_t arrived; /* something is done */
    unsigned nr_threads;
    pthread_t threads[AHEAD_THREADS];
};

uint64_t
ahead_now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

bool
ahead_is_slow(uint64_t us, size_t nr_blocks)
{
    return us > SLOW_US + SLOW_PER_64_BLOCK * nr_blocks / 64;
}

static bool
read_piece(const struct source_ahead *a, struct ahead_piece *p)
{
    size_t len = (size_t)(p->blocks[p->nr - 1] - p->blocks[0] + 1);
    uint64_t begin = ahead_now_us();
    bool slow;

    p->code = a->read(a->arg, p->blocks[0] * METADATA_BLOCK_SIZE, p->bytes,
                      len * METADATA_BLOCK_SIZE);
    slow = ahead_is_slow(ahead_now_us() - begin, len);
    if (p->code < 0)
        return slow;
    for (size_t i = 0; i < p->nr; i++)
        p->codes[i] = p->kind == BLOCK_KINDS
                          ? 0
                          : block_check(p->kind,
                                        p->bytes + (size_t)(p->blocks[i] - p->blocks[0]) *
                                                       METADATA_BLOCK_SIZE,
                                        p->blocks[i], NULL);
    return slow;
}

static unsigned
slot_at(const struct source_ahead *a, uint64_t place)
{
    return a->slot[place % a->nr_pieces];
}

/* Reads the next piece that nobody has begun. With the lock held, but for the read. */
static void
read_next(struct source_ahead *a)
{
    unsigned i = slot_at(a, a->begun++);
    bool slow;

    pthread_mutex_unlock(&a->lock);
    slow = read_piece(a, &a->pieces[i]) || a->from_disk;
    pthread_mutex_lock(&a->lock);
    a->done[i] = true;
    if (slow && !a->slow && a->begun != a->asked)
        pthread_cond_broadcast(&a->crowded);
    a->slow = slow;
    if (a->awaited == i || a->awaited == ANYBODY)
        pthread_cond_signal(&a->arrived);
}

/* With the lock held. */
static void
await(struct source_ahead *a, unsigned i)
{
    a->awaited = i;
    while (!a->done[i])
        pthread_cond_wait(&a->arrived, &a->lock);
    a->awaited = NOBODY;
}

/* The first thread: what comes from the page cache needs no more than one. */
static void *
run_first(void *arg)
{
    struct source_ahead *a = arg;

    pthread_mutex_lock(&a->lock);
    while (!a->ending) {
        if (a->begun == a->asked) {
            pthread_cond_wait(&a->wanted, &a->lock);
            continue;
        }
        read_next(a);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

static void *
run_other(void *arg)
{
    struct source_ahead *a = arg;

    pthread_mutex_lock(&a->lock);
    while (!a->ending) {
        if (a->begun == a->asked || !a->slow) {
            pthread_cond_wait(&a->crowded, &a->lock);
            continue;
        }
        read_next(a);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

static void
free_all(struct source_ahead *a)
{
    free(a->pieces);
    free(a->done);
    free(a->slot);
    free(a->bytes);
    free(a);
}

int
ahead_create(ahead_read_fn *read, void *arg, unsigned nr_pieces, unsigned piece_blocks,
             bool from_disk, struct source_ahead **ret)
{
    struct source_ahead *a = calloc(1, sizeof(*a));
    const size_t piece = (size_t)piece_blocks * METADATA_BLOCK_SIZE;

    THIN_ASSERT(piece_blocks <= AHEAD_PIECE_BLOCKS_MAX);
    if (!a)
        return -ENOMEM;
    a->read = read;
    a->arg = arg;
    a->nr_pieces = nr_pieces;
    a->piece_blocks = piece_blocks;
    a->awaited = NOBODY;
    a->from_disk = a->slow = from_disk;
    a->pieces = calloc(nr_pieces, sizeof(*a->pieces));
    a->done = calloc(nr_pieces, sizeof(*a->done));
    a->slot = calloc(nr_pieces, sizeof(*a->slot));
    a->bytes =
        aligned_alloc(nr_pieces * piece < HUGE_PAGE ? METADATA_BLOCK_SIZE : HUGE_PAGE,
                      nr_pieces * piece);
    if (!a->pieces || !a->done || !a->slot || !a->bytes) {
        free_all(a);
        return -ENOMEM;
    }
    /* A disk of a virtual machine is twice as fast where a read has few pieces of memory
       to name. Few such pages: a fresh one may first have to come from the host. */
    if (from_disk)
        (void)madvise(a->bytes, nr_pieces * piece, MADV_HUGEPAGE);
    for (unsigned i = 0; i < nr_pieces; i++)
        a->pieces[i].bytes = a->bytes + i * piece;
    for (unsigned i = 0; i < nr_pieces; i++)
        a->slot[i] = i;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->wanted, NULL);
    pthread_cond_init(&a->crowded, NULL);
    pthread_cond_init(&a->arrived, NULL);
    *ret = a;
    return 0;
}

void
ahead_destroy(struct source_ahead *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&a->lock);
    a->ending = true;
    pthread_cond_broadcast(&a->wanted);
    pthread_cond_broadcast(&a->crowded);
    pthread_mutex_unlock(&a->lock);
    for (unsigned i = 0; i < a->nr_threads; i++)
        pthread_join(a->threads[i], NULL);
    pthread_cond_destroy(&a->wanted);
    pthread_cond_destroy(&a->crowded);
    pthread_cond_destroy(&a->arrived);
    pthread_mutex_destroy(&a->lock);
    free_all(a);
}

/* Signals are the owner's: who waits for a disk here must not be the one to get them. A
   quarter of the pieces is left for the owner to look at. */
static void
start(struct source_ahead *a)
{
    sigset_t all, before;

    a->started = true;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before))
        return;
    while (a->nr_threads < AHEAD_THREADS && a->nr_threads < a->nr_pieces * 3 / 4 &&
           pthread_create(&a->threads[a->nr_threads], NULL,
                          a->nr_threads ? run_other : run_first, a) == 0)
        a->nr_threads++;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Only the owner changes `taken` and `asked`: it may read them without the lock. */
bool
ahead_has_room(const struct source_ahead *a)
{
    return a->asked - a->taken < a->nr_pieces;
}

bool
ahead_is_empty(const struct source_ahead *a)
{
    return a->asked == a->taken;
}

void
ahead_ask(struct source_ahead *a, const mblock_t *blocks, size_t nr, enum block_kind kind)
{
    unsigned i = slot_at(a, a->asked);
    struct ahead_piece *p = &a->pieces[i];

    THIN_ASSERT(ahead_has_room(a) && nr > 0 && nr <= a->piece_blocks);
    p->blocks = blocks;
    p->nr = nr;
    p->kind = kind;
    a->done[i] = false;
    if (!a->started)
        start(a);
    pthread_mutex_lock(&a->lock);
    a->asked++;
    pthread_cond_signal(&a->wanted);
    if (a->slow)
        pthread_cond_signal(&a->crowded);
    pthread_mutex_unlock(&a->lock);
}

const struct ahead_piece *
ahead_take(struct source_ahead *a)
{
    unsigned i = slot_at(a, a->taken);

    THIN_ASSERT(!ahead_is_empty(a));
    pthread_mutex_lock(&a->lock);
    /* Reading one of the next is better than waiting, if there is little to wait for. */
    while (!a->done[i]) {
        if (a->begun != a->asked && !(a->from_disk && a->nr_threads))
            read_next(a);
        else
            await(a, i);
    }
    pthread_mutex_unlock(&a->lock);
    return &a->pieces[i];
}

/* The oldest that is done comes to the place of the oldest. With the lock held. */
static bool
bring_forward(struct source_ahead *a)
{
    for (uint64_t at = a->taken; at < a->begun; at++) {
        unsigned i = slot_at(a, at);

        if (!a->done[i])
            continue;
        a->slot[at % a->nr_pieces] = slot_at(a, a->taken);
        a->slot[a->taken % a->nr_pieces] = i;
        return true;
    }
    return false;
}

const struct ahead_piece *
ahead_take_any(struct source_ahead *a)
{
    THIN_ASSERT(!ahead_is_empty(a));
    pthread_mutex_lock(&a->lock);
    while (!bring_forward(a)) {
        if (a->begun != a->asked && !a->nr_threads) {
            read_next(a);
            continue;
        }
        a->awaited = ANYBODY;
        pthread_cond_wait(&a->arrived, &a->lock);
        a->awaited = NOBODY;
    }
    pthread_mutex_unlock(&a->lock);
    return &a->pieces[slot_at(a, a->taken)];
}

void
ahead_release(struct source_ahead *a)
{
    THIN_ASSERT(!ahead_is_empty(a));
    a->taken++;
}

void
ahead_drop(struct source_ahead *a)
{
    pthread_mutex_lock(&a->lock);
    a->asked = a->begun;
    for (; a->taken < a->asked; a->taken++)
        await(a, slot_at(a, a->taken));
    pthread_mutex_unlock(&a->lock);
}

bool
ahead_was_slow(const struct source_ahead *a)
{
    return a->slow;
}
