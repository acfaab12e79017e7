#include "proto/channel.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "proto/channel_private.h"

#define RECORD_BYTES     16384u     /* of plain text in one TLS record */
#define RECORDS_PER_KEY  (1u << 22) /* then the sending key is renewed */
#define PLAIN_PIECES_MAX 1024u      /* IOV_MAX: pieces of one sendmsg */

/*
 * handshake -> open -> ended. Once a call has failed for good, each later one fails
 * alike; a failure found after some bytes were read waits for the next read.
 */
struct channel {
    int fd;
    SSL *ssl; /* NULL: plain */
    struct channel_tls *tls;
    bool open;    /* the handshake is done (plain: from the beginning) */
    bool drained; /* the last read met the end of what was there */
    bool ended;   /* orderly end by the peer */
    unsigned read_wants, write_wants;
    uint32_t records; /* sent with the present key */
    int failed;       /* 0, or the final code; `words` belong to it */
    char identity[CHANNEL_IDENTITY_MAX];
    struct thin_error words;
};

/* ---- life -------------------------------------------------------------------------- */

int
channel_plain_create(int fd, struct channel **ret)
{
    struct channel *channel = calloc(1, sizeof(*channel));

    if (!channel)
        return -ENOMEM;
    channel->fd = fd;
    channel->open = true;
    *ret = channel;
    return 0;
}

/* What the server's certificate must hold: an address where one was dialled, else a
   name. */
static int
expect_peer(SSL *ssl, const char *peer_name, struct thin_error *err)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(ssl);
    char host[256];

    /* fe80::1%eth0 is in certificates without its zone. */
    snprintf(host, sizeof(host), "%s", peer_name);
    if (strchr(host, ':'))
        host[strcspn(host, "%")] = '\0';
    if (X509_VERIFY_PARAM_set1_ip_asc(param, host) == 1)
        return 0;
    ERR_clear_error();
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (strlen(peer_name) >= sizeof(host) ||
        X509_VERIFY_PARAM_set1_host(param, host, 0) != 1 ||
        SSL_set_tlsext_host_name(ssl, host) != 1)
        return tls_fail(err, NULL, "set the server's name");
    return 0;
}

int
channel_tls_start(struct channel_tls *tls, int fd, const char *peer_name,
                  struct channel **ret, struct thin_error *err)
{
    struct channel *channel = calloc(1, sizeof(*channel));
    BIO *bio = NULL;
    int r = 0;

    if (!channel)
        return thin_fail_code(err, -ENOMEM, "start TLS");
    ERR_clear_error();
    channel->fd = -1; /* taken only at the end */
    channel->tls = channel_tls_get(tls);
    channel->ssl = SSL_new(tls->ctx);
    bio = BIO_new(tls->bio_method);
    if (!channel->ssl || !bio)
        r = tls_fail(err, NULL, "start TLS");
    if (r == 0 && !tls->server) {
        /* A client that does not say whom it means would talk to anyone certified. */
        if (!peer_name || !*peer_name)
            r = thin_fail(err, -THIN_E_INVALID, "TLS needs the server's name");
        else
            r = expect_peer(channel->ssl, peer_name, err);
    }
    if (r < 0) {
        BIO_free(bio);
        channel_destroy(channel);
        return r;
    }
    BIO_set_data(bio, (void *)(intptr_t)fd);
    SSL_set_bio(channel->ssl, bio, bio); /* takes it */
    if (tls->server)
        SSL_set_accept_state(channel->ssl);
    else
        SSL_set_connect_state(channel->ssl);
    channel->fd = fd;
    *ret = channel;
    return 0;
}

void
channel_destroy(struct channel *channel)
{
    if (!channel)
        return;
    if (channel->ssl && channel->open && !channel->failed) {
        ERR_clear_error();
        (void)SSL_shutdown(channel->ssl); /* one try; the peer sees the end either way */
        ERR_clear_error();
    }
    SSL_free(channel->ssl);
    channel_tls_put(channel->tls);
    if (channel->fd >= 0)
        close(channel->fd);
    free(channel);
}

int
channel_fd(const struct channel *channel)
{
    return channel->fd;
}

const char *
channel_identity(const struct channel *channel)
{
    return channel->identity;
}

unsigned
channel_wants(const struct channel *channel)
{
    return channel->read_wants | channel->write_wants;
}

bool
channel_pending(const struct channel *channel)
{
    if (!channel->ssl || !channel->open || channel->drained)
        return false;
    return channel->failed || channel->ended || SSL_has_pending(channel->ssl);
}

/* ---- failing ----------------------------------------------------------------------- */

/* Final: every later call says the same. */
static int
fail_for_good(struct channel *channel, int code)
{
    channel->failed = code;
    channel->read_wants = channel->write_wants = 0;
    return code;
}

