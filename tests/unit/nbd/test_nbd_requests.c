/* Transmission: requests, payloads, replies, limits, the ends of a connection. */
#include <check.h>

#include "core/base/random.h"
#include "tests/unit/nbd/ram_export.h"

enum style { SIMPLE, STRUCTURED, EXTENDED };

static struct bytes out;

/* A connection in transmission, all contexts chosen; `out` is empty. */
static struct ram *
go_with(enum style style, uint32_t max_requests, unsigned flags, uint32_t min_block)
{
    static const uint16_t ask[] = {NBD_INFO_BLOCK_SIZE, 0xffff};
    static const char *const all[] = {"base:allocation", "qemu:allocation-depth",
                                      "thin:delta:monday", NULL};
    struct ram *ram = ram_create(NBD_TLS_OFF, max_requests);
    struct bytes in = {0};

    if (flags)
        ram->flags = flags;
    ram->min_block = min_block;
    put32(&in, 3);
    if (style == STRUCTURED)
        put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    if (style == EXTENDED)
        put_option(&in, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    if (style != SIMPLE)
        put_contexts(&in, NBD_OPT_SET_META_CONTEXT, "e0", all);
    put_go(&in, NBD_OPT_GO, "e0", min_block ? ask : NULL);
    out.len = 0;
    ck_assert_uint_eq(ram_feed(ram, &in, 0, &out), in.len);
    ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_TRANSMISSION);
    out.len = 0;
    free(in.p);
    return ram;
}

static struct ram *
go(enum style style)
{
    return go_with(style, 8, 0, 0);
}

/* Feeds a request (with its payload, if any), appends the answer to `out`. */
static void
ask(struct ram *ram, enum style style, uint16_t flags, uint16_t type, uint64_t cookie,
    uint64_t offset, uint32_t len, int fill)
{
    struct bytes in = {0};

    if (style == EXTENDED)
        put_extended(&in, flags | (fill >= 0 ? NBD_CMD_FLAG_PAYLOAD_LEN : 0), type,
                     cookie, offset, len);
    else
        put_request(&in, flags, type, cookie, offset, len);
    if (fill >= 0)
        put_fill(&in, (uint8_t)fill, len);
    ck_assert_uint_eq(ram_feed(ram, &in, 0, &out), in.len);
    free(in.p);
}

/* The error of the one reply in `out`, whatever its style; clears `out`. */
static uint32_t
error_of_reply(enum style style, uint64_t cookie)
{
    const uint8_t *p = out.p;
    uint32_t error = 0;

    ck_assert_uint_ge(out.len, 16);
    ck_assert_uint_eq(load_be64(p + 8), cookie);
    if (style == SIMPLE) {
        ck_assert_uint_eq(load_be32(p), NBD_SIMPLE_REPLY_MAGIC);
        error = load_be32(p + 4);
    } else {
        const bool e = style == EXTENDED;
        const size_t head = e ? 32 : 20;

        ck_assert_uint_eq(load_be32(p),
                          e ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
        if (load_be16(p + 6) == NBD_CHUNK_ERROR) {
            ck_assert_uint_eq(load_be16(p + 4), NBD_CHUNK_FLAG_DONE);
            ck_assert_uint_eq(e ? load_be64(p + 24) : load_be32(p + 16), 6);
            ck_assert_uint_eq(out.len, head + 6);
            error = load_be32(p + head);
        }
    }
    if (error && style == SIMPLE)
        ck_assert_uint_eq(out.len, 16);
    out.len = 0;
    return error;
}

static uint32_t
error_of(struct ram *ram, enum style style, uint16_t flags, uint16_t type,
         uint64_t offset, uint32_t len)
{
    ask(ram, style, flags, type, 0x1122334455667788u, offset, len,
        type == NBD_CMD_WRITE ? 0x5a : -1);
    return error_of_reply(style, 0x1122334455667788u);
}

/* Assembles the data of a structured read reply; counts its chunks. */
static void
assemble(uint8_t *data, uint64_t offset, uint64_t len, unsigned *ret_data,
         unsigned *ret_holes)
{
    uint64_t seen = 0;
    size_t at = 0;
    bool done = false;

    *ret_data = *ret_holes = 0;
    memset(data, 0xdd, len);
    while (!done) {
        const uint8_t *p = out.p + at;
        const bool e = load_be32(p) == NBD_EXTENDED_REPLY_MAGIC;
        const size_t head = e ? 32 : 20;
        const uint64_t n = e ? load_be64(p + 24) : load_be32(p + 16);
        uint64_t off, run;

        ck_assert_uint_le(at + head + n, out.len);
        done = load_be16(p + 4) & NBD_CHUNK_FLAG_DONE;
        off = load_be64(p + head) - offset;
        if (load_be16(p + 6) == NBD_CHUNK_OFFSET_DATA) {
            run = n - 8;
            ck_assert(range_inside(off, run, len));
            memcpy(data + off, p + head + 8, run);
            ++*ret_data;
        } else {
            ck_assert_uint_eq(load_be16(p + 6), NBD_CHUNK_OFFSET_HOLE);
            ck_assert_uint_eq(n, 12);
            run = load_be32(p + head + 8);
            ck_assert(range_inside(off, run, len));
            memset(data + off, 0, run);
            ++*ret_holes;
        }
        ck_assert_uint_gt(run, 0);
        seen += run;
        at += head + n;
    }
    ck_assert_uint_eq(seen, len);
    ck_assert_uint_eq(at, out.len);
    out.len = 0;
}

START_TEST(what_was_written_is_read_back)
{
    const enum style style = (enum style)_i;
    static uint8_t data[RAM_SIZE], want[200000];
    struct ram *ram = go(style);
    unsigned nr_data, nr_holes;

    /* Part-sector ranges go through as they are. */
    ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 4097, 100001),
                      0);
    ck_assert_uint_eq(ram->last_flags, NBD_REQ_FUA);
    ask(ram, style, 0, NBD_CMD_READ, 9, 4000, 200000, -1);
    if (style == SIMPLE) {
        ck_assert_uint_eq(out.len, 16 + 200000);
        memcpy(data, out.p + 16, 200000);
        ck_assert_uint_eq(error_of_reply(style, 9), 0);
    } else {
        assemble(data, 4000, 200000, &nr_data, &nr_holes);
        ck_assert_uint_eq(nr_data, 1); /* the hole in front is too small for a chunk */
        ck_assert_uint_eq(nr_holes, 1);
    }
    memset(want + 97, 0x5a, 100001);
    ck_assert_mem_eq(data, want, 200000);
    ram_destroy(ram);
}
END_TEST

