/*
 * A small certificate authority: what `thincli pki` needs, so that mutual TLS takes one
 * command each. Keys are EC P-256; certificates have what OpenSSL and GnuTLS (libnbd,
 * QEMU) demand. Waits for the disk; any thread; a folder's calls exclude one another,
 * also between processes. Files appear whole or not at all, and are durable when the
 * call returns; keys are readable by their owner only from the first moment.
 *
 *   DIR/ca/ca-cert.pem  ca-key.pem  ca-crl.pem  index.txt
 *   OUT/ca-cert.pem  client-cert.pem  client-key.pem   (or server-...)
 *
 * A client's name stands in its certificate as URI "thin:NAME" and as CN, which is what
 * channel_identity reads.
 */
#ifndef THIN_PROTO_PKI_H
#define THIN_PROTO_PKI_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

#define PKI_DAYS_DEFAULT 825u
#define PKI_DAYS_MAX     3650u /* the authority's own life */
#define PKI_HOSTS_MAX    32u /* in one certificate, beside those that are always there */
#define PKI_NAME_MAX     127u
#define PKI_SERIAL_TEXT  41u /* hexadecimal, with the NUL */

/*
 * Makes an authority in DIR/ca (folders are made as needed), with an empty revocation
 * list. -THIN_E_EXISTS when there is one already: it is left alone.
 */
int pki_init(const char *dir, struct thin_error *err);

struct pki_issue_params {
    const char *name; /* alphabet of core/base/name.h */
    bool server;      /* else a client */
    /*
     * Further names and addresses of a server: its certificate always holds localhost,
     * 127.0.0.1, ::1 and this machine's name, and NAME itself where it can be a host's.
     */
    const char *const *hosts;
    unsigned nr_hosts;
    unsigned days;   /* 0: PKI_DAYS_DEFAULT; never beyond the authority's own end */
    const char *out; /* NULL: DIR/NAME */
};

/*
 * Issues a certificate with a key of its own and writes the files that libnbd, QEMU and
 * nbdkit take as they are; files of an earlier issue to the same name are replaced (the
 * earlier certificate stays valid until it ends or is revoked). -THIN_E_NOT_FOUND: no
 * authority in DIR; -THIN_E_INVALID: a name or host that is none; -THIN_E_EXISTS: OUT
 * belongs to another authority.
 */
int pki_issue(const char *dir, const struct pki_issue_params *params,
              struct thin_error *err);

/*
 * Revokes every certificate of that name and writes DIR/ca/ca-crl.pem anew; servers
 * read it again when they reload. -THIN_E_NOT_FOUND: no valid one has that name.
 */
int pki_revoke(const char *dir, const char *name, unsigned *ret_nr,
               struct thin_error *err);

struct pki_entry {
    char serial[PKI_SERIAL_TEXT];
    char name[PKI_NAME_MAX + 1];
    bool server;
    int64_t issued, expires; /* Unix seconds */
    int64_t revoked;         /* 0: not */
};

/*
 * Calls `each` for every certificate ever issued, oldest first; a negative answer stops
 * and is returned. `ret_ca_expires` may be NULL.
 */
int pki_show(const char *dir, int (*each)(void *arg, const struct pki_entry *entry),
             void *arg, int64_t *ret_ca_expires, struct thin_error *err);

#endif
