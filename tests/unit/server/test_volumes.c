/* Volumes and pools through the protocol: data, life, lists, rights. */
#include "core/base/crc32c.h"
#include "proto/pki.h"
#include "tests/unit/server/server_rig.h"

#define BLOCK 65536u

struct open_volume {
    uint32_t handle;
    uint64_t epoch, size;
};

static struct open_volume
open_volume(struct peer *p, const char *name)
{
    Thin__Reply *reply = CALL(p, VOLUME_OPEN, volume_open, VolumeOpen, .name = S(name));
    struct open_volume v;

    ck_assert_msg(reply->code == 0, "%s", reply->text);
    v.handle = reply->volume_opened->handle;
    v.epoch = reply->volume_opened->epoch;
    v.size = reply->volume_opened->size;
    return v;
}

static Thin__Reply *
write_at(struct peer *p, const struct open_volume *v, uint64_t offset, const void *bytes,
         uint32_t len, bool fua)
{
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Write body = THIN__WRITE__INIT;

    body.handle = v->handle;
    body.epoch = v->epoch;
    body.offset = offset;
    body.fua = fua;
    rq.body_case = THIN__REQUEST__BODY_WRITE;
    rq.write = &body;
    return peer_call_payload(p, &rq, bytes, len);
}

static Thin__Reply *
read_at(struct peer *p, const struct open_volume *v, uint64_t offset, uint32_t len)
{
    return CALL(p, READ, read, Read, .handle = v->handle, .offset = offset, .length = len,
                .want_crc = true);
}

/* The bytes of a read as the volume has them: payload and holes put together. */
static void
whole_read(const struct peer *p, uint8_t *ret, uint32_t len)
{
    const Thin__DataReply *d = p->reply->data;
    uint32_t at = 0, from = 0;

    ck_assert(p->reply->has_payload_crc || p->payload_bytes == 0);
    if (p->reply->has_payload_crc)
        ck_assert_uint_eq(p->reply->payload_crc, crc32c(p->payload, p->payload_bytes));
    for (size_t i = 0; i <= d->n_holes; i += 2) {
        uint32_t hole = i < d->n_holes ? d->holes[i] : len;

        memcpy(ret + at, p->payload + from, hole - at);
        from += hole - at;
        at = hole;
        if (i < d->n_holes) {
            memset(ret + at, 0, d->holes[i + 1]);
            at += d->holes[i + 1];
        }
    }
    ck_assert_uint_eq(from, p->payload_bytes);
    ck_assert_uint_eq(at, len);
}

START_TEST(what_is_written_is_read_and_holes_are_not_sent)
{
    struct peer *p = peer_connect();
    static uint8_t bytes[BLOCK], back[8 * BLOCK];
    struct open_volume v;
    Thin__Reply *reply;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 8 << 20);
    v = open_volume(p, "a/v");
    ck_assert_uint_eq(v.size, 8 << 20);
    memset(bytes, 5, sizeof(bytes));
    reply = write_at(p, &v, BLOCK, bytes, sizeof(bytes), false);
    ck_assert_int_eq(reply->code, 0);
    ck_assert_uint_gt(reply->data->change, 0);
    ck_assert_uint_lt(reply->data->stable_mark, reply->data->change);
    ck_assert_uint_ne(reply->data->incarnation, 0);
    ck_assert_int_eq(write_at(p, &v, 5 * BLOCK + 7, "unaligned", 9, false)->code, 0);
    ck_assert_int_eq(read_at(p, &v, 0, sizeof(back))->code, 0);
    ck_assert_uint_eq(p->payload_bytes, 2 * BLOCK);
    whole_read(p, back, sizeof(back));
    ck_assert_int_eq(memcmp(back + BLOCK, bytes, BLOCK), 0);
    ck_assert_int_eq(memcmp(back + 5 * BLOCK + 7, "unaligned", 9), 0);
    ck_assert_uint_eq(back[0], 0);
    ck_assert_uint_eq(back[5 * BLOCK + 16], 0);
    /* A write that was made durable is below the stable mark. */
    reply = write_at(p, &v, 0, bytes, 512, true);
    ck_assert_int_eq(reply->code, 0);
    reply = CALL(p, FLUSH, flush, Flush, .handle = v.handle, .epoch = v.epoch);
    ck_assert_int_eq(reply->code, 0);
    ck_assert_uint_eq(reply->data->change, 0);
    ck_assert_uint_gt(reply->data->stable_mark, 0);
    peer_hang_up(p);
}
END_TEST

