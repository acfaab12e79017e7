/*
 * Tables that begin as zeros. Large ones come from the kernel page by page, when they are
 * touched: malloc hands out memory that was used before and would have to be cleared, which
 * for a table of half a megabyte is a step too long for a loop.
 */
#ifndef THIN_CORE_PERSIST_ZEROED_H
#define THIN_CORE_PERSIST_ZEROED_H

#include <stddef.h>

/* NULL: no memory. */
void *zeroed_alloc(size_t len_bytes);
/* `len_bytes` as it was allocated; NULL is fine. */
void zeroed_free(void *table, size_t len_bytes);

#endif
