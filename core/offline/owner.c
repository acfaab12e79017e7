#include "core/offline/owner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cleanup.h"

#define HOST_FILE "/etc/machine-id"

void
owner_this_host(uint8_t ret[16])
{
    AUTO_FD int fd = open(HOST_FILE, O_RDONLY | O_CLOEXEC);
    char text[64] = {0};
    ssize_t got = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    unsigned n = 0;

    memset(ret, 0, 16);
    for (ssize_t i = 0; i < got && n < 32; i++) {
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

static bool
all_zero(const uint8_t id[16])
{
    static const uint8_t zeros[16];

    return memcmp(id, zeros, 16) == 0;
}

int
owner_judge(struct meta_source *src, bool takeover, struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    struct catalogue_trailer trailer;
    uint8_t host[16];
    bool found = false;
    int r;

    if (!block)
        return thin_fail_code(err, -ENOMEM, "read the owner mark");
    /* What cannot be read names nobody; whether that matters is for the verb to say. */
    if (takeover || source_read(src, SUPERBLOCK_LOCATION, block, NULL) < 0)
        return 0;
    r = catalogue_trailer_decode(block + SUPERBLOCK_TRAILER_OFFSET, &trailer, &found,
                                 err);
    if (r < 0)
        return thin_wrap(err, r, "read the owner mark");
    owner_this_host(host);
    if (!found || all_zero(trailer.owner_host) ||
        memcmp(trailer.owner_host, host, sizeof(host)) == 0)
        return 0;
    return thin_fail(err, -THIN_E_BUSY,
                     "the metadata belongs to thinsrv on another machine (machine-id "
                     "%02x%02x%02x%02x...); make sure that nobody serves it there, then "
                     "use --force-takeover",
                     trailer.owner_host[0], trailer.owner_host[1], trailer.owner_host[2],
                     trailer.owner_host[3]);
}

bool
owner_catalogue_device(const struct superblock *sb, uint32_t *ret_dev_id)
{
    struct catalogue_trailer trailer;
    bool found = false;

    if (catalogue_trailer_decode(sb->trailer, &trailer, &found, NULL) < 0 || !found ||
        trailer.dev_id == CATALOGUE_NONE)
        return false;
    *ret_dev_id = trailer.dev_id;
    return true;
}
