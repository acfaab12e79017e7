/* Options and their rules; each script is run at once, byte by byte, and in odd cuts. */
#include <check.h>
#include <stdio.h>

#include "tests/unit/nbd/ram_export.h"

/* What came back. */
struct result {
    struct bytes out;
    enum nbd_phase phase;
    unsigned contexts;
};

static const size_t cuts[] = {0, 1, 2, 3, 7, 19, 64, 1000};

/* Runs `options` behind the client's flags in every cut, and compares. */
static struct result
run_with(enum nbd_tls_policy tls, uint32_t client_flags, const struct bytes *options,
         unsigned flags)
{
    struct result first = {0};
    struct bytes in = {0};

    put32(&in, client_flags);
    put(&in, options->p, options->len);
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct ram *ram = ram_create(tls, 4);
        struct bytes out = {0};
        size_t used;

        if (flags)
            ram->flags = flags;
        used = ram_feed(ram, &in, cuts[i], &out);
        ck_assert_uint_eq(used, in.len);
        if (i == 0) {
            first.out = out;
            first.phase = nbd_conn_phase(ram->conn);
            first.contexts = ram->last_contexts;
        } else {
            ck_assert_uint_eq(out.len, first.out.len);
            ck_assert_mem_eq(out.p, first.out.p, out.len);
            ck_assert_int_eq(nbd_conn_phase(ram->conn), first.phase);
            free(out.p);
        }
        ram_destroy(ram);
    }
    free(in.p);
    return first;
}

static struct result
run(const struct bytes *options)
{
    return run_with(NBD_TLS_OFF, 3, options, 0);
}

/* A reader over the replies. */
struct reader {
    const struct result *r;
    size_t at;
    uint32_t option, type, len;
    const uint8_t *data;
};

static void
read_greeting(struct reader *rd, const struct result *r)
{
    *rd = (struct reader){.r = r, .at = 18};
    ck_assert_uint_ge(r->out.len, 18);
    ck_assert_uint_eq(load_be64(r->out.p), NBD_MAGIC);
    ck_assert_uint_eq(load_be64(r->out.p + 8), NBD_OPTION_MAGIC);
    ck_assert_uint_eq(load_be16(r->out.p + 16), 3);
}

static uint32_t
next_reply(struct reader *rd)
{
    const uint8_t *p = rd->r->out.p + rd->at;

    ck_assert_uint_ge(rd->r->out.len, rd->at + 20);
    ck_assert_uint_eq(load_be64(p), NBD_OPTION_REPLY_MAGIC);
    rd->option = load_be32(p + 8);
    rd->type = load_be32(p + 12);
    rd->len = load_be32(p + 16);
    rd->data = p + 20;
    rd->at += 20 + rd->len;
    ck_assert_uint_ge(rd->r->out.len, rd->at);
    return rd->type;
}

static void
no_more(const struct reader *rd)
{
    ck_assert_uint_eq(rd->at, rd->r->out.len);
}

/* One option, one reply, still in step: shown by an unknown option behind it. */
static void
expect_one(enum nbd_tls_policy tls, struct bytes *in, uint32_t option, uint32_t type)
{
    struct result r;
    struct reader rd;

    put_option(in, 4242, "xyz", 3);
    r = run_with(tls, 3, in, 0);
    read_greeting(&rd, &r);
    ck_assert_uint_eq(next_reply(&rd), type);
    ck_assert_uint_eq(rd.option, option);
    ck_assert_uint_le(rd.len, 4096);
    next_reply(&rd);
    ck_assert_uint_eq(rd.option, 4242);
    no_more(&rd);
    ck_assert_int_eq(r.phase, NBD_PHASE_HANDSHAKE);
    free(r.out.p);
    free(in->p);
}

START_TEST(unknown_options_are_refused_and_skipped)
{
    struct bytes in = {0};
    uint8_t *big = calloc(1, 65536);

    put_option(&in, 77, big, 65536);
    expect_one(NBD_TLS_OFF, &in, 77, NBD_REP_ERR_UNSUP);
    free(big);
}
END_TEST

