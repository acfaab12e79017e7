/* The waiting forms: each runs the client until its own callback was made. */
#include <string.h>

#include "client/lib/client_private.h"
#include "core/base/checked.h"

struct wait {
    bool done;
    int result;
    struct thin_client_volume *volume;
};

static void
on_done(void *arg, int result)
{
    struct wait *wait = arg;

    wait->done = true;
    wait->result = result;
}

static void
on_opened(void *arg, int result, struct thin_client_volume *volume)
{
    struct wait *wait = arg;

    wait->volume = volume;
    on_done(arg, result);
}

/* `r` is the result of the call that started. */
static int
wait_for(struct thin_client *client, struct wait *wait, int r)
{
    while (r == 0 && !wait->done)
        r = client_run_wait(client, -1, NULL);
    return r < 0 ? r : wait->result;
}

int
thin_client_connect_wait(struct thin_client *client)
{
    struct wait wait = {.done = false};

    return wait_for(client, &wait, thin_client_connect(client, on_done, &wait));
}

int
thin_client_open_wait(struct thin_client *client, const char *name, unsigned flags,
                      struct thin_client_volume **ret_volume)
{
    struct wait wait = {.done = false};
    int r =
        wait_for(client, &wait, thin_client_open(client, name, flags, on_opened, &wait));

    if (r == 0)
        *ret_volume = wait.volume;
    return r;
}

int
thin_client_close_wait(struct thin_client_volume *volume)
{
    struct wait wait = {.done = false};
    struct thin_client *client = volume->client; /* outlives it */

    return wait_for(client, &wait, thin_client_close(volume, on_done, &wait));
}

/* One piece after another: these are for tools, which are not in a hurry. */
static int
transfer_wait(struct thin_client_volume *volume, bool write, uint8_t *bytes, size_t len,
              uint64_t offset, unsigned flags)
{
    do {
        struct wait wait = {.done = false};
        struct iovec iov = {bytes, min_u64(len, volume->client->max_payload)};
        int r;

        if (write)
            r = thin_client_write(volume, &iov, 1, offset, flags, on_done, &wait);
        else
            r = thin_client_read(volume, &iov, 1, offset, on_done, &wait);
        r = wait_for(volume->client, &wait, r);
        if (r < 0)
            return r;
        bytes += iov.iov_len;
        offset += iov.iov_len;
        len -= iov.iov_len;
    } while (len > 0);
    return 0;
}

int
thin_client_read_wait(struct thin_client_volume *volume, void *buf, size_t len_bytes,
                      uint64_t offset)
{
    return transfer_wait(volume, false, buf, len_bytes, offset, 0);
}

int
thin_client_write_wait(struct thin_client_volume *volume, const void *buf,
                       size_t len_bytes, uint64_t offset, unsigned flags)
{
    return transfer_wait(volume, true, (uint8_t *)(uintptr_t)buf, len_bytes, offset,
                         flags);
}

int
thin_client_flush_wait(struct thin_client_volume *volume)
{
    struct wait wait = {.done = false};

    return wait_for(volume->client, &wait, thin_client_flush(volume, on_done, &wait));
}

int
thin_client_discard_wait(struct thin_client_volume *volume, uint64_t offset,
                         uint64_t len_bytes, unsigned flags)
{
    struct wait wait = {.done = false};

    return wait_for(
        volume->client, &wait,
        thin_client_discard(volume, offset, len_bytes, flags, on_done, &wait));
}

int
thin_client_write_zeroes_wait(struct thin_client_volume *volume, uint64_t offset,
                              uint64_t len_bytes, unsigned flags)
{
    struct wait wait = {.done = false};

    return wait_for(
        volume->client, &wait,
        thin_client_write_zeroes(volume, offset, len_bytes, flags, on_done, &wait));
}
