/*
 * What the clients of a recorded run knew (record-run.py writes it down), and whether a
 * pool agrees with it. Positions are lengths of the log (record_io.c): a request begun at
 * P cannot have touched what stands before P, one answered at P has done all before P.
 *
 *   W pos volume n first count   pages [first, first+count) are written with stamp n
 *   Z pos volume n first count   they are discarded
 *   A pos volume n               that is answered
 *   F pos volume n               a flush is answered that was sent after answer n
 *   C pos volume size / c pos volume          created / answered
 *   S pos snapshot origin / s pos snapshot    snapshot taken / answered
 *   D pos volume / d pos volume               deleted
 *   R pos volume size / r pos volume          resized (larger)
 */
#ifndef THIN_TESTS_CRASH_REPLAY_NOTES_H
#define THIN_TESTS_CRASH_REPLAY_NOTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NOTE_PAGE        4096u
#define NOTE_PAGES_MAX   512u /* of a volume */
#define NOTE_VOLUMES_MAX 512u /* in one run, deleted ones included */
#define NOTE_NAME_MAX    32u

/* One content that a page may have. */
struct note_stamp {
    uint64_t n; /* 0: as it was made */
    bool zero;
};

struct note_page {
    struct note_stamp *may; /* oldest first; [0] is what must be at least */
    unsigned nr, room;
    uint64_t acked; /* newest answered stamp */
};

struct note_volume {
    char name[NOTE_NAME_MAX];
    bool begun, there, deleting, deleted; /* may be, must be; may be gone, must be */
    int origin;                           /* of a snapshot not answered yet; else -1 */
    uint64_t size, next_size;
    struct note_page pages[NOTE_PAGES_MAX];
};

struct notes;

/* Exits with words when it cannot be read. */
struct notes *notes_read(const char *path);
/* Takes note of all that is known where the log is `pos` bytes long. */
void notes_advance(struct notes *notes, uint64_t pos);
size_t notes_nr_volumes(const struct notes *notes);
const struct note_volume *notes_volume(const struct notes *notes, size_t i);
/* Whether the 512 bytes at sector `sector` of page `page` are one of its contents. */
bool notes_allow(const struct note_volume *volume, uint64_t page, const void *bytes);

#endif
