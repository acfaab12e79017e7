#include <check.h>
#include <inttypes.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/random.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"

static alignas(16) uint8_t memory[1u << 20];
static uint8_t wire[64u << 10];
static struct message_arena arena;
static struct thin_error err;
static Thin__Message *decoded;

/* Encodes and decodes again; the result of decoding. */
static int
round_trip(const Thin__Message *message, size_t arena_bytes)
{
    size_t len = message_encode(message, 0, wire);

    ck_assert_uint_eq(len, FRAME_PREFIX_BYTES + message_encoded_bytes(message));
    message_arena_init(&arena, memory, arena_bytes);
    decoded = NULL;
    thin_error_init(&err);
    return message_decode(&arena, wire + FRAME_PREFIX_BYTES, len - FRAME_PREFIX_BYTES,
                          &decoded, &err);
}

static int
decode_bytes(const void *bytes, size_t len)
{
    message_arena_init(&arena, memory, sizeof(memory));
    thin_error_init(&err);
    return message_decode(&arena, bytes, len, &decoded, &err);
}

START_TEST(a_data_request_fits_its_arena_and_its_message_limit)
{
    Thin__Message m = THIN__MESSAGE__INIT;
    Thin__Request q = THIN__REQUEST__INIT;
    Thin__Write w = THIN__WRITE__INIT;

    m.body_case = THIN__MESSAGE__BODY_REQUEST;
    m.request = &q;
    q.slot = UINT32_MAX;
    q.seq = UINT64_MAX;
    q.has_payload_crc = true;
    q.payload_crc = 0xdeadbeef;
    q.deadline_ms = UINT32_MAX;
    q.body_case = THIN__REQUEST__BODY_WRITE;
    q.write = &w;
    w.handle = UINT32_MAX;
    w.offset = UINT64_MAX - 1;
    w.epoch = 77;
    w.fua = true;
    ck_assert_int_eq(round_trip(&m, PROTO_ARENA_BYTES), 0);
    ck_assert_uint_le(message_encoded_bytes(&m), PROTO_DATA_MESSAGE_MAX);
    ck_assert_int_eq(decoded->body_case, THIN__MESSAGE__BODY_REQUEST);
    ck_assert_uint_eq(decoded->request->seq, UINT64_MAX);
    ck_assert_uint_eq(decoded->request->write->offset, UINT64_MAX - 1);
    ck_assert(decoded->request->write->fua);
}
END_TEST

START_TEST(an_arena_too_small_is_a_limit_not_a_crash)
{
    Thin__Message m = THIN__MESSAGE__INIT;
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__DataReply data = THIN__DATA_REPLY__INIT;
    uint32_t holes[2 * PROTO_HOLES_MAX] = {0};
    size_t n;
    int r = -1;

    m.body_case = THIN__MESSAGE__BODY_REPLY;
    m.reply = &reply;
    reply.text = (char *)(uintptr_t) "words";
    reply.body_case = THIN__REPLY__BODY_DATA;
    reply.data = &data;
    data.holes = holes;
    data.n_holes = 2 * PROTO_HOLES_MAX;
    for (n = 0; n < PROTO_ARENA_BYTES && r < 0; n++) {
        r = round_trip(&m, n);
        ck_assert(r == 0 || r == -THIN_E_LIMIT);
    }
    ck_assert_int_eq(r, 0);
    ck_assert_uint_eq(decoded->reply->data->n_holes, 2 * PROTO_HOLES_MAX);
}
END_TEST

START_TEST(a_body_not_known_leaves_it_unset)
{
    /* Message{request{slot=1, body 2000}} and a Message of an unknown body 15. */
    static const uint8_t unknown_request[] = {0x0a, 0x06, 0x08, 0x01,
                                              0x82, 0x7d, 0x01, 'x'};
    static const uint8_t unknown_message[] = {0x7a, 0x00};

    ck_assert_int_eq(decode_bytes(unknown_request, sizeof(unknown_request)), 0);
    ck_assert_int_eq(decoded->body_case, THIN__MESSAGE__BODY_REQUEST);
    ck_assert_uint_eq(decoded->request->slot, 1);
    ck_assert_int_eq(decoded->request->body_case, THIN__REQUEST__BODY__NOT_SET);
    ck_assert_int_eq(decode_bytes(unknown_message, sizeof(unknown_message)), 0);
    ck_assert_int_eq(decoded->body_case, THIN__MESSAGE__BODY__NOT_SET);
    ck_assert_int_eq(decode_bytes("", 0), 0);
    ck_assert_int_eq(decoded->body_case, THIN__MESSAGE__BODY__NOT_SET);
}
END_TEST

