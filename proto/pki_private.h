/* Shared by pki.c (folders, files, the index) and pki_cert.c (what goes into them). */
#ifndef THIN_PROTO_PKI_PRIVATE_H
#define THIN_PROTO_PKI_PRIVATE_H

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "proto/pki.h"

struct pki_ca {
    X509 *cert;
    EVP_PKEY *key;
};

/* All: -THIN_E_TLS with OpenSSL's words, or what is said. The caller frees what it
   gets. */

int pki_make_ca(struct pki_ca *ret, struct thin_error *err);
void pki_ca_fini(struct pki_ca *ca);

/* -THIN_E_INVALID for hosts that are neither name nor address. Fills *ret_entry. */
int pki_make_cert(const struct pki_ca *ca, const struct pki_issue_params *params,
                  X509 **ret_cert, EVP_PKEY **ret_key, struct pki_entry *ret_entry,
                  struct thin_error *err);

/* A list of all entries that are revoked. `number` rises with each list. */
int pki_make_crl(const struct pki_ca *ca, const struct pki_entry *entries, size_t nr,
                 int64_t number, X509_CRL **ret, struct thin_error *err);

int64_t pki_expiry(const X509 *cert);

#endif
