#include "server/stack.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/random.h"
#include "server/nbd_face.h"
#include "server/pools.h"

#define ORIGIN_ANSWER_MS 10000u /* only the blocks that need it wait for an origin */

#define ID_RAW_BYTES 16u

#define QUESTION_RW STACK_CONTEXT "rw:"
#define QUESTION_RO STACK_CONTEXT "ro:"

/* One open device, and what the pool stands on by it. */
struct stack_leg {
    struct server_pool *sp;
    unsigned nr;
    char ids[STACK_IDS_MAX][STACK_ID_BYTES];
    LIST_ENTRY(stack_leg) link;
};

/* ---- ids ------------------------------------------------------------------------------- */

static bool
is_id(const char *text, size_t len)
{
    return len == STACK_ID_BYTES - 1 && strspn(text, "0123456789abcdef") >= len;
}

static void
print_id(const uint8_t bytes[ID_RAW_BYTES], char ret_id[STACK_ID_BYTES])
{
    for (unsigned i = 0; i < ID_RAW_BYTES; i++)
        snprintf(ret_id + 2 * (size_t)i, 3, "%02x", bytes[i]);
}

int
stack_make_id(char id[STACK_ID_BYTES], struct thin_error *err)
{
    uint8_t bytes[ID_RAW_BYTES];
    int r;

    if (is_id(id, strlen(id)))
        return 0;
    r = random_secret(bytes, sizeof(bytes));
    if (r < 0)
        return thin_fail_code(err, r, "make an id");
    print_id(bytes, id);
    return 0;
}

bool
stack_parse_question(const char *text, size_t len, char ret_id[STACK_ID_BYTES],
                     bool *ret_read_only)
{
    const size_t head = sizeof(QUESTION_RW) - 1;
    char id[STACK_ID_BYTES];
    bool read_only;

    if (len != head + STACK_ID_BYTES - 1)
        return false;
    read_only = memcmp(text, QUESTION_RO, head) == 0;
    if (!read_only && memcmp(text, QUESTION_RW, head) != 0)
        return false;
    memcpy(id, text + head, STACK_ID_BYTES - 1);
    id[STACK_ID_BYTES - 1] = '\0';
    if (!is_id(id, strlen(id)))
        return false;
    memcpy(ret_id, id, STACK_ID_BYTES);
    *ret_read_only = read_only;
    return true;
}

/* ---- lists ------------------------------------------------------------------------------- */

struct id_list {
    unsigned nr;
    const char *ids[STACK_IDS_MAX];
};

static bool
has_id(const struct id_list *list, const char *id)
{
    for (unsigned i = 0; i < list->nr; i++)
        if (strcmp(list->ids[i], id) == 0)
            return true;
    return false;
}

/* False: no room. */
static bool
add_id(struct id_list *list, const char *id)
{
    if (has_id(list, id))
        return true;
    if (list->nr == STACK_IDS_MAX)
        return false;
    list->ids[list->nr++] = id;
    return true;
}

static void
collect(const struct server_pool *sp, struct id_list *list)
{
    const struct stack_leg *leg;

    list->nr = 0;
    add_id(list, sp->stack_id);
    if (sp->stack_uuid[0])
        add_id(list, sp->stack_uuid);
    /* There is room: each leg was judged together with those before it. */
    LIST_FOREACH(leg, &sp->legs, link)
        for (unsigned i = 0; i < leg->nr; i++)
            add_id(list, leg->ids[i]);
}

unsigned
stack_list(const struct server_pool *sp, const char *ret_ids[STACK_IDS_MAX])
{
    struct id_list list;

    collect(sp, &list);
    memcpy(ret_ids, list.ids, list.nr * sizeof(list.ids[0]));
    return list.nr;
}

unsigned
stack_height(const struct server_pool *sp)
{
    struct id_list list;

    collect(sp, &list);
    return list.nr - 1;
}

bool
stack_stands_on(const struct server_pool *sp, const struct server_pool *lower)
{
    struct id_list list;

    collect(sp, &list);
    return sp != lower && has_id(&list, lower->stack_id);
}

