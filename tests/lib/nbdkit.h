/*
 * nbdkit as a child process, for tests: a real NBD server in a folder of its own, that
 * can be killed, stopped and started again. It ends with the test at the latest. All
 * calls abort the test when something is missing.
 */
#ifndef THIN_TESTS_LIB_NBDKIT_H
#define THIN_TESTS_LIB_NBDKIT_H

#include <sys/types.h>

struct nbdkit {
    pid_t pid; /* 0: not running */
    char dir[96];
    char socket[108]; /* as long as an address takes */
    char uri[192];
};

/* Makes the folder; starts nothing. */
void nbdkit_init(struct nbdkit *k);

/*
 * Runs `nbdkit ARGS` (words split by the shell; $DIR is the folder) until it listens, at
 * its socket, unless ARGS name a port with " -p ".
 */
void nbdkit_start(struct nbdkit *k, const char *args);

/* SIGKILL, and waits for its end: what it had not written is gone. */
void nbdkit_kill(struct nbdkit *k);

/* Kills it and removes the folder. */
void nbdkit_fini(struct nbdkit *k);

#endif
