#!/usr/bin/env python3
"""
How many block locks can be held at once? Derived from the call graph of the engine.

Locks live in variables of the type BLOCK_LOCK struct bm_block *, released when their scope
ends, or are handed up through a parameter struct bm_block **. So at each call a function
holds at most those of its variables that are in scope and were given a lock before it
(released early is counted all the same). What the call itself fills is not held yet.

    bound(f) = max over the calls in f of (locks held there + bound(callee))

and the three calls of the block manager that lock take one (that they run the loop while
tools wait is not followed: nothing else is on it then). Variables given a lock inside
a loop count from the loop's begin. A call through a pointer goes to every function whose
address is taken and whose parameters are of the types that a pointer of this name is
declared with. A cycle of calls that adds no lock is one function; one that does needs an
annotation in the comment before the function that is called again:

    LOCKS: at most N deep       the function stands at most N times on the stack;
                                N is a number or the name of a constant

The sources are formatted by clang-format as the house does it (a function's name begins a
line, its body ends with a brace that does); nothing else is parsed.

    lock_bound.py TABLE FILE...          checks TABLE ("FUNCTION BOUND" lines, of the two
                                         rooms that lock) and BM_LOCKS_MAX
    lock_bound.py --write TABLE FILE...  writes it as the source is now
    lock_bound.py --path TABLE FILE...   also shows where the greatest bound comes from
"""
import os
import re
import sys

PRIMITIVES = {"bm_read_lock_at", "bm_write_lock_at", "bm_new_lock_at"}
STATED_ROOMS = ("core/persist", "core/metadata")
KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "do", "else", "case"}
TOKEN = re.compile(r"[A-Za-z_]\w*|->|[{}();,=*&.]|\S")


def strip_comments(text):
    """Comments and strings as blanks, so that offsets and lines stay."""
    def blank(m):
        s = m.group(0)
        if s[0] == '"':
            return '"' + " " * (len(s) - 2) + '"'
        return re.sub(r"[^\n]", " ", s)
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'',
                  blank, text, flags=re.S)


class Function:
    def __init__(self, name, file, line, params, body, static, depth):
        self.name, self.file, self.line = name, file, line
        self.params = params  # list of (text, name)
        self.body = body
        self.static = static
        self.depth = depth  # from an annotation, or None
        self.calls = []  # (held, callee key, line)


