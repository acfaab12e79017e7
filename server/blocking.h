/*
 * Work that may wait (open, stat, mkdir, probing a device, reading certificates),
 * done on a helper thread so that no loop waits. Jobs run one after another in the
 * order of arrival; `done` comes back on the loop that asked.
 */
#ifndef THIN_SERVER_BLOCKING_H
#define THIN_SERVER_BLOCKING_H

#include "server/loop.h"

struct blocking;

struct blocking_job {
    void (*work)(struct blocking_job *job); /* on the helper thread */
    void (*done)(struct blocking_job *job); /* on the asking loop */
    struct server_loop *loop;
    struct loop_post post;
    STAILQ_ENTRY(blocking_job) link;
};

int blocking_create(struct blocking **ret, struct thin_error *err);
/* Waits for the jobs handed in; only at the server's end, no loop running. */
void blocking_destroy(struct blocking *blocking);
void blocking_submit(struct blocking *blocking, struct blocking_job *job);

#endif
