/* Sessions: exactly once, resumed, joined, over; who holds a volume meanwhile. */
#include "tests/unit/server/server_rig.h"

static uint32_t
open_volume(struct peer *p, const char *name, uint64_t *ret_epoch)
{
    Thin__Reply *reply = CALL(p, VOLUME_OPEN, volume_open, VolumeOpen, .name = S(name));

    ck_assert_msg(reply->code == 0, "%s", reply->text);
    if (ret_epoch)
        *ret_epoch = reply->volume_opened->epoch;
    return reply->volume_opened->handle;
}

static void
ask_write(struct peer *p, uint32_t slot, uint64_t seq, uint32_t handle, uint64_t epoch,
          uint64_t offset, const void *bytes, uint32_t len)
{
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Write body = THIN__WRITE__INIT;

    body.handle = handle;
    body.offset = offset;
    body.epoch = epoch;
    rq.slot = slot;
    rq.seq = seq;
    rq.body_case = THIN__REQUEST__BODY_WRITE;
    rq.write = &body;
    ck_assert(peer_send(p, &rq, bytes, len));
}

static struct peer *
resume(const struct peer *old)
{
    struct peer *p = peer_dial();

    peer_hello_as(p, old->token, true);
    peer_welcome(p);
    memcpy(p->seq, old->seq, sizeof(p->seq));
    return p;
}

START_TEST(repeated_request_is_answered_once_more_and_done_once)
{
    struct peer *p = peer_connect();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__VolumeCreate body = THIN__VOLUME_CREATE__INIT;

    rig_make_pool(p, "a");
    body.name = S("a/v");
    body.size = 1 << 20;
    rq.slot = 5;
    rq.seq = 1;
    rq.body_case = THIN__REQUEST__BODY_VOLUME_CREATE;
    rq.volume_create = &body;
    for (int i = 0; i < 3; i++) {
        ck_assert(peer_send(p, &rq, NULL, 0));
        ck_assert_int_eq(peer_reply(p)->code, 0);
        ck_assert_uint_eq(p->reply->slot, 5);
    }
    rq.seq = 2; /* another request: now it exists */
    ck_assert(peer_send(p, &rq, NULL, 0));
    ck_assert_int_eq(peer_reply(p)->code, -THIN_E_EXISTS);
    peer_hang_up(p);
}
END_TEST

START_TEST(question_is_asked_again_rather_than_kept)
{
    struct peer *p = peer_connect();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__PoolList body = THIN__POOL_LIST__INIT;

    rq.slot = 9;
    rq.seq = 1;
    rq.body_case = THIN__REQUEST__BODY_POOL_LIST;
    rq.pool_list = &body;
    ck_assert(peer_send(p, &rq, NULL, 0));
    ck_assert_uint_eq(peer_reply(p)->pool_list->n_pools, 0);
    rig_make_pool(p, "a");
    ck_assert(peer_send(p, &rq, NULL, 0));
    ck_assert_uint_eq(peer_reply(p)->pool_list->n_pools, 1);
    peer_hang_up(p);
}
END_TEST

START_TEST(lost_session_is_resumed_with_its_volumes)
{
    struct peer *p = peer_connect(), *q;
    static uint8_t bytes[8192];
    uint64_t epoch;
    uint32_t handle;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    handle = open_volume(p, "a/v", &epoch);
    memset(bytes, 7, sizeof(bytes));
    ask_write(p, 3, 1, handle, epoch, 0, bytes, sizeof(bytes));
    /* Gone before the answer is read. */
    q = resume(p);
    ck_assert(q->resumed);
    ck_assert_uint_eq(q->session, p->session);
    peer_hang_up(p);
    ask_write(q, 3, 1, handle, epoch, 0, bytes, sizeof(bytes));
    ck_assert_int_eq(peer_reply(q)->code, 0);
    ck_assert_uint_eq(q->reply->slot, 3);
    q->seq[3] = 1;
    ck_assert_int_eq(CALL(q, FLUSH, flush, Flush, .handle = handle, .epoch = epoch)->code,
                     0);
    ck_assert_int_eq(CALL(q, READ, read, Read, .handle = handle, .length = 8192)->code,
                     0);
    ck_assert_uint_eq(q->payload_bytes, 8192);
    ck_assert_int_eq(memcmp(q->payload, bytes, 8192), 0);
    peer_hang_up(q);
}
END_TEST

