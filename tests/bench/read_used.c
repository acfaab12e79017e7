/*
 * What the disk needs to deliver the used blocks of a pool's metadata, for make bench:
 * reads them, and nothing else, with O_DIRECT in block order, neighbours joined, several
 * reads at once, into huge pages (a read then has few pieces of memory to name, which
 * makes the disk of a virtual machine twice as fast), and does nothing with them.
 *
 *     read_used METADATA [THREADS] [BLOCKS OF ONE READ]
 *
 * Prints microseconds, without the time to find out which blocks are used, and how many
 * bytes they are.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/offline/check.h"

#define THREADS_MAX 64u
#define HUGE_PAGE   ((size_t)2 << 20)

struct piece {
    mblock_t begin;
    size_t nr;
};

struct reader {
    int fd;
    struct piece *pieces;
    size_t nr_pieces, most;
    atomic_size_t at;
    atomic_int code;
};

static void *
run(void *arg)
{
    struct reader *rd = arg;
    size_t room = round_up_u64(rd->most * METADATA_BLOCK_SIZE, HUGE_PAGE);
    void *buf = aligned_alloc(HUGE_PAGE, room);
    size_t i;

    if (buf)
        (void)madvise(buf, room, MADV_HUGEPAGE);
    while (buf && (i = atomic_fetch_add(&rd->at, 1)) < rd->nr_pieces) {
        const struct piece *p = &rd->pieces[i];
        ssize_t len = (ssize_t)(p->nr * METADATA_BLOCK_SIZE);

        if (pread(rd->fd, buf, (size_t)len, (off_t)(p->begin * METADATA_BLOCK_SIZE)) !=
            len)
            atomic_store(&rd->code, 1);
    }
    if (!buf)
        atomic_store(&rd->code, 1);
    free(buf);
    return NULL;
}

/* The pieces in which the blocks with a count are read. */
static int
plan(struct reader *rd, const struct counts *refs, uint64_t nr_blocks, uint64_t *ret_used)
{
    rd->pieces = malloc((nr_blocks + 1) * sizeof(*rd->pieces));
    if (!rd->pieces)
        return -1;
    for (mblock_t b = 0; b < nr_blocks; b++) {
        struct piece *last = rd->nr_pieces ? &rd->pieces[rd->nr_pieces - 1] : NULL;

        if (!counts_get(refs, b))
            continue;
        (*ret_used)++;
        if (last && b - last->begin < rd->most &&
            b - (last->begin + last->nr - 1) <= SOURCE_GAP_BLOCKS)
            last->nr = (size_t)(b - last->begin + 1);
        else
            rd->pieces[rd->nr_pieces++] = (struct piece){b, 1};
    }
    return 0;
}

static int
find_used(const char *path, struct reader *rd, uint64_t *ret_used)
{
    static const struct check_options opts;
    struct meta_source *src = NULL;
    struct check_result res = {0};
    struct thin_error err;
    struct report rep;
    int r;

    thin_error_init(&err);
    report_init(&rep);
    r = source_open_path(path, SOURCE_READ, &src, &err);
    if (r == 0)
        r = check_run(src, &opts, &rep, &res, &err);
    if (r == 0)
        r = plan(rd, &res.refs, res.metadata_blocks, ret_used);
    else
        fprintf(stderr, "read_used: %s\n", thin_error_text(&err, r));
    check_result_fini(&res);
    report_fini(&rep);
    source_close(src);
    return r;
}

int
main(int argc, char **argv)
{
    unsigned nr_threads = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 8;
    struct reader rd = {.most = argc > 3 ? strtoul(argv[3], NULL, 10) : 128};
    pthread_t threads[THREADS_MAX];
    struct timespec begin, end;
    uint64_t used = 0;

    if (argc < 2 || !nr_threads || nr_threads > THREADS_MAX || !rd.most) {
        fprintf(stderr, "usage: read_used METADATA [THREADS] [BLOCKS OF ONE READ]\n");
        return 2;
    }
    if (find_used(argv[1], &rd, &used))
        return 1;
    rd.fd = open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (rd.fd < 0) {
        perror(argv[1]);
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (unsigned i = 0; i < nr_threads; i++)
        if (pthread_create(&threads[i], NULL, run, &rd))
            return 1;
    for (unsigned i = 0; i < nr_threads; i++)
        pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    close(rd.fd);
    free(rd.pieces);
    if (atomic_load(&rd.code)) {
        fprintf(stderr, "read_used: a read failed\n");
        return 1;
    }
    printf("%lld %" PRIu64 "\n",
           (long long)(end.tv_sec - begin.tv_sec) * 1000000 +
               (end.tv_nsec - begin.tv_nsec) / 1000,
           used * METADATA_BLOCK_SIZE);
    return 0;
}
