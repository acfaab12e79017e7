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

/* Admin of the whole server: locally, or by a rule of admin on `*`. */
bool auth_is_server_admin(const struct auth *auth, const struct auth_peer *peer);

/* True if a rule gives `peer` a right on volumes of the pool, there or not. */
bool auth_may_know_pool(const struct auth *auth, const struct auth_peer *peer,
                        const char *pool);

/*
 * 0, or: -THIN_E_NOT_FOUND in the words of a missing object, for who has no right at
 * all on it; -THIN_E_DENIED for who has a smaller one.
 */
int auth_check(const struct auth *auth, const struct auth_peer *peer, const char *object,
               enum auth_right wanted, struct thin_error *err);

/*
 * A change of the rules in three steps, one change at a time (-THIN_E_BUSY): begun on the
 * main loop, written by the helper thread (it waits for the disk), ended on the main
 * loop, where it takes effect if it was written. *ret NULL with 0: nothing to change.
 */
struct auth_change;
int auth_begin_grant(struct auth *auth, const struct auth_rule *rule,
                     struct auth_change **ret, struct thin_error *err);
int auth_begin_revoke(struct auth *auth, const struct auth_rule *rule,
                      struct auth_change **ret, struct thin_error *err);
int auth_write(const struct auth_change *change, struct thin_error *err);
void auth_end(struct auth *auth, struct auth_change *change, bool written);
unsigned auth_rules(const struct auth *auth, const struct auth_rule **ret_rules);

#endif
