#!/usr/bin/env python3
"""docs_check.py - compares the documents with the code: what both name has to be the same.

Compared in both directions: exit codes, environment variables, configuration keys and events of warnings and errors
with docs/OPERATIONS.md,
the messages of common/transport/wire.[ch] with docs/PROTOCOL.md, the bounds of tools/parity_compare.c with
docs/model/cases.md, the verbs of tools/cosyfarm.c with docs/INTERFACE.md. Files, links, make targets, tests,
sections and requirements [P-nn] that somebody names have to exist. Prints `file: what`; exit status 1 if something
differs. Every run first proves on broken examples that differences are seen.
"""
import glob
import json
import os
import re
import sys

sys.dont_write_bytecode = True

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OPERATIONS = "docs/OPERATIONS.md"
# Read by the tests or the build alone; docs/TESTING.md has them.
TEST_VARIABLES = {"COSYFARM_ROOT", "COSYFARM_BIN", "COSYFARM_SHARED"}


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def sources(*folders):
    for folder in folders:
        for kind in ("*.[ch]", "*.cu", "*.cuh"):
            for path in glob.glob(os.path.join(ROOT, folder, "**", kind), recursive=True):
                yield os.path.relpath(path, ROOT)


def section(text, title):
    """The lines of a document between a heading and the next one of any level."""
    match = re.search(r"^#+ %s\n(.*?)(?=^#|\Z)" % re.escape(title), text, re.M | re.S)
    return match.group(1) if match else ""


def first_cells(text):
    """The back-quoted names, or numbers, in the first cell of each table row."""
    cells = set()
    for row in re.findall(r"^\|([^|]*)\|", text, re.M):
        cells |= set(re.findall(r"`([^`]+)`", row)) or set(re.findall(r"^\s*(\d+)\s*$", row))
    return cells


def differ(what, code, document, in_document):
    for name in sorted(code - in_document):
        yield document, "%s %s is missing" % (what, name)
    for name in sorted(in_document - code):
        yield document, "%s %s is not in the code" % (what, name)


# ---- messages ----

PROTOCOL = "docs/PROTOCOL.md"
ROUTES = {
    "WIRE_MEMBER_LIFELINE": "member to orchestrator, lifeline",
    "WIRE_ORCH_LIFELINE": "orchestrator to member, lifeline",
    "WIRE_MEMBER_BUS": "worker to orchestrator, bus",
    "WIRE_ORCH_BUS": "orchestrator to worker, bus",
    "WIRE_CLIENT_BUS": "client to orchestrator, bus",
    "WIRE_ORCH_CLIENT": "orchestrator to client, bus",
}
U64_ANY = 18446744073709551615


def constants():
    """Numbers that wire.c uses by name: the macros of limits.h and its own."""
    values = {}
    text = re.sub(r"/\*.*?\*/", "", read("common/base/limits.h") + read("common/transport/wire.c"), flags=re.S)
    for name, body in re.findall(r"^#define (\w+) +(\S.*)$", text, re.M):
        words = re.sub(r"\b[A-Z_]+[A-Z]\b", lambda m: str(values.get(m.group(0), m.group(0))), body)
        if re.fullmatch(r"[\d.\s+*/()<-]+", words):
            values[name] = int(eval(words.replace("/", "//"), {}))  # digits and operators alone: checked above
    return values


def number(text, names):
    """An integer for "1e9", "999", a name or "NAME - 1"; a float stays one when it is not whole."""
    minus_one = re.fullmatch(r"\s*([A-Z_]+)\s*-\s*1\s*", text)
    if minus_one:
        return names[minus_one.group(1)] - 1
    value = names.get(text.strip(), None)
    if value is None:
        value = float(text) if not re.fullmatch(r"\s*\d+\s*", text) else int(text)
    return int(value) if value == int(value) else value


def bound_words(kind, low, high, names):
    """(type, range) of a field as docs/PROTOCOL.md writes them."""
    low, high = number(low, names), number(high, names)
    if kind == "U64":
        return "u64", "any" if high >= U64_ANY else "0..%d" % high
    if kind == "F64":
        return "f64", "%s..%s" % (low, high)
    if kind == "STR":
        return "text", "at most %d bytes" % high
    if kind == "I32S":
        return "ids", "at most %d" % high
    return ("flag", "true, false") if kind == "BOOL" else ("tree", "array or object")


