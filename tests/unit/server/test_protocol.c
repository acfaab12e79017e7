/* Frames and hello: what is spoken, and what is answered to those who do not. */
#include "tests/unit/server/server_rig.h"

static void
put_prefix(uint8_t *p, uint32_t magic, uint16_t version, uint32_t message,
           uint32_t payload, uint32_t crc)
{
    memset(p, 0, FRAME_PREFIX_BYTES);
    memcpy(p, &magic, 4);
    memcpy(p + 4, &version, 2);
    memcpy(p + 8, &message, 4);
    memcpy(p + 12, &payload, 4);
    memcpy(p + 16, &crc, 4);
}

static void
refused_prefix(uint32_t magic, uint16_t version, uint32_t message, uint32_t payload,
               bool after_hello, int code)
{
    struct peer *p = after_hello ? peer_connect() : peer_dial();
    uint8_t prefix[FRAME_PREFIX_BYTES];

    put_prefix(prefix, magic, version, message, payload, 0);
    ck_assert(peer_send_bytes(p, prefix, sizeof(prefix)));
    ck_assert(peer_is_refused(p, code));
    peer_hang_up(p);
}

static void
still_serves(void)
{
    struct peer *p = peer_connect();
    Thin__Reply *reply = CALL(p, SERVER_STATUS, server_status, ServerStatus);

    ck_assert_int_eq(reply->code, 0);
    ck_assert_str_eq(reply->server_status->version, THIN_VERSION);
    peer_hang_up(p);
}