START_TEST(requests_are_judged)
{
    struct peer *p = peer_connect();
    static uint8_t bytes[4096];
    struct open_volume v, bad, ro;
    Thin__Reply *reply;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    v = bad = open_volume(p, "a/v");
    ck_assert_int_eq(write_at(p, &v, (1 << 20) - 100, bytes, 4096, false)->code,
                     -THIN_E_RANGE);
    ck_assert_int_eq(write_at(p, &v, UINT64_MAX - 100, bytes, 4096, false)->code,
                     -THIN_E_RANGE);
    ck_assert_int_eq(read_at(p, &v, 1 << 20, 1)->code, -THIN_E_RANGE);
    ck_assert_int_eq(read_at(p, &v, 1 << 20, 0)->code, 0);
    ck_assert_int_eq(read_at(p, &v, 0, PROTO_PAYLOAD_MAX + 1)->code, -THIN_E_LIMIT);
    ck_assert_int_eq(write_at(p, &v, 0, bytes, 0, false)->code, 0);
    bad.handle += 12345;
    ck_assert_int_eq(write_at(p, &bad, 0, bytes, 4096, false)->code, -THIN_E_NOT_FOUND);
    bad = v;
    bad.epoch++;
    ck_assert_int_eq(write_at(p, &bad, 0, bytes, 4096, false)->code, -THIN_E_STALE);
    reply = CALL(p, VOLUME_OPEN, volume_open, VolumeOpen, .name = S("a/v"),
                 .read_only = true);
    ck_assert_int_eq(reply->code, 0);
    ro.handle = reply->volume_opened->handle;
    ro.epoch = reply->volume_opened->epoch;
    ck_assert(reply->volume_opened->read_only);
    ck_assert_int_eq(write_at(p, &ro, 0, bytes, 4096, false)->code, -THIN_E_READ_ONLY);
    ck_assert_int_eq(
        CALL(p, FLUSH, flush, Flush, .handle = ro.handle, .epoch = ro.epoch)->code, 0);
    ck_assert_int_eq(
        CALL(p, VOLUME_CLOSE, volume_close, VolumeClose, .handle = ro.handle)->code, 0);
    ck_assert_int_eq(
        CALL(p, VOLUME_CLOSE, volume_close, VolumeClose, .handle = ro.handle)->code,
        -THIN_E_NOT_FOUND);
    peer_hang_up(p);
}
END_TEST

START_TEST(wrong_payload_checksum_is_refused_and_nothing_written)
{
    struct peer *p = peer_connect();
    static uint8_t bytes[4096] = {1};
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Write body = THIN__WRITE__INIT;
    struct open_volume v;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    v = open_volume(p, "a/v");
    body.handle = v.handle;
    body.epoch = v.epoch;
    rq.body_case = THIN__REQUEST__BODY_WRITE;
    rq.write = &body;
    rq.has_payload_crc = true;
    rq.payload_crc = crc32c(bytes, sizeof(bytes)) ^ 1;
    ck_assert_int_eq(peer_call_payload(p, &rq, bytes, sizeof(bytes))->code,
                     -THIN_E_CHECKSUM);
    ck_assert_int_eq(read_at(p, &v, 0, 4096)->code, 0);
    ck_assert_uint_eq(p->payload_bytes, 0);
    rq.payload_crc ^= 1;
    ck_assert_int_eq(peer_call_payload(p, &rq, bytes, sizeof(bytes))->code, 0);
    ck_assert_int_eq(read_at(p, &v, 0, 4096)->code, 0);
    ck_assert_uint_eq(p->payload_bytes, 4096);
    peer_hang_up(p);
}
END_TEST

