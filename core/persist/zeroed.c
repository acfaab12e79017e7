#include "core/persist/zeroed.h"

#include <stdlib.h>
#include <sys/mman.h>

#define LARGE_BYTES (64u << 10)

void *
zeroed_alloc(size_t len_bytes)
{
    void *table;

    if (len_bytes < LARGE_BYTES)
        return calloc(1, len_bytes);
    table =
        mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return table == MAP_FAILED ? NULL : table;
}

void
zeroed_free(void *table, size_t len_bytes)
{
    if (!table || len_bytes < LARGE_BYTES)
        free(table);
    else
        munmap(table, len_bytes);
}