START_TEST(hello_gives_a_session)
{
    struct peer *p = peer_connect(), *q = peer_connect();

    ck_assert_uint_ne(p->session, q->session);
    ck_assert_uint_eq(p->slots, PROTO_SLOTS_DEFAULT);
    ck_assert(memcmp(p->token, q->token, PROTO_TOKEN_BYTES) != 0);
    ck_assert(!p->resumed);
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

START_TEST(no_common_version_is_refused)
{
    struct peer *p = peer_dial();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Hello hello = THIN__HELLO__INIT;

    hello.version_min = 7;
    hello.version_max = 9;
    rq.body_case = THIN__REQUEST__BODY_HELLO;
    rq.hello = &hello;
    ck_assert(peer_send(p, &rq, NULL, 0));
    ck_assert(peer_is_refused(p, -THIN_E_VERSION));
    peer_hang_up(p);
}
END_TEST

START_TEST(first_request_must_be_hello)
{
    struct peer *p = peer_dial();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__ServerStatus body = THIN__SERVER_STATUS__INIT;

    rq.slot = 1;
    rq.seq = 1;
    rq.body_case = THIN__REQUEST__BODY_SERVER_STATUS;
    rq.server_status = &body;
    ck_assert(peer_send(p, &rq, NULL, 0));
    ck_assert(peer_is_refused(p, -THIN_E_PROTOCOL));
    peer_hang_up(p);
    p = peer_connect();
    peer_hello_as(p, NULL, false);
    ck_assert(peer_is_refused(p, -THIN_E_PROTOCOL));
    peer_hang_up(p);
}
END_TEST

START_TEST(unknown_token_is_refused)
{
    uint8_t token[PROTO_TOKEN_BYTES] = {1, 2, 3};
    struct peer *p = peer_dial();

    peer_hello_as(p, token, false);
    ck_assert(peer_is_refused(p, -THIN_E_NOT_FOUND));
    peer_hang_up(p);
    /* A resume of what is not known gives a new session. */
    p = peer_dial();
    peer_hello_as(p, token, true);
    peer_welcome(p);
    ck_assert(!p->resumed);
    peer_hang_up(p);
}
END_TEST

START_TEST(bad_prefixes_are_refused)
{
    for (int after_hello = 0; after_hello < 2; after_hello++) {
        refused_prefix(0x12345678, 1, 10, 0, after_hello, -THIN_E_PROTOCOL);
        refused_prefix(FRAME_MAGIC, 2, 10, 0, after_hello, -THIN_E_PROTOCOL);
        refused_prefix(FRAME_MAGIC, 1, PROTO_MESSAGE_MAX + 1, 0, after_hello,
                       -THIN_E_LIMIT);
        refused_prefix(FRAME_MAGIC, 1, UINT32_MAX, UINT32_MAX, after_hello,
                       -THIN_E_LIMIT);
        refused_prefix(FRAME_MAGIC, 1, 10, PROTO_PAYLOAD_MAX + 1, after_hello,
                       -THIN_E_LIMIT);
    }
    /* Before hello nothing large, and no payload. */
    refused_prefix(FRAME_MAGIC, 1, 100000, 0, false, -THIN_E_LIMIT);
    refused_prefix(FRAME_MAGIC, 1, 10, 100, false, -THIN_E_PROTOCOL);
    refused_prefix(FRAME_MAGIC, 1, PROTO_DATA_MESSAGE_MAX + 1, 100, true, -THIN_E_LIMIT);
    still_serves();
}
END_TEST

START_TEST(bad_checksum_is_refused)
{
    struct peer *p = peer_connect();
    uint8_t frame[FRAME_PREFIX_BYTES + 10] = {0};

    put_prefix(frame, FRAME_MAGIC, 1, 10, 0, 0xdeadbeef);
    ck_assert(peer_send_bytes(p, frame, sizeof(frame)));
    ck_assert(peer_is_refused(p, -THIN_E_CHECKSUM));
    peer_hang_up(p);
    still_serves();
}
END_TEST

START_TEST(broken_message_is_refused)
{
    struct peer *p = peer_connect();
    uint8_t frame[FRAME_PREFIX_BYTES + 3] = {0};

    memcpy(frame + FRAME_PREFIX_BYTES, "\x0a\x50\x01", 3); /* longer than it is */
    frame_prefix_encode(frame, frame + FRAME_PREFIX_BYTES, 3, 0);
    ck_assert(peer_send_bytes(p, frame, sizeof(frame)));
    ck_assert(peer_is_refused(p, -THIN_E_PROTOCOL));
    peer_hang_up(p);
    still_serves();
}
END_TEST

START_TEST(a_reply_or_an_event_is_no_request)
{
    struct peer *p = peer_connect();
    Thin__Message message = THIN__MESSAGE__INIT;
    Thin__Reply reply = THIN__REPLY__INIT;

    message.body_case = THIN__MESSAGE__BODY_REPLY;
    message.reply = &reply;
    ck_assert(peer_send_frame(p, &message, NULL, 0));
    ck_assert(peer_is_refused(p, -THIN_E_PROTOCOL));
    peer_hang_up(p);
}
END_TEST

/* A request whose body has field number 1000. */
START_TEST(unknown_requests_are_answered_unsupported)
{
    struct peer *p = peer_connect();
    static const uint8_t message[] = {0x0a, 0x07, 0x08, 0x01, 0x10,
                                      0x01, 0xc2, 0x3e, 0x00};
    uint8_t frame[FRAME_PREFIX_BYTES + sizeof(message)];

    memcpy(frame + FRAME_PREFIX_BYTES, message, sizeof(message));
    frame_prefix_encode(frame, message, sizeof(message), 0);
    ck_assert(peer_send_bytes(p, frame, sizeof(frame)));
    p->seq[1] = 1;
    ck_assert_int_eq(peer_reply(p)->code, -THIN_E_UNSUPPORTED);
    ck_assert_uint_eq(p->reply->slot, 1);
    ck_assert_int_eq(CALL(p, SERVER_STATUS, server_status, ServerStatus)->code, 0);
    /* Known, but without a name. */
    ck_assert_int_eq(CALL(p, VOLUME_TRIM, volume_trim, VolumeTrim)->code,
                     -THIN_E_INVALID);
    peer_hang_up(p);
}
END_TEST

START_TEST(ping_is_answered)
{
    struct peer *p = peer_connect();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Ping ping = THIN__PING__INIT;

    rq.seq = 77;
    rq.body_case = THIN__REQUEST__BODY_PING;
    rq.ping = &ping;
    ck_assert(peer_send(p, &rq, NULL, 0));
    ck_assert_uint_eq(peer_reply(p)->seq, 77);
    ck_assert_uint_eq(p->reply->slot, 0);
    peer_hang_up(p);
}
END_TEST

START_TEST(slots_and_numbers_are_judged)
{
    static const struct {
        uint32_t slot;
        uint64_t seq;
    } bad[] = {{PROTO_SLOTS_DEFAULT + 1, 1}, {UINT32_MAX, 1}, {1, 0}, {1, 2}, {2, 7}};

    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct peer *p = peer_connect();
        Thin__Request rq = THIN__REQUEST__INIT;
        Thin__PoolList body = THIN__POOL_LIST__INIT;

        rq.slot = bad[i].slot;
        rq.seq = bad[i].seq;
        rq.body_case = THIN__REQUEST__BODY_POOL_LIST;
        rq.pool_list = &body;
        ck_assert(peer_send(p, &rq, NULL, 0));
        ck_assert(peer_is_refused(p, -THIN_E_PROTOCOL));
        peer_hang_up(p);
    }
}
END_TEST