START_TEST(errors_are_the_permitted_ones)
{
    const enum style style = (enum style)_i;
    struct ram *ram = go(style);

    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE, RAM_SIZE - 5, 6),
                      NBD_WIRE_ENOSPC);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE, UINT64_MAX - 2, 6),
                      NBD_WIRE_ENOSPC);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE_ZEROES, RAM_SIZE, 1),
                      NBD_WIRE_ENOSPC);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_READ, RAM_SIZE - 5, 6),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_READ, UINT64_MAX, 2),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_TRIM, RAM_SIZE, 1),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_CACHE, RAM_SIZE, 1),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_READ, 0, (32u << 20) + 1),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE, 0, (32u << 20) + 1),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, 8, 0, 512), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, 0xffff, 0, 512), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_FLUSH, 1, 0), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 1u << 9, NBD_CMD_WRITE, 0, 512),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE, 0, 512),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_READ, 0, 512),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 512),
                      style == SIMPLE ? NBD_WIRE_EINVAL : 0);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_BLOCK_STATUS, 0, 512),
                      style == SIMPLE ? NBD_WIRE_EINVAL : 0);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_BLOCK_STATUS, 0, 0),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(ram->nr_seen[NBD_OP_WRITE], 0);
    ram_destroy(ram);
}
END_TEST

START_TEST(zero_length_is_answered_and_fua_goes_with_everything)
{
    static const uint16_t types[] = {NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM,
                                     NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES};
    const enum style style = (enum style)_i;
    struct ram *ram = go(style);

    for (size_t i = 0; i < 5; i++) {
        ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_FUA, types[i], 77, 0), 0);
        ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_FUA, types[i], 0, 4096), 0);
        ck_assert_uint_eq(ram->last_flags, NBD_REQ_FUA);
    }
    ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_FUA, NBD_CMD_FLUSH, 0, 0), 0);
    for (unsigned op = NBD_OP_READ; op < NBD_OP_BLOCK_STATUS; op++)
        ck_assert_uint_eq(ram->nr_seen[op], 1);
    ram_destroy(ram);
}
END_TEST

START_TEST(a_read_only_export_refuses_changes_and_eats_their_payload)
{
    const enum style style = (enum style)_i;
    struct ram *ram =
        go_with(style, 8, NBD_EXPORT_READ_ONLY | NBD_EXPORT_FLUSH | NBD_EXPORT_TRIM, 0);

    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE, 0, 100000), NBD_WIRE_EPERM);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_TRIM, 0, 512), NBD_WIRE_EPERM);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE_ZEROES, 0, 512),
                      NBD_WIRE_EPERM);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_READ, 0, 512), 0);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_FLUSH, 0, 0), 0);
    ck_assert_uint_eq(ram->nr_seen[NBD_OP_WRITE], 0);
    ram_destroy(ram);
}
END_TEST

