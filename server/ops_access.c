/* Access rules: listed from memory, changed through the helper thread. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "server/dispatch.h"

#define RULES_A_PAGE PROTO_LIST_MAX

void
ops_access_list(struct request *rq, const struct op_object *object)
{
    const struct auth_rule *rules;
    unsigned nr = auth_rules(rq->server->auth, &rules), at = 0;
    AUTO_FREE Thin__AccessRule *page = calloc(RULES_A_PAGE, sizeof(*page));
    AUTO_FREE Thin__AccessRule **list = calloc(RULES_A_PAGE, sizeof(Thin__AccessRule *));

    (void)object;
    if (!page || !list) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    do {
        Thin__Reply reply = THIN__REPLY__INIT;
        Thin__AccessListReply body = THIN__ACCESS_LIST_REPLY__INIT;
        unsigned n = 0;

        for (; at < nr && n < RULES_A_PAGE; at++, n++) {
            list[n] = &page[n];
            thin__access_rule__init(list[n]);
            list[n]->who = (char *)(uintptr_t)rules[at].who;
            list[n]->right = (char *)(uintptr_t)auth_right_name(rules[at].right);
            list[n]->glob = (char *)(uintptr_t)rules[at].glob;
        }
        body.n_rules = n;
        body.rules = list;
        reply.body_case = THIN__REPLY__BODY_ACCESS_LIST;
        reply.access_list = &body;
        if (at == nr) {
            request_reply(rq, &reply);
            return;
        }
        request_reply_more(rq, &reply, NULL, 0);
    } while (at < nr);
}

/* ---- changes ------------------------------------------------------------------------------- */

/* One change at a time; those that come meanwhile wait for their turn. */
struct access_job {
    struct request *rq;
    struct auth_rule rule;
    bool revoke;
    struct auth_change *change;
    int result;
    struct thin_error err;
    struct blocking_job job;
    STAILQ_ENTRY(access_job) link;
};

static STAILQ_HEAD(, access_job) waiting = STAILQ_HEAD_INITIALIZER(waiting);
static bool running;

static void start_next(void);

static void
work_write(struct blocking_job *job)
{
    struct access_job *j = container_of(job, struct access_job, job);

    j->result = auth_write(j->change, &j->err);
}

static void
end_job(struct access_job *j)
{
    struct request *rq = j->rq;

    if (j->result == 0)
        log_notice("access rule %s identity=%s who=%s right=%s glob=%s",
                   j->revoke ? "revoked" : "granted", rq->session->peer.identity,
                   j->rule.who, auth_right_name(j->rule.right), j->rule.glob);
    request_reply_code(rq, j->result, &j->err);
    free(j);
}

static void
written(struct blocking_job *job)
{
    struct access_job *j = container_of(job, struct access_job, job);

    auth_end(j->rq->server->auth, j->change, j->result == 0);
    running = false;
    end_job(j);
    start_next();
}

static void
start_next(void)
{
    struct access_job *j;

    while (!running && (j = STAILQ_FIRST(&waiting))) {
        struct server *server = j->rq->server;

        STAILQ_REMOVE_HEAD(&waiting, link);
        j->result = j->revoke
                        ? auth_begin_revoke(server->auth, &j->rule, &j->change, &j->err)
                        : auth_begin_grant(server->auth, &j->rule, &j->change, &j->err);
        if (j->result < 0 || !j->change) {
            end_job(j);
            continue;
        }
        running = true;
        j->job.work = work_write;
        j->job.done = written;
        j->job.loop = server->loop;
        blocking_submit(server->blocking, &j->job);
    }
}

static void
change_rules(struct request *rq, const char *who, const char *right, const char *glob,
             bool revoke)
{
    struct access_job *j = calloc(1, sizeof(*j));
    struct thin_error err;
    int r = 0;

    if (!j) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    thin_error_init(&j->err);
    j->rq = rq;
    j->revoke = revoke;
    if (strlen(who) >= AUTH_WHO_MAX || strlen(glob) >= AUTH_GLOB_MAX)
        r = thin_fail(&err, -THIN_E_LIMIT, "a subject or an object is longer than %u",
                      AUTH_GLOB_MAX - 1);
    if (r == 0)
        r = auth_right_parse(right, &j->rule.right, &err);
    if (r < 0) {
        free(j);
        request_reply_code(rq, r, &err);
        return;
    }
    snprintf(j->rule.who, sizeof(j->rule.who), "%s", who);
    snprintf(j->rule.glob, sizeof(j->rule.glob), "%s", glob);
    STAILQ_INSERT_TAIL(&waiting, j, link);
    start_next();
}

void
ops_access_grant(struct request *rq, const struct op_object *object)
{
    const Thin__AccessGrant *m = ops_body(rq);

    (void)object;
    change_rules(rq, m->who, m->right, m->glob, false);
}

void
ops_access_revoke(struct request *rq, const struct op_object *object)
{
    const Thin__AccessRevoke *m = ops_body(rq);

    (void)object;
    change_rules(rq, m->who, m->right, m->glob, true);
}