START_TEST(option_data_beyond_the_limit_ends_the_connection)
{
    struct bytes in = {0};
    struct result r;
    struct reader rd;

    put64(&in, NBD_OPTION_MAGIC);
    put32(&in, 77);
    put32(&in, 65537);
    r = run(&in);
    read_greeting(&rd, &r);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ERR_TOO_BIG);
    no_more(&rd);
    ck_assert_int_eq(r.phase, NBD_PHASE_FINISHED);
    free(r.out.p);
    free(in.p);
}
END_TEST

static const struct {
    enum nbd_tls_policy tls;
    uint32_t option;
    const char *data;
    size_t len;
    uint32_t type;
} singles[] = {
    {NBD_TLS_OFF, NBD_OPT_STARTTLS, "", 0, NBD_REP_ERR_UNSUP},
    {NBD_TLS_ALLOWED, NBD_OPT_STARTTLS, "x", 1, NBD_REP_ERR_INVALID},
    {NBD_TLS_REQUIRED, NBD_OPT_STARTTLS, "x", 1, NBD_REP_ERR_INVALID},
    {NBD_TLS_REQUIRED, NBD_OPT_LIST, "", 0, NBD_REP_ERR_TLS_REQD},
    {NBD_TLS_REQUIRED, NBD_OPT_GO, "\0\0\0\0\0\0", 6, NBD_REP_ERR_TLS_REQD},
    {NBD_TLS_REQUIRED, NBD_OPT_STRUCTURED_REPLY, "", 0, NBD_REP_ERR_TLS_REQD},
    {NBD_TLS_REQUIRED, 999, "abc", 3, NBD_REP_ERR_TLS_REQD},
    {NBD_TLS_OFF, NBD_OPT_LIST, "x", 1, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_STRUCTURED_REPLY, "", 0, NBD_REP_ACK},
    {NBD_TLS_OFF, NBD_OPT_STRUCTURED_REPLY, "x", 1, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_EXTENDED_HEADERS, "", 0, NBD_REP_ACK},
    {NBD_TLS_OFF, NBD_OPT_EXTENDED_HEADERS, "x", 1, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_INFO, "", 0, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_INFO, "\0\0\0\1\0\0", 6, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_INFO, "\xff\xff\xff\xff\0\0", 6, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_INFO, "\0\0\0\0\0\1", 6, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_INFO, "\0\0\0\0\0\0\0", 7, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_INFO, "\0\0\0\1\0\0\0", 7, NBD_REP_ERR_INVALID},   /* NUL */
    {NBD_TLS_OFF, NBD_OPT_INFO, "\0\0\0\1\xff\0\0", 7, NBD_REP_ERR_INVALID}, /* UTF-8 */
    {NBD_TLS_OFF, NBD_OPT_INFO, "\0\0\0\2\xc0\x80\0\0", 8, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_GO, "\0\0\0\4nope\0\0", 10, NBD_REP_ERR_UNKNOWN},
    {NBD_TLS_OFF, NBD_OPT_INFO, "\0\0\0\4nope\0\0", 10, NBD_REP_ERR_UNKNOWN},
    /* No contexts before structured replies. */
    {NBD_TLS_OFF, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8, NBD_REP_ERR_INVALID},
    {NBD_TLS_OFF, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8, NBD_REP_ERR_INVALID},
};

START_TEST(each_option_gets_its_one_answer)
{
    struct bytes in = {0};

    put_option(&in, singles[_i].option, singles[_i].data, singles[_i].len);
    expect_one(singles[_i].tls, &in, singles[_i].option, singles[_i].type);
}
END_TEST

