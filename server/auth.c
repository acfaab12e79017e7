#include "server/auth.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/name.h"

struct auth {
    char *path;
    struct auth_rule *rules;
    unsigned nr_rules;
    bool changing;
};

struct auth_change {
    char *path; /* borrowed */
    struct auth_rule *rules;
    unsigned nr_rules;
};

static const char *const right_names[] = {"none", "read", "write", "manage", "admin"};

const char *
auth_right_name(enum auth_right right)
{
    return right_names[right];
}

int
auth_right_parse(const char *word, enum auth_right *ret, struct thin_error *err)
{
    for (int i = AUTH_READ; i <= AUTH_ADMIN; i++)
        if (strcmp(word, right_names[i]) == 0) {
            *ret = (enum auth_right)i;
            return 0;
        }
    return thin_fail(err, -THIN_E_INVALID,
                     "unknown right %.32s: read, write, manage or admin", word);
}

/* `*`, or a kind with a name behind it. */
static bool
is_well_formed(const char *who)
{
    static const char *const kinds[] = {"cert:", "user:", "group:"};

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strncmp(who, kinds[i], strlen(kinds[i])) == 0)
            return who[strlen(kinds[i])] != '\0';
    return strcmp(who, "*") == 0;
}

static int
check_rule(const struct auth_rule *rule, struct thin_error *err)
{
    const char *slash;

    if (!is_well_formed(rule->who))
        return thin_fail(err, -THIN_E_INVALID,
                         "bad subject %s: cert:NAME, user:NAME, group:NAME or *",
                         rule->who);
    for (const char *p = rule->who; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == 0x7f)
            return thin_fail(err, -THIN_E_INVALID,
                             "blank or control byte in the subject");
    slash = strchr(rule->glob, '/');
    if (!rule->glob[0] ||
        (slash && (slash == rule->glob || !slash[1] || strchr(slash + 1, '/'))))
        return thin_fail(err, -THIN_E_INVALID, "bad object %s: POOL or POOL/VOLUME",
                         rule->glob);
    for (const char *p = rule->glob; *p; p++)
        if (!strchr("*?/", *p)) {
            char c[2] = {*p, '\0'};
            const char *alphabet = "._+-";

            if (!strchr(alphabet, *p) && name_check(c, 1, NULL) < 0)
                return thin_fail(err, -THIN_E_INVALID, "bad byte in the object %s",
                                 rule->glob);
        }
    return 0;
}

static int
read_rules(const char *path, struct auth_rule **ret_rules, unsigned *ret_nr,
           struct thin_error *err)
{
    AUTO_FILE FILE *file = fopen(path, "re");
    AUTO_FREE struct auth_rule *rules = NULL;
    char line[1024];
    unsigned nr = 0, lineno = 0;

    if (!file && errno == ENOENT) {
        *ret_rules = NULL;
        *ret_nr = 0;
        return 0;
    }
    if (!file)
        return thin_fail_code(err, -errno, "read the access rules %s", path);
    rules = calloc(AUTH_RULES_MAX, sizeof(*rules));
    if (!rules)
        return thin_fail_code(err, -ENOMEM, "read the access rules %s", path);
    while (fgets(line, sizeof(line), file)) {
        char who[AUTH_WHO_MAX], right[16], glob[AUTH_GLOB_MAX], rest[2];
        int n;

        lineno++;
        if (line[0] == '#' || line[strspn(line, " \t\r\n")] == '\0')
            continue;
        n = sscanf(line, "%255s %15s %255s %1s", who, right, glob, rest);
        if (n != 3)
            return thin_fail(err, -THIN_E_CONFIG, "%s:%u: a rule is WHO RIGHT GLOB", path,
                             lineno);
        if (nr == AUTH_RULES_MAX)
            return thin_fail(err, -THIN_E_CONFIG, "%s: more than %u rules", path,
                             AUTH_RULES_MAX);
        snprintf(rules[nr].who, sizeof(rules[nr].who), "%s", who);
        snprintf(rules[nr].glob, sizeof(rules[nr].glob), "%s", glob);
        if (auth_right_parse(right, &rules[nr].right, err) < 0 ||
            check_rule(&rules[nr], err) < 0)
            return thin_wrap(err, -THIN_E_CONFIG, "%s:%u", path, lineno);
        nr++;
    }
    if (ferror(file))
        return thin_fail_code(err, -EIO, "read the access rules %s", path);
    *ret_rules = take(rules);
    *ret_nr = nr;
    return 0;
}

