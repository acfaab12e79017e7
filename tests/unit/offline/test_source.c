/* Rows of blocks: the same whether threads read ahead or not, whatever is damaged. */
#include <check.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/random.h"
#include "core/offline/source.h"
#include "core/ondisk/node.h"

#define NR_BLOCKS 3000u
#define BYTES     ((size_t)NR_BLOCKS * METADATA_BLOCK_SIZE)

/* How many more threads may be made; those of the C library are made by it. */
static unsigned threads_left = UINT32_MAX;
static unsigned threads_refused;

int
pthread_create(pthread_t *ret, const pthread_attr_t *attr, void *(*run)(void *),
               void *arg)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

    if (!real) {
        void *found = dlsym(RTLD_NEXT, "pthread_create");

        memcpy(&real, &found, sizeof(real));
    }
    if (!threads_left) {
        threads_refused++;
        return EAGAIN;
    }
    threads_left--;
    return real(ret, attr, run, arg);
}

struct disk {
    uint8_t *bytes;
    bool bad[NR_BLOCKS]; /* cannot be read */
    atomic_uint nr_reads;
};

static int
disk_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct disk *d = arg;

    atomic_fetch_add(&d->nr_reads, 1);
    ck_assert_uint_le(offset + len, BYTES);
    for (uint64_t b = offset / METADATA_BLOCK_SIZE;
         b < (offset + len) / METADATA_BLOCK_SIZE; b++)
        if (d->bad[b])
            return -EIO;
    memcpy(buf, d->bytes + offset, len);
    return 0;
}

static const struct source_ops alone_ops = {.read = disk_read};
static const struct source_ops ahead_ops = {
    .read = disk_read, .any_thread = true, .read_from_disk = disk_read};

static struct meta_source *
open_disk(struct disk *d, const struct source_ops *ops)
{
    struct meta_source *src = NULL;

    ck_assert_int_eq(source_open_ops(ops, d, BYTES, false, &src), 0);
    return src;
}

static struct disk *
make_disk(struct thin_random *rng)
{
    struct disk *d = calloc(1, sizeof(*d));

    ck_assert_ptr_nonnull(d);
    d->bytes = calloc(1, BYTES);
    ck_assert_ptr_nonnull(d->bytes);
    for (uint64_t b = 0; b < NR_BLOCKS; b++) {
        uint8_t *block = d->bytes + b * METADATA_BLOCK_SIZE;

        node_init(block, true, 252, 8);
        block_seal(BLOCK_NODE, block, b);
        if (random_below(rng, 50) == 0)
            block[100] ^= 1; /* a wrong checksum */
        else if (random_below(rng, 200) == 0)
            d->bad[b] = true;
    }
    return d;
}

static void
free_disk(struct disk *d)
{
    free(d->bytes);
    free(d);
}

/* What a row said, in its order. */
struct seen {
    const mblock_t *sorted;
    const struct disk *disk;
    size_t nr, stop_at;
    int codes[NR_BLOCKS + 8];
};

static int
on_seen(void *arg, size_t index, const uint8_t *data, int code)
{
    struct seen *s = arg;
    mblock_t b = s->sorted[index];

    ck_assert_uint_eq(index, s->nr);
    ck_assert_int_eq(!data, b >= NR_BLOCKS || s->disk->bad[b]);
    if (data)
        ck_assert_int_eq(
            memcmp(data, s->disk->bytes + b * METADATA_BLOCK_SIZE, METADATA_BLOCK_SIZE),
            0);
    s->codes[s->nr++] = code;
    return s->nr == s->stop_at ? 7 : 0;
}

/* Ascending, with gaps, some twice, a few beyond the end. */
static size_t
make_row(struct thin_random *rng, mblock_t *sorted)
{
    uint64_t step = 1 + random_below(rng, 40);
    size_t nr = 0;

    for (mblock_t b = random_below(rng, 30); b < NR_BLOCKS && nr < NR_BLOCKS;
         b += random_below(rng, step))
        sorted[nr++] = b;
    for (mblock_t b = NR_BLOCKS; b < NR_BLOCKS + 3 && random_below(rng, 2); b++)
        sorted[nr++] = b;
    return nr;
}

