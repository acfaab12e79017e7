#include "server/backup_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/offline/pack.h"

#define PACK_SUFFIX ".pack"

static int
make_folder(const char *path, struct thin_error *err)
{
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return thin_fail_code(err, -errno, "create the folder %s", path);
    return 0;
}

static int
sync_folder(const char *folder)
{
    AUTO_FD int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 || (fsync(fd) < 0 && errno != EINVAL) ? -errno : 0;
}

static int
write_fully(int fd, uint64_t offset, const void *buf, size_t len)
{
    while (len > 0) {
        ssize_t put = pwrite(fd, buf, len, (off_t)offset);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        buf = (const char *)buf + put;
        offset += (size_t)put;
        len -= (size_t)put;
    }
    return 0;
}

int
backup_folder(const char *state_dir, const char *pool, char **ret_folder,
              struct thin_error *err)
{
    AUTO_FREE char *all = NULL;
    AUTO_FREE char *folder = NULL;
    int r;

    if (asprintf(&all, "%s/backups", state_dir) < 0 ||
        asprintf(&folder, "%s/%s", all, pool) < 0)
        return thin_fail_code(err, -ENOMEM, "create %s/backups", state_dir);
    r = make_folder(all, err);
    if (r == 0)
        r = make_folder(folder, err);
    if (r == 0)
        *ret_folder = take(folder);
    return r;
}

/* ---- packed copies ------------------------------------------------------------------------ */

struct pack_file {
    int fd;
    uint64_t at;
};

static int
pack_write(void *arg, const void *bytes, size_t len)
{
    struct pack_file *file = arg;
    int r = write_fully(file->fd, file->at, bytes, len);

    file->at += len;
    return r;
}

static bool
is_of_kind(const char *name, const char *kind)
{
    const char *dash = strchr(name, '-');
    size_t len = strlen(kind);

    return name[0] != '.' && dash && strncmp(dash + 1, kind, len) == 0 &&
           strcmp(dash + 1 + len, PACK_SUFFIX) == 0;
}

/* The names begin with the time: their order is that of their making. */
static void
remove_oldest(const char *folder, const char *kind, unsigned keep)
{
    struct dirent **entries = NULL;
    int nr = scandir(folder, &entries, NULL, alphasort);
    unsigned seen = 0;

    for (int i = nr - 1; i >= 0; i--) {
        AUTO_FREE char *path = NULL;

        if (nr <= (int)BACKUP_FILES_MAX && is_of_kind(entries[i]->d_name, kind) &&
            ++seen > keep) {
            if (asprintf(&path, "%s/%s", folder, entries[i]->d_name) < 0)
                path = NULL;
            else if (unlink(path) < 0 && errno != ENOENT)
                log_warning("an old copy of the metadata cannot be removed path=%s "
                            "error=%s",
                            path, strerror(errno));
        }
        free(entries[i]);
    }
    free(entries);
}

static int
write_new(const char *tmp, struct meta_source *src, struct thin_error *err)
{
    struct pack_file file = {
        .fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    uint64_t nr = 0;
    int r;

    if (file.fd < 0)
        return thin_fail_code(err, -errno, "create %s", tmp);
    r = pack_device(src, pack_write, &file, &nr, err);
    if (r == 0 && fsync(file.fd) < 0)
        r = thin_fail_code(err, -errno, "write %s", tmp);
    if (close(file.fd) < 0 && r == 0)
        r = thin_fail_code(err, -errno, "write %s", tmp);
    return r;
}

int
backup_write_pack(const char *folder, const char *kind, uint64_t unix_s,
                  struct meta_source *src, unsigned keep, struct thin_error *err)
{
    AUTO_FREE char *tmp = NULL;
    AUTO_FREE char *path = NULL;
    time_t t = (time_t)unix_s;
    char when[32];
    struct tm tm;
    int r;

    if (!gmtime_r(&t, &tm) || strftime(when, sizeof(when), "%Y%m%dT%H%M%SZ", &tm) == 0)
        return thin_fail(err, -THIN_E_INVALID, "the clock shows no time");
    if (asprintf(&tmp, "%s/.new" PACK_SUFFIX, folder) < 0 ||
        asprintf(&path, "%s/%s-%s" PACK_SUFFIX, folder, when, kind) < 0)
        return thin_fail_code(err, -ENOMEM, "copy the metadata");
    r = write_new(tmp, src, err);
    if (r == 0 && rename(tmp, path) < 0)
        r = thin_fail_code(err, -errno, "create %s", path);
    if (r < 0) {
        unlink(tmp);
        return r;
    }
    r = sync_folder(folder);
    if (r < 0)
        return thin_fail_code(err, r, "create %s", path);
    remove_oldest(folder, kind, keep);
    return 0;
}

/* ---- superblocks --------------------------------------------------------------------------- */

int
backup_open_kept(const char *folder, const char *metadata_path, bool anew, int *ret_fd,
                 uint64_t *ret_next, struct thin_error *err)
{
    AUTO_FREE char *path = NULL;
    AUTO_FREE char *real = realpath(metadata_path, NULL);
    const char *of = real ? real : metadata_path;
    AUTO_FD int fd = -1;
    struct kept kept;
    int r;

    if (asprintf(&path, "%s/" KEPT_FILE_NAME, folder) < 0)
        return thin_fail_code(err, -ENOMEM, "keep superblocks");
    *ret_next = 0;
    if (!anew && kept_read(path, &kept, NULL) == 0) {
        anew = strncmp(kept.path, of, KEPT_PATH_MAX - 1) != 0;
        *ret_next = kept.nr > 0 && !anew ? kept.all[0].sequence + 1 : 0;
        kept_fini(&kept);
    } else {
        anew = true;
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | (anew ? O_TRUNC : 0), 0600);
    if (fd < 0)
        return thin_fail_code(err, -errno, "open %s", path);
    if (anew) {
        uint8_t head[KEPT_HEAD_BYTES];

        kept_encode_head(of, head);
        r = write_fully(fd, 0, head, sizeof(head));
        if (r == 0)
            r = sync_folder(folder);
        if (r < 0)
            return thin_fail_code(err, r, "write %s", path);
    }
    *ret_fd = take_fd(&fd);
    return 0;
}

int
backup_write_kept(int fd, uint64_t sequence, const uint8_t *slot, struct thin_error *err)
{
    int r = write_fully(fd, kept_slot_offset(sequence), slot, KEPT_SLOT_BYTES);

    return r < 0 ? thin_fail_code(err, r, "keep a superblock") : 0;
}

int
backup_flush_kept(int fd, struct thin_error *err)
{
    return fdatasync(fd) < 0 ? thin_fail_code(err, -errno, "flush the kept superblocks")
                             : 0;
}
