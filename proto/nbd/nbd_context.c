/* LIST_META_CONTEXT and SET_META_CONTEXT: which contexts a block status speaks of. */
#include "proto/nbd/nbd_private.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"

/* No context is chosen. */
void
nbd_contexts_forget(struct nbd_conn *conn)
{
    conn->nr_contexts = 0;
    free(conn->hs->contexts_for);
    conn->hs->contexts_for = NULL;
    conn->hs->contexts_for_len = 0;
}

struct cursor {
    const uint8_t *p;
    size_t left;
};

/* A 32-bit length. */
static bool
take_u32(struct cursor *c, uint32_t *ret)
{
    if (c->left < 4)
        return false;
    *ret = load_be32(c->p);
    c->p += 4;
    c->left -= 4;
    return true;
}

/* A length and so many bytes. */
static bool
take_bytes(struct cursor *c, const uint8_t **ret_bytes, uint32_t *ret_len)
{
    uint32_t len;

    if (!take_u32(c, &len) || len > c->left)
        return false;
    *ret_bytes = c->p;
    *ret_len = len;
    c->p += len;
    c->left -= len;
    return true;
}

/* Fills the wish out of the option's data; 0, or the option error with its text. */
static uint32_t
parse(struct nbd_handshake *hs, const char **ret_text)
{
    struct nbd_context_wish *wish = &hs->contexts_wish;
    struct cursor c = {hs->option_data, hs->option_len};
    const uint8_t *name, *text;
    uint32_t name_len, nr, len, i;

    *ret_text = "lengths do not fit the option's length";
    if (!take_bytes(&c, &name, &name_len) || !take_u32(&c, &nr) || nr > c.left / 4)
        return NBD_REP_ERR_INVALID;
    for (i = 0; i < nr; i++) {
        if (!take_bytes(&c, &text, &len))
            return NBD_REP_ERR_INVALID;
        if (i < NBD_MAX_QUERIES)
            hs->queries[i] = (struct nbd_query){(const char *)text, len};
    }
    if (c.left > 0)
        return NBD_REP_ERR_INVALID;
    if (nr > NBD_MAX_QUERIES) {
        *ret_text = "too many queries in one option";
        return NBD_REP_ERR_TOO_BIG;
    }
    if (!nbd_name_valid(name, name_len)) {
        *ret_text = "export name is not valid UTF-8 of at most 4096 bytes";
        return NBD_REP_ERR_INVALID;
    }
    wish->name = (const char *)name;
    wish->name_len = name_len;
    wish->queries = hs->queries;
    wish->nr_queries = nr;
    return 0;
}

static void
answer(struct nbd_conn *conn, uint32_t type, const char *text)
{
    if (type == NBD_REP_ACK)
        nbd_option_reply(conn, type, NULL, 0);
    else
        nbd_option_error(conn, type, text);
    nbd_option_next(conn);
}

static bool
remember_export(struct nbd_handshake *hs)
{
    hs->contexts_for = malloc(hs->contexts_wish.name_len + 1);
    if (!hs->contexts_for)
        return false;
    memcpy(hs->contexts_for, hs->contexts_wish.name, hs->contexts_wish.name_len);
    hs->contexts_for[hs->contexts_wish.name_len] = 0;
    hs->contexts_for_len = hs->contexts_wish.name_len;
    return true;
}

void
nbd_option_contexts(struct nbd_conn *conn, bool list)
{
    struct nbd_handshake *hs = conn->hs;
    const char *text = "structured replies must be chosen first";
    uint32_t type = NBD_REP_ERR_INVALID;

    if (!list) /* also when this fails */
        nbd_contexts_forget(conn);
    if (conn->structured)
        type = parse(hs, &text);
    if (type != 0) {
        answer(conn, type, text);
        return;
    }
    hs->contexts_wish.list = list;
    if (!conn->config.ops->contexts || (!list && hs->contexts_wish.nr_queries == 0)) {
        answer(conn, NBD_REP_ACK, NULL);
        return;
    }
    if (!list && !remember_export(hs)) {
        answer(conn, NBD_REP_ERR_PLATFORM, "server is out of memory");
        return;
    }
    /* The number of queries behind the name is read: its first byte may become the NUL. */
    hs->option_data[4 + hs->contexts_wish.name_len] = 0;
    conn->wait = NBD_WAIT_CONTEXTS;
    conn->config.ops->contexts(conn->config.arg, conn, &hs->contexts_wish);
}

bool
nbd_context_wanted(const struct nbd_context_wish *wish, const char *name)
{
    const size_t name_len = strlen(name);
    unsigned i;

    if (wish->nr_queries == 0)
        return wish->list;
    for (i = 0; i < wish->nr_queries; i++) {
        const struct nbd_query *q = &wish->queries[i];

        if (q->len == name_len && memcmp(q->text, name, name_len) == 0)
            return true;
        if (wish->list && q->len > 0 && q->len < name_len && q->text[q->len - 1] == ':' &&
            memcmp(q->text, name, q->len) == 0)
            return true;
    }
    return false;
}

bool
nbd_context_found(struct nbd_conn *conn, const char *name, uint64_t id)
{
    const size_t name_len = strlen(name);
    uint8_t bytes[4 + NBD_NAME_MAX];
    uint32_t wire_id = 0; /* means nothing in a LIST */
    unsigned i;

    THIN_ASSERT(conn->wait == NBD_WAIT_CONTEXTS);
    if (conn->phase != NBD_PHASE_HANDSHAKE || name_len > NBD_NAME_MAX)
        return false;
    if (!conn->hs->contexts_wish.list) {
        for (i = 0; i < conn->nr_contexts; i++)
            if (conn->contexts[i] == id)
                return true;
        if (conn->nr_contexts == NBD_MAX_CONTEXTS)
            return false;
        conn->contexts[conn->nr_contexts++] = id;
        wire_id = conn->nr_contexts;
    } else if (conn->out_len >= NBD_HANDSHAKE_OUT_MAX / 2) {
        return false;
    }
    store_be32(bytes, wire_id);
    /* No NUL on the wire. NOLINTNEXTLINE(bugprone-not-null-terminated-result) */
    memcpy(bytes + 4, name, name_len);
    return nbd_option_reply(conn, NBD_REP_META_CONTEXT, bytes, 4 + name_len);
}

void
nbd_contexts_done(struct nbd_conn *conn, int code)
{
    THIN_ASSERT(conn->wait == NBD_WAIT_CONTEXTS);
    conn->wait = NBD_WAIT_NONE;
    if (conn->phase == NBD_PHASE_CLOSED) {
        nbd_maybe_idle(conn);
        return;
    }
    if (code < 0) {
        if (!conn->hs->contexts_wish.list)
            nbd_contexts_forget(conn);
        answer(conn, nbd_option_error_of(code), "no such export");
    } else {
        answer(conn, NBD_REP_ACK, NULL);
    }
    nbd_wake(conn);
}
