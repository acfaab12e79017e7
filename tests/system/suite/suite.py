"""What the parts of the dm-thin suite share: thincli, NBD handles, pools that are checked when they go.

A part is a file of functions; each is a test, named as tests/DM-THIN-SUITE.md names it, run in
the order of the file, on a daemon that test-suite.sh has started. Every pool that goes is
closed, passes thin_check and thinmeta check, and dumps the same by both.
"""
import contextlib, errno, json, os, random, subprocess, sys, threading, time
import xml.etree.ElementTree as ElementTree
import nbd

W = os.environ["W"]
LONG = bool(os.environ.get("THIN_TEST_LONG"))
BLOCK = 65536
MIB = 1 << 20


class Failed(Exception):
    pass


def check(truth, words):
    if not truth:
        raise Failed(words)


def same(got, want, words):
    check(got == want, "%s: %r is not %r" % (words, got, want))


def run(*args, **kw):
    return subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def must(*args, **kw):
    r = run(*args, **kw)
    check(r.returncode == 0, "%s: %s" % (" ".join(args), r.stderr.strip() or r.stdout.strip()))
    return r.stdout


def cli(*args):
    return must("thincli", *args)


def refused(words, *args, code=1):
    r = run("thincli", *args)
    check(r.returncode == code, "exit %d, not %d: %s" % (r.returncode, code, " ".join(args)))
    check(words.lower() in r.stderr.lower(), "no word of %r in %r" % (words, r.stderr))


def pool_info(name="tank"):
    return json.loads(cli("--json", "pool", "show", name))["pools"][0]


def volume_info(name):
    return json.loads(cli("--json", "volume", "show", name))["volumes"][0]


def mapped(name):
    return volume_info(name)["mapped"]


def used(name="tank"):
    return pool_info(name)["data_used"]


def wait_for(truth, seconds, words):
    end = time.time() + 30 + seconds  # of a machine that is busy
    while not truth():
        check(time.time() < end, words() if callable(words) else words)
        time.sleep(0.05)


def path(name):
    return os.path.join(W, name)


def allocated(name):
    """Bytes that the file takes from its file system."""
    return os.stat(path(name)).st_blocks * 512


def make_pool(name="tank", data="256M", meta="16M", *options):
    cli("pool", "create", name, "--data", "%s:%s" % (path(name + ".data"), data),
        "--metadata", "%s:%s" % (path(name + ".meta"), meta), "--commit-interval", "100ms", *options)
    cli("pool", "set", name, "auto_extend=off")  # full means full


def sound(name="tank"):
    """A closed pool: the official tools find nothing, and say what ours say."""
    meta = path(name + ".meta")
    must("thin_check", meta)
    must("thinmeta", "check", "-q", meta)
    same(must("thinmeta", "dump", meta), must("thin_dump", meta), "the dumps of " + name)


def reopen(name="tank"):
    cli("pool", "close", name)
    sound(name)
    cli("pool", "open", name)


def drop(name="tank"):
    if pool_info(name)["state"] == "open":
        cli("pool", "close", name, "--force")
    sound(name)
    cli("pool", "forget", name)
    for suffix in ".data", ".meta":
        os.unlink(path(name + suffix))


@contextlib.contextmanager
def pool(name="tank", data="256M", meta="16M", *options):
    make_pool(name, data, meta, *options)
    yield name
    drop(name)


def create(name, size="64M", *options):
    cli("volume", "create", name, size, *options)


def snapshot(origin, name):
    cli("volume", "snapshot", origin, name.split("/")[1])


def delete(*names):
    cli("volume", "delete", *names)


def uri(name):
    return "nbd+unix:///%s?socket=%s/nbd.sock" % (name, W)


@contextlib.contextmanager
def attached(name):
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(uri(name))
    h.set_strict_mode(0)
    try:
        yield h
    finally:
        with contextlib.suppress(nbd.Error):
            h.shutdown()


def errno_of(call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        return e.errnum
    return 0


def fill(h, begin, end, byte=None, piece=MIB):
    """Writes [begin, end), with one byte or at random."""
    data = os.urandom(piece) if byte is None else bytes([byte]) * piece
    for at in range(begin, end, piece):
        h.pwrite(data[:min(piece, end - at)], at)


def extents(h, size, step=32 * MIB):
    """Offsets of blocks that hold data."""
    held = set()

    def found(_, offset, entries, __):
        for length, flags in zip(entries[::2], entries[1::2]):
            if not flags & nbd.STATE_HOLE:
                held.update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
            offset += length

    at = 0
    while at < size:
        h.block_status(min(step, size - at), at, found)
        at += step
    return held


def mappings(volume):
    """Virtual block -> (data block, time), of what is committed."""
    name = volume.split("/")[0]
    dev = str(volume_info(volume)["dev_id"])
    result = {}
    for d in ElementTree.fromstring(cli("pool", "dump", name)).iter("device"):
        if d.get("dev_id") != dev:
            continue
        for m in d.iter("single_mapping"):
            result[int(m.get("origin_block"))] = (int(m.get("data_block")), int(m.get("time")))
        for m in d.iter("range_mapping"):
            for i in range(int(m.get("length"))):
                result[int(m.get("origin_begin")) + i] = (int(m.get("data_begin")) + i, int(m.get("time")))
    return result


class Model:
    """A volume and what must be in it, as bytes."""

    def __init__(self, name, size, data=None):
        self.name, self.size = name, size
        self.data = bytearray(data if data is not None else size)

    def copy(self, name):
        return Model(name, self.size, self.data)

    def scribble(self, h, rng, n, longest=200000):
        for _ in range(n):
            length = rng.randrange(1, longest)
            at = rng.randrange(self.size - length)
            piece = rng.randbytes(length)
            h.pwrite(piece, at)
            self.data[at:at + length] = piece

    def compare(self, h=None):
        with contextlib.ExitStack() as stack:
            h = h or stack.enter_context(attached(self.name))
            for at in range(0, self.size, 8 * MIB):
                n = min(8 * MIB, self.size - at)
                if h.pread(n, at) != self.data[at:at + n]:
                    raise Failed("%s holds other bytes in [%d, %d)" % (self.name, at, at + n))


def in_parallel(*calls):
    """All at once; the first mistake of any is ours."""
    wrong = []

    def guarded(call):
        try:
            call()
        except Exception as e:
            wrong.append(e)

    threads = [threading.Thread(target=guarded, args=(c,)) for c in calls]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if wrong:
        raise wrong[0]


def thousand():
    return 1000


def main(names):
    part = sys.modules["__main__"]
    tests = [f for n, f in vars(part).items() if callable(f) and n.startswith("test_")]
    chosen = [t for t in tests if not names or t.__name__ in names or t.__name__[5:] in names]
    if not chosen:
        sys.exit("no such test")
    random.seed(int(os.environ.get("SEED", "1")))
    failed = 0
    for t in chosen:
        began = time.time()
        try:
            t()
            print("ok    %s (%.1f s)" % (t.__name__[5:], time.time() - began), flush=True)
        except Exception as e:
            failed += 1
            print("FAIL  %s: %s: %s" % (t.__name__[5:], type(e).__name__, e), flush=True)
            for p in json.loads(cli("--json", "pool", "list"))["pools"]:
                run("thincli", "pool", "close", p["name"], "--force")
                run("thincli", "pool", "forget", p["name"])
                for suffix in ".data", ".meta":
                    with contextlib.suppress(OSError):
                        os.unlink(path(p["name"] + suffix))
    print("%d passed, %d failed" % (len(chosen) - failed, failed))
    sys.exit(1 if failed else 0)
