/*
 * Non-blocking bytes to a peer: a plain descriptor or TLS on one. Knows no event loop:
 * it says what to wait for, the owner watches the descriptor and calls again. One
 * thread at a time; may move to another between calls. Raises no SIGPIPE.
 *
 * TLS policy: 1.3 only for our own protocol (NBD's STARTTLS also takes 1.2), both
 * sides with certificates, AES-GCM first where the processor has it, no session
 * tickets, no renegotiation; a key update after 2^22 records.
 */
#ifndef THIN_PROTO_CHANNEL_H
#define THIN_PROTO_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "core/base/error.h"

#define CHANNEL_WANT_READ    1u
#define CHANNEL_WANT_WRITE   2u
#define CHANNEL_IDENTITY_MAX 256u

/* Certificates and keys of one end; counted, so that a reload leaves open channels be. */
struct channel_tls;
struct channel_tls_params {
    const char *cert, *key, *ca, *crl; /* PEM files; crl may be NULL */
    bool server;
    bool allow_tls12; /* NBD */
};
/* -THIN_E_TLS / -errno, naming the file and the reason. Waits for the disk. */
int channel_tls_create(const struct channel_tls_params *params, struct channel_tls **ret,
                       struct thin_error *err);
/* -THIN_E_TLS if its certificate is not one for this end: then every peer refuses it, with
   words that do not tell why. */
int channel_tls_check_use(const struct channel_tls *tls, struct thin_error *err);
struct channel_tls *channel_tls_get(struct channel_tls *tls);
void channel_tls_put(struct channel_tls *tls);

struct channel;
/* Plain; takes `fd` (non-blocking) on success. -ENOMEM. */
int channel_plain_create(int fd, struct channel **ret);
/*
 * TLS on `fd`; takes it on success. `peer_name`: as client, the host name or address
 * that the server's certificate must hold. The handshake runs in channel_handshake.
 */
int channel_tls_start(struct channel_tls *tls, int fd, const char *peer_name,
                      struct channel **ret, struct thin_error *err);
/* Closes the descriptor (with a TLS close notify, if it goes out at once). NULL is
   fine. */
void channel_destroy(struct channel *channel);

int channel_fd(const struct channel *channel);

/* 0: ready. -EAGAIN: see channel_wants. Others: final, with words. */
int channel_handshake(struct channel *channel, struct thin_error *err);

/*
 * The peer's name after a TLS handshake, "cert:NAME": first URI SAN thin:NAME, else
 * first DNS SAN, else CN; printable ASCII without blanks. Empty on plain channels.
 */
const char *channel_identity(const struct channel *channel);

/*
 * Bytes read, 0 at the peer's orderly end, -EAGAIN, or final codes. Loops until the
 * buffer is full or nothing is left, so that no decrypted byte waits unseen.
 */
ssize_t channel_read(struct channel *channel, void *bytes, size_t len_bytes,
                     struct thin_error *err);

/*
 * Bytes taken (maybe fewer), -EAGAIN, or final codes. Small pieces are gathered into
 * few records. After -EAGAIN, or fewer than offered, the bytes that were not taken must
 * be offered again, first and unchanged in length; more may follow them. (TLS may hold
 * them encrypted already.)
 */
ssize_t channel_writev(struct channel *channel, const struct iovec *iov, unsigned nr_iov,
                       struct thin_error *err);

/* What the last -EAGAINs of handshake, read and write wait for: CHANNEL_WANT_ bits. A TLS
   read may want to write. Each call that gets on takes its own wish back. */
unsigned channel_wants(const struct channel *channel);
/* True if a read might give bytes without the descriptor being ready: read once more
   before waiting. Never true after a read that said -EAGAIN. */
bool channel_pending(const struct channel *channel);

#endif
