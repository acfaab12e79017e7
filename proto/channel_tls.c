/*
 * TLS policy: what is loaded, offered and accepted, who the peer is, and what went
 * wrong in words. The bytes are in channel.c.
 */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>

#include "core/base/cleanup.h"
#include "proto/channel_private.h"

#define READ_BUFFER_BYTES (64u << 10) /* several records by one recv; freed when empty */

/* ---- words ------------------------------------------------------------------------- */

/* What OpenSSL calls by the names of the alerts, in the words of an administrator. */
static const char *
friendly_reason(unsigned long code)
{
    if (ERR_GET_LIB(code) != ERR_LIB_SSL)
        return NULL;
    switch (ERR_GET_REASON(code)) {
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
        return "the peer refused our certificate: it has expired";
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
        return "the peer refused our certificate: it is revoked";
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
        return "the peer refused our certificate";
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
        return "the peer refused our certificate: it does not know its issuer";
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
        return "the peer refused access";
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return "a certificate is needed and none was sent";
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_RECORD_TOO_SMALL:
        return "the peer does not speak TLS";
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_VERSION_TOO_LOW:
        return "no common TLS version";
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        return "the peer cut the connection off";
    default:
        return NULL;
    }
}

int
tls_fail(struct thin_error *err, const SSL *ssl, const char *what)
{
    unsigned long code = ERR_peek_error();
    long verify = ssl ? SSL_get_verify_result(ssl) : X509_V_OK;
    const char *words = friendly_reason(code);

    if (verify != X509_V_OK && ERR_GET_LIB(code) == ERR_LIB_SSL &&
        ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED) {
        thin_fail(err, -THIN_E_TLS, "%s: the peer's certificate: %s", what,
                  X509_verify_cert_error_string(verify));
        ERR_clear_error();
        return -THIN_E_TLS;
    }
    if (!words && code)
        words = ERR_reason_error_string(code);
    if (words)
        thin_fail(err, -THIN_E_TLS, "%s: %s", what, words);
    else if (code && ERR_GET_LIB(code) == ERR_LIB_SYS)
        thin_fail(err, -THIN_E_TLS, "%s: %s", what, strerror(ERR_GET_REASON(code)));
    else
        thin_fail(err, -THIN_E_TLS, "%s: no reason given", what);
    ERR_clear_error();
    return -THIN_E_TLS;
}

/* ---- who it is --------------------------------------------------------------------- */

/* Takes the name if it is one: a NUL or a blank inside could pass for another one. */
static bool
take_name(const unsigned char *bytes, int len, char ret[CHANNEL_IDENTITY_MAX])
{
    static const char kind[] = "cert:";
    size_t at = sizeof(kind) - 1;

    if (len <= 0 || (size_t)len >= CHANNEL_IDENTITY_MAX - at)
        return false;
    for (int i = 0; i < len; i++)
        if (bytes[i] <= ' ' || bytes[i] > '~')
            return false;
    memcpy(ret, kind, at);
    memcpy(ret + at, bytes, (size_t)len);
    ret[at + (size_t)len] = '\0';
    return true;
}

/* The first subject alternative name of a type that begins with `prefix`; -1: none. */
static int
find_alternative(const GENERAL_NAMES *names, int type, const char *prefix,
                 char ret[CHANNEL_IDENTITY_MAX])
{
    int prefix_len = (int)strlen(prefix);

    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        const unsigned char *bytes;
        int len;

        if (name->type != type)
            continue;
        bytes = ASN1_STRING_get0_data(name->d.ia5);
        len = ASN1_STRING_length(name->d.ia5);
        if (len < prefix_len || memcmp(bytes, prefix, (size_t)prefix_len) != 0)
            continue;
        return take_name(bytes + prefix_len, len - prefix_len, ret) ? 1 : 0;
    }
    return -1;
}