START_TEST(what_the_export_does_not_offer_is_invalid)
{
    const enum style style = (enum style)_i;
    struct ram *ram = go_with(style, 8, NBD_EXPORT_ZEROES, 0);

    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_FLUSH, 0, 0), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_TRIM, 0, 512), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_CACHE, 0, 512), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 0, 512),
                      NBD_WIRE_EINVAL);
    ck_assert_uint_eq(
        error_of(ram, style, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 0, 512),
        NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE_ZEROES, 0, 512), 0);
    ram_destroy(ram);
}
END_TEST

START_TEST(outcomes_become_nbd_errors)
{
    static const struct {
        int code;
        uint32_t error;
    } table[] = {
        {-EPERM, NBD_WIRE_EPERM},
        {-EROFS, NBD_WIRE_EPERM},
        {-THIN_E_STALE, NBD_WIRE_EPERM},
        {-EIO, NBD_WIRE_EIO},
        {-THIN_E_ROLLED_BACK, NBD_WIRE_EIO},
        {-ENOENT, NBD_WIRE_EIO},
        {-EAGAIN, NBD_WIRE_EIO},
        {-ENOMEM, NBD_WIRE_ENOMEM},
        {-THIN_E_RANGE, NBD_WIRE_EINVAL},
        {-THIN_E_NO_DATA_SPACE, NBD_WIRE_ENOSPC},
        {-THIN_E_QUOTA, NBD_WIRE_ENOSPC},
        {-EDQUOT, NBD_WIRE_ENOSPC},
        {-EFBIG, NBD_WIRE_ENOSPC},
        {-THIN_E_LIMIT, NBD_WIRE_EOVERFLOW},
        {-THIN_E_SHUTDOWN, NBD_WIRE_ESHUTDOWN},
        {-EOPNOTSUPP, NBD_WIRE_EINVAL}, /* nobody asked for fast zeroes */
    };
    const enum style style = (enum style)_i;
    struct ram *ram = go(style);

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        ram->next_code = table[i].code;
        ck_assert_uint_eq(error_of(ram, style, 0, (uint16_t)(i % 2), 0, 5000),
                          table[i].error);
    }
    ram->next_code = -THIN_E_UNSUPPORTED;
    ck_assert_uint_eq(
        error_of(ram, style, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 0, 512),
        NBD_WIRE_ENOTSUP);
    ck_assert_uint_eq(nbd_error_of(0), 0);
    ram_destroy(ram);
}
END_TEST

START_TEST(holes_are_sent_as_holes)
{
    const enum style style = (enum style)_i;
    static uint8_t data[RAM_SIZE];
    struct ram *ram = go(style);
    unsigned nr_data, nr_holes;

    ask(ram, style, 0, NBD_CMD_READ, 1, 0, RAM_SIZE, -1);
    ck_assert_uint_le(out.len, 48);
    assemble(data, 0, RAM_SIZE, &nr_data, &nr_holes);
    ck_assert_uint_eq(nr_holes, 1);

    /* Every other block: more holes than chunks; the last go as zeros. */
    for (unsigned b = 1; b < 200; b += 2)
        error_of(ram, style, 0, NBD_CMD_WRITE, b * RAM_BLOCK, RAM_BLOCK);
    ask(ram, style, 0, NBD_CMD_READ, 1, 0, 200 * RAM_BLOCK, -1);
    assemble(data, 0, 200 * RAM_BLOCK, &nr_data, &nr_holes);
    ck_assert_uint_eq(nr_holes, NBD_HOLES_PER_READ);
    ck_assert_uint_eq(nr_data, NBD_HOLES_PER_READ);
    ck_assert_mem_eq(data, ram->disk, 200 * RAM_BLOCK);

    /* One chunk if it may not be cut. */
    ask(ram, style, NBD_CMD_FLAG_DF, NBD_CMD_READ, 1, 0, 200 * RAM_BLOCK, -1);
    assemble(data, 0, 200 * RAM_BLOCK, &nr_data, &nr_holes);
    ck_assert_uint_eq(nr_data, 1);
    ck_assert_uint_eq(nr_holes, 0);
    ck_assert_mem_eq(data, ram->disk, 200 * RAM_BLOCK);
    ask(ram, style, NBD_CMD_FLAG_DF, NBD_CMD_READ, 1, 2 * RAM_BLOCK, RAM_BLOCK, -1);
    assemble(data, 2 * RAM_BLOCK, RAM_BLOCK, &nr_data, &nr_holes);
    ck_assert_uint_eq(nr_holes, 1);

    /* A hole of a few bytes at the end is not worth a chunk; a read of nothing else is. */
    ask(ram, style, 0, NBD_CMD_READ, 1, RAM_BLOCK, RAM_BLOCK + 100, -1);
    assemble(data, RAM_BLOCK, RAM_BLOCK + 100, &nr_data, &nr_holes);
    ck_assert_uint_eq(nr_holes, 0);
    ck_assert_mem_eq(data, ram->disk + RAM_BLOCK, RAM_BLOCK + 100);
    ask(ram, style, 0, NBD_CMD_READ, 1, 0, 100, -1);
    assemble(data, 0, 100, &nr_data, &nr_holes);
    ck_assert_uint_eq(nr_holes, 1);
    ram_destroy(ram);
}
END_TEST

