# The emulator's own checks: programs that exist in the configuration EMU=1 alone, and `make check-emu`, which runs them
# and the workers on the emulated device.
ifneq ($(EMU),)
EMU_CHECK := $(B)/tests/cuda_emu/check
EMU_PROGRAMS := $(addprefix $(EMU_CHECK)/,rules backend scratch llm outbox)
$(EMU_CHECK)/outbox: $(B)/obj/tests/cuda_emu/check/outbox.o $(B)/obj/tests/gpu/device_farm.o $(B)/obj/tests/transport/keeper_fixture.o \
    $(HARNESS) $(TRANSPORT) $(COMPUTE) $(BASE)
$(EMU_CHECK)/rules: $(B)/cuda/tests/cuda_emu/check/rules.o $(COMPUTE) $(BASE)
$(EMU_CHECK)/backend: $(B)/obj/tests/cuda_emu/check/backend.o $(HARNESS) $(COMPUTE) $(BASE)
$(EMU_CHECK)/scratch: $(B)/obj/tests/cuda_emu/check/scratch.o $(HARNESS) $(LLM) $(WORKER) $(MODEL_LIB) $(COMPUTE) $(BASE)
$(EMU_CHECK)/llm: $(B)/obj/tests/cuda_emu/check/llm.o $(HARNESS) $(LLM) $(WORKER) $(MODEL_LIB) $(COMPUTE) $(BASE)
$(EMU_PROGRAMS):
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(EXT_COMPUTE) $(EXT_BASE) -lcmocka
endif

# Parts of `make check`, which builds them with EMU=1 and runs them with everything else. Long ones first. The second
# seed runs threads in another order.
E := build/emu$(if $(SAN),-$(SAN))
define emu_plan
step|emu mutants|200|tests/cuda_emu/check/mutants.sh $(E)
step|emu farm|400|tests/cuda_emu/check/farm.sh $(E) build/$(CONFIG) kills
step|emu exchange|400|tests/cuda_emu/check/farm.sh $(E) build/$(CONFIG) exchange
step|emu plan|$(LIMIT_S)|tests/e2e/plan_test.sh $(E) 2
step|emu parity f32|$(LIMIT_S)|tests/cuda_emu/check/parity.sh $(E) f32
step|emu parity bf16|$(LIMIT_S)|tests/cuda_emu/check/parity.sh $(E) bf16
step|emu parity fp16|$(LIMIT_S)|tests/cuda_emu/check/parity.sh $(E) fp16
step|emu parity bf16, wide products|$(LIMIT_S)|COSYFARM_EMU_GEMM_NARROW=0 tests/cuda_emu/check/parity.sh $(E) bf16
step|emu parity fp16 on sm_75|$(LIMIT_S)|COSYFARM_EMU_CAPABILITY=75 tests/cuda_emu/check/parity.sh $(E) fp16
$(if $(shell grep -ls COSYFARM_OPS_SUBJECT tests/ops/test_ops.c),tap|emu ops|200|COSYFARM_OPS_SUBJECT=cuda $(E)/tests/ops/test_ops
)tap|cuda_emu/backend|$(LIMIT_S)|$(E)/tests/cuda_emu/check/backend
tap|cuda_emu/backend other order|$(LIMIT_S)|COSYFARM_EMU_SEED=2 $(E)/tests/cuda_emu/check/backend
tap|cuda_emu/scratch|$(LIMIT_S)|$(E)/tests/cuda_emu/check/scratch
tap|cuda_emu/llm|$(LIMIT_S)|$(E)/tests/cuda_emu/check/llm
tap|cuda_emu/outbox|$(LIMIT_S)|COSYFARM_BIN=$(CURDIR)/$(E)/bin $(E)/tests/cuda_emu/check/outbox
tap|gpu/outbox emulated|$(LIMIT_S)|COSYFARM_BIN=$(CURDIR)/$(E)/bin $(E)/tests/gpu/outbox
step|emu probe_gpu|$(LIMIT_S)|$(E)/tests/bench/probe_gpu | tee /dev/stderr | grep -c -e "SKIP" -e cudaSuccess -e "the same" -e " us" -e "times" | grep -x 10
tap|emu memory plan|$(LIMIT_S)|COSYFARM_TEST_DEVICE=cuda:0 $(E)/tests/unit/test_memory_plan
tap|cuda_emu/rules|$(LIMIT_S)|$(E)/tests/cuda_emu/check/rules
step|no CUDA in the orchestrator|$(LIMIT_S)|tests/cuda_emu/check/no_cuda.sh $(E) build/$(CONFIG)
endef

emu-build: $(PROG) $(EMU_PROGRAMS) $(B)/tests/gpu/outbox $(if $(wildcard tests/ops/test_ops.c),$(B)/tests/ops/test_ops) $(B)/tests/unit/test_memory_plan $(B)/tests/bench/probe_gpu
check-emu-build:
	@+$(MAKE) -s -k -j$(JOBS) EMU=1 emu-build || echo "something did not build: its programs will be reported as failed"

$(B)/check/emu-plan: FORCE
	@$(file >$@,$(emu_plan)):

check-emu:
	@mkdir -p $(B)/check
	@+$(MAKE) -s -k -j$(JOBS) $(PROG)
	@+$(MAKE) -s check-emu-build
	@$(MAKE) -s $(B)/check/emu-plan
	@tests/run.sh $(B)/check/emu-logs $(RUN_JOBS) $(B)/check/emu-plan

# Every case of the tiny models, where `make check` runs five: half an hour of one core in all three.
parity-emu:
	@+$(MAKE) -s -j$(JOBS) EMU=1 $(E)/bin/cosyfarm
	@mkdir -p $(B)/check
	@failed=0; for p in $(or $(PRECISION),f32 bf16 fp16); do \
	    SIZES=tiny tests/gpu/parity.sh $(E) $$p >$(B)/check/parity-emu.$$p.log 2>&1 || failed=1; \
	    grep -E "FAIL|passed|cases in|:" $(B)/check/parity-emu.$$p.log; done; exit $$failed
.PHONY: check-emu check-emu-build emu-build parity-emu
