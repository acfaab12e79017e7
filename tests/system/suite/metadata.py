"""The metadata snapshot, the offline tools beside a served pool, deltas, restore."""
from suite import *


def no_initial_hold(name="tank"):
    same(pool_info(name)["held_root"], 0, "held root")


def test_no_initial_hold_and_hold_release_cycle_empty_pool():
    with pool():
        no_initial_hold()
        for _ in range(20):
            cli("pool", "reserve-snap", "tank")
            check(pool_info()["held_root"] != 0, "nothing is held")
            cli("pool", "release-snap", "tank")
            no_initial_hold()


def test_cannot_hold_twice_nor_release_twice():
    with pool():
        create("tank/v")
        refused("", "pool", "release-snap", "tank")
        cli("pool", "reserve-snap", "tank")
        refused("", "pool", "reserve-snap", "tank")
        cli("pool", "release-snap", "tank")
        refused("", "pool", "release-snap", "tank")


def test_held_dump_and_thin_check_with_a_held_root():
    """The held dump stays what it was while the live one moves on; the official tools read it
    from the pool that is served."""
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, 0, 4 * MIB)
            h.flush()
            cli("pool", "reserve-snap", "tank")
            held = must("thin_dump", "--metadata-snap", path("tank.meta"))
            same(must("thinmeta", "dump", "--metadata-snap", path("tank.meta")), held, "our dump of the held root")
            fill(h, 8 * MIB, 12 * MIB)
            create("tank/w", "16M")
            h.flush()
            time.sleep(0.5)
            same(must("thin_dump", "--metadata-snap", path("tank.meta")), held, "the held root moved")
            live = cli("pool", "dump", "tank")
            check(live != held, "the live one did not move")
            same(live.count("<device "), held.count("<device ") + 1, "devices")
        reopen()  # thin_check with a held root
        same(must("thin_dump", "--metadata-snap", path("tank.meta")), held, "the held root after a restart")
        cli("pool", "release-snap", "tank")
        no_initial_hold()


def test_metadata_snap_cycle_and_stress():
    """Held and let go again and again under writes, snapshots and deletes."""
    with pool("tank", "512M"):
        create("tank/v", "64M")
        m = Model("tank/v", 64 * MIB)
        stop = threading.Event()

        def cycle():
            try:
                for i in range(2000 if LONG else 150):
                    cli("pool", "reserve-snap", "tank")
                    if i % 10 == 0:
                        must("thin_dump", "--metadata-snap", path("tank.meta"))
                        must("thin_ls", "--metadata-snap", path("tank.meta"))
                    cli("pool", "release-snap", "tank")
            finally:
                stop.set()

        def load():
            rng, n = random.Random(7), 0
            with attached("tank/v") as h:
                while not stop.is_set():
                    m.scribble(h, rng, 10)
                    n += 1
                    if n % 5 == 0:
                        snapshot("tank/v", "tank/s%d" % n)
                    if n % 5 == 4 and n > 5:
                        delete("tank/s%d" % (n - 4))

        in_parallel(cycle, load)
        m.compare()


def test_offline_tools_refuse_live_metadata():
    """thin_check, thin_restore, thin_dump and thin_trim on a served pool: ours refuse, and the
    online forms work."""
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, 0, 4 * MIB)
        for args in (["check", path("tank.meta")], ["dump", path("tank.meta")],
                     ["trim", "--metadata-dev", path("tank.meta"), "--data-dev", path("tank.data")]):
            r = run("thinmeta", *args)
            check(r.returncode != 0 and "in use" in r.stderr, "thinmeta %s on a served pool: %s" % (args[0], r.stderr))
        with open(path("in.xml"), "w") as f:
            f.write(cli("pool", "dump", "tank"))
        r = run("thinmeta", "restore", "-i", path("in.xml"), "-o", path("tank.meta"))
        check(r.returncode != 0 and "in use" in r.stderr, "thinmeta restore on a served pool: %s" % r.stderr)
        cli("pool", "check", "tank")
        cli("pool", "dump", "tank")


