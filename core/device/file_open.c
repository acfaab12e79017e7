/* Opening the file device: what is there, whose it is, and what it can do. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/file_private.h"

#define LOOPS_LOOKED_AT 1024u /* loop devices */

static int
open_retrying(const char *path, int flags, mode_t mode)
{
    int fd;

    do
        fd = open(path, flags | O_CLOEXEC | O_NOCTTY, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* ---- whose is it? ------------------------------------------------------------------- */

static bool
backs_this_loop(const char *loop_name, const struct stat *file)
{
    char path[128], target[PATH_MAX];
    AUTO_FD int fd = -1;
    struct stat st;
    ssize_t n;

    snprintf(path, sizeof(path), "/sys/block/%.64s/loop/backing_file", loop_name);
    fd = open_retrying(path, O_RDONLY, 0);
    if (fd < 0)
        return false;
    n = read(fd, target, sizeof(target) - 1);
    if (n <= 0)
        return false;
    target[n] = '\0';
    target[strcspn(target, "\n")] = '\0';
    return stat(target, &st) == 0 && st.st_dev == file->st_dev &&
           st.st_ino == file->st_ino;
}

int
device_file_check_no_loop(const char *path, const struct stat *file,
                          struct thin_error *err)
{
    unsigned looked = 0;
    struct dirent *e;
    DIR *dir = opendir("/sys/block");
    int r = 0;

    if (!dir)
        return 0;
    while (r == 0 && looked < LOOPS_LOOKED_AT && (e = readdir(dir))) {
        if (strncmp(e->d_name, "loop", 4) != 0)
            continue;
        looked++;
        if (backs_this_loop(e->d_name, file))
            r = thin_fail(err, -THIN_E_BUSY,
                          "%s is in use: it is the backing file of /dev/%.64s; detach it "
                          "first (losetup -d /dev/%.64s)",
                          path, e->d_name, e->d_name);
    }
    closedir(dir);
    return r;
}

static int
lock_file(int fd, const struct device_file_params *p, struct thin_error *err)
{
    struct flock lock = {
        .l_type = p->read_only ? F_RDLCK : F_WRLCK,
        .l_whence = SEEK_SET,
    };
    int r;

    do
        r = fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
    while (r == -EINTR);
    if (r == -EAGAIN || r == -EACCES)
        return thin_fail(err, -THIN_E_BUSY, "%s is in use by another process", p->path);
    if (r < 0)
        return thin_fail_code(err, r, "lock %s", p->path);
    return 0;
}

/* ---- a new file ------------------------------------------------------------------------- */

/* The file's name is durable only when its folder is. */
static int
sync_folder(const char *path)
{
    AUTO_FREE char *folder = strdup(path);
    AUTO_FD int fd = -1;
    char *slash;

    if (!folder)
        return -ENOMEM;
    slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder ? 1 : 0] = '\0';
    fd = open_retrying(slash ? folder : ".", O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return -errno;
    /* Some file systems know no fsync of folders. */
    return fsync(fd) < 0 && errno != EINVAL ? -errno : 0;
}

static int
fill_with_zeros(int fd, uint64_t size)
{
    static const char zeros[FILE_ZERO_WRITE_MAX];
    uint64_t at = 0;

    while (at < size) {
        ssize_t put = pwrite(fd, zeros, min_u64(size - at, sizeof(zeros)), (off_t)at);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        if (put == 0)
            return -EIO;
        at += (uint64_t)put;
    }
    return 0;
}

static int
set_new_size(int fd, const struct device_file_params *p)
{
    int r = 0;

    while (ftruncate(fd, (off_t)p->create_size) < 0)
        if (errno != EINTR)
            return -errno;
    if (p->allocate_in_full && p->create_size > 0) {
        /* The place first, so that a full file system says so before the long writing;
           then written, since writes to unwritten extents are slow for ever. */
        r = fallocate(fd, 0, 0, (off_t)p->create_size) < 0 ? -errno : 0;
        if (r == 0 || r == -EOPNOTSUPP || r == -EINTR)
            r = fill_with_zeros(fd, p->create_size);
    }
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    return r;
}

static int
create_file(const struct device_file_params *p, struct thin_error *err)
{
    AUTO_FD int fd = -1;
    int r;

    if (p->read_only)
        return thin_fail(err, -THIN_E_INVALID, "create %s: cannot create it read-only",
                         p->path);
    if (p->create_size % SECTOR_SIZE || p->create_size > INT64_MAX)
        return thin_fail(err, -THIN_E_INVALID,
                         "create %s: size %llu is not a multiple of 512", p->path,
                         (unsigned long long)p->create_size);
    fd = open_retrying(p->path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return thin_fail_code(err, -errno, "create %s", p->path);
    r = set_new_size(fd, p);
    if (r == 0)
        r = sync_folder(p->path);
    if (r == 0)
        return 0;
    /* Ours, and empty: nobody misses it. */
    if (unlink(p->path) < 0)
        log_warning("cannot remove a half-made file path=%s error=%s", p->path,
                    strerror(errno));
    return thin_fail_code(err, r, "create %s with %llu bytes", p->path,
                          (unsigned long long)p->create_size);
}

/* ---- what is it? --------------------------------------------------------------------- */

static uint64_t
read_queue_number(dev_t dev, const char *what)
{
    /* A partition has no queue folder of its own; its disk stands above it. */
    static const char *const folders[] = {"queue", "../queue"};

    for (unsigned i = 0; i < 2; i++) {
        char path[128];
        AUTO_FILE FILE *file = NULL;
        unsigned long long value;

        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/%s", major(dev), minor(dev),
                 folders[i], what);
        file = fopen(path, "re");
        /* The kernel's number; nothing but digits can stand there. */
        if (file && fscanf(file, "%20llu", &value) == 1) /* NOLINT(cert-err34-c) */
            return value;
    }
    return 0;
}

static void
find_direct_alignment(struct file_device *f, const char *path)
{
    int sector = 0;

    f->offset_align = FILE_PAGE_BYTES;
    f->mem_align = FILE_PAGE_BYTES;
#ifdef STATX_DIOALIGN
    {
        struct statx stx = {0};

        if (statx(AT_FDCWD, path, 0, STATX_DIOALIGN, &stx) == 0 &&
            (stx.stx_mask & STATX_DIOALIGN) && stx.stx_dio_offset_align > 0) {
            f->offset_align = (uint32_t)max_u64(stx.stx_dio_offset_align, SECTOR_SIZE);
            f->mem_align = (uint32_t)max_u64(stx.stx_dio_mem_align, SECTOR_SIZE);
            return;
        }
    }
#else
    (void)path;
#endif
    if (f->is_block && ioctl(f->fd, BLKSSZGET, &sector) == 0 && sector >= 512) {
        f->offset_align = (uint32_t)sector;
        f->mem_align = (uint32_t)sector;
    }
}

static int
find_size(struct file_device *f, const struct stat *st,
          const struct device_file_params *p, struct thin_error *err)
{
    const char *path = p->path;
    uint64_t bytes = (uint64_t)st->st_size;

    if (f->is_block && ioctl(f->fd, BLKGETSIZE64, &bytes) < 0)
        return thin_fail_code(err, -errno, "get the size of %s", path);
    f->base.size = round_down_u64(bytes, SECTOR_SIZE);
    if (p->pad_tail && p->read_only && !f->direct && bytes % SECTOR_SIZE) {
        f->base.size += SECTOR_SIZE;
        f->data_end = bytes;
    }
    if (f->direct && f->base.size % f->offset_align)
        return thin_fail(err, -THIN_E_INVALID,
                         "%s: size %llu is not a multiple of %u, which direct I/O needs "
                         "here",
                         path, (unsigned long long)f->base.size, f->offset_align);
    return 0;
}

/* Beyond the end there is nothing to lose: only tells whether the call is known. */
static bool
can_punch(const struct file_device *f)
{
    return fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)round_up_u64(f->base.size + 1, FILE_PAGE_BYTES),
                     FILE_PAGE_BYTES) == 0;
}