START_TEST(rows_are_the_same_with_threads_and_without)
{
    struct thin_random rng;
    struct disk *d;
    mblock_t *sorted = calloc(NR_BLOCKS + 8, sizeof(*sorted));
    struct seen *alone = calloc(1, sizeof(*alone)), *ahead = calloc(1, sizeof(*ahead));
    struct meta_source *a, *b;

    random_seed(&rng, 3);
    d = make_disk(&rng);
    ck_assert(sorted && alone && ahead);
    a = open_disk(d, &alone_ops);
    b = open_disk(d, &ahead_ops);
    for (int i = 0; i < 60; i++) {
        size_t nr = make_row(&rng, sorted);
        enum block_kind kind = random_below(&rng, 3) ? BLOCK_NODE : BLOCK_KINDS;
        size_t stop = random_below(&rng, 3) ? 0 : 1 + random_below(&rng, nr + 1);
        int r;

        *alone = *ahead = (struct seen){.sorted = sorted, .disk = d, .stop_at = stop};
        r = source_read_many(a, sorted, nr, kind, on_seen, alone);
        ck_assert_int_eq(source_read_many(b, sorted, nr, kind, on_seen, ahead), r);
        ck_assert_int_eq(r, stop && stop <= nr ? 7 : 0);
        ck_assert_uint_eq(alone->nr, r ? stop : nr);
        ck_assert_uint_eq(ahead->nr, alone->nr);
        ck_assert_int_eq(
            memcmp(alone->codes, ahead->codes, alone->nr * sizeof(*alone->codes)), 0);
    }
    ck_assert_uint_gt(a->nr_unreadable, 0);
    source_close(a);
    source_close(b);
    free_disk(d);
    free(sorted);
    free(alone);
    free(ahead);
}
END_TEST

START_TEST(rows_are_the_same_when_threads_are_refused)
{
    struct thin_random rng;
    struct disk *d;
    mblock_t *sorted = calloc(NR_BLOCKS + 8, sizeof(*sorted));
    struct seen *alone = calloc(1, sizeof(*alone)), *few = calloc(1, sizeof(*few));

    random_seed(&rng, 6);
    d = make_disk(&rng);
    ck_assert(sorted && alone && few);
    for (unsigned left = 0; left < 9; left++) {
        struct meta_source *a = open_disk(d, &alone_ops), *b = open_disk(d, &ahead_ops);

        for (int i = 0; i < 4; i++) {
            size_t nr = make_row(&rng, sorted);

            *alone = *few = (struct seen){.sorted = sorted, .disk = d};
            ck_assert_int_eq(source_read_many(a, sorted, nr, BLOCK_NODE, on_seen, alone),
                             0);
            threads_left = left;
            threads_refused = 0;
            ck_assert_int_eq(source_read_many(b, sorted, nr, BLOCK_NODE, on_seen, few),
                             0);
            threads_left = UINT32_MAX;
            ck_assert(i > 0 || left == 8 || threads_refused > 0);
            ck_assert_uint_eq(few->nr, nr);
            ck_assert_int_eq(memcmp(alone->codes, few->codes, nr * sizeof(*few->codes)),
                             0);
        }
        source_close(a);
        source_close(b);
    }
    free_disk(d);
    free(sorted);
    free(alone);
    free(few);
}
END_TEST

/* ---- the sweep ----------------------------------------------------------------------- */

struct swept {
    const struct disk *disk;
    uint8_t wanted[NR_BLOCKS / 8 + 1];
    uint8_t met[NR_BLOCKS];
    unsigned take_of_100; /* of so many blocks it is done */
    size_t nr;
    atomic_uint *nr_met; /* NULL, or the same for other threads */
};

static bool
wants(const struct swept *s, mblock_t b)
{
    return s->wanted[b / 8] >> (b % 8) & 1;
}

static bool
takes(const struct swept *s, mblock_t b)
{
    return b * 37 % 100 < s->take_of_100;
}

static int
on_swept(void *arg, mblock_t b, const uint8_t *data, int code)
{
    struct swept *s = arg;
    const uint8_t *bytes = s->disk->bytes + b * METADATA_BLOCK_SIZE;

    ck_assert(wants(s, b) && !s->met[b]);
    ck_assert_int_eq(memcmp(data, bytes, METADATA_BLOCK_SIZE), 0);
    ck_assert_int_eq(code, block_check(BLOCK_NODE, bytes, b, NULL));
    s->met[b] = 1;
    s->nr++;
    if (s->nr_met)
        atomic_fetch_add(s->nr_met, 1);
    return takes(s, b);
}

static struct swept *
make_swept(struct thin_random *rng, const struct disk *d, unsigned take_of_100)
{
    struct swept *s = calloc(1, sizeof(*s));

    ck_assert_ptr_nonnull(s);
    s->disk = d;
    s->take_of_100 = take_of_100;
    for (mblock_t b = random_below(rng, 100); b < NR_BLOCKS;
         b += 1 + random_below(rng, 9))
        s->wanted[b / 8] |= (uint8_t)(1u << (b % 8));
    return s;
}

