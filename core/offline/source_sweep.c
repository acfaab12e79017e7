#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/offline/source_sweep.h"

#define ROOM_BLOCKS 256u /* of one allocation: 1 MiB */

/* ---- kept aside ---------------------------------------------------------------------- */

struct source_aside {
    enum block_kind kind; /* what the codes are about */
    struct kept_block {
        mblock_t block;
        uint32_t at; /* which of the copies */
        int code;
    } kept[ASIDE_BLOCKS_MAX]; /* in rising order once the sweep is over */
    uint8_t *room[ASIDE_BLOCKS_MAX / ROOM_BLOCKS];
    uint32_t nr;
};

static uint8_t *
bytes_of(const struct source_aside *aside, uint32_t at)
{
    return aside->room[at / ROOM_BLOCKS] +
           (size_t)(at % ROOM_BLOCKS) * METADATA_BLOCK_SIZE;
}

static void
keep(struct source_aside *aside, mblock_t b, const uint8_t *data, int code)
{
    uint32_t i = aside->nr;
    uint8_t **room = &aside->room[i / ROOM_BLOCKS];

    if (i == ASIDE_BLOCKS_MAX)
        return;
    if (!*room)
        *room = malloc((size_t)ROOM_BLOCKS * METADATA_BLOCK_SIZE);
    if (!*room)
        return;
    memcpy(bytes_of(aside, i), data, METADATA_BLOCK_SIZE);
    aside->kept[aside->nr++] = (struct kept_block){b, i, code};
}

const uint8_t *
aside_find(const struct source_aside *aside, mblock_t b, enum block_kind kind,
           int *ret_code)
{
    uint32_t low = 0, high = aside ? aside->nr : 0;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct kept_block *k = &aside->kept[middle];

        if (k->block == b) {
            const uint8_t *data = bytes_of(aside, k->at);

            if (kind == aside->kind)
                *ret_code = k->code;
            else
                *ret_code = kind == BLOCK_KINDS ? 0 : block_check(kind, data, b, NULL);
            return data;
        }
        if (k->block < b)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int
compare_kept(const void *pa, const void *pb)
{
    const struct kept_block *a = pa, *b = pb;

    return (a->block > b->block) - (a->block < b->block);
}

void
aside_free(struct source_aside *aside)
{
    if (!aside)
        return;
    for (unsigned i = 0; i < ASIDE_BLOCKS_MAX / ROOM_BLOCKS; i++)
        free(aside->room[i]);
    free(aside);
}

void
source_forget(struct meta_source *src)
{
    aside_free(src->aside);
    src->aside = NULL;
}

/* ---- the sweep ----------------------------------------------------------------------- */

struct piece {
    mblock_t blocks[AHEAD_PIECE_BLOCKS_MAX];
    size_t nr;
    bool is_asked;
};

struct sweep {
    struct meta_source *src;
    const uint8_t *wanted;
    mblock_t nr_blocks, next; /* the first that is not asked for */
    enum block_kind kind;
    source_swept_fn *seen;
    void *arg;
    struct source_ahead *ahead;
    struct piece *pieces; /* as many as may be on their way */
    uint64_t nr_seen, nr_done;
};

/* The blocks of the next read; none at the end. */
static void
next_piece(struct sweep *sw, struct piece *p)
{
    p->nr = 0;
    while (sw->next < sw->nr_blocks) {
        mblock_t b = sw->next;

        if (!sw->wanted[b / 8]) {
            sw->next = (b / 8 + 1) * 8;
            continue;
        }
        if (sw->wanted[b / 8] >> (b % 8) & 1u) {
            if (p->nr && (b - p->blocks[0] >= AHEAD_PIECE_BLOCKS_MAX ||
                          b - p->blocks[p->nr - 1] > SOURCE_GAP_BLOCKS))
                return;
            p->blocks[p->nr++] = b;
        }
        sw->next++;
    }
}

static void
ask(struct sweep *sw)
{
    for (unsigned i = 0; i < SWEEP_PIECES && ahead_has_room(sw->ahead); i++) {
        struct piece *p = &sw->pieces[i];

        if (p->is_asked)
            continue;
        next_piece(sw, p);
        if (!p->nr)
            return;
        p->is_asked = true;
        ahead_ask(sw->ahead, p->blocks, p->nr, sw->kind);
    }
}

static int
see(struct sweep *sw, const struct ahead_piece *p)
{
    /* What cannot be read will be told by who needs it. */
    for (size_t i = 0; i < p->nr && p->code >= 0; i++) {
        mblock_t b = p->blocks[i];
        const uint8_t *data = p->bytes + (size_t)(b - p->blocks[0]) * METADATA_BLOCK_SIZE;
        int r = sw->seen(sw->arg, b, data, p->codes[i]);

        if (r < 0)
            return r;
        if (r == 0) {
            keep(sw->src->aside, b, data, p->codes[i]);
            continue;
        }
        sw->src->nr_read++;
        sw->nr_done++;
    }
    sw->nr_seen += p->nr;
    return 0;
}

static int
take_one(struct sweep *sw)
{
    const struct ahead_piece *p = ahead_take_any(sw->ahead);
    int r = see(sw, p);

    for (unsigned i = 0; i < SWEEP_PIECES; i++)
        if (sw->pieces[i].blocks == p->blocks)
            sw->pieces[i].is_asked = false;
    ahead_release(sw->ahead);
    return r;
}

static int
run(struct sweep *sw)
{
    int r = 0;

    ask(sw);
    while (r == 0 && !ahead_is_empty(sw->ahead)) {
        r = source_tick(sw->src, NULL, 0, 0);
        if (r == 0)
            r = take_one(sw);
        if (sw->nr_seen >= SWEEP_TRIED_BLOCKS && sw->nr_done < sw->nr_seen / 2)
            break;
        if (r == 0)
            ask(sw);
    }
    return r;
}

int
source_sweep(struct meta_source *src, const uint8_t *wanted, mblock_t nr_blocks,
             enum block_kind kind, source_swept_fn *seen, void *arg)
{
    struct sweep sw = {.src = src,
                       .wanted = wanted,
                       .nr_blocks = min_u64(nr_blocks, src->nr_blocks),
                       .kind = kind,
                       .seen = seen,
                       .arg = arg};
    int r = 0;

    source_forget(src);
    if (!src->ops->read_from_disk)
        return 0;
    src->aside = calloc(1, sizeof(*src->aside));
    if (src->aside)
        src->aside->kind = kind;
    sw.pieces = calloc(SWEEP_PIECES, sizeof(*sw.pieces));
    if (src->aside && sw.pieces &&
        ahead_create(src->ops->read_from_disk, src->arg, SWEEP_PIECES,
                     AHEAD_PIECE_BLOCKS_MAX, true, &sw.ahead) == 0)
        r = run(&sw);
    ahead_destroy(sw.ahead);
    free(sw.pieces);
    if (src->aside)
        qsort(src->aside->kept, src->aside->nr, sizeof(*src->aside->kept), compare_kept);
    return r;
}
