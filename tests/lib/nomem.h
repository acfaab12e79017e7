/*
 * An allocator for tests: the n-th allocation fails, and what nobody has freed is counted.
 * Included by one file of a program. Where a sanitizer brings an allocator of its own,
 * there is none: NOMEM is not defined, and the test has nothing to run.
 */
#ifndef THIN_TESTS_LIB_NOMEM_H
#define THIN_TESTS_LIB_NOMEM_H

#ifndef THIN_SANITIZED
#define NOMEM 1

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t nr, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *p);

static struct {
    bool armed, failed;
    unsigned countdown;
    long live; /* pieces of memory that nobody has freed */
} nomem;

/* After `n` more allocations one fails, until nomem_disarm. */
static inline void
nomem_arm(unsigned n)
{
    nomem.countdown = n;
    nomem.failed = false;
    nomem.armed = true;
}

/* True: it has come to that. */
static inline bool
nomem_disarm(void)
{
    nomem.armed = false;
    return nomem.failed;
}

static inline bool
nomem_fails(void)
{
    if (!nomem.armed || nomem.failed || nomem.countdown-- > 0)
        return false;
    nomem.failed = true;
    return true;
}

/* By libc as well: strdup and others must find them. */
#define NOMEM_SEEN __attribute__((visibility("default")))

NOMEM_SEEN void *
malloc(size_t size)
{
    void *p = nomem_fails() ? NULL : __libc_malloc(size);

    nomem.live += p != NULL;
    return p;
}

NOMEM_SEEN void *
calloc(size_t nr, size_t size)
{
    void *p = nomem_fails() ? NULL : __libc_calloc(nr, size);

    nomem.live += p != NULL;
    return p;
}

NOMEM_SEEN void *
realloc(void *old, size_t size)
{
    void *p = nomem_fails() ? NULL : __libc_realloc(old, size);

    nomem.live += !old && p;
    return p;
}

NOMEM_SEEN void *
aligned_alloc(size_t alignment, size_t size)
{
    void *p = nomem_fails() ? NULL : __libc_memalign(alignment, size);

    nomem.live += p != NULL;
    return p;
}

NOMEM_SEEN int
posix_memalign(void **ret, size_t alignment, size_t size)
{
    void *p = aligned_alloc(alignment, size);

    if (!p)
        return ENOMEM;
    *ret = p;
    return 0;
}

NOMEM_SEEN void
free(void *p)
{
    nomem.live -= p != NULL;
    __libc_free(p);
}

#endif
#endif
