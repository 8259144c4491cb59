"""tidy_test.py - a source that breaks each rule of tidy.py, and sources that break none. Run by `tidy.py --self-test`."""

HEAD = "/*\n * %s - x. */\n"


def source(tidy, path, body, head=None):
    """What check_source says about a file with this body."""
    text = (HEAD % path.split("/")[-1] if head is None else head) + body
    return [m for _, m in tidy.check_source(path, text, tidy.blank_comments_and_strings(text))]


# (path, body, part of the one message, or None where nothing may be said)
SOURCES = [
    ("common/base/a.c", "int a(void)\n{\n    return 0;\n}\n", None),
    ("common/base/a.c", "x" * 121 + "\n", "121 columns"),
    ("common/base/a.c", "\tint a;\n", "tab"),
    ("common/base/a.c", "int a; \n", "trailing space"),
    ("common/base/a.c", "extern int a;\n", "extern belongs"),
    ("common/base/a.h", "extern const int a;\n", None),
    ("common/base/a.c", "    strcpy(a, b);\n", "strcpy() is banned"),
    ("common/base/a.c", "    /* strcpy(a, b) */\n    f(\"strcpy(\");\n", None),
    ("common/base/a.c", "    my_strcpy(a, b);\n    x->free(y);\n    z.free(y);\n", None),
    ("tests/unit/test_a.c", "    strcpy(a, b);\n    free(a);\n    printf(a);\n", None),
    ("tests/unit/test_a.c", "    usleep(1);\n", "usleep() is banned"),
    ("common/base/a.c", "    v = atoi(a);\n", "atoi() is banned"),
    ("common/base/a.c", "    system (a);\n", "system() is banned"),
    ("common/base/a.c", "    sleep(1);\n", "sleep() is banned"),
    ("common/base/a.c", "    assert(a);\n", "assert() is banned"),
    ("common/base/a.c", "    CF_ASSERT(a);\n    static_assert(a);\n", None),
    ("common/base/a.c", "    printf(a);\n", "printf() is banned"),
    ("common/base/a.c", "    snprintf(a);\n", None),
    ("tools/cmd_a.c", "    printf(a);\n", None),
    ("common/base/a.c", "    free(a);\n", "free() is banned"),
    ("common/base/mem.c", "    free(a);\n", None),
    ("common/base/a.c", "    exit(1);\n", "exit() is banned"),
    ("flow_worker/main.c", "    exit(1);\n", None),
    ("common/base/a.c", "    goto fail;\n", "goto fail"),
    ("common/base/a.c", "    goto out;\n", None),
    ("common/base/a.h", "struct a {\n    uint32_t timeout;\n};\n", "timeout says neither"),
    ("common/base/a.h", "void a(const char *b, size_t len);\n", "len says neither"),
    ("common/base/a.h", "void a(const char *b, size_t b_bytes, int64_t deadline_us);\n", None),
]

INCLUDES = [
    ("common/base/a.c", '"common/base/err.h"', None),
    ("common/base/a.c", '"common/model/voice.h"', "may include"),
    ("common/compute/cpu/a.c", '"common/compute/cpu/b_impl.h"', None),
    ("common/compute/cpu/a.c", '"common/compute/backend_impl.h"', None),
    ("common/compute/a.c", '"common/transport/bus.h"', "may include"),
    ("flow_worker/a.c", '"common/compute/backend_impl.h"', "private header"),
    ("flow_worker/a.c", '"flow_worker/dit.h"', None),
    ("flow_worker/a.c", '"llm_worker/kv_cache.h"', "may include"),
    ("orchestrator/a.c", '"common/compute/ops.h"', "may include"),
    ("orchestrator/a.c", '"common/transport/bus.h"', None),
    ("orchestrator/orch_core.c", '"common/transport/bus.h"', "may include"),
    ("orchestrator/orch_core.c", '"common/transport/wire.h"', None),
    ("tools/cmd_say.c", '"flow_worker/dit.h"', "may include"),
    ("tools/parity_flow.c", '"flow_worker/dit.h"', None),
    ("tools/a.c", '"tests/harness/test.h"', "tests are included"),
    ("tests/unit/a.c", '"flow_worker/dit.h"', None),
    ("elsewhere/a.c", '"common/base/err.h"', "no rule"),
    ("common/base/a.c", "<stdint.h>", None),
    ("common/base/a.c", "<sys/mman.h>", None),
    ("common/base/a.c", "<assert.h>", "not in"),
    ("common/base/json.c", "<cjson/cJSON.h>", None),
    ("common/base/a.c", "<cjson/cJSON.h>", "the door"),
    ("orchestrator/a.c", "<zmq.h>", "the door"),
    ("orchestrator/a.c", "<cuda_runtime_api.h>", "the door"),
    ("orchestrator/a.c", "<cublasLt.h>", "the door"),
    ("orchestrator/a.c", "<cooperative_groups.h>", "not in"),
    ("common/transport/outbox.c", "<cuda_runtime_api.h>", "the door"),
    ("common/transport/outbox_cuda_ipc.c", "<cuda_runtime_api.h>", None),
    ("common/compute/cuda/ops_norm.cu", "<cublasLt.h>", "the door"),
    ("common/text/a.c", "<unicode/uchar.h>", None),
]

