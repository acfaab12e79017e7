#include <arpa/inet.h>
#include <errno.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/name.h"
#include "core/base/random.h"
#include "proto/channel_private.h"
#include "proto/pki_private.h"

#define SERIAL_BYTES    16
#define SECONDS_PER_DAY 86400
#define CLOCK_SKEW_S    300 /* certificates are valid a little before they are made */
#define CN_MAX          64  /* of X.509 */
#define ALTERNATIVES    (PKI_HOSTS_MAX * 260u + 1024u) /* text of subjectAltName */

static int
pki_fail(struct thin_error *err, const char *what)
{
    return tls_fail(err, NULL, what);
}

void
pki_ca_fini(struct pki_ca *ca)
{
    X509_free(ca->cert);
    EVP_PKEY_free(ca->key);
    ca->cert = NULL;
    ca->key = NULL;
}

int64_t
pki_expiry(const X509 *cert)
{
    struct tm tm = {0};

    if (ASN1_TIME_to_tm(X509_get0_notAfter(cert), &tm) != 1)
        return 0;
    return timegm(&tm);
}

/* ---- pieces ------------------------------------------------------------------------ */

static int
set_serial(X509 *cert, char ret_text[PKI_SERIAL_TEXT], struct thin_error *err)
{
    unsigned char bytes[SERIAL_BYTES];
    BIGNUM *number;
    bool ok;
    int r = random_secret(bytes, sizeof(bytes));

    if (r < 0)
        return thin_fail_code(err, r, "draw a serial number");
    bytes[0] = (unsigned char)((bytes[0] & 0x7f) | 0x40); /* positive, of full length */
    number = BN_bin2bn(bytes, sizeof(bytes), NULL);
    ok = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
    BN_free(number);
    if (!ok)
        return pki_fail(err, "set the serial number");
    for (size_t i = 0; i < sizeof(bytes); i++)
        snprintf(ret_text + 2 * i, 3, "%02x", bytes[i]);
    return 0;
}

static int
add_extension(X509 *cert, X509V3_CTX *ctx, int nid, const char *value,
              struct thin_error *err)
{
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, ctx, nid, value);
    bool ok = ext && X509_add_ext(cert, ext, -1) == 1;

    X509_EXTENSION_free(ext);
    return ok ? 0 : pki_fail(err, OBJ_nid2ln(nid));
}

struct extension {
    int nid;
    const char *value;
};

static int
add_extensions(X509 *cert, X509 *issuer, const struct extension *list, size_t nr,
               struct thin_error *err)
{
    X509V3_CTX ctx;
    int r = 0;

    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    for (size_t i = 0; r == 0 && i < nr; i++)
        if (list[i].value)
            r = add_extension(cert, &ctx, list[i].nid, list[i].value, err);
    return r;
}

/* Version, serial, names, dates and key; extensions and signature are still to come. */
static int
fill_cert(X509 *cert, const char *cn, const X509_NAME *issuer, EVP_PKEY *key,
          int64_t begin, int64_t end, char ret_serial[PKI_SERIAL_TEXT],
          struct thin_error *err)
{
    X509_NAME *subject = X509_get_subject_name(cert);
    int r = set_serial(cert, ret_serial, err);

    if (r < 0)
        return r;
    if (X509_set_version(cert, X509_VERSION_3) != 1 ||
        !ASN1_TIME_set(X509_getm_notBefore(cert), begin) ||
        !ASN1_TIME_set(X509_getm_notAfter(cert), end) ||
        X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_ASC,
                                   (const unsigned char *)"thinsrv", -1, -1, 0) != 1 ||
        X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)cn,
                                   -1, -1, 0) != 1 ||
        X509_set_issuer_name(cert, issuer ? issuer : subject) != 1 ||
        X509_set_pubkey(cert, key) != 1)
        return pki_fail(err, "fill in the certificate");
    return 0;
}

/* ---- the authority ----------------------------------------------------------------- */