START_TEST(zeroes_discard_and_status_agree)
{
    struct peer *p = peer_connect();
    static uint8_t bytes[4 * BLOCK];
    struct open_volume v;
    Thin__Reply *reply;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 8 << 20);
    v = open_volume(p, "a/v");
    memset(bytes, 3, sizeof(bytes));
    ck_assert_int_eq(write_at(p, &v, 0, bytes, sizeof(bytes), false)->code, 0);
    reply = CALL(p, DISCARD, discard, Discard, .handle = v.handle, .epoch = v.epoch,
                 .offset = BLOCK, .length = BLOCK);
    ck_assert_int_eq(reply->code, 0);
    reply = CALL(p, WRITE_ZEROES, write_zeroes, WriteZeroes, .handle = v.handle,
                 .epoch = v.epoch, .offset = 3 * BLOCK, .length = 100);
    ck_assert_int_eq(reply->code, 0);
    reply = CALL(p, BLOCK_STATUS, block_status, BlockStatus, .handle = v.handle,
                 .length = 8 << 20);
    ck_assert_int_eq(reply->code, 0);
    ck_assert_uint_eq(reply->block_status->n_extents, 4);
    ck_assert_uint_eq(reply->block_status->extents[1]->flags & 1, 1);
    ck_assert_uint_eq(reply->block_status->extents[1]->length, BLOCK);
    reply = CALL(p, BLOCK_STATUS, block_status, BlockStatus, .handle = v.handle,
                 .length = 8 << 20, .max_extents = 1);
    ck_assert_uint_eq(reply->block_status->n_extents, 1);
    ck_assert_int_eq(
        CALL(p, PREFETCH, prefetch, Prefetch, .handle = v.handle, .length = 8 << 20)
            ->code,
        0);
    peer_hang_up(p);
}
END_TEST

/* Many writes and reads at once, more bytes than there is memory to lend. */
START_TEST(requests_wait_for_memory_and_all_end)
{
    static uint8_t bytes[1 << 20];
    struct peer *p = peer_connect();
    struct open_volume v;
    unsigned answered = 0;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 64 << 20);
    v = open_volume(p, "a/v");
    for (uint32_t slot = 2; slot < 42; slot++) {
        Thin__Request rq = THIN__REQUEST__INIT;
        Thin__Write w = THIN__WRITE__INIT;
        Thin__Read r = THIN__READ__INIT;

        if (slot % 2) {
            w.handle = v.handle;
            w.epoch = v.epoch;
            w.offset = (uint64_t)slot << 20;
            rq.body_case = THIN__REQUEST__BODY_WRITE;
            rq.write = &w;
            peer_ask(p, slot, &rq, bytes, sizeof(bytes));
        } else {
            r.handle = v.handle;
            r.length = sizeof(bytes);
            r.offset = (uint64_t)slot << 20;
            rq.body_case = THIN__REQUEST__BODY_READ;
            rq.read = &r;
            peer_ask(p, slot, &rq, NULL, 0);
        }
    }
    while (answered < 40) {
        ck_assert_int_eq(peer_reply(p)->code, 0);
        answered++;
    }
    peer_hang_up(p);
}
END_TEST

