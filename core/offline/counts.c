#include "core/offline/counts.h"

#include <stdlib.h>

int
counts_init(struct counts *c, uint64_t nr)
{
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
            free(c->chunk[k]);
        }
    free(c->chunk);
    c->chunk = NULL;
}

struct count_chunk *
counts_touch(struct counts *c, uint64_t k)
{
    if (!c->chunk[k])
        c->chunk[k] = calloc(1, sizeof(struct count_chunk));
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
