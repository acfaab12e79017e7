/*
 * The pool's own marks in the superblock's trailer. The owner mark is durable before
 * anything is served, since a machine that no lock reaches must see it; closing in good
 * order takes it back, and says with the clean mark that nothing acknowledged is lost. A
 * pool without a trailer (imported) gets both with its first change.
 */
#include "core/pool/io_private.h"

static void
mark_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct pool *pool = op->pool;

    if (result < 0)
        log_warning("could not %s: %s pool=%s", op->name, thin_error_text(err, result),
                    pool->name);
    pool->end->marked(pool, result);
}

void
owner_write_mark(struct pool *pool, const char *name,
                 void (*marked)(struct pool *pool, int result))
{
    struct metaop *op = &pool->end->op;

    memset(op, 0, sizeof(*op));
    op->run = catalogue_touch;
    op->done = mark_done;
    op->purse = TM_COMMIT;
    op->name = name;
    pool->end->marked = marked;
    metaop_start(pool, op, false);
}
