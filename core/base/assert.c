#include "core/base/assert.h"

#include <stdio.h>
#include <stdlib.h>

void
thin_assert_failed(const char *what, const char *file, int line, const char *func)
{
    fprintf(stderr,
            "assertion failed, this is a bug in thinsrv: %s at=%s:%d function=%s\n", what,
            file, line, func);
    abort();
}
