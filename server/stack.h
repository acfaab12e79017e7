/*
 * Stacked pools: which pools a pool stands on, so that none ever waits for itself.
 *
 * A pool *stands on* another one if its data, its metadata or an external origin of its
 * volumes is a volume of the other, over NBD, in this process or in any other; and on all
 * that the other stands on. Each pool has an id for this (server_pool.stack_id), and a
 * second one is the UUID that its metadata bear, for a pool that is known anew by another
 * name. Before an export is opened the server behind it is asked for the ids that it
 * stands on, by a list of meta contexts:
 *
 *     LIST_META_CONTEXT "thin:stack:rw:OURS" (or ro:)  ->  "thin:stack:ID" for each
 *
 * If our own id is among them, the export is not opened. Answers are kept with each open
 * device (a *leg*), and asked for anew with each connection. Two rules make them hold:
 *
 *   - who was told a list loses his connection when the list becomes longer, in the same
 *     step: so he asks again before he goes on;
 *   - a list becomes longer before the new device is used.
 *
 * So along every open connection the list of the pool below is shorter than that of the
 * pool above, and a circle cannot be: it would be shorter than itself. The length of the
 * list is the pool's *height*; memory that requests share is kept free for those below
 * (payload.h).
 *
 * A server in between that passes on bytes and no questions hides what stands behind it;
 * nothing outside shows such a circle, since it need not be closed where one looks. There
 * the limits in time hold: an open reads its catalogue, which waits for itself and ends with
 * an error (tests/system/test-circle.sh), and what waits for an origin fails alone.
 *
 * Who asks is known by his id from then on: he holds the volume as "pool:ID", so that no
 * other client and no second pool writes to it meanwhile. Main loop only.
 */
#ifndef THIN_SERVER_STACK_H
#define THIN_SERVER_STACK_H

#include "core/device/device_nbd.h"
#include "server/server.h"

#define STACK_ID_BYTES  33u /* 32 hexadecimal digits, and NUL */
#define STACK_POOLS_MAX 16u /* that one pool stands on, itself included */
#define STACK_IDS_MAX   (2 * STACK_POOLS_MAX)
#define STACK_CONTEXT   "thin:stack:"

struct server_pool;
struct stack_leg;

/* A new id, if `id` is empty. */
int stack_make_id(char id[STACK_ID_BYTES], struct thin_error *err);
/*
 * What the pool's metadata bear, once that is known; all zeros: nothing.
 * -THIN_E_INVALID: it stands on a pool that bears the same.
 */
int stack_set_uuid(struct server_pool *sp, const uint8_t uuid[16],
                   struct thin_error *err);

/*
 * Opens the export for the pool; as device_nbd_open, whose rules for `opened` hold. To
 * `opened` also -THIN_E_INVALID (the pool would stand on itself), -THIN_E_LIMIT (too many
 * pools). The pool is to outlive the device.
 */
int stack_open(struct server_pool *sp, const char *uri, bool read_only,
               device_nbd_opened_fn *opened, void *arg, struct thin_error *err);

/* The ids that `sp` stands on, its own first. Returns how many. */
unsigned stack_list(const struct server_pool *sp, const char *ret_ids[STACK_IDS_MAX]);
/* How many ids there are beside its first. */
unsigned stack_height(const struct server_pool *sp);
bool stack_stands_on(const struct server_pool *sp, const struct server_pool *lower);

/* A client's question: true, with his id and what he wants. */
bool stack_parse_question(const char *text, size_t len, char ret_id[STACK_ID_BYTES],
                          bool *ret_read_only);

#endif