static void
find_limits(struct file_device *f, const struct stat *st)
{
    struct device_limits *l = &f->base.limits;

    l->alignment = (uint32_t)max_u64(SECTOR_SIZE, max_u64(f->offset_align, f->mem_align));
    if (f->is_block) {
        l->discards = read_queue_number(st->st_rdev, "discard_max_bytes") > 0;
        l->discard_align =
            max_u64(read_queue_number(st->st_rdev, "discard_granularity"), SECTOR_SIZE);
        l->zeroes_fast = read_queue_number(st->st_rdev, "write_zeroes_max_bytes") > 0;
        return;
    }
    l->grows = !f->base.read_only;
    l->discards = !f->base.read_only && can_punch(f);
    l->discard_align = st->st_blksize > 0 && st->st_blksize % SECTOR_SIZE == 0
                           ? (uint64_t)st->st_blksize
                           : FILE_PAGE_BYTES;
    l->zeroes_fast = l->discards;
    l->zeroes_fresh =
        l->discards && (f->base.size == 0 || lseek(f->fd, 0, SEEK_HOLE) >= 0);
}

static int
open_fd(struct file_device *f, const struct device_file_params *p, struct stat *ret_st,
        struct thin_error *err)
{
    int flags = (p->read_only ? O_RDONLY : O_RDWR) | (p->direct ? O_DIRECT : 0);