START_TEST(life_of_volumes)
{
    struct peer *p = peer_connect();
    Thin__SnapshotPair pair = THIN__SNAPSHOT_PAIR__INIT, *pairs[1] = {&pair};
    Thin__KeyValue kv = THIN__KEY_VALUE__INIT, *kvs[1] = {&kv};
    static uint8_t bytes[BLOCK];
    struct open_volume v;
    Thin__Reply *reply;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    ck_assert_int_eq(
        CALL(p, VOLUME_CREATE, volume_create, VolumeCreate, .name = S("a/v"), .size = 512)
            ->code,
        -THIN_E_EXISTS);
    ck_assert_int_eq(
        CALL(p, VOLUME_CREATE, volume_create, VolumeCreate, .name = S("b/v"), .size = 512)
            ->code,
        -THIN_E_NOT_FOUND);
    ck_assert_int_eq(
        CALL(p, VOLUME_CREATE, volume_create, VolumeCreate, .name = S("a/w"), .size = 511)
            ->code,
        -THIN_E_INVALID);
    ck_assert_int_eq(
        CALL(p, VOLUME_CREATE, volume_create, VolumeCreate, .name = S("a"), .size = 512)
            ->code,
        -THIN_E_INVALID);
    v = open_volume(p, "a/v");
    memset(bytes, 1, sizeof(bytes));
    ck_assert_int_eq(write_at(p, &v, 0, bytes, sizeof(bytes), false)->code, 0);
    pair.origin = S("a/v");
    pair.name = S("s");
    reply = CALL(p, VOLUME_SNAPSHOT, volume_snapshot, VolumeSnapshot, .n_snapshots = 1,
                 .snapshots = pairs);
    ck_assert_msg(reply->code == 0, "%s", reply->text);
    reply = CALL(p, VOLUME_LIST, volume_list, VolumeList, .name = S("a/s"),
                 .with_exclusive = true);
    ck_assert_int_eq(reply->code, 0);
    ck_assert_uint_eq(reply->volume_list->n_volumes, 1);
    ck_assert_str_eq(reply->volume_list->volumes[0]->parent, "a/v");
    ck_assert_uint_eq(reply->volume_list->volumes[0]->mapped, BLOCK);
    ck_assert_uint_eq(reply->volume_list->volumes[0]->exclusive, 0);
    ck_assert(reply->volume_list->volumes[0]->has_exclusive);
    /* Renamed while it is open: it goes on under the new name. */
    ck_assert_int_eq(CALL(p, VOLUME_RENAME, volume_rename, VolumeRename, .name = S("a/v"),
                          .new_name = S("w"))
                         ->code,
                     0);
    ck_assert_int_eq(write_at(p, &v, BLOCK, bytes, sizeof(bytes), false)->code, 0);
    reply = CALL(p, VOLUME_LIST, volume_list, VolumeList, .name = S("a/w"));
    ck_assert(reply->volume_list->volumes[0]->attached);
    ck_assert(reply->volume_list->volumes[0]->holder[0]);
    ck_assert_int_eq(
        CALL(p, VOLUME_DELETE, volume_delete, VolumeDelete, .name = S("a/w"))->code,
        -THIN_E_BUSY);
    ck_assert_int_eq(
        CALL(p, VOLUME_CLOSE, volume_close, VolumeClose, .handle = v.handle)->code, 0);
    kv.key = S("protected");
    kv.value = S("yes");
    ck_assert_int_eq(CALL(p, VOLUME_SET, volume_set, VolumeSet, .name = S("a/w"),
                          .n_values = 1, .values = kvs)
                         ->code,
                     0);
    ck_assert_int_eq(
        CALL(p, VOLUME_DELETE, volume_delete, VolumeDelete, .name = S("a/w"))->code,
        -THIN_E_BUSY);
    kv.value = S("no");
    ck_assert_int_eq(CALL(p, VOLUME_SET, volume_set, VolumeSet, .name = S("a/w"),
                          .n_values = 1, .values = kvs)
                         ->code,
                     0);
    kv.key = S("colour");
    ck_assert_int_eq(CALL(p, VOLUME_SET, volume_set, VolumeSet, .name = S("a/w"),
                          .n_values = 1, .values = kvs)
                         ->code,
                     -THIN_E_INVALID);
    reply = CALL(p, VOLUME_DELETE, volume_delete, VolumeDelete, .name = S("a/w"),
                 .dry_run = true);
    ck_assert_int_eq(reply->code, 0);
    ck_assert_uint_eq(reply->volume_delete->freed, BLOCK);
    ck_assert_int_eq(
        CALL(p, VOLUME_DELETE, volume_delete, VolumeDelete, .name = S("a/w"))->code, 0);
    ck_assert_int_eq(
        CALL(p, VOLUME_LIST, volume_list, VolumeList, .name = S("a/w"))->code,
        -THIN_E_NOT_FOUND);
    peer_hang_up(p);
}
END_TEST