def wire_kinds(header):
    """kind -> the name of its route."""
    table = re.search(r"#define WIRE_KINDS\(X\)(.*?)\n\n", header, re.S)
    return dict(re.findall(r"\bX\((\w+), (\w+)\)", table.group(1))) if table else {}


def wire_fields(source, names):
    """kind -> {field: (type, range)} in the table's order."""
    short = {"NUM": ("U64", 0), "REAL": ("F64", 1), "TEXT": ("STR", 0), "FLAG": ("BOOL", 0), "IDS": ("I32S", 0),
             "TREE": ("JSON", 0)}
    kinds = {}
    for kind, body in re.findall(r"static const wire_field (\w+)_fields\[\] = \{(.*?)\};", source, re.S):
        fields = kinds.setdefault(kind, {})
        for macro, key, rest in re.findall(r"\b(NUM|REAL|TEXT|FLAG|IDS|TREE|OPT)\(\"(\w+)\"((?:, [^,()]+)*)\)", body):
            args = [a.strip() for a in rest.split(",")[1:]]
            if macro == "OPT":
                words = bound_words(args[0].replace("FIELD_", ""), args[1], args[2], names)
                fields[key] = (words[0] + ", optional", words[1])
                continue
            kind_name, has_low = short[macro]
            args = args if has_low else ["0"] + (args or ["0"])
            fields[key] = bound_words(kind_name, args[0], args[1], names)
        if len(re.findall(r"\b(?:NUM|REAL|TEXT|FLAG|IDS|TREE|OPT)\(", body)) != len(fields):
            raise SystemExit("common/transport/wire.c: %s_fields has rows that this script cannot read" % kind)
    return kinds


def protocol_kinds(page):
    """The same two from docs/PROTOCOL.md: headings "### `kind`: route" and their tables."""
    routes, fields = {}, {}
    for kind, route, body in re.findall(r"^### `(\w+)`: ([^\n]+)\n(.*?)(?=^#|\Z)", page, re.M | re.S):
        routes[kind] = route.strip()
        fields[kind] = {key: (kind_name, bounds) for key, kind_name, bounds in
                        re.findall(r"^\| `(\w+)` \| ([^|]+?) \| ([^|]*?) \|", body, re.M)}
    return routes, fields


def compare_protocol(kinds, fields, page):
    routes, rows = protocol_kinds(page)
    yield from differ("message", set(kinds), PROTOCOL, set(routes))
    for kind in sorted(set(kinds) & set(routes)):
        if routes[kind] != ROUTES.get(kinds[kind]):
            route = ROUTES.get(kinds[kind], kinds[kind])
            yield PROTOCOL, "message %s: the code has the route \"%s\"" % (kind, route)
        yield from differ("message %s: field" % kind, set(fields.get(kind, {})), PROTOCOL, set(rows[kind]))
        for key, words in fields.get(kind, {}).items():
            if key in rows[kind] and rows[kind][key] != words:
                yield PROTOCOL, "message %s: field %s: the code has %s | %s" % ((kind, key) + words)


def check_protocol():
    kinds = wire_kinds(read("common/transport/wire.h"))
    if not kinds:
        yield "common/transport/wire.h", "no kinds found"
    yield from compare_protocol(kinds, wire_fields(read("common/transport/wire.c"), constants()), read(PROTOCOL))


def compare_requirements(page, cited):
    """[P-01], [P-02], ... of docs/PROTOCOL.md, each said once; cited: [(path, number)]."""
    said = re.findall(r"^\* \[P-(\d\d)\]", page, re.M)
    for at, tag in enumerate(said):
        if int(tag) != at + 1:
            yield PROTOCOL, "requirement [P-%s] stands where [P-%02d] should" % (tag, at + 1)
            break
    for path, tag in cited:
        if tag not in said:
            yield path, "cites [P-%s], which %s does not have" % (tag, PROTOCOL)


def check_requirements():
    cited = [(path, tag) for path in sources("common", "orchestrator", "tests", "tools")
             for tag in re.findall(r"\bP-(\d\d)\b", read(path))]
    yield from compare_requirements(read(PROTOCOL), cited)


# ---- bounds of parity ----

CASES = "docs/model/cases.md"