def split_params(text):
    parts, level, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([":
            level += 1
        elif c in ")]":
            level -= 1
        elif c == "," and level == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip() and p.strip() != "void"]


def param_name(p):
    m = re.search(r"\(\*(\w+)\)", p)
    if m:
        return m.group(1)
    m = re.search(r"(\w+)\s*(?:\[[^]]*\])?$", p)
    return m.group(1) if m else ""


def kinds(params):
    """Parameters without their names."""
    result = []
    for p in params:
        words = re.findall(r"\w+|\*", p)
        if len(words) > 1 and words[-1] != "*" and words[-2] not in ("struct", "enum", "const"):
            words.pop()
        result.append(" ".join(words))
    return tuple(result)


def matching(text, at, opening, closing):
    level = 0
    for i in range(at, len(text)):
        if text[i] == opening:
            level += 1
        elif text[i] == closing:
            level -= 1
            if level == 0:
                return i
    raise SystemExit("unbalanced %s" % opening)


def parse_file(path):
    raw = open(path, encoding="utf-8").read()
    text = strip_comments(raw)
    functions = []
    for m in re.finditer(r"^([a-z_]\w*)\(", text, flags=re.M):
        close = matching(text, m.end() - 1, "(", ")")
        brace = re.match(r"\s*\n\{", text[close + 1:])
        if not brace:
            continue
        begin = close + 1 + brace.end() - 1
        end = matching(text, begin, "{", "}")
        before = text[:m.start()].rstrip("\n").rsplit("\n", 1)[-1]
        comment = raw[:m.start()].rsplit("\n}\n", 1)[-1]
        deep = re.search(r"LOCKS: at most (\w+) deep", comment)
        params = [(p, param_name(p)) for p in split_params(text[m.end():close])]
        functions.append(Function(m.group(1), path, text.count("\n", 0, m.start()) + 1, params,
                                  (begin, end), before.startswith("static"),
                                  deep.group(1) if deep else None))
    return text, functions


def loops_of(text, begin, end):
    """Ranges of loops: from the keyword to the end of what it repeats."""
    loops = []
    for m in re.finditer(r"\b(for|while|TAILQ_FOREACH\w*|LIST_FOREACH\w*|HASH_ITER)\b|\b(do)\s*\{",
                         text[begin:end]):
        at = begin + m.start()
        if m.group(2):
            stop = matching(text, text.index("{", at), "{", "}")
        else:
            close = matching(text, text.index("(", at), "(", ")")
            rest = re.match(r"\s*", text[close + 1:])
            body = close + 1 + rest.end()
            if text[body] == "{":
                stop = matching(text, body, "{", "}")
            else:
                # One statement; it may be an if or a loop with a block of its own.
                semicolon, brace = text.index(";", body), text.find("{", body, end)
                stop = semicolon
                if brace != -1 and brace < semicolon:
                    stop = matching(text, brace, "{", "}")
        loops.append((at, stop))
    return loops


class Program:
    def __init__(self, paths):
        self.functions = {}  # name or file:name -> Function
        self.texts = {}
        self.macros = {}
        self.constants = {}
        self.pointers = {}  # name of a pointer to functions -> kinds of parameters
        self.taken = set()
        for path in paths:
            text, functions = parse_file(path)
            self.texts[path] = text
            for f in functions:
                self.functions[(path, f.name) if f.static else f.name] = f
            for m in re.finditer(r"^#define (\w+)\([^)]*\)((?:.*\\\n)*.*)$", text, flags=re.M):
                called = re.search(r"(\w+)\(", m.group(2))
                if called:
                    self.macros[m.group(1)] = called.group(1)
            for m in re.finditer(r"^#define (\w+)(?: \\\n)?\s+(\d+)u?", text, flags=re.M):
                self.constants[m.group(1)] = int(m.group(2))
            for m in re.finditer(r"\(\*(\w+)\)\(", text):
                close = matching(text, m.end() - 1, "(", ")")
                kind = kinds(split_params(text[m.end():close]))
                self.pointers.setdefault(m.group(1), set()).add(kind)
        for f in self.functions.values():
            self.find_taken(f)
        for path, text in self.texts.items():
            self.find_tables(path, text)
        for f in self.functions.values():
            self.find_calls(f)

    def resolve(self, path, name):
        seen = set()
        while name in self.macros and name not in seen:
            seen.add(name)
            name = self.macros[name]
        if name in PRIMITIVES:
            return name
        if (path, name) in self.functions:
            return (path, name)
        return name if name in self.functions else None

    def find_taken(self, f):
        """Functions whose name stands without a call: their address goes somewhere."""
        text = self.texts[f.file]
        for m in re.finditer(r"\b([a-z_]\w*)\b(?!\s*\()", text[f.body[0]:f.body[1]]):
            key = self.resolve(f.file, m.group(1))
            if key and key not in PRIMITIVES:
                before = text[:f.body[0] + m.start()].rstrip()
                if not before.endswith(("->", ".")):
                    self.taken.add(key)

    def find_tables(self, path, text):
        for m in re.finditer(r"(?:\.|->)(\w+)\s*=\s*&?([a-z_]\w*)\s*[,;}\n]", text):
            key = self.resolve(path, m.group(2))
            if key and key not in PRIMITIVES:
                self.taken.add(key)
        # Tables of functions outside functions.
        for m in re.finditer(r"[{,]\s*&?([a-z_]\w*)\s*(?=[,}])", text):
            key = self.resolve(path, m.group(1))
            if key and key not in PRIMITIVES:
                self.taken.add(key)

    def find_calls(self, f):
        text, (begin, end) = self.texts[f.file], f.body
        loops = loops_of(text, begin, end)
        # name -> [begin of scope, end of scope, first place that gives it a lock]
        holders = []
        for p, name in f.params:
            if re.search(r"struct bm_block \*\*", p):
                holders.append([name, begin, end, None, True])
        for m in re.finditer(r"BLOCK_LOCK struct bm_block \*(\w+)", text[begin:end]):
            at = begin + m.start()
            level, stop = 0, end
            for i in range(at, end + 1):
                if text[i] == "{":
                    level += 1
                elif text[i] == "}":
                    level -= 1
                    if level < 0:
                        stop = i
                        break
            holders.append([m.group(1), at, stop, None, False])
        for h in holders:
            name, lo, hi, _, is_param = h
            if is_param:
                given = r"\*%s = |[(,]\s*%s\s*[,)]" % (name, name)
            else:
                given = r"&%s\b|\b%s = (?!NULL)" % (name, name)
            skip = 0 if is_param else len("BLOCK_LOCK struct bm_block *" + name)
            m = re.search(given, text[lo + skip:hi])
            if not m:
                continue
            first = lo + skip + m.start()
            for a, b in loops:
                # Still in scope at the next round?
                if a < first < b and lo < a:
                    first = a
            h[3] = first
        for m in re.finditer(r"((?:->|\.)?)\b([A-Za-z_]\w*)\s*\(", text[begin:end]):
            at, name = begin + m.start(), m.group(2)
            if name in KEYWORDS:
                continue
            open_at = begin + m.end() - 1
            close = matching(text, open_at, "(", ")")
            args = split_params(text[open_at + 1:close])
            targets = self.targets(f, m.group(1), name, args)
            if not targets:
                continue
            held = 0
            for hname, lo, hi, first, is_param in holders:
                filled = hname if is_param else "&" + hname
                if first is None or not lo < at < hi or at < first:
                    continue
                if any(a == filled for a in args):
                    continue
                held += 1
            line = text.count("\n", 0, at) + 1
            for t in targets:
                f.calls.append((held, t, line))

    def targets(self, f, access, name, args):
        if not access:
            key = self.resolve(f.file, name)
            if key:
                return [key]
            text = self.texts[f.file]
            if (all(name != p[1] for p in f.params) and
                    "(*%s)(" % name not in text[f.body[0]:f.body[1]]):
                return []  # a library's
        if name not in self.pointers:
            return []
        return [k for k in self.taken
                if kinds([p[0] for p in self.functions[k].params]) in self.pointers[name]]

    def depth(self, f):
        if f.depth is None or f.depth.isdigit():
            return int(f.depth or 1)
        if f.depth not in self.constants:
            raise SystemExit("%s:%d: %s is no constant" % (f.file, f.line, f.depth))
        return self.constants[f.depth]

    # ---- the longest path ----

    def components(self):
        """Tarjan's, without recursion."""
        index, low, on, stack, comp, n = {}, {}, set(), [], {}, 0
        groups = []
        for root in self.functions:
            if root in index:
                continue
            work = [(root, iter([c[1] for c in self.functions[root].calls]))]
            index[root] = low[root] = n
            n += 1
            stack.append(root)
            on.add(root)
            while work:
                v, it = work[-1]
                for w in it:
                    if w in PRIMITIVES:
                        continue
                    if w not in index:
                        index[w] = low[w] = n
                        n += 1
                        stack.append(w)
                        on.add(w)
                        work.append((w, iter([c[1] for c in self.functions[w].calls])))
                        break
                    if w in on:
                        low[v] = min(low[v], index[w])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[v])
                    if low[v] == index[v]:
                        group = []
                        while True:
                            w = stack.pop()
                            on.discard(w)
                            comp[w] = len(groups)
                            group.append(w)
                            if w == v:
                                break
                        groups.append(group)
        return groups, comp

    def bounds(self):
        """Bound of each function; groups come callees first."""
        groups, comp = self.components()
        bound, via, bad = {}, {}, []
        for gi, group in enumerate(groups):
            # Locks added by one round of the cycle, and how often it is gone round.
            inner, best, best_via = 0, 0, {}
            depth = 1
            for k in group:
                f = self.functions[k]
                depth = max(depth, self.depth(f))
            for k in group:
                for held, t, line in self.functions[k].calls:
                    if t in PRIMITIVES or comp[t] != gi:
                        continue
                    inner = max(inner, held)
                    if held and depth == 1:
                        bad.append("%s:%d: %s is called again with %d lock(s) held: say "
                                   "\"LOCKS: at most N deep\" before the function" %
                                   (self.functions[k].file, line, show(t), held))
            for k in group:
                top, how = 0, None
                for held, t, line in self.functions[k].calls:
                    if t in PRIMITIVES:
                        b = held + 1
                    elif comp[t] == gi:
                        continue
                    else:
                        b = held + bound[t] if bound[t] else 0
                    if b > top:
                        top, how = b, (held, t, line)
                best_via[k] = how
                best = max(best, top)
            # At most all functions of the cycle add in each round but the last.
            extra = inner * len(group) * (depth - 1) if inner else 0
            for k in group:
                if len(group) == 1:
                    bound[k] = best + extra
                else:
                    bound[k] = best + extra if best else 0
                via[k] = best_via[k]
        return bound, via, bad