START_TEST(long_lists_come_in_pages)
{
    struct peer *p = peer_connect();
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__VolumeList body = THIN__VOLUME_LIST__INIT;
    unsigned nr = 0, pages = 0;
    char name[16];
    bool more;

    rig_make_pool(p, "a");
    rig_make_pool(p, "b");
    for (unsigned i = 0; i < 150; i++) {
        snprintf(name, sizeof(name), "%s/v%03u", i % 10 ? "a" : "b", i);
        rig_make_volume(p, name, 512);
    }
    rq.body_case = THIN__REQUEST__BODY_VOLUME_LIST;
    rq.volume_list = &body;
    peer_ask(p, 1, &rq, NULL, 0);
    do {
        ck_assert_int_eq(peer_reply(p)->code, 0);
        more = p->reply->more;
        nr += (unsigned)p->reply->volume_list->n_volumes;
        pages++;
    } while (more);
    ck_assert_uint_eq(nr, 150);
    ck_assert_uint_ge(pages, 3);
    /* One page at the asker's wish, from where he was. */
    ck_assert_int_eq(
        CALL(p, VOLUME_LIST, volume_list, VolumeList, .pool = S("a"), .max = 10)->code,
        0);
    ck_assert_uint_eq(p->reply->volume_list->n_volumes, 10);
    ck_assert_str_eq(p->reply->volume_list->volumes[9]->name, "a/v011");
    ck_assert_int_eq(
        CALL(p, VOLUME_LIST, volume_list, VolumeList, .after = S("a/v148"), .max = 3)
            ->code,
        0);
    while (p->reply->more) {
        size_t n = p->reply->volume_list->n_volumes;

        ck_assert_uint_le(n, 3);
        peer_reply(p);
    }
    ck_assert_int_eq(
        CALL(p, VOLUME_LIST, volume_list, VolumeList, .pool = S("nope"))->code,
        -THIN_E_NOT_FOUND);
    peer_hang_up(p);
}
END_TEST

START_TEST(life_of_pools)
{
    struct peer *p = peer_connect();
    const Thin__PoolInfo *info;
    struct open_volume v;
    static uint8_t bytes[4096];
    Thin__Reply *reply;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    reply = CALL(p, POOL_LIST, pool_list, PoolList, .name = S("a"));
    ck_assert_uint_eq(reply->pool_list->n_pools, 1);
    info = reply->pool_list->pools[0];
    ck_assert_str_eq(info->state, "open");
    ck_assert_str_eq(info->mode, "write");
    ck_assert_uint_eq(info->data_size, 64 << 20);
    ck_assert_str_eq(info->data_path, rig_path("a.data"));
    ck_assert_uint_eq(info->nr_volumes, 1);
    ck_assert_uint_gt(info->n_steps, 2);
    for (size_t i = 0; i < info->n_steps; i++) {
        const Thin__StepInfo *s = info->steps[i];
        uint64_t sum = 0;

        ck_assert_str_ne(s->name, "");
        ck_assert_uint_eq(s->n_counts, info->n_step_bounds_ns);
        for (size_t k = 0; k < s->n_counts; k++)
            sum += s->counts[k];
        ck_assert_uint_eq(sum, s->count);
    }
    ck_assert_int_eq(
        CALL(p, POOL_GROW, pool_grow, PoolGrow, .name = S("a"), .data_size = 128 << 20)
            ->code,
        0);
    ck_assert_int_eq(
        CALL(p, POOL_GROW, pool_grow, PoolGrow, .name = S("a"), .data_size = 1 << 20)
            ->code,
        -THIN_E_INVALID);
    v = open_volume(p, "a/v");
    ck_assert_int_eq(CALL(p, POOL_CLOSE, pool_close, PoolClose, .name = S("a"))->code,
                     -THIN_E_BUSY);
    reply = CALL(p, POOL_CLOSE, pool_close, PoolClose, .name = S("a"), .force = true);
    ck_assert_msg(reply->code == 0, "%s", reply->text);
    ck_assert_int_lt(write_at(p, &v, 0, bytes, sizeof(bytes), false)->code, 0);
    ck_assert_int_lt(read_at(p, &v, 0, 512)->code, 0);
    ck_assert_int_eq(
        CALL(p, VOLUME_CREATE, volume_create, VolumeCreate, .name = S("a/x"), .size = 512)
            ->code,
        -THIN_E_BUSY);
    reply = CALL(p, POOL_LIST, pool_list, PoolList);
    ck_assert_str_eq(reply->pool_list->pools[0]->state, "closed");
    ck_assert_int_eq(CALL(p, POOL_OPEN, pool_open, PoolOpen, .name = S("a"))->code, 0);
    /* What was attached is no obstacle, nor does it come to life again. */
    ck_assert_int_lt(write_at(p, &v, 0, bytes, sizeof(bytes), false)->code, 0);
    v = open_volume(p, "a/v");
    ck_assert_int_eq(write_at(p, &v, 0, bytes, sizeof(bytes), false)->code, 0);
    ck_assert_int_eq(
        CALL(p, VOLUME_CLOSE, volume_close, VolumeClose, .handle = v.handle)->code, 0);
    ck_assert_int_eq(
        CALL(p, POOL_DESTROY, pool_destroy, PoolDestroy, .name = S("a"))->code, 0);
    ck_assert_int_ne(access(rig_path("a.data"), F_OK), 0);
    ck_assert_int_eq(CALL(p, POOL_LIST, pool_list, PoolList, .name = S("a"))->code,
                     -THIN_E_NOT_FOUND);
    peer_hang_up(p);
}
END_TEST

