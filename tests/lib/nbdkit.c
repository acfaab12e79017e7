#include "tests/lib/nbdkit.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/assert.h"

void
nbdkit_init(struct nbdkit *k)
{
    const char *tmp = getenv("TMPDIR");

    memset(k, 0, sizeof(*k));
    /* A socket's path is short. */
    snprintf(k->dir, sizeof(k->dir), "%s/thin-nbd-XXXXXX",
             tmp && strlen(tmp) < 60 ? tmp : "/tmp");
    THIN_ASSERT(mkdtemp(k->dir) != NULL);
    snprintf(k->socket, sizeof(k->socket), "%s/s", k->dir);
    snprintf(k->uri, sizeof(k->uri), "nbd+unix:///?socket=%s", k->socket);
}

void
nbdkit_start(struct nbdkit *k, const char *args)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    char command[2048], ready[128];
    int status;

    THIN_ASSERT(k->pid == 0);
    unlink(k->socket);
    /* The file appears when it listens. */
    snprintf(ready, sizeof(ready), "%s/pid", k->dir);
    unlink(ready);
    if (strstr(args, " -p "))
        snprintf(command, sizeof(command), "exec nbdkit -f -P %s %s", ready, args);
    else
        snprintf(command, sizeof(command), "exec nbdkit -f -P %s -U %s %s", ready,
                 k->socket, args);
    k->pid = fork();
    THIN_ASSERT(k->pid >= 0);
    if (k->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setenv("DIR", k->dir, 1);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    for (unsigned i = 0; access(ready, F_OK) != 0; i++) {
        THIN_ASSERT(i < 2000);
        THIN_ASSERT(waitpid(k->pid, &status, WNOHANG) == 0); /* it has failed */
        nanosleep(&pause, NULL);
    }
}

void
nbdkit_kill(struct nbdkit *k)
{
    int status;

    if (k->pid == 0)
        return;
    kill(k->pid, SIGKILL);
    while (waitpid(k->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    k->pid = 0;
}

void
nbdkit_fini(struct nbdkit *k)
{
    char command[160];
    int r;

    nbdkit_kill(k);
    snprintf(command, sizeof(command), "rm -rf '%s'", k->dir);
    r = system(command);
    THIN_ASSERT(r == 0);
}