/* Ends without a word. */
static void
expect_end(enum nbd_tls_policy tls, uint32_t client_flags, struct bytes *in)
{
    struct result r = run_with(tls, client_flags, in, 0);

    ck_assert_int_eq(r.phase, NBD_PHASE_FINISHED);
    ck_assert_uint_eq(r.out.len, 18);
    free(r.out.p);
    free(in->p);
    *in = (struct bytes){0};
}

START_TEST(what_breaks_the_handshake_ends_it)
{
    struct bytes in = {0};

    expect_end(NBD_TLS_OFF, 4, &in); /* a flag that was not offered */
    put_fill(&in, 'G', 16);          /* no option at all */
    expect_end(NBD_TLS_OFF, 3, &in);
    put_option(&in, NBD_OPT_LIST, NULL, 0); /* options without fixed newstyle */
    expect_end(NBD_TLS_OFF, 2, &in);
    put_option(&in, NBD_OPT_EXPORT_NAME, "nope", 4);
    expect_end(NBD_TLS_OFF, 3, &in);
    put_option(&in, NBD_OPT_EXPORT_NAME, "e0", 2); /* TLS is missing */
    expect_end(NBD_TLS_REQUIRED, 3, &in);
}
END_TEST

START_TEST(abort_is_acknowledged_and_ends)
{
    for (int tls = NBD_TLS_OFF; tls <= NBD_TLS_REQUIRED; tls++) {
        struct bytes in = {0};
        struct result r;
        struct reader rd;

        put_option(&in, NBD_OPT_ABORT, "why not", 7);
        put_option(&in, NBD_OPT_LIST, NULL, 0);
        r = run_with((enum nbd_tls_policy)tls, 3, &in, 0);
        read_greeting(&rd, &r);
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
        no_more(&rd);
        ck_assert_int_eq(r.phase, NBD_PHASE_FINISHED);
        free(r.out.p);
        free(in.p);
    }
}
END_TEST

START_TEST(export_name_answers_with_and_without_zeroes)
{
    struct bytes in = {0};

    put_option(&in, NBD_OPT_EXPORT_NAME, "e0", 2);
    for (uint32_t flags = 0; flags < 4; flags++) {
        struct result r = run_with(NBD_TLS_OFF, flags, &in, 0);

        ck_assert_uint_eq(r.out.len, 18u + 10 + (flags & 2 ? 0 : 124));
        ck_assert_uint_eq(load_be64(r.out.p + 18), RAM_SIZE);
        ck_assert_uint_eq(load_be16(r.out.p + 26), 0x0d6d & ~(1u << 7));
        ck_assert_int_eq(r.phase, NBD_PHASE_TRANSMISSION);
        free(r.out.p);
    }
    free(in.p);
}
END_TEST

START_TEST(list_names_each_export_once)
{
    struct bytes in = {0};
    struct result r;
    struct reader rd;

    put_option(&in, NBD_OPT_LIST, NULL, 0);
    put_option(&in, NBD_OPT_LIST, NULL, 0);
    r = run(&in);
    read_greeting(&rd, &r);
    for (int i = 0; i < 6; i++) {
        char name[8];

        ck_assert_uint_eq(next_reply(&rd), NBD_REP_SERVER);
        snprintf(name, sizeof(name), "e%d", i % 3);
        ck_assert_uint_eq(load_be32(rd.data), 2);
        ck_assert_mem_eq(rd.data + 4, name, 2);
        if (i == 2)
            ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    }
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    no_more(&rd);
    free(r.out.p);
    free(in.p);
}
END_TEST