def bounds_in_code(source):
    """(stage, tensor, weights) -> (f32, bf16, fp16) in words."""
    def words(text):
        name, args = re.match(r"(\w+)(?:\((.*)\))?", text).groups()
        return " ".join([name.lower()] + [re.sub(r"0x1p", "2^", a.strip()) for a in (args or "").split(",") if a])
    table = re.search(r"BOUNDS\[\] = \{(.*?)\n\};", source, re.S)
    rows = {}
    row = r"\{\s*\"(\w+)\",\s*\"([\w#]+)\",\s*BOUND_(\w+),\s*\{(.*?)\},\s*[\w\"]"
    for stage, tensor, profile, bounds in re.findall(row, table.group(1) if table else "", re.S):
        rows[(stage, tensor, profile.lower())] = tuple(words(b) for b in re.findall(r"\w+(?:\([^)]*\))?", bounds))
    return rows


def bounds_in_page(page):
    rows = {}
    for stage, tensors, weights, bounds in re.findall(r"^\| (\w+) \| (`[^|]+) \| (\w+) \| (.+) \|$", page, re.M):
        for tensor in re.findall(r"`([\w#]+)`", tensors):
            rows[(stage, tensor, weights)] = tuple(b.strip() for b in bounds.split("|"))
    return rows


def compare_bounds(code, page):
    yield from differ("bound of", {" ".join(k) for k in code}, CASES, {" ".join(k) for k in page})
    for key in sorted(set(code) & set(page)):
        if code[key] != page[key]:
            yield CASES, "bound of %s: the code has %s" % (" ".join(key), " | ".join(code[key]))


def check_bounds():
    code = bounds_in_code(read("tools/parity_compare.c"))
    if not code:
        yield "tools/parity_compare.c", "no bounds found"
    yield from compare_bounds(code, bounds_in_page(read(CASES)))


def check_verbs():
    table = re.search(r"verbs\[\] = \{(.*?)\n\};", read("tools/cosyfarm.c"), re.S)
    page = read("docs/INTERFACE.md")
    code = set(re.findall(r"\{\"(\w+)\", cmd_", table.group(1) if table else ""))
    rows = re.findall(r"^\|([^|]*)\|", section(page, "1. Verbs").replace("\\|", "/"), re.M)
    named = {verb for row in rows for verb in re.findall(r"`(?:cosyfarm )?([a-z]+)[^`]*`", row)}
    yield from differ("verb", code, "docs/INTERFACE.md", named)


# ---- the rest ----

def check_exit_codes():
    codes = set()
    for path in ("tools/cmd.h", "common/base/process.h"):
        codes |= set(re.findall(r"^\s*(?:EXIT|PROCESS)_\w+\s*=\s*(\d+)", read(path), re.M))
    yield from differ("exit code", codes, OPERATIONS, first_cells(section(read(OPERATIONS), "Exit codes")))


def check_variables():
    code = set()
    for path in sources("common", "llm_worker", "flow_worker", "hift_worker", "enroll", "orchestrator", "tools"):
        code |= set(re.findall(r"\b(?:getenv|setenv|unsetenv)\(\s*\"(\w+)\"", read(path)))
    yield from differ("variable", code, OPERATIONS, first_cells(section(read(OPERATIONS), "Environment variables")))
    yield from differ("variable", TEST_VARIABLES, "docs/TESTING.md",
                      first_cells(section(read("docs/TESTING.md"), "Environment variables")))


def check_events():
    """Every warning and error line is answered in the table of them, which has no others."""
    code = set()
    for path in sources("common", "llm_worker", "flow_worker", "hift_worker", "enroll", "orchestrator", "tools"):
        text = read(path)
        code |= set(re.findall(r"\blog_(?:warn|error)\(\s*\"([a-z_]+\.[a-z_]+)\"", text))
        code |= set(re.findall(r"LOG_LEVEL_(?:WARN|ERROR)[^\"]*(?:\"[^\"]*\" : )?\"([a-z_]+\.[a-z_]+)\"", text))
    yield from differ("event", code, OPERATIONS, first_cells(section(read(OPERATIONS), "Warnings and errors")))


def config_rows():
    """key -> the first two cells of its row: default and range as the table of config_keys.h has them."""
    table = re.sub(r"\\\n", "", read("common/base/config_keys.h"))
    for kind, key, default, low, high in re.findall(r"X\((\w+), (\w+), ([^,]+), (\d+), (\d+),", table):
        if kind == "BOOL":
            yield key, "| `%s` | %s | true, false |" % (key, "true" if default == "1" else "false")
        elif kind == "STR":
            yield key, "| `%s` | %s | at most %s bytes |" % (key, default, high)
        else:
            yield key, "| `%s` | %s | %s..%s |" % (key, default, low, high)


