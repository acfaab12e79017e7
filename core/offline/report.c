#include "core/offline/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FINDING_TEXT_MAX 640

static const char *const class_names[] = {
#define REPORT_CLASS_NAME(name, text) text,
    REPORT_CLASSES(REPORT_CLASS_NAME)
#undef REPORT_CLASS_NAME
};

static const char *const place_names[] = {
#define REPORT_PLACE_NAME(name, text) text,
    REPORT_PLACES(REPORT_PLACE_NAME)
#undef REPORT_PLACE_NAME
};

const char *
report_class_name(enum report_class c)
{
    return class_names[c];
}

const char *
report_place_name(enum report_place p)
{
    return place_names[p];
}

void
report_init(struct report *rep)
{
    memset(rep, 0, sizeof(*rep));
}

void
report_fini(struct report *rep)
{
    for (size_t i = 0; i < rep->nr; i++)
        free(rep->findings[i].text);
    free(rep->findings);
    free(rep->affected);
    report_init(rep);
}

/* Makes room for one more; false when the limit or memory says no. */
static bool
grow(void **array, size_t nr, size_t *room, size_t size, size_t max, bool *no_memory)
{
    size_t wanted = *room ? *room * 2 : 16;
    void *bigger;

    if (nr < *room)
        return true;
    if (nr >= max)
        return false;
    bigger = realloc(*array, wanted * size);
    if (!bigger) {
        *no_memory = true;
        return false;
    }
    *array = bigger;
    *room = wanted;
    return true;
}

void
report_add(struct report *rep, enum report_class class, enum report_place place,
           uint64_t block, const char *fmt, ...)
{
    char text[FINDING_TEXT_MAX];
    struct finding *f;
    va_list ap;
    void *array = rep->findings;

    rep->nr_class[class]++;
    rep->nr_damage_at[place] += class == REPORT_DAMAGE;
    if (!grow(&array, rep->nr, &rep->room, sizeof(*f), REPORT_FINDINGS_MAX,
              &rep->no_memory))
        return;
    rep->findings = array;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    f = &rep->findings[rep->nr];
    f->class = class;
    f->place = place;
    f->block = block;
    f->seq = (uint32_t)rep->nr;
    f->text = strdup(text);
    if (f->text)
        rep->nr++;
    else
        rep->no_memory = true;
}

void
report_affected(struct report *rep, const struct affected *a)
{
    void *array = rep->affected;

    rep->nr_affected_all++;
    if (!grow(&array, rep->nr_affected, &rep->affected_room, sizeof(*a),
              REPORT_AFFECTED_MAX, &rep->no_memory))
        return;
    rep->affected = array;
    rep->affected[rep->nr_affected++] = *a;
}

static int
order(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

static int
compare_findings(const void *pa, const void *pb)
{
    const struct finding *a = pa, *b = pb;
    int r = order(a->place, b->place);

    if (!r)
        r = order(a->block, b->block);
    return r ? r : order(a->seq, b->seq);
}

static int
compare_affected(const void *pa, const void *pb)
{
    const struct affected *a = pa, *b = pb;
    int r = order(a->held, b->held);

    if (!r)
        r = order(a->dev_id, b->dev_id);
    return r ? r : order(a->begin, b->begin);
}

void
report_sort(struct report *rep)
{
    if (rep->nr)
        qsort(rep->findings, rep->nr, sizeof(*rep->findings), compare_findings);
    if (rep->nr_affected)
        qsort(rep->affected, rep->nr_affected, sizeof(*rep->affected), compare_affected);
}