def test_you_can_dump_a_metadata_snapshot_of_an_active_pool():
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            for b in range(0, 100, 3):
                h.pwrite(b"x" * BLOCK, b * BLOCK)
            h.flush()
            cli("pool", "reserve-snap", "tank")
            dev = volume_info("tank/v")["dev_id"]
            xml = ElementTree.fromstring(must("thin_dump", "--metadata-snap", path("tank.meta")))
            d = next(d for d in xml.iter("device") if d.get("dev_id") == str(dev))
            same(int(d.get("mapped_blocks")), 34, "mapped blocks")
            same([int(s.get("origin_block")) for s in d.iter("single_mapping")], list(range(0, 100, 3)), "mappings")
            cli("pool", "release-snap", "tank")


def test_thin_ls_live_is_offline():
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, 0, 8 * MIB)
            snapshot("tank/v", "tank/s")
            fill(h, 0, 2 * MIB)
            h.flush()
        live = {volume_info(n)["dev_id"]: (volume_info(n)["mapped"] // BLOCK, volume_info(n)["exclusive"] // BLOCK)
                for n in ("tank/v", "tank/s")}
        same(live[volume_info("tank/v")["dev_id"]], (128, 32), "mapped and exclusive")
        cli("pool", "close", "tank")
        out = must("thin_ls", "--no-headers", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS", path("tank.meta"))
        offline = {int(l.split()[0]): (int(l.split()[1]), int(l.split()[2])) for l in out.splitlines()}
        for dev, numbers in live.items():
            same(offline[dev], numbers, "device %d" % dev)
        same(must("thinmeta", "ls", "--no-headers", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS", path("tank.meta")).split(),
             out.split(), "thinmeta ls")
        cli("pool", "open", "tank")


def test_dump_and_restore_are_idempotent_and_usable():
    """Dump twice; dump, restore, dump; the restored pool is served with its names and bytes."""
    with pool():
        create("tank/v", "32M")
        m = Model("tank/v", 32 * MIB)
        rng = random.Random(9)
        with attached("tank/v") as h:
            fill(h, 0, 4 * MIB, 1)  # linear
            m.data[:4 * MIB] = b"\1" * (4 * MIB)
            m.scribble(h, rng, 100)  # and at random
        snapshot("tank/v", "tank/s")
        s = m.copy("tank/s")
        with attached("tank/v") as h:
            m.scribble(h, rng, 30)
        cli("pool", "close", "tank")
        first = must("thin_dump", path("tank.meta"))
        same(must("thin_dump", path("tank.meta")), first, "a second dump")
        with open(path("in.xml"), "w") as f:
            f.write(first)
        for restore in ["thin_restore", "-i"], ["thinmeta", "restore", "-i"]:
            with open(path("tank.meta"), "r+b") as f:
                f.write(bytes(16 * MIB))
            must(*restore, path("in.xml"), "-o", path("tank.meta"))
            same(must("thin_dump", path("tank.meta")), first, "dump, restore, dump")
        cli("pool", "forget", "tank")
        cli("pool", "import", "tank", "--data", path("tank.data"), "--metadata", path("tank.meta"))
        names = {v["dev_id"]: v["name"] for v in json.loads(cli("--json", "volume", "list", "tank"))["volumes"]}
        for was, dev in (m, 1), (s, 2):
            was.name = names[dev]
            with attached(was.name) as h:
                was.size = h.get_size() // 512 * 512
                was.size = min(was.size, len(was.data))
                was.compare(h)


def test_repair_and_dump_restore_are_repeatable():
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, 0, 8 * MIB)
        cli("pool", "close", "tank")
        dumps = []
        for i in range(3):
            with open(path("repaired"), "wb") as f:
                f.truncate(16 * MIB)
            must("thinmeta", "repair", "-i", path("tank.meta"), "-o", path("repaired"))
            dumps.append(must("thin_dump", path("repaired")))
        same(len(set(dumps)), 1, "repaired three times")
        same(dumps[0].count("<device "), must("thin_dump", path("tank.meta")).count("<device "), "devices")
        cli("pool", "open", "tank")


def test_thin_trim_discards_correct_area():
    """The free blocks and no others."""
    with pool("tank", "64M"):
        cli("pool", "set", "tank", "discards=unmap")
        for n in "vw":
            create("tank/" + n, "16M")
        m = Model("tank/v", 16 * MIB)
        with attached("tank/v") as h, attached("tank/w") as w:
            for at in range(0, 16 * MIB, MIB):
                fill(w, at, at + MIB)
                piece = os.urandom(MIB)
                h.pwrite(piece, at)
                m.data[at:at + MIB] = piece
            h.flush()
        delete("tank/w")
        wait_for(lambda: pool_info()["nr_volumes"] == 1, 5, "not deleted")
        cli("pool", "close", "tank")
        before = allocated("tank.data")
        must("thinmeta", "trim", "--metadata-dev", path("tank.meta"), "--data-dev", path("tank.data"))
        check(allocated("tank.data") <= before - 15 * MIB, "free blocks keep their place")
        cli("pool", "open", "tank")
        m.compare()


def delta(a, b):
    xml = ElementTree.fromstring(cli("volume", "delta", a, b))
    result = {}
    for e in xml.iter():
        if e.get("begin"):
            result.setdefault(e.tag, set()).update(range(int(e.get("begin")), int(e.get("begin")) + int(e.get("length"))))
    return result


def test_delta():
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, 0, 4 * MIB)
            snapshot("tank/v", "tank/s")
            h.pwrite(b"x", 10 * BLOCK)  # different
            h.pwrite(b"x", 100 * BLOCK)  # only in the volume
            h.trim(BLOCK, 20 * BLOCK)  # only in the snapshot
            h.flush()
        want = {"same": set(range(64)) - {10, 20}, "different": {10}, "left_only": {20}, "right_only": {100}}
        same({k: v for k, v in delta("tank/s", "tank/v").items() if k in want}, want, "online")
        ids = [str(volume_info(n)["dev_id"]) for n in ("tank/s", "tank/v")]
        cli("pool", "reserve-snap", "tank")  # metadata_snap_with_live_pool
        args = ["--metadata-snap", "--thin1", ids[0], "--thin2", ids[1], path("tank.meta")]
        same(must("thinmeta", "delta", *args), must("thin_delta", *args), "beside the official tool")
        cli("pool", "release-snap", "tank")


def test_snap_with_single_block_difference():
    for blocks in (0,), (1,), (0, 1), (0, 63), (31, 62, 63):
        with pool("tank", "64M"):
            create("tank/v", "4M")
            with attached("tank/v") as h:
                fill(h, 0, 4 * MIB)
                snapshot("tank/v", "tank/s")
                for b in blocks:
                    h.pwrite(b"x", b * BLOCK)
                h.flush()
            got = delta("tank/s", "tank/v")
            same(got.get("different"), set(blocks), "different")
            same(got.get("same"), set(range(64)) - set(blocks), "same")
            same(set(got) & {"left_only", "right_only"}, set(), "on one side only")


def test_device_not_present_in_metadata_snap():
    with pool():
        create("tank/v", "16M")
        cli("pool", "reserve-snap", "tank")
        create("tank/w", "16M")
        ids = [str(volume_info(n)["dev_id"]) for n in ("tank/v", "tank/w")]
        args = ["--metadata-snap", "--thin1", ids[0], "--thin2", ids[1], path("tank.meta")]
        check(run("thinmeta", "delta", *args).returncode != 0, "a device is found that was not there")
        cli("volume", "delta", "tank/v", "tank/w")  # our views are of now
        refused("no such volume", "volume", "delta", "tank/v", "tank/nothing")
        cli("pool", "release-snap", "tank")


main(sys.argv[1:])