    /* Looked at first: opening a pipe or a terminal is not harmless. */
    if (stat(p->path, ret_st) < 0)
        return thin_fail_code(err, -errno, "open %s", p->path);
    f->is_block = S_ISBLK(ret_st->st_mode);
    if (!f->is_block && !S_ISREG(ret_st->st_mode))
        return thin_fail(err, -THIN_E_INVALID,
                         "open %s: neither a regular file nor a block device", p->path);
    if (f->is_block && !p->no_lock)
        flags |= O_EXCL;
    f->fd = open_retrying(p->path, flags, 0);
    if (f->fd < 0 && errno == EBUSY)
        return thin_fail(err, -THIN_E_BUSY,
                         "%s is in use: mounted, or held by another program", p->path);
    if (f->fd < 0 && errno == EINVAL && p->direct)
        return thin_fail(err, -EINVAL, "open %s: direct I/O is not possible here",
                         p->path);
    if (f->fd < 0)
        return thin_fail_code(err, -errno, "open %s", p->path);
    if (fstat(f->fd, ret_st) < 0)
        return thin_fail_code(err, -errno, "stat %s", p->path);
    if (f->is_block != S_ISBLK(ret_st->st_mode))
        return thin_fail(err, -THIN_E_BUSY, "open %s: replaced meanwhile", p->path);
    return 0;
}

static int
open_parts(struct file_device *f, const struct device_file_params *p,
           struct thin_error *err)
{
    struct stat st;
    int r = open_fd(f, p, &st, err);

    if (r == 0 && !f->is_block && !p->no_lock)
        r = lock_file(f->fd, p, err);
    if (r == 0 && !f->is_block && !p->no_lock)
        r = device_file_check_no_loop(p->path, &st, err);
    if (r < 0)
        return r;
    f->offset_align = 1;
    f->mem_align = 1;
    if (f->direct)
        find_direct_alignment(f, p->path);
    r = find_size(f, &st, p, err);
    if (r < 0)
        return r;
    find_limits(f, &st);
    if (f->way == DEVICE_WAY_URING) {
        r = file_ring_start(f);
        if (r < 0)
            return thin_fail_code(err, r, "open %s: io_uring is not to be had here",
                                  p->path);
    }
    return 0;
}

/* ---- the way ------------------------------------------------------------------------------ */

static int
choose_way(enum device_file_way asked, enum device_file_way *ret_way,
           struct thin_error *err)
{
    static const char *const names[] = {
        [DEVICE_WAY_AUTO] = "auto",
        [DEVICE_WAY_URING] = "uring",
        [DEVICE_WAY_THREADS] = "threads",
        [DEVICE_WAY_INLINE] = "inline",
    };
    const char *word = getenv("THIN_FILE_WAY");

    *ret_way = asked;
    if (asked != DEVICE_WAY_AUTO || !word || !*word)
        return 0;
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(word, names[i]) == 0) {
            *ret_way = (enum device_file_way)i;
            return 0;
        }
    return thin_fail(err, -THIN_E_INVALID,
                     "THIN_FILE_WAY is \"%.32s\", known are auto, uring, threads, inline",
                     word);
}

int
device_file_open(struct thin_loop *loop, const struct device_file_params *params,
                 struct device **ret_dev, struct thin_error *err)
{
    enum device_file_way way;
    struct file_device *f;
    int r = choose_way(params->way, &way, err);

    if (r == 0 && params->create)
        r = create_file(params, err);
    if (r < 0)
        return r;
    f = calloc(1, sizeof(*f));
    if (!f)
        return thin_fail_code(err, -ENOMEM, "open %s", params->path);
    device_init(&f->base, &file_ops, loop, params->path);
    f->base.read_only = params->read_only;
    f->fd = -1;
    f->wake_fd = -1;
    f->direct = params->direct;
    f->way = way;
    f->nowait = true;
    f->log_limit = (struct thin_log_limit){.period_ms = 10000, .burst = 5};
    TAILQ_INIT(&f->gated);
    TAILQ_INIT(&f->done);
    r = file_lanes_init(f);
    if (r < 0)
        thin_fail_code(err, r, "open %s", params->path);
    else
        r = open_parts(f, params, err);
    if (r < 0) {
        file_free(f);
        /* What failed has changed nothing; a file that others hold by now is theirs. */
        if (params->create && r != -THIN_E_BUSY)
            unlink(params->path);
        return r;
    }
    *ret_dev = &f->base;
    return 0;
}
