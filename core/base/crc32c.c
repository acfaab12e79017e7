#include "core/base/crc32c.h"

#include <isa-l/crc.h>
#include <limits.h>

uint32_t
crc32c_update(uint32_t crc, const void *bytes, size_t len_bytes)
{
    const unsigned char *p = bytes;

    /* ISA-L counts in int. */
    while (len_bytes > INT_MAX) {
        crc = crc32_iscsi((unsigned char *)(uintptr_t)p, INT_MAX, crc);
        p += INT_MAX;
        len_bytes -= INT_MAX;
    }
    return crc32_iscsi((unsigned char *)(uintptr_t)p, (int)len_bytes, crc);
}

uint32_t
crc32c(const void *bytes, size_t len_bytes)
{
    return ~crc32c_update(CRC32C_INIT, bytes, len_bytes);
}