int
auth_create(const char *state_dir, struct auth **ret, struct thin_error *err)
{
    struct auth *auth = calloc(1, sizeof(*auth));
    int r;

    if (!auth || asprintf(&auth->path, "%s/access.rules", state_dir) < 0) {
        free(auth);
        return thin_fail_code(err, -ENOMEM, "read the access rules");
    }
    r = auth_reload(auth, err);
    if (r < 0) {
        auth_destroy(auth);
        return r;
    }
    *ret = auth;
    return 0;
}

void
auth_destroy(struct auth *auth)
{
    if (!auth)
        return;
    free(auth->rules);
    free(auth->path);
    free(auth);
}

int
auth_reload(struct auth *auth, struct thin_error *err)
{
    struct auth_rule *rules;
    unsigned nr;
    int r = read_rules(auth->path, &rules, &nr, err);

    if (r < 0)
        return r;
    free(auth->rules);
    auth->rules = rules;
    auth->nr_rules = nr;
    return 0;
}

void
auth_peer_local(struct auth_peer *ret, uid_t uid, gid_t gid)
{
    struct passwd *pw = getpwuid(uid);
    gid_t gids[AUTH_GROUPS_MAX];
    int nr = AUTH_GROUPS_MAX;

    memset(ret, 0, sizeof(*ret));
    ret->local = true;
    ret->local_admin = uid == 0 || gid == getegid();
    if (pw)
        snprintf(ret->identity, sizeof(ret->identity), "user:%s", pw->pw_name);
    else
        snprintf(ret->identity, sizeof(ret->identity), "user:%u", (unsigned)uid);
    if (!pw || getgrouplist(pw->pw_name, gid, gids, &nr) < 0) {
        gids[0] = gid;
        nr = 1;
    }
    for (int i = 0; i < nr && ret->nr_groups < AUTH_GROUPS_MAX; i++) {
        struct group *gr = getgrgid(gids[i]);

        if (gids[i] == getegid())
            ret->local_admin = true;
        if (gr)
            snprintf(ret->groups[ret->nr_groups++], sizeof(ret->groups[0]), "%s",
                     gr->gr_name);
    }
}

void
auth_peer_cert(struct auth_peer *ret, const char *identity)
{
    memset(ret, 0, sizeof(*ret));
    snprintf(ret->identity, sizeof(ret->identity), "%s", identity);
}

static bool
is_subject(const struct auth_rule *rule, const struct auth_peer *peer)
{
    if (strcmp(rule->who, "*") == 0)
        return peer->identity[0] != '\0';
    if (strcmp(rule->who, peer->identity) == 0)
        return true;
    if (strncmp(rule->who, "group:", 6) == 0)
        for (unsigned i = 0; i < peer->nr_groups; i++)
            if (strcmp(rule->who + 6, peer->groups[i]) == 0)
                return true;
    return false;
}

enum auth_right
auth_right_on(const struct auth *auth, const struct auth_peer *peer, const char *object)
{
    enum auth_right best = AUTH_NONE;

    if (peer->local_admin)
        return AUTH_ADMIN;
    for (unsigned i = 0; i < auth->nr_rules; i++) {
        const struct auth_rule *rule = &auth->rules[i];

        if (rule->right > best && is_subject(rule, peer) &&
            glob_match(rule->glob, object))
            best = rule->right;
    }
    return best;
}

bool
auth_is_server_admin(const struct auth *auth, const struct auth_peer *peer)
{
    if (peer->local_admin)
        return true;
    for (unsigned i = 0; i < auth->nr_rules; i++)
        if (auth->rules[i].right == AUTH_ADMIN && !strcmp(auth->rules[i].glob, "*") &&
            is_subject(&auth->rules[i], peer))
            return true;
    return false;
}

bool
auth_may_know_pool(const struct auth *auth, const struct auth_peer *peer,
                   const char *pool)
{
    if (peer->local_admin)
        return true;
    for (unsigned i = 0; i < auth->nr_rules; i++) {
        char glob[AUTH_GLOB_MAX];
        char *slash;

        if (!is_subject(&auth->rules[i], peer))
            continue;
        snprintf(glob, sizeof(glob), "%s", auth->rules[i].glob);
        slash = strchr(glob, '/');
        if (!slash)
            continue;
        *slash = '\0';
        if (glob_match(glob, pool))
            return true;
    }
    return false;
}

int
auth_check(const struct auth *auth, const struct auth_peer *peer, const char *object,
           enum auth_right wanted, struct thin_error *err)
{
    enum auth_right has = auth_right_on(auth, peer, object);

    if (has >= wanted)
        return 0;
    if (has == AUTH_NONE)
        return thin_fail(err, -THIN_E_NOT_FOUND, "no such %s: %s",
                         strchr(object, '/') ? "volume" : "pool", object);
    return thin_fail(err, -THIN_E_DENIED, "%s needs the right %s on %s and has %s",
                     peer->identity, right_names[wanted], object, right_names[has]);
}

