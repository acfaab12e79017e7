/*
 * The XML scanner against expat: whatever the two parsers make of a document, they must
 * agree on whether it is a dump, and on what it says.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/crc32c.h"
#include "core/offline/xml_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static int
add(void *arg, const void *what, size_t len)
{
    uint32_t *sum = arg;

    *sum = crc32c_update(*sum, what, len);
    return 0;
}

static int
on_superblock(void *arg, const struct ir_superblock *sb)
{
    uint64_t v[] = {sb->time,    sb->trans_id,        sb->flags,
                    sb->version, sb->data_block_size, sb->nr_data_blocks};

    return add(arg, v, sizeof(v));
}

static int
on_device(void *arg, const struct ir_device *dev)
{
    uint64_t v[] = {dev->dev_id, dev->mapped_blocks, dev->trans_id, dev->creation_time,
                    dev->snap_time};

    return add(arg, v, sizeof(v));
}

static int
on_run(void *arg, const struct ir_run *run)
{
    uint64_t v[] = {run->virt, run->data, run->len, run->time};

    return add(arg, v, sizeof(v));
}

static int
on_end(void *arg)
{
    return add(arg, "e", 1);
}

static const struct ir_visitor visitor = {
    .superblock = on_superblock,
    .device_begin = on_device,
    .run = on_run,
    .device_end = on_end,
    .end = on_end,
};

struct bytes {
    const uint8_t *at;
    size_t left, most;
};

static long
pull(void *arg, char *buf, size_t room)
{
    struct bytes *b = arg;
    size_t n = b->left < room ? b->left : room;

    if (n > b->most)
        n = b->most;
    memcpy(buf, b->at, n);
    b->at += n;
    b->left -= n;
    return (long)n;
}

static int
by_expat(const uint8_t *bytes, size_t len, uint32_t *sum)
{
    struct bytes b = {bytes, len, len};
    struct xml_state st = {.visitor = &visitor, .arg = sum, .line = 1};
    int r = xml_read_expat(&st, "", 0, pull, &b);

    return r < 0 ? r : visitor.end(sum);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct bytes whole = {bytes, len, len}, pieces = {bytes, len, 7};
    uint32_t a = 0, b = 0, c = 0;
    int ra = xml_read(pull, &whole, &visitor, &a, NULL);
    int rb = xml_read(pull, &pieces, &visitor, &b, NULL);
    int rc = by_expat(bytes, len, &c);

    if ((ra < 0) != (rb < 0) || (ra < 0) != (rc < 0))
        abort();
    if (ra == 0 && (a != b || a != c))
        abort();
    return 0;
}