static int
failed_before(const struct channel *channel, struct thin_error *err)
{
    if (err)
        *err = channel->words;
    return channel->failed;
}

/* The outcome of a TLS call that did not get on: -EAGAIN with wants, 0 at the end, or
   final. */
static int
tls_outcome(struct channel *channel, int ret, const char *what, unsigned *wants)
{
    int saved = errno;

    switch (SSL_get_error(channel->ssl, ret)) {
    case SSL_ERROR_WANT_READ:
        *wants = CHANNEL_WANT_READ;
        return -EAGAIN;
    case SSL_ERROR_WANT_WRITE:
        *wants = CHANNEL_WANT_WRITE;
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SYSCALL:
        if (ERR_peek_error() == 0) {
            /* EPIPE and ECONNRESET among them. */
            int code = saved ? -saved : -THIN_E_DISCONNECTED;

            return fail_for_good(channel,
                                 thin_fail_code(&channel->words, code, "%s", what));
        }
        break;
    default:
        break;
    }
    return fail_for_good(channel, tls_fail(&channel->words, channel->ssl, what));
}

/* ---- handshake --------------------------------------------------------------------- */

int
channel_handshake(struct channel *channel, struct thin_error *err)
{
    X509 *cert;
    int r;

    if (channel->failed)
        return failed_before(channel, err);
    if (channel->open)
        return 0;
    ERR_clear_error();
    errno = 0;
    channel->read_wants = 0;
    r = SSL_do_handshake(channel->ssl);
    if (r != 1) {
        r = tls_outcome(channel, r, "TLS handshake", &channel->read_wants);
        if (r == -EAGAIN)
            return r;
        if (r == 0)
            fail_for_good(channel, thin_fail(&channel->words, -THIN_E_DISCONNECTED,
                                             "TLS handshake: the peer went away"));
        return failed_before(channel, err);
    }
    cert = SSL_get0_peer_certificate(channel->ssl);
    if (!cert)
        r = thin_fail(&channel->words, -THIN_E_TLS,
                      "TLS handshake: a certificate is needed and none was sent");
    else
        r = tls_certificate_identity(cert, channel->identity, &channel->words);
    /* A server may be known by wildcards or odd names: the host name was checked. */
    if (r < 0 && !channel->tls->server && cert)
        r = 0;
    if (r < 0) {
        fail_for_good(channel, r);
        return failed_before(channel, err);
    }
    thin_error_init(&channel->words);
    channel->open = true;
    return 0;
}

/* ---- reading ----------------------------------------------------------------------- */

static ssize_t
plain_read(struct channel *channel, uint8_t *bytes, size_t len, struct thin_error *err)
{
    size_t got = 0;

    while (got < len) {
        ssize_t n = recv(channel->fd, bytes + got, len - got, 0);

        if (n > 0) {
            got += (size_t)n;
            /* A short answer means that nothing is left; saves a call that says so. */
            if (got < len)
                break;
            continue;
        }
        if (n == 0) {
            if (got == 0)
                channel->ended = true;
            break;
        }
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN) {
            if (got > 0)
                break;
            channel->read_wants = CHANNEL_WANT_READ;
            return -EAGAIN;
        }
        if (got > 0)
            break; /* met again by the next read */
        fail_for_good(channel, thin_fail_code(&channel->words, -errno, "receive"));
        return failed_before(channel, err);
    }
    return (ssize_t)got;
}

static ssize_t
tls_read(struct channel *channel, uint8_t *bytes, size_t len, struct thin_error *err)
{
    size_t got = 0;
    int r = 1;

    channel->drained = false;
    while (got < len) {
        size_t n = 0;

        ERR_clear_error();
        errno = 0;
        r = SSL_read_ex(channel->ssl, bytes + got, len - got, &n);
        if (r != 1) {
            r = tls_outcome(channel, r, "receive", &channel->read_wants);
            break;
        }
        got += n;
    }
    if (r == -EAGAIN)
        channel->drained = true;
    if (r == 0)
        channel->ended = true;
    if (got > 0) {
        /* What ended the loop is told by the next read. */
        return (ssize_t)got;
    }
    if (r < 0 && r != -EAGAIN)
        return failed_before(channel, err);
    return r;
}

ssize_t
channel_read(struct channel *channel, void *bytes, size_t len_bytes,
             struct thin_error *err)
{
    THIN_ASSERT(channel->open || channel->failed);
    if (channel->failed) {
        channel->drained = true;
        return failed_before(channel, err);
    }
    if (len_bytes == 0)
        return 0;
    if (channel->ended) {
        channel->drained = true;
        return 0;
    }
    channel->read_wants = 0;
    return channel->ssl ? tls_read(channel, bytes, len_bytes, err)
                        : plain_read(channel, bytes, len_bytes, err);
}