int
pki_make_ca(struct pki_ca *ret, struct thin_error *err)
{
    static const struct extension extensions[] = {
        {NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
        {NID_key_usage, "critical,keyCertSign,cRLSign"},
        {NID_subject_key_identifier, "hash"},
    };
    struct pki_ca ca = {X509_new(), EVP_EC_gen("P-256")};
    char serial[PKI_SERIAL_TEXT], host[40] = "", cn[CN_MAX + 1];
    int64_t now = time(NULL);
    int r;

    if (!ca.cert || !ca.key) {
        r = pki_fail(err, "make a key");
        pki_ca_fini(&ca);
        return r;
    }
    (void)gethostname(host, sizeof(host) - 1);
    /* Two authorities must not have one name: verifiers look issuers up by it. */
    r = random_secret(serial, 4);
    if (r < 0)
        r = thin_fail_code(err, r, "draw a name");
    snprintf(cn, sizeof(cn), "thinsrv CA %s %02x%02x%02x%02x", host, serial[0] & 0xff,
             serial[1] & 0xff, serial[2] & 0xff, serial[3] & 0xff);
    if (r == 0)
        r = fill_cert(ca.cert, cn, NULL, ca.key, now - CLOCK_SKEW_S,
                      now + (int64_t)PKI_DAYS_MAX * SECONDS_PER_DAY, serial, err);
    if (r == 0)
        r = add_extensions(ca.cert, ca.cert, extensions,
                           sizeof(extensions) / sizeof(extensions[0]), err);
    if (r == 0 && X509_sign(ca.cert, ca.key, EVP_sha256()) == 0)
        r = pki_fail(err, "sign the certificate");
    if (r < 0) {
        pki_ca_fini(&ca);
        return r;
    }
    *ret = ca;
    return 0;
}

/* ---- certificates ------------------------------------------------------------------ */

static bool
is_address(const char *text)
{
    unsigned char bytes[16];

    return inet_pton(AF_INET, text, bytes) == 1 || inet_pton(AF_INET6, text, bytes) == 1;
}

/* A DNS name: labels of letters, digits and inner hyphens; "*." may stand in front. */
static bool
is_host_name(const char *text)
{
    size_t label = 0;
    size_t len = strlen(text);

    if (len == 0 || len > 253)
        return false;
    if (strncmp(text, "*.", 2) == 0)
        text += 2;
    for (const char *p = text;; p++) {
        bool alnum = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
                     (*p >= '0' && *p <= '9');

        if (*p == '.' || *p == '\0') {
            if (label == 0 || label > 63 || p[-1] == '-')
                return false;
            label = 0;
            if (*p == '\0')
                return true;
        } else if (alnum || (*p == '-' && label > 0)) {
            label++;
        } else {
            return false;
        }
    }
}

/* Appends ",DNS:host" or ",IP:host", each only once. */
static void
add_host(char *list, size_t room, const char *host)
{
    char item[300];
    size_t len = strlen(list);
    const char *there;

    snprintf(item, sizeof(item), ",%s:%s", is_address(host) ? "IP" : "DNS", host);
    there = strstr(list, item);
    if (there && (there[strlen(item)] == ',' || there[strlen(item)] == '\0'))
        return;
    snprintf(list + len, room - len, "%s", item);
}

static int
alternatives(const struct pki_issue_params *params, char *ret, size_t room,
             struct thin_error *err)
{
    static const char *const always[] = {"localhost", "127.0.0.1", "::1"};
    char self[256] = "";

    snprintf(ret, room, "URI:thin:%s", params->name);
    if (!params->server) {
        if (params->nr_hosts > 0)
            return thin_fail(err, -THIN_E_INVALID,
                             "a client's certificate holds no hosts");
        return 0;
    }
    for (size_t i = 0; i < sizeof(always) / sizeof(always[0]); i++)
        add_host(ret, room, always[i]);
    (void)gethostname(self, sizeof(self) - 1);
    if (is_host_name(self))
        add_host(ret, room, self);
    if (is_host_name(params->name) || is_address(params->name))
        add_host(ret, room, params->name);
    if (params->nr_hosts > PKI_HOSTS_MAX)
        return thin_fail(err, -THIN_E_LIMIT, "%u hosts in one certificate, at most %u",
                         params->nr_hosts, PKI_HOSTS_MAX);
    for (unsigned i = 0; i < params->nr_hosts; i++) {
        if (!is_address(params->hosts[i]) && !is_host_name(params->hosts[i]))
            return thin_fail(err, -THIN_E_INVALID,
                             "host \"%.100s\" is neither a name nor an address",
                             params->hosts[i]);
        add_host(ret, room, params->hosts[i]);
    }
    return 0;
}

static int
build_cert(const struct pki_ca *ca, const struct pki_issue_params *params,
           const char *names, X509 *cert, EVP_PKEY *key, struct pki_entry *entry,
           struct thin_error *err)
{
    const struct extension extensions[] = {
        {NID_basic_constraints, "critical,CA:FALSE"},
        {NID_key_usage, "critical,digitalSignature"},
        {NID_ext_key_usage, params->server ? "serverAuth" : "clientAuth"},
        {NID_subject_key_identifier, "hash"},
        {NID_authority_key_identifier, "keyid:always"},
        {NID_subject_alt_name, names},
    };
    unsigned days = params->days ? params->days : PKI_DAYS_DEFAULT;
    char cn[CN_MAX + 1];
    int r;

    entry->issued = time(NULL);
    entry->expires = entry->issued + (int64_t)days * SECONDS_PER_DAY;
    if (entry->expires > pki_expiry(ca->cert))
        entry->expires = pki_expiry(ca->cert);
    if (entry->expires <= entry->issued)
        return thin_fail(err, -THIN_E_TLS, "the certificate authority has expired");
    /* The URI holds all of it; a CN has less room. */
    snprintf(cn, sizeof(cn), "%.*s", CN_MAX, params->name);
    r = fill_cert(cert, cn, X509_get_subject_name(ca->cert), key,
                  entry->issued - CLOCK_SKEW_S, entry->expires, entry->serial, err);
    if (r == 0)
        r = add_extensions(cert, ca->cert, extensions,
                           sizeof(extensions) / sizeof(extensions[0]), err);
    if (r == 0 && X509_sign(cert, ca->key, EVP_sha256()) == 0)
        r = pki_fail(err, "sign the certificate");
    return r;
}

int
pki_make_cert(const struct pki_ca *ca, const struct pki_issue_params *params,
              X509 **ret_cert, EVP_PKEY **ret_key, struct pki_entry *ret_entry,
              struct thin_error *err)
{
    struct pki_entry entry = {.server = params->server};
    AUTO_FREE char *names = NULL;
    X509 *cert = NULL;
    EVP_PKEY *key = NULL;
    int r;

    names = malloc(ALTERNATIVES);
    if (!names)
        return thin_fail_code(err, -ENOMEM, "make a certificate");
    r = alternatives(params, names, ALTERNATIVES, err);
    if (r < 0)
        return r;
    snprintf(entry.name, sizeof(entry.name), "%s", params->name);
    cert = X509_new();
    key = EVP_EC_gen("P-256");
    if (!cert || !key)
        r = pki_fail(err, "make a key");
    else
        r = build_cert(ca, params, names, cert, key, &entry, err);
    if (r < 0) {
        X509_free(cert);
        EVP_PKEY_free(key);
        return r;
    }
    *ret_cert = cert;
    *ret_key = key;
    *ret_entry = entry;
    return 0;
}

/* ---- revocation -------------------------------------------------------------------- */

static bool
add_revoked(X509_CRL *crl, const struct pki_entry *entry)
{
    X509_REVOKED *revoked = X509_REVOKED_new();
    ASN1_TIME *when = ASN1_TIME_set(NULL, entry->revoked);
    ASN1_INTEGER *serial = NULL;
    BIGNUM *number = NULL;
    bool ok = revoked && when && BN_hex2bn(&number, entry->serial) > 0;

    if (ok)
        serial = BN_to_ASN1_INTEGER(number, NULL);
    ok = ok && serial && X509_REVOKED_set_serialNumber(revoked, serial) == 1 &&
         X509_REVOKED_set_revocationDate(revoked, when) == 1 &&
         X509_CRL_add0_revoked(crl, revoked) == 1;
    if (!ok)
        X509_REVOKED_free(revoked);
    ASN1_TIME_free(when);
    ASN1_INTEGER_free(serial);
    BN_free(number);
    return ok;
}

static bool
crl_extensions(const struct pki_ca *ca, X509_CRL *crl, int64_t number)
{
    ASN1_INTEGER *value = ASN1_INTEGER_new();
    X509_EXTENSION *key_id;
    X509V3_CTX ctx;
    bool ok = value && ASN1_INTEGER_set_int64(value, number) == 1 &&
              X509_CRL_add1_ext_i2d(crl, NID_crl_number, value, 0, 0) == 1;

    ASN1_INTEGER_free(value);
    X509V3_set_ctx(&ctx, ca->cert, NULL, NULL, crl, 0);
    key_id =
        X509V3_EXT_conf_nid(NULL, &ctx, NID_authority_key_identifier, "keyid:always");
    ok = ok && key_id && X509_CRL_add_ext(crl, key_id, -1) == 1;
    X509_EXTENSION_free(key_id);
    return ok;
}

int
pki_make_crl(const struct pki_ca *ca, const struct pki_entry *entries, size_t nr,
             int64_t number, X509_CRL **ret, struct thin_error *err)
{
    X509_CRL *crl = X509_CRL_new();
    ASN1_TIME *from = ASN1_TIME_set(NULL, time(NULL) - CLOCK_SKEW_S);
    /* Until the authority ends: a list that lapses would lock everybody out. */
    ASN1_TIME *until = ASN1_TIME_set(NULL, pki_expiry(ca->cert));
    bool ok = crl && from && until &&
              X509_CRL_set_version(crl, X509_CRL_VERSION_2) == 1 &&
              X509_CRL_set_issuer_name(crl, X509_get_subject_name(ca->cert)) == 1 &&
              X509_CRL_set1_lastUpdate(crl, from) == 1 &&
              X509_CRL_set1_nextUpdate(crl, until) == 1;

    for (size_t i = 0; ok && i < nr; i++)
        if (entries[i].revoked)
            ok = add_revoked(crl, &entries[i]);
    ok = ok && crl_extensions(ca, crl, number) && X509_CRL_sort(crl) == 1 &&
         X509_CRL_sign(crl, ca->key, EVP_sha256()) != 0;
    ASN1_TIME_free(from);
    ASN1_TIME_free(until);
    if (!ok) {
        X509_CRL_free(crl);
        return pki_fail(err, "make the revocation list");
    }
    *ret = crl;
    return 0;
}
