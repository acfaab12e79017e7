/* See pieces.h for what is remembered, and why that is safe. */
#include <stdlib.h>

#include "core/pool/pieces.h"

#define UNITS 256u /* of a block; block sizes are multiples of 64 KiB */

struct pieces_key {
    uint64_t vblock;
    uint64_t dev_id;
};
_Static_assert(sizeof(struct pieces_key) == 16, "hashed bytewise: no padding");

struct piece {
    struct pieces_key key;
    struct volume_core *core; /* NULL: free */
    uint64_t gone[UNITS / 64];
    TAILQ_ENTRY(piece) link; /* touched longest ago first, or the free list */
    UT_hash_handle hh;
};

struct pieces {
    struct piece *objects;
    struct piece *by_key;
    TAILQ_HEAD(, piece) used, free; /* free: not empty while some are */
    unsigned nr_begun;              /* objects that have been in use or free */
};

/* One that never was in use, when the free ones have ended: an open touches none of them. */
static void
begin_piece(struct pieces *ps)
{
    struct piece *piece = &ps->objects[ps->nr_begun];

    if (!TAILQ_EMPTY(&ps->free) || ps->nr_begun == PIECES_MAX)
        return;
    memset(piece, 0, sizeof(*piece));
    TAILQ_INSERT_TAIL(&ps->free, piece, link);
    ps->nr_begun++;
}

int
pieces_create(struct pool *pool)
{
    struct pieces *ps = calloc(1, sizeof(*ps));

    if (!ps)
        return -ENOMEM;
    pool->pieces = ps;
    TAILQ_INIT(&ps->used);
    TAILQ_INIT(&ps->free);
    ps->objects = malloc(PIECES_MAX * sizeof(*ps->objects));
    if (!ps->objects)
        return -ENOMEM;
    begin_piece(ps);
    return 0;
}

void
pieces_destroy(struct pool *pool)
{
    struct pieces *ps = pool->pieces;

    if (!ps)
        return;
    HASH_CLEAR(hh, ps->by_key);
    free(ps->objects);
    free(ps);
    pool->pieces = NULL;
}

static struct piece *
find(struct volume_core *core, vblock_t v)
{
    struct pieces_key key = {.vblock = v, .dev_id = core->dev_id};
    struct piece *piece;

    /* The analyser does not follow a number's bytes one by one; the key has no padding.
       NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult) */
    HASH_FIND(hh, core->pool->pieces->by_key, &key, sizeof(key), piece);
    return piece;
}

static void
drop(struct pieces *ps, struct piece *piece)
{
    THIN_ASSERT(ps->by_key);
    HASH_DELETE(hh, ps->by_key, piece);
    piece->core->nr_pieces--;
    piece->core = NULL;
    TAILQ_REMOVE(&ps->used, piece, link);
    TAILQ_INSERT_HEAD(&ps->free, piece, link);
}

void
pieces_forget(struct volume_core *core, vblock_t v)
{
    struct piece *piece = core->nr_pieces ? find(core, v) : NULL;

    if (piece)
        drop(core->pool->pieces, piece);
}

void
pieces_drop_core(struct volume_core *core)
{
    struct pieces *ps = core->pool->pieces;
    struct piece *piece, *next;

    if (!core->nr_pieces)
        return;
    for (piece = TAILQ_FIRST(&ps->used); piece; piece = next) {
        next = TAILQ_NEXT(piece, link);
        if (piece->core == core)
            drop(ps, piece);
    }
}