/* ---- writing ----------------------------------------------------------------------- */

static ssize_t
plain_writev(struct channel *channel, const struct iovec *iov, unsigned nr_iov,
             struct thin_error *err)
{
    struct msghdr msg = {
        .msg_iov = (struct iovec *)(uintptr_t)iov, /* sendmsg only reads it */
        .msg_iovlen = nr_iov < PLAIN_PIECES_MAX ? nr_iov : PLAIN_PIECES_MAX,
    };

    for (;;) {
        ssize_t n = sendmsg(channel->fd, &msg, MSG_NOSIGNAL);

        if (n >= 0)
            return n;
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN) {
            channel->write_wants = CHANNEL_WANT_WRITE;
            return -EAGAIN;
        }
        fail_for_good(channel, thin_fail_code(&channel->words, -errno, "send"));
        return failed_before(channel, err);
    }
}

/* Where the next byte to send is. */
struct gather {
    const struct iovec *iov;
    unsigned nr_iov;
    size_t skip; /* of iov[0] */
};

static void
gather_advance(struct gather *g, size_t n)
{
    while (g->nr_iov > 0 && n >= g->iov->iov_len - g->skip) {
        n -= g->iov->iov_len - g->skip;
        g->iov++;
        g->nr_iov--;
        g->skip = 0;
    }
    g->skip += n;
}

/*
 * Up to one record's bytes, in one piece: the caller's own where the first piece is
 * long enough or the only one left, else copied to `room`. Since the same bytes are
 * offered after -EAGAIN, it is never shorter then than before, as OpenSSL demands.
 */
static const void *
gather_record(const struct gather *g, uint8_t room[RECORD_BYTES], size_t *ret_len)
{
    size_t first = g->iov->iov_len - g->skip;
    size_t len = 0;

    if (first >= RECORD_BYTES || g->nr_iov == 1) {
        *ret_len = first < RECORD_BYTES ? first : RECORD_BYTES;
        return (const uint8_t *)g->iov->iov_base + g->skip;
    }
    for (unsigned i = 0; i < g->nr_iov && len < RECORD_BYTES; i++) {
        size_t skip = i == 0 ? g->skip : 0;
        size_t n = g->iov[i].iov_len - skip;

        if (n > RECORD_BYTES - len)
            n = RECORD_BYTES - len;
        if (n > 0)
            memcpy(room + len, (const uint8_t *)g->iov[i].iov_base + skip, n);
        len += n;
    }
    *ret_len = len;
    return room;
}

/* From here on: one record's worth of plain text is gathered on the stack. Loops have
   threads with stacks of megabytes; a buffer in each channel would be held by idle ones
   too. (Clang inlines it into the last function.) */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wframe-larger-than=" /* 16 KiB, see above */
static ssize_t
tls_writev(struct channel *channel, const struct iovec *iov, unsigned nr_iov,
           struct thin_error *err)
{
    struct gather g = {iov, nr_iov, 0};
    size_t sent = 0;
    int r = 0;

    gather_advance(&g, 0); /* over empty pieces */
    while (g.nr_iov > 0) {
        uint8_t room[RECORD_BYTES];
        size_t len, n = 0;
        const void *bytes = gather_record(&g, room, &len);

        ERR_clear_error();
        errno = 0;
        r = SSL_write_ex(channel->ssl, bytes, len, &n);
        if (r != 1) {
            r = tls_outcome(channel, r, "send", &channel->write_wants);
            break;
        }
        sent += n;
        gather_advance(&g, n);
        /* Only between records: a half sent one belongs to the old key. A failure to
           renew shows at the next write. */
        if (++channel->records >= RECORDS_PER_KEY &&
            SSL_version(channel->ssl) >= TLS1_3_VERSION) {
            channel->records = 0;
            (void)SSL_key_update(channel->ssl, SSL_KEY_UPDATE_NOT_REQUESTED);
        }
    }
    if (sent > 0 || g.nr_iov == 0)
        return (ssize_t)sent;
    if (r == 0) /* the peer has closed while we write */
        fail_for_good(channel, thin_fail(&channel->words, -THIN_E_DISCONNECTED,
                                         "send: the peer has closed the connection"));
    return r == -EAGAIN ? r : failed_before(channel, err);
}

ssize_t
channel_writev(struct channel *channel, const struct iovec *iov, unsigned nr_iov,
               struct thin_error *err)
{
    THIN_ASSERT(channel->open || channel->failed);
    if (channel->failed)
        return failed_before(channel, err);
    channel->write_wants = 0;
    if (nr_iov == 0)
        return 0;
    return channel->ssl ? tls_writev(channel, iov, nr_iov, err)
                        : plain_writev(channel, iov, nr_iov, err);
}
#pragma GCC diagnostic pop