/* ---- legs ---------------------------------------------------------------------------------- */

static int
stands_on_itself(const struct server_pool *sp, struct thin_error *err)
{
    return thin_fail(err, -THIN_E_INVALID,
                     "it stands on pool %s itself, which would wait for itself",
                     sp->name);
}

int
stack_set_uuid(struct server_pool *sp, const uint8_t uuid[ID_RAW_BYTES],
               struct thin_error *err)
{
    static const uint8_t none[ID_RAW_BYTES];
    const struct stack_leg *leg;
    char id[STACK_ID_BYTES];

    if (memcmp(uuid, none, sizeof(none)) == 0)
        return 0;
    print_id(uuid, id);
    if (strcmp(sp->stack_uuid, id) == 0)
        return 0;
    LIST_FOREACH(leg, &sp->legs, link)
        for (unsigned i = 0; i < leg->nr; i++)
            if (strcmp(leg->ids[i], id) == 0)
                return stands_on_itself(sp, err);
    memcpy(sp->stack_uuid, id, sizeof(id));
    nbd_face_drop_askers(sp->name);
    return 0;
}

/* What the server behind the export said. */
static int
answered(void *arg, const char *const *names, unsigned nr, struct thin_error *err)
{
    struct stack_leg *leg = arg;
    struct server_pool *sp = leg->sp;
    struct id_list before, after;

    collect(sp, &before);
    after = before;
    for (unsigned i = 0; i < nr; i++) {
        const char *id = names[i] + strlen(STACK_CONTEXT);

        if (strncmp(names[i], STACK_CONTEXT, strlen(STACK_CONTEXT)) != 0 ||
            !is_id(id, strlen(id)))
            continue; /* what a server lists that knows other words */
        if (strcmp(id, sp->stack_id) == 0 || strcmp(id, sp->stack_uuid) == 0)
            return stands_on_itself(sp, err);
        if (!add_id(&after, id))
            return thin_fail(err, -THIN_E_LIMIT,
                             "more than %u pools would stand on one another",
                             STACK_POOLS_MAX);
    }
    leg->nr = 0;
    for (unsigned i = 0; i < nr && leg->nr < STACK_IDS_MAX; i++) {
        const char *id = names[i] + strlen(STACK_CONTEXT);

        if (strncmp(names[i], STACK_CONTEXT, strlen(STACK_CONTEXT)) == 0 &&
            is_id(id, strlen(id)))
            snprintf(leg->ids[leg->nr++], STACK_ID_BYTES, "%s", id);
    }
    /* `after` points into what the device lends: not beyond this call. */
    if (after.nr > before.nr)
        nbd_face_drop_askers(sp->name);
    return 0;
}

static void
leg_gone(void *arg)
{
    struct stack_leg *leg = arg;

    LIST_REMOVE(leg, link);
    free(leg);
}

int
stack_open(struct server_pool *sp, const char *uri, bool read_only,
           device_nbd_opened_fn *opened, void *arg, struct thin_error *err)
{
    struct stack_leg *leg = calloc(1, sizeof(*leg));
    char question[sizeof(QUESTION_RW) + STACK_ID_BYTES];
    struct device_nbd_params params = {
        .uri = uri,
        .read_only = read_only,
        .answer_timeout_ms = read_only ? ORIGIN_ANSWER_MS : DEVICE_NBD_ANSWER_MS};
    int r;

    if (!leg)
        return thin_fail_code(err, -ENOMEM, "open %s", uri);
    leg->sp = sp;
    snprintf(question, sizeof(question), "%s%s", read_only ? QUESTION_RO : QUESTION_RW,
             sp->stack_id);
    params.ask = (struct device_nbd_ask){question, answered, leg_gone, leg};
    LIST_INSERT_HEAD(&sp->legs, leg, link);
    r = device_nbd_open(pools_server(sp->pools)->thin_loop, &params, opened, arg, err);
    if (r < 0)
        leg_gone(leg);
    return r;
}
