#include "proto/pki.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/name.h"
#include "proto/channel_private.h"
#include "proto/pki_private.h"

#define INDEX_ENTRIES_MAX 100000u
#define INDEX_LINE_MAX    512
#define PATH_BYTES        1024 /* of any file here; kept on the stack */

/* ---- files ------------------------------------------------------------------------- */

static int
join(char ret[PATH_BYTES], const char *dir, const char *name, struct thin_error *err)
{
    int n = snprintf(ret, PATH_BYTES, "%s/%s", dir, name);

    if (n < 0 || n >= PATH_BYTES)
        return thin_fail_code(err, -ENAMETOOLONG, "%s/%s", dir, name);
    return 0;
}

static int
make_folder(const char *path, mode_t mode, struct thin_error *err)
{
    struct stat st;

    if (mkdir(path, mode) == 0)
        return 0;
    if (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return 0;
    return thin_fail_code(err, -errno, "make the folder %s", path);
}

/* All folders on the way to `path`, too. */
static int
make_folders(const char *path, mode_t mode, struct thin_error *err)
{
    char part[PATH_BYTES];
    struct stat st;
    int r = 0;

    if (strlen(path) >= sizeof(part))
        return thin_fail_code(err, -ENAMETOOLONG, "%s", path);
    snprintf(part, sizeof(part), "%s", path);
    for (char *p = part + 1; r == 0 && *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (stat(part, &st) < 0)
            r = make_folder(part, 0755, err);
        *p = '/';
    }
    return r < 0 ? r : make_folder(path, mode, err);
}

static int
sync_folder(const char *dir, struct thin_error *err)
{
    AUTO_FD int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) < 0)
        return thin_fail_code(err, -errno, "sync the folder %s", dir);
    return 0;
}

static int
write_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        bytes += n;
        len -= (size_t)n;
    }
    return 0;
}

/* The file as a whole under its name, or as it was. */
static int
put_file(const char *dir, const char *name, mode_t mode, const void *bytes, size_t len,
         struct thin_error *err)
{
    char path[PATH_BYTES], temp[PATH_BYTES];
    AUTO_FD int fd = -1;
    int r = join(path, dir, name, err);

    if (r < 0)
        return r;
    if (snprintf(temp, sizeof(temp), "%s.XXXXXX", path) >= (int)sizeof(temp))
        return thin_fail_code(err, -ENAMETOOLONG, "%s", path);
    fd = mkostemp(temp, O_CLOEXEC); /* 0600 */
    if (fd < 0)
        return thin_fail_code(err, -errno, "write %s", path);
    r = write_all(fd, bytes, len);
    if (r == 0 && (fchmod(fd, mode) < 0 || fsync(fd) < 0 || rename(temp, path) < 0))
        r = -errno;
    if (r < 0) {
        (void)unlink(temp);
        return thin_fail_code(err, r, "write %s", path);
    }
    return 0;
}

enum pem_kind { PEM_CERT, PEM_KEY, PEM_CRL };

static int
put_pem(const char *dir, const char *name, enum pem_kind kind, void *object,
        struct thin_error *err)
{
    /* Secure memory is of no use here: the key is about to stand in a file. */
    BIO *bio = BIO_new(BIO_s_mem());
    char *bytes = NULL;
    long len;
    int ok = 0, r;

    if (bio && kind == PEM_CERT)
        ok = PEM_write_bio_X509(bio, object);
    else if (bio && kind == PEM_KEY)
        ok = PEM_write_bio_PrivateKey(bio, object, NULL, NULL, 0, NULL, NULL);
    else if (bio)
        ok = PEM_write_bio_X509_CRL(bio, object);
    if (ok != 1) {
        r = tls_fail(err, NULL, name);
    } else {
        len = BIO_get_mem_data(bio, &bytes);
        r = put_file(dir, name, kind == PEM_KEY ? 0600 : 0644, bytes, (size_t)len, err);
        if (kind == PEM_KEY)
            OPENSSL_cleanse(bytes, (size_t)len);
    }
    BIO_free(bio);
    return r;
}

/* ---- the authority's folder -------------------------------------------------------- */

struct store {
    char ca_dir[PATH_BYTES];
    int lock; /* -1: not held */
    struct pki_ca ca;
    struct pki_entry *entries;
    size_t nr_entries;
};