def check_config_keys():
    rows = dict(config_rows())
    page = section(read(OPERATIONS), "Configuration")
    if not rows:
        yield "common/base/config_keys.h", "no keys found"
    yield from differ("configuration key", set(rows), OPERATIONS, first_cells(page))
    for key, row in rows.items():
        if "`%s`" % key in page and row not in page:
            yield OPERATIONS, "configuration key %s: the code has %s" % (key, row)


CONFIGURATION = "conf/cosyfarm.json"
# Where the installed configuration differs from the defaults: a farm of the service manager outlives its run directory.
INSTALLED = {"journal": '"/var/lib/cosyfarm/journal"'}


def configuration():
    """conf/cosyfarm.json as config_keys.h has it: every key with its default, in order."""
    lines = []
    for key, row in config_rows():
        lines.append("    \"%s\": %s" % (key, INSTALLED.get(key, row.split("|")[2].strip())))
    return "{\n%s\n}\n" % ",\n".join(lines)


def check_configuration():
    found, wanted = read(CONFIGURATION).splitlines(), configuration().splitlines()
    for line in sorted(set(wanted) - set(found)):
        yield CONFIGURATION, "the code has %s (python3 tools/docs_check.py --configuration prints all)" % line.strip()
    for line in sorted(set(found) - set(wanted)):
        yield CONFIGURATION, "%s is not in the code" % line.strip()
    for path in glob.glob(os.path.join(ROOT, "examples", "*.json")):
        for key in sorted(set(json.loads(read(path))) - set(dict(config_rows()))):
            yield os.path.relpath(path, ROOT), "key %s is not in the code" % key


def check_named_files(path, text):
    """Back-quoted paths below a folder of this tree, and links."""
    tops = {name for name in os.listdir(ROOT) if os.path.isdir(os.path.join(ROOT, name))} - {"build"}
    for name in re.findall(r"`(?:\./)?([\w.-]+/[\w./-]+)`", text):
        if re.search(r"NAME|FOLDER|VOICE", name):
            continue
        if name.split("/")[0] in tops and not os.path.exists(os.path.join(ROOT, name)):
            yield path, "%s does not exist" % name
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        if not os.path.exists(os.path.join(ROOT, os.path.dirname(path), link)):
            yield path, "the link to %s leads nowhere" % link


