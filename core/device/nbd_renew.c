/*
 * A fresh look at the export, for a GROW beyond what it had at the last connect: an NBD
 * server tells its size only to who connects.
 *
 *   NO --GROW--> LOOKING --larger--> DRAINING --nothing in flight--> FLUSHING --> FLUSHED
 *    ^              |                                  |                            |
 *    |    not larger, or no way there                  \-- nothing to be flushed ---+
 *    \--------------+----------------- up again, or not --------- CONNECTING <------/
 *
 * The look is a connection of its own, so that one which does not come about harms nobody.
 * Old connections may know the old size for ever; so these are let go when the server owes
 * nothing, and made anew. From DRAINING on nothing new is sent.
 */
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/device/nbd_private.h"

static void
end(struct nbd_device *n, int code)
{
    struct device_io *io;

    n->renewal = NBD_RENEW_NO;
    nbd_link_drop(&n->look, true);
    nbd_request_unqueue(n, &n->renew_io);
    while ((io = TAILQ_FIRST(&n->growing))) {
        TAILQ_REMOVE(&n->growing, io, link);
        if (io->offset <= n->info.size)
            device_finish(&n->base, io, 0);
        else
            device_finish(&n->base, io, code < 0 ? code : -THIN_E_UNSUPPORTED);
    }
}

void
nbd_renew_submit(struct nbd_device *n, struct device_io *io)
{
    TAILQ_INSERT_TAIL(&n->growing, io, link);
    if (n->renewal != NBD_RENEW_NO)
        return;
    n->renewal = NBD_RENEW_LOOKING;
    nbd_link_start(&n->look);
}

void
nbd_renew_looked(struct nbd_device *n, const struct nbd_export_info *info)
{
    THIN_ASSERT(n->renewal == NBD_RENEW_LOOKING);
    if (info->size <= n->info.size) {
        end(n, 0);
        return;
    }
    nbd_link_drop(&n->look, true);
    n->renewal = NBD_RENEW_DRAINING;
}

void
nbd_renew_failed(struct nbd_device *n, int code)
{
    if (n->renewal != NBD_RENEW_NO)
        end(n, code);
}

void
nbd_renew_connected(struct nbd_device *n)
{
    /* A look that is under way goes on: it is later than this connection. */
    if (n->renewal > NBD_RENEW_LOOKING)
        end(n, 0);
}

void
nbd_renew_flushed(struct nbd_device *n, int result)
{
    if (result < 0)
        end(n, result);
    else
        n->renewal = NBD_RENEW_FLUSHED;
}

static bool
is_drained(const struct nbd_device *n)
{
    for (unsigned i = 0; i < n->nr_links; i++)
        if (n->links[i].in_flight > 0)
            return false;
    return n->writes_in_flight == 0;
}

static void
connect_anew(struct nbd_device *n)
{
    n->renewal = NBD_RENEW_CONNECTING;
    for (unsigned i = 0; i < n->nr_links; i++)
        nbd_link_drop(&n->links[i], true);
    nbd_link_start(&n->links[0]);
}

void
nbd_renew_step(struct nbd_device *n)
{
    if (n->renewal == NBD_RENEW_DRAINING && is_drained(n)) {
        if (n->written == n->flushed) {
            n->renewal = NBD_RENEW_FLUSHED;
        } else {
            n->renewal = NBD_RENEW_FLUSHING;
            n->renew_io = (struct device_io){.op = DEVICE_FLUSH, .dev = &n->base};
            nbd_request_first(n, &n->renew_io);
        }
    }
    /* Whoever waits for connections waits for new ones now; down ones are on their way. */
    if (n->renewal == NBD_RENEW_FLUSHED) {
        if (n->links[0].state == NBD_LINK_UP)
            connect_anew(n);
        else
            n->renewal = NBD_RENEW_CONNECTING;
    }
}
