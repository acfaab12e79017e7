# Writers that fill a pool again and again: fill-writers.py SOCKET POOL VOLUMES SECONDS MODE.
# Two for each volume v0, v1, ..., in separate MiB of it. Each writes pages that carry their
# number and a stamp, flushes now and then, and when the pool is full (MODE error: it gets
# ENOSPC, and discards; MODE queue: it waits, and somebody else discards) goes on. At the end every page is
# what its writer was told it is, and it is known what a crash must leave.
import errno, json, nbd, random, struct, sys, threading, time

socket, pool, nr_volumes, seconds, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
PAGE, MIB = 4096, 1 << 20
end = time.monotonic() + seconds
failures = []
totals = {"writes": 0, "full": 0, "flushes": 0, "discards": 0}
slowest = [0.0]
lock = threading.Lock()


def stamp(page, n):
    return struct.pack("<QQ", page, n) * (PAGE // 16)


class Writer(threading.Thread):
    def __init__(self, volume, half):
        super().__init__()
        self.volume, self.half = volume, half
        self.rng = random.Random(volume * 2 + half)
        self.lock = threading.Lock()
        self.current = {}  # page: last acknowledged stamp; absent: unknown
        self.flushed = {}
        self.discarded = {}  # MiB: how often
        self.n = 0
        self.mine = []
        self.count = dict.fromkeys(totals, 0)

    def forget(self, mib):
        with self.lock:
            self.discarded[mib] = self.discarded.get(mib, 0) + 1
            for p in range(mib * MIB // PAGE, (mib + 1) * MIB // PAGE):
                self.current.pop(p, None)
                self.flushed.pop(p, None)

    def discard_some(self, h, rng):
        first = rng.choice(self.mine) * PAGE // MIB
        # What is written meanwhile may come before or after it.
        self.forget(first)
        h.trim(MIB, first * MIB)
        self.forget(first)
        self.count["discards"] += 1

    def write(self, h):
        page = self.rng.choice(self.mine)
        self.n += 1
        with self.lock:
            seen = self.discarded.get(page * PAGE // MIB, 0)
            self.flushed.pop(page, None)
            old = self.current.pop(page, None)
        try:
            h.pwrite(stamp(page, self.n), page * PAGE)
            old = self.n
            self.count["writes"] += 1
            full = False
        except nbd.Error as e:
            # Refused as a whole: what was there is there.
            if e.errnum != errno.ENOSPC or mode != "error":
                raise
            full = True
            self.count["full"] += 1
        with self.lock:
            if old is not None and self.discarded.get(page * PAGE // MIB, 0) == seen:
                self.current[page] = old
        if full:
            self.discard_some(h, self.rng)

    def flush(self, h):
        with self.lock:
            covered = dict(self.current)
            seen = dict(self.discarded)
        h.flush()
        with self.lock:
            self.flushed = {p: n for p, n in covered.items()
                            if self.discarded.get(p * PAGE // MIB, 0) == seen.get(p * PAGE // MIB, 0)}
        self.count["flushes"] += 1

    def work(self, h):
        while time.monotonic() < end:
            began = time.monotonic()
            self.write(h)
            slowest[0] = max(slowest[0], time.monotonic() - began)
            if self.rng.random() < 0.02:
                self.flush(h)

    def run(self):
        try:
            h = connect(self.volume)
            self.mine = [p for p in range(h.get_size() // PAGE) if (p * PAGE // MIB) % 2 == self.half]
            self.work(h)
            gardening.wait()
            self.flush(h)
            for page, n in self.current.items():
                got = h.pread(PAGE, page * PAGE)
                if got != stamp(page, n):
                    raise Exception("page %d is not stamp %d but %s" % (page, n, got[:16].hex()))
            h.shutdown()
        except Exception as e:
            failures.append("v%d/%d: %s" % (self.volume, self.half, e))
        with lock:
            for k in totals:
                totals[k] += self.count[k]


def connect(volume):
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///%s/v%d?socket=%s" % (pool, volume, socket))
    return h


# In mode queue: discards for all, until the writers have written their last.
def garden():
    rng = random.Random(99)
    handles = [connect(v) for v in range(nr_volumes)]
    stop = end + 3
    try:
        while mode == "queue" and time.monotonic() < stop:
            w = rng.choice(writers)
            if w.mine:
                w.discard_some(handles[w.volume], rng)
            time.sleep(0.02)
    except Exception as e:
        failures.append("discards: %s" % e)
    for h in handles:
        h.shutdown()
    gardening.set()


gardening = threading.Event()
writers = [Writer(v, half) for v in range(nr_volumes) for half in (0, 1)]
gardener = threading.Thread(target=garden)
for w in writers + [gardener]:
    w.start()
for w in writers:
    w.join(seconds + 90)
    if w.is_alive():
        print("v%d/%d hangs" % (w.volume, w.half))
        sys.exit(1)
gardener.join()
print(totals, "slowest %.1f s" % slowest[0])
if failures:
    print("\n".join(failures[:20]))
    sys.exit(1)
if totals["writes"] == 0 or (mode == "error" and totals["full"] == 0):
    print("the pool was never full")
    sys.exit(1)
json.dump([[w.volume, {str(p): n for p, n in w.flushed.items()}] for w in writers], open("flushed.json", "w"))