TEXTS = [
    ("a.md", "plain\n", None),
    ("a.md", "TO" "DO: later\n", "unfinished"),
    ("a.sh", "cd /ho" "me/me\n", "one machine"),
    ("a.sh", "x > /tmp/y\n", "temporary folder"),
    ("tests/a.c", "/tmp/y\n", None),
]


def check_one(messages, want):
    return messages == [] if want is None else len(messages) == 1 and want in messages[0]


def long_function(lines):
    return "int f(int a,\n      int b)\n{\n" + "    a++;\n" * (lines - 2) + "}\n"


def check_sizes(tidy):
    """Functions of 70 lines pass, of 71 do not; the ratchet tolerates what it lists, refuses growth and unused room."""
    def keys(text):
        return [(k, s) for _, _, k, s in tidy.check_sizes("a.c", text, text)]

    over = [("a.c", 1, "long", "a.c:f", 80)]
    return {
        "70 lines": keys(long_function(70)) == [],
        "71 lines": keys(long_function(71)) == [("a.c:f", 71)],
        "a long file": keys("int a;\n" * 801) == [("a.c", 801)],
        "a new offender": len(list(tidy.check_ratchet({}, over))) == 1,
        "a listed one": list(tidy.check_ratchet({"a.c:f": 80}, over)) == [],
        "a grown one": len(list(tidy.check_ratchet({"a.c:f": 79}, over))) == 1,
        "a shrunk one": len(list(tidy.check_ratchet({"a.c:f": 81}, over))) == 1,
        "a vanished one": len(list(tidy.check_ratchet({"a.c:f": 81}, []))) == 1,
    }


def check_ops(tidy):
    table = "#define CF_OPS(X) \\\n    X(add, op_add_args) \\\n    X(rope, op_rope_args)\n"
    return {
        "an op without a case": [m for _, m in tidy.check_ops(table, "op_add(be, &a);")] == ["op rope has no case in tests/ops"],
        "all ops have cases": list(tidy.check_ops(table, "op_add op_rope")) == [],
        "no table": len(list(tidy.check_ops("", ""))) == 1,
    }


def check_faults(tidy):
    code = 'if (fault_hit("io.read") || fault_hit("io.open"))'
    return {
        "a fault point that no test arms": [m for _, m in tidy.check_faults(code, 'sweep(&s, "io.open", 1)')] ==
                                           ["fault point io.read is armed by no test"],
        "fault points armed alone and in a list": list(tidy.check_faults(code, '"a=kill,io.open#2=fail" "io.read=fail"')) == [],
    }


def run(tidy):
    rules = tidy.Rules(tidy.read("tools/include_rules.txt"))
    results = {}
    for number, (path, body, want) in enumerate(SOURCES):
        results["source %d of %s" % (number, path)] = check_one(source(tidy, path, body), want)
    results["no opening block"] = check_one(source(tidy, "common/base/a.c", "int a;\n", head=""), "opens without a block")
    for path, header, want in INCLUDES:
        messages = [m for _, m in tidy.check_includes(path, "#include " + header + "\n", rules)]
        results["%s includes %s" % (path, header)] = check_one(messages, want)
    for number, (path, text, want) in enumerate(TEXTS):
        results["text %d of %s" % (number, path)] = check_one([m for _, m in tidy.check_text(path, text)], want)
    results.update(check_sizes(tidy))
    results.update(check_ops(tidy))
    results.update(check_faults(tidy))
    failed = [name for name, good in results.items() if not good]
    for name in failed:
        print("self-test: %s: not as expected" % name)
    print("tidy: %d self-tests, %d failed" % (len(results), len(failed)))
    return 1 if failed else 0