/* Half of a write's payload came; the other connection brings all of it. */
START_TEST(write_cut_in_its_payload_is_begun_anew_after_a_resume)
{
    struct peer *p = peer_connect(), *q;
    Thin__Message message = THIN__MESSAGE__INIT;
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Write body = THIN__WRITE__INIT;
    static uint8_t bytes[65536];
    uint8_t frame[256];
    uint64_t epoch;
    uint32_t handle;
    size_t len;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    handle = open_volume(p, "a/v", &epoch);
    memset(bytes, 9, sizeof(bytes));
    body.handle = handle;
    body.epoch = epoch;
    rq.slot = 4;
    rq.seq = 1;
    rq.body_case = THIN__REQUEST__BODY_WRITE;
    rq.write = &body;
    message.body_case = THIN__MESSAGE__BODY_REQUEST;
    message.request = &rq;
    len = message_encode(&message, sizeof(bytes), frame);
    ck_assert(peer_send_bytes(p, frame, len));
    ck_assert(peer_send_bytes(p, bytes, 30000));
    q = resume(p);
    ck_assert(q->resumed);
    ask_write(q, 4, 1, handle, epoch, 0, bytes, sizeof(bytes));
    ck_assert_int_eq(peer_reply(q)->code, 0);
    ck_assert_uint_eq(q->reply->slot, 4);
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

/* The pieces went to a connection that is gone: success over nothing would be a lie. */
START_TEST(answer_whose_pieces_were_lost_is_no_success)
{
    struct peer *p = peer_connect(), *q;
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__PoolHandover body = THIN__POOL_HANDOVER__INIT;

    rig_make_pool(p, "a");
    body.name = S("a");
    rq.slot = 5;
    rq.seq = 1;
    rq.body_case = THIN__REQUEST__BODY_POOL_HANDOVER;
    rq.pool_handover = &body;
    ck_assert(peer_send(p, &rq, NULL, 0));
    while (peer_reply(p)->more)
        ck_assert_uint_gt(p->payload_bytes, 0);
    ck_assert_int_eq(p->reply->code, 0);
    q = resume(p);
    ck_assert(q->resumed);
    ck_assert(peer_send(q, &rq, NULL, 0));
    ck_assert_int_eq(peer_reply(q)->code, -THIN_E_UNKNOWN_OUTCOME);
    ck_assert(!q->reply->more);
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

START_TEST(data_connection_joins_with_the_token)
{
    struct peer *p = peer_connect(), *d = peer_dial();
    static uint8_t bytes[4096] = {1};
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Read body = THIN__READ__INIT;
    uint64_t epoch;
    uint32_t handle;

    peer_hello_as(d, p->token, false);
    peer_welcome(d);
    ck_assert_uint_eq(d->session, p->session);
    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    handle = open_volume(p, "a/v", &epoch);
    ask_write(d, 20, 1, handle, epoch, 4096, bytes, sizeof(bytes));
    ck_assert_int_eq(peer_reply(d)->code, 0);
    body.handle = handle;
    body.offset = 4096;
    body.length = 4096;
    rq.slot = 21;
    rq.seq = 1;
    rq.body_case = THIN__REQUEST__BODY_READ;
    rq.read = &body;
    ck_assert(peer_send(d, &rq, NULL, 0));
    ck_assert_int_eq(peer_reply(d)->code, 0);
    ck_assert_int_eq(memcmp(d->payload, bytes, 4096), 0);
    /* The data connection goes; the session does not mind. */
    peer_hang_up(d);
    ck_assert_int_eq(CALL(p, SERVER_STATUS, server_status, ServerStatus)->code, 0);
    peer_hang_up(p);
}
END_TEST

START_TEST(too_many_connections_of_a_session_are_refused)
{
    struct peer *p = peer_connect(), *d[PROTO_CONNECTIONS_MAX];
    unsigned n = 0;

    for (; n < PROTO_CONNECTIONS_MAX - 1; n++) {
        d[n] = peer_dial();
        peer_hello_as(d[n], p->token, false);
        peer_welcome(d[n]);
    }
    d[n] = peer_dial();
    peer_hello_as(d[n], p->token, false);
    ck_assert(peer_is_refused(d[n], -THIN_E_LIMIT));
    for (unsigned i = 0; i <= n; i++)
        peer_hang_up(d[i]);
    peer_hang_up(p);
}
END_TEST

static int
open_code(struct peer *p, const char *name, bool read_only, bool shared, bool steal)
{
    return CALL(p, VOLUME_OPEN, volume_open, VolumeOpen, .name = S(name),
                .read_only = read_only, .shared = shared, .steal = steal)
        ->code;
}

START_TEST(volume_stays_attached_for_the_lease_and_is_free_after_it)
{
    struct peer *p = peer_connect(), *q = peer_connect();
    int code = -1;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    open_volume(p, "a/v", NULL);
    peer_hang_up(p);
    ck_assert_int_eq(open_code(q, "a/v", false, false, false), -THIN_E_BUSY);
    usleep(1600000); /* the rig's lease is 1500 ms */
    /* A machine that is busy looks a little later. */
    for (int i = 0; i < 300 && code != 0; i++) {
        code = open_code(q, "a/v", false, false, false);
        usleep(code ? 100000 : 0);
    }
    ck_assert_int_eq(code, 0);
    peer_hang_up(q);
}
END_TEST

START_TEST(bye_ends_the_session_at_once)
{
    struct peer *p = peer_connect(), *q = peer_connect();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Bye bye = THIN__BYE__INIT;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    open_volume(p, "a/v", NULL);
    rq.body_case = THIN__REQUEST__BODY_BYE;
    rq.bye = &bye;
    ck_assert(peer_send(p, &rq, NULL, 0));
    ck_assert(!peer_receive(p));
    ck_assert_int_eq(open_code(q, "a/v", false, false, false), 0);
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

START_TEST(writing_is_exclusive_unless_both_share)
{
    struct peer *p = peer_connect(), *q = peer_connect(), *r = peer_connect();
    static uint8_t bytes[4096];
    uint64_t epoch, epoch2;
    uint32_t handle, handle2;
    Thin__Reply *reply;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    reply =
        CALL(p, VOLUME_OPEN, volume_open, VolumeOpen, .name = S("a/v"), .shared = true);
    ck_assert_int_eq(reply->code, 0);
    handle = reply->volume_opened->handle;
    epoch = reply->volume_opened->epoch;
    ck_assert_int_eq(open_code(q, "a/v", false, false, false), -THIN_E_BUSY);
    ck_assert_int_eq(open_code(q, "a/v", true, false, false), 0);
    reply =
        CALL(r, VOLUME_OPEN, volume_open, VolumeOpen, .name = S("a/v"), .shared = true);
    ck_assert_int_eq(reply->code, 0);
    handle2 = reply->volume_opened->handle;
    epoch2 = reply->volume_opened->epoch;
    /* Both write. */
    ask_write(p, 2, 1, handle, epoch, 0, bytes, sizeof(bytes));
    ck_assert_int_eq(peer_reply(p)->code, 0);
    ask_write(r, 2, 1, handle2, epoch2, 0, bytes, sizeof(bytes));
    ck_assert_int_eq(peer_reply(r)->code, 0);
    peer_hang_up(p);
    peer_hang_up(q);
    peer_hang_up(r);
}
END_TEST

START_TEST(stolen_volume_is_stale_and_its_holder_is_told)
{
    struct peer *p = peer_connect(), *q = peer_connect();
    static uint8_t bytes[4096];
    uint64_t epoch, epoch2;
    uint32_t handle, handle2;
    Thin__Reply *reply;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    handle = open_volume(p, "a/v", &epoch);
    reply =
        CALL(q, VOLUME_OPEN, volume_open, VolumeOpen, .name = S("a/v"), .steal = true);
    ck_assert_int_eq(reply->code, 0);
    handle2 = reply->volume_opened->handle;
    epoch2 = reply->volume_opened->epoch;
    ck_assert_uint_gt(epoch2, epoch);
    ck_assert(peer_receive(p));
    ck_assert_int_eq(p->message->body_case, THIN__MESSAGE__BODY_EVENT);
    ck_assert_str_eq(p->message->event->kind, "fenced");
    ck_assert_uint_eq(p->message->event->handle, handle);
    ask_write(p, 2, 1, handle, epoch, 0, bytes, sizeof(bytes));
    ck_assert_int_eq(peer_reply(p)->code, -THIN_E_STALE);
    ask_write(p, 2, 2, handle, epoch2, 0, bytes, sizeof(bytes)); /* guessing helps not */
    ck_assert_int_eq(peer_reply(p)->code, -THIN_E_STALE);
    ask_write(q, 2, 1, handle2, epoch2, 0, bytes, sizeof(bytes));
    ck_assert_int_eq(peer_reply(q)->code, 0);
    /* He was told to have it anew, if it was his last. */
    reply = CALL(p, VOLUME_OPEN, volume_open, VolumeOpen, .name = S("a/v"), .steal = true,
                 .known_epoch = epoch);
    ck_assert_int_eq(reply->code, -THIN_E_STALE);
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

START_TEST(sessions_are_listed_and_kicked)
{
    struct peer *p = peer_connect(), *q = peer_connect();
    Thin__Reply *reply;
    bool found = false;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    open_volume(q, "a/v", NULL);
    reply = CALL(p, SESSION_LIST, session_list, SessionList);
    ck_assert_int_eq(reply->code, 0);
    ck_assert_uint_eq(reply->session_list->n_sessions, 2);
    for (unsigned i = 0; i < 2; i++) {
        const Thin__SessionInfo *info = reply->session_list->sessions[i];

        ck_assert_str_eq(info->protocol, "thin");
        ck_assert_str_eq(info->client_name, "test");
        if (info->id == q->session) {
            found = true;
            ck_assert_uint_eq(info->n_volumes, 1);
            ck_assert_str_eq(info->volumes[0], "a/v");
        }
    }
    ck_assert(found);
    ck_assert_int_eq(
        CALL(p, SESSION_KICK, session_kick, SessionKick, .id = q->session)->code, 0);
    ck_assert(!peer_receive(q));
    ck_assert_int_eq(CALL(p, SESSION_KICK, session_kick, SessionKick, .id = 1)->code,
                     -THIN_E_NOT_FOUND);
    ck_assert_int_eq(open_code(p, "a/v", false, false, false), 0);
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

START_TEST(events_reach_who_subscribed_also_late)
{
    struct peer *p = peer_connect(), *q = peer_connect();
    Thin__Reply *reply;
    uint64_t number;

    reply = CALL(p, EVENTS_SUBSCRIBE, events_subscribe, EventsSubscribe);
    ck_assert_int_eq(reply->code, 0);
    rig_make_pool(q, "a");
    ck_assert(peer_receive(p));
    ck_assert_int_eq(p->message->body_case, THIN__MESSAGE__BODY_EVENT);
    ck_assert_str_eq(p->message->event->object, "a");
    number = p->message->event->number;
    ck_assert_uint_ge(number, 1);
    /* Late, and all of it; then from where it was. */
    reply = CALL(q, EVENTS_SUBSCRIBE, events_subscribe, EventsSubscribe);
    ck_assert_int_eq(reply->code, 0);
    ck_assert(peer_receive(q));
    ck_assert_uint_eq(q->message->event->number, 1);
    peer_hang_up(q);
    q = peer_connect();
    reply = CALL(q, EVENTS_SUBSCRIBE, events_subscribe, EventsSubscribe, .since = 99999);
    ck_assert(peer_receive(q));
    ck_assert_str_eq(q->message->event->kind, "gap");
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

START_TEST(holder_is_told_of_a_new_size)
{
    struct peer *p = peer_connect(), *q = peer_connect();
    uint32_t handle;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    handle = open_volume(p, "a/v", NULL);
    ck_assert_int_eq(CALL(q, VOLUME_RESIZE, volume_resize, VolumeResize, .name = S("a/v"),
                          .size = 2 << 20)
                         ->code,
                     0);
    ck_assert(peer_receive(p));
    ck_assert_int_eq(p->message->body_case, THIN__MESSAGE__BODY_EVENT);
    ck_assert_str_eq(p->message->event->kind, "resized");
    ck_assert_uint_eq(p->message->event->size, 2 << 20);
    ck_assert_uint_eq(p->message->event->handle, handle);
    peer_hang_up(p);
    peer_hang_up(q);
}
END_TEST

static void
add(TCase *tcase)
{
    tcase_add_test(tcase, repeated_request_is_answered_once_more_and_done_once);
    tcase_add_test(tcase, question_is_asked_again_rather_than_kept);
    tcase_add_test(tcase, lost_session_is_resumed_with_its_volumes);
    tcase_add_test(tcase, write_cut_in_its_payload_is_begun_anew_after_a_resume);
    tcase_add_test(tcase, answer_whose_pieces_were_lost_is_no_success);
    tcase_add_test(tcase, data_connection_joins_with_the_token);
    tcase_add_test(tcase, too_many_connections_of_a_session_are_refused);
    tcase_add_test(tcase, volume_stays_attached_for_the_lease_and_is_free_after_it);
    tcase_add_test(tcase, bye_ends_the_session_at_once);
    tcase_add_test(tcase, writing_is_exclusive_unless_both_share);
    tcase_add_test(tcase, stolen_volume_is_stale_and_its_holder_is_told);
    tcase_add_test(tcase, sessions_are_listed_and_kicked);
    tcase_add_test(tcase, events_reach_who_subscribed_also_late);
    tcase_add_test(tcase, holder_is_told_of_a_new_size);
}

int
main(void)
{
    return rig_run("sessions", add);
}
