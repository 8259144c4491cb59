# `make check` and what it is made of. Included by the Makefile after tests/libs.mk.
#
#: make                          all programs into build/default/bin
#: make check                    style, headers, all tests, fuzz corpora; the last line counts them
#: make check SAN=address        the same programs under AddressSanitizer and UBSan (SAN=thread: ThreadSanitizer)
#: make check-emu                the CUDA backend's kernels and the workers on them, executed without a card
#: make parity-emu [PRECISION=bf16]   every reference of the tiny models on the emulated device (check-emu runs five)
#: make check-gpu                the same on a card; each step is skipped, and counted, where there is none
#: make bench-gpu MODEL=dir      rates on cuda:0; COSYVOICE=checkout: beside those of the original on the same weights
#: make check SLOW=1             also the tests tagged slow
#: make sim [SEEDS=10000]        the orchestrator's decisions in that many random histories; SEED=N tells one of them
#: make T=test_base              builds and runs one test program (CMOCKA_TEST_FILTER narrows it)
#: make fuzz F=json TIME=60      one fuzz target with libFuzzer (needs clang); make fuzz-all runs each
#: make check-systemd            boots the installed units under a real systemd, in namespaces; as root
#: make check-slurm              the Slurm example on two nodes on loopback; as root, installs slurmctld slurmd munge
#: make check-voice              the demo voice through the whole farm, understood by PocketSphinx (installs it)
#: make tidy | format | format-check | headers | docs-check    one step of the check
#: make install PREFIX=/usr/local [DESTDIR=...]                programs, units, configuration
#: make compile_commands.json    for editors
#: make clean                    removes build/
#
# A test program is slow, and left out of `make check`, when the first lines of its source say "Tags: slow"; `make check SLOW=1`
# runs those too. Limits are seconds per program.
JOBS ?= $(shell nproc)
SLOW ?=
# Exit status 77 of a step counts as skipped.
NEED_PYTHON := command -v python3 >/dev/null || { echo "python3 is not installed"; exit 77; }; python3
LIMIT_S := $(if $(SAN),900,180)
TIME ?= 60
PREFIX ?= /usr/local

# Tests that start the programs find them and the sources here.
export COSYFARM_ROOT := $(CURDIR)
export COSYFARM_BIN := $(CURDIR)/$(B)/bin
export ASAN_OPTIONS ?= detect_leaks=1:abort_on_error=1
export LSAN_OPTIONS ?= suppressions=$(CURDIR)/tests/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS ?= print_stacktrace=1
export TSAN_OPTIONS ?= suppressions=$(CURDIR)/tests/tsan.supp:halt_on_error=0:exitcode=66

# Fuzz targets: linked with libFuzzer in the configuration SAN=fuzz, with the replay elsewhere.
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_BIN := $(patsubst %.c,$(B)/%,$(FUZZ_SRC))
FUZZ_MAIN := $(if $(filter fuzz,$(SAN)),,$(B)/obj/tests/fuzz/replay.o)
define fuzz_rule
$(B)/$(1): $(B)/obj/$(1).o $(FUZZ_MAIN) $(LIBS_$(notdir $(1))) $(BASE)
	@mkdir -p $$(@D)
	$(CC) $(LDFLAGS) $(if $(FUZZ_MAIN),,-fsanitize=fuzzer) -o $$@ $$(filter %.o,$$^) -Wl,--start-group $$(filter %.a,$$^) -Wl,--end-group $(EXT_$(notdir $(1))) $(EXT_BASE)
endef
$(foreach t,$(FUZZ_SRC),$(eval $(call fuzz_rule,$(t:.c=))))

CANARY := $(B)/tests/harness/canary/canary
$(CANARY): $(B)/obj/tests/harness/canary/canary.o $(HARNESS) $(BASE)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(EXT_BASE) -lcmocka

# Long ones first, so that the last minute is not one program alone.
SLOW_SRC := $(if $(SLOW),,$(shell grep -lE '^(/\*| \*).*Tags:.*slow' $(TEST_SRC) /dev/null))
CHECK_SRC := $(filter-out $(SLOW_SRC),$(foreach d,e2e parity ops transport unit,$(filter tests/$(d)/%,$(TEST_SRC))) \
             $(filter-out tests/e2e/% tests/parity/% tests/ops/% tests/transport/% tests/unit/%,$(TEST_SRC)))