START_TEST(a_sweep_meets_all_that_is_wanted_and_keeps_what_is_not_taken)
{
    struct thin_random rng;
    struct disk *d;
    mblock_t *sorted = calloc(NR_BLOCKS, sizeof(*sorted));
    struct seen *seen = calloc(1, sizeof(*seen));

    random_seed(&rng, 7);
    d = make_disk(&rng);
    memset(d->bad, 0, sizeof(d->bad));
    ck_assert(sorted && seen);
    for (unsigned left = 0; left < 10; left++) {
        struct swept *s = make_swept(&rng, d, 10 * left);
        struct meta_source *src = open_disk(d, &ahead_ops);
        size_t nr_kept = 0;
        unsigned before;

        threads_left = left;
        ck_assert_int_eq(
            source_sweep(src, s->wanted, NR_BLOCKS + 9, BLOCK_NODE, on_swept, s), 0);
        threads_left = UINT32_MAX;
        for (mblock_t b = 0; b < NR_BLOCKS; b++) {
            ck_assert_int_eq(s->met[b], wants(s, b));
            if (wants(s, b) && !takes(s, b))
                sorted[nr_kept++] = b;
        }
        before = atomic_load(&d->nr_reads);
        *seen = (struct seen){.sorted = sorted, .disk = d};
        ck_assert_int_eq(
            source_read_many(src, sorted, nr_kept, BLOCK_NODE, on_seen, seen), 0);
        ck_assert_uint_eq(seen->nr, nr_kept);
        for (size_t i = 0; i < nr_kept; i++) {
            uint8_t buf[METADATA_BLOCK_SIZE];

            ck_assert_int_eq(source_read(src, sorted[i], buf, NULL), 0);
            ck_assert_int_eq(memcmp(buf, d->bytes + sorted[i] * METADATA_BLOCK_SIZE,
                                    METADATA_BLOCK_SIZE),
                             0);
        }
        ck_assert_uint_eq(atomic_load(&d->nr_reads), before);
        /* Others, and all after source_forget, come from the disk as ever. */
        for (int i = 0; i < 2; i++) {
            size_t nr = make_row(&rng, sorted);

            *seen = (struct seen){.sorted = sorted, .disk = d};
            ck_assert_int_eq(source_read_many(src, sorted, nr, BLOCK_NODE, on_seen, seen),
                             0);
            ck_assert_uint_eq(seen->nr, nr);
            source_forget(src);
        }
        ck_assert_uint_gt(atomic_load(&d->nr_reads), before);
        source_close(src);
        free(s);
    }
    free_disk(d);
    free(sorted);
    free(seen);
}
END_TEST

START_TEST(what_a_sweep_cannot_read_is_left_to_who_needs_it)
{
    struct thin_random rng;
    struct disk *d;
    struct swept *s;
    struct meta_source *src;
    uint8_t buf[METADATA_BLOCK_SIZE];
    size_t nr_missed = 0;

    random_seed(&rng, 8);
    d = make_disk(&rng);
    s = make_swept(&rng, d, 0);
    src = open_disk(d, &ahead_ops);
    ck_assert_int_eq(source_sweep(src, s->wanted, NR_BLOCKS, BLOCK_NODE, on_swept, s), 0);
    for (mblock_t b = 0; b < NR_BLOCKS; b++) {
        nr_missed += wants(s, b) && !s->met[b];
        ck_assert_int_eq(source_read(src, b, buf, NULL), d->bad[b] ? -EIO : 0);
    }
    ck_assert_uint_gt(nr_missed, 0);
    source_close(src);
    free_disk(d);
    free(s);
}
END_TEST

/* A disk whose first read takes as long as most of all others together. */
struct late_disk {
    struct disk *disk;
    atomic_uint nr_met;
};

static int
late_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct late_disk *late = arg;

    while (offset == 0 && len > METADATA_BLOCK_SIZE &&
           atomic_load(&late->nr_met) < NR_BLOCKS * 3 / 4)
        sched_yield();
    return disk_read(late->disk, offset, buf, len);
}

START_TEST(one_late_read_keeps_no_others_waiting)
{
    static const struct source_ops ops = {
        .read = late_read, .any_thread = true, .read_from_disk = late_read};
    struct late_disk late = {0};
    struct thin_random rng;
    struct swept *s;
    struct meta_source *src = NULL;
    uint8_t buf[METADATA_BLOCK_SIZE];
    unsigned before;

    random_seed(&rng, 10);
    late.disk = make_disk(&rng);
    memset(late.disk->bad, 0, sizeof(late.disk->bad));
    s = make_swept(&rng, late.disk, 50);
    s->nr_met = &late.nr_met;
    memset(s->wanted, 0xff, sizeof(s->wanted));
    ck_assert_int_eq(source_open_ops(&ops, &late, BYTES, false, &src), 0);
    ck_assert_int_eq(source_sweep(src, s->wanted, NR_BLOCKS, BLOCK_NODE, on_swept, s), 0);
    ck_assert_uint_eq(s->nr, NR_BLOCKS);
    /* What came last is found among what was kept, though it is the first in order. */
    before = atomic_load(&late.disk->nr_reads);
    for (mblock_t b = 0; b < NR_BLOCKS; b++)
        if (!takes(s, b)) {
            ck_assert_int_eq(source_read(src, b, buf, NULL), 0);
            ck_assert_int_eq(memcmp(buf, late.disk->bytes + b * METADATA_BLOCK_SIZE,
                                    METADATA_BLOCK_SIZE),
                             0);
        }
    ck_assert_uint_eq(atomic_load(&late.disk->nr_reads), before);
    source_close(src);
    free_disk(late.disk);
    free(s);
}
END_TEST

