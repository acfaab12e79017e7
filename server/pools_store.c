#include "server/pools_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/name.h"

#define STORE_LINE_MAX 1200u
#define STORE_SUFFIX   ".conf"

static int
make_folder(const char *path, struct thin_error *err)
{
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return thin_fail_code(err, -errno, "create the folder %s", path);
    return 0;
}

int
pools_store_prepare(const char *state_dir, int *ret_lock, struct thin_error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    AUTO_FREE char *pools = NULL;
    AUTO_FREE char *path = NULL;
    AUTO_FD int fd = -1;
    int r = make_folder(state_dir, err);

    if (r < 0)
        return r;
    if (asprintf(&pools, "%s/pools", state_dir) < 0 ||
        asprintf(&path, "%s/lock", state_dir) < 0)
        return thin_fail_code(err, -ENOMEM, "create %s/pools", state_dir);
    r = make_folder(pools, err);
    if (r < 0)
        return r;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return thin_fail_code(err, -errno, "lock %s", path);
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0)
        return errno == EAGAIN || errno == EACCES
                   ? thin_fail(err, -THIN_E_BUSY,
                               "the state folder %s is in use by another thinsrv",
                               state_dir)
                   : thin_fail_code(err, -errno, "lock %s", path);
    *ret_lock = take_fd(&fd);
    return 0;
}

/* "ID SIZE NAME", the name "-" if there is none. */
static int
add_volume(struct server_pool *sp, const char *text, struct thin_error *err)
{
    struct server_pool_volume v = {0}, *grown;

    if (sp->nr_volumes == POOLS_VOLUMES_MAX ||
        sscanf(text, "%" SCNu32 " %" SCNu64 " %127s", &v.dev_id, &v.size, v.name) != 3)
        return thin_fail(err, -THIN_E_CONFIG, "not a volume: %s", text);
    if (strcmp(v.name, "-") == 0)
        v.name[0] = '\0';
    grown = realloc(sp->volumes, (sp->nr_volumes + 1) * sizeof(v));
    if (!grown)
        return thin_fail_code(err, -ENOMEM, "read the volumes");
    sp->volumes = grown;
    sp->volumes[sp->nr_volumes++] = v;
    return 0;
}

static int
parse_line(struct server_pool *sp, const char *key, const char *value,
           struct thin_error *err)
{
    bool known = true;

    if (strcmp(key, "data") == 0)
        snprintf(sp->data_path, sizeof(sp->data_path), "%s", value);
    else if (strcmp(key, "metadata") == 0)
        snprintf(sp->metadata_path, sizeof(sp->metadata_path), "%s", value);
    else if (strcmp(key, "data_is_ours") == 0)
        sp->data_is_ours = strcmp(value, "yes") == 0;
    else if (strcmp(key, "metadata_is_ours") == 0)
        sp->metadata_is_ours = strcmp(value, "yes") == 0;
    else if (strcmp(key, "stack_id") == 0)
        snprintf(sp->stack_id, sizeof(sp->stack_id), "%s", value);
    else if (strcmp(key, "open") == 0)
        sp->want_open = strcmp(value, "yes") == 0;
    else if (strcmp(key, "io") == 0)
        sp->direct = strcmp(value, "direct") == 0;
    else if (strcmp(key, "volume") == 0)
        return add_volume(sp, value, err);
    else
        return config_parse_pool_key(&sp->config, key, value, &known, err);
    return 0; /* keys of a later version are left alone */
}

static int
read_one(const char *path, struct server_pool *sp, struct thin_error *err)
{
    AUTO_FILE FILE *file = fopen(path, "re");
    char line[STORE_LINE_MAX];
    unsigned lineno = 0;

    if (!file)
        return thin_fail_code(err, -errno, "read %s", path);
    while (fgets(line, sizeof(line), file)) {
        char *eq, *value;

        lineno++;
        line[strcspn(line, "\n")] = '\0';
        if (!line[0] || line[0] == '#')
            continue;
        eq = strstr(line, " = ");
        if (!eq)
            return thin_fail(err, -THIN_E_CONFIG, "%s:%u: not KEY = VALUE", path, lineno);
        *eq = '\0';
        value = eq + 3;
        if (parse_line(sp, line, value, err) < 0)
            return thin_wrap(err, -THIN_E_CONFIG, "%s:%u", path, lineno);
    }
    if (ferror(file))
        return thin_fail_code(err, -EIO, "read %s", path);
    if (!sp->data_path[0] || !sp->metadata_path[0])
        return thin_fail(err, -THIN_E_CONFIG, "%s: data or metadata is missing", path);
    return 0;
}

int
pools_store_read_all(const char *state_dir, const struct pool_config *defaults,
                     int (*found)(void *arg, const struct server_pool *sp), void *arg,
                     struct thin_error *err)
{
    AUTO_FREE char *folder = NULL;
    struct dirent **entries = NULL;
    int nr, r = 0;

