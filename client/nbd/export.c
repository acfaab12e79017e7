#include <string.h>

#include "client/nbd/bridge_private.h"

/* The volume goes by its own name and as the default export. */
static bool
is_ours(const struct front *front, const char *name, size_t len)
{
    const char *ours = front->bridge->options->volume;

    return len == 0 || (strlen(ours) == len && memcmp(name, ours, len) == 0);
}

void
export_list(void *arg, struct nbd_conn *conn, const char *after)
{
    struct front *front = arg;

    if (!after)
        nbd_export_listed(conn, front->bridge->options->volume, NULL);
    nbd_list_done(conn, 0);
}

static void
describe(const struct front *front, struct thin_client_volume *volume,
         struct nbd_export *ret)
{
    *ret = (struct nbd_export){
        .handle = volume,
        .size = thin_client_volume_size(volume),
        /* A flush of the client covers all of its completed writes, whichever
           connection they came from. */
        .flags = NBD_EXPORT_MULTI_CONN | NBD_EXPORT_FLUSH | NBD_EXPORT_FUA |
                 NBD_EXPORT_TRIM | NBD_EXPORT_ZEROES | NBD_EXPORT_FAST_ZERO |
                 (thin_client_volume_is_read_only(volume) ? NBD_EXPORT_READ_ONLY : 0),
        .min_block = 1,
        .pref_block = 4096,
        .name = front->bridge->options->volume,
    };
}

void
export_open(void *arg, struct nbd_conn *conn, const struct nbd_open *wish)
{
    struct front *front = arg;
    struct nbd_export export;

    if (!is_ours(front, wish->name, wish->name_len)) {
        nbd_export_opened(conn, -THIN_E_NOT_FOUND, NULL, "no such export");
        return;
    }
    if (wish->info) {
        describe(front, front->bridge->current->volume, &export);
        nbd_export_opened(conn, 0, &export, NULL);
        return;
    }
    export_answer(front);
}

void
export_answer(struct front *front)
{
    struct nbd_export export;

    front->use = bridge_use_volume(front->bridge);
    if (!front->use) {
        front->wants_open = true; /* goes on in front_volume_opened */
        return;
    }
    describe(front, front->use->volume, &export);
    nbd_export_opened(front->conn, 0, &export, NULL);
}

void
export_contexts(void *arg, struct nbd_conn *conn, const struct nbd_context_wish *wish)
{
    struct front *front = arg;

    if (!is_ours(front, wish->name, wish->name_len)) {
        nbd_contexts_done(conn, -THIN_E_NOT_FOUND);
        return;
    }
    if (nbd_context_wanted(wish, "base:allocation"))
        nbd_context_found(conn, "base:allocation", CONTEXT_ALLOCATION);
    if (nbd_context_wanted(wish, "qemu:allocation-depth"))
        nbd_context_found(conn, "qemu:allocation-depth", CONTEXT_DEPTH);
    nbd_contexts_done(conn, 0);
}

void
export_close(void *arg, void *handle)
{
    struct front *front = arg;

    (void)handle;
    if (front->use)
        bridge_drop_volume(front->use);
    front->use = NULL;
}

uint32_t
export_status(uint64_t context, uint32_t flags)
{
    /* What comes from an origin is data to whoever copies. */
    if (context == CONTEXT_DEPTH)
        return flags & THIN_CLIENT_EXTENT_ORIGIN ? 2
               : flags & THIN_CLIENT_EXTENT_HOLE ? 0
                                                 : 1;
    if (flags & THIN_CLIENT_EXTENT_ORIGIN)
        return 0;
    return (flags & THIN_CLIENT_EXTENT_HOLE ? NBD_STATUS_HOLE | NBD_STATUS_ZERO : 0) |
           (flags & THIN_CLIENT_EXTENT_ZERO ? NBD_STATUS_ZERO : 0);
}
