#!/usr/bin/env python3
"""docs_check.py - compares the documents with the code: what both name has to be the same.

Exit codes of tools/cmd.h and common/base/process.h, environment variables and configuration keys have to be in
docs/OPERATIONS.md and the other way round; files, links and make targets that the documents name have to exist.
Prints `file: what`; exit status 1 if something differs.
"""
import glob
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
        for path in glob.glob(os.path.join(ROOT, folder, "**", "*.[ch]"), recursive=True):
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


def check_exit_codes():
    codes = set()
    for path in ("tools/cmd.h", "common/base/process.h"):
        codes |= set(re.findall(r"^\s*(?:EXIT|PROCESS)_\w+\s*=\s*(\d+)", read(path), re.M))
    yield from differ("exit code", codes, OPERATIONS, first_cells(section(read(OPERATIONS), "Exit codes")))


def check_variables():
    code = set()
    for path in sources("common", "llm_worker", "flow_worker", "hift_worker", "orchestrator", "tools"):
        code |= set(re.findall(r"\b(?:getenv|setenv|unsetenv)\(\s*\"(\w+)\"", read(path)))
    yield from differ("variable", code, OPERATIONS, first_cells(section(read(OPERATIONS), "Environment variables")))
    yield from differ("variable", TEST_VARIABLES, "docs/TESTING.md",
                      first_cells(section(read("docs/TESTING.md"), "Environment variables")))


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


def check_named_files(path, text):
    """Back-quoted paths below a folder of this tree, and links."""
    tops = {name for name in os.listdir(ROOT) if os.path.isdir(os.path.join(ROOT, name))} - {"build"}
    for name in re.findall(r"`(?:\./)?([\w.-]+/[\w./-]+)`", text):
        if re.search(r"NAME|FOLDER|VOICE", name):
            continue
        if name.split("/")[0] in tops and not os.path.exists(os.path.join(ROOT, name)):
            yield path, "%s does not exist" % name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        if not os.path.exists(os.path.join(ROOT, os.path.dirname(path), link)):
            yield path, "the link to %s leads nowhere" % link


def check_citations():
    """"flow.md 5.1" in a comment is section 5.1 of docs/model/flow.md; interface.md is docs/INTERFACE.md."""
    pages = {os.path.basename(p): "docs/model/" + os.path.basename(p) for p in glob.glob(os.path.join(ROOT, "docs/model/*.md"))}
    pages["interface.md"] = "docs/INTERFACE.md"
    sections = {page: set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", read(path), re.M)) for page, path in pages.items()}
    for path in list(sources("common", "llm_worker", "flow_worker", "hift_worker", "orchestrator", "tools", "tests")):
        text = read(path)
        for page, number in re.findall(r"\b([a-z]+\.md)(?: (\d+(?:\.\d+)?))?", text):
            if page not in pages:
                yield path, "cites %s, which is not a page of docs/model" % page
            elif number and number not in sections[page]:
                yield path, "cites %s %s, which is not there" % (page, number)
        for folder in re.findall(r"\b(?:spec|design)/[a-z]+\.md", text):
            yield path, "cites %s: there is no such file" % folder


def check_targets(path, text):
    """`make x` where x is neither a variable nor a target."""
    targets = set(re.findall(r"^([\w.-]+)(?: [\w.-]+)*:(?!=)", read("Makefile") + read("tests/check.mk"), re.M))
    for words in re.findall(r"`make ([^`]+)`", text):
        for word in words.split():
            if "=" not in word and not word.startswith("-") and word not in targets:
                yield path, "make %s: there is no such target" % word


def main():
    documents = [os.path.relpath(p, ROOT) for p in glob.glob(os.path.join(ROOT, "*.md")) +
                 glob.glob(os.path.join(ROOT, "docs", "**", "*.md"), recursive=True)]
    found = list(check_exit_codes()) + list(check_variables()) + list(check_config_keys())
    found += list(check_citations())
    for path in sorted(documents):
        text = read(path)
        found += list(check_named_files(path, text)) + list(check_targets(path, text))
    for path, message in found:
        print("%s: %s" % (path, message))
    print("documents: %d checked, %d differences" % (len(documents), len(found)))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
