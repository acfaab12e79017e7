/*
 * Options: framing, order and TLS rules. Each option is read to its end, whatever it is,
 * and answered exactly once; so both sides stay in step.
 */
#include "proto/nbd/nbd_private.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/checked.h"

void
nbd_client_flags(struct nbd_conn *conn)
{
    uint32_t flags = load_be32(conn->head);

    if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        nbd_drain(conn, "client set handshake flags that were not offered");
        return;
    }
    conn->fixed_newstyle = flags & NBD_FLAG_FIXED_NEWSTYLE;
    conn->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    conn->in_state = NBD_IN_OPTION_HEAD;
}

/* ---- replies ----------------------------------------------------------------------- */

bool
nbd_option_reply(struct nbd_conn *conn, uint32_t type, const void *bytes, size_t len)
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];

    store_be64(head, NBD_OPTION_REPLY_MAGIC);
    store_be32(head + 8, conn->hs->option);
    store_be32(head + 12, type);
    store_be32(head + 16, (uint32_t)len);
    return nbd_out_put(conn, head, sizeof(head)) &&
           (len == 0 || nbd_out_put(conn, bytes, len));
}

void
nbd_option_error(struct nbd_conn *conn, uint32_t type, const char *text)
{
    nbd_option_reply(conn, type, text, text ? strnlen(text, NBD_NAME_MAX) : 0);
}

/* An owner's refusal, so that "not yours" and "not there" look the same. */
uint32_t
nbd_option_error_of(int code)
{
    switch (-code) {
    case THIN_E_NOT_FOUND:
    case THIN_E_DENIED:
    case ENOENT:
    case EACCES:
        return NBD_REP_ERR_UNKNOWN;
    case THIN_E_SHUTDOWN:
    case ESHUTDOWN:
        return NBD_REP_ERR_SHUTDOWN;
    case THIN_E_LIMIT:
        return NBD_REP_ERR_TOO_BIG;
    case THIN_E_UNSUPPORTED:
        return NBD_REP_ERR_PLATFORM;
    case THIN_E_INVALID:
        return NBD_REP_ERR_INVALID;
    default:
        return NBD_REP_ERR_POLICY;
    }
}

/* ---- framing ----------------------------------------------------------------------- */

/* Ready for the next option. Harmless once the connection drains or wants TLS. */
void
nbd_option_next(struct nbd_conn *conn)
{
    free(conn->hs->option_data);
    conn->hs->option_data = NULL;
    if (conn->phase == NBD_PHASE_HANDSHAKE) {
        conn->in_state = NBD_IN_OPTION_HEAD;
        conn->head_have = 0;
    }
}

static bool
has_data_to_keep(uint32_t option)
{
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return true;
    default:
        return false;
    }
}

void
nbd_option_head(struct nbd_conn *conn)
{
    struct nbd_handshake *hs = conn->hs;

    if (load_be64(conn->head) != NBD_OPTION_MAGIC) {
        nbd_drain(conn, "wrong option magic");
        return;
    }
    hs->option = load_be32(conn->head + 8);
    hs->option_len = load_be32(conn->head + 12);
    hs->option_have = 0;
    if (!conn->fixed_newstyle && hs->option != NBD_OPT_EXPORT_NAME) {
        nbd_drain(conn, "option of a client that does not know fixed newstyle");
        return;
    }
    if (hs->option_len > conn->config.limits.option_bytes) {
        if (hs->option != NBD_OPT_EXPORT_NAME)
            nbd_option_error(conn, NBD_REP_ERR_TOO_BIG, "option data is too long");
        nbd_drain(conn, "option data is too long");
        return;
    }
    conn->in_state = NBD_IN_OPTION_SKIP;
    if (has_data_to_keep(hs->option)) {
        /* One byte more: the name gets its NUL behind it. */
        hs->option_data = malloc(hs->option_len + 1u);
        if (!hs->option_data) {
            nbd_drain(conn, "out of memory for option data");
            return;
        }
        conn->in_state = NBD_IN_OPTION_DATA;
    }
    if (hs->option_len == 0)
        nbd_option_complete(conn);
}

/* ---- options ----------------------------------------------------------------------- */