static int
stop_at_once(void *arg, const char *what, uint64_t done, uint64_t total)
{
    (void)arg, (void)what, (void)done, (void)total;
    return 1;
}

START_TEST(a_cancelled_row_waits_for_the_reads_that_run)
{
    struct thin_random rng;
    struct disk *d;
    mblock_t *sorted = calloc(NR_BLOCKS, sizeof(*sorted));
    struct seen *seen = calloc(1, sizeof(*seen));

    random_seed(&rng, 4);
    d = make_disk(&rng);
    ck_assert(seen && sorted);
    for (mblock_t b = 0; b < NR_BLOCKS; b++)
        sorted[b] = b;
    for (int i = 0; i < 20; i++) {
        struct meta_source *src = open_disk(d, &ahead_ops);

        *seen = (struct seen){.sorted = sorted, .disk = d};
        src->progress.tick = stop_at_once;
        ck_assert_int_eq(
            source_read_many(src, sorted, NR_BLOCKS, BLOCK_NODE, on_seen, seen),
            -THIN_E_CANCELLED);
        ck_assert_uint_eq(seen->nr, 0);
        source_close(src);
    }
    free_disk(d);
    free(sorted);
    free(seen);
}
END_TEST

START_TEST(a_sweep_can_be_cancelled)
{
    struct thin_random rng;
    struct disk *d;
    struct swept *s;
    struct meta_source *src;

    random_seed(&rng, 9);
    d = make_disk(&rng);
    s = make_swept(&rng, d, 50);
    src = open_disk(d, &ahead_ops);
    src->progress.tick = stop_at_once;
    ck_assert_int_eq(source_sweep(src, s->wanted, NR_BLOCKS, BLOCK_NODE, on_swept, s),
                     -THIN_E_CANCELLED);
    ck_assert_uint_eq(s->nr, 0);
    source_close(src);
    free_disk(d);
    free(s);
}
END_TEST

START_TEST(a_file_is_read_like_memory)
{
    char path[] = "/tmp/thin-source-XXXXXX";
    int fd = mkstemp(path);
    struct thin_random rng;
    struct disk *d;
    struct meta_source *src = NULL;
    mblock_t *sorted = calloc(NR_BLOCKS + 8, sizeof(*sorted));
    struct seen *seen = calloc(1, sizeof(*seen));

    random_seed(&rng, 5);
    d = make_disk(&rng);
    memset(d->bad, 0, sizeof(d->bad));
    ck_assert(fd >= 0 && sorted && seen);
    ck_assert_int_eq(write(fd, d->bytes, BYTES), (ssize_t)BYTES);
    close(fd);
    ck_assert_int_eq(source_open_path(path, SOURCE_READ, &src, NULL), 0);
    for (int i = 0; i < 20; i++) {
        size_t nr = make_row(&rng, sorted);

        *seen = (struct seen){.sorted = sorted, .disk = d};
        ck_assert_int_eq(source_read_many(src, sorted, nr, BLOCK_NODE, on_seen, seen), 0);
        ck_assert_uint_eq(seen->nr, nr);
        for (size_t k = 0; k < nr; k++)
            ck_assert_int_eq(seen->codes[k],
                             sorted[k] >= NR_BLOCKS
                                 ? -THIN_E_RANGE
                                 : block_check(BLOCK_NODE,
                                               d->bytes + sorted[k] * METADATA_BLOCK_SIZE,
                                               sorted[k], NULL));
    }
    source_close(src);
    unlink(path);
    free_disk(d);
    free(sorted);
    free(seen);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("offline source");
    TCase *tc = tcase_create("rows");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, rows_are_the_same_with_threads_and_without);
    tcase_add_test(tc, rows_are_the_same_when_threads_are_refused);
    tcase_add_test(tc, a_sweep_meets_all_that_is_wanted_and_keeps_what_is_not_taken);
    tcase_add_test(tc, what_a_sweep_cannot_read_is_left_to_who_needs_it);
    tcase_add_test(tc, one_late_read_keeps_no_others_waiting);
    tcase_add_test(tc, a_sweep_can_be_cancelled);
    tcase_add_test(tc, a_cancelled_row_waits_for_the_reads_that_run);
    tcase_add_test(tc, a_file_is_read_like_memory);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