/* Checks the one chunk at `*at` and gives its extents' number and sum. */
static void
status_chunk(size_t *at, unsigned id, bool last, uint32_t *ret_nr, uint64_t *ret_sum)
{
    const uint8_t *p = out.p + *at;
    const bool e = load_be32(p) == NBD_EXTENDED_REPLY_MAGIC;
    const size_t head = e ? 32 : 20, body = e ? 8 : 4, each = e ? 16 : 8;
    const uint64_t n = e ? load_be64(p + 24) : load_be32(p + 16);

    ck_assert_uint_eq(load_be16(p + 4), last);
    ck_assert_uint_eq(load_be16(p + 6),
                      e ? NBD_CHUNK_BLOCK_STATUS_64 : NBD_CHUNK_BLOCK_STATUS);
    ck_assert_uint_eq(load_be32(p + head), id);
    *ret_nr = (uint32_t)((n - body) / each);
    ck_assert_uint_eq((n - body) % each, 0);
    if (e)
        ck_assert_uint_eq(load_be32(p + head + 4), *ret_nr);
    *ret_sum = 0;
    for (uint32_t i = 0; i < *ret_nr; i++) {
        const uint8_t *x = p + head + body + i * each;
        const uint64_t len = e ? load_be64(x) : load_be32(x);
        const uint64_t status = e ? load_be64(x + 8) : load_be32(x + 4);
        const bool hole = id == 1 ? status != 0 : status == 0;

        ck_assert_uint_gt(len, 0);
        if (id == 1)
            ck_assert(status == 0 || status == 3);
        /* Neighbours differ: one block in two is written. */
        ck_assert_uint_eq(hole, i % 2 == 0);
        *ret_sum += len;
    }
    *at += head + n;
}

START_TEST(block_status_tells_each_chosen_context)
{
    const enum style style = (enum style)_i;
    struct ram *ram = go(style);
    uint32_t nr;
    uint64_t sum;
    size_t at;

    for (unsigned b = 1; b < RAM_BLOCKS; b += 2)
        error_of(ram, style, 0, NBD_CMD_WRITE, b * RAM_BLOCK, RAM_BLOCK);
    ask(ram, style, 0, NBD_CMD_BLOCK_STATUS, 1, 0, RAM_SIZE, -1);
    at = 0;
    for (unsigned c = 1; c <= 3; c++) {
        status_chunk(&at, c, c == 3, &nr, &sum);
        ck_assert_uint_eq(nr, RAM_BLOCKS);
        ck_assert_uint_eq(sum, RAM_SIZE);
    }
    ck_assert_uint_eq(at, out.len);
    out.len = 0;

    ask(ram, style, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 1, 7, RAM_SIZE - 7, -1);
    at = 0;
    for (unsigned c = 1; c <= 3; c++) {
        status_chunk(&at, c, c == 3, &nr, &sum);
        ck_assert_uint_eq(nr, 1);
        ck_assert_uint_eq(sum, RAM_BLOCK - 7);
    }
    out.len = 0;

    /* What the owner says beyond the request is cut. */
    ask(ram, style, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 1, 0, 5, -1);
    at = 0;
    status_chunk(&at, 1, false, &nr, &sum);
    ck_assert_uint_eq(sum, 5);
    ram_destroy(ram);
}
END_TEST

static void
submit_says_nothing(void *arg, struct nbd_request *req)
{
    (void)arg;
    nbd_request_done(req, 0);
}

static void
submit_says_too_much(void *arg, struct nbd_request *req)
{
    unsigned said = 0;

    (void)arg;
    for (unsigned c = 0; c < req->nr_contexts; c++)
        for (said = 0; nbd_extent_add(req, c, 1, said % 2); said++)
            ck_assert_uint_lt(said, NBD_EXTENTS_PER_REPLY);
    nbd_request_done(req, 0);
}