START_TEST(payload_beside_a_question_is_refused_and_eaten)
{
    struct peer *p = peer_connect();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__PoolList body = THIN__POOL_LIST__INIT;
    static uint8_t junk[300000];

    rq.body_case = THIN__REQUEST__BODY_POOL_LIST;
    rq.pool_list = &body;
    ck_assert_int_eq(peer_call_payload(p, &rq, junk, sizeof(junk))->code,
                     -THIN_E_PROTOCOL);
    ck_assert_int_eq(CALL(p, SERVER_STATUS, server_status, ServerStatus)->code, 0);
    peer_hang_up(p);
}
END_TEST

/* Frames arrive as they like: byte by byte, and many at once. */
START_TEST(frames_may_come_in_any_pieces)
{
    struct peer *p = peer_connect();
    uint8_t bytes[20 * 128];
    size_t used = 0;

    for (unsigned i = 1; i <= 20; i++) {
        Thin__Message message = THIN__MESSAGE__INIT;
        Thin__Request rq = THIN__REQUEST__INIT;
        Thin__PoolList body = THIN__POOL_LIST__INIT;

        rq.slot = i;
        rq.seq = 1;
        rq.body_case = THIN__REQUEST__BODY_POOL_LIST;
        rq.pool_list = &body;
        message.body_case = THIN__MESSAGE__BODY_REQUEST;
        message.request = &rq;
        used += message_encode(&message, 0, bytes + used);
    }
    ck_assert(peer_send_bytes(p, bytes, used));
    for (unsigned i = 1; i <= 20; i++)
        ck_assert_uint_eq(peer_reply(p)->slot, i);
    peer_hang_up(p);
    p = peer_connect();
    for (size_t i = 0; i < used; i++) {
        ck_assert(peer_send_bytes(p, bytes + i, 1));
        if (i % 16 == 0)
            usleep(200);
    }
    for (unsigned i = 1; i <= 20; i++)
        ck_assert_uint_eq(peer_reply(p)->slot, i);
    peer_hang_up(p);
}
END_TEST

START_TEST(garbage_closes_only_its_own_connection)
{
    struct thin_random rng;
    const char *seed = getenv("SEED");
    uint64_t start = seed ? strtoull(seed, NULL, 0) : 20261122;

    fprintf(stderr, "SEED=%llu\n", (unsigned long long)start);
    random_seed(&rng, start);
    for (int round = 0; round < 60; round++) {
        struct peer *p = round % 2 ? peer_connect() : peer_dial();
        uint8_t frame[FRAME_PREFIX_BYTES + 600];
        uint32_t len = (uint32_t)random_below(&rng, 600);

        for (size_t i = 0; i < sizeof(frame); i++)
            frame[i] = (uint8_t)random_u64(&rng);
        if (round % 3) { /* right outside, garbage inside */
            frame[FRAME_PREFIX_BYTES] = 0x0a;
            frame_prefix_encode(frame, frame + FRAME_PREFIX_BYTES, len, 0);
        }
        peer_send_bytes(p, frame, FRAME_PREFIX_BYTES + len);
        shutdown(p->fd, SHUT_WR);
        while (peer_receive(p))
            ;
        peer_hang_up(p);
    }
    still_serves();
}
END_TEST

START_TEST(half_open_connections_do_no_harm)
{
    struct peer *idle[100];

    for (unsigned i = 0; i < 100; i++) {
        idle[i] = peer_dial();
        if (i % 2)
            peer_send_bytes(idle[i], "THIN", 4);
    }
    still_serves();
    for (unsigned i = 0; i < 100; i++)
        peer_hang_up(idle[i]);
    still_serves();
}
END_TEST

