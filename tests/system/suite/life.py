"""Volumes, pools and their limits come and go."""
from suite import *


def test_lots_of_empty_thins():
    with pool("tank", "256M", "16M"):
        before = used()
        for i in range(1000):
            create("tank/v%d" % i, "1G")
        same(pool_info()["nr_volumes"], 1000, "volumes")
        reopen()
        same(len(json.loads(cli("--json", "volume", "list", "tank"))["volumes"]), 1000, "volumes listed")
        delete(*["tank/v%d" % i for i in range(1000)])
        wait_for(lambda: pool_info()["nr_volumes"] == 0, 30, "volumes are left")
        check(used() <= before + 8 * MIB, "space is left behind")


def test_lots_of_empty_snaps():
    with pool():
        create("tank/origin")
        for i in range(1000):
            snapshot("tank/origin", "tank/s%d" % i)
        same(pool_info()["nr_volumes"], 1001, "volumes")
        reopen()


def test_lots_of_recursive_snaps():
    with pool():
        create("tank/s0")
        for i in range(1000):
            snapshot("tank/s%d" % i, "tank/s%d" % (i + 1))
        same(volume_info("tank/s1000")["parent"], "tank/s999", "the parent of the last")
        reopen()


def test_attach_while_the_pool_is_not_served_fails():
    with pool():
        create("tank/v")
        cli("pool", "close", "tank")
        same(errno_of(nbd.NBD().connect_uri, uri("tank/v")) != 0, True, "attaching")
        cli("pool", "open", "tank")
        with attached("tank/v") as h:
            h.pread(512, 0)


def test_huge_block_size():
    with pool("tank", "2G", "16M", "--block-size", "256M"):
        create("tank/v", "1G")
        with attached("tank/v") as h:
            h.zero(1024 * MIB, 0, nbd.CMD_FLAG_NO_HOLE)
            h.pwrite(b"x" * 5000, 700 * MIB)
            h.flush()
            same(h.pread(5000, 700 * MIB), b"x" * 5000, "what was written")
            same(h.pread(4096, 600 * MIB), bytes(4096), "what is around it")
        same(mapped("tank/v"), 1024 * MIB, "mapped")


def test_non_power_of_2_block_size():
    refused("64k", "pool", "create", "tank", "--data", path("tank.data") + ":1G", "--metadata", path("tank.meta") + ":16M",
            "--block-size", "100k")
    check(not os.path.exists(path("tank.data")), "a refused pool left a file")
    with pool("tank", "256M", "16M", "--block-size", "192k"):  # a multiple of 64k: the kernel takes it too
        create("tank/v")
        with attached("tank/v") as h:
            h.pwrite(b"x", 192 * 1024)
        same(mapped("tank/v"), 192 * 1024, "mapped")


def test_too_small_and_too_large_block_size_fail():
    for size in "32k", str((1 << 30) + 65536), "2G":
        refused("64k", "pool", "create", "tank", "--data", path("tank.data") + ":4G", "--metadata", path("tank.meta") + ":16M",
                "--block-size", size)


def test_largest_block_size_succeeds():
    with pool("tank", "4G", "16M", "--block-size", "1G"):
        create("tank/v", "1G")
        with attached("tank/v") as h:
            h.pwrite(b"x" * 512, 512 * MIB)
            same(h.pread(1024, 512 * MIB), b"x" * 512 + bytes(512), "what was written")


def xml_pool(dev_id, blocks=4):
    return ('<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" nr_data_blocks="1024">\n'
            '  <device dev_id="%d" mapped_blocks="%d" transaction="0" creation_time="0" snap_time="0">\n'
            '    <range_mapping origin_begin="0" data_begin="0" length="%d" time="0"/>\n  </device>\n</superblock>\n'
            % (dev_id, blocks, blocks))


def restore(xml, name="tank"):
    with open(path("in.xml"), "w") as f:
        f.write(xml)
    with open(path(name + ".meta"), "wb") as f:
        f.truncate(16 * MIB)
    return run("thinmeta", "restore", "-i", path("in.xml"), "-o", path(name + ".meta"))


