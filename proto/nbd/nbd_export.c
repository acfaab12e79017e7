/* LIST, INFO, GO and EXPORT_NAME: which exports there are, and the step to transmission. */
#include "proto/nbd/nbd_private.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/checked.h"

/* ---- list -------------------------------------------------------------------------- */

static void
list_ask(struct nbd_conn *conn)
{
    conn->wait = NBD_WAIT_LIST;
    conn->hs->list_cut = false;
    conn->config.ops->list(conn->config.arg, conn, conn->hs->list_after);
}

void
nbd_option_list(struct nbd_conn *conn)
{
    if (conn->hs->option_len > 0) {
        nbd_option_error(conn, NBD_REP_ERR_INVALID, "LIST takes no data");
        nbd_option_next(conn);
        return;
    }
    if (!conn->config.ops->list) {
        nbd_option_error(conn, NBD_REP_ERR_POLICY, "exports are not listed");
        nbd_option_next(conn);
        return;
    }
    list_ask(conn);
}

/* The output is empty again: goes on with a list that had filled it. */
void
nbd_list_more(struct nbd_conn *conn)
{
    if (conn->phase == NBD_PHASE_HANDSHAKE && conn->wait == NBD_WAIT_NONE &&
        conn->hs->list_cut)
        list_ask(conn);
}

bool
nbd_export_listed(struct nbd_conn *conn, const char *name, const char *description)
{
    struct nbd_handshake *hs = conn->hs;
    const size_t name_len = strlen(name);
    const size_t text_len = description ? strnlen(description, NBD_NAME_MAX) : 0;
    uint8_t head[NBD_OPTION_REPLY_BYTES + 4];
    char *after;

    THIN_ASSERT(conn->wait == NBD_WAIT_LIST);
    if (conn->phase != NBD_PHASE_HANDSHAKE)
        return false;
    if (name_len > NBD_NAME_MAX) /* nobody could ask for it */
        return true;
    after = realloc(hs->list_after, name_len + 1);
    if (!after) {
        nbd_drain(conn, "out of memory for the list of exports");
        return false;
    }
    memcpy(after, name, name_len + 1);
    hs->list_after = after;

    store_be64(head, NBD_OPTION_REPLY_MAGIC);
    store_be32(head + 8, hs->option);
    store_be32(head + 12, NBD_REP_SERVER);
    store_be32(head + 16, (uint32_t)(4 + name_len + text_len));
    store_be32(head + 20, (uint32_t)name_len);
    if (!nbd_out_put(conn, head, sizeof(head)) || !nbd_out_put(conn, name, name_len) ||
        !nbd_out_put(conn, description, text_len))
        return false;
    if (conn->out_len < NBD_HANDSHAKE_OUT_SOFT)
        return true;
    hs->list_cut = true;
    return false;
}

void
nbd_list_done(struct nbd_conn *conn, int code)
{
    struct nbd_handshake *hs = conn->hs;

    THIN_ASSERT(conn->wait == NBD_WAIT_LIST);
    conn->wait = NBD_WAIT_NONE;
    if (conn->phase == NBD_PHASE_CLOSED) {
        nbd_maybe_idle(conn);
        return;
    }
    if (code < 0) {
        hs->list_cut = false;
        nbd_option_error(conn, nbd_option_error_of(code), "exports cannot be listed");
    } else if (!hs->list_cut) {
        nbd_option_reply(conn, NBD_REP_ACK, NULL, 0);
    }
    if (!hs->list_cut) {
        free(hs->list_after);
        hs->list_after = NULL;
        nbd_option_next(conn);
    }
    nbd_wake(conn);
}

/* ---- wishes ------------------------------------------------------------------------ */

/* Asks the owner for the export whose name stands at `name`; a NUL is put behind it. */
static void
ask_open(struct nbd_conn *conn, uint8_t *name, size_t name_len, bool info)
{
    struct nbd_handshake *hs = conn->hs;
    const bool same = hs->contexts_for && hs->contexts_for_len == name_len &&
                      memcmp(hs->contexts_for, name, name_len) == 0;

    name[name_len] = 0;
    hs->wish.name = (const char *)name;
    hs->wish.name_len = name_len;
    hs->wish.info = info;
    hs->wish.contexts = conn->contexts;
    hs->wish.nr_contexts = same ? conn->nr_contexts : 0;
    conn->wait = NBD_WAIT_OPEN;
    conn->config.ops->open(conn->config.arg, conn, &hs->wish);
}

