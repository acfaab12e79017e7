/*
 * What lives as long as its scope. Set to NULL or -1 at once; hand on with take().
 * What can fail (commit, flush, closing written data) is never left to these.
 */
#ifndef THIN_CORE_BASE_CLEANUP_H
#define THIN_CORE_BASE_CLEANUP_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void
auto_free_cleanup(void *p)
{
    free(*(void **)p);
}

static inline void
auto_fd_cleanup(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void
auto_file_cleanup(FILE **f)
{
    if (*f)
        fclose(*f);
}

#define AUTO_FREE __attribute__((cleanup(auto_free_cleanup)))
#define AUTO_FD   __attribute__((cleanup(auto_fd_cleanup)))
#define AUTO_FILE __attribute__((cleanup(auto_file_cleanup)))

/* Hands the pointer on: the variable is NULL afterwards. */
#define take(p)                           \
    __extension__({                       \
        __typeof__(p) *take_from = &(p);  \
        __typeof__(p) taken = *take_from; \
        *take_from = NULL;                \
        taken;                            \
    })

static inline int
take_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}

#define container_of(ptr, type, member) \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#endif