START_TEST(extents_are_bounded_and_silence_is_an_error)
{
    const enum style style = (enum style)_i;
    struct nbd_ops ops = ram_ops;
    struct ram *ram = calloc(1, sizeof(*ram));
    struct nbd_config config = {.ops = &ops, .arg = ram, .request_extra_bytes = 8};
    struct bytes in = {0};
    static const char *const all[] = {"base:allocation", "thin:delta:monday", NULL};

    ops.submit = submit_says_nothing;
    ram_make_disk(ram);
    ck_assert_int_eq(nbd_conn_create(&config, &ram->conn, NULL), 0);
    put32(&in, 3);
    put_option(&in,
               style == EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY,
               NULL, 0);
    put_contexts(&in, NBD_OPT_SET_META_CONTEXT, "e0", all);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    ram_feed(ram, &in, 0, &out);
    out.len = 0;
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_BLOCK_STATUS, 0, 4096),
                      NBD_WIRE_EIO);
    ops.submit = submit_says_too_much;
    ask(ram, style, 0, NBD_CMD_BLOCK_STATUS, 1, 0, RAM_SIZE, -1);
    if (style == EXTENDED)
        ck_assert_uint_eq(out.len, 2 * (40 + 16 * NBD_EXTENTS_PER_REPLY));
    else
        ck_assert_uint_eq(out.len, 2 * (24 + 8 * NBD_EXTENTS_PER_REPLY));
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(a_told_minimum_is_enforced_an_untold_one_is_not)
{
    struct ram *ram = go_with(SIMPLE, 8, 0, 4096);

    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_READ, 512, 4096), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_WRITE, 0, 512), NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_WRITE, 4096, 8192), 0);
    ram_destroy(ram);
    ram = go(SIMPLE);
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_WRITE, 1, 1), 0);
    ram_destroy(ram);
}
END_TEST

