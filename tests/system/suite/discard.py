"""Discards: what is unmapped, what is given back below, and what stays."""
from suite import *

SIZE = 16 * MIB
BLOCKS = SIZE // BLOCK


@contextlib.contextmanager
def filled(discards="passdown", begin=0, end=SIZE, *options):
    with pool("tank", "64M", "16M", *options):
        cli("pool", "set", "tank", "discards=" + discards)
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, begin, end)
            h.flush()
            yield h


def given_back(before, bytes_, words="what is below keeps its place"):
    wait_for(lambda: allocated("tank.data") <= before - bytes_ + MIB // 2, 10,
             lambda: "%s: %d bytes, before %d" % (words, allocated("tank.data"), before))


def kept_below(before, words="passed down"):
    time.sleep(0.6)  # several commits
    check(allocated("tank.data") >= before, words)


def test_discard_unmaps_with_passdown():
    with filled("passdown") as h:
        before, base = allocated("tank.data"), used()
        same(h.get_block_size(nbd.SIZE_MINIMUM), 1, "smallest request")
        h.trim(SIZE, 0)
        h.flush()
        same(mapped("tank/v"), 0, "mapped")
        same(extents(h, SIZE), set(), "extents")
        wait_for(lambda: used() <= base - SIZE, 5, "used")
        given_back(before, SIZE)
        same(mappings("tank/v"), {}, "mappings")


def test_discard_unmaps_without_passdown():
    with filled("unmap") as h:
        before, base = allocated("tank.data"), used()
        h.trim(SIZE, 0)
        h.flush()
        same(mapped("tank/v"), 0, "mapped")
        wait_for(lambda: used() <= base - SIZE, 5, "used")
        kept_below(before)
        same(mappings("tank/v"), {}, "mappings")


def test_discard_with_discards_off_and_disable_discard():
    with filled("off") as h:
        before = allocated("tank.data")
        same(h.can_trim(), False, "TRIM is offered")
        same(errno_of(h.trim, SIZE, 0) != 0, True, "a discard is refused")
        same(mapped("tank/v"), SIZE, "mapped")
        same(len(mappings("tank/v")), BLOCKS, "mappings")
        kept_below(before)
        cli("pool", "set", "tank", "discards=passdown")
        with attached("tank/v") as again:  # who comes now may
            same(again.can_trim(), True, "TRIM is offered")
            again.trim(SIZE, 0)
        same(mapped("tank/v"), 0, "mapped")