static void
store_fini(struct store *store)
{
    if (store->lock >= 0)
        close(store->lock);
    pki_ca_fini(&store->ca);
    free(store->entries);
}

static int
lock_store(struct store *store, struct thin_error *err)
{
    store->lock = open(store->ca_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->lock < 0)
        return thin_fail_code(err, -errno, "%s", store->ca_dir);
    while (flock(store->lock, LOCK_EX) < 0)
        if (errno != EINTR)
            return thin_fail_code(err, -errno, "lock %s", store->ca_dir);
    return 0;
}

static int
load_ca(struct store *store, bool with_key, struct thin_error *err)
{
    char path[PATH_BYTES];
    AUTO_FILE FILE *cert = NULL;
    AUTO_FILE FILE *key = NULL;
    int r = join(path, store->ca_dir, "ca-cert.pem", err);

    if (r < 0)
        return r;
    ERR_clear_error();
    cert = fopen(path, "re");
    if (!cert && errno == ENOENT)
        return thin_fail(err, -THIN_E_NOT_FOUND,
                         "no certificate authority in %s: make one with pki init",
                         store->ca_dir);
    if (!cert)
        return thin_fail_code(err, -errno, "%s", path);
    store->ca.cert = PEM_read_X509(cert, NULL, NULL, NULL);
    if (!store->ca.cert)
        return tls_fail(err, NULL, path);
    if (!with_key)
        return 0;
    r = join(path, store->ca_dir, "ca-key.pem", err);
    if (r < 0)
        return r;
    key = fopen(path, "re");
    if (!key)
        return thin_fail_code(err, -errno, "%s", path);
    store->ca.key = PEM_read_PrivateKey(key, NULL, NULL, NULL);
    if (!store->ca.key)
        return tls_fail(err, NULL, path);
    if (X509_check_private_key(store->ca.cert, store->ca.key) != 1) {
        ERR_clear_error();
        return thin_fail(err, -THIN_E_TLS, "%s does not belong to ca-cert.pem", path);
    }
    return 0;
}

/* "serial kind name issued expires revoked" */
static bool
parse_entry(const char *line, struct pki_entry *ret)
{
    char kind[8];
    struct pki_entry e = {.server = false};
    int end = 0;

    if (sscanf(line, "%40[0-9a-f] %7s %127s %" SCNd64 " %" SCNd64 " %" SCNd64 " %n",
               e.serial, kind, e.name, &e.issued, &e.expires, &e.revoked, &end) != 6 ||
        line[end])
        return false;
    if (strcmp(kind, "server") != 0 && strcmp(kind, "client") != 0)
        return false;
    e.server = kind[0] == 's';
    *ret = e;
    return name_check(e.name, strlen(e.name), NULL) == 0;
}

static int
load_index(struct store *store, struct thin_error *err)
{
    char path[PATH_BYTES], line[INDEX_LINE_MAX];
    AUTO_FILE FILE *f = NULL;
    size_t room = 0;
    int r = join(path, store->ca_dir, "index.txt", err);

    if (r < 0)
        return r;
    f = fopen(path, "re");
    if (!f)
        return thin_fail_code(err, -errno, "%s", path);
    while (fgets(line, sizeof(line), f)) {
        if (store->nr_entries == room) {
            struct pki_entry *more;

            room = room ? room * 2 : 16;
            if (room > INDEX_ENTRIES_MAX)
                return thin_fail(err, -THIN_E_LIMIT, "%s: more than %u entries", path,
                                 INDEX_ENTRIES_MAX);
            more = realloc(store->entries, room * sizeof(*more));
            if (!more)
                return thin_fail_code(err, -ENOMEM, "read %s", path);
            store->entries = more;
        }
        if (!parse_entry(line, &store->entries[store->nr_entries]))
            return thin_fail(err, -THIN_E_INVALID, "%s: line %zu is damaged", path,
                             store->nr_entries + 1);
        store->nr_entries++;
    }
    if (ferror(f))
        return thin_fail_code(err, -EIO, "read %s", path);
    return 0;
}

