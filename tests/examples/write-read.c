/*
 * Writes some bytes into a volume and reads them back: an example for libthinclient,
 * with the calls that wait.
 *
 *      cc write-read.c $(pkg-config --cflags --libs libthinclient)
 *      ./a.out unix:/run/thinsrv/thinsrv.sock tank/vol
 */
#include <stdio.h>
#include <string.h>

#include <thinclient.h>

static int
write_and_read(struct thin_client_volume *volume)
{
    static const char text[] = "thin volumes are made of written blocks only";
    char back[sizeof(text)];
    /* Any byte will do as a place; FUA: answered when it is durable. */
    int r = thin_client_write_wait(volume, text, sizeof(text), 12345, THIN_CLIENT_FUA);

    if (r == 0)
        r = thin_client_read_wait(volume, back, sizeof(back), 12345);
    if (r == 0)
        printf("%s\n", memcmp(text, back, sizeof(text)) == 0 ? back : "something else");
    return r;
}

int
main(int argc, char **argv)
{
    struct thin_client *client;
    struct thin_client_volume *volume;
    int r;

    if (argc != 3) {
        fprintf(stderr, "usage: %s SERVER POOL/VOLUME\n", argv[0]);
        return 2;
    }
    client = thin_client_create();
    if (!client) {
        fprintf(stderr, "%s: out of memory\n", argv[0]);
        return 1;
    }
    r = thin_client_set_server(client, argv[1]);
    if (r == 0)
        r = thin_client_connect_wait(client);
    if (r == 0)
        r = thin_client_open_wait(client, argv[2], 0, &volume);
    if (r == 0) {
        r = write_and_read(volume);
        if (r < 0)
            fprintf(stderr, "%s: %s\n", argv[0], thin_client_strerror(r));
        thin_client_close_wait(volume);
    } else {
        fprintf(stderr, "%s: %s\n", argv[0], thin_client_error(client));
    }
    thin_client_destroy(client);
    return r < 0;
}
