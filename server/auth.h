/*
 * Who may do what: rules grant WHO a right on a GLOB. Default deny.
 *
 *   WHO    cert:NAME, user:NAME, group:NAME, or * for every authenticated client
 *   right  admin > manage > write > read, each contains those behind it
 *   GLOB   POOL or POOL/VOLUME; * and ? never match '/'
 *
 * On the unix socket root and the service's group are admins without a rule. The
 * rules live in STATE_DIR/access.rules, one "WHO RIGHT GLOB" a line. Main loop only.
 */
#ifndef THIN_SERVER_AUTH_H
#define THIN_SERVER_AUTH_H

#include <stdbool.h>
#include <sys/types.h>

#include "core/base/error.h"

#define AUTH_RULES_MAX  4096u
#define AUTH_WHO_MAX    256u
#define AUTH_GLOB_MAX   256u
#define AUTH_GROUPS_MAX 64u

enum auth_right { AUTH_NONE, AUTH_READ, AUTH_WRITE, AUTH_MANAGE, AUTH_ADMIN };
const char *auth_right_name(enum auth_right right);
int auth_right_parse(const char *word, enum auth_right *ret, struct thin_error *err);

/* An authenticated peer. Fixed once the handshake is over. */
struct auth_peer {
    char identity[AUTH_WHO_MAX]; /* "cert:NAME" or "user:NAME" */
    bool local;                  /* unix socket */
    bool local_admin;            /* root or the service's group, on the unix socket */
    char groups[AUTH_GROUPS_MAX][64]; /* names, of local users */
    unsigned nr_groups;
};

struct auth_rule {
    char who[AUTH_WHO_MAX];
    enum auth_right right;
    char glob[AUTH_GLOB_MAX];
};

struct auth;

/* Reads the rules; a missing file is an empty list. -THIN_E_CONFIG with file and line. */
int auth_create(const char *state_dir, struct auth **ret, struct thin_error *err);
void auth_destroy(struct auth *auth);
/* Reads again (SIGHUP); on failure the old rules stay. */
int auth_reload(struct auth *auth, struct thin_error *err);

/* The peer of a unix socket from its credentials. */
void auth_peer_local(struct auth_peer *ret, uid_t uid, gid_t gid);
/* The peer of a TLS connection from its certificate's identity ("cert:NAME"). */
void auth_peer_cert(struct auth_peer *ret, const char *identity);

/* The highest right that `peer` has on `object` (POOL or POOL/VOLUME). */
enum auth_right auth_right_on(const struct auth *auth, const struct auth_peer *peer,
                              const char *object);

/*
 * 0, or: -THIN_E_NOT_FOUND in the words of a missing object, for who has no right at
 * all on it; -THIN_E_DENIED for who has a smaller one.
 */
int auth_check(const struct auth *auth, const struct auth_peer *peer, const char *object,
               enum auth_right wanted, struct thin_error *err);

/* Changes are in the file when these return; they wait for it: helper thread. */
int auth_grant(struct auth *auth, const struct auth_rule *rule, struct thin_error *err);
int auth_revoke(struct auth *auth, const struct auth_rule *rule, struct thin_error *err);
unsigned auth_rules(const struct auth *auth, const struct auth_rule **ret_rules);

#endif