int
tls_certificate_identity(X509 *cert, char ret_identity[CHANNEL_IDENTITY_MAX],
                         struct thin_error *err)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    int found = -1;

    if (names) {
        found = find_alternative(names, GEN_URI, "thin:", ret_identity);
        if (found < 0)
            found = find_alternative(names, GEN_DNS, "", ret_identity);
        GENERAL_NAMES_free(names);
    }
    if (found < 0) {
        const X509_NAME *subject = X509_get_subject_name(cert);
        int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);

        if (at >= 0) {
            const ASN1_STRING *cn =
                X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));

            found = take_name(ASN1_STRING_get0_data(cn), ASN1_STRING_length(cn),
                              ret_identity);
        }
    }
    /* A name that is there and bad is not passed over for the next kind: two readers of
       the same certificate must not see two names. */
    if (found != 1)
        return thin_fail(err, -THIN_E_TLS,
                         "the peer's certificate holds no usable name (URI thin:NAME, "
                         "DNS name or CN)");
    return 0;
}

/* ---- a socket BIO that raises no signal -------------------------------------------- */

static int
bio_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

static int
bio_fd(BIO *bio)
{
    return (int)(intptr_t)BIO_get_data(bio);
}

static bool
try_again(int error)
{
    return error == EAGAIN || error == EINTR;
}

static int
bio_write(BIO *bio, const char *bytes, int len)
{
    ssize_t n = send(bio_fd(bio), bytes, (size_t)len, MSG_NOSIGNAL);

    BIO_clear_retry_flags(bio);
    if (n < 0 && try_again(errno))
        BIO_set_retry_write(bio);
    return (int)n;
}

static int
bio_read(BIO *bio, char *bytes, int len)
{
    ssize_t n = recv(bio_fd(bio), bytes, (size_t)len, 0);

    BIO_clear_retry_flags(bio);
    if (n < 0 && try_again(errno))
        BIO_set_retry_read(bio);
    if (n == 0)
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    return (int)n;
}

static long
bio_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
    (void)num;
    (void)ptr;
    switch (cmd) {
    case BIO_CTRL_FLUSH:
    case BIO_CTRL_DUP:
        return 1;
    case BIO_CTRL_EOF:
        return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
    default:
        return 0;
    }
}

static BIO_METHOD *
make_bio_method(void)
{
    BIO_METHOD *method =
        BIO_meth_new(BIO_TYPE_SOURCE_SINK | BIO_TYPE_DESCRIPTOR | BIO_get_new_index(),
                     "socket without signals");

    if (!method)
        return NULL;
    if (!BIO_meth_set_create(method, bio_create) ||
        !BIO_meth_set_write(method, bio_write) || !BIO_meth_set_read(method, bio_read) ||
        !BIO_meth_set_ctrl(method, bio_ctrl)) {
        BIO_meth_free(method);
        return NULL;
    }
    return method;
}

/* ---- the context ------------------------------------------------------------------- */

static bool
has_aes(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("aes") != 0;
#elif defined(__aarch64__)
    return (getauxval(AT_HWCAP) & (1u << 3)) != 0; /* HWCAP_AES */
#else
    return false;
#endif
}

/* The file's name and the reason. Where the file cannot even be read, that is the
   reason. */
static int
file_fail(struct thin_error *err, const char *what, const char *path)
{
    char words[256];
    AUTO_FILE FILE *f = NULL;

    f = fopen(path, "re");
    if (!f) {
        int code = -errno;

        ERR_clear_error();
        return thin_fail_code(err, code, "%s %s", what, path);
    }
    snprintf(words, sizeof(words), "%s %s", what, path);
    return tls_fail(err, NULL, words);
}

static int
load_files(struct channel_tls *tls, const struct channel_tls_params *params,
           struct thin_error *err)
{
    X509_STORE *store = SSL_CTX_get_cert_store(tls->ctx);