START_TEST(a_long_list_is_cut_by_the_output_and_goes_on)
{
    struct ram *ram = ram_create(NBD_TLS_OFF, 4);
    struct bytes in = {0}, out = {0};
    struct result r = {0};
    struct reader rd;
    size_t most = 0;

    ram->nr_exports = 20000;
    put32(&in, 3);
    put_option(&in, NBD_OPT_LIST, NULL, 0);
    ck_assert_uint_eq(nbd_conn_input(ram->conn, in.p, in.len), in.len);
    ck_assert(!nbd_conn_wants_input(ram->conn));
    while (nbd_conn_has_output(ram->conn)) {
        struct iovec iov[64];
        unsigned n = nbd_conn_output(ram->conn, iov, 64);
        size_t len = 0;

        for (unsigned i = 0; i < n; i++) {
            put(&out, iov[i].iov_base, iov[i].iov_len);
            len += iov[i].iov_len;
        }
        if (len > most)
            most = len;
        nbd_conn_sent(ram->conn, len);
    }
    ck_assert_uint_lt(most, 80000);
    ck_assert(nbd_conn_wants_input(ram->conn));
    r.out = out;
    read_greeting(&rd, &r);
    for (unsigned i = 0; i < ram->nr_exports; i++) {
        char name[16];

        ck_assert_uint_eq(next_reply(&rd), NBD_REP_SERVER);
        snprintf(name, sizeof(name), "e%u", i);
        ck_assert_uint_eq(load_be32(rd.data), strlen(name));
        ck_assert_mem_eq(rd.data + 4, name, strlen(name));
    }
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    no_more(&rd);
    ram_destroy(ram);
    free(out.p);
    free(in.p);
}
END_TEST

START_TEST(unsent_option_replies_stop_the_input)
{
    struct ram *ram = ram_create(NBD_TLS_OFF, 4);
    struct bytes in = {0}, out = {0};
    size_t at, used;

    put32(&in, 3);
    for (int i = 0; i < 20000; i++)
        put_option(&in, 4711, NULL, 0);
    at = nbd_conn_input(ram->conn, in.p, in.len);
    ck_assert_uint_lt(at, in.len);
    ck_assert(!nbd_conn_wants_input(ram->conn));
    do {
        ram_drain_output(ram, &out, 0);
        ck_assert_uint_lt(out.len, 66000);
        out.len = 0;
        used = nbd_conn_input(ram->conn, in.p + at, in.len - at);
        ck_assert_uint_gt(used, 0);
        at += used;
    } while (at < in.len);
    ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_HANDSHAKE);
    ram_destroy(ram);
    free(in.p);
    free(out.p);
}
END_TEST

START_TEST(go_says_what_info_said)
{
    static const uint16_t all[] = {9, 3, 1, 2, 700, 0, 0xffff};
    struct bytes in = {0};
    struct result r;
    struct reader rd;

    put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    put_go(&in, NBD_OPT_INFO, "", all);
    put_go(&in, NBD_OPT_GO, "", all);
    r = run(&in);
    read_greeting(&rd, &r);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    for (int i = 0; i < 2; i++) {
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_INFO);
        ck_assert_uint_eq(rd.option, i == 0 ? NBD_OPT_INFO : NBD_OPT_GO);
        ck_assert_uint_eq(rd.len, 12);
        ck_assert_uint_eq(load_be16(rd.data), NBD_INFO_EXPORT);
        ck_assert_uint_eq(load_be64(rd.data + 2), RAM_SIZE);
        ck_assert_uint_eq(load_be16(rd.data + 10), 0x0ded);
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_INFO);
        ck_assert_uint_eq(load_be16(rd.data), NBD_INFO_NAME);
        ck_assert_mem_eq(rd.data + 2, "e0", 2);
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_INFO);
        ck_assert_uint_eq(load_be16(rd.data), NBD_INFO_DESCRIPTION);
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_INFO);
        ck_assert_uint_eq(load_be16(rd.data), NBD_INFO_BLOCK_SIZE);
        ck_assert_uint_eq(load_be32(rd.data + 2), 1);
        ck_assert_uint_eq(load_be32(rd.data + 6), 4096);
        ck_assert_uint_eq(load_be32(rd.data + 10), 32u << 20);
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    }
    no_more(&rd);
    ck_assert_int_eq(r.phase, NBD_PHASE_TRANSMISSION);
    free(r.out.p);
    free(in.p);
}
END_TEST