START_TEST(a_full_table_stops_the_input_and_nothing_else)
{
    struct ram *ram = go_with(STRUCTURED, 4, 0, 0);
    struct bytes in = {0};
    size_t used;

    ram->defer = true;
    for (uint64_t i = 0; i < 10; i++)
        put_request(&in, 0, NBD_CMD_READ, i, i * 4096, 4096);
    used = ram_feed(ram, &in, 0, &out);
    ck_assert_uint_eq(used, 4 * 28);
    ck_assert(!nbd_conn_wants_input(ram->conn));
    ck_assert(!nbd_conn_mid_request(ram->conn));
    ck_assert_uint_eq(nbd_conn_in_flight(ram->conn), 4);
    /* An answer is not enough: the object is free when its reply has gone out. */
    ram_answer_one(ram, 2);
    ck_assert_uint_eq(ram->nr_wakes, 1);
    ck_assert(!nbd_conn_wants_input(ram->conn));
    ram_drain_output(ram, &out, 0);
    ck_assert(nbd_conn_wants_input(ram->conn));
    while (used < in.len) {
        used += nbd_conn_input(ram->conn, in.p + used, in.len - used);
        ram_answer_one(ram, ram->nr_waiting / 2);
        ram_drain_output(ram, &out, 0);
    }
    while (ram->nr_waiting)
        ram_answer_one(ram, 0);
    ram_drain_output(ram, &out, 0);
    ck_assert_uint_eq(out.len, 10 * 32);
    ck_assert(nbd_conn_is_quiet(ram->conn));
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(no_memory_stops_the_input_until_resumed)
{
    struct ram *ram = go(SIMPLE);
    struct bytes in = {0};
    size_t used;

    ram->budget = 10000;
    ram->lent = 5000; /* somebody else's */
    put_request(&in, 0, NBD_CMD_WRITE, 1, 0, 8192);
    put_fill(&in, 7, 8192);
    put_request(&in, 0, NBD_CMD_READ, 2, 0, 8192);
    used = nbd_conn_input(ram->conn, in.p, in.len);
    ck_assert_uint_eq(used, 28);
    ck_assert(ram->starved);
    ck_assert(!nbd_conn_wants_input(ram->conn));
    nbd_conn_resume(ram->conn); /* still none */
    ck_assert(!nbd_conn_wants_input(ram->conn));
    ck_assert_uint_eq(nbd_conn_input(ram->conn, in.p + used, 100), 0);
    ram->lent = 0;
    nbd_conn_resume(ram->conn);
    ck_assert(nbd_conn_wants_input(ram->conn));
    ck_assert(nbd_conn_mid_request(ram->conn));
    used += nbd_conn_input(ram->conn, in.p + used, in.len - used);
    ck_assert_uint_eq(used, in.len);
    ram_drain_output(ram, &out, 0);
    ck_assert_uint_eq(out.len, 16 + 16 + 8192);
    ck_assert_uint_eq(ram->nr_buffers, 0);
    nbd_conn_resume(ram->conn); /* harmless */

    /* A failure is an answer. */
    out.len = 0;
    ram->buffer_code = -ENOMEM;
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_WRITE, 0, 512), NBD_WIRE_ENOMEM);
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_READ, 0, 512), NBD_WIRE_ENOMEM);
    ram->buffer_code = 0;

    /* Closed while it waits. */
    ram->lent = 5000;
    nbd_conn_input(ram->conn, in.p, 28);
    ck_assert(nbd_conn_close(ram->conn));
    ram->lent = 0;
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(disc_finishes_everything_then_closes)
{
    struct ram *ram = go(SIMPLE);
    struct bytes in = {0};

    ram->defer = true;
    put_request(&in, 0, NBD_CMD_READ, 1, 0, 512);
    put_request(&in, 0, NBD_CMD_WRITE, 2, 0, 512);
    put_fill(&in, 7, 512);
    put_request(&in, 0, NBD_CMD_DISC, 3, 0, 0);
    put_request(&in, 0, NBD_CMD_WRITE, 4, 0, 512);
    put_fill(&in, 8, 512);
    ck_assert_uint_eq(ram_feed(ram, &in, 0, &out), in.len);
    ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_DRAINING);
    ck_assert(!nbd_conn_wants_input(ram->conn));
    ram_answer_one(ram, 1);
    ram_answer_one(ram, 0);
    ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_DRAINING);
    ram_drain_output(ram, &out, 0);
    ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_FINISHED);
    ck_assert_ptr_null(nbd_conn_why(ram->conn));
    ck_assert_uint_eq(out.len, 16 + 16 + 512);
    ck_assert_uint_eq(ram->disk[0], 7);
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(a_broken_head_ends_after_what_was_sound)
{
    struct ram *ram = go(STRUCTURED);
    struct bytes in = {0};

    put_request(&in, 0, NBD_CMD_READ, 1, 0, 512);
    put_fill(&in, 'x', 100);
    ram_feed(ram, &in, 0, &out);
    ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_FINISHED);
    ck_assert_ptr_nonnull(nbd_conn_why(ram->conn));
    ck_assert_uint_eq(out.len, 32);
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(after_a_close_replies_are_dropped_and_idle_comes_once)
{
    struct ram *ram = go(STRUCTURED);
    struct bytes in = {0};

    ram->defer = true;
    put_request(&in, 0, NBD_CMD_READ, 1, 0, 512);
    put_request(&in, 0, NBD_CMD_BLOCK_STATUS, 2, 0, 512);
    put_request(&in, 0, NBD_CMD_READ, 3, 0, 512);
    put_request(&in, 0, NBD_CMD_WRITE, 4, 0, 512);
    put_fill(&in, 7, 100); /* gone amid the payload */
    ram_feed(ram, &in, 0, &out);
    ram_answer_one(ram, 0);
    ck_assert(nbd_conn_has_output(ram->conn));
    ck_assert(!nbd_conn_close(ram->conn));
    ck_assert(!nbd_conn_has_output(ram->conn));
    ck_assert_uint_eq(ram->nr_buffers, 2); /* those of the two that run */
    ram_answer_one(ram, 0);
    ck_assert_uint_eq(ram->nr_idle, 0);
    ck_assert_uint_eq(ram->nr_closed, 0);
    ram_answer_one(ram, 0);
    ck_assert_uint_eq(ram->nr_idle, 1);
    ck_assert_uint_eq(ram->nr_closed, 1);
    ck_assert_uint_eq(ram->nr_seen[NBD_OP_WRITE], 0);
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(a_server_that_stops_finishes_what_runs)
{
    const enum style style = (enum style)_i;
    struct ram *ram = go(style);
    struct bytes in = {0};

    ram->defer = true;
    ask(ram, style, 0, NBD_CMD_READ, 5, 0, 512, -1);
    nbd_conn_shutdown(ram->conn);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_WRITE, 0, 512), NBD_WIRE_ESHUTDOWN);
    ck_assert_uint_eq(error_of(ram, style, 0, NBD_CMD_FLUSH, 0, 0), NBD_WIRE_ESHUTDOWN);
    ck_assert(!nbd_conn_is_quiet(ram->conn));
    ram_answer_one(ram, 0);
    ram_drain_output(ram, &out, 0);
    ck_assert_uint_eq(error_of_reply(style, 5), 0);
    ck_assert(nbd_conn_is_quiet(ram->conn));
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(a_resized_export_takes_the_new_range)
{
    struct ram *ram = go(SIMPLE);

    nbd_conn_set_size(ram->conn, 8192);
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_WRITE, 8192, 1), NBD_WIRE_ENOSPC);
    nbd_conn_set_size(ram->conn, 8193);
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_WRITE, 8192, 1), 0);
    ram_destroy(ram);
}
END_TEST