define tap_lines
$(foreach t,$(1),tap|$(patsubst tests/%.c,%,$(t))|$(LIMIT_S)|$(B)/$(t:.c=)
)
endef

# Programs at once: one more than build jobs, because a farm that is killed, drained or starved waits for half of its time.
RUN_JOBS = $(shell expr $(JOBS) + 1)

# The plan of tests/run.sh, in two parts: what mostly waits, and what mostly computes. Their lines alternate, so that both
# kinds run beside each other. Steps that look at sources alone run in the plain configuration only.
define waiting_plan
$(call tap_lines,$(filter tests/e2e/%,$(CHECK_SRC)))$(if $(SAN),,step|systemd|120|tests/systemd/boot_test.sh $(B)/check/systemd)
endef
define computing_plan
$(if $(SAN),,$(emu_plan)
step|bootstrap|$(LIMIT_S)|tests/harness/bootstrap_test.sh $(B)/check/bootstrap
)$(call tap_lines,$(filter-out tests/e2e/%,$(CHECK_SRC)))$(call tap_lines,$(FUZZ_SRC))tap|sim|$(LIMIT_S)|$(SIM) tap 10 100
step|programs|$(LIMIT_S)|ls $(PROG)
$(if $(PROBE_GPU),step|probe_gpu|$(LIMIT_S)|$(PROBE_GPU) 10 | grep MPS
)step|plan|$(LIMIT_S)|tests/e2e/plan_test.sh $(B)
step|canary|$(LIMIT_S)|tests/harness/canary/check.sh $(CANARY) $(B)/check/canary
$(if $(SAN),,step|headers|$(LIMIT_S)|$(MAKE) -s -k headers
step|tidy self-test|$(LIMIT_S)|$(NEED_PYTHON) tools/tidy.py --self-test
step|tidy|$(LIMIT_S)|$(NEED_PYTHON) tools/tidy.py
step|format|$(LIMIT_S)|tools/format.sh --check
step|voice_lab|$(LIMIT_S)|$(NEED_PYTHON) tests/voice_lab/test_voice_lab.py
step|documents|$(LIMIT_S)|$(NEED_PYTHON) tools/docs_check.py
)
endef

# What does not build is a failure of its program, not the end of the run.
check:
	@mkdir -p $(B)/check
	@echo "building $(B) (first messages, if any, are the compiler's)"
	@+$(MAKE) -s -k -j$(JOBS) check-build || echo "something did not build: its programs will be reported as failed"
	$(if $(SAN),,@+$(MAKE) -s check-emu-build)
	@$(MAKE) -s $(B)/check/plan
	@tests/run.sh $(B)/check/logs $(RUN_JOBS) $(B)/check/plan
check-build: $(PROG) $(patsubst %.c,$(B)/%,$(CHECK_SRC)) $(FUZZ_BIN) $(CANARY) $(SIM)
.PHONY: check check-build

$(B)/check/plan: FORCE
	@$(file >$@.waiting,$(waiting_plan))$(file >$@.computing,$(computing_plan)):
	@paste -d '\n' $@.waiting $@.computing >$@

.PHONY: FORCE # said here, because .SECONDARY would call a missing prerequisite up to date
FORCE:

# Histories of a farm in virtual time, over JOBS processes; a failed seed is printed with the command that tells it.
SEEDS ?= 10000
sim: $(SIM)
	$(SIM) $(if $(SEED),seed $(SEED),all $(SEEDS) $(JOBS))
.PHONY: sim

# Every header compiles alone, as C11 and, outside tests, as C++17.
# Not those that are bodies included once per instruction set (*_loops.h, *_kernels.h).
HEADERS := $(filter-out %_loops.h %_kernels.h,$(shell find $(FOLDERS) tests -name '*.h' 2>/dev/null))
headers: $(patsubst %,$(B)/headers/%.ok,$(HEADERS))
$(B)/headers/%.ok: %
	@mkdir -p $(@D)
	printf '#include "$<"\ntypedef int not_empty;\n' | $(CC) $(CPPFLAGS) -std=c11 $(WARN) -fsyntax-only -MMD -MP -MT $@ -MF $(@:.ok=.d) -x c -
	$(if $(filter tests/%,$<),,echo '#include "$<"' | $(CC) $(CPPFLAGS) -std=c++17 -Wall -Wextra -Werror -fsyntax-only -x c++ -)
	@touch $@

