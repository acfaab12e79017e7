/*
 * Result codes, and the chain of words that travels beside them.
 *
 * Whatever can fail returns an int: 0 (or a count), or one negative code.
 * -1 to -999 is -errno. From -1001 on the codes are ours, from the one table
 * below; their numbers are for ever, since they also travel on the wire.
 *
 * Words travel in a `struct thin_error` that the outermost caller owns; each
 * floor that knows more adds one phrase in front. NULL is fine where nobody
 * will read them. All functions here: any thread, no allocation, errno kept.
 */
#ifndef THIN_CORE_BASE_ERROR_H
#define THIN_CORE_BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define MUST_CHECK             __attribute__((warn_unused_result))
#else
#define PRINTF_LIKE(fmt, args)
#define MUST_CHECK
#endif

/*        name             number  nearest errno  text */
#define THIN_ERROR_TABLE(X)                                             \
    X(WOULD_BLOCK, 1001, EAGAIN, "a metadata block must be read first") \
    X(CHECKSUM, 1002, EIO, "checksum mismatch")                         \
    X(BAD_BLOCK, 1003, EIO, "damaged metadata block")                   \
    X(NOT_THIN, 1004, EINVAL, "not thin-pool metadata")                 \
    X(VERSION, 1005, EINVAL, "version not supported")                   \
    X(RECURSIVE_LOCK, 1006, EDEADLK, "block is locked already")         \
    X(CACHE_FULL, 1007, ENOMEM, "no free frame in the metadata cache")  \
    X(NO_DATA_SPACE, 1008, ENOSPC, "pool is out of data space")         \
    X(NO_METADATA_SPACE, 1009, ENOSPC, "pool is out of metadata space") \
    X(READ_ONLY, 1010, EPERM, "read-only")                              \
    X(NEEDS_CHECK, 1011, EIO, "pool needs a check")                     \
    X(FAILED, 1012, EIO, "pool has failed")                             \
    X(NOT_FOUND, 1013, ENOENT, "no such object")                        \
    X(EXISTS, 1014, EEXIST, "exists already")                           \
    X(BUSY, 1015, EBUSY, "in use")                                      \
    X(INVALID, 1016, EINVAL, "invalid argument")                        \
    X(RANGE, 1017, EINVAL, "beyond the end")                            \
    X(ROLLED_BACK, 1018, EIO, "unflushed writes were lost")             \
    X(STALE, 1019, EPERM, "attachment is no longer valid")              \
    X(DENIED, 1020, EACCES, "not permitted")                            \
    X(PROTOCOL, 1021, EPROTO, "protocol error")                         \
    X(UNSUPPORTED, 1022, EOPNOTSUPP, "not supported")                   \
    X(LIMIT, 1023, EOVERFLOW, "limit exceeded")                         \
    X(SHUTDOWN, 1024, ESHUTDOWN, "shutting down")                       \
    X(CANCELLED, 1025, ECANCELED, "cancelled")                          \
    X(DISCONNECTED, 1026, ENOTCONN, "not connected")                    \
    X(TIMED_OUT, 1027, ETIMEDOUT, "timed out")                          \
    X(LOST, 1028, EIO, "device is lost")                                \
    X(QUOTA, 1029, ENOSPC, "quota exceeded")                            \
    X(IN_FLIGHT, 1030, EAGAIN, "must wait for requests in flight")      \
    X(MOVED, 1031, EREMOTE, "the pool lives on another server")         \
    X(TLS, 1032, EPROTO, "TLS failure")                                 \
    X(SIGNATURE, 1033, EEXIST, "device carries a known signature")      \
    X(CONFIG, 1034, EINVAL, "bad configuration")                        \
    X(CATALOGUE, 1035, EIO, "damaged catalogue")                        \
    X(UNKNOWN_OUTCOME, 1036, EIO, "outcome not known")                  \
    X(NEED_COMMIT, 1037, EAGAIN, "must wait for a commit")

enum thin_code {
#define THIN_ERROR_ENUM(name, number, err, text) THIN_E_##name = (number),
    THIN_ERROR_TABLE(THIN_ERROR_ENUM)
#undef THIN_ERROR_ENUM
};

#define THIN_ERROR_TEXT_MAX 512 /* bytes with the NUL; longer chains are cut at the end */

struct thin_error {
    int code; /* negative, or 0 when nothing was said */
    char text[THIN_ERROR_TEXT_MAX];
};

/* Starts with no words. */
void thin_error_init(struct thin_error *err);

/* Says what failed; replaces earlier words. Returns `code` (negative). `err` may be NULL. */
int thin_fail(struct thin_error *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/*
 * Like thin_fail, and ends the words with the text of the code:
 * "read metadata block 7: Input/output error".
 */
int thin_fail_code(struct thin_error *err, int code, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/*
 * Puts one phrase and ": " in front of the words so far; with no words so far the
 * text of the code stands behind. Returns `code`.
 */
int thin_wrap(struct thin_error *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

#if defined(__clang_analyzer__) && !defined(THIN_ERROR_C)
/* The analyser sees one file at a time and must know that these return `code`, and that
   it is negative. */
#define THIN_NEGATIVE(code)          \
    __extension__({                  \
        int negative_ = (code);      \
        if (negative_ >= 0)          \
            __builtin_unreachable(); \
        negative_;                   \
    })
void thin_words(const char *fmt, ...) PRINTF_LIKE(1, 2);
#define thin_fail(err, code, ...) \
    (thin_words(__VA_ARGS__), (void)(err), THIN_NEGATIVE(code))
#define thin_fail_code(err, code, ...) thin_fail(err, code, __VA_ARGS__)
#define thin_wrap(err, code, ...)      thin_fail(err, code, __VA_ARGS__)
#endif

/* The text of a code, never NULL: ours from the table, strerror for the rest. Static. */
const char *thin_strerror(int code);

/* The stable upper-case name, as JSON and the log print it: "NO_DATA_SPACE", "EIO". Static. */
const char *thin_error_name(int code);
/* The code says that what was read is not what it should be. */
bool is_damage(int code);

/* The nearest positive errno, for NBD and for exit paths. 0 for 0 and for positives. */
int thin_error_errno(int code);

/* The words if there are any, else the text of `code`. Lives as long as `err`. */
const char *thin_error_text(const struct thin_error *err, int code);

#endif
