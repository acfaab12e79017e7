"""Snapshots: what they cost, and that nobody's bytes come into another's."""
from suite import *

SIZE = 16 * MIB


def test_space_use():
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, 0, SIZE)
            h.flush()
            base = used()
            snapshot("tank/v", "tank/s")
            check(used() <= base + BLOCK, "a snapshot takes data")
            same(volume_info("tank/s")["exclusive"], 0, "exclusive")
            fill(h, 0, 4 * MIB)
            h.flush()
        check(base + 4 * MIB <= used() <= base + 4 * MIB + 4 * BLOCK, "what was written and nothing else takes data")
        same(volume_info("tank/s")["exclusive"], 4 * MIB, "exclusive")


def test_many_snapshots_of_same_volume():
    with pool("tank", "512M"):
        create("tank/v", "16M")
        m = Model("tank/v", SIZE)
        rng = random.Random(1)
        kept = {}
        with attached("tank/v") as h:
            for i in range(999):
                m.scribble(h, rng, 1, 20000)
                snapshot("tank/v", "tank/s%d" % i)
                if i % 100 == 0:
                    kept[i] = m.copy("tank/s%d" % i)
                    m.compare(h)
        reopen()
        for k in kept.values():
            k.compare()
        m.compare()


def test_parallel_io_to_shared_thins():
    with pool("tank", "512M"):
        create("tank/v", "16M")
        origin = Model("tank/v", SIZE)
        with attached("tank/v") as h:
            origin.scribble(h, random.Random(2), 200)
        models = [origin]
        for i in range(5):
            snapshot("tank/v", "tank/s%d" % i)
            models.append(origin.copy("tank/s%d" % i))

        def one(n):
            rng = random.Random(n)
            with attached(models[n].name) as h:
                for _ in range(5):
                    models[n].scribble(h, rng, 40)
                    models[n].compare(h)

        in_parallel(*[lambda n=n: one(n) for n in range(6)])
        for m in models:
            m.compare()


def test_ref_count_tree():
    """Snapshots of snapshots, five levels of three, writes at each; counts are right at the end."""
    with pool("tank", "1G"):
        create("tank/v", "8M")
        models = [Model("tank/v", 8 * MIB)]
        rng = random.Random(3)
        level = [models[0]]
        for depth in range(4):
            grown = []
            for m in level:
                for i in range(3):
                    with attached(m.name) as h:
                        m.scribble(h, rng, 3)
                    snapshot(m.name, "tank/%s-%d" % (m.name.split("/")[1], i))
                    grown.append(m.copy("tank/%s-%d" % (m.name.split("/")[1], i)))
            level = grown
            models += grown
        for m in rng.sample(models, 30):
            m.compare()
        reopen()
        rng.shuffle(models)
        for m in models[:60]:
            delete(m.name)
        wait_for(lambda: pool_info()["nr_volumes"] == len(models) - 60, 20, "volumes are left")
        reopen()
        for m in models[60:]:
            m.compare()


def test_many_snaps_with_changes_and_duplicates():
    """Every state of a volume stays in its snapshot; no data block has two owners but by sharing."""
    with pool("tank", "1G"):
        create("tank/v", "16M")
        m = Model("tank/v", SIZE)
        rng = random.Random(4)
        kept = []
        with attached("tank/v") as h:
            for i in range(20):
                m.scribble(h, rng, 30)
                snapshot("tank/v", "tank/s%d" % i)
                kept.append(m.copy("tank/s%d" % i))
                if i >= 5 and i % 3 == 0:
                    with attached(kept[i - 5].name) as s:
                        kept[i - 5].scribble(s, rng, 10)
            h.flush()
        for k in kept:
            k.compare()
        wait_for(lambda: True, 1, "")
        owners = {}
        for name in ["tank/v"] + [k.name for k in kept]:
            for v, (block, t) in mappings(name).items():
                owners.setdefault(block, set()).add((v, t))
        for block, where in owners.items():
            same(len(where), 1, "data block %d stands for several places" % block)