void
nbd_option_export_name(struct nbd_conn *conn)
{
    struct nbd_handshake *hs = conn->hs;

    if (conn->extended) {
        nbd_drain(conn, "EXPORT_NAME after EXTENDED_HEADERS");
        return;
    }
    if (!nbd_name_valid(hs->option_data, hs->option_len)) {
        nbd_drain(conn, "bad export name");
        return;
    }
    hs->info_asked = 0;
    ask_open(conn, hs->option_data, hs->option_len, false);
}

void
nbd_option_info(struct nbd_conn *conn, bool go)
{
    struct nbd_handshake *hs = conn->hs;
    uint8_t *data = hs->option_data;
    const uint32_t len = hs->option_len;
    uint32_t name_len = 0, nr, i;
    const char *wrong = NULL;

    if (len < 6 || (name_len = load_be32(data)) > len - 6)
        wrong = "name is longer than the option";
    else if (2u * load_be16(data + 4 + name_len) != len - 6 - name_len)
        wrong = "number of information requests does not fit the option's length";
    else if (!nbd_name_valid(data + 4, name_len))
        wrong = "export name is not valid UTF-8 of at most 4096 bytes";
    if (wrong) {
        nbd_option_error(conn, NBD_REP_ERR_INVALID, wrong);
        nbd_option_next(conn);
        return;
    }
    nr = load_be16(data + 4 + name_len);
    hs->info_asked = 0;
    for (i = 0; i < nr; i++) {
        uint16_t info = load_be16(data + 6 + name_len + (size_t)2 * i);

        if (info <= NBD_INFO_BLOCK_SIZE)
            hs->info_asked |= 1u << info;
    }
    ask_open(conn, data + 4, name_len, !go);
}

/* ---- the owner's answer ------------------------------------------------------------ */

struct block_sizes {
    uint32_t min, pref, max;
};

static bool
is_power_of_two(uint32_t v)
{
    return v && (v & (v - 1)) == 0;
}

/* Sizes that obey the rules of the protocol, whatever the owner said. */
static struct block_sizes
block_sizes(const struct nbd_conn *conn, const struct nbd_export *e)
{
    struct block_sizes b = {1, 4096, conn->config.limits.max_payload};

    if (is_power_of_two(e->min_block) && e->min_block <= 65536)
        b.min = e->min_block;
    while (e->size % b.min) /* the size must be a multiple */
        b.min /= 2;
    if (is_power_of_two(e->pref_block) && e->pref_block >= 512)
        b.pref = e->pref_block;
    if (b.pref < b.min)
        b.pref = b.min;
    if (e->max_payload && e->max_payload < b.max)
        b.max = (uint32_t)max_u64(round_down_u64(e->max_payload, b.min), 1u << 20);
    if (b.pref > b.max)
        b.pref = b.min > 4096 ? b.min : 4096;
    return b;
}

/* A read-only export offers no change, and fast zeroes need zeroes. */
static unsigned
sound_flags(unsigned flags)
{
    if (flags & NBD_EXPORT_READ_ONLY)
        flags &= ~(NBD_EXPORT_TRIM | NBD_EXPORT_ZEROES);
    if (!(flags & NBD_EXPORT_ZEROES))
        flags &= ~NBD_EXPORT_FAST_ZERO;
    return flags;
}

