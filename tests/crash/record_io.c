/*
 * Preloaded into thinsrv: writes down what it does to a pool's two files, as a disk would
 * see it, and can let a flush fail. Built as a shared object, beside nothing of ours.
 *
 *   RECORD_DATA, RECORD_META   the two files
 *   RECORD_LOG                 appended: one record at the begin of each change or flush,
 *                              with its data, and one at its end (replay_run.c reads it)
 *   RECORD_FAULT               while this file exists, what its words name fails with EIO:
 *                              data-flush, data-write, data-read, meta-flush, meta-write,
 *                              meta-read. What a failed flush covers is given up by the
 *                              page cache or not: as on Linux, nobody knows
 *
 * What is in the log at a moment was submitted before that moment; so its length is the
 * clock by which clients note what they asked and what was answered. The driver must go by
 * system calls: THIN_FILE_WAY=threads.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OP_WRITE, OP_FLUSH, OP_ZERO, OP_GROW, OP_END };

struct record { /* as replay_run.c has it */
    uint32_t magic;
    uint8_t op, source;
    uint16_t fua;
    uint64_t id, offset, len;
};
#define MAGIC 0x31434552u /* "REC1" */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t next_id = 1;
static int log_fd = -1;

/* 0 data, 1 metadata, -1 neither. */
static int
source_of(int fd)
{
    static const char *const names[] = {"RECORD_DATA", "RECORD_META"};
    struct stat st, wanted;

    if (!getenv("RECORD_LOG") && !getenv("RECORD_FAULT"))
        return -1;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return -1;
    for (int i = 0; i < 2; i++) {
        const char *path = getenv(names[i]);

        if (path && stat(path, &wanted) == 0 && wanted.st_ino == st.st_ino &&
            wanted.st_dev == st.st_dev)
            return i;
    }
    return -1;
}

/* Is it to fail now? */
static int
fails(int source, const char *what)
{
    const char *fault = getenv("RECORD_FAULT");
    char words[128] = "", wanted[32] = "";
    int fd, saved = errno;
    ssize_t n;

    if (source < 0 || !fault || (fd = open(fault, O_RDONLY | O_CLOEXEC)) < 0) {
        errno = saved;
        return 0;
    }
    n = read(fd, words, sizeof(words) - 1);
    close(fd);
    errno = saved;
    strcpy(wanted, source == 0 ? "data-" : "meta-");
    strcat(wanted, what);
    return n > 0 && strstr(words, wanted) != NULL;
}

static void
put(const void *bytes, size_t len)
{
    const char *p = bytes;

    while (len > 0) {
        ssize_t n = write(log_fd, p, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            abort(); /* half a log would be believed */
        p += n;
        len -= (size_t)n;
    }
}

static uint64_t
begin(int op, int source, int fua, uint64_t offset, const struct iovec *iov, int nr,
      uint64_t len)
{
    struct record r = {.magic = MAGIC,
                       .op = (uint8_t)op,
                       .source = (uint8_t)source,
                       .fua = (uint16_t)fua,
                       .offset = offset,
                       .len = len};

    if (!getenv("RECORD_LOG"))
        return 0;
    pthread_mutex_lock(&lock);
    if (log_fd < 0)
        log_fd =
            open(getenv("RECORD_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    r.id = next_id++;
    put(&r, sizeof(r));
    for (int i = 0; i < nr; i++)
        put(iov[i].iov_base, iov[i].iov_len);
    pthread_mutex_unlock(&lock);
    return r.id;
}

/* `len`: what was done of it; 0 and a failure leave it open for ever. */
static void
end(uint64_t id, int source, uint64_t len)
{
    struct record r = {
        .magic = MAGIC, .op = OP_END, .source = (uint8_t)source, .id = id, .len = len};

    if (id == 0)
        return;
    pthread_mutex_lock(&lock);
    put(&r, sizeof(r));
    pthread_mutex_unlock(&lock);
}

#define REAL(type, name, ...)         \
    static type (*real)(__VA_ARGS__); \
    if (!real)                        \
        *(void **)&real = dlsym(RTLD_NEXT, name);

static uint64_t
sum(const struct iovec *iov, int nr)
{
    uint64_t len = 0;

    for (int i = 0; i < nr; i++)
        len += iov[i].iov_len;
    return len;
}

ssize_t
pwritev(int fd, const struct iovec *iov, int nr, off_t offset)
{
    int source = source_of(fd), saved;
    uint64_t id = 0;
    ssize_t n;

    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t)
    if (fails(source, "write")) {
        errno = EIO;
        return -1;
    }
    if (source >= 0)
        id = begin(OP_WRITE, source, 0, (uint64_t)offset, iov, nr, sum(iov, nr));
    n = real(fd, iov, nr, offset);
    saved = errno;
    if (source >= 0 && n > 0)
        end(id, source, (uint64_t)n);
    errno = saved;
    return n;
}

ssize_t
pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    int source = source_of(fd), saved;
    uint64_t id = 0;
    ssize_t n;

    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)
    if (fails(source, "write")) {
        errno = EIO;
        return -1;
    }
    if (source >= 0)
        id = begin(OP_WRITE, source, 0, (uint64_t)offset, &iov, 1, len);
    n = real(fd, buf, len, offset);
    saved = errno;
    if (source >= 0 && n > 0)
        end(id, source, (uint64_t)n);
    errno = saved;
    return n;
}

