#!/usr/bin/env python3
"""tidy.py - the rules of docs/STYLE.md that a machine can check, over the working tree.

    tools/tidy.py               prints `path:line: what` for each violation; exit status 1 if there is one
    tools/tidy.py --self-test   runs the checks on small sources that break one rule each

Who may include whom is in include_rules.txt. Sizes above the limits are refused unless tidy_ratchet.txt lists them, and
a listed size may only shrink: the list gets shorter, never longer.
"""
import os
import re
import sys

sys.dont_write_bytecode = True

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ("common", "llm_worker", "flow_worker", "hift_worker", "enroll", "orchestrator", "tools", "tests")
SOURCES = (".c", ".h", ".cu", ".cuh", ".cc", ".hh")
WORKERS = ("llm_worker/", "flow_worker/", "hift_worker/", "enroll/")

FUNCTION_LINES_MAX = 70
KERNEL_LINES_MAX = 120  # functions of .cu files
FILE_LINES_MAX = 800
HEADER_LINES_MAX = 300
HEADER_LINES = {"common/compute/ops.h": 600}  # the document of all ops
COLUMNS_MAX = 120
FILE_BYTES_MAX = 1 << 20
FOLDER_BYTES_MAX = {"tests/golden": 6 << 20, "models/demo": 25 * 10**6}
MODEL_FOLDER = "models/"  # whose files may be larger

MAINS = ("llm_worker/main.c", "flow_worker/main.c", "hift_worker/main.c", "enroll/main.c", "orchestrator/main.c",
         "orchestrator/keeper.c", "tools/")
# (calls, where they are allowed, what to do instead)
BANNED = [
    (r"strcpy|strcat|sprintf|vsprintf|gets|strtok", ("tests/",), "snprintf and memcpy with a size"),
    (r"atoi|atol|atoll|atof", (), "strtol family with checks, or json.h"),
    (r"system|popen", (), "posix_spawn"),
    (r"sleep|usleep", (), "wait for an event with a deadline"),
    (r"rand|srand|random|drand48", (), "rng.h"),
    (r"assert", ("tests/",), "CF_ASSERT, which is always on"),
    (r"printf|vprintf|puts|putchar", MAINS + ("tests/",), "results are printed by mains and verbs; use log.h"),
    (r"malloc|calloc|realloc|reallocarray|free|strdup|strndup|asprintf|vasprintf|aligned_alloc|posix_memalign",
     ("common/base/mem.c", "tools/cmd_text.c", "tests/"), "mem.h"),  # cmd_text: getline's buffer is the C library's
    (r"abort", ("common/base/check.c", "tests/"), "CF_ASSERT"),
    (r"exit", MAINS + ("tests/",), "return an error: only mains end the process"),
]
UNITLESS = r"\b(?:int|unsigned|long|float|double|size_t|ssize_t|u?int\d+_t)\s+(timeout|len|length|size|n|num|delay|duration)\b\s*[,;)\[]"
# Spelled in pieces, so that this file passes its own rule.
MARKERS = r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b"
PLACES = r"(?<![\w./])/(?:wo" r"rk|ho" r"me|ro" r"ot|Users)(?:/|\b)"


def blank_comments_and_strings(text):
    """The same text with comments and the insides of literals as spaces; line and column numbers stay."""
    def blank(match):
        found = match.group(0)
        if found[0] in "\"'":
            return found[0] + " " * (len(found) - 2) + found[0]
        return re.sub(r"[^\n]", " ", found)
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", blank, text, flags=re.S)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


