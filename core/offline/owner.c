#include "core/offline/owner.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/cleanup.h"
#include "core/base/host.h"
#include "core/ondisk/owner_mark.h"

int
owner_judge(struct meta_source *src, bool takeover, struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    uint8_t machine[HOST_ID_BYTES];

    if (!block)
        return thin_fail_code(err, -ENOMEM, "read the owner mark");
    /* What cannot be read names nobody; whether that matters is for the verb to say. */
    if (takeover || source_read(src, SUPERBLOCK_LOCATION, block, NULL) < 0)
        return 0;
    host_machine_id(machine);
    return owner_mark_judge(block, machine, takeover, err);
}

void
owner_sign_foreign(void *superblock)
{
    uint8_t *bytes = (uint8_t *)superblock + SUPERBLOCK_TRAILER_OFFSET;
    struct catalogue_trailer trailer;
    bool found = false;

    /* One of a later version is kept as it is: it cannot be put together again. */
    if (catalogue_trailer_decode(bytes, &trailer, &found, NULL) < 0 || !found)
        return;
    trailer.flags &= ~CATALOGUE_CLEAN;
    trailer.stamp = ~superblock_stamp(superblock);
    catalogue_trailer_encode(&trailer, bytes);
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
