#include "core/base/host.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cleanup.h"

/* Hexadecimal digits, with or without dashes. */
static void
read_id(const char *path, uint8_t ret[HOST_ID_BYTES])
{
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    char text[64] = {0};
    ssize_t got = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    unsigned n = 0;

    memset(ret, 0, HOST_ID_BYTES);
    for (ssize_t i = 0; i < got && n < 2 * HOST_ID_BYTES; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;

        if (digit < 0)
            continue;
        ret[n / 2] = (uint8_t)(ret[n / 2] << 4 | digit);
        n++;
    }
}

void
host_machine_id(uint8_t ret[HOST_ID_BYTES])
{
    read_id("/etc/machine-id", ret);
}

void
host_boot_id(uint8_t ret[HOST_ID_BYTES])
{
    read_id("/proc/sys/kernel/random/boot_id", ret);
}

bool
host_id_is_zero(const uint8_t id[HOST_ID_BYTES])
{
    static const uint8_t zeros[HOST_ID_BYTES];

    return memcmp(id, zeros, HOST_ID_BYTES) == 0;
}