class Rules:
    """include_rules.txt."""

    def __init__(self, text):
        self.may, self.door, self.system = {}, {}, []
        for line in text.splitlines():
            words = line.split("#")[0].split()
            if not words:
                continue
            if words[0] == "system":
                self.system += words[1:]
            else:
                {"may": self.may, "door": self.door}[words[0]][words[1]] = words[2:]

    def refuse_project(self, path, header):
        """Why path may not include the project header, or None."""
        folder = os.path.dirname(path)
        if path.startswith("tests/"):
            return None
        if header.startswith("tests/"):
            return "tests are included by tests alone"
        if header.endswith("_impl.h") and not (folder + "/").startswith(os.path.dirname(header) + "/"):
            return "a private header of another folder"
        who = max((w for w in self.may if path.startswith(w)), key=len, default=None)
        if who is None:
            return "no rule for this folder in tools/include_rules.txt"
        allowed = ["common/base/", folder + "/"] + self.may[who]
        if re.search("/(cpu|cuda)$", folder):
            allowed.append(os.path.dirname(folder) + "/")
        if path.split("/")[0] in ("common",):
            allowed.append("/".join(path.split("/")[:2]) + "/")
        return None if any(header.startswith(a) for a in allowed) else "%s may include %s" % (who, " ".join(allowed))

    def refuse_outside(self, path, header):
        for prefix, files in self.door.items():
            if header.startswith(prefix):
                return None if path.startswith("tests/") or any(path.startswith(f) for f in files) else \
                    "the door to it is " + " ".join(files)
        if any(header == s or (s.endswith("/") and header.startswith(s)) for s in self.system):
            return None
        return "not in tools/include_rules.txt"


def check_includes(path, text, rules):
    for match in re.finditer(r"^[ \t]*#[ \t]*include[ \t]+([<\"])([^>\"]+)[>\"]", text, re.M):
        kind, header = match.groups()
        why = rules.refuse_project(path, header) if kind == '"' else rules.refuse_outside(path, header)
        if why:
            yield line_of(text, match.start()), "include of %s: %s" % (header, why)


def functions_of(code):
    """(name, first line, lines) of each function; relies on the layout: its braces stand alone in column one."""
    lines = code.split("\n")
    begin = None
    for number, line in enumerate(lines, 1):
        if line == "{":
            begin = number
        elif line == "}" and begin is not None:
            head = " ".join(lines[max(0, begin - 8):begin - 1]).split(";")[-1].split("}")[-1]
            names = re.findall(r"(\w+)\s*\(", head)
            yield names[0] if names else "?", begin, number - begin + 1
            begin = None


def check_sizes(path, text, code):
    """(line, message, ratchet key, size): refused unless the ratchet lists the key with that size."""
    lines = text.count("\n")
    header = path.endswith((".h", ".cuh", ".hh"))
    function_lines_max = KERNEL_LINES_MAX if path.endswith((".cu", ".cuh")) else FUNCTION_LINES_MAX
    if lines > (HEADER_LINES.get(path, HEADER_LINES_MAX) if header else FILE_LINES_MAX):
        yield 1, "%d lines" % lines, path, lines
    for name, begin, count in functions_of(code):
        if count > function_lines_max:
            yield begin, "%s: %d lines, at most %d" % (name, count, function_lines_max), path + ":" + name, count


def check_text(path, text):
    """Rules for every text file of the tree."""
    for number, line in enumerate(text.split("\n"), 1):
        if re.search(MARKERS, line):
            yield number, "an unfinished mark; open questions are `NEEDS" "WORK(name): question`"
        if re.search(PLACES, line):
            yield number, "a path of one machine"
        if "/tmp" in line and re.match(r"(?!tests/|docs/).*\.(c|h|sh|mk)$", path):
            yield number, "a fixed temporary folder"


def check_source(path, text, code):
    """Rules for .c and .h files."""
    if not re.match(r"(/\*\s*\n?\s*\*?|//)\s*%s - \S" % re.escape(os.path.basename(path)), text):
        yield 1, "opens without a block `%s - what it is for`" % os.path.basename(path)
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > COLUMNS_MAX:
            yield number, "%d columns, at most %d" % (len(line), COLUMNS_MAX)
        if "\t" in line or line != line.rstrip():
            yield number, "tab or trailing space"
    for calls, allowed, instead in BANNED:
        if any(path.startswith(a) for a in allowed):
            continue
        for match in re.finditer(r"(?<![\w.>])(%s)\s*\(" % calls, code):
            yield line_of(code, match.start()), "%s() is banned here: %s" % (match.group(1), instead)
    if path.endswith(".c"):
        for match in re.finditer(r"^[ \t]*extern\b", code, re.M):
            yield line_of(code, match.start()), "extern belongs in a header"
        for match in re.finditer(r"\bgoto\s+(?!out\b)(\w+)", code):
            yield line_of(code, match.start()), "goto %s: the one label is out" % match.group(1)
    elif path.endswith((".h", ".cuh", ".hh")):
        for match in re.finditer(UNITLESS, code):
            yield line_of(code, match.start()), "%s says neither of what nor in which unit" % match.group(1)