def test_largest_thin_id_succeeds_and_a_larger_fails():
    check(restore(xml_pool(1 << 24)).returncode != 0, "an id of 2^24 is accepted")
    same(restore(xml_pool((1 << 24) - 1)).returncode, 0, "restoring the largest id")
    with open(path("tank.data"), "wb") as f:
        f.write(b"0123456789abcdef" * (4 * BLOCK // 16))
        f.truncate(1024 * BLOCK)
    cli("pool", "import", "tank", "--data", path("tank.data"), "--metadata", path("tank.meta"))
    with attached("tank/thin-16777215") as h:
        same(h.pread(16, 3 * BLOCK), b"0123456789abcdef", "the volume of the largest id")
        h.pwrite(b"new", 0)
    create("tank/beside")
    drop()


def test_too_small_a_metadata_device_fails():
    refused("metadata", "pool", "create", "tank", "--data", path("tank.data") + ":64M", "--metadata", path("tank.meta") + ":16k")
    with open(path("small"), "wb") as f:
        f.truncate(16384)
    refused("metadata", "pool", "create", "tank", "--data", path("tank.data") + ":64M", "--metadata", path("small"))


def test_create_delete_cycle():
    with pool():
        before = used()
        for _ in range(1000):
            create("tank/v")
            delete("tank/v")
        wait_for(lambda: pool_info()["nr_volumes"] == 0, 10, "volumes are left")
        check(used() <= before + MIB, "space is left behind")
        same(pool_info()["mode"], "write", "mode")


def test_create_many_delete_many():
    with pool():
        names = ["tank/v%d" % i for i in range(1000)]
        for n in names:
            create(n)
        for i in range(0, 1000, 50):
            delete(*names[i:i + 50])
        wait_for(lambda: pool_info()["nr_volumes"] == 0, 30, "volumes are left")


def test_create_delete_rolling():
    with pool():
        for i in range(300):
            create("tank/v%d" % i)
            with attached("tank/v%d" % i) as h:
                h.pwrite(os.urandom(200000), i * 4096)
            if i >= 10:
                delete("tank/v%d" % (i - 10))
        wait_for(lambda: pool_info()["nr_volumes"] == 10, 10, "ten volumes are not left")


def test_delete_provisioned_thin():
    with pool():
        before = used()
        create("tank/v", "64M")
        with attached("tank/v") as h:
            fill(h, 0, 64 * MIB)
        same(mapped("tank/v"), 64 * MIB, "mapped")
        delete("tank/v")
        wait_for(lambda: used() <= before + BLOCK, 10, "space does not come back")


def test_delete_unknown_fails():
    with pool():
        refused("no volume", "volume", "delete", "tank/unknown")


def test_delete_active_fails():
    with pool():
        create("tank/v")
        with attached("tank/v") as h:
            h.pwrite(b"x", 0)
            refused("", "volume", "delete", "tank/v")
            same(h.pread(1, 0), b"x", "the volume that was not deleted")
        wait_for(lambda: run("thincli", "volume", "delete", "tank/v").returncode == 0, 5, "nobody has it, and it is not deleted")


def test_delete_after_out_of_space():
    with pool("tank", "16M", "16M", "--on-full", "error"):
        before = used()
        create("tank/v", "64M")
        with attached("tank/v") as h:
            e = 0
            for at in range(0, 64 * MIB, BLOCK):
                e = e or errno_of(h.pwrite, b"x" * BLOCK, at)
            same(e, errno.ENOSPC, "the end of the space")
        same(pool_info()["mode"], "out-of-data-space", "mode")
        delete("tank/v")
        wait_for(lambda: used() <= before + BLOCK and pool_info()["mode"] == "write", 10, lambda: "the pool does not come back: %d used, %d before, %s" % (used(), before, pool_info()["mode"]))
        create("tank/w", "8M")
        with attached("tank/w") as h:
            fill(h, 0, 8 * MIB)


def test_two_pools_pointing_to_the_same_metadata_fails():
    with pool():
        refused("in use", "pool", "import", "twin", "--data", path("tank.data"), "--metadata", path("tank.meta"))
        refused("", "pool", "create", "twin", "--data", path("twin.data") + ":64M", "--metadata", path("tank.meta"), "--force")
        check(not os.path.exists(path("twin.data")), "a refused pool left a file")
        refused("exists", "pool", "create", "tank", "--data", path("x.data") + ":64M", "--metadata", path("x.meta") + ":16M")


def test_two_pools_can_create_thins():
    with pool("one"), pool("two"):
        for p in "one", "two":
            create(p + "/v")
        a, b = Model("one/v", 64 * MIB), Model("two/v", 64 * MIB)
        rng = random.Random(2)
        with attached("one/v") as x, attached("two/v") as y:
            for _ in range(5):
                a.scribble(x, rng, 20)
                b.scribble(y, rng, 20)
            a.compare(x)
            b.compare(y)


def test_the_same_pool_again_is_fine():
    with pool():
        for _ in range(20):
            cli("pool", "close", "tank")
            cli("pool", "open", "tank")
        refused("", "pool", "open", "tank")


def test_data_cannot_be_smaller_than_the_pool():
    with pool():
        cli("pool", "close", "tank")
        os.truncate(path("tank.data"), 255 * MIB)
        refused("268435456", "pool", "open", "tank")
        os.truncate(path("tank.data"), 256 * MIB)
        cli("pool", "open", "tank")


def test_extra_data_space_must_not_be_used():
    with pool("tank", "32M", "16M", "--on-full", "error"):
        cli("pool", "close", "tank")
        os.truncate(path("tank.data"), 64 * MIB)
        cli("pool", "open", "tank")
        same(pool_info()["data_size"], 32 * MIB, "size")
        create("tank/v", "64M")
        with attached("tank/v") as h:
            same(errno_of(fill, h, 0, 64 * MIB), errno.ENOSPC, "the old end")
        cli("pool", "grow", "tank", "--data", "64M")
        same(pool_info()["data_size"], 64 * MIB, "size")
        with attached("tank/v") as h:
            fill(h, 0, 50 * MIB)


def test_initial_transaction_id_is_zero_and_stays_the_administrators():
    with pool():
        same(pool_info()["transaction_id"], 0, "transaction id")
        create("tank/v")
        snapshot("tank/v", "tank/s")
        reopen()
        same(pool_info()["transaction_id"], 0, "transaction id")


def test_reload_no_io_and_io():
    """Settings change while the pool runs; nothing is disturbed."""
    with pool():
        create("tank/v")
        m = Model("tank/v", 64 * MIB)
        rng = random.Random(3)
        with attached("tank/v") as h:
            for i in range(20):
                cli("pool", "set", "tank", "commit_interval=%dms" % (50 + i), "on_full=%s" % ("queue", "error")[i % 2],
                    "zeroing=%s" % ("yes", "no")[i % 2])
                m.scribble(h, rng, 5)
            m.compare(h)


def test_mass_create_apply_remove():
    """Many volumes come, are written to and go, all at once."""
    with pool("tank", "2G", "16M"):
        before = used()

        def one(n):
            rng = random.Random(n)
            for i in range(4):
                name = "tank/w%d-%d" % (n, i)
                create(name, "16M")
                m = Model(name, 16 * MIB)
                with attached(name) as h:
                    m.scribble(h, rng, 30)
                m.compare()
                delete(name)

        in_parallel(*[lambda n=n: one(n) for n in range(32)])
        wait_for(lambda: used() <= before + 2 * MIB, 20, "space does not come back")


def test_create_read_only_and_ro_pool():
    """A volume that is read-only: its blocks and its holes can be read, nothing changes."""
    with pool():
        create("tank/v", "8M")
        with attached("tank/v") as h:
            fill(h, 0, 4 * MIB, 7)
        wait_for(lambda: run("thincli", "volume", "set", "tank/v", "read_only=yes").returncode == 0, 5, "not set")
        with attached("tank/v") as h:
            same(h.is_read_only(), True, "read-only")
            same(h.pread(4096, MIB), b"\7" * 4096, "a mapped block")
            same(h.pread(4096, 5 * MIB), bytes(4096), "an unmapped one")
            for call in (h.pwrite, b"x", 0), (h.trim, BLOCK, 0), (h.zero, BLOCK, 0):
                same(errno_of(*call), errno.EPERM, "a change")
        same(mapped("tank/v"), 4 * MIB, "mapped")


def test_needs_check_pool_is_read_only():
    """What the kernel's read-only pool promises, for a pool that needs a check."""
    with pool():
        create("tank/v", "8M")
        with attached("tank/v") as h:
            fill(h, 0, 4 * MIB, 7)
            h.flush()
        cli("pool", "close", "tank")
        xml = must("thinmeta", "dump", path("tank.meta")).replace('flags="0"', 'flags="1"', 1)
        check('flags="1"' in xml, "no flag to set")
        with open(path("in.xml"), "w") as f:
            f.write(xml)
        must("thinmeta", "restore", "-i", path("in.xml"), "-o", path("tank.meta"))
        cli("pool", "open", "tank")
        info = pool_info()
        same((info["needs_check"], info["mode"]), (True, "read-only"), "the pool")
        check(info["why"] and info["what_to_do"], "no words for the administrator")
        v = json.loads(cli("--json", "volume", "list", "tank"))["volumes"][0]["name"]
        with attached(v) as h:
            same(h.pread(4096, MIB), b"\7" * 4096, "a mapped block")
            same(errno_of(h.pwrite, b"x", 0), errno.EPERM, "a write")
        refused("read-only", "volume", "create", "tank/w", "1M")
        refused("read-only", "volume", "delete", v)
        cli("pool", "close", "tank")
        must("thinmeta", "check", "-q", "--clear-needs-check-flag", path("tank.meta"))
        cli("pool", "open", "tank")
        same(pool_info()["mode"], "write", "mode")


main(sys.argv[1:])