def test_change_discard_while_attached():
    """The kernel refuses it with a reload; here it works while the pool runs."""
    with filled("unmap") as h:
        before = allocated("tank.data")
        h.trim(SIZE // 2, 0)
        h.flush()
        kept_below(before)
        cli("pool", "set", "tank", "discards=passdown")
        h.trim(SIZE // 2, SIZE // 2)
        h.flush()
        given_back(before, SIZE // 2)
        cli("pool", "set", "tank", "discards=off")
        h.pwrite(b"x" * BLOCK, 0)
        h.trim(BLOCK, 0)  # offered when it attached: takes no effect
        same(mapped("tank/v"), BLOCK, "mapped")


def test_discard_empty_device():
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            h.trim(SIZE, 0)
            h.trim(BLOCK, 5 * BLOCK)
            h.flush()
        same(mapped("tank/v"), 0, "mapped")


def test_discard_fully_provisioned_device():
    with filled() as h:
        for at in range(0, SIZE, MIB):
            h.trim(MIB, at)
        h.flush()
        same(mapped("tank/v"), 0, "mapped")
        same(h.pread(SIZE, 0), bytes(SIZE), "what is read")


def test_discard_a_fragmented_device():
    with pool("tank", "64M"):
        create("tank/v", "16M")
        with attached("tank/v") as h:
            for b in range(0, BLOCKS, 2):
                h.pwrite(b"x" * BLOCK, b * BLOCK)
            same(extents(h, SIZE), set(range(0, BLOCKS, 2)), "every other block")
            h.trim(SIZE, 0)
            same(extents(h, SIZE), set(), "no block")
        same(mapped("tank/v"), 0, "mapped")


def test_delete_fully_provisioned_device():
    with filled() as h:
        before, base = allocated("tank.data"), used()
        h.shutdown()
        wait_for(lambda: run("thincli", "volume", "delete", "tank/v").returncode == 0, 5, "not deleted")
        wait_for(lambda: used() <= base - SIZE, 5, "used")
        given_back(before, SIZE)


def test_discard_single_block():
    with filled() as h:
        h.trim(BLOCK, 7 * BLOCK)
        same(set(range(BLOCKS)) - extents(h, SIZE), {7}, "the block")
        same(h.pread(BLOCK, 7 * BLOCK), bytes(BLOCK), "what it reads")
        h.flush()
        same(set(range(BLOCKS)) - set(mappings("tank/v")), {7}, "the mapping")


def test_discard_to_a_shared_block_is_not_passed_down():
    with filled() as h:
        snapshot("tank/v", "tank/s")
        before = allocated("tank.data")
        want = h.pread(SIZE, 0)
        h.trim(SIZE, 0)
        h.flush()
        same(mapped("tank/v"), 0, "mapped")
        kept_below(before, "blocks of the snapshot went down")
        with attached("tank/s") as s:
            same(s.pread(SIZE, 0) == want, True, "the snapshot is what it was")


def test_discard_to_a_previously_shared_block_is_passed_down():
    with filled() as h:
        snapshot("tank/v", "tank/s")
        before = allocated("tank.data")
        delete("tank/s")
        wait_for(lambda: pool_info()["nr_volumes"] == 1, 5, "the snapshot is left")
        h.trim(SIZE, 0)
        h.flush()
        given_back(before, SIZE)


def test_discard_partial_blocks():
    """A part of a block keeps the mapping; parts that are a whole together do not (ours)."""
    with filled() as h:
        data = h.pread(BLOCK * 3, 0)
        h.trim(BLOCK // 2, 0)
        h.trim(BLOCK, BLOCK + 4096)
        h.flush()
        same(mapped("tank/v"), SIZE, "mapped")
        for at in 0, BLOCK, 2 * BLOCK:  # a discarded part reads as before or as zeros
            for off in range(0, BLOCK, 4096):
                got = h.pread(4096, at + off)
                check(got in (data[at + off:at + off + 4096], bytes(4096)), "stale bytes at %d" % (at + off))
        same(h.pread(4096, BLOCK), data[BLOCK:BLOCK + 4096], "in front of the discarded part")
        same(h.pread(BLOCK - 4096, 2 * BLOCK + 4096), data[2 * BLOCK + 4096:], "behind it")
        h.trim(BLOCK // 2, BLOCK // 2)
        h.flush()
        wait_for(lambda: mapped("tank/v") == SIZE - BLOCK, 5, "two halves are not a whole")


def test_discard_same_blocks():
    with filled() as h:
        for _ in range(1000):
            h.trim(BLOCK * 4, BLOCK * 8)
        h.flush()
        same(mapped("tank/v"), SIZE - 4 * BLOCK, "mapped")


def test_discard_with_background_io():
    with pool("tank", "128M"):
        create("tank/v", "32M")
        m = Model("tank/v", 32 * MIB)
        stop = threading.Event()

        def discards():
            rng = random.Random(5)
            with attached("tank/v") as h:
                while not stop.is_set():
                    h.trim(rng.randrange(1, 64) * BLOCK, 16 * MIB + rng.randrange(192) * BLOCK)

        def writes():
            try:
                rng = random.Random(6)
                low = Model("tank/v", 16 * MIB)
                with attached("tank/v") as h:
                    for _ in range(10):
                        low.scribble(h, rng, 40)
                        low.compare(h)
            finally:
                stop.set()

        in_parallel(discards, writes)


def test_discard_origin_does_not_affect_snap():
    with filled() as h:
        want = h.pread(SIZE, 0)
        snapshot("tank/v", "tank/s")
        h.trim(SIZE, 0)
        h.pwrite(b"n" * SIZE, 0)
        with attached("tank/s") as s:
            same(s.pread(SIZE, 0) == want, True, "the snapshot is what it was")
            s.trim(SIZE, 0)
        same(h.pread(SIZE, 0) == b"n" * SIZE, True, "the origin is what it was")


def test_discard_past_the_end_fails():
    with filled() as h:
        for offset, length in (SIZE, BLOCK), (SIZE - BLOCK, 2 * BLOCK), (0, SIZE + 512):
            same(errno_of(h.trim, length, offset) in (errno.EINVAL, errno.ENOSPC), True, "past the end")
        same(mapped("tank/v"), SIZE, "mapped")


def test_discard_triggers_commit():
    """What was discarded is free within two seconds, though nobody flushes."""
    with filled() as h:
        base = used()
        h.trim(SIZE, 0)
        wait_for(lambda: used() <= base - SIZE, 2, "used")
        wait_for(lambda: mappings("tank/v") == {}, 2, "it is not committed")


def test_flush_commits_only_if_changed():
    with pool():
        cli("pool", "set", "tank", "commit_interval=60s")
        for n in "vw":
            create("tank/" + n, "16M")
        with attached("tank/v") as v, attached("tank/w") as w:
            v.pwrite(b"x" * 4096, 0)
            w.pwrite(b"x" * 4096, 0)
            v.flush()
            w.flush()

            def commits():
                return pool_info()["commits"]

            n = commits()
            for h in v, w:
                h.flush()
            same(commits(), n, "nothing changed")
            v.pwrite(b"y" * 4096, 0)  # an overwrite changes no mapping
            v.flush()
            same(commits(), n, "an overwrite")
            v.pwrite(b"y" * 4096, 5 * BLOCK)
            w.flush()
            same(commits(), n, "the other volume changed")
            v.flush()
            same(commits(), n + 1, "a new block")
            v.trim(BLOCK, 5 * BLOCK)
            v.flush()
            check(commits() > n + 1, "a discard and a flush commit")


def test_idle_pool_does_not_commit():
    with pool():
        create("tank/v")
        with attached("tank/v") as h:
            h.pwrite(b"x", 0)
            h.flush()
        time.sleep(1.5)
        n, stamp = pool_info()["commits"], os.stat(path("tank.meta")).st_mtime_ns
        time.sleep(10 if LONG else 3)
        same((pool_info()["commits"], os.stat(path("tank.meta")).st_mtime_ns), (n, stamp), "an idle pool")


def test_discard_alternate_blocks_and_random_sectors():
    with filled() as h:
        for b in range(0, BLOCKS, 2):
            h.trim(BLOCK, b * BLOCK)
        want = set(range(1, BLOCKS, 2))
        same(extents(h, SIZE), want, "every other block")
        data, asked, gone = h.pread(SIZE, 0), set(), set()
        rng = random.Random(8)
        for _ in range(400):
            begin = rng.randrange(SIZE // 512) * 512
            length = min(rng.randrange(1, 400) * 512, SIZE - begin)
            h.trim(length, begin)
            asked.update(range(begin // 512, (begin + length) // 512))
            whole = set(range((begin + BLOCK - 1) // BLOCK, (begin + length) // BLOCK))
            want -= whole
            gone |= whole
        check(extents(h, SIZE) <= want, "a block stays mapped that was discarded whole")
        now = h.pread(SIZE, 0)
        for b in gone:
            same(now[b * BLOCK:(b + 1) * BLOCK], bytes(BLOCK), "block %d, discarded whole" % b)
        for at in range(0, SIZE, 512):
            got, was = now[at:at + 512], data[at:at + 512]
            # a part is a hint: as before, or zeros; what nobody discarded stays
            check(got == was or (at // 512 in asked and got == bytes(512)), "other bytes at %d" % at)
        h.flush()
        same(set(mappings("tank/v")), extents(h, SIZE), "mappings and extents")


def test_discard_after_out_of_space():
    with pool("tank", "16M", "16M", "--on-full", "error"):
        create("tank/v", "64M")
        with attached("tank/v") as h:
            same(errno_of(fill, h, 0, 64 * MIB), errno.ENOSPC, "the end of the space")
            same(pool_info()["mode"], "out-of-data-space", "mode")
            h.trim(32 * MIB, 0)
            h.flush()
            wait_for(lambda: pool_info()["mode"] == "write", 5, "it does not recover")
            fill(h, 0, 8 * MIB, 3)
            same(h.pread(MIB, 7 * MIB), b"\3" * MIB, "what was written")


def stacked(lower, upper):
    """What a discard in the upper pool gives back in the lower one, and below that."""
    with pool("low", "256M"):
        cli("pool", "set", "low", "discards=" + lower)
        create("low/data", "64M")
        cli("pool", "create", "up", "--data", uri("low/data"), "--metadata", path("up.meta") + ":16M", "--commit-interval", "100ms")
        cli("pool", "set", "up", "discards=" + upper)
        create("up/v", "16M")
        with attached("up/v") as h:
            fill(h, 0, SIZE)
            h.flush()
            below, held = mapped("low/data"), allocated("low.data")
            check(below >= SIZE, "the lower volume is not mapped")
            with contextlib.suppress(nbd.Error):
                h.trim(SIZE, 0)
            h.flush()
            if upper == "passdown" and lower != "off":
                wait_for(lambda: mapped("low/data") <= below - SIZE, 10, "the lower pool keeps the blocks")
            else:
                time.sleep(0.6)
                check(mapped("low/data") >= below, "the lower pool lost blocks")
            if upper == "passdown" and lower == "passdown":
                wait_for(lambda: allocated("low.data") <= held - SIZE, 10, "the file keeps the blocks")
            elif lower != "passdown":
                check(allocated("low.data") >= held, "the file lost blocks")
            same(mapped("up/v"), SIZE if upper == "off" else 0, "mapped above")
        cli("pool", "close", "up", "--force")
        must("thin_check", path("up.meta"))
        cli("pool", "forget", "up")
        os.unlink(path("up.meta"))


def test_discard_stacked_lower_and_upper():
    """lower_both_upper_both, lower_none_upper_both, lower_both_upper_none, lower_none_upper_none,
    lower_both_upper_discard, lower_discard_upper_both."""
    for lower, upper in (("passdown", "passdown"), ("off", "passdown"), ("passdown", "off"), ("off", "off"),
                         ("passdown", "unmap"), ("unmap", "passdown")):
        try:
            stacked(lower, upper)
        except Failed as e:
            raise Failed("lower %s, upper %s: %s" % (lower, upper, e))


def test_discard_then_delete_thin():
    with filled() as h:
        for at in range(0, SIZE, BLOCK):
            h.aio_trim(BLOCK, at)
        h.shutdown(0)
        wait_for(lambda: run("thincli", "volume", "delete", "tank/v").returncode == 0, 10, "not deleted")


main(sys.argv[1:])