    if (SSL_CTX_use_certificate_chain_file(tls->ctx, params->cert) != 1)
        return file_fail(err, "certificate", params->cert);
    if (SSL_CTX_use_PrivateKey_file(tls->ctx, params->key, SSL_FILETYPE_PEM) != 1)
        return file_fail(err, "key", params->key);
    if (SSL_CTX_check_private_key(tls->ctx) != 1) {
        ERR_clear_error();
        return thin_fail(err, -THIN_E_TLS, "key %s does not belong to certificate %s",
                         params->key, params->cert);
    }
    if (X509_STORE_load_file(store, params->ca) != 1)
        return file_fail(err, "certificate authority", params->ca);
    if (params->crl) {
        X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());

        if (!lookup || X509_load_crl_file(lookup, params->crl, X509_FILETYPE_PEM) < 1)
            return file_fail(err, "revocation list", params->crl);
        X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
    }
    if (params->server) {
        STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(params->ca);

        if (!names)
            return file_fail(err, "certificate authority", params->ca);
        SSL_CTX_set_client_CA_list(tls->ctx, names); /* takes it */
    }
    return 0;
}

static int
set_policy(struct channel_tls *tls, const struct channel_tls_params *params,
           struct thin_error *err)
{
    SSL_CTX *ctx = tls->ctx;
    int oldest = params->allow_tls12 ? TLS1_2_VERSION : TLS1_3_VERSION;
    static const char with_aes[] =
        "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
    static const char without_aes[] =
        "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";

    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
                                 SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE |
                                 SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_read_ahead(ctx, 1);
    SSL_CTX_set_default_read_buffer_len(ctx, READ_BUFFER_BYTES);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    if (SSL_CTX_set_min_proto_version(ctx, oldest) != 1 ||
        SSL_CTX_set_num_tickets(ctx, 0) != 1 ||
        SSL_CTX_set_ciphersuites(ctx, has_aes() ? with_aes : without_aes) != 1 ||
        SSL_CTX_set1_groups_list(ctx, "X25519:P-256:P-384") != 1 ||
        (params->allow_tls12 &&
         SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20") != 1))
        return tls_fail(err, NULL, "set up TLS");
    return 0;
}

int
channel_tls_create(const struct channel_tls_params *params, struct channel_tls **ret,
                   struct thin_error *err)
{
    struct channel_tls *tls;
    int r;

    if (!params->cert || !params->key || !params->ca)
        return thin_fail(err, -THIN_E_INVALID,
                         "TLS needs a certificate, its key and a certificate authority");
    ERR_clear_error();
    tls = calloc(1, sizeof(*tls));
    if (!tls)
        return thin_fail_code(err, -ENOMEM, "set up TLS");
    atomic_init(&tls->refs, 1);
    tls->server = params->server;
    tls->ctx = SSL_CTX_new(params->server ? TLS_server_method() : TLS_client_method());
    tls->bio_method = make_bio_method();
    if (!tls->ctx || !tls->bio_method)
        r = tls_fail(err, NULL, "set up TLS");
    else
        r = set_policy(tls, params, err);
    if (r == 0)
        r = load_files(tls, params, err);
    if (r < 0) {
        channel_tls_put(tls);
        return r;
    }
    *ret = tls;
    return 0;
}

int
channel_tls_check_use(const struct channel_tls *tls, struct thin_error *err)
{
    int purpose = tls->server ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT;

    if (X509_check_purpose(SSL_CTX_get0_certificate(tls->ctx), purpose, 0) == 1)
        return 0;
    ERR_clear_error();
    return thin_fail(err, -THIN_E_TLS, "the certificate is not a %s's",
                     tls->server ? "server" : "client");
}

struct channel_tls *
channel_tls_get(struct channel_tls *tls)
{
    atomic_fetch_add_explicit(&tls->refs, 1, memory_order_relaxed);
    return tls;
}

void
channel_tls_put(struct channel_tls *tls)
{
    if (!tls || atomic_fetch_sub_explicit(&tls->refs, 1, memory_order_acq_rel) != 1)
        return;
    SSL_CTX_free(tls->ctx);
    BIO_meth_free(tls->bio_method);
    free(tls);
}