static int
save_index(const struct store *store, struct thin_error *err)
{
    AUTO_FREE char *text = NULL;
    size_t len = 0, room = (store->nr_entries + 1) * INDEX_LINE_MAX;

    text = malloc(room);
    if (!text)
        return thin_fail_code(err, -ENOMEM, "write the index");
    for (size_t i = 0; i < store->nr_entries; i++) {
        const struct pki_entry *e = &store->entries[i];

        len += (size_t)snprintf(text + len, room - len,
                                "%s %s %s %" PRId64 " %" PRId64 " %" PRId64 "\n",
                                e->serial, e->server ? "server" : "client", e->name,
                                e->issued, e->expires, e->revoked);
    }
    return put_file(store->ca_dir, "index.txt", 0644, text, len, err);
}

static int
save_crl(const struct store *store, struct thin_error *err)
{
    X509_CRL *crl = NULL;
    struct timespec now;
    int r;

    clock_gettime(CLOCK_REALTIME, &now);
    /* Must rise with each list; two lists in one second must not share one. */
    r = pki_make_crl(&store->ca, store->entries, store->nr_entries,
                     (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000, &crl, err);
    if (r < 0)
        return r;
    r = put_pem(store->ca_dir, "ca-crl.pem", PEM_CRL, crl, err);
    X509_CRL_free(crl);
    return r;
}

/* *store is to be given to store_fini whatever the result. */
static int
store_open(struct store *store, const char *dir, bool with_key, struct thin_error *err)
{
    int r;

    *store = (struct store){.lock = -1};
    r = join(store->ca_dir, dir, "ca", err);
    if (r == 0 && access(store->ca_dir, F_OK) < 0)
        r = errno == ENOENT ? thin_fail(err, -THIN_E_NOT_FOUND,
                                        "no certificate authority in %s: make one with "
                                        "pki init",
                                        dir)
                            : thin_fail_code(err, -errno, "%s", store->ca_dir);
    if (r == 0)
        r = lock_store(store, err);
    if (r == 0)
        r = load_ca(store, with_key, err);
    if (r == 0)
        r = load_index(store, err);
    return r;
}

/* ---- verbs ------------------------------------------------------------------------- */

static int
init_locked(struct store *store, struct thin_error *err)
{
    char path[PATH_BYTES];
    int r = lock_store(store, err);

    if (r == 0)
        r = join(path, store->ca_dir, "ca-cert.pem", err);
    if (r < 0)
        return r;
    if (access(path, F_OK) == 0)
        return thin_fail(err, -THIN_E_EXISTS, "%s holds a certificate authority already",
                         store->ca_dir);
    r = pki_make_ca(&store->ca, err);
    if (r == 0)
        r = save_index(store, err);
    if (r == 0)
        r = save_crl(store, err);
    if (r == 0)
        r = put_pem(store->ca_dir, "ca-key.pem", PEM_KEY, store->ca.key, err);
    /* Last, since it says that the authority is there. */
    if (r == 0)
        r = put_pem(store->ca_dir, "ca-cert.pem", PEM_CERT, store->ca.cert, err);
    if (r == 0)
        r = sync_folder(store->ca_dir, err);
    return r;
}

int
pki_init(const char *dir, struct thin_error *err)
{
    struct store store = {.lock = -1};
    int r = join(store.ca_dir, dir, "ca", err);

    if (r == 0)
        r = make_folders(store.ca_dir, 0755, err);
    if (r == 0)
        r = init_locked(&store, err);
    store_fini(&store);
    return r < 0 ? thin_wrap(err, r, "pki init") : 0;
}

/* OUT must not hold another authority's certificate: its other files belong to that. */
static int
check_out(const char *out, const struct store *store, struct thin_error *err)
{
    char path[PATH_BYTES];
    AUTO_FILE FILE *f = NULL;
    X509 *there;
    bool same;
    int r = join(path, out, "ca-cert.pem", err);

    if (r < 0)
        return r;
    f = fopen(path, "re");
    if (!f)
        return errno == ENOENT ? 0 : thin_fail_code(err, -errno, "%s", path);
    there = PEM_read_X509(f, NULL, NULL, NULL);
    same = there && X509_cmp(there, store->ca.cert) == 0;
    X509_free(there);
    ERR_clear_error();
    if (!same)
        return thin_fail(err, -THIN_E_EXISTS,
                         "%s is another authority's: choose another folder, or move it "
                         "away",
                         path);
    return 0;
}

static int
issue_to(struct store *store, const struct pki_issue_params *params, const char *out,
         struct thin_error *err)
{
    struct pki_entry entry;
    struct pki_entry *more;
    X509 *cert = NULL;
    EVP_PKEY *key = NULL;
    int r = pki_make_cert(&store->ca, params, &cert, &key, &entry, err);

    if (r < 0)
        return r;
    more = realloc(store->entries, (store->nr_entries + 1) * sizeof(*more));
    if (!more) {
        r = thin_fail_code(err, -ENOMEM, "write the index");
    } else {
        store->entries = more;
        store->entries[store->nr_entries++] = entry;
    }
    /* The index first: a certificate that is not in it could never be revoked. */
    if (r == 0)
        r = save_index(store, err);
    if (r == 0)
        r = sync_folder(store->ca_dir, err);
    if (r == 0)
        r = make_folders(out, 0755, err);
    if (r == 0)
        r = check_out(out, store, err);
    if (r == 0)
        r = put_pem(out, "ca-cert.pem", PEM_CERT, store->ca.cert, err);
    if (r == 0)
        r = put_pem(out, params->server ? "server-key.pem" : "client-key.pem", PEM_KEY,
                    key, err);
    if (r == 0)
        r = put_pem(out, params->server ? "server-cert.pem" : "client-cert.pem", PEM_CERT,
                    cert, err);
    if (r == 0)
        r = sync_folder(out, err);
    X509_free(cert);
    EVP_PKEY_free(key);
    return r;
}

int
pki_issue(const char *dir, const struct pki_issue_params *params, struct thin_error *err)
{
    struct store store = {.lock = -1};
    char own[PATH_BYTES];
    const char *out = params->out;
    int r = name_check(params->name, strlen(params->name), err);

    if (r == 0 && !out) {
        r = join(own, dir, params->name, err);
        out = own;
        if (r == 0 && strcmp(params->name, "ca") == 0)
            r = thin_fail(
                err, -THIN_E_INVALID,
                "\"ca\" is the authority's own folder: name another with --out");
    }
    if (r == 0 && params->days > PKI_DAYS_MAX)
        r = thin_fail(err, -THIN_E_INVALID, "%u days, at most %u are possible",
                      params->days, PKI_DAYS_MAX);
    if (r == 0)
        r = store_open(&store, dir, true, err);
    if (r == 0)
        r = check_out(out, &store, err);
    if (r == 0)
        r = issue_to(&store, params, out, err);
    store_fini(&store);
    return r < 0 ? thin_wrap(err, r, "pki issue %.40s", params->name) : 0;
}

int
pki_revoke(const char *dir, const char *name, unsigned *ret_nr, struct thin_error *err)
{
    struct store store;
    int64_t now = time(NULL);
    unsigned nr = 0;
    int r = store_open(&store, dir, true, err);

    for (size_t i = 0; r == 0 && i < store.nr_entries; i++) {
        struct pki_entry *e = &store.entries[i];

        if (e->revoked || strcmp(e->name, name) != 0)
            continue;
        e->revoked = now;
        nr++;
    }
    if (r == 0 && nr == 0)
        r = thin_fail(err, -THIN_E_NOT_FOUND, "no certificate has that name");
    /* The list first: what the index calls revoked must be refused. */
    if (r == 0)
        r = save_crl(&store, err);
    if (r == 0)
        r = save_index(&store, err);
    if (r == 0)
        r = sync_folder(store.ca_dir, err);
    store_fini(&store);
    if (r < 0)
        return thin_wrap(err, r, "pki revoke %.40s", name);
    *ret_nr = nr;
    return 0;
}

int
pki_show(const char *dir, int (*each)(void *arg, const struct pki_entry *entry),
         void *arg, int64_t *ret_ca_expires, struct thin_error *err)
{
    struct store store;
    int r = store_open(&store, dir, false, err);

    if (r == 0 && ret_ca_expires)
        *ret_ca_expires = pki_expiry(store.ca.cert);
    if (r < 0)
        r = thin_wrap(err, r, "pki show");
    for (size_t i = 0; r == 0 && i < store.nr_entries; i++) {
        int answer = each(arg, &store.entries[i]);

        r = answer < 0 ? answer : 0;
    }
    store_fini(&store);
    return r;
}
