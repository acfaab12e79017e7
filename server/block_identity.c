#include "server/block_identity.h"

#include <blkid.h>
#include <ctype.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"

#define VALUE_MAX 128u
#define FOLDER    "/sys/dev/block/%u:%u/"

static void add(char text[BLOCK_IDENTITY_MAX], const char *format, ...) PRINTF_LIKE(2, 3);

/* What does not fit any more is left out: the same each time. */
static void
add(char text[BLOCK_IDENTITY_MAX], const char *format, ...)
{
    size_t len = strlen(text);
    va_list ap;

    va_start(ap, format);
    if (vsnprintf(text + len, BLOCK_IDENTITY_MAX - len, format, ap) >=
        (int)(BLOCK_IDENTITY_MAX - len))
        text[len] = '\0';
    va_end(ap);
}

/* Printable, and without blanks at its ends or runs of them inside. */
static void
tidy(char *text)
{
    char *to = text;

    for (const char *from = text; *from; from++) {
        char c = isgraph((unsigned char)*from) ? *from : '_';

        if (c != '_' || (to > text && to[-1] != '_'))
            *to++ = c;
    }
    while (to > text && to[-1] == '_')
        to--;
    *to = '\0';
}

/* The device's attribute in sysfs; false: it has none, or an empty one. */
static bool
attribute(const struct stat *st, const char *name, char *ret, size_t max)
{
    char path[VALUE_MAX];
    ssize_t got;
    AUTO_FD int fd = -1;

    snprintf(path, sizeof(path), FOLDER "%s", major(st->st_rdev), minor(st->st_rdev),
             name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    got = fd >= 0 ? read(fd, ret, max - 1) : -1;
    if (got <= 0)
        return false;
    ret[got] = '\0';
    return true;
}

static void
add_file_behind(const struct stat *st, char text[BLOCK_IDENTITY_MAX])
{
    char path[4096];
    struct stat file;

    if (!attribute(st, "loop/backing_file", path, sizeof(path)))
        return;
    path[strcspn(path, "\n")] = '\0';
    if (stat(path, &file) < 0 || !S_ISREG(file.st_mode))
        return;
    add(text, " inode=%" PRIu64 " time=%lld.%09ld", (uint64_t)file.st_ino,
        (long long)file.st_mtim.tv_sec, file.st_mtim.tv_nsec);
}

static void
add_attributes(const struct stat *st, char text[BLOCK_IDENTITY_MAX])
{
    static const struct {
        const char *name, *word;
    } known[] = {
        {"dm/uuid", "dm"},          {"md/uuid", "md"},
        {"start", "start"}, /* of a partition; "..": its disk */
        {"wwid", "disk"},           {"device/wwid", "disk"},
        {"serial", "serial"},       {"../wwid", "disk"},
        {"../device/wwid", "disk"}, {"../serial", "serial"},
    };
    char value[VALUE_MAX];

    for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (!attribute(st, known[i].name, value, sizeof(value)))
            continue;
        tidy(value);
        if (value[0])
            add(text, " %s=%s", known[i].word, value);
    }
}

static void
add_content(const char *path, char text[BLOCK_IDENTITY_MAX])
{
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    blkid_probe pr = fd >= 0 ? blkid_new_probe() : NULL;
    const char *type = NULL, *uuid = NULL;

    if (pr && blkid_probe_set_device(pr, fd, 0, 0) == 0) {
        blkid_probe_enable_superblocks(pr, 1);
        blkid_probe_set_superblocks_flags(pr, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_UUID);
        blkid_probe_enable_partitions(pr, 1);
        if (blkid_do_safeprobe(pr) == 0) {
            if (blkid_probe_lookup_value(pr, "TYPE", &type, NULL) < 0 &&
                blkid_probe_lookup_value(pr, "PTTYPE", &type, NULL) < 0)
                type = NULL;
            if (blkid_probe_lookup_value(pr, "UUID", &uuid, NULL) < 0 &&
                blkid_probe_lookup_value(pr, "PTUUID", &uuid, NULL) < 0)
                uuid = NULL;
            if (type)
                add(text, " holds=%s:%s", type, uuid ? uuid : "");
        }
    }
    blkid_free_probe(pr);
}

void
block_identity(const char *path, const struct stat *st, char ret_text[BLOCK_IDENTITY_MAX])
{
    ret_text[0] = '\0';
    add_file_behind(st, ret_text);
    add_attributes(st, ret_text);
    add_content(path, ret_text);
}
