#include "tests/crash/replay_notes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"

struct one_note {
    uint64_t key; /* it counts from this length of the log on */
    size_t line;
    char kind;
    char volume[NOTE_NAME_MAX], other[NOTE_NAME_MAX];
    uint64_t a, b, c;
};

struct notes {
    struct one_note *all;
    size_t nr, room, next;
    struct note_volume *volumes[NOTE_VOLUMES_MAX];
    size_t nr_volumes;
};

static void
give_up(const char *what, const char *where)
{
    fprintf(stderr, "notes: %s: %s\n", what, where);
    exit(EXIT_FAILURE);
}

/* ---- reading --------------------------------------------------------------------------- */

static int
by_key(const void *a, const void *b)
{
    const struct one_note *x = a, *y = b;

    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

/* An answer never counts before its request. */
static uint64_t
begun_at(const struct notes *notes, const struct one_note *n)
{
    char begin = n->kind == 'A' ? 'W' : (char)(n->kind - 'a' + 'A');

    for (size_t i = notes->nr; i-- > 0;) {
        const struct one_note *m = &notes->all[i];

        if (strcmp(m->volume, n->volume) == 0 &&
            (m->kind == begin || (n->kind == 'A' && m->kind == 'Z')) &&
            (n->kind != 'A' || m->a == n->a))
            return m->key;
    }
    give_up("an answer without a request", n->volume);
    return 0;
}

static void
read_line(struct notes *notes, const char *line)
{
    struct one_note n = {.line = notes->nr};
    uint64_t pos;
    char rest[128] = "";

    if (sscanf(line, "%c %" SCNu64 " %31s %127[^\n]", &n.kind, &pos, n.volume, rest) < 3)
        give_up("not a note", line);
    if (n.kind == 'S')
        snprintf(n.other, sizeof(n.other), "%.31s", rest);
    else if (sscanf(rest, "%" SCNu64 " %" SCNu64 " %" SCNu64, &n.a, &n.b, &n.c) < 1 &&
             strchr("WZAFCR", n.kind))
        give_up("numbers are missing", line);
    n.key = pos;
    if (strchr("WZCSDR", n.kind)) {
        n.key = pos + 1;
    } else if (n.kind != 'F') {
        uint64_t begun = begun_at(notes, &n);

        n.key = begun > pos ? begun : pos;
    }
    if (notes->nr == notes->room) {
        notes->room = notes->room ? 2 * notes->room : 4096;
        notes->all = realloc(notes->all, notes->room * sizeof(n));
        THIN_ASSERT(notes->all);
    }
    notes->all[notes->nr++] = n;
}

struct notes *
notes_read(const char *path)
{
    struct notes *notes = calloc(1, sizeof(*notes));
    FILE *file = fopen(path, "re");
    char line[256];

    THIN_ASSERT(notes);
    if (!file)
        give_up("cannot be read", path);
    while (fgets(line, sizeof(line), file))
        read_line(notes, line);
    fclose(file);
    qsort(notes->all, notes->nr, sizeof(*notes->all), by_key);
    return notes;
}

/* ---- what may be ------------------------------------------------------------------------- */

static int
find(const struct notes *notes, const char *name)
{
    for (size_t i = 0; i < notes->nr_volumes; i++)
        if (strcmp(notes->volumes[i]->name, name) == 0)
            return (int)i;
    return -1;
}

static struct note_volume *
need(const struct notes *notes, const char *name)
{
    int i = find(notes, name);

    if (i < 0)
        give_up("no such volume", name);
    return notes->volumes[i];
}

static void
page_add(struct note_page *page, struct note_stamp stamp)
{
    if (page->nr == page->room) {
        page->room = page->room ? 2 * page->room : 4;
        page->may = realloc(page->may, page->room * sizeof(*page->may));
        THIN_ASSERT(page->may);
    }
    page->may[page->nr++] = stamp;
}

/* From stamp `n` on. */
static void
page_raise(struct note_page *page, uint64_t n)
{
    unsigned from = 0;

    while (from + 1 < page->nr && page->may[from + 1].n <= n)
        from++;
    memmove(page->may, page->may + from, (page->nr - from) * sizeof(*page->may));
    page->nr -= from;
}

static struct note_volume *
add_volume(struct notes *notes, const char *name)
{
    struct note_volume *v = calloc(1, sizeof(*v));

    THIN_ASSERT(v && notes->nr_volumes < NOTE_VOLUMES_MAX);
    snprintf(v->name, sizeof(v->name), "%s", name);
    v->begun = true;
    v->origin = -1;
    notes->volumes[notes->nr_volumes++] = v;
    return v;
}

static void
snapshot(struct notes *notes, const struct one_note *n)
{
    int origin = find(notes, n->other);
    const struct note_volume *from = need(notes, n->other);
    struct note_volume *v = add_volume(notes, n->volume);

    v->origin = origin;
    v->size = v->next_size = from->next_size;
    for (unsigned p = 0; p < NOTE_PAGES_MAX; p++) {
        const struct note_page *page = &from->pages[p];

        for (unsigned i = 0; i < page->nr; i++)
            page_add(&v->pages[p], page->may[i]);
        /* What was answered before is in it. */
        page_raise(&v->pages[p], page->acked);
    }
}

static void
written(struct notes *notes, const struct one_note *n)
{
    struct note_volume *v = need(notes, n->volume);
    int index = find(notes, n->volume);
    struct note_stamp stamp = {n->a, n->kind == 'Z'};

    THIN_ASSERT(n->b + n->c <= NOTE_PAGES_MAX);
    for (uint64_t p = n->b; p < n->b + n->c; p++) {
        page_add(&v->pages[p], stamp);
        for (size_t i = 0; i < notes->nr_volumes; i++)
            if (notes->volumes[i]->origin == index)
                page_add(&notes->volumes[i]->pages[p], stamp);
    }
}

static void
answered(struct note_volume *v, uint64_t n)
{
    for (unsigned p = 0; p < NOTE_PAGES_MAX; p++)
        for (unsigned i = 0; i < v->pages[p].nr; i++)
            if (v->pages[p].may[i].n == n)
                v->pages[p].acked = n;
}

static void
flushed(struct note_volume *v, uint64_t n)
{
    for (unsigned p = 0; p < NOTE_PAGES_MAX; p++) {
        struct note_page *page = &v->pages[p];

        page_raise(page, page->acked < n ? page->acked : n);
    }
}

static void
apply(struct notes *notes, const struct one_note *n)
{
    struct note_volume *v;

    switch (n->kind) {
    case 'W':
    case 'Z':
        written(notes, n);
        break;
    case 'A':
        answered(need(notes, n->volume), n->a);
        break;
    case 'F':
        flushed(need(notes, n->volume), n->a);
        break;
    case 'C':
        v = add_volume(notes, n->volume);
        v->size = v->next_size = n->a;
        for (unsigned p = 0; p < NOTE_PAGES_MAX; p++)
            page_add(&v->pages[p], (struct note_stamp){0, true});
        break;
    case 'S':
        snapshot(notes, n);
        break;
    case 'c':
    case 's':
        v = need(notes, n->volume);
        v->there = true;
        v->origin = -1;
        break;
    case 'D':
        need(notes, n->volume)->deleting = true;
        break;
    case 'd':
        need(notes, n->volume)->deleted = true;
        break;
    case 'R':
        need(notes, n->volume)->next_size = n->a;
        break;
    case 'r':
        v = need(notes, n->volume);
        v->size = v->next_size;
        break;
    default:
        give_up("unknown kind", n->volume);
    }
}

void
notes_advance(struct notes *notes, uint64_t pos)
{
    for (; notes->next < notes->nr && notes->all[notes->next].key <= pos; notes->next++)
        apply(notes, &notes->all[notes->next]);
}

size_t
notes_nr_volumes(const struct notes *notes)
{
    return notes->nr_volumes;
}

const struct note_volume *
notes_volume(const struct notes *notes, size_t i)
{
    return notes->volumes[i];
}

bool
notes_allow(const struct note_volume *volume, uint64_t page, const void *bytes)
{
    static const char zeros[512];
    const struct note_page *p = &volume->pages[page];
    bool zero = memcmp(bytes, zeros, sizeof(zeros)) == 0;
    uint64_t words[64];

    memcpy(words, bytes, sizeof(words));
    for (unsigned i = 0; !zero && i < 64; i++)
        if (words[i] != (i % 2 ? words[1] : page))
            return false;
    for (unsigned i = 0; i < p->nr; i++)
        if (p->may[i].zero ? zero : !zero && p->may[i].n == words[1])
            return true;
    return false;
}
