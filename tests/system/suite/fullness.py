"""Out of data space and of metadata space, and growing out of it."""
from suite import *


def test_filling_pool_returns_enospc():
    with pool("tank", "16M", "16M", "--on-full", "error"):
        create("tank/v", "64M")
        with attached("tank/v") as h:
            same(errno_of(fill, h, 0, 64 * MIB, None, BLOCK), errno.ENOSPC, "the end of the pool")
            h.flush()
            same(h.pread(BLOCK, 0) != bytes(BLOCK), True, "what was written before")


def test_filling_thin_device_returns_enospc():
    with pool():
        create("tank/v", "16M")
        with attached("tank/v") as h:
            fill(h, 0, 16 * MIB)
            same(errno_of(h.pwrite, b"x" * 512, 16 * MIB), errno.ENOSPC, "the end of the volume")
            same(errno_of(h.pwrite, b"x" * 1024, 16 * MIB - 512), errno.ENOSPC, "over the end")
        same(mapped("tank/v"), 16 * MIB, "mapped")


def test_out_of_data_space_errors_immediately_if_requested():
    with pool("tank", "16M", "16M", "--on-full", "error"):
        create("tank/v", "64M")
        with attached("tank/v") as h:
            began = time.time()
            same(errno_of(fill, h, 0, 64 * MIB), errno.ENOSPC, "an error")
            check(time.time() - began < 30, "it waited")
        cli("pool", "grow", "tank", "--data", "128M")
        wait_for(lambda: pool_info()["mode"] == "write", 5, "the pool is not back")
        with attached("tank/v") as h:
            fill(h, 0, 64 * MIB)


def test_out_of_data_space_times_out():
    with pool("tank", "16M"):
        cli("pool", "set", "tank", "no_space_timeout=2s")
        create("tank/v", "64M")
        with attached("tank/v") as h:
            began = time.time()
            same(errno_of(fill, h, 0, 64 * MIB), errno.ENOSPC, "an error")
            check(1.5 < time.time() - began < 40, "the time that it waited")
        same(pool_info()["needs_check"], False, "needs check")
        cli("pool", "grow", "tank", "--data", "128M")  # after the time is over
        with attached("tank/v") as h:
            fill(h, 0, 64 * MIB)


def held(h, begin, end):
    """Writes in flight, one a block; those that are answered are counted."""
    done = []

    def ended(error):
        done.append(error.value)
        return 1

    data = nbd.Buffer.from_bytearray(bytearray(b"w" * BLOCK))
    for at in range(begin, end, BLOCK):
        h.aio_pwrite(data, at, ended)
    return done


def spin(h, seconds):
    end = time.time() + seconds
    while time.time() < end:
        h.poll(50)


def test_resize_after_oods_held_io():
    with pool("tank", "16M"):
        cli("pool", "set", "tank", "no_space_timeout=60s")
        create("tank/v", "64M")
        with attached("tank/v") as h, attached("tank/v") as other:
            done = held(h, 0, 32 * MIB)
            end = time.time() + 40
            while (len(done) < 100 or pool_info()["mode"] != "out-of-data-space") and time.time() < end:
                h.poll(50)
            spin(h, 1)
            check(100 <= len(done) < 256, "%d writes were answered in a pool of 256 blocks: %s" % (len(done), {e: done.count(e) for e in set(done)}))
            same(pool_info()["mode"], "out-of-data-space", "mode")
            # io_to_provisioned_region_with_OODS_held_io
            other.pwrite(b"o" * BLOCK, 0)
            same(other.pread(BLOCK, 0), b"o" * BLOCK, "a mapped block")
            same(other.pread(512, 60 * MIB), bytes(512), "a hole")
            cli("pool", "grow", "tank", "--data", "64M")
            end = time.time() + 50
            while len(done) < 512 and time.time() < end:
                h.poll(50)
            same((len(done), set(done)), (512, {0}), "the writes that waited")
            h.flush()
            same(h.pread(BLOCK, 32 * MIB - BLOCK), b"w" * BLOCK, "the last of them")


def test_resize_after_oods_held_io_timed_out():
    with pool("tank", "16M"):
        cli("pool", "set", "tank", "no_space_timeout=1s")
        create("tank/v", "64M")
        with attached("tank/v") as h:
            done = held(h, 0, 32 * MIB)
            end = time.time() + 50
            while len(done) < 512 and time.time() < end:
                h.poll(50)
            same((len(done), set(done)), (512, {0, errno.ENOSPC}), "the writes that waited")
            cli("pool", "grow", "tank", "--data", "64M")
            fill(h, 0, 32 * MIB)
            h.flush()