    if (asprintf(&folder, "%s/pools", state_dir) < 0)
        return thin_fail_code(err, -ENOMEM, "read the known pools");
    nr = scandir(folder, &entries, NULL, alphasort);
    if (nr < 0)
        return thin_fail_code(err, -errno, "read the known pools in %s", folder);
    for (int i = 0; i < nr; i++) {
        const char *name = entries[i]->d_name;
        size_t len = strlen(name), suffix = strlen(STORE_SUFFIX);
        AUTO_FREE char *path = NULL;
        struct server_pool sp = {.config = *defaults};

        /* The default is for pools that are made. */
        sp.config.extend_data = (struct pool_auto_extend){0};
        if (r == 0 && len > suffix && strcmp(name + len - suffix, STORE_SUFFIX) == 0 &&
            name_check(name, len - suffix, NULL) == 0) {
            snprintf(sp.name, sizeof(sp.name), "%.*s", (int)(len - suffix), name);
            if (asprintf(&path, "%s/%s", folder, name) < 0) {
                path = NULL;
                r = thin_fail_code(err, -ENOMEM, "read the known pools");
            }
            if (r == 0)
                r = read_one(path, &sp, err);
            if (r == 0)
                r = found(arg, &sp);
            if (r < 0)
                free(sp.volumes);
        }
        free(entries[i]);
    }
    free(entries);
    return r;
}

static int
sync_folder(const char *folder)
{
    AUTO_FD int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

/* Percent of a pool that was closed when it was set: bytes when it is opened. */
static void
print_share(FILE *file, uint64_t bytes, uint32_t percent)
{
    if (percent)
        fprintf(file, "%" PRIu32 "%%", percent);
    else
        fprintf(file, "%" PRIu64, bytes);
}

static void
print_config(FILE *file, const struct pool_config *c)
{
    static const char *const discards[] = {"off", "unmap", "passdown"};

    fprintf(file, "commit_interval = %" PRIu64 "ms\n", c->commit_interval_ms);
    fprintf(file, "no_space_timeout = %" PRIu64 "ms\n", c->no_space_timeout_ms);
    if (c->commit_max_dirty >= 16)
        fprintf(file, "commit_max_dirty = %" PRIu32 "\n", c->commit_max_dirty);
    fprintf(file, "on_full = %s\n", c->on_full == POOL_QUEUE ? "queue" : "error");
    fprintf(file, "zeroing = %s\n", c->zeroing ? "yes" : "no");
    fprintf(file, "discards = %s\n", discards[c->discards]);
    fprintf(file, "extend_metadata = %s\n", c->extend_metadata ? "yes" : "no");
    if (c->overcommit_percent)
        fprintf(file, "overcommit = %" PRIu32 "%%\n", c->overcommit_percent);
    if (c->extend_data.percent) {
        fprintf(file, "auto_extend = %" PRIu32 ":", c->extend_data.percent);
        print_share(file, c->extend_data.step_bytes, c->extend_data.step_percent);
        fprintf(file, ":");
        print_share(file, c->extend_data.limit_bytes, c->extend_data.limit_percent);
        fprintf(file, "\n");
    } else {
        fprintf(file, "auto_extend = off\n");
    }
}

int
pools_store_write(const char *state_dir, const struct server_pool *sp,
                  struct thin_error *err)
{
    AUTO_FREE char *folder = NULL;
    AUTO_FREE char *path = NULL;
    AUTO_FREE char *tmp = NULL;
    FILE *file;
    bool ok;
    int r;

    if (asprintf(&folder, "%s/pools", state_dir) < 0 ||
        asprintf(&path, "%s/%s" STORE_SUFFIX, folder, sp->name) < 0 ||
        asprintf(&tmp, "%s/.%s.new", folder, sp->name) < 0)
        return thin_fail_code(err, -ENOMEM, "write down pool %s", sp->name);
    file = fopen(tmp, "we");
    if (!file)
        return thin_fail_code(err, -errno, "write %s", tmp);
    fprintf(file, "# Pool %s; written by thinsrv.\n", sp->name);
    fprintf(file, "data = %s\nmetadata = %s\n", sp->data_path, sp->metadata_path);
    fprintf(file, "data_is_ours = %s\nmetadata_is_ours = %s\n",
            sp->data_is_ours ? "yes" : "no", sp->metadata_is_ours ? "yes" : "no");
    fprintf(file, "open = %s\nio = %s\n", sp->want_open ? "yes" : "no",
            sp->direct ? "direct" : "buffered");
    if (sp->stack_id[0])
        fprintf(file, "stack_id = %s\n", sp->stack_id);
    print_config(file, &sp->config);
    for (uint32_t i = 0; i < sp->nr_volumes; i++)
        fprintf(file, "volume = %" PRIu32 " %" PRIu64 " %s\n", sp->volumes[i].dev_id,
                sp->volumes[i].size, sp->volumes[i].name[0] ? sp->volumes[i].name : "-");
    ok = fflush(file) == 0 && fsync(fileno(file)) == 0 && !ferror(file);
    ok = fclose(file) == 0 && ok;
    if (!ok || rename(tmp, path) < 0) {
        r = errno ? -errno : -EIO;
        unlink(tmp);
        return thin_fail_code(err, r, "write %s", path);
    }
    r = sync_folder(folder);
    return r < 0 ? thin_fail_code(err, r, "write %s", path) : 0;
}

int
pools_store_remove(const char *state_dir, const char *name, struct thin_error *err)
{
    AUTO_FREE char *folder = NULL;
    AUTO_FREE char *path = NULL;
    int r;

    if (asprintf(&folder, "%s/pools", state_dir) < 0 ||
        asprintf(&path, "%s/%s" STORE_SUFFIX, folder, name) < 0)
        return thin_fail_code(err, -ENOMEM, "forget pool %s", name);
    if (unlink(path) < 0 && errno != ENOENT)
        return thin_fail_code(err, -errno, "remove %s", path);
    r = sync_folder(folder);
    return r < 0 ? thin_fail_code(err, r, "remove %s", path) : 0;
}