START_TEST(pools_are_open_again_after_a_restart)
{
    struct peer *p = peer_connect();
    static uint8_t bytes[BLOCK];
    struct open_volume v;

    rig_make_pool(p, "a");
    rig_make_volume(p, "a/v", 1 << 20);
    v = open_volume(p, "a/v");
    memset(bytes, 77, sizeof(bytes));
    ck_assert_int_eq(write_at(p, &v, 0, bytes, sizeof(bytes), false)->code, 0);
    rig_stop();
    peer_hang_up(p);
    rig_start();
    p = peer_connect();
    v = open_volume(p, "a/v");
    ck_assert_int_eq(read_at(p, &v, 0, BLOCK)->code, 0);
    ck_assert_uint_eq(p->payload_bytes, BLOCK);
    ck_assert_int_eq(memcmp(p->payload, bytes, BLOCK), 0);
    peer_hang_up(p);
}
END_TEST

/* ---- over TLS: rights -------------------------------------------------------------------- */

static void
start_tls_rig(void)
{
    struct channel_tls_params params = {.server = true};
    struct pki_issue_params issue = {.name = "store", .server = true};
    struct thin_error err;
    char pki[96], cert[160], key[160], ca[160];

    rig_prepare();
    snprintf(pki, sizeof(pki), "%s/pki", rig.dir);
    ck_assert_msg(pki_init(pki, &err) == 0, "%s", err.text);
    ck_assert_msg(pki_issue(pki, &issue, &err) == 0, "%s", err.text);
    issue = (struct pki_issue_params){.name = "bob"};
    ck_assert_msg(pki_issue(pki, &issue, &err) == 0, "%s", err.text);
    snprintf(cert, sizeof(cert), "%s/store/server-cert.pem", pki);
    snprintf(key, sizeof(key), "%s/store/server-key.pem", pki);
    snprintf(ca, sizeof(ca), "%s/store/ca-cert.pem", pki);
    params.cert = cert;
    params.key = key;
    params.ca = ca;
    ck_assert_msg(channel_tls_create(&params, &rig.server.tls, &err) == 0, "%s",
                  err.text);
    rig.server.config.listen_tls = NULL;
    rig.server.config.device_dirs[0] = rig.dir;
    rig.server.config.nr_device_dirs = 1;
    rig_go(128 << 20);
}

static struct peer *
tls_dial(void)
{
    struct channel_tls_params params = {0};
    struct socket_address address;
    struct channel_tls *tls;
    struct thin_error err;
    char dir[96], cert[160], key[160], ca[160];
    struct peer *p = calloc(1, sizeof(*p)), *wait = peer_dial();
    uint16_t port;
    int r;

    /* The unix socket answers: both listeners are open. */
    peer_hang_up(wait);
    for (int i = 0; i < 30000 && rig.server.nr_listeners < 2; i++)
        usleep(1000);
    port = (uint16_t)atoi(strrchr(listener_text(rig.server.listeners[1]), ':') + 1);
    snprintf(dir, sizeof(dir), "%s/pki/bob", rig.dir);
    snprintf(cert, sizeof(cert), "%s/client-cert.pem", dir);
    snprintf(key, sizeof(key), "%s/client-key.pem", dir);
    snprintf(ca, sizeof(ca), "%s/ca-cert.pem", dir);
    params.cert = cert;
    params.key = key;
    params.ca = ca;
    ck_assert_int_eq(socket_address_parse("tls://127.0.0.1:1", 0, &address, &err), 0);
    address.port = port;
    ck_assert_msg(socket_connect_wait(&address, RIG_WAIT_MS, &p->fd, &err) == 0, "%s",
                  err.text);
    ck_assert_msg(channel_tls_create(&params, &tls, &err) == 0, "%s", err.text);
    ck_assert_int_eq(channel_tls_start(tls, p->fd, "127.0.0.1", &p->channel, &err), 0);
    channel_tls_put(tls);
    while ((r = channel_handshake(p->channel, &err)) == -EAGAIN)
        peer_wait(p, channel_wants(p->channel) & CHANNEL_WANT_READ ? POLLIN : POLLOUT,
                  RIG_WAIT_MS);
    ck_assert_msg(r == 0, "%s", err.text);
    return p;
}

