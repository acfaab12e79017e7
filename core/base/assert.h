/*
 * THIN_ASSERT: for our own mistakes, compiled in everywhere, one condition each.
 * It stops the process; copy-on-write makes that safe, the last superblock still
 * stands. Never for bytes from disk, wire, configuration or user.
 */
#ifndef THIN_CORE_BASE_ASSERT_H
#define THIN_CORE_BASE_ASSERT_H

_Noreturn void thin_assert_failed(const char *what, const char *file, int line,
                                  const char *func);

#define THIN_ASSERT(cond) \
    ((cond) ? (void)0 : thin_assert_failed(#cond, __FILE__, __LINE__, __func__))

/* Walks over whole structures: only in builds made with --enable-debug. */
#ifdef THIN_CHECK_EXPENSIVE
#define THIN_ASSERT_EXPENSIVE(cond) THIN_ASSERT(cond)
#else
#define THIN_ASSERT_EXPENSIVE(cond) ((void)sizeof(cond))
#endif

#endif
