# What only a card can prove. Each step says that it was skipped where there is none.
#   make check-gpu [MODEL=dir]   op suite, parity of all references, a batch under different sizes, compute-sanitizer
#   make bench-gpu  MODEL=dir [COSYVOICE=dir]   rates of the stages and of the farm on cuda:0, as JSON lines
GPU_OPS := $(if $(wildcard tests/ops/test_ops.c),$(B)/tests/ops/test_ops)
GPU_SAN := tests/gpu/need_gpu.sh compute-sanitizer --error-exitcode 1 --tool
define gpu_plan
step|gpu op suite|900|tests/gpu/need_gpu.sh env COSYFARM_OPS_SUBJECT=cuda $(or $(GPU_OPS),false)
step|gpu parity f32|900|tests/gpu/need_gpu.sh tests/gpu/parity.sh $(B) f32
step|gpu parity bf16|900|tests/gpu/need_gpu.sh tests/gpu/parity.sh $(B) bf16
step|gpu parity fp16|900|tests/gpu/need_gpu.sh tests/gpu/parity.sh $(B) fp16
step|gpu batch sizes|600|tests/gpu/need_gpu.sh tests/gpu/batch.sh $(B) $(MODEL)
step|gpu memcheck|900|$(GPU_SAN) memcheck env COSYFARM_OPS_SUBJECT=cuda $(or $(GPU_OPS),false)
step|gpu racecheck|900|$(GPU_SAN) racecheck env COSYFARM_OPS_SUBJECT=cuda $(or $(GPU_OPS),false)
step|gpu probes|600|tests/gpu/need_gpu.sh $(or $(PROBE_GPU),false)
endef

$(B)/check/gpu-plan: FORCE
	@$(file >$@,$(gpu_plan)):

check-gpu:
	@mkdir -p $(B)/check
	@+$(MAKE) -s -k -j$(JOBS) $(PROG) $(GPU_OPS) $(PROBE_GPU)
	@$(MAKE) -s $(B)/check/gpu-plan
	@tests/gpu/need_gpu.sh true && exec tests/run.sh $(B)/check/gpu-logs 1 $(B)/check/gpu-plan || \
	    { [ $$? = 77 ] && echo "0 passed, 0 failed, $$(grep -c '|' $(B)/check/gpu-plan) skipped"; }

bench-gpu: $(PROG)
	@test -n "$(MODEL)" || { echo "usage: make bench-gpu MODEL=dir [PRECISION=bf16]"; exit 64; }
	@tests/gpu/need_gpu.sh $(B)/bin/cosyfarm bench llm flow hift -m $(MODEL) --device cuda:0 --precision $(or $(PRECISION),bf16) \
	    --rows 1,16,64,256 --json
	@tests/gpu/need_gpu.sh $(B)/bin/cosyfarm bench farm handover -m $(MODEL) --device cuda:0 --precision $(or $(PRECISION),bf16) --json
	@test -z "$(COSYVOICE)" || tests/gpu/need_gpu.sh python3 tools/bench_upstream.py --cosyvoice $(COSYVOICE) -m $(MODEL) \
	    --device cuda --precision $(or $(PRECISION),bf16)
.PHONY: check-gpu bench-gpu
