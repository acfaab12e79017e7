/* thinmeta size, thin_metadata_size. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/offline/size.h"
#include "core/tools/tool.h"

static const struct unit {
    char letter;
    const char *name;
    double bytes;
} units[] = {
    {'b', "bytes", 1},          {'s', "sectors", 512},      {'k', "kibibytes", 0x1p10},
    {'K', "kilobytes", 1e3},    {'m', "mebibytes", 0x1p20}, {'M', "megabytes", 1e6},
    {'g', "gibibytes", 0x1p30}, {'G', "gigabytes", 1e9},    {'t', "tebibytes", 0x1p40},
    {'T', "terabytes", 1e12},   {'p', "pebibytes", 0x1p50}, {'P', "petabytes", 1e15},
    {'e', "ebibytes", 0x1p60},  {'E', "exabytes", 1e18},    {'z', "zebibytes", 0x1p70},
    {'Z', "zetabytes", 1e21},   {'y', "yobibytes", 0x1p80}, {'Y', "yottabytes", 1e24},
};
#define NR_UNITS (sizeof(units) / sizeof(units[0]))

struct size_args {
    const char *block_size, *pool_size, *max_thins; /* as given */
    const struct unit *unit;
    enum { FULL, NUMERIC, SHORT, LONG } form;
};

static const struct unit *
find_unit(char letter)
{
    for (size_t i = 0; i < NR_UNITS; i++)
        if (units[i].letter == letter)
            return &units[i];
    return NULL;
}

/* A letter, or the beginning of a name. */
static const struct unit *
find_output_unit(const char *text)
{
    const struct unit *unit = text[0] && text[1] ? NULL : find_unit(text[0]);

    for (size_t i = 0; i < NR_UNITS && !unit; i++)
        if (strncmp(units[i].name, text, strlen(text)) == 0)
            unit = &units[i];
    return unit;
}

/* "64k" -> a number and its unit; `plain` is the unit of a bare number. */
static bool
parse(const char *text, const struct unit *plain, uint64_t *ret_number,
      const struct unit **ret_unit)
{
    char digits[24];
    size_t len = strspn(text, "0123456789");

    if (len == 0 || len >= sizeof(digits) || strlen(text) > len + 1)
        return false;
    memcpy(digits, text, len);
    digits[len] = '\0';
    *ret_unit = text[len] ? find_unit(text[len]) : plain;
    return *ret_unit && tool_number(digits, ret_number);
}

static bool
in_sectors(uint64_t number, const struct unit *unit, uint64_t *ret)
{
    uint64_t bytes;

    if (unit->letter == 's') {
        *ret = number;
        return true;
    }
    if (unit->bytes > 0x1p63)
        return false;
    if (!checked_mul_u64(number, (uint64_t)unit->bytes, &bytes))
        return false;
    *ret = bytes / SECTOR_SIZE;
    return true;
}

/* Numbers as the official tool prints them. */
static void
print_number(uint64_t sectors, const struct unit *unit)
{
    double value = (double)sectors * 512 / unit->bytes;

    if (unit->letter == 'b' || unit->letter == 's' ||
        value == floor(value)) /* whole numbers have no fraction */
        printf("%.0f", value);
    else if (value < 1e-2)
        printf("%.2e", value);
    else
        printf("%.2f", value);
}

static int
print_size(const struct tool *tool, const struct size_args *args)
{
    const struct unit *block_unit, *pool_unit, *thins_unit;
    const struct unit *sectors = find_unit('s');
    static const struct unit none = {'\0', "", 1};
    uint64_t block, pool, thins, block_sectors, pool_sectors, max_thins, size;

    if (!parse(args->block_size, sectors, &block, &block_unit) ||
        !in_sectors(block, block_unit, &block_sectors))
        return tool_misused(tool, "block size: '%s' is no size", args->block_size);
    if (!parse(args->pool_size, sectors, &pool, &pool_unit) ||
        !in_sectors(pool, pool_unit, &pool_sectors))
        return tool_misused(tool, "pool size: '%s' is no size", args->pool_size);
    if (!parse(args->max_thins, &none, &thins, &thins_unit) ||
        thins_unit->bytes > 0x1p63 ||
        !checked_mul_u64(thins, (uint64_t)thins_unit->bytes, &max_thins))
        return tool_misused(tool, "max thins: '%s' is no number", args->max_thins);
    if (!max_thins)
        return tool_misused(tool, "max thins required!");
    if (!block_sectors || (block_sectors & (block_sectors - 1))) {
        fprintf(stderr, "%s - block size must be 2^^N\n", tool_name(tool));
        return 1;
    }
    if (pool_sectors <= block_sectors) {
        fprintf(stderr, "%s - pool size must be larger than block size\n",
                tool_name(tool));
        return 1;
    }
    if (pool_sectors > UINT64_MAX / 4 || max_thins > UINT64_MAX / 4096)
        return tool_misused(tool, "%s", "too large a number");
    size = metadata_size_sectors(block_sectors, pool_sectors, max_thins);
    if (args->form == FULL)
        printf("%s - ", tool_name(tool));
    print_number(size, args->unit);
    if (args->form == FULL)
        printf(" %s estimated metadata area size for \"--block-size=%" PRIu64
               "%s --pool-size=%" PRIu64 "%s --max-thins=%" PRIu64 "%s\"",
               args->unit->name, block, block_unit->name, pool, pool_unit->name, thins,
               thins_unit->name);
    else if (args->form == SHORT)
        printf("%c", args->unit->letter);
    else if (args->form == LONG)
        printf("%s", args->unit->name);
    printf("\n");
    return 0;
}

int
tool_size_verb(const struct tool *tool, int argc, char **argv)
{
    static const struct option longopts[] = {
        {"block-size", required_argument, NULL, 'b'},
        {"pool-size", required_argument, NULL, 's'},
        {"max-thins", required_argument, NULL, 'm'},
        {"unit", required_argument, NULL, 'u'},
        {"numeric-only", optional_argument, NULL, 'n'},
        TOOL_LONG_COMMON,
    };
    struct size_args args = {.unit = find_unit('s')};
    int opt, exit_code;

    while ((opt = getopt_long(argc, argv, "hVb:s:m:u:n::", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        switch (opt) {
        case 'b':
            args.block_size = optarg;
            break;
        case 's':
            args.pool_size = optarg;
            break;
        case 'm':
            args.max_thins = optarg;
            break;
        case 'u':
            args.unit = optarg ? find_output_unit(optarg) : NULL;
            if (!args.unit)
                return tool_misused(tool, "output unit specifier invalid!");
            break;
        default:
            args.form = !optarg                        ? NUMERIC
                        : strcmp(optarg, "short") == 0 ? SHORT
                        : strcmp(optarg, "long") == 0  ? LONG
                                                       : FULL;
            if (args.form == FULL)
                return tool_misused(tool, "unknown form '%s'", optarg);
            break;
        }
    }
    if (!args.block_size)
        return tool_misused(tool, "block size required!");
    if (!args.pool_size)
        return tool_misused(tool, "pool size required!");
    if (!args.max_thins)
        return tool_misused(tool, "max thins required!");
    return print_size(tool, &args);
}
