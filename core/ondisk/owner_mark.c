#include "core/ondisk/owner_mark.h"

#include <string.h>
#include <time.h>

#include "core/ondisk/trailer.h"

int
owner_mark_judge(const void *block, const uint8_t machine[16], bool takeover,
                 struct thin_error *err)
{
    static const uint8_t nobody[16];
    const uint8_t *bytes = block;
    struct catalogue_trailer t;
    bool found = false;
    char since[40] = "";
    time_t start;
    struct tm tm;
    int r;

    if (takeover)
        return 0;
    r = catalogue_trailer_decode(bytes + SUPERBLOCK_TRAILER_OFFSET, &t, &found, err);
    if (r < 0)
        return thin_wrap(err, r, "read the owner mark");
    if (!found || memcmp(t.owner_host, nobody, 16) == 0 ||
        memcmp(t.owner_host, machine, 16) == 0)
        return 0;
    start = (time_t)t.owner_start;
    if (t.owner_start && gmtime_r(&start, &tm))
        strftime(since, sizeof(since), ", since %Y-%m-%d %H:%M UTC", &tm);
    return thin_fail(
        err, -THIN_E_BUSY,
        "the metadata belongs to thinsrv on another machine (machine-id "
        "%02x%02x%02x%02x...%s); make sure that nobody serves it there, then "
        "use --force-takeover",
        t.owner_host[0], t.owner_host[1], t.owner_host[2], t.owner_host[3], since);
}