def show(key):
    return key[1] if isinstance(key, tuple) else key


def main():
    args = sys.argv[1:]
    with_path, write = "--path" in args, "--write" in args
    args = [a for a in args if a not in ("--path", "--write")]
    table, paths = args[0], args[1:]
    program = Program(paths)
    bound, via, bad = program.bounds()
    public = {k: b for k, b in bound.items() if isinstance(k, str) and b > 0 and
              os.path.dirname(program.functions[k].file) in STATED_ROOMS and
              not k.startswith("bm_")}
    if not public:
        raise SystemExit("no function takes a lock: the sources were not understood")
    top = max(bound.values())
    if with_path:
        k = max(bound, key=lambda k: bound[k])
        while k is not None and k not in PRIMITIVES:
            f = program.functions[k]
            how = via[k]
            print("%3d  %s (%s)" % (bound[k], show(k), f.file), end="")
            if how is None:
                print()
                break
            print("  holds %d at line %d" % (how[0], how[2]))
            k = how[1]
    if write:
        with open(table, "w", encoding="utf-8") as out:
            out.write("# Block locks that a call may hold at once, by tests/lint/lock_bound.py; "
                      "rewritten with --write.\n")
            for name in sorted(public):
                out.write("%s %d\n" % (name, public[name]))
    stated, constant = {}, None
    for line in open(table, encoding="utf-8"):
        words = line.split("#")[0].split()
        if words:
            stated[words[0]] = int(words[1])
    for path in paths:
        m = re.search(r"^#define BM_LOCKS_MAX\s+(\d+)u?", open(path, encoding="utf-8").read(), flags=re.M)
        if m:
            constant = int(m.group(1))
    for message in bad:
        print(message)
    failed = bool(bad)
    if constant != top:
        print("BM_LOCKS_MAX is %s, the source allows %d" % (constant, top))
        failed = True
    for name in sorted(set(public) | set(stated)):
        if public.get(name, 0) != stated.get(name, 0):
            f = program.functions.get(name)
            print("%s: %s holds up to %d block locks, %s states %d" %
                  (f.file + ":%d" % f.line if f else "?", name, public.get(name, 0), table,
                   stated.get(name, 0)))
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
