# What only a card can prove. Each step says that it was skipped where there is none.
#   make check-gpu [MODEL=dir]   transport and farm with kills, op suite, parity of all references, a batch under different
#                                sizes, compute-sanitizer; EMU=1: a rehearsal of its scripts on the emulated device
#   make bench-gpu  MODEL=dir [COSYVOICE=dir]   rates of ops, stages and farm on cuda:0, as JSON lines
# The steps themselves are tests/gpu/check.sh and bench.sh, which need no make: the offline bundle runs them.
GPU_OPS := $(if $(wildcard tests/ops/test_ops.c),$(B)/tests/ops/test_ops)
GPU_OUTBOX := $(if $(filter nvcc emu,$(CUDA_MODE)),$(B)/tests/gpu/outbox)
$(B)/tests/gpu/outbox: $(B)/cuda/tests/gpu/outbox.o $(B)/obj/tests/gpu/device_farm.o $(B)/obj/tests/transport/keeper_fixture.o \
    $(HARNESS) $(TRANSPORT) $(CUDA_EMULATED) $(BASE)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(EXT_TRANSPORT) \
	    $(if $(CUDA_EMULATED),$(EXT_COMPUTE),$(EXT_CUDA)) $(EXT_BASE) -lcmocka
check-build: $(GPU_OUTBOX) # so that it compiles on the day it is wanted
# A rehearsal is as small as it can be: the emulator makes thousands of products a second where a card makes billions.
GPU_ENV := $(if $(EMU),COSYFARM_GPU_EMULATED=1 ROWS=3 WORDS=1 SIZES=tiny OPS_ROWS=1 OPS_SECONDS=0.2 STAGE_ROWS=1 \
    STAGE_SECONDS=0.2 PROMPT=2 AT_ONCE=2 FRAMES=1000 FARM_ROWS=1 HANDOVER_ROWS=1)

check-gpu-build: $(PROG) $(GPU_OPS) $(GPU_OUTBOX) $(PROBE_GPU)
check-gpu:
	@+$(MAKE) -s -k -j$(JOBS) check-gpu-build || echo "something did not build: its steps will be reported as failed"
	@$(GPU_ENV) tests/gpu/check.sh $(B) $(MODEL)
bench-gpu: $(PROG)
	@test -n "$(MODEL)" || { echo "usage: make bench-gpu MODEL=dir [PRECISION=bf16] [COSYVOICE=dir]"; exit 64; }
	@$(GPU_ENV) tests/gpu/bench.sh $(B) $(MODEL) $(or $(PRECISION),bf16) $(COSYVOICE)
.PHONY: check-gpu check-gpu-build bench-gpu
