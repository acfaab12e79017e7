#include "core/offline/kept.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/crc32c.h"

#define KEPT_VERSION 1u
#define PATH_AT      64u
#define SLOT_HEAD    512u

static const char magic[8] = {'t', 'h', 'i', 'n', 'k', 'e', 'p', 't'};

void
kept_encode_head(const char *metadata_path, uint8_t head[KEPT_HEAD_BYTES])
{
    size_t len = strnlen(metadata_path, KEPT_PATH_MAX - 1);

    memset(head, 0, KEPT_HEAD_BYTES);
    memcpy(head, magic, sizeof(magic));
    store_le32(head + 8, KEPT_VERSION);
    memcpy(head + PATH_AT, metadata_path, len);
    store_le32(head + 12, crc32c(head + 16, KEPT_HEAD_BYTES - 16));
}

void
kept_encode_slot(uint64_t sequence, uint64_t unix_s, const void *superblock,
                 uint8_t slot[KEPT_SLOT_BYTES])
{
    memset(slot, 0, SLOT_HEAD);
    memcpy(slot, magic, sizeof(magic));
    store_le64(slot + 8, sequence);
    store_le64(slot + 16, unix_s);
    store_le32(slot + 24, crc32c(superblock, METADATA_BLOCK_SIZE));
    store_le32(slot + 32, crc32c(slot, 32));
    memcpy(slot + SLOT_HEAD, superblock, METADATA_BLOCK_SIZE);
}

uint64_t
kept_slot_offset(uint64_t sequence)
{
    return KEPT_HEAD_BYTES + (sequence % KEPT_MAX) * KEPT_SLOT_BYTES;
}

/* ---- reading --------------------------------------------------------------------------- */

static int
read_up_to(int fd, uint64_t offset, void *buf, size_t len, size_t *ret_got)
{
    size_t done = 0;

    while (done < len) {
        ssize_t got = pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    *ret_got = done;
    return 0;
}

static bool
slot_is_good(const uint8_t *slot)
{
    return memcmp(slot, magic, sizeof(magic)) == 0 &&
           load_le32(slot + 32) == crc32c(slot, 32) &&
           load_le32(slot + 24) == crc32c(slot + SLOT_HEAD, METADATA_BLOCK_SIZE) &&
           block_check(BLOCK_SUPERBLOCK, slot + SLOT_HEAD, SUPERBLOCK_LOCATION, NULL) ==
               0;
}

static int
newer_first(const void *a, const void *b)
{
    const struct kept_superblock *x = a, *y = b;

    return x->sequence < y->sequence ? 1 : -(x->sequence > y->sequence);
}

static int
read_head(int fd, const char *file, struct kept *ret, struct thin_error *err)
{
    uint8_t head[KEPT_HEAD_BYTES];
    size_t got = 0;
    int r = read_up_to(fd, 0, head, sizeof(head), &got);

    if (r < 0)
        return thin_fail_code(err, r, "read %s", file);
    if (got < sizeof(head) || memcmp(head, magic, sizeof(magic)) != 0 ||
        load_le32(head + 8) != KEPT_VERSION ||
        load_le32(head + 12) != crc32c(head + 16, KEPT_HEAD_BYTES - 16) ||
        head[PATH_AT + KEPT_PATH_MAX - 1] != 0)
        return thin_fail(err, -THIN_E_INVALID, "%s holds no kept superblocks", file);
    memcpy(ret->path, head + PATH_AT, KEPT_PATH_MAX);
    return 0;
}

int
kept_read(const char *file, struct kept *ret, struct thin_error *err)
{
    AUTO_FD int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    int r;

    memset(ret, 0, sizeof(*ret));
    if (fd < 0)
        return thin_fail_code(err, -errno, "open %s", file);
    r = read_head(fd, file, ret, err);
    if (r < 0)
        return r;
    ret->all = calloc(KEPT_MAX, sizeof(*ret->all));
    if (!ret->all)
        return thin_fail_code(err, -ENOMEM, "read %s", file);
    for (unsigned i = 0; i < KEPT_MAX; i++) {
        struct kept_superblock *sb = &ret->all[ret->nr];
        uint8_t slot[KEPT_SLOT_BYTES];
        size_t got = 0;

        r = read_up_to(fd, kept_slot_offset(i), slot, sizeof(slot), &got);
        if (r < 0) {
            kept_fini(ret);
            return thin_fail_code(err, r, "read %s", file);
        }
        if (got < sizeof(slot) || !slot_is_good(slot))
            continue;
        sb->sequence = load_le64(slot + 8);
        sb->unix_s = load_le64(slot + 16);
        memcpy(sb->block, slot + SLOT_HEAD, METADATA_BLOCK_SIZE);
        ret->nr++;
    }
    qsort(ret->all, ret->nr, sizeof(*ret->all), newer_first);
    return 0;
}

void
kept_fini(struct kept *kept)
{
    free(kept->all);
    memset(kept, 0, sizeof(*kept));
}

/* ---- finding ----------------------------------------------------------------------------- */

static bool
is_of(const char *file, const char *wanted)
{
    AUTO_FD int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    AUTO_FREE char *real = NULL;
    struct kept kept = {0};

    if (fd < 0 || read_head(fd, file, &kept, NULL) < 0)
        return false;
    real = realpath(kept.path, NULL);
    return strcmp(real ? real : kept.path, wanted) == 0;
}

int
kept_find(const char *folder, const char *path, char *ret_file, size_t room)
{
    AUTO_FREE char *real = realpath(path, NULL);
    DIR *dir = real ? opendir(folder) : NULL;
    unsigned looked = 0;
    struct dirent *e;
    int r = -THIN_E_NOT_FOUND;

    if (!dir)
        return r;
    while (r < 0 && looked < KEPT_FOLDERS && (e = readdir(dir))) {
        int len;

        if (e->d_name[0] == '.')
            continue;
        looked++;
        len = snprintf(ret_file, room, "%s/%s/%s", folder, e->d_name, KEPT_FILE_NAME);
        if (len > 0 && (size_t)len < room && is_of(ret_file, real))
            r = 0;
    }
    closedir(dir);
    return r;
}