START_TEST(what_was_not_asked_is_not_told)
{
    struct bytes in = {0};
    struct result r;
    struct reader rd;

    put_go(&in, NBD_OPT_GO, "e0", NULL);
    r = run_with(NBD_TLS_OFF, 3, &in,
                 NBD_EXPORT_READ_ONLY | NBD_EXPORT_TRIM | NBD_EXPORT_FAST_ZERO);
    read_greeting(&rd, &r);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_INFO);
    ck_assert_uint_eq(load_be16(rd.data + 10), NBD_TX_HAS_FLAGS | NBD_TX_READ_ONLY);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    no_more(&rd);
    free(r.out.p);
    free(in.p);
}
END_TEST

START_TEST(contexts_are_listed_and_set)
{
    static const char *const space[] = {"base:", "nobody:knows", NULL};
    static const char *const mixed[] = {"thin:delta:monday", "base:allocation",
                                        "thin:delta:", "x", NULL};
    struct bytes in = {0};
    struct result r;
    struct reader rd;

    put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    put_contexts(&in, NBD_OPT_LIST_META_CONTEXT, "e0", NULL);
    put_contexts(&in, NBD_OPT_LIST_META_CONTEXT, "e0", space);
    put_contexts(&in, NBD_OPT_SET_META_CONTEXT, "e0", mixed);
    put_contexts(&in, NBD_OPT_LIST_META_CONTEXT, "nope", NULL);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    r = run(&in);
    read_greeting(&rd, &r);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_META_CONTEXT);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_META_CONTEXT);
    ck_assert_uint_eq(rd.len, 4 + 15);
    ck_assert_mem_eq(rd.data + 4, "base:allocation", 15);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_META_CONTEXT);
    ck_assert_uint_eq(load_be32(rd.data), 1);
    ck_assert_mem_eq(rd.data + 4, "base:allocation", 15);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_META_CONTEXT);
    ck_assert_uint_eq(load_be32(rd.data), 2);
    ck_assert_mem_eq(rd.data + 4, "thin:delta:monday", 17);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ERR_UNKNOWN);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_INFO);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    no_more(&rd);
    ck_assert_uint_eq(r.contexts, 2);
    free(r.out.p);
    free(in.p);
}
END_TEST

/* Which of these leaves contexts chosen at GO for e0. */
START_TEST(contexts_hold_only_for_their_export_and_until_the_next_set)
{
    static const char *const base[] = {"base:allocation", NULL};
    static const unsigned want[] = {1, 0, 0, 0, 1};
    struct bytes in = {0};
    struct result r;

    put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    put_contexts(&in, NBD_OPT_SET_META_CONTEXT, _i == 1 ? "" : "e0", base);
    if (_i == 2) /* replaced by nothing */
        put_contexts(&in, NBD_OPT_SET_META_CONTEXT, "e0", NULL);
    if (_i == 3) /* replaced also when it fails */
        put_option(&in, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\1", 8);
    if (_i == 4) /* a list changes nothing */
        put_contexts(&in, NBD_OPT_LIST_META_CONTEXT, "e0", NULL);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    r = run(&in);
    ck_assert_int_eq(r.phase, NBD_PHASE_TRANSMISSION);
    ck_assert_uint_eq(r.contexts, want[_i]);
    free(r.out.p);
    free(in.p);
}
END_TEST

START_TEST(broken_context_lengths_are_invalid)
{
    static const struct {
        const char *data;
        size_t len;
    } bad[] = {
        {"", 0},
        {"\0\0\0", 3},
        {"\0\0\0\0", 4},
        {"\0\0\0\1\0\0\0\0", 8},
        {"\0\0\0\0\0\0\0\1", 8},
        {"\0\0\0\0\0\0\0\1\0\0\0\1", 12},
        {"\0\0\0\0\0\0\0\0x", 9},
        {"\0\0\0\0\xff\xff\xff\xff\0\0\0\0", 12},
        {"\xff\xff\xff\xff\0\0\0\0", 8},
    };
    struct bytes in = {0};
    struct result r;
    struct reader rd;

    put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        put_option(&in, i % 2 ? NBD_OPT_SET_META_CONTEXT : NBD_OPT_LIST_META_CONTEXT,
                   bad[i].data, bad[i].len);
    r = run(&in);
    read_greeting(&rd, &r);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_ERR_INVALID);
    no_more(&rd);
    free(r.out.p);
    free(in.p);
}
END_TEST

