#include "core/base/random.h"

#include <errno.h>
#include <sys/random.h>

#include "core/base/assert.h"

static uint64_t
splitmix(uint64_t *x)
{
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void
random_seed(struct thin_random *rng, uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        rng->state[i] = splitmix(&seed);
}

static uint64_t
rotate_left(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

uint64_t
random_u64(struct thin_random *rng)
{
    uint64_t *s = rng->state;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t
random_below(struct thin_random *rng, uint64_t n)
{
    uint64_t limit;

    THIN_ASSERT(n > 0);
    limit = UINT64_MAX - UINT64_MAX % n;
    for (;;) {
        uint64_t r = random_u64(rng);

        if (r < limit)
            return r % n;
    }
}

int
random_secret(void *bytes, size_t len_bytes)
{
    char *p = bytes;

    while (len_bytes > 0) {
        ssize_t got = getrandom(p, len_bytes, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        p += got;
        len_bytes -= (size_t)got;
    }
    return 0;
}
