/* Packed copies: what comes out is what went in, also when the device changes meanwhile. */
#include "core/base/crc32c.h"
#include "core/offline/pack.h"
#include "core/ondisk/node.h"
#include "tests/unit/offline/fixture.h"

#define NR_BLOCKS 2000u

struct bytes {
    uint8_t *at;
    size_t len, room, read;
};

static int
bytes_write(void *arg, const void *buf, size_t len)
{
    struct bytes *b = arg;

    while (b->len + len > b->room) {
        b->room = b->room ? 2 * b->room : 65536;
        b->at = realloc(b->at, b->room);
        ck_assert_ptr_nonnull(b->at);
    }
    memcpy(b->at + b->len, buf, len);
    b->len += len;
    return 0;
}

static long
bytes_read(void *arg, void *buf, size_t room)
{
    struct bytes *b = arg;
    size_t n = b->len - b->read < room ? b->len - b->read : room;

    memcpy(buf, b->at + b->read, n);
    b->read += n;
    return (long)n;
}

/* A device in use: nodes appear, go and become unreadable while others read it. */
struct living {
    struct mem_device mem;
    uint64_t nr_reads;
    bool still;
};

static void
put_node(struct living *l, mblock_t b)
{
    uint8_t *block = l->mem.bytes + b * METADATA_BLOCK_SIZE;

    memset(block, 0, METADATA_BLOCK_SIZE);
    node_init(block, true, 252, 8);
    block_seal(BLOCK_NODE, block, b);
}

static int
living_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct living *l = arg;
    mblock_t first = offset / METADATA_BLOCK_SIZE;
    int r;

    if (!l->still && l->nr_reads++ > 0) {
        /* Each read finds a device with more nodes, fewer nodes, other nodes. */
        for (mblock_t b = first + 1; b < first + len / METADATA_BLOCK_SIZE; b++) {
            if (b % 10 == 1)
                put_node(l, b);
            else if (b % 10 == 2)
                memset(l->mem.bytes + b * METADATA_BLOCK_SIZE, 0, METADATA_BLOCK_SIZE);
            else if (b % 10 == 3)
                l->mem.bytes[b * METADATA_BLOCK_SIZE + 50] ^= 1;
        }
        l->mem.bad_block = l->nr_reads > 3 ? 24 : 0;
    }
    r = mem_read(&l->mem, offset, buf, len);
    return r;
}

static int
living_write(void *arg, uint64_t offset, const void *buf, size_t len)
{
    struct living *l = arg;

    return mem_write(&l->mem, offset, buf, len);
}

static int
living_flush(void *arg)
{
    (void)arg;
    return 0;
}

static const struct source_ops living_ops = {
    .read = living_read, .write = living_write, .flush = living_flush};

START_TEST(changes_while_packed)
{
    size_t bytes = (size_t)NR_BLOCKS * METADATA_BLOCK_SIZE;
    struct living from = {.mem = {.bytes = calloc(1, bytes), .len = bytes}};
    struct living to = {.mem = {.bytes = malloc(bytes), .len = bytes}, .still = true};
    struct meta_source *src = NULL, *dst = NULL;
    struct bytes pack = {0};
    struct thin_error err;
    uint64_t nr = 0;

    ck_assert(from.mem.bytes && to.mem.bytes);
    memset(to.mem.bytes, 0xee, bytes);
    for (mblock_t b = 1; b < NR_BLOCKS; b++)
        if (b % 10 >= 2 && b % 10 <= 5)
            put_node(&from, b);
    thin_error_init(&err);
    ck_assert_int_eq(source_open_ops(&living_ops, &from, bytes, false, &src), 0);
    ck_assert_int_eq(source_open_ops(&living_ops, &to, bytes, true, &dst), 0);
    ck_assert_int_eq(pack_device(src, bytes_write, &pack, &nr, &err), 0);
    ck_assert_uint_ge(nr, NR_BLOCKS / 10 * 3);
    ck_assert_msg(unpack_device(bytes_read, &pack, dst, &err) == 0, "%s", err.text);
    /* What nobody touched is there. */
    for (mblock_t b = 1; b < NR_BLOCKS; b++)
        if (b != 24 && b % 10 >= 4)
            ck_assert_msg(memcmp(from.mem.bytes + b * METADATA_BLOCK_SIZE,
                                 to.mem.bytes + b * METADATA_BLOCK_SIZE,
                                 METADATA_BLOCK_SIZE) == 0,
                          "block %d", (int)b);
    source_close(src);
    source_close(dst);
    free(pack.at);
    free(from.mem.bytes);
    free(to.mem.bytes);
}
END_TEST

/* Each bit and each length: a damaged file is told, and what it made is no pool. */
START_TEST(damaged_pack)
{
    size_t bytes = 0;
    char *image = fixture_read("pools/few-thins/meta.img.xz", &bytes);
    struct living from = {.mem = {.bytes = (uint8_t *)image, .len = bytes},
                          .still = true};
    struct living to = {.mem = {.bytes = malloc(bytes), .len = bytes}, .still = true};
    struct meta_source *src = NULL, *dst = NULL;
    struct bytes pack = {0};
    struct thin_error err;
    uint64_t nr = 0;

    ck_assert_ptr_nonnull(to.mem.bytes);
    thin_error_init(&err);
    ck_assert_int_eq(source_open_ops(&living_ops, &from, bytes, false, &src), 0);
    ck_assert_int_eq(source_open_ops(&living_ops, &to, bytes, true, &dst), 0);
    ck_assert_int_eq(pack_device(src, bytes_write, &pack, &nr, &err), 0);
    for (size_t at = 0; at < pack.len; at += 1 + at / 16) {
        struct bytes part = {.at = pack.at, .len = at};

        ck_assert_int_lt(unpack_device(bytes_read, &part, dst, &err), 0);
        part.read = 0;
        ck_assert_int_lt(unpack_device(bytes_read, &part, NULL, &err), 0);
        pack.at[at] ^= 4;
        pack.read = 0;
        ck_assert_int_lt(unpack_device(bytes_read, &pack, dst, &err), 0);
        pack.read = 0;
        ck_assert_int_lt(unpack_device(bytes_read, &pack, NULL, &err), 0);
        pack.at[at] ^= 4;
    }
    pack.read = 0;
    ck_assert_int_eq(unpack_device(bytes_read, &pack, NULL, &err), 0);
    pack.read = 0;
    ck_assert_int_eq(unpack_device(bytes_read, &pack, dst, &err), 0);
    ck_assert_mem_eq(to.mem.bytes, image, METADATA_BLOCK_SIZE);
    source_close(src);
    source_close(dst);
    free(pack.at);
    free(to.mem.bytes);
    free(image);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("pack");
    TCase *t = tcase_create("pack");
    SRunner *runner;
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_test(t, changes_while_packed);
    tcase_add_test(t, damaged_pack);
    suite_add_tcase(s, t);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