/* Rules that come before the option itself. True: it was answered. */
static bool
refused(struct nbd_conn *conn)
{
    const uint32_t option = conn->hs->option;
    const bool tls_missing = conn->config.tls == NBD_TLS_REQUIRED && !conn->tls_on &&
                             option != NBD_OPT_STARTTLS;

    if (option == NBD_OPT_ABORT || (!tls_missing && !conn->shutting_down))
        return false;
    if (option == NBD_OPT_EXPORT_NAME) /* it has no way to say no */
        nbd_drain(conn, tls_missing ? "export wanted without TLS" : "shutting down");
    else if (tls_missing)
        nbd_option_error(conn, NBD_REP_ERR_TLS_REQD, "TLS is required");
    else
        nbd_option_error(conn, NBD_REP_ERR_SHUTDOWN, "server is shutting down");
    return true;
}

static void
starttls(struct nbd_conn *conn)
{
    if (conn->config.tls == NBD_TLS_OFF) {
        nbd_option_error(conn, NBD_REP_ERR_UNSUP, "TLS is not configured");
        return;
    }
    if (conn->tls_on || conn->hs->option_len > 0) {
        nbd_option_error(conn, NBD_REP_ERR_INVALID,
                         conn->tls_on ? "TLS runs already" : "STARTTLS takes no data");
        return;
    }
    if (!nbd_option_reply(conn, NBD_REP_ACK, NULL, 0))
        return;
    /*
     * What the peer, or somebody between, sent behind the option is thrown away: taken
     * after the TLS handshake it would look as if it came from inside.
     */
    conn->phase = NBD_PHASE_WANT_TLS;
    conn->in_state = NBD_IN_STOPPED;
}

/* STRUCTURED_REPLY and EXTENDED_HEADERS: saying it again changes nothing. */
static void
reply_style(struct nbd_conn *conn, bool extended)
{
    if (conn->hs->option_len > 0) {
        nbd_option_error(conn, NBD_REP_ERR_INVALID, "option takes no data");
        return;
    }
    if (conn->extended && !extended) {
        nbd_option_error(conn, NBD_REP_ERR_EXT_HEADER_REQD,
                         "extended headers were chosen before");
        return;
    }
    conn->structured = true;
    conn->extended = conn->extended || extended;
    nbd_option_reply(conn, NBD_REP_ACK, NULL, 0);
}

void
nbd_option_complete(struct nbd_conn *conn)
{
    struct nbd_handshake *hs = conn->hs;

    /* Those that ask the owner leave this state by his answer, perhaps before they return. */
    conn->in_state = NBD_IN_WAIT_ANSWER;
    if (refused(conn)) {
        nbd_option_next(conn);
        return;
    }
    switch (hs->option) {
    case NBD_OPT_EXPORT_NAME:
        nbd_option_export_name(conn);
        return;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        nbd_option_info(conn, hs->option == NBD_OPT_GO);
        return;
    case NBD_OPT_LIST:
        nbd_option_list(conn);
        return;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        nbd_option_contexts(conn, hs->option == NBD_OPT_LIST_META_CONTEXT);
        return;
    case NBD_OPT_ABORT:
        nbd_option_reply(conn, NBD_REP_ACK, NULL, 0);
        nbd_drain(conn, NULL);
        break;
    case NBD_OPT_STARTTLS:
        starttls(conn);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS:
        reply_style(conn, hs->option == NBD_OPT_EXTENDED_HEADERS);
        break;
    default:
        nbd_option_error(conn, NBD_REP_ERR_UNSUP, "option is not supported");
        break;
    }
    nbd_option_next(conn);
}

/* Length of the UTF-8 sequence at `p`, 0 if it is none (also overlong, surrogate, NUL). */
static size_t
utf8_sequence(const uint8_t *p, size_t len)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t c;
    size_t n, i;

    if (p[0] < 0x80)
        return p[0] != 0;
    if (p[0] >= 0xc2 && p[0] < 0xe0)
        n = 2;
    else if (p[0] >= 0xe0 && p[0] < 0xf0)
        n = 3;
    else if (p[0] >= 0xf0 && p[0] < 0xf5)
        n = 4;
    else
        return 0;
    if (n > len)
        return 0;
    c = p[0] & (0x7fu >> n);
    for (i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3fu);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return 0;
    return n;
}

/* A name as the protocol has it: UTF-8, no NUL, not too long. */
bool
nbd_name_valid(const uint8_t *name, size_t len)
{
    size_t i = 0, n;

    if (len > NBD_NAME_MAX)
        return false;
    while (i < len) {
        n = utf8_sequence(name + i, len - i);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

void
nbd_handshake_free(struct nbd_conn *conn)
{
    if (!conn->hs)
        return;
    free(conn->hs->option_data);
    free(conn->hs->list_after);
    free(conn->hs->contexts_for);
    free(conn->hs);
    conn->hs = NULL;
}