# Style.
format:
	tools/format.sh
format-check:
	tools/format.sh --check
tidy:
	$(NEED_PYTHON) tools/tidy.py --self-test && python3 tools/tidy.py
docs-check:
	$(NEED_PYTHON) tools/docs_check.py

# Service managers.
check-systemd: all
	tests/systemd/boot_test.sh $(B)/check-systemd
check-slurm: all
	tests/slurm/slurm_test.sh $(B)/check-slurm

# The demo voice, understood by an independent recogniser.
check-voice: all
	tests/voice_lab/check_voice.sh $(B)/bin/cosyfarm $(or $(MODEL),models/demo) $(B)/check-voice
.PHONY: check-voice

# One target for TIME seconds, starting from the committed corpus; what it learns stays in build/fuzz/corpus.
fuzz:
	@test -n "$(F)" || { echo "usage: make fuzz F=name [TIME=60]; names: $(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRC))"; exit 64; }
	@+$(MAKE) -s -j$(JOBS) SAN=fuzz CC=clang build/fuzz/tests/fuzz/fuzz_$(F)
	@mkdir -p build/fuzz/corpus/$(F)
	build/fuzz/tests/fuzz/fuzz_$(F) -max_total_time=$(TIME) -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/$(F)- build/fuzz/corpus/$(F) tests/fuzz/corpus/$(F)
fuzz-all:
	@for f in $(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRC)); do $(MAKE) --no-print-directory fuzz F=$$f TIME=$(TIME) || exit 1; done

# Units name /usr/local/bin; another PREFIX is written into them. The configuration of an earlier installation stays.
SYSCONFDIR ?= /etc
UNITS := $(wildcard systemd/*.service) systemd/cosyfarm.target systemd/cosyfarm.slice
EXAMPLES := $(filter-out %.md,$(wildcard examples/*))
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d \
	    $(DESTDIR)$(PREFIX)/lib/tmpfiles.d $(DESTDIR)$(PREFIX)/share/doc/cosyfarm/examples $(DESTDIR)$(SYSCONFDIR)/cosyfarm \
	    $(DESTDIR)$(PREFIX)/share/cosyfarm
	cp -R models/demo $(DESTDIR)$(PREFIX)/share/cosyfarm/
	install -m 755 $(PROG) $(DESTDIR)$(PREFIX)/bin
	for u in $(notdir $(UNITS)); do sed -e 's|/usr/local/|$(PREFIX)/|g' -e 's|/etc/|$(SYSCONFDIR)/|g' systemd/$$u \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$u && chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/$$u || exit 1; done
	install -m 644 systemd/cosyfarm.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/cosyfarm.conf
	install -m 644 systemd/cosyfarm.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/cosyfarm.conf
	install -m 644 docs/OPERATIONS.md systemd/README.md $(DESTDIR)$(PREFIX)/share/doc/cosyfarm
	install -m 644 conf/cosyfarm.json $(EXAMPLES) $(DESTDIR)$(PREFIX)/share/doc/cosyfarm/examples
	test -e $(DESTDIR)$(SYSCONFDIR)/cosyfarm/cosyfarm.json || \
	    install -m 644 conf/cosyfarm.json $(DESTDIR)$(SYSCONFDIR)/cosyfarm/cosyfarm.json

# For editors and clang-tidy.
compile_commands.json: FORCE
	@for f in $(sort $(wildcard $(addsuffix /*.c,$(FOLDERS) common/compute/cpu tests/*))); do \
	    printf '{"directory":"%s","file":"%s","command":"%s"},\n' "$(CURDIR)" "$$f" \
	        '$(subst ",\",$(CC) $(CPPFLAGS) $(CFLAGS)) -c '"$$f"; done | sed '1s/^/[/; $$s/,$$/]/' >$@

help:
	@sed -n 's/^#: //p' tests/check.mk tests/bench/bench.mk

.PHONY: install help headers format format-check tidy docs-check check-systemd check-slurm fuzz fuzz-all