/* The block's entry, made if need be; NULL: there is no memory for one. */
static struct piece *
take_piece(struct volume_core *core, vblock_t v)
{
    struct pieces *ps = core->pool->pieces;
    struct piece *piece = core->nr_pieces ? find(core, v) : NULL;

    if (piece) {
        TAILQ_REMOVE(&ps->used, piece, link);
        TAILQ_INSERT_TAIL(&ps->used, piece, link);
        return piece;
    }
    if (TAILQ_EMPTY(&ps->free))
        drop(ps, TAILQ_FIRST(&ps->used));
    piece = TAILQ_FIRST(&ps->free);
    memset(piece->gone, 0, sizeof(piece->gone));
    piece->key = (struct pieces_key){.vblock = v, .dev_id = core->dev_id};
    HASH_ADD(hh, ps->by_key, key, sizeof(piece->key), piece);
    if (!piece->hh.tbl)
        return NULL;
    TAILQ_REMOVE(&ps->free, piece, link);
    begin_piece(ps);
    TAILQ_INSERT_TAIL(&ps->used, piece, link);
    piece->core = core;
    core->nr_pieces++;
    return piece;
}

static bool
is_whole(const struct piece *piece)
{
    for (unsigned i = 0; i < UNITS / 64; i++)
        if (piece->gone[i] != UINT64_MAX)
            return false;
    return true;
}

bool
pieces_whole(struct volume_core *core, vblock_t v)
{
    const struct piece *piece = core->nr_pieces ? find(core, v) : NULL;

    return piece && is_whole(piece);
}

void
pieces_written_slow(struct volume_core *core, uint64_t offset, uint64_t len)
{
    struct pool *pool = core->pool;
    uint64_t bs = pool->block_size, unit = bs / UNITS, end = offset + len;

    while (offset < end) {
        vblock_t v = pool_vblock(pool, offset);
        uint64_t to = min_u64(end, (v + 1) * bs);
        struct piece *piece = find(core, v);

        if (piece)
            for (uint64_t i = (offset - v * bs) / unit; i * unit < to - v * bs; i++)
                piece->gone[i / 64] &= ~(1ull << (i % 64));
        offset = to;
    }
}

/* True: the block has nothing left. */
static bool
note_block(struct volume_core *core, vblock_t v, uint64_t begin, uint64_t end)
{
    uint64_t bs = core->pool->block_size, unit = bs / UNITS, base = v * bs;
    struct piece *piece;

    /* What is not mapped is empty; what an origin stands behind is never unmapped. */
    if (mapcache_get(core, v) == MAP_HOLE || base < core->origin_size)
        return false;
    piece = take_piece(core, v);
    if (!piece)
        return false;
    if (end == core->size)
        end = base + bs;
    for (uint64_t i = div_up_u64(begin - base, unit); (i + 1) * unit <= end - base; i++)
        piece->gone[i / 64] |= 1ull << (i % 64);
    return is_whole(piece);
}

static void
unmap_block(struct volume_io *io, vblock_t v)
{
    struct volume_frag *frag = frag_get(io, FRAG_UNMAP);

    if (!frag)
        return; /* all are at work: it stays mapped until a next piece comes */
    frag->if_empty = true;
    frag->begin = v * frag->pool->block_size;
    frag->end = frag->begin + frag->pool->block_size;
    frag_run(frag);
}

bool
pieces_note(struct volume_io *io)
{
    struct volume_core *core = io->volume->core;
    struct pool *pool = core->pool;
    uint64_t bs = pool->block_size, end = io->offset + io->len;
    vblock_t first = pool_vblock(pool, io->offset), last;

    if ((io->op != VOLUME_DISCARD && io->op != VOLUME_WRITE_ZEROES) || io->len == 0 ||
        (io->state & IO_PIECES) || (io->flags & VOLUME_NO_HOLE) ||
        pool->config.discards == POOL_DISCARD_OFF || end > core->size)
        return false;
    io->state |= IO_PIECES;
    last = pool_vblock(pool, end - 1);
    io->state |= IO_ADVANCING;
    for (vblock_t v = first; v <= last; v = v < last ? last : last + 1) {
        uint64_t from = max_u64(io->offset, v * bs), to = min_u64(end, (v + 1) * bs);

        /* Whole ones have been dealt with. */
        if (to - from == bs || (from == v * bs && to == core->size))
            continue;
        if (note_block(core, v, from, to))
            unmap_block(io, v);
    }
    io->state &= ~IO_ADVANCING;
    return io->nr_frags > 0;
}
