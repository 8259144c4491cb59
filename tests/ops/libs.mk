# The op suite compares all engines of the CPU backend with the naive one.
OP_CASES := $(patsubst tests/ops/%.c,$(B)/obj/tests/ops/%.o,$(wildcard tests/ops/cases_*.c))
LIBS_test_ops := $(B)/obj/tests/ops/suite.o $(B)/obj/tests/ops/subjects.o $(OP_CASES) $(COMPUTE)
EXT_test_ops := $(EXT_COMPUTE)
LIBS_test_cpu_kernels := $(COMPUTE)
EXT_test_cpu_kernels := $(EXT_COMPUTE)
LIBS_test_gemm_kernels := $(COMPUTE)
EXT_test_gemm_kernels := $(EXT_COMPUTE)