START_TEST(payload_length_flag_belongs_to_extended_writes)
{
    struct ram *ram = go(EXTENDED);
    struct bytes in = {0};

    /* WRITE without it has no payload behind; others with it have one, which is eaten. */
    put_extended(&in, 0, NBD_CMD_WRITE, 1, 0, 512);
    put_extended(&in, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_TRIM, 2, 0, 512);
    put_fill(&in, 1, 512);
    put_extended(&in, NBD_CMD_FLAG_PAYLOAD_LEN, 99, 3, 0, 512);
    put_fill(&in, 1, 512);
    put_extended(&in, 0, NBD_CMD_TRIM, 4, 0, RAM_SIZE);
    put_extended(&in, 0, NBD_CMD_TRIM, 5, 1, UINT64_MAX);
    put_extended(&in, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_WRITE, 6, 0, 0);
    ck_assert_uint_eq(ram_feed(ram, &in, 0, &out), in.len);
    ck_assert_uint_eq(out.len, 4 * 38 + 2 * 32);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_uint_eq(load_be64(out.p + 38 * i + 8), i + 1);
        ck_assert_uint_eq(load_be32(out.p + 38 * i + 32), NBD_WIRE_EINVAL);
    }
    ck_assert_uint_eq(load_be16(out.p + 38 * 3 + 6), NBD_CHUNK_NONE);
    ck_assert_uint_eq(ram->nr_seen[NBD_OP_TRIM], 1);
    ram_destroy(ram);

    out.len = 0;
    ram = go(SIMPLE);
    ck_assert_uint_eq(
        error_of(ram, SIMPLE, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_WRITE, 0, 512),
        NBD_WIRE_EINVAL);
    ck_assert_uint_eq(error_of(ram, SIMPLE, 0, NBD_CMD_WRITE, 0, 512), 0);
    ram_destroy(ram);
    free(in.p);
}
END_TEST

START_TEST(offsets_beyond_32_bits_stand_in_the_chunks)
{
    struct ram *ram = go(STRUCTURED);

    /* The cookie and the offset come back as they went. */
    ask(ram, STRUCTURED, 0, NBD_CMD_READ, UINT64_MAX, 5 * RAM_BLOCK, 4096, -1);
    ck_assert_uint_eq(load_be64(out.p + 8), UINT64_MAX);
    ck_assert_uint_eq(load_be64(out.p + 20), 5 * RAM_BLOCK);
    out.len = 0;
    ram_destroy(ram);
}
END_TEST

/* ---- random conversations ---------------------------------------------------------- */

static uint64_t
seed_of_run(void)
{
    const char *s = getenv("SEED");
    uint64_t seed = 0;

    if (s)
        return strtoull(s, NULL, 0);
    THIN_ASSERT(random_secret(&seed, sizeof(seed)) == 0);
    return seed;
}

static void
random_requests(struct thin_random *rng, struct bytes *in, bool extended, unsigned nr)
{
    static const uint16_t flag_choices[] = {0, 0, 0, 1, 2, 4, 8, 16, 64};

    for (unsigned i = 0; i < nr; i++) {
        uint16_t type = (uint16_t)random_below(rng, random_below(rng, 20) ? 8 : 12);
        uint16_t flags = flag_choices[random_below(rng, 9)];
        uint64_t off = random_below(rng, RAM_SIZE + (random_below(rng, 10) ? 0 : 70000));
        uint32_t len = (uint32_t)random_below(rng, random_below(rng, 4) ? 9000 : 150000);

        if (type == NBD_CMD_DISC || type == NBD_CMD_FLUSH) {
            type = NBD_CMD_FLUSH;
            if (random_below(rng, 8))
                off = len = 0;
        }
        if (extended)
            put_extended(in,
                         flags | (type == NBD_CMD_WRITE ? NBD_CMD_FLAG_PAYLOAD_LEN : 0),
                         type, i, off, len);
        else
            put_request(in, flags, type, i, off, len);
        if (type == NBD_CMD_WRITE)
            put_fill(in, (uint8_t)i, len);
    }
}