static uint16_t
transmission_flags(const struct nbd_conn *conn, unsigned flags)
{
    static const struct {
        unsigned ours, wire;
    } table[] = {
        {NBD_EXPORT_READ_ONLY, NBD_TX_READ_ONLY},
        {NBD_EXPORT_FLUSH, NBD_TX_SEND_FLUSH},
        {NBD_EXPORT_FUA, NBD_TX_SEND_FUA},
        {NBD_EXPORT_ROTATIONAL, NBD_TX_ROTATIONAL},
        {NBD_EXPORT_TRIM, NBD_TX_SEND_TRIM},
        {NBD_EXPORT_ZEROES, NBD_TX_SEND_WRITE_ZEROES},
        {NBD_EXPORT_MULTI_CONN, NBD_TX_CAN_MULTI_CONN},
        {NBD_EXPORT_CACHE, NBD_TX_SEND_CACHE},
        {NBD_EXPORT_FAST_ZERO, NBD_TX_SEND_FAST_ZERO},
    };
    unsigned wire = NBD_TX_HAS_FLAGS;
    size_t i;

    for (i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (flags & table[i].ours)
            wire |= table[i].wire;
    if (conn->structured)
        wire |= NBD_TX_SEND_DF;
    return (uint16_t)wire;
}

static void
reply_info_text(struct nbd_conn *conn, uint16_t info, const char *text)
{
    uint8_t bytes[2 + NBD_NAME_MAX];
    size_t len = strnlen(text, NBD_NAME_MAX);

    store_be16(bytes, info);
    memcpy(bytes + 2, text, len);
    nbd_option_reply(conn, NBD_REP_INFO, bytes, 2 + len);
}

static void
reply_infos(struct nbd_conn *conn, const struct nbd_export *e, uint16_t flags,
            const struct block_sizes *b)
{
    const unsigned asked = conn->hs->info_asked;
    uint8_t bytes[14];

    store_be16(bytes, NBD_INFO_EXPORT);
    store_be64(bytes + 2, e->size);
    store_be16(bytes + 10, flags);
    nbd_option_reply(conn, NBD_REP_INFO, bytes, 12);
    if (asked & 1u << NBD_INFO_NAME)
        reply_info_text(conn, NBD_INFO_NAME, e->name ? e->name : conn->hs->wish.name);
    if ((asked & 1u << NBD_INFO_DESCRIPTION) && e->description)
        reply_info_text(conn, NBD_INFO_DESCRIPTION, e->description);
    if (asked & 1u << NBD_INFO_BLOCK_SIZE) {
        store_be16(bytes, NBD_INFO_BLOCK_SIZE);
        store_be32(bytes + 2, b->min);
        store_be32(bytes + 6, b->pref);
        store_be32(bytes + 10, b->max);
        nbd_option_reply(conn, NBD_REP_INFO, bytes, 14);
    }
    nbd_option_reply(conn, NBD_REP_ACK, NULL, 0);
}

static void
reply_export_name(struct nbd_conn *conn, uint64_t size, uint16_t flags)
{
    uint8_t bytes[10 + 124] = {0};

    store_be64(bytes, size);
    store_be16(bytes + 8, flags);
    nbd_out_put(conn, bytes, conn->no_zeroes ? 10 : sizeof(bytes));
}

static void
refuse_open(struct nbd_conn *conn, uint32_t type, const char *text)
{
    if (conn->hs->option == NBD_OPT_EXPORT_NAME)
        nbd_drain(conn, "export could not be opened");
    else
        nbd_option_error(conn, type, text);
    nbd_option_next(conn);
}

/* The export is ours from here on: closed by nbd_conn_close, whatever follows. */
static void
begin_transmission(struct nbd_conn *conn, const struct nbd_export *e,
                   const struct block_sizes *b)
{
    conn->size = e->size;
    conn->export_flags = sound_flags(e->flags);
    conn->max_payload = b->max;
    conn->min_block = conn->hs->info_asked & 1u << NBD_INFO_BLOCK_SIZE ? b->min : 1;
    conn->nr_contexts = conn->hs->wish.nr_contexts;
    conn->phase = NBD_PHASE_TRANSMISSION;
    conn->in_state = NBD_IN_REQUEST_HEAD;
    conn->head_have = 0;
    nbd_handshake_free(conn);
}

static void
opened(struct nbd_conn *conn, const struct nbd_export *e)
{
    const bool info = conn->hs->wish.info;
    const struct block_sizes b = block_sizes(conn, e);
    const uint16_t flags = transmission_flags(conn, sound_flags(e->flags));

    if (!info) {
        conn->export_open = true;
        conn->handle = e->handle;
        if (nbd_slots_create(conn) < 0) {
            refuse_open(conn, NBD_REP_ERR_PLATFORM, "server is out of memory");
            nbd_drain(conn, "out of memory for requests");
            return;
        }
    }
    if (conn->hs->option == NBD_OPT_EXPORT_NAME)
        reply_export_name(conn, e->size, flags);
    else
        reply_infos(conn, e, flags, &b);
    if (conn->phase != NBD_PHASE_HANDSHAKE) /* the answer found no room */
        return;
    if (info)
        nbd_option_next(conn);
    else
        begin_transmission(conn, e, &b);
}

void
nbd_export_opened(struct nbd_conn *conn, int code, const struct nbd_export *export,
                  const char *text)
{
    THIN_ASSERT(conn->wait == NBD_WAIT_OPEN);
    conn->wait = NBD_WAIT_NONE;
    if (conn->phase == NBD_PHASE_CLOSED) {
        /* What was opened for a client that has gone is closed again with the rest. */
        if (code == 0 && !conn->hs->wish.info) {
            conn->export_open = true;
            conn->handle = export->handle;
        }
        nbd_maybe_idle(conn);
        return;
    }
    if (code == 0)
        opened(conn, export);
    else if (nbd_option_error_of(code) == NBD_REP_ERR_UNKNOWN)
        refuse_open(conn, NBD_REP_ERR_UNKNOWN, "no such export");
    else
        refuse_open(conn, nbd_option_error_of(code), text ? text : thin_strerror(code));
    nbd_wake(conn);
}