START_TEST(two_bodies_are_refused)
{
    /* Request{ping{}, ping{}}; Message{request{}, request{}}; Message{request{},
       reply{}} */
    static const uint8_t pings[] = {0x0a, 0x04, 0x5a, 0x00, 0x5a, 0x00};
    static const uint8_t requests[] = {0x0a, 0x00, 0x0a, 0x00};
    static const uint8_t mixed[] = {0x0a, 0x00, 0x12, 0x00};

    ck_assert_int_eq(decode_bytes(pings, sizeof(pings)), -THIN_E_PROTOCOL);
    ck_assert_int_eq(decode_bytes(requests, sizeof(requests)), -THIN_E_PROTOCOL);
    ck_assert_int_eq(decode_bytes(mixed, sizeof(mixed)), -THIN_E_PROTOCOL);
}
END_TEST

/* The name of a pool in PoolOpen: Message{request{pool_open{name}}}. */
static int
decode_name(const void *name, size_t len)
{
    uint8_t b[64] = {0x0a, 0, 0xe2, 0x02, 0, 0x0a};

    ck_assert_uint_lt(len, 40);
    b[1] = (uint8_t)(len + 5);
    b[4] = (uint8_t)(len + 2);
    b[6] = (uint8_t)len;
    memcpy(b + 7, name, len);
    return decode_bytes(b, len + 7);
}

START_TEST(text_must_be_clean)
{
    static const struct {
        const char *bytes;
        size_t len;
        bool ok;
    } cases[] = {
        {"tank", 4, true},
        {"", 0, true},
        {"ta\0nk", 5, false},
        {"\xc3\xa4", 2, true},
        {"\xc3", 1, false},
        {"\xc0\xaf", 2, false},         /* overlong */
        {"\xe0\x80\xaf", 3, false},     /* overlong */
        {"\xed\xa0\x80", 3, false},     /* surrogate */
        {"\xe2\x82\xac", 3, true},      /* the euro sign */
        {"\xf0\x9f\x92\xbe", 4, true},  /* a floppy disk */
        {"\xf4\x90\x80\x80", 4, false}, /* above U+10FFFF */
        {"\xff", 1, false},
        {"\x80", 1, false},
        {"a\xe2\x82", 3, false},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int r = decode_name(cases[i].bytes, cases[i].len);

        ck_assert_msg(r == (cases[i].ok ? 0 : -THIN_E_PROTOCOL), "case %zu: %d", i, r);
    }
    ck_assert_int_eq(decode_name("tank", 4), 0);
    ck_assert_str_eq(decoded->request->pool_open->name, "tank");
}
END_TEST

START_TEST(a_message_of_many_small_fields_costs_no_more_than_the_arena)
{
    /* 2-byte unknown fields: protobuf keeps far more for each than they take here. */
    for (size_t i = 0; i < sizeof(wire); i += 2) {
        wire[i] = 0x78; /* field 15, varint */
        wire[i + 1] = 0;
    }
    message_arena_init(&arena, memory, PROTO_ARENA_BYTES);
    ck_assert_int_eq(message_decode(&arena, wire, sizeof(wire), &decoded, &err),
                     -THIN_E_LIMIT);
    ck_assert_uint_le(arena.used, PROTO_ARENA_BYTES);
}
END_TEST

START_TEST(cut_messages_are_refused)
{
    static const uint8_t whole[] = {0x0a, 0x0d, 0x08, 0x01, 0x10, 0x02, 0x5a, 0x00,
                                    0x15, 1,    2,    3,    4,    0x28, 0x7f};

    for (size_t i = 1; i < sizeof(whole); i++)
        ck_assert_int_lt(decode_bytes(whole, i), 0);
}
END_TEST

/* Bytes changed at random in good messages: any answer but a crash, and never a
   string that is not clean. The sanitizers watch. */