START_TEST(extended_headers_exclude_the_older_ways)
{
    struct bytes in = {0};
    struct result r;
    struct reader rd;

    put_option(&in, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    put_option(&in, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    put_option(&in, NBD_OPT_EXPORT_NAME, "e0", 2);
    r = run(&in);
    read_greeting(&rd, &r);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
    ck_assert_uint_eq(next_reply(&rd), NBD_REP_ERR_EXT_HEADER_REQD);
    no_more(&rd);
    ck_assert_int_eq(r.phase, NBD_PHASE_FINISHED);
    free(r.out.p);
    free(in.p);
}
END_TEST

/* The injection class of mistakes: plain bytes behind STARTTLS must never act. */
START_TEST(plain_bytes_behind_starttls_are_thrown_away)
{
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct ram *ram = ram_create(NBD_TLS_REQUIRED, 4);
        struct bytes in = {0}, out = {0};
        struct result r = {0};
        struct reader rd;

        put32(&in, 3);
        put_option(&in, NBD_OPT_STARTTLS, NULL, 0);
        put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        put_go(&in, NBD_OPT_GO, "e0", NULL);
        put_fill(&in, 0x49, 5); /* and half an option */
        ck_assert_uint_eq(ram_feed(ram, &in, cuts[i], &out), in.len);
        ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_WANT_TLS);
        ck_assert(!nbd_conn_wants_input(ram->conn));
        ck_assert(nbd_conn_in_handshake(ram->conn));
        r.out = out;
        read_greeting(&rd, &r);
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
        no_more(&rd);
        nbd_conn_tls_started(ram->conn);

        in.len = out.len = 0;
        put_option(&in, NBD_OPT_STARTTLS, NULL, 0); /* twice: invalid */
        put_go(&in, NBD_OPT_GO, "e0", NULL);
        ck_assert_uint_eq(ram_feed(ram, &in, cuts[i], &out), in.len);
        r.out = out;
        rd = (struct reader){.r = &r};
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_ERR_INVALID);
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_INFO);
        ck_assert_uint_eq(load_be16(rd.data + 10), 0x0d6d & ~(1u << 7));
        ck_assert_uint_eq(next_reply(&rd), NBD_REP_ACK);
        ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_TRANSMISSION);
        ck_assert(!nbd_conn_in_handshake(ram->conn));
        ram_destroy(ram);
        free(in.p);
        free(out.p);
    }
}
END_TEST

