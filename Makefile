# cosyfarm: the only entry point. `make` builds, `make check` proves, `make help` lists the rest.
# Configuration is part of the build path, so differently built objects never mix. config.mk overrides (see config.mk.example).
MAKEFLAGS += -r
.DEFAULT_GOAL := all
-include config.mk

CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
SAN ?=
# EMU=1: the CUDA backend compiled as C++ and executed by tests/cuda_emu, in build/emu. C objects are the same files.
EMU ?=
CONFIG := $(if $(SAN),$(SAN),default)
B := build/$(CONFIG)
ifneq ($(EMU),)
B := build/emu$(if $(SAN),-$(SAN))
$(shell mkdir -p $(B) build/$(CONFIG)/obj && ln -sfn ../$(CONFIG)/obj $(B)/obj && ln -sfn bin/cosyfarm $(B)/cosyfarm)
endif
CUDA_HOME ?= /usr/local/cuda
NVCC := $(shell command -v nvcc 2>/dev/null || ls $(CUDA_HOME)/bin/nvcc 2>/dev/null)

VERSION := 0.1.0
# maybe-uninitialized is off: gcc cannot see that a failed call never writes its output (TRY); the sanitizers do see.
WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Werror \
        $(if $(findstring clang,$(CC)),,-Wno-maybe-uninitialized)
SANFLAGS_address := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANFLAGS_thread := -fsanitize=thread
SANFLAGS_fuzz := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
SANFLAGS := $(SANFLAGS_$(SAN))
# No fused contraction and no fast-math: the same source gives the same bytes (docs/MODEL.md).
CFLAGS := -std=c11 -O2 -g -fno-omit-frame-pointer -ffp-contract=off $(WARN) $(SANFLAGS) $(EXTRA_CFLAGS)
# Loops of the CPU backend are written to be vectorised. Neither flag changes a result: the second gives up exception flags.
$(B)/obj/common/compute/cpu/%.o: CFLAGS += -O3 -fno-trapping-math
CPPFLAGS := -I. -DCF_VERSION='"$(VERSION)"'
LDFLAGS := -Wl,--build-id -Wl,--as-needed $(SANFLAGS)

include tools/cuda.mk

# One archive per folder; a program names the archives it needs, lower layers last.
FOLDERS := common/base common/compute common/model common/text common/transport common/worker \
           llm_worker flow_worker hift_worker enroll orchestrator tools
src = $(filter-out %/main.c %/keeper.c %/cosyfarm.c %/outbox_cuda_ipc.c %/outbox_cuda_absent.c,$(wildcard $(1)/*.c $(1)/cpu/*.c))
lib = $(B)/lib/$(subst /,_,$(1)).a

BASE := $(call lib,common/base)
TEXT := $(call lib,common/text)
COMPUTE := $(call lib,common/compute)
MODEL_LIB := $(call lib,common/model)
TRANSPORT := $(call lib,common/transport)
WORKER := $(call lib,common/worker)
ORCH := $(call lib,orchestrator)
LLM := $(call lib,llm_worker)
FLOW := $(call lib,flow_worker)
HIFT := $(call lib,hift_worker)
ENROLL := $(call lib,enroll)
TOOLS := $(call lib,tools)

EXT_BASE := -lcjson -lcrypto -lsystemd -lm -lpthread
EXT_TEXT := -licui18n -licuuc
EXT_COMPUTE := -ldnnl -lgomp $(EXT_CUDA)
EXT_TRANSPORT := -lzmq
EXT_ORCH := -lsndfile
EXT_ENROLL := -lsndfile

PROGRAMS := llm_worker flow_worker hift_worker enroll orchestrator exchange_keeper cosyfarm
PROG := $(addprefix $(B)/bin/,$(PROGRAMS))

ifeq ($(T),)
all: $(PROG)
	@echo "built $(B)/bin ($(CUDA_WORDS))"
endif

STAGE_LIBS := $(WORKER) $(TRANSPORT) $(MODEL_LIB) $(COMPUTE) $(BASE)
STAGE_EXT := $(EXT_TRANSPORT) $(EXT_COMPUTE) $(EXT_BASE)

$(B)/bin/llm_worker: $(B)/obj/llm_worker/main.o $(LLM) $(STAGE_LIBS)
$(B)/bin/flow_worker: $(B)/obj/flow_worker/main.o $(FLOW) $(STAGE_LIBS)
$(B)/bin/hift_worker: $(B)/obj/hift_worker/main.o $(HIFT) $(STAGE_LIBS)
$(B)/bin/llm_worker $(B)/bin/flow_worker $(B)/bin/hift_worker: EXT = $(STAGE_EXT)
$(B)/bin/enroll: $(B)/obj/enroll/main.o $(ENROLL) $(MODEL_LIB) $(COMPUTE) $(BASE)
$(B)/bin/enroll: EXT = $(EXT_ENROLL) $(EXT_COMPUTE) $(EXT_BASE)
$(B)/bin/orchestrator: $(B)/obj/orchestrator/main.o $(ORCH) $(TEXT) $(TRANSPORT) $(MODEL_LIB) $(BASE)
$(B)/bin/orchestrator: EXT = $(EXT_ORCH) $(EXT_TEXT) $(EXT_TRANSPORT) $(EXT_BASE)
$(B)/bin/exchange_keeper: $(B)/obj/orchestrator/keeper.o $(TRANSPORT) $(CUDA_EMULATED) $(BASE)
$(B)/bin/exchange_keeper: EXT = $(EXT_TRANSPORT) $(EXT_CUDA) $(EXT_BASE)
$(B)/bin/cosyfarm: $(B)/obj/tools/cosyfarm.o $(TOOLS) $(ORCH) $(LLM) $(FLOW) $(HIFT) $(ENROLL) $(TEXT) $(STAGE_LIBS)
$(B)/bin/cosyfarm: EXT = $(EXT_ORCH) $(EXT_TEXT) $(STAGE_EXT)

$(PROG):
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(EXT)

define folder_rule
$(call lib,$(1)): $(patsubst %.c,$(B)/obj/%.o,$(call src,$(1))) $(CUDA_OBJ_$(subst /,_,$(1)))
	@mkdir -p $$(@D)
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rule,$(f))))

# Dependencies for both names that an object has.
$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -MT build/$(CONFIG)/obj/$*.o -MT build/emu$(if $(SAN),-$(SAN))/obj/$*.o -c -o $@ $<

# Tests: each tests/<folder>/test_*.c is one cmocka program; tests/libs.mk names the archives it links.
include tests/libs.mk
include tests/check.mk
include tests/bench/bench.mk

-include $(shell find -L $(B) -type f -name '*.d' 2>/dev/null)

clean:
	rm -rf build

.PHONY: all clean
.SECONDARY:
.DELETE_ON_ERROR:
