#!/usr/bin/env python3
"""Damaged pools, repaired by thinmeta and by thin_repair: ours must bring back at least as
many mappings in every case, neither invent any more than theirs, nor crash, nor hang, and
both checkers must accept what it writes.

    repair-corpus.py THINMETA CASES SEED POOL...

POOL is a metadata image, or IMAGE:OLDER, where OLDER is the same pool at an earlier time:
its blocks are the stale ones. One case takes one kind of block (the superblock, one level
of one tree, one of the space maps, or any) and spoils 1 to 100 of these by zeros, noise,
swapping or stale contents. Each case has a seed of its own, which is printed when it fails;
with CASES 1 it is the only one that is run.
"""
import os, random, re, struct, subprocess, sys, tempfile

BLOCK, TIMEOUT_S = 4096, 60


class Pool:
    """The blocks of a good image by what they are."""

    def __init__(self, path):
        self.data = open(path, 'rb').read()
        self.roles = {}
        sb = self.block(0)
        self.trans_id, = struct.unpack_from('<Q', sb, 48)
        data_sm, metadata_sm = 64, 192
        top, details = struct.unpack_from('<QQ', sb, 320)
        self.data_block_size, = struct.unpack_from('<I', sb, 336)
        self.nr_data, = struct.unpack_from('<Q', sb, data_sm)
        self.add('superblock', 0)
        self.tree('details', details)
        roots = self.tree('top level', top)
        for root in roots:
            self.tree('mappings', root)
        index, counts = struct.unpack_from('<QQ', sb, data_sm + 16)
        for value in self.tree('data space map', index, 16):
            self.add('data space map', value)
        self.tree('data space map', counts, 4)
        index, counts = struct.unpack_from('<QQ', sb, metadata_sm + 16)
        self.add('metadata space map', index)
        nr, = struct.unpack_from('<Q', sb, metadata_sm)
        for k in range((nr + 16319) // 16320):
            self.add('metadata space map', struct.unpack_from('<Q', self.block(index), 16 + 16 * k)[0])
        self.tree('metadata space map', counts, 4)
        used = sorted(set().union(*self.roles.values()))
        self.roles['any'] = used
        self.roles = {k: sorted(v) for k, v in self.roles.items()}

    def block(self, b):
        return self.data[b * BLOCK:(b + 1) * BLOCK]

    def add(self, role, b):
        self.roles.setdefault(role, set()).add(b)

    def tree(self, name, root, value_size=None):
        """Adds the nodes by level; the first 8 bytes of each value of the leaves."""
        found, todo, seen = [], [(root, 0)], set()
        while todo:
            b, depth = todo.pop()
            if b in seen:
                continue
            seen.add(b)
            n = self.block(b)
            flags, = struct.unpack_from('<I', n, 4)
            nr, most, size = struct.unpack_from('<III', n, 16)
            values = [n[32 + 8 * most + size * i:][:8] for i in range(nr)]
            if flags == 1:
                self.add(f'{name}, inner', b) if name in ('mappings', 'top level') else self.add(name, b)
                todo += [(struct.unpack('<Q', v)[0], depth + 1) for v in values]
            else:
                self.add(name, b)
                if size >= 8:
                    found += [struct.unpack('<Q', v)[0] for v in values]
        return found


def spoil(rng, pool, older, path):
    """Writes a damaged copy; in words what was done."""
    data = bytearray(pool.data)
    role = rng.choice(sorted(pool.roles))
    blocks = list(pool.roles[role])
    most = rng.choice((1, 1, 2, 5, 20, 100))
    rng.shuffle(blocks)
    blocks = blocks[:most]
    kind = rng.choice(('zeros', 'noise', 'swapped', 'stale') if older else ('zeros', 'noise', 'swapped'))
    everywhere = pool.roles['any']
    for b in blocks:
        at = b * BLOCK
        if kind == 'zeros':
            data[at:at + BLOCK] = bytes(BLOCK)
        elif kind == 'noise':
            data[at:at + BLOCK] = rng.randbytes(BLOCK)
        elif kind == 'stale':
            data[at:at + BLOCK] = older[at:at + BLOCK].ljust(BLOCK, b'\0')
        else:
            other = rng.choice(everywhere) * BLOCK
            data[at:at + BLOCK], data[other:other + BLOCK] = data[other:other + BLOCK], data[at:at + BLOCK]
    with open(path, 'wb') as f:
        f.write(data)
    return f'{len(blocks)} of {role}: {kind}'


MAPPING = re.compile(r'<device dev_id="(\d+)"|<single_mapping origin_block="(\d+)" data_block="(\d+)"'
                     r'|<range_mapping origin_begin="(\d+)" data_begin="(\d+)" length="(\d+)"')


def mappings(path):
    """Of an image: (device, virtual block) -> data block."""
    r = subprocess.run(['thin_dump', path], capture_output=True, text=True, timeout=TIMEOUT_S)
    found, dev = {}, None
    if r.returncode:
        return found
    for m in MAPPING.finditer(r.stdout):
        d, v1, d1, v, b, n = m.groups()
        if d is not None:
            dev = int(d)
        elif v1 is not None:
            found[dev, int(v1)] = int(d1)
        else:
            for i in range(int(n)):
                found[dev, int(v) + i] = int(b) + i
    return found


def run(*command):
    r = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if r.returncode < 0:
        raise AssertionError(f'{command[0]} ended by signal {-r.returncode}: {r.stderr[-300:]}')
    return r


def one(thinmeta, name, pool, older, truth, seed, folder):
    rng = random.Random(seed)
    bad, ours, theirs = (os.path.join(folder, n) for n in ('bad', 'ours', 'theirs'))
    what = spoil(rng, pool, older, bad)
    before = open(bad, 'rb').read()
    lost = bad_superblock(before)
    over = ['--transaction-id', str(pool.trans_id), '--data-block-size', str(pool.data_block_size),
            '--nr-data-blocks', str(pool.nr_data)] if lost else []
    for p in (ours, theirs):
        with open(p, 'wb') as f:
            f.truncate(max(len(pool.data), 4 << 20))
    subprocess.run(['thin_repair', *over, '-i', bad, '-o', theirs], capture_output=True, timeout=TIMEOUT_S)
    theirs_found = mappings(theirs)
    a = run(thinmeta, 'repair', *over, '-i', bad, '-o', ours)
    ours_found = mappings(ours) if a.returncode == 0 else {}
    good = sum(1 for k, v in ours_found.items() if truth.get(k) == v)
    theirs_good = sum(1 for k, v in theirs_found.items() if truth.get(k) == v)
    words = (f'{name}, seed {seed}: {what}: {len(ours_found)} mappings, {good} of them as they were; thin_repair '
             f'{len(theirs_found)}, {theirs_good}; there were {len(truth)}')
    problems = []
    if open(bad, 'rb').read() != before:
        problems.append('its input was written to')
    if good < theirs_good:
        problems.append('fewer mappings as they were')
    if len(ours_found) < len(theirs_found) and good <= theirs_good:
        problems.append('fewer mappings')
    if a.returncode == 0:
        for c in (['thin_check', '-q', ours], [thinmeta, 'check', '--strict', '-q', ours]):
            if run(*c).returncode:
                problems.append(f'{" ".join(c[:2])} finds faults')
    elif theirs_found:
        problems.append('refused: ' + a.stderr.strip())
    return words, problems, good - theirs_good


def bad_superblock(image):
    return struct.unpack_from('<Q', image, 32)[0] != 27022010 or not checksum_good(image[:BLOCK])


TABLE = []
for i in range(256):
    c = i
    for _ in range(8):
        c = c >> 1 ^ 0x82F63B78 if c & 1 else c >> 1
    TABLE.append(c)


def checksum_good(block):
    c = 0xFFFFFFFF
    for byte in block[4:]:
        c = TABLE[(c ^ byte) & 255] ^ c >> 8
    return c ^ 160774 == struct.unpack_from('<I', block)[0]


def main():
    thinmeta, cases, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pools = []
    for arg in sys.argv[4:]:
        path, _, older = arg.partition(':')
        pools.append((os.path.basename(path), Pool(path), open(older, 'rb').read() if older else None,
                      mappings(path)))
    failed = better = 0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(cases):
            name, pool, older, truth = pools[(seed + i) % len(pools)]
            words, problems, more = one(thinmeta, name, pool, older, truth, seed + i, folder)
            better += more > 0
            if problems or os.environ.get('VERBOSE'):
                print(words, *problems, sep='; ')
            failed += bool(problems)
    print(f'{cases} cases from seed {seed}: {failed} failed, in {better} more was saved than by thin_repair')
    return 1 if failed or not cases else 0


sys.exit(main())