START_TEST(starttls_forgets_what_was_negotiated_before)
{
    static const char *const base[] = {"base:allocation", NULL};
    struct ram *ram = ram_create(NBD_TLS_ALLOWED, 4);
    struct bytes in = {0}, out = {0};

    put32(&in, 3);
    put_option(&in, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    put_contexts(&in, NBD_OPT_SET_META_CONTEXT, "e0", base);
    put_option(&in, NBD_OPT_STARTTLS, NULL, 0);
    ram_feed(ram, &in, 0, &out);
    nbd_conn_tls_started(ram->conn);
    in.len = out.len = 0;
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    put_request(&in, 0, NBD_CMD_READ, 5, 0, 512);
    ram_feed(ram, &in, 0, &out);
    ck_assert_uint_eq(ram->last_contexts, 0);
    ck_assert_uint_eq(out.len, 20 + 12 + 20 + 16 + 512);
    ck_assert_uint_eq(load_be32(out.p + 52), NBD_SIMPLE_REPLY_MAGIC);
    ram_destroy(ram);
    free(in.p);
    free(out.p);
}
END_TEST

START_TEST(an_open_answered_later_holds_the_input_back)
{
    struct ram *ram = ram_create(NBD_TLS_OFF, 4);
    struct bytes in = {0}, out = {0};
    size_t used;

    ram->defer = true;
    put32(&in, 3);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    put_request(&in, 0, NBD_CMD_FLUSH, 5, 0, 0);
    used = ram_feed(ram, &in, 0, &out);
    ck_assert_uint_eq(used, in.len - 28);
    ck_assert(!nbd_conn_wants_input(ram->conn));
    ck_assert_uint_eq(ram->nr_wakes, 0);
    ram_answer_open(ram);
    ck_assert_uint_gt(ram->nr_wakes, 0);
    ck_assert(nbd_conn_wants_input(ram->conn));
    ck_assert_uint_eq(nbd_conn_input(ram->conn, in.p + used, 28), 28);
    ck_assert_uint_eq(nbd_conn_in_flight(ram->conn), 1);
    ram_destroy(ram);
    free(in.p);
    free(out.p);
}
END_TEST

START_TEST(an_open_answered_after_the_close_is_closed_again)
{
    for (int code = 0; code >= -EIO; code -= EIO) {
        struct ram *ram = ram_create(NBD_TLS_OFF, 4);
        struct bytes in = {0}, out = {0};

        ram->defer = true;
        ram->open_code = code;
        put32(&in, 3);
        put_go(&in, NBD_OPT_GO, "e0", NULL);
        ram_feed(ram, &in, 0, &out);
        ck_assert(!nbd_conn_close(ram->conn));
        ck_assert(!nbd_conn_close(ram->conn));
        ck_assert_uint_eq(ram->nr_idle, 0);
        ram_answer_open(ram);
        ck_assert_uint_eq(ram->nr_idle, 1);
        ck_assert_uint_eq(ram->nr_closed, code == 0);
        ck_assert(!nbd_conn_has_output(ram->conn));
        ram_destroy(ram);
        free(in.p);
        free(out.p);
    }
}
END_TEST

START_TEST(refusals_keep_the_handshake_going)
{
    static const struct {
        int code;
        uint32_t type;
    } table[] = {
        {-THIN_E_DENIED, NBD_REP_ERR_UNKNOWN},
        {-THIN_E_NOT_FOUND, NBD_REP_ERR_UNKNOWN},
        {-THIN_E_BUSY, NBD_REP_ERR_POLICY},
        {-THIN_E_SHUTDOWN, NBD_REP_ERR_SHUTDOWN},
        {-EIO, NBD_REP_ERR_POLICY},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct ram *ram = ram_create(NBD_TLS_OFF, 4);
        struct bytes in = {0}, out = {0};

        ram->open_code = table[i].code;
        put32(&in, 3);
        put_go(&in, NBD_OPT_GO, "e0", NULL);
        ram_feed(ram, &in, 0, &out);
        ck_assert_uint_eq(load_be32(out.p + 18 + 12), table[i].type);
        if (table[i].type == NBD_REP_ERR_UNKNOWN) /* no words that tell them apart */
            ck_assert_mem_eq(out.p + 18 + 20, "no such export", 14);
        ram->open_code = 0;
        in.len = out.len = 0;
        put_go(&in, NBD_OPT_GO, "e0", NULL);
        ram_feed(ram, &in, 0, &out);
        ck_assert_int_eq(nbd_conn_phase(ram->conn), NBD_PHASE_TRANSMISSION);
        ram_destroy(ram);
        free(in.p);
        free(out.p);
    }
}
END_TEST

START_TEST(a_server_that_stops_says_so_to_options)
{
    struct ram *ram = ram_create(NBD_TLS_OFF, 4);
    struct bytes in = {0}, out = {0};

    nbd_conn_shutdown(ram->conn);
    put32(&in, 3);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    ram_feed(ram, &in, 0, &out);
    ck_assert_uint_eq(load_be32(out.p + 18 + 12), NBD_REP_ERR_SHUTDOWN);
    ck_assert_uint_eq(ram->nr_opened, 0);
    ck_assert(nbd_conn_is_quiet(ram->conn));
    ram_destroy(ram);
    free(in.p);
    free(out.p);
}
END_TEST

START_TEST(a_connection_can_end_at_every_byte)
{
    static const char *const base[] = {"base:allocation", NULL};
    struct bytes in = {0};

    put32(&in, 3);
    put_option(&in, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    put_option(&in, NBD_OPT_LIST, NULL, 0);
    put_contexts(&in, NBD_OPT_SET_META_CONTEXT, "e0", base);
    put_go(&in, NBD_OPT_GO, "e0", NULL);
    put_request(&in, 0, NBD_CMD_WRITE, 1, 0, 70);
    put_fill(&in, 1, 70);
    put_request(&in, 0, NBD_CMD_READ, 2, 0, 70);
    for (size_t n = 0; n <= in.len; n++) {
        struct ram *ram = ram_create(NBD_TLS_OFF, 4);

        ram->defer = n % 2;
        nbd_conn_input(ram->conn, in.p, n);
        ram_destroy(ram);
    }
    free(in.p);
}
END_TEST

START_TEST(unsound_limits_are_refused)
{
    struct nbd_config config = {.ops = &ram_ops, .limits.max_payload = 4096};
    struct nbd_conn *conn = NULL;
    struct thin_error err;

    ck_assert_int_eq(nbd_conn_create(&config, &conn, &err), -THIN_E_INVALID);
    config.limits.max_payload = (1u << 20) + 1;
    ck_assert_int_eq(nbd_conn_create(&config, &conn, &err), -THIN_E_INVALID);
    config.limits.max_payload = 0;
    config.limits.option_bytes = 10;
    ck_assert_int_eq(nbd_conn_create(&config, &conn, &err), -THIN_E_INVALID);
    ck_assert_ptr_null(conn);
    nbd_conn_destroy(NULL);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("nbd_handshake");
    TCase *t = tcase_create("options");
    SRunner *r;
    int failed;

    tcase_add_test(t, unknown_options_are_refused_and_skipped);
    tcase_add_test(t, option_data_beyond_the_limit_ends_the_connection);
    tcase_add_loop_test(t, each_option_gets_its_one_answer, 0,
                        sizeof(singles) / sizeof(singles[0]));
    tcase_add_test(t, what_breaks_the_handshake_ends_it);
    tcase_add_test(t, abort_is_acknowledged_and_ends);
    tcase_add_test(t, export_name_answers_with_and_without_zeroes);
    tcase_add_test(t, list_names_each_export_once);
    tcase_add_test(t, a_long_list_is_cut_by_the_output_and_goes_on);
    tcase_add_test(t, unsent_option_replies_stop_the_input);
    tcase_add_test(t, go_says_what_info_said);
    tcase_add_test(t, what_was_not_asked_is_not_told);
    tcase_add_test(t, contexts_are_listed_and_set);
    tcase_add_loop_test(t, contexts_hold_only_for_their_export_and_until_the_next_set, 0,
                        5);
    tcase_add_test(t, broken_context_lengths_are_invalid);
    tcase_add_test(t, extended_headers_exclude_the_older_ways);
    tcase_add_test(t, plain_bytes_behind_starttls_are_thrown_away);
    tcase_add_test(t, starttls_forgets_what_was_negotiated_before);
    tcase_add_test(t, an_open_answered_later_holds_the_input_back);
    tcase_add_test(t, an_open_answered_after_the_close_is_closed_again);
    tcase_add_test(t, refusals_keep_the_handshake_going);
    tcase_add_test(t, a_server_that_stops_says_so_to_options);
    tcase_add_test(t, a_connection_can_end_at_every_byte);
    tcase_add_test(t, unsound_limits_are_refused);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