/* It asks and asks, and never reads an answer. */
START_TEST(peer_that_does_not_read_is_bounded)
{
    struct peer *p = peer_connect(), *q;

    for (unsigned seq = 1; seq < 20000; seq++) {
        Thin__Message message = THIN__MESSAGE__INIT;
        Thin__Request rq = THIN__REQUEST__INIT;
        Thin__PoolList body = THIN__POOL_LIST__INIT;
        uint8_t bytes[128];
        size_t len;

        rq.slot = (seq - 1) % PROTO_SLOTS_DEFAULT + 1;
        rq.seq = (seq - 1) / PROTO_SLOTS_DEFAULT + 1;
        rq.body_case = THIN__REQUEST__BODY_POOL_LIST;
        rq.pool_list = &body;
        message.body_case = THIN__MESSAGE__BODY_REQUEST;
        message.request = &rq;
        len = message_encode(&message, 0, bytes);
        if (send(p->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)len)
            break;
    }
    q = peer_connect();
    ck_assert_int_eq(CALL(q, SERVER_STATUS, server_status, ServerStatus)->code, 0);
    peer_hang_up(q);
    peer_hang_up(p);
}
END_TEST

/* Pings have no slot: only what is queued for the peer bounds them. */
START_TEST(pings_of_who_does_not_read_are_bounded)
{
    struct peer *p = peer_connect(), *q;
    Thin__Message message = THIN__MESSAGE__INIT;
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Ping ping = THIN__PING__INIT;
    uint8_t bytes[128];
    unsigned sent = 0;
    size_t len;

    rq.body_case = THIN__REQUEST__BODY_PING;
    rq.ping = &ping;
    message.body_case = THIN__MESSAGE__BODY_REQUEST;
    message.request = &rq;
    len = message_encode(&message, 0, bytes);
    for (int idle = 0; idle < 50 && sent < 1000000;) {
        ssize_t n = send(p->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n == (ssize_t)len) {
            sent++;
            idle = 0;
        } else {
            ck_assert_int_eq(n, -1); /* whole or not at all: they are so small */
            ck_assert_int_eq(errno, EAGAIN);
            idle++;
            usleep(1000);
        }
    }
    ck_assert_uint_lt(sent, 1000000);
    /* Whoever begins to read gets them all. */
    for (unsigned i = 0; i < sent; i++)
        ck_assert_int_eq(peer_reply(p)->code, 0);
    q = peer_connect();
    peer_hang_up(q);
    peer_hang_up(p);
}
END_TEST

START_TEST(shutdown_is_answered_and_orderly)
{
    struct peer *p = peer_connect();

    ck_assert_int_eq(CALL(p, SERVER_SHUTDOWN, server_shutdown, ServerShutdown)->code, 0);
    ck_assert(!peer_receive(p));
    peer_hang_up(p);
}
END_TEST

static void
add(TCase *tcase)
{
    tcase_add_test(tcase, hello_gives_a_session);
    tcase_add_test(tcase, no_common_version_is_refused);
    tcase_add_test(tcase, first_request_must_be_hello);
    tcase_add_test(tcase, unknown_token_is_refused);
    tcase_add_test(tcase, bad_prefixes_are_refused);
    tcase_add_test(tcase, bad_checksum_is_refused);
    tcase_add_test(tcase, broken_message_is_refused);
    tcase_add_test(tcase, a_reply_or_an_event_is_no_request);
    tcase_add_test(tcase, unknown_requests_are_answered_unsupported);
    tcase_add_test(tcase, ping_is_answered);
    tcase_add_test(tcase, slots_and_numbers_are_judged);
    tcase_add_test(tcase, payload_beside_a_question_is_refused_and_eaten);
    tcase_add_test(tcase, frames_may_come_in_any_pieces);
    tcase_add_test(tcase, garbage_closes_only_its_own_connection);
    tcase_add_test(tcase, half_open_connections_do_no_harm);
    tcase_add_test(tcase, peer_that_does_not_read_is_bounded);
    tcase_add_test(tcase, pings_of_who_does_not_read_are_bounded);
    tcase_add_test(tcase, shutdown_is_answered_and_orderly);
}

int
main(void)
{
    return rig_run("protocol", add);
}
