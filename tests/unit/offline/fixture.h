/* Pools of tests/data, in memory, for the tests of the offline floor. */
#ifndef TESTS_UNIT_OFFLINE_FIXTURE_H
#define TESTS_UNIT_OFFLINE_FIXTURE_H

#include <check.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/offline/source.h"

static const char *const fixture_pools[] = {
    "empty",           "few-thins",   "snapshots",      "discards",
    "one-entry-root",  "held-root",   "needs-check",    "tools-restored",
    "external-origin", "out-of-data", "crash",          "discards-nopassdown",
    "few-thins-192k",  "grown-data",  "grown-metadata", "many-thins",
};
#define NR_FIXTURE_POOLS (sizeof(fixture_pools) / sizeof(fixture_pools[0]))

/* Bytes of a file below tests/data, unpacked; a NUL stands behind them. */
static inline char *
fixture_read(const char *name, size_t *ret_len)
{
    char command[1024];
    const char *here = __FILE__;
    size_t dir = (size_t)(strstr(here, "tests/unit/offline/") - here);
    size_t len = 0, room = 1 << 16;
    char *bytes = malloc(room + 1);
    FILE *f;
    size_t n;

    snprintf(command, sizeof(command), "xz -dc '%.*stests/data/%s'", (int)dir, here,
             name);
    f = popen(command, "r");
    ck_assert_ptr_nonnull(f);
    while ((n = fread(bytes + len, 1, room - len, f)) > 0) {
        len += n;
        if (len == room) {
            room *= 2;
            bytes = realloc(bytes, room + 1);
            ck_assert_ptr_nonnull(bytes);
        }
    }
    ck_assert_int_eq(pclose(f), 0);
    ck_assert_uint_gt(len, 0);
    bytes[len] = '\0';
    *ret_len = len;
    return bytes;
}

/* A metadata device in memory. */
struct mem_device {
    uint8_t *bytes;
    size_t len;
    uint64_t bad_block;             /* cannot be read, if not 0 */
    uint64_t nr_writes, fail_write; /* the nth write fails, if not 0 */
};

static inline int
mem_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct mem_device *m = arg;
    uint64_t bad = m->bad_block * METADATA_BLOCK_SIZE;

    ck_assert_uint_le(offset + len, m->len);
    if (bad && offset <= bad && bad < offset + len)
        return -EIO;
    memcpy(buf, m->bytes + offset, len);
    return 0;
}

static inline int
mem_write(void *arg, uint64_t offset, const void *buf, size_t len)
{
    struct mem_device *m = arg;

    ck_assert_uint_le(offset + len, m->len);
    if (++m->nr_writes == m->fail_write)
        return -EIO;
    memcpy(m->bytes + offset, buf, len);
    return 0;
}

static inline int
mem_flush(void *arg)
{
    (void)arg;
    return 0;
}

static inline struct meta_source *
mem_open(struct mem_device *m)
{
    static const struct source_ops ops = {
        .read = mem_read, .write = mem_write, .flush = mem_flush};
    struct meta_source *src = NULL;

    ck_assert_int_eq(source_open_ops(&ops, m, m->len, true, &src), 0);
    return src;
}

static inline struct mem_device
mem_new(size_t len)
{
    struct mem_device m = {.bytes = calloc(1, len), .len = len};

    ck_assert_ptr_nonnull(m.bytes);
    return m;
}

static inline struct mem_device
fixture_pool(const char *name)
{
    struct mem_device m = {0};
    char path[256];

    snprintf(path, sizeof(path), "pools/%s/meta.img.xz", name);
    m.bytes = (uint8_t *)fixture_read(path, &m.len);
    return m;
}

static inline uint8_t *
mem_block(struct mem_device *m, uint64_t b)
{
    ck_assert_uint_lt(b, m->len / METADATA_BLOCK_SIZE);
    return m->bytes + b * METADATA_BLOCK_SIZE;
}

/* Text that a dump writes. */
struct text_sink {
    char *bytes;
    size_t len;
};

static inline int
text_sink_write(void *arg, const char *bytes, size_t len)
{
    struct text_sink *s = arg;

    s->bytes = realloc(s->bytes, s->len + len + 1);
    ck_assert_ptr_nonnull(s->bytes);
    memcpy(s->bytes + s->len, bytes, len);
    s->len += len;
    s->bytes[s->len] = '\0';
    return 0;
}

/* XML that is read from memory. */
struct text_pull {
    const char *at, *end;
    size_t most; /* bytes at once; 0: all */
};

static inline long
text_pull_read(void *arg, char *buf, size_t room)
{
    struct text_pull *p = arg;
    size_t n = (size_t)(p->end - p->at);

    if (n > room)
        n = room;
    if (p->most && n > p->most)
        n = p->most;
    memcpy(buf, p->at, n);
    p->at += n;
    return (long)n;
}

#endif
