#include "core/offline/counts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/base/assert.h"

/*
 * Of a large table, whose pages would otherwise come one by one. No huge pages: they save
 * little, and in a virtual machine a fresh one may first have to come from the host, which
 * costs several times as much as the counting.
 */
#define SLAB_BYTES  ((size_t)2 << 20)
#define SLAB_CHUNKS 128u

struct count_slab {
    struct count_slab *next;
    uint32_t nr_used;
    struct count_chunk chunks[SLAB_CHUNKS];
};
_Static_assert(sizeof(struct count_slab) <= SLAB_BYTES, "a slab fits in its bytes");

static bool
uses_slabs(const struct counts *c)
{
    return c->nr_chunks >= SLAB_CHUNKS;
}

/* All zero, or NULL. */
static struct count_chunk *
new_chunk(struct counts *c)
{
    if (!uses_slabs(c))
        return calloc(1, sizeof(struct count_chunk));
    if (!c->slabs || c->slabs->nr_used == SLAB_CHUNKS) {
        struct count_slab *slab = mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

        if (slab == MAP_FAILED)
            return NULL;
        slab->next = c->slabs;
        c->slabs = slab;
    }
    return &c->slabs->chunks[c->slabs->nr_used++];
}

int
counts_init(struct counts *c, uint64_t nr)
{
    c->slabs = NULL;
    c->nr = nr;
    c->nr_chunks = nr / BITMAP_ENTRIES + 1;
    c->chunk = calloc(c->nr_chunks, sizeof(struct count_chunk *));
    return c->chunk ? 0 : -ENOMEM;
}

void
counts_fini(struct counts *c)
{
    if (!c->chunk)
        return;
    for (uint64_t k = 0; k < c->nr_chunks; k++)
        if (c->chunk[k]) {
            free(c->chunk[k]->carry);
            if (!uses_slabs(c))
                free(c->chunk[k]);
        }
    while (c->slabs) {
        struct count_slab *slab = c->slabs;

        c->slabs = slab->next;
        munmap(slab, SLAB_BYTES);
    }
    free(c->chunk);
    c->chunk = NULL;
}

static int
copy_chunk(struct counts *c, uint64_t k, const struct count_chunk *from)
{
    struct count_chunk **to = &c->chunk[k];

    if (!counts_touch(c, k))
        return -ENOMEM;
    memcpy((*to)->low, from->low, sizeof(from->low));
    if (!from->carry)
        return 0;
    (*to)->carry = malloc(BITMAP_ENTRIES * sizeof(*from->carry));
    if (!(*to)->carry)
        return -ENOMEM;
    memcpy((*to)->carry, from->carry, BITMAP_ENTRIES * sizeof(*from->carry));
    return 0;
}

int
counts_copy(struct counts *to, const struct counts *from)
{
    int r = counts_init(to, from->nr);

    for (uint64_t k = 0; k < from->nr_chunks && r >= 0; k++)
        if (from->chunk[k])
            r = copy_chunk(to, k, from->chunk[k]);
    return r;
}

struct count_chunk *
counts_touch(struct counts *c, uint64_t k)
{
    if (!c->chunk[k])
        c->chunk[k] = new_chunk(c);
    return c->chunk[k];
}

int
counts_carry(struct count_chunk *chunk, uint32_t e)
{
    if (!chunk->carry)
        chunk->carry = calloc(BITMAP_ENTRIES, sizeof(uint32_t));
    if (!chunk->carry)
        return -ENOMEM;
    chunk->carry[e]++;
    return 0;
}

void
counts_dec(struct counts *c, uint64_t b)
{
    uint64_t k = b / BITMAP_ENTRIES;
    uint32_t e = (uint32_t)(b - k * BITMAP_ENTRIES);
    struct count_chunk *chunk = c->chunk[k];

    THIN_ASSERT(count_chunk_get(chunk, e) > 0);
    if (chunk->low[e]-- == 0)
        chunk->carry[e]--;
}

int
counts_inc_run(struct counts *c, uint64_t b, uint64_t len)
{
    while (len) {
        uint64_t k = b / BITMAP_ENTRIES;
        uint32_t e = (uint32_t)(b - k * BITMAP_ENTRIES);
        uint32_t n = len < BITMAP_ENTRIES - e ? (uint32_t)len : BITMAP_ENTRIES - e;
        struct count_chunk *chunk = counts_touch(c, k);

        if (!chunk)
            return -ENOMEM;
        for (uint32_t i = e; i < e + n; i++)
            if (__builtin_expect(++chunk->low[i] == 0, 0) && counts_carry(chunk, i) < 0)
                return -ENOMEM;
        b += n;
        len -= n;
    }
    return 0;
}