def check_ops(ops_h, suite):
    """Every op of CF_OPS has to be named by the suite."""
    table = re.search(r"#define CF_OPS\(X\)((?:[^\n]*\\\n)*[^\n]*)", ops_h)
    names = re.findall(r"\bX\((\w+)", table.group(1)) if table else []
    if not names:
        yield 1, "CF_OPS not found"
    for name in names:
        if not re.search(r"\b(op_)?%s\b" % name, suite):
            yield 1, "op %s has no case in tests/ops" % name


def check_faults(sources, tests):
    """Every fault point of the sources has to be armed by a test: a path that nobody has walked is a guess."""
    for name in sorted(set(re.findall(r'\bfault_hit\("([\w.]+)"\)', sources))):
        if not re.search(r'"(?:[^"\n]*,)?%s[#="]' % re.escape(name), tests):
            yield 1, "fault point %s is armed by no test" % name


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def tree():
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f not in (".git", "build", "__pycache__"))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(folder, name), ROOT)


def read_ratchet():
    entries = {}
    for line in read("tools/tidy_ratchet.txt").splitlines():
        words = line.split("#")[0].split()
        if words:
            entries[words[0]] = int(words[1])
    return entries


def check_ratchet(entries, sizes):
    """sizes: (path, line, message, key, size) of everything above its limit."""
    seen = {}
    for path, line, message, key, size in sizes:
        seen[key] = size
        if size > entries.get(key, 0):
            yield path, line, message + (", and the ratchet says %d" % entries[key] if key in entries else "")
    for key, listed in entries.items():
        if seen.get(key, 0) < listed:
            yield "tools/tidy_ratchet.txt", 1, "%s has shrunk to %d: lower or remove its line" % (key, seen.get(key, 0))


def check_tree():
    rules = Rules(read("tools/include_rules.txt"))
    sizes, folder_bytes = [], dict.fromkeys(FOLDER_BYTES_MAX, 0)
    for path in tree():
        file_bytes = os.path.getsize(os.path.join(ROOT, path))
        for folder in folder_bytes:
            folder_bytes[folder] += file_bytes if path.startswith(folder + "/") else 0
        if file_bytes > FILE_BYTES_MAX and not path.startswith(MODEL_FOLDER):
            yield path, 1, "%d bytes, at most %d" % (file_bytes, FILE_BYTES_MAX)
        if not re.search(r"\.(c|h|cc|hh|cu|cuh|py|sh|mk|md|txt|json|service|target|example)$|(^|/)(Makefile|bootstrap|run)$", path) \
                or path.startswith(("tests/golden/", "tests/fuzz/corpus/")):
            continue
        text = read(path)
        found = list(check_text(path, text))
        if path.endswith(SOURCES) and path.startswith(FOLDERS):
            code = blank_comments_and_strings(text)
            found += list(check_source(path, text, code)) + list(check_includes(path, text, rules))
            sizes += [(path,) + s for s in check_sizes(path, text, code)]
        for line, message in found:
            yield path, line, message
    for folder, found_bytes in folder_bytes.items():
        if found_bytes > FOLDER_BYTES_MAX[folder]:
            yield folder, 1, "%d bytes, at most %d" % (found_bytes, FOLDER_BYTES_MAX[folder])
    suite = "".join(read(p) for p in tree() if p.startswith("tests/ops/") and p.endswith((".c", ".h")))
    for line, message in check_ops(read("common/compute/ops.h"), suite):
        yield "common/compute/ops.h", line, message
    code = {p: read(p) for p in tree() if p.startswith(FOLDERS) and p.endswith(".c")}
    tests = "".join(text for p, text in code.items() if p.startswith("tests/"))
    for line, message in check_faults("".join(t for p, t in code.items() if not p.startswith("tests/")), tests):
        yield "common/base/fault.h", line, message
    yield from check_ratchet(read_ratchet(), sizes)


def main():
    if sys.argv[1:] == ["--self-test"]:
        import tidy_test
        return tidy_test.run(sys.modules[__name__])
    found = sorted(set(check_tree()))
    for path, line, message in found:
        print("%s:%d: %s" % (path, line, message))
    print("tidy: %d violation%s" % (len(found), "" if len(found) == 1 else "s"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
