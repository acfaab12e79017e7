#include "core/base/seeded_bug.h"

#ifdef THIN_SEEDED_BUGS

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {[SEEDED_NONE] = "NONE",
#define SEEDED_BUG_NAME(name, words) [SEEDED_##name] = #name,
                                    SEEDED_BUG_TABLE(SEEDED_BUG_NAME)
#undef SEEDED_BUG_NAME
};

static enum seeded_bug
chosen(void)
{
    const char *name = getenv("THIN_SEEDED_BUG");

    for (unsigned i = 0; name && i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(names[i], name) == 0)
            return (enum seeded_bug)i;
    if (name) {
        fprintf(stderr, "there is no seeded bug %s\n", name);
        abort();
    }
    return SEEDED_NONE;
}

bool
seeded_bug(enum seeded_bug bug)
{
    static int found = -1;

    if (found < 0)
        found = (int)chosen();
    return (int)bug == found;
}

#endif
