# How the CUDA backend is built. Included by the Makefile; gives CUDA_OBJ_common_compute, EXT_CUDA and CUDA_WORDS.
#
#   nvcc found:   machine code for each of CUDA_ARCH and PTX of the last, static runtime; cuBLASLt is loaded when used
#   EMU=1:        the same files as C++ with the emulation of tests/cuda_emu
#   otherwise:    a backend that says that it is absent. Sanitizers do not know CUDA's runtime: SAN builds have none.
CXX ?= g++
ifeq ($(origin CXX),default)
CXX := g++
endif
CUDA_SRC := $(wildcard common/compute/cuda/*.cu)
CUDA_MODE := $(if $(EMU),emu,$(if $(and $(NVCC),$(if $(SAN),,1)),nvcc,absent))
CUDA_CXX := -std=c++17 -O2 -g -ffp-contract=off -fno-exceptions -fno-rtti -Wall -Wextra -Werror -Wno-missing-field-initializers

ifeq ($(CUDA_MODE),nvcc)
# Those of the project's cards that this nvcc knows; config.mk may name fewer.
CUDA_KNOWN := $(filter 75 80 86 89 90 100 120,$(subst sm_,,$(shell $(NVCC) --list-gpu-code)))
CUDA_ARCH ?= $(CUDA_KNOWN)
CUDA_PTX := $(lastword $(CUDA_ARCH))
CUDA_FLAGS := -std=c++17 -O2 -lineinfo --fmad=false --threads 2 -ccbin $(CXX) -Xcompiler -Wall,-Wextra,-fno-exceptions \
              -Xcompiler -Wno-missing-field-initializers -Werror all-warnings \
              $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
              -gencode arch=compute_$(CUDA_PTX),code=compute_$(CUDA_PTX)
CUDA_OBJ_common_compute := $(patsubst %.cu,$(B)/cuda/%.o,$(CUDA_SRC))
CUDA_OBJ_common_transport := $(B)/cuda/common/transport/outbox_cuda_ipc.o
CUDA_INCLUDE := -isystem $(dir $(NVCC))../include
EXT_CUDA := -L$(dir $(NVCC))../lib64 -lcudart_static -lstdc++ -ldl -lrt
CUDA_WORDS := CPU and CUDA: sm_$(subst $() ,$() sm_,$(strip $(CUDA_ARCH))) and PTX
# The probe asks what a card makes of PTX: that of the oldest card runs on each, that of the newest on itself alone.
CUDA_OLDEST := $(firstword $(CUDA_KNOWN))
$(B)/cuda/tests/bench/%.o: CUDA_PTX_TOO = $(if $(filter $(CUDA_OLDEST),$(CUDA_PTX)),,-gencode arch=compute_$(CUDA_OLDEST),code=compute_$(CUDA_OLDEST))
# Another choice of cards builds the kernels again.
$(B)/cuda/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CUDA_FLAGS)' | cmp -s - $@ || echo '$(CUDA_FLAGS)' >$@
$(B)/cuda/%.o: %.cu $(B)/cuda/flags
	@mkdir -p $(@D)
	$(NVCC) $(CPPFLAGS) $(CUDA_FLAGS) $(CUDA_PTX_TOO) -MMD -MP -c -o $@ $<
endif

ifeq ($(CUDA_MODE),emu)
CUDA_OBJ_common_compute := $(patsubst %.cu,$(B)/cuda/%.o,$(filter-out %/gemm.cu,$(CUDA_SRC))) \
                           $(patsubst %.cc,$(B)/cuda/%.o,$(wildcard tests/cuda_emu/*.cc))
CUDA_OBJ_common_transport := $(B)/cuda/common/transport/outbox_cuda_ipc.o
CUDA_EMULATED = $(COMPUTE) # the runtime's emulation lies there
CUDA_INCLUDE := -Itests/cuda_emu
EXT_CUDA := -lstdc++
CUDA_WORDS := CPU, and CUDA emulated in host memory: tests only
CUDA_EMU := -DCF_CUDA_EMU -Itests/cuda_emu $(SANFLAGS)
$(B)/cuda/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CUDA_CXX) $(CUDA_EMU) -MMD -MP -c -o $@ -x c++ $<
$(B)/cuda/%.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CUDA_CXX) -O3 $(CUDA_EMU) -MMD -MP -c -o $@ $<
endif

ifeq ($(CUDA_MODE),absent)
CUDA_OBJ_common_compute := $(B)/obj/common/compute/cuda/absent.o
CUDA_OBJ_common_transport := $(B)/obj/common/transport/outbox_cuda_absent.o
CUDA_WORDS := CPU alone: $(if $(NVCC),a sanitizer build has no CUDA,no nvcc)
endif

# C that calls the runtime: exchange memory.
$(B)/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CUDA_INCLUDE) $(CFLAGS) -MMD -MP -c -o $@ $<