def test_resize_in_steps_with_and_without_io():
    for io in False, True:
        with pool("tank", "16M"):
            cli("pool", "set", "tank", "no_space_timeout=60s")
            create("tank/v", "256M")
            stop = threading.Event()

            def load():
                with attached("tank/v") as h:
                    for at in range(0, 120 * MIB, MIB):
                        h.pwrite(bytes([at // MIB]) * MIB, at)
                    h.flush()
                stop.set()

            def grow():
                for step in range(8):
                    time.sleep(0.15)
                    cli("pool", "grow", "tank", "--data", "%dM" % (16 + 16 * (step + 1)))
                check(pool_info()["data_size"] == 144 * MIB, "size")

            in_parallel(*([load, grow] if io else [grow]))
            if io:
                with attached("tank/v") as h:
                    for at in range(0, 120 * MIB, MIB):
                        same(h.pread(512, at + 1000), bytes([at // MIB]) * 512, "what was written")
            same(pool_info()["mode"], "write", "mode")


def test_metadata_resize_no_io_with_extra_checking():
    with pool("tank", "64M", "4M"):
        create("tank/v", "16M")
        size = 4
        for step in (1, 3, 7, 31, 67, 511, 1023)[:None if LONG else 5]:
            size += step
            cli("pool", "grow", "tank", "--metadata", "%dM" % size)
            same(pool_info()["metadata_size"], size * MIB, "size")
            reopen()
        delete("tank/v")  # thin_remove_works_after_resize
        wait_for(lambda: pool_info()["nr_volumes"] == 0, 5, "not deleted")


def test_metadata_resize_with_io():
    with pool("tank", "512M", "4M"):
        create("tank/v", "256M")
        m = Model("tank/v", 32 * MIB)

        def load():
            rng = random.Random(1)
            with attached("tank/v") as h:
                for _ in range(20):
                    m.scribble(h, rng, 20)
                m.compare(h)

        def grow():
            for size in 5, 8, 15, 46, 113:
                cli("pool", "grow", "tank", "--metadata", "%dM" % size)
                time.sleep(0.1)

        in_parallel(load, grow)
        m.compare()


def scatter(h, blocks, byte=b"x"):
    """First writes to many blocks, a hundred in flight; the first error."""
    errors = []

    def ended(error):
        errors.append(error.value)
        return 1

    data = nbd.Buffer.from_bytearray(bytearray(byte * 512))
    for b in blocks:
        while h.aio_in_flight() > 100:
            h.poll(-1)
        h.aio_pwrite(data, b * BLOCK, ended)
    while h.aio_in_flight():
        h.poll(-1)
    return next((e for e in errors if e), 0)


def test_resize_after_exhaust_and_exhausting_does_not_abort():
    """The reserve keeps a full metadata device from failing: the pool stays sound, deletes
    work, and growing brings it back. (The kernel's goes read-only.)"""
    with pool("tank", "2G", "4M", "--on-full", "error"):
        cli("pool", "set", "tank", "extend_metadata=no")
        create("tank/big", "64G")
        with attached("tank/big") as h:
            same(scatter(h, random.Random(1).sample(range(1 << 20), 12000)), 0, "the first writes")
        made = 0
        while run("thincli", "volume", "create", "tank/v%d" % made, "1G").returncode == 0:
            made += 1
            check(made < 1024, "the metadata do not end")
        refused("metadata", "volume", "create", "tank/more", "1G")
        with attached("tank/big") as h:
            same(scatter(h, range(0, 1 << 20, 9973)), errno.ENOSPC, "the end of the metadata")
        info = pool_info()
        same(info["needs_check"], False, "needs check")
        check(info["mode"] in ("out-of-metadata-space", "write"), "mode %s" % info["mode"])
        reopen()
        with attached("tank/big") as h:
            h.pread(MIB, 0)
        delete("tank/big", "tank/v1")
        wait_for(lambda: pool_info()["nr_volumes"] == made - 1, 60, "a delete needs room that is not there")
        wait_for(lambda: used() <= 4 * MIB + made * BLOCK, 30, lambda: "%d bytes are still used" % used())
        reopen()
        cli("pool", "grow", "tank", "--metadata", "16M")
        wait_for(lambda: pool_info()["mode"] == "write", 5, "it does not come back")
        create("tank/more", "1G")
        with attached("tank/more") as h:
            same(scatter(h, range(0, 16384, 3)), 0, "writes after it grew")


def test_low_metadata_space_is_grown_by_itself():
    with pool("tank", "3G", "4M"):
        create("tank/v", "16G")
        with attached("tank/v") as h:
            data = nbd.Buffer.from_bytearray(bytearray(b"x" * 512))
            for block in range(0, 60000, 2):
                while h.aio_in_flight() > 100:
                    h.poll(-1)
                h.aio_pwrite(data, block * BLOCK * 2 % (16 << 30))
            while h.aio_in_flight():
                h.poll(-1)
            h.flush()
        same(pool_info()["mode"], "write", "mode")


def test_rw_pool_on_read_only_metadata_fails():
    with pool():
        create("tank/v", "16M")
        cli("pool", "close", "tank")
        os.chmod(path("tank.meta"), 0o400)
        must("chattr", "+i", path("tank.meta")) if run("chattr", "+i", path("tank.meta")).returncode == 0 else None
        if run("lsattr", path("tank.meta")).stdout[4:5] == "i":
            try:
                refused("", "pool", "open", "tank")
            finally:
                must("chattr", "-i", path("tank.meta"))
        cli("pool", "open", "tank")


main(sys.argv[1:])
