/*
 * How near the kernel is to making writers wait. Above the middle between its background
 * threshold and its limit of dirty pages, write(2) sleeps; we step aside at the former.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/device/file_private.h"

#define VMSTAT_BYTES 6144u /* what we look for stands in its first third */

/* The number behind `key`, which ends with its blank. False: not there. */
static bool
find_number(const char *text, const char *key, unsigned long long *ret)
{
    const char *at = strstr(text, key);

    if (!at || (at != text && at[-1] != '\n'))
        return false;
    *ret = strtoull(at + strlen(key), NULL, 10);
    return true;
}

bool
file_dirty_crowded(void)
{
    unsigned long long dirty, writeback, threshold;
    AUTO_FD int fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
    char text[VMSTAT_BYTES];
    size_t have = 0;
    ssize_t n;

    /* Not to be had (a container without /proc): the kernel does as it likes. */
    if (fd < 0)
        return false;
    while (have < sizeof(text) - 1 &&
           (n = read(fd, text + have, sizeof(text) - 1 - have)) > 0)
        have += (size_t)n;
    text[have] = '\0';
    return find_number(text, "nr_dirty ", &dirty) &&
           find_number(text, "nr_writeback ", &writeback) &&
           find_number(text, "nr_dirty_background_threshold ", &threshold) &&
           dirty + writeback > threshold;
}
