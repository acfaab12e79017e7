/* Shared by channel.c and channel_tls.c only. */
#ifndef THIN_PROTO_CHANNEL_PRIVATE_H
#define THIN_PROTO_CHANNEL_PRIVATE_H

#include <openssl/ssl.h>
#include <stdatomic.h>

#include "proto/channel.h"

struct channel_tls {
    atomic_uint refs;
    SSL_CTX *ctx;
    BIO_METHOD *bio_method; /* a socket's, sending with MSG_NOSIGNAL */
    bool server;
};

/*
 * "cert:NAME" out of a certificate, as channel_identity promises. -THIN_E_TLS when it
 * holds no usable name.
 */
int tls_certificate_identity(X509 *cert, char ret_identity[CHANNEL_IDENTITY_MAX],
                             struct thin_error *err);

/*
 * One clear line out of OpenSSL's queue of errors, which it empties. `ssl` may be NULL;
 * its verify result, if bad, says more than the queue. Returns -THIN_E_TLS.
 */
int tls_fail(struct thin_error *err, const SSL *ssl, const char *what);

#endif
