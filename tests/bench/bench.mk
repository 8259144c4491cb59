# Measurements that are no tests. Included by the Makefile after tests/check.mk.
#
#: make bench-orch ROWS=100000   rows a second through stages that compute nothing; memory of orchestrator and batch
#: make bench-durable ROWS=300    what journal and ledger cost: seconds in them against the wall clock of a batch on the tiny model
#: make kill-test ROWS=2000 INTERVAL=0.5 SEED=1 [PRECISION=bf16]    a batch whose processes are killed at random, against an undisturbed one
#: make soak TIME=3600 SEED=1    batches through deaths, stops, lost folders, full disks, jumping clocks until the time is over
#: make fault-sweep NTH=40         batches in whose processes the nth call of each fault point fails, for every n up to NTH
ROWS ?= 2000
NTH ?= 40
INTERVAL ?= 0.5

NULL_WORKER := $(B)/tests/bench/null_worker
$(NULL_WORKER): $(B)/obj/tests/bench/null_worker.o $(STAGE_LIBS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(STAGE_EXT)

bench-orch: $(PROG) $(NULL_WORKER)
	tests/bench/bench_orch.sh $(B)/bin $(NULL_WORKER) $(B)/bench-orch $(ROWS)
bench-durable: $(PROG)
	tests/bench/bench_durable.sh $(B)/bin $(B)/bench-durable $(ROWS)
kill-test: $(PROG)
	$(NEED_PYTHON) tests/e2e/kill_test.py --bin $(B)/bin --rows $(ROWS) --interval $(INTERVAL) --seed $(or $(SEED),1) --also-batch \
	    --set precision=$(or $(PRECISION),f32)
soak: $(PROG) $(if $(SAN),,$(B)/tests/e2e/clock_jump.so)
	$(NEED_PYTHON) tests/e2e/soak_test.py --bin $(B)/bin --seconds $(TIME) --seed $(or $(SEED),1)
fault-sweep: $(PROG) $(B)/tests/e2e/test_faults
	COSYFARM_SWEEP_NTH=$(NTH) $(B)/tests/e2e/test_faults
.PHONY: bench-orch bench-durable kill-test soak fault-sweep
# Ten questions that only a GPU host can answer; part of the build, so that it is there when a card is.
#: make probe-gpu                what sharing device memory between processes costs, and survives, on this host
PROBE_GPU := $(if $(filter nvcc emu,$(CUDA_MODE)),$(B)/tests/bench/probe_gpu)
$(B)/tests/bench/probe_gpu: $(B)/cuda/tests/bench/probe_gpu.o $(B)/cuda/tests/bench/probe_vmm.o $(CUDA_EMULATED) $(BASE)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(EXT_CUDA) $(EXT_BASE)
ifeq ($(T),)
all: $(PROBE_GPU)
endif
probe-gpu: $(PROBE_GPU)
	@$(or $(PROBE_GPU),echo "this build has no CUDA")
.PHONY: probe-gpu