def test_pattern_stomp_snap_and_origin():
    for written, stays in ("tank/s", "tank/v"), ("tank/v", "tank/s"):
        with pool():
            create("tank/v", "16M")
            m = Model("tank/v", SIZE)
            rng = random.Random(5)
            with attached("tank/v") as h:
                m.scribble(h, rng, 300)
            snapshot("tank/v", "tank/s")
            a, b = m.copy(written), m.copy(stays)
            with attached(written) as h:
                for _ in range(4):
                    a.scribble(h, rng, 100)
                    a.compare(h)
                    b.compare()
            a.compare()


def test_overwriting_various_thin_devices():
    """Unprovisioned, provisioned, a fresh snapshot, one whose sharing is broken; checked between."""
    with pool():
        create("tank/v", "16M")
        for name in "tank/v", "tank/v", "tank/s", "tank/s", "tank/v":
            if name == "tank/s" and not pool_info()["nr_volumes"] > 1:
                snapshot("tank/v", "tank/s")
            with attached(name) as h:
                fill(h, 0, SIZE)
                h.flush()
            same(mapped(name), SIZE, "mapped")
            reopen()
        check(used() >= 2 * SIZE, "both are mapped for themselves")


def test_pool_utilization_block():
    """A volume as large as half the pool and its snapshot, all written: a small rest is enough."""
    with pool("tank", "130M", "16M", "--on-full", "error"):
        create("tank/v", "64M")
        for _ in range(2):
            with attached("tank/v") as h:
                fill(h, 0, 64 * MIB)
                h.flush()
            if pool_info()["nr_volumes"] == 1:
                snapshot("tank/v", "tank/s")
        same(mapped("tank/v") + volume_info("tank/s")["exclusive"], 128 * MIB, "mapped")


def test_rolling_snaps():
    """Each of a row of snapshots is copied out to a file and back into a fresh volume, equal."""
    with pool("tank", "512M"):
        create("tank/v", "16M")
        m = Model("tank/v", SIZE)
        rng = random.Random(6)
        for i in range(5):
            with attached("tank/v") as h:
                m.scribble(h, rng, 30)
            snapshot("tank/v", "tank/s%d" % i)
            must("nbdcopy", uri("tank/s%d" % i), path("archive%d" % i))
        for i in range(5):
            create("tank/back%d" % i, "16M")
            must("nbdcopy", "--flush", path("archive%d" % i), uri("tank/back%d" % i))
            must("qemu-img", "compare", "-f", "raw", "-F", "raw", uri("tank/back%d" % i), uri("tank/s%d" % i))
        m.compare()


def test_thin_to_thin_and_thin_to_file():
    """A copy equals its source and takes no more, also with large blocks."""
    for block_size in "64k", "4M":
        with pool("tank", "512M", "16M", "--block-size", block_size):
            create("tank/v", "100M")
            with attached("tank/v") as h:
                for at in 0, 10 * MIB, 50 * MIB, 90 * MIB:
                    fill(h, at, at + 3 * MIB)
                h.flush()
            create("tank/copy", "100M")
            must("nbdcopy", "--flush", uri("tank/v"), uri("tank/copy"))
            must("qemu-img", "compare", "-f", "raw", "-F", "raw", uri("tank/v"), uri("tank/copy"))
            check(mapped("tank/copy") <= mapped("tank/v"), "a copy takes more than its source")
            with open(path("copy"), "wb") as f:
                f.truncate(100 * MIB)
            must("nbdcopy", uri("tank/v"), path("copy"))
            must("qemu-img", "compare", "-f", "raw", "-F", "raw", uri("tank/v"), path("copy"))
            check(allocated("copy") <= mapped("tank/v") + MIB, "holes were written")
            create("tank/small", "99M")
            check(run("nbdcopy", uri("tank/v"), uri("tank/small")).returncode != 0, "a copy into less room succeeds")
            check(run("nbdcopy", uri("tank/nothing"), path("copy")).returncode != 0, "a copy of nothing succeeds")


main(sys.argv[1:])
