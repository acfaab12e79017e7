/*
 * Thread roles that clang checks: REQUIRES(pool_thread) on a call means that it is
 * made on the pool's home loop only. gcc sees plain declarations.
 */
#ifndef THIN_CORE_BASE_THREAD_H
#define THIN_CORE_BASE_THREAD_H

#if defined(__clang__)
#define THREAD_ROLE      __attribute__((capability("role")))
#define REQUIRES(role)   __attribute__((requires_capability(role)))
#define GUARDED_BY(lock) __attribute__((guarded_by(lock)))
#else
#define THREAD_ROLE
#define REQUIRES(role)
#define GUARDED_BY(lock)
#endif

struct THREAD_ROLE thread_role {
    char unused;
};

#endif