/* The same bytes, cut in any way, bring the same answer and the same disk. */
START_TEST(cuts_do_not_change_the_answer)
{
    static const size_t cuts[] = {0, 1, 13, 29, 4096, 70001};
    const uint64_t seed = seed_of_run();
    const enum style style = (enum style)(_i % 3);
    struct thin_random rng;
    struct bytes in = {0}, first = {0};
    static uint8_t disk[RAM_SIZE];

    random_seed(&rng, seed + (uint64_t)_i);
    printf("SEED=%llu\n", (unsigned long long)seed);
    random_requests(&rng, &in, style == EXTENDED, 15);
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct ram *ram = go_with(style, 3, 0, 0);

        ck_assert_uint_eq(ram_feed(ram, &in, cuts[i], &out), in.len);
        ck_assert(nbd_conn_is_quiet(ram->conn));
        if (i == 0) {
            put(&first, out.p, out.len);
            memcpy(disk, ram->disk, RAM_SIZE);
        } else {
            ck_assert_uint_eq(out.len, first.len);
            ck_assert_mem_eq(out.p, first.p, first.len);
            ck_assert_mem_eq(ram->disk, disk, RAM_SIZE);
        }
        ram_destroy(ram);
    }
    free(in.p);
    free(first.p);
}
END_TEST

/* Answers in any order, little memory, few objects, a slow reader, an end at any time. */
START_TEST(any_order_of_events_loses_nothing)
{
    const uint64_t seed = seed_of_run();
    struct thin_random rng;
    struct bytes in = {0};
    struct ram *ram;
    size_t at = 0, end;
    const enum style style = (enum style)(_i % 3);

    random_seed(&rng, seed + (uint64_t)_i);
    printf("SEED=%llu\n", (unsigned long long)seed);
    random_requests(&rng, &in, style == EXTENDED, 60);
    end = random_below(&rng, 3) ? in.len : random_below(&rng, in.len);
    ram = go_with(style, 5, 0, 0);
    ram->defer = true;
    ram->budget = 200000;
    while (at < end || !nbd_conn_is_quiet(ram->conn)) {
        struct iovec iov[4];
        size_t n;

        if (at == end && end < in.len && ram->nr_waiting == 0)
            break;
        switch (random_below(&rng, 4)) {
        case 0:
            n = min_u64(end - at, 1 + random_below(&rng, 60000));
            at += nbd_conn_input(ram->conn, in.p + at, n);
            break;
        case 1:
            if (ram->nr_waiting > 0)
                ram_answer_one(ram, (unsigned)random_below(&rng, ram->nr_waiting));
            break;
        case 2:
            n = nbd_conn_output(ram->conn, iov, 4);
            if (n > 0)
                nbd_conn_sent(ram->conn, 1 + random_below(&rng, iov[0].iov_len));
            break;
        default:
            nbd_conn_resume(ram->conn);
            break;
        }
        ck_assert_uint_le(nbd_conn_in_flight(ram->conn), 5);
        ck_assert_uint_le(ram->lent, 350000);
    }
    ram_destroy(ram);
    free(in.p);
}
END_TEST

#define EACH_STYLE(t) tcase_add_loop_test(tc, t, 0, 3)

int
main(void)
{
    Suite *s = suite_create("nbd_requests");
    TCase *tc = tcase_create("transmission");
    SRunner *r;
    int failed;

    tcase_set_timeout(tc, 30);
    EACH_STYLE(what_was_written_is_read_back);
    EACH_STYLE(errors_are_the_permitted_ones);
    EACH_STYLE(zero_length_is_answered_and_fua_goes_with_everything);
    EACH_STYLE(a_read_only_export_refuses_changes_and_eats_their_payload);
    EACH_STYLE(what_the_export_does_not_offer_is_invalid);
    EACH_STYLE(outcomes_become_nbd_errors);
    tcase_add_loop_test(tc, holes_are_sent_as_holes, 1, 3);
    tcase_add_loop_test(tc, block_status_tells_each_chosen_context, 1, 3);
    tcase_add_loop_test(tc, extents_are_bounded_and_silence_is_an_error, 1, 3);
    tcase_add_test(tc, a_told_minimum_is_enforced_an_untold_one_is_not);
    tcase_add_test(tc, a_full_table_stops_the_input_and_nothing_else);
    tcase_add_test(tc, no_memory_stops_the_input_until_resumed);
    tcase_add_test(tc, disc_finishes_everything_then_closes);
    tcase_add_test(tc, a_broken_head_ends_after_what_was_sound);
    tcase_add_test(tc, after_a_close_replies_are_dropped_and_idle_comes_once);
    EACH_STYLE(a_server_that_stops_finishes_what_runs);
    tcase_add_test(tc, a_resized_export_takes_the_new_range);
    tcase_add_test(tc, payload_length_flag_belongs_to_extended_writes);
    tcase_add_test(tc, offsets_beyond_32_bits_stand_in_the_chunks);
    tcase_add_loop_test(tc, cuts_do_not_change_the_answer, 0, 6);
    tcase_add_loop_test(tc, any_order_of_events_loses_nothing, 0, 30);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    free(out.p);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