static void
grant(struct peer *admin, const char *right, const char *glob)
{
    Thin__Reply *reply = CALL(admin, ACCESS_GRANT, access_grant, AccessGrant,
                              .who = S("cert:bob"), .right = S(right), .glob = S(glob));

    ck_assert_msg(reply->code == 0, "%s", reply->text);
}

static int
open_as(struct peer *p, const char *name, bool read_only)
{
    return CALL(p, VOLUME_OPEN, volume_open, VolumeOpen, .name = S(name),
                .read_only = read_only)
        ->code;
}

START_TEST(rights_are_kept_apart)
{
    struct peer *root = peer_connect(), *bob = tls_dial();
    Thin__Reply *reply;

    peer_hello_as(bob, NULL, false);
    peer_welcome(bob);
    rig_make_pool(root, "a");
    rig_make_volume(root, "a/v", 1 << 20);
    rig_make_volume(root, "a/w", 1 << 20);
    /* No right: it does not exist. */
    ck_assert_int_eq(open_as(bob, "a/v", true), -THIN_E_NOT_FOUND);
    ck_assert_int_eq(CALL(bob, VOLUME_LIST, volume_list, VolumeList)->code, 0);
    ck_assert_uint_eq(bob->reply->volume_list->n_volumes, 0);
    ck_assert_int_eq(CALL(bob, POOL_LIST, pool_list, PoolList)->code, 0);
    ck_assert_uint_eq(bob->reply->pool_list->n_pools, 0);
    ck_assert_int_eq(
        CALL(bob, VOLUME_LIST, volume_list, VolumeList, .pool = S("a"))->code,
        -THIN_E_NOT_FOUND);
    grant(root, "read", "a/v");
    ck_assert_int_eq(open_as(bob, "a/v", true), 0);
    ck_assert_int_eq(open_as(bob, "a/v", false), -THIN_E_DENIED);
    ck_assert_int_eq(open_as(bob, "a/w", true), -THIN_E_NOT_FOUND);
    reply = CALL(bob, VOLUME_LIST, volume_list, VolumeList);
    ck_assert_uint_eq(reply->volume_list->n_volumes, 1);
    ck_assert_str_eq(reply->volume_list->volumes[0]->name, "a/v");
    grant(root, "write", "a/v");
    ck_assert_int_eq(open_as(bob, "a/v", false), 0);
    ck_assert_int_eq(CALL(bob, VOLUME_CREATE, volume_create, VolumeCreate,
                          .name = S("a/x"), .size = 512)
                         ->code,
                     -THIN_E_NOT_FOUND);
    ck_assert_int_eq(CALL(bob, ACCESS_LIST, access_list, AccessList)->code,
                     -THIN_E_DENIED);
    ck_assert_int_eq(CALL(bob, SERVER_SHUTDOWN, server_shutdown, ServerShutdown)->code,
                     -THIN_E_DENIED);
    ck_assert_int_eq(CALL(bob, SESSION_LIST, session_list, SessionList)->code,
                     -THIN_E_DENIED);
    /* Who is in the way has no name. */
    ck_assert_int_eq(open_as(root, "a/w", false), 0);
    grant(root, "write", "a/*");
    reply = CALL(bob, VOLUME_OPEN, volume_open, VolumeOpen, .name = S("a/w"));
    ck_assert_int_eq(reply->code, -THIN_E_BUSY);
    ck_assert_ptr_null(strstr(reply->text, root->reply ? "user:" : ""));
    grant(root, "manage", "a/*");
    ck_assert_int_eq(CALL(bob, VOLUME_CREATE, volume_create, VolumeCreate,
                          .name = S("a/x"), .size = 512)
                         ->code,
                     0);
    ck_assert_int_eq(CALL(bob, POOL_CLOSE, pool_close, PoolClose, .name = S("a"))->code,
                     -THIN_E_NOT_FOUND);
    reply = CALL(root, ACCESS_LIST, access_list, AccessList);
    ck_assert_uint_eq(reply->access_list->n_rules, 4);
    ck_assert_int_eq(CALL(root, ACCESS_REVOKE, access_revoke, AccessRevoke,
                          .who = S("cert:bob"), .right = S("manage"), .glob = S("a/*"))
                         ->code,
                     0);
    ck_assert_int_eq(
        CALL(bob, VOLUME_DELETE, volume_delete, VolumeDelete, .name = S("a/x"))->code,
        -THIN_E_DENIED);
    peer_hang_up(bob);
    peer_hang_up(root);
}
END_TEST