ssize_t
preadv(int fd, const struct iovec *iov, int nr, off_t offset)
{
    REAL(ssize_t, "preadv", int, const struct iovec *, int, off_t)
    if (fails(source_of(fd), "read")) {
        errno = EIO;
        return -1;
    }
    return real(fd, iov, nr, offset);
}

ssize_t
preadv2(int fd, const struct iovec *iov, int nr, off_t offset, int flags)
{
    REAL(ssize_t, "preadv2", int, const struct iovec *, int, off_t, int)
    if (fails(source_of(fd), "read")) {
        errno = EIO;
        return -1;
    }
    return real(fd, iov, nr, offset, flags);
}

static int
flush(int fd, int (*real)(int))
{
    int source = source_of(fd), saved, r;
    uint64_t id = 0;

    if (fails(source, "flush")) {
        real(fd); /* the pages are clean now, whatever is told */
        errno = EIO;
        return -1;
    }
    if (source >= 0)
        id = begin(OP_FLUSH, source, 0, 0, NULL, 0, 0);
    r = real(fd);
    saved = errno;
    if (id && r == 0)
        end(id, source, 0);
    errno = saved;
    return r;
}

int
fdatasync(int fd)
{
    REAL(int, "fdatasync", int)
    return flush(fd, real);
}

int
fsync(int fd)
{
    REAL(int, "fsync", int)
    return flush(fd, real);
}

int
fallocate(int fd, int mode, off_t offset, off_t len)
{
    int source = source_of(fd), saved, r;
    uint64_t id = 0;
    struct stat st;

    REAL(int, "fallocate", int, int, off_t, off_t)
    if (source >= 0 && (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
        id = begin(OP_ZERO, source, 0, (uint64_t)offset, NULL, 0, (uint64_t)len);
    r = real(fd, mode, offset, len);
    saved = errno;
    if (id && r == 0)
        end(id, source, (uint64_t)len);
    if (source >= 0 && r == 0 && !(mode & FALLOC_FL_KEEP_SIZE) && fstat(fd, &st) == 0)
        end(begin(OP_GROW, source, 0, (uint64_t)st.st_size, NULL, 0, 0), source, 0);
    errno = saved;
    return r;
}

int
ftruncate(int fd, off_t size)
{
    int source = source_of(fd), saved, r;

    REAL(int, "ftruncate", int, off_t)
    r = real(fd, size);
    saved = errno;
    if (source >= 0 && r == 0)
        end(begin(OP_GROW, source, 0, (uint64_t)size, NULL, 0, 0), source, 0);
    errno = saved;
    return r;
}
