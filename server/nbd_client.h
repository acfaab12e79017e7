/*
 * One NBD client, and which file does what for it:
 *
 *   nbd_face.c     accept, the end, the list of all clients
 *   nbd_bytes.c    between the stream and the state machine of proto/nbd
 *   nbd_export.c   what it may see and open
 *   nbd_io.c       its requests on the open volume, and memory for their payloads
 *
 * Main loop only. Private to these files.
 */
#ifndef THIN_SERVER_NBD_CLIENT_H
#define THIN_SERVER_NBD_CLIENT_H

#include "proto/nbd/nbd_input.h"
#include "proto/nbd/nbd_server.h"
#include "server/attach.h"
#include "server/nbd_face.h"
#include "server/stack.h"
#include "server/stream.h"

#define NBD_READ_EXTENTS   17u /* data and holes of one read, told apart */
#define NBD_STATUS_EXTENTS 64u /* of one step of a block status */

/* What a context's id in the state machine stands for. */
#define NBD_CONTEXT_ALLOCATION 1u /* base:allocation */
#define NBD_CONTEXT_DEPTH      2u /* qemu:allocation-depth */

/* Our memory in each request object of the state machine. */
struct nbd_job {
    struct volume_io io;
    struct nbd_client *client;   /* the way back */
    struct attach_waiter waiter; /* of the first change */
    struct volume_extent extents[NBD_STATUS_EXTENTS];
};

/*
 * One client. Alive from accept until its stream is closed, its state machine idle and
 * its export given back:
 *
 *   accept ─► stream, state machine ─► open (attach) ─► requests
 *   broken or finished ─► stream closed ─► nbd_conn_close ─► idle ─► freed
 */
struct nbd_client {
    struct server *server;
    uint64_t id;
    struct stream stream;
    struct nbd_conn *conn;
    struct nbd_input input;
    struct auth_peer peer;
    bool local;
    bool tls_running;
    bool counted_handshake;
    bool closing;
    bool opening;    /* an attach_open is under way */
    bool only_asked; /* for an INFO */
    /* A pool that stands on our volumes (stack.h): its id, and which pool it asked for. */
    char asker[STACK_ID_BYTES];
    bool asker_reads_only;
    char asked_pool[THIN_NAME_MAX + 1];
    char peer_text[128];
    char volume_name[2 * THIN_NAME_MAX + 2];
    uint64_t since_s;
    struct attachment *attachment;
    struct payload_waiter waiter;
    struct thin_task end_task;
    TAILQ_ENTRY(nbd_client) link;
};

/* ---- nbd_face.c ------------------------------------------------------------------------- */

/* Starts the end; on a later turn the client is gone. May be called more than once. */
void nbd_client_end(struct nbd_client *c);
/* While the server stops: one of our own pools, which needs it until it is closed. */
bool nbd_client_goes_on(const struct nbd_client *c);

/* ---- nbd_bytes.c ------------------------------------------------------------------------- */

extern const struct stream_ops nbd_client_stream_ops;
int nbd_bytes_init(void); /* once before the first client; 0 or -ENOMEM */
void nbd_bytes_fini(void);

/* ---- calls of the state machine: see struct nbd_ops ---------------------------------------- */

void nbd_client_wake(void *arg);
void nbd_client_list_exports(void *arg, struct nbd_conn *conn, const char *after);
void nbd_client_open(void *arg, struct nbd_conn *conn, const struct nbd_open *wish);
void nbd_client_contexts(void *arg, struct nbd_conn *conn,
                         const struct nbd_context_wish *wish);
void nbd_client_close_export(void *arg, void *handle);
int nbd_client_get_buffer(void *arg, size_t len, struct nbd_buffer *ret);
void nbd_client_put_buffer(void *arg, struct nbd_buffer *buffer);
void nbd_client_submit(void *arg, struct nbd_request *req);
/* Memory that it waited for has come. */
void nbd_client_buffer_ready(struct payload_waiter *waiter);

#endif