static int
create_at(struct peer *p, const char *name, const char *data)
{
    char meta[128];

    snprintf(meta, sizeof(meta), "%s/%s.meta", rig.dir, name);
    return CALL(p, POOL_CREATE, pool_create, PoolCreate, .name = S(name), .data = S(data),
                .data_size = 16 << 20, .metadata = meta, .metadata_size = 4 << 20)
        ->code;
}

START_TEST(paths_from_the_network_stay_below_device_dirs)
{
    struct peer *root = peer_connect(), *bob = tls_dial();
    char path[160];

    peer_hello_as(bob, NULL, false);
    peer_welcome(bob);
    grant(root, "admin", "b*");
    ck_assert_int_eq(create_at(bob, "b", "/dev/null"), -THIN_E_DENIED);
    snprintf(path, sizeof(path), "%s/../../etc/b.data", rig.dir);
    ck_assert_int_eq(create_at(bob, "b", path), -THIN_E_DENIED);
    snprintf(path, sizeof(path), "%sx/b.data", rig.dir);
    ck_assert_int_eq(create_at(bob, "b", path), -THIN_E_DENIED);
    snprintf(path, sizeof(path), "%s/./b.data", rig.dir);
    ck_assert_int_eq(create_at(bob, "b", path), -THIN_E_DENIED);
    ck_assert_int_eq(create_at(bob, "c", path), -THIN_E_NOT_FOUND);
    snprintf(path, sizeof(path), "%s/b.data", rig.dir);
    ck_assert_int_eq(create_at(bob, "b", path), 0);
    ck_assert_int_eq(CALL(bob, POOL_LIST, pool_list, PoolList, .name = S("b"))->code, 0);
    ck_assert_str_eq(bob->reply->pool_list->pools[0]->data_path, path);
    peer_hang_up(bob);
    peer_hang_up(root);
}
END_TEST

static void
start_poor_rig(void)
{
    rig_prepare();
    rig_go(4 << 20);
}

int
main(void)
{
    Suite *suite = suite_create("volumes");
    TCase *plain = tcase_create("plain"), *tls = tcase_create("tls"),
          *poor = tcase_create("poor");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(plain, rig_start, rig_teardown);
    tcase_set_timeout(plain, 60);
    tcase_add_test(plain, what_is_written_is_read_and_holes_are_not_sent);
    tcase_add_test(plain, requests_are_judged);
    tcase_add_test(plain, wrong_payload_checksum_is_refused_and_nothing_written);
    tcase_add_test(plain, zeroes_discard_and_status_agree);
    tcase_add_test(plain, life_of_volumes);
    tcase_add_test(plain, long_lists_come_in_pages);
    tcase_add_test(plain, life_of_pools);
    tcase_add_test(plain, pools_are_open_again_after_a_restart);
    suite_add_tcase(suite, plain);
    tcase_add_checked_fixture(poor, start_poor_rig, rig_teardown);
    tcase_set_timeout(poor, 60);
    tcase_add_test(poor, requests_wait_for_memory_and_all_end);
    suite_add_tcase(suite, poor);
    tcase_add_checked_fixture(tls, start_tls_rig, rig_teardown);
    tcase_set_timeout(tls, 60);
    tcase_add_test(tls, rights_are_kept_apart);
    tcase_add_test(tls, paths_from_the_network_stay_below_device_dirs);
    suite_add_tcase(suite, tls);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