def check_citations():
    """"flow.md 5.1" in a comment is section 5.1 of docs/model/flow.md; interface.md is docs/INTERFACE.md."""
    pages = {os.path.basename(p): "docs/model/" + os.path.basename(p) for p in glob.glob(os.path.join(ROOT, "docs/model/*.md"))}
    pages["interface.md"] = "docs/INTERFACE.md"
    sections = {page: set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", read(path), re.M)) for page, path in pages.items()}
    for path in list(sources("common", "llm_worker", "flow_worker", "hift_worker", "enroll", "orchestrator", "tools", "tests")):
        text = read(path)
        for page, number in re.findall(r"\b([a-z]+\.md)(?: (\d+(?:\.\d+)?))?", text):
            if page not in pages:
                yield path, "cites %s, which is not a page of docs/model" % page
            elif number and number not in sections[page]:
                yield path, "cites %s %s, which is not there" % (page, number)
        for folder in re.findall(r"\b(?:spec|design)/[a-z]+\.md", text):
            yield path, "cites %s: there is no such file" % folder
        for document in sorted(set(re.findall(r"\bdocs/[A-Z]+\.md", text))):
            if not os.path.exists(os.path.join(ROOT, document)):
                yield path, "cites %s: there is no such file" % document


def test_names():
    """Test programs, and functions of tests."""
    names = set()
    for path in sources("tests"):
        names.add(os.path.basename(path)[:-2])
        names |= set(re.findall(r"\b(test_\w+)\(", read(path)))
    return names


def check_tests(path, text, names):
    for name in sorted(set(re.findall(r"\btest_[a-z0-9_]+\b(?!\*)", text)) - names):
        yield path, "%s is neither a test nor a test program" % name


def check_targets(path, text):
    """`make x` where x is neither a variable nor a target."""
    targets = set(re.findall(r"^([\w.-]+)(?: [\w.-]+)*:(?!=)", "".join(
        read(p) for p in ("Makefile", "tests/check.mk", "tests/bench/bench.mk", "tests/cuda_emu/libs.mk", "tests/gpu/libs.mk")), re.M))
    for words in re.findall(r"`make ([^`]+)`", text):
        for word in words.split():
            if "=" not in word and not word.startswith("-") and word not in targets:
                yield path, "make %s: there is no such target" % word


# ---- self-test ----

TEST_HEADER = """#define WIRE_KINDS(X) \\
    X(ping, WIRE_CLIENT_BUS) /* hello */ \\
    X(pong, WIRE_ORCH_CLIENT)

"""
TEST_SOURCE = """static const wire_field ping_fields[] = {NUM("n", 1e9), TEXT("who", NAME_MAX), REAL("x", 0.5, 2)};
static const wire_field pong_fields[] = {
    FLAG("ok"), TREE("more"), OPT("ids", FIELD_I32S, 0, 7), NUM("big", U64_ANY),
};
"""
TEST_PAGE = """### `ping`: client to orchestrator, bus
| `n` | u64 | 0..1000000000 | |
| `who` | text | at most 12 bytes | |
| `x` | f64 | 0.5..2 | |
### `pong`: orchestrator to client, bus
| `ok` | flag | true, false | |
| `more` | tree | array or object | |
| `ids` | ids, optional | at most 7 | |
| `big` | u64 | any | |
* [P-01] one
* [P-02] two
"""
TEST_BOUNDS = """BOUNDS[] = {
    {"llm", "a", BOUND_PLAIN, {BITS, REL(0x1p-8), SNR(29)}, WHY},
    {"llm",
     "b_#",
     BOUND_REAL,
     {ABS(1e-6), LOGITS(0.3, 0.04, 0.3), REL(2)},
     "why"},
};"""
TEST_CASES = """| llm | `a` | plain | bits | rel 2^-8 | snr 29 |
| llm | `b_#` | real | abs 1e-6 | logits 0.3 0.04 0.3 | rel 2 |
"""


def self_test():
    """Each damage to a correct page must be seen, and the correct page must not be complained about."""
    kinds = wire_kinds(TEST_HEADER)
    fields = wire_fields(TEST_SOURCE, {"NAME_MAX": 12, "U64_ANY": U64_ANY})
    bounds = bounds_in_code(TEST_BOUNDS)

    def found(page):
        return list(compare_protocol(kinds, fields, page)) + list(compare_requirements(page, [("x.c", "02")]))
    assert found(TEST_PAGE) == [] and len(fields) == 2 and len(bounds) == 2
    for old, new in [("| `who` | text | at most 12 bytes | |\n", ""), ("12 bytes", "13 bytes"), ("0.5..2", "0..2"),
                     ("`x` | f64", "`x` | u64"), ("ids, optional", "ids"), ("`pong`", "`pang`"), ("u64 | any", "u64 | 0..1"),
                     ("client to", "worker to"), ("[P-02]", "[P-03]"),
                     ("| `ok` |", "| `ok` | flag | true, false | |\n| `extra` |")]:
        assert old in TEST_PAGE and found(TEST_PAGE.replace(old, new, 1)), "self-test: \"%s\" was not seen" % old
    assert list(compare_bounds(bounds, bounds_in_page(TEST_CASES))) == []
    for old, new in [("snr 29", "snr 28"), ("2^-8", "2^-9"), ("`b_#`", "`c`"), ("| real |", "| harsh |"), ("0.04", "0.05")]:
        damaged = bounds_in_page(TEST_CASES.replace(old, new, 1))
        assert list(compare_bounds(bounds, damaged)), "self-test: \"%s\" was not seen" % old


def main():
    if sys.argv[1:] == ["--configuration"]:
        sys.stdout.write(configuration())
        return 0
    self_test()
    documents = [os.path.relpath(p, ROOT) for p in glob.glob(os.path.join(ROOT, "*.md")) +
                 glob.glob(os.path.join(ROOT, "systemd", "*.md")) +
                 glob.glob(os.path.join(ROOT, "docs", "**", "*.md"), recursive=True)]
    found = list(check_exit_codes()) + list(check_variables()) + list(check_config_keys())
    found += list(check_configuration()) + list(check_events())
    found += list(check_protocol()) + list(check_requirements()) + list(check_bounds()) + list(check_verbs())
    found += list(check_citations())
    names = test_names()
    for path in sorted(documents):
        text = read(path)
        found += list(check_named_files(path, text)) + list(check_targets(path, text))
        found += list(check_tests(path, text, names))
    for path, message in found:
        print("%s: %s" % (path, message))
    print("documents: %d checked, %d differences" % (len(documents), len(found)))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
