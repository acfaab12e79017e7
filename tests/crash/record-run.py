# The clients of a recorded run: record-run.py NBD-SOCKET LOG NOTES SECONDS SEED. One thread
# writes to each of four volumes, one makes snapshots, deletes and resizes by thincli; all
# note what they ask and what is answered, with the length of the log then (replay_notes.h).
import nbd, os, random, struct, subprocess, sys, threading, time

socket, log, notes_path, seconds, seed = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
PAGE, BLOCK = 4096, 65536
end = time.monotonic() + seconds
notes = open(notes_path, "w")
lock = threading.Lock()
failures = []


def length():
    try:
        return os.stat(log).st_size
    except FileNotFoundError:
        return 0


def note(kind, *rest):
    with lock:
        notes.write(" ".join(map(str, (kind, length()) + rest)) + "\n")


def thincli(*args):
    subprocess.run(("thincli",) + args, check=True, stdout=subprocess.DEVNULL)


def create(name, size):
    note("C", name, size)
    thincli("volume", "create", "tank/" + name, str(size))
    note("c", name)


def work(name, size, rng):
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///tank/%s?socket=%s" % (name, socket))
    n = 0
    while time.monotonic() < end:
        n += 1
        what = rng.random()
        if what < 0.05:
            first = rng.randrange(size // BLOCK) * BLOCK // PAGE
            count = BLOCK // PAGE * rng.randint(1, 3)
            count = min(count, size // PAGE - first)
            note("Z", name, n, first, count)
            h.trim(count * PAGE, first * PAGE)
        else:
            first = rng.randrange(size // PAGE)
            count = min(rng.choice((1, 1, 2, 4, 16)), size // PAGE - first)
            note("W", name, n, first, count)
            data = b"".join(struct.pack("<QQ", p, n) * (PAGE // 16) for p in range(first, first + count))
            h.pwrite(data, first * PAGE, nbd.CMD_FLAG_FUA if what > 0.97 else 0)
        note("A", name, n)
        if rng.random() < 0.2:
            h.flush()
            note("F", name, n)
        if rng.random() < 0.1:
            time.sleep(rng.random() / 100)
    h.shutdown()


def administer(rng):
    snapshots, extra, n, sizes = [], [], 0, {}
    while time.monotonic() < end:
        n += 1
        what = rng.random()
        if what < 0.4 and len(snapshots) < 4:
            name, origin = "s%d" % n, "w%d" % rng.randrange(4)
            note("S", name, origin)
            thincli("volume", "snapshot", "tank/" + origin, "tank/" + name)
            note("s", name)
            snapshots.append(name)
        elif what < 0.6 and len(extra) < 4:
            create("x%d" % n, 8 * BLOCK)
            extra.append("x%d" % n)
            sizes["x%d" % n] = 8
        elif what < 0.75 and extra:
            name = rng.choice(extra)
            if sizes[name] <= 28:
                sizes[name] += rng.randint(1, 4)
                note("R", name, sizes[name] * BLOCK)
                thincli("volume", "resize", "tank/" + name, str(sizes[name] * BLOCK))
                note("r", name)
        elif snapshots or extra:
            name = rng.choice(snapshots + extra)
            (snapshots if name in snapshots else extra).remove(name)
            note("D", name)
            thincli("volume", "delete", "tank/" + name)
            note("d", name)


def guarded(f, *args):
    try:
        f(*args)
    except Exception as e:
        failures.append("%s%r: %s" % (f.__name__, args[:1], e))


sizes = [16 * BLOCK, 16 * BLOCK, 12 * BLOCK, 8 * BLOCK]
for i, size in enumerate(sizes):
    create("w%d" % i, size)
threads = [threading.Thread(target=guarded, args=(work, "w%d" % i, size, random.Random(seed * 10 + i)))
           for i, size in enumerate(sizes)]
threads.append(threading.Thread(target=guarded, args=(administer, random.Random(seed * 10 + 9))))
for t in threads:
    t.start()
for t in threads:
    t.join()
notes.close()
if failures:
    print("\n".join(failures))
    sys.exit(1)