START_TEST(changed_bytes_are_answered)
{
    const char *given = getenv("SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    struct thin_random rng;
    Thin__Message m = THIN__MESSAGE__INIT;
    Thin__Request q = THIN__REQUEST__INIT;
    Thin__VolumeSnapshot snap = THIN__VOLUME_SNAPSHOT__INIT;
    Thin__SnapshotPair pairs[3], *list[3];
    uint8_t copy[1024];
    size_t len;

    printf("SEED=%" PRIu64 "\n", seed);
    random_seed(&rng, seed);
    for (int i = 0; i < 3; i++) {
        pairs[i] = (Thin__SnapshotPair)THIN__SNAPSHOT_PAIR__INIT;
        pairs[i].origin = (char *)(uintptr_t) "tank/volume";
        pairs[i].name = (char *)(uintptr_t) "before-upgrade";
        list[i] = &pairs[i];
    }
    snap.snapshots = list;
    snap.n_snapshots = 3;
    m.body_case = THIN__MESSAGE__BODY_REQUEST;
    m.request = &q;
    q.slot = 3;
    q.seq = 12345;
    q.body_case = THIN__REQUEST__BODY_VOLUME_SNAPSHOT;
    q.volume_snapshot = &snap;
    len = message_encode(&m, 0, wire) - FRAME_PREFIX_BYTES;
    ck_assert_uint_lt(len, sizeof(copy));
    for (int step = 0; step < 20000; step++) {
        size_t n = len - random_below(&rng, 3);

        memcpy(copy, wire + FRAME_PREFIX_BYTES, len);
        for (uint64_t k = 1 + random_below(&rng, 4); k > 0; k--)
            copy[random_below(&rng, len)] = (uint8_t)random_u64(&rng);
        message_arena_init(&arena, memory, PROTO_ARENA_BYTES);
        if (message_decode(&arena, copy, n, &decoded, &err) < 0)
            continue;
        if (decoded->body_case == THIN__MESSAGE__BODY_REQUEST &&
            decoded->request->body_case == THIN__REQUEST__BODY_VOLUME_SNAPSHOT) {
            const Thin__VolumeSnapshot *s = decoded->request->volume_snapshot;

            for (size_t i = 0; i < s->n_snapshots; i++)
                ck_assert_uint_le(strlen(s->snapshots[i]->origin), n);
        }
        (void)message_encoded_bytes(decoded);
    }
}
END_TEST

START_TEST(names_are_split_and_judged)
{
    char pool[128], volume[128], longest[300];

    ck_assert_int_eq(message_split_name("tank/vol.0", pool, volume, &err), 0);
    ck_assert_str_eq(pool, "tank");
    ck_assert_str_eq(volume, "vol.0");
    ck_assert_int_eq(message_split_name("tank", pool, volume, &err), -THIN_E_INVALID);
    ck_assert_int_eq(message_split_name("/vol", pool, volume, &err), -THIN_E_INVALID);
    ck_assert_int_eq(message_split_name("tank/", pool, volume, &err), -THIN_E_INVALID);
    ck_assert_int_eq(message_split_name("a/b/c", pool, volume, &err), -THIN_E_INVALID);
    ck_assert_int_eq(message_split_name("a/../b", pool, volume, &err), -THIN_E_INVALID);
    memset(longest, 'x', sizeof(longest));
    longest[127] = '/';
    longest[255] = '\0';
    ck_assert_int_eq(message_split_name(longest, pool, volume, &err), 0);
    ck_assert_uint_eq(strlen(volume), 127);
    longest[255] = 'x';
    longest[256] = '\0';
    ck_assert_int_eq(message_split_name(longest, pool, volume, &err), -THIN_E_INVALID);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("message");
    TCase *tc = tcase_create("message");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_test(tc, a_data_request_fits_its_arena_and_its_message_limit);
    tcase_add_test(tc, an_arena_too_small_is_a_limit_not_a_crash);
    tcase_add_test(tc, a_body_not_known_leaves_it_unset);
    tcase_add_test(tc, two_bodies_are_refused);
    tcase_add_test(tc, text_must_be_clean);
    tcase_add_test(tc, a_message_of_many_small_fields_costs_no_more_than_the_arena);
    tcase_add_test(tc, cut_messages_are_refused);
    tcase_add_test(tc, changed_bytes_are_answered);
    tcase_add_test(tc, names_are_split_and_judged);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