/* A new name in the folder of `path` is there after a crash only when that is synced. */
static int
sync_folder_of(const char *path)
{
    AUTO_FREE char *folder = strdup(path);
    AUTO_FD int fd = -1;

    if (!folder)
        return -ENOMEM;
    fd = open(dirname(folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

/* A new file beside the old one, durable before it takes its place. */
int
auth_write(const struct auth_change *change, struct thin_error *err)
{
    const char *path = change->path;
    AUTO_FREE char *tmp = NULL;
    FILE *file;
    bool ok;
    int r;

    if (asprintf(&tmp, "%s.new", path) < 0)
        return thin_fail_code(err, -ENOMEM, "write the access rules");
    file = fopen(tmp, "we");
    if (!file)
        return thin_fail_code(err, -errno, "write the access rules %s", tmp);
    fprintf(file, "# WHO RIGHT GLOB; written by thincli access\n");
    for (unsigned i = 0; i < change->nr_rules; i++)
        fprintf(file, "%s %s %s\n", change->rules[i].who,
                right_names[change->rules[i].right], change->rules[i].glob);
    ok = fflush(file) == 0 && fsync(fileno(file)) == 0 && !ferror(file);
    ok = fclose(file) == 0 && ok;
    if (!ok || rename(tmp, path) < 0) {
        r = errno ? -errno : -EIO;
        unlink(tmp);
        return thin_fail_code(err, r, "write the access rules %s", path);
    }
    r = sync_folder_of(path);
    return r < 0 ? thin_fail_code(err, r, "write the access rules %s", path) : 0;
}

static int
find_rule(const struct auth *auth, const struct auth_rule *rule)
{
    for (unsigned i = 0; i < auth->nr_rules; i++)
        if (auth->rules[i].right == rule->right &&
            !strcmp(auth->rules[i].who, rule->who) &&
            !strcmp(auth->rules[i].glob, rule->glob))
            return (int)i;
    return -1;
}

/* A change with room for `nr` rules, none of them set. */
static int
begin_change(struct auth *auth, unsigned nr, struct auth_change **ret,
             struct thin_error *err)
{
    struct auth_change *change;

    if (auth->changing)
        return thin_fail(err, -THIN_E_BUSY, "the access rules are being changed");
    change = calloc(1, sizeof(*change));
    if (change)
        change->rules = calloc(nr ? nr : 1, sizeof(*change->rules));
    if (!change || !change->rules) {
        free(change);
        return thin_fail_code(err, -ENOMEM, "change the access rules");
    }
    change->path = auth->path;
    auth->changing = true;
    *ret = change;
    return 0;
}

int
auth_begin_grant(struct auth *auth, const struct auth_rule *rule,
                 struct auth_change **ret, struct thin_error *err)
{
    struct auth_change *change;
    int r = check_rule(rule, err);

    if (r < 0)
        return r;
    if (find_rule(auth, rule) >= 0) {
        *ret = NULL;
        return 0;
    }
    if (auth->nr_rules == AUTH_RULES_MAX)
        return thin_fail(err, -THIN_E_LIMIT, "no more than %u access rules",
                         AUTH_RULES_MAX);
    r = begin_change(auth, auth->nr_rules + 1, &change, err);
    if (r < 0)
        return r;
    if (auth->nr_rules)
        memcpy(change->rules, auth->rules, auth->nr_rules * sizeof(*auth->rules));
    change->rules[auth->nr_rules] = *rule;
    change->nr_rules = auth->nr_rules + 1;
    *ret = change;
    return 0;
}

int
auth_begin_revoke(struct auth *auth, const struct auth_rule *rule,
                  struct auth_change **ret, struct thin_error *err)
{
    int at = find_rule(auth, rule);
    struct auth_change *change;
    int r;

    if (at < 0)
        return thin_fail(err, -THIN_E_NOT_FOUND, "no such rule: %s %s %s", rule->who,
                         right_names[rule->right], rule->glob);
    r = begin_change(auth, auth->nr_rules, &change, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < auth->nr_rules; i++)
        if ((int)i != at)
            change->rules[change->nr_rules++] = auth->rules[i];
    *ret = change;
    return 0;
}

void
auth_end(struct auth *auth, struct auth_change *change, bool written)
{
    if (written) {
        free(auth->rules);
        auth->rules = change->rules;
        auth->nr_rules = change->nr_rules;
    } else {
        free(change->rules);
    }
    free(change);
    auth->changing = false;
}

unsigned
auth_rules(const struct auth *auth, const struct auth_rule **ret_rules)
{
    *ret_rules = auth->rules;
    return auth->nr_rules;
}
