#!/usr/bin/env bash
# mutants.sh - deletes each __syncthreads() of norms, attentions, convolutions and the sampler in turn and demands that
# the test of the kernels then fails: a check that cannot fail proves nothing. The emulator deletes: nothing is compiled.
#
#   mutants.sh BUILD_DIR
set -u
program=$1/tests/cuda_emu/check/backend
sources=(common/compute/cuda/{cuda_common.cuh,ops_norm.cu,ops_attn.cu,attn_mma.cu,attn_decode.cu,conv_mma.cu,ops_ras.cu})

for file in $(grep -l '__syncthreads' common/compute/cuda/*.cu); do
    [[ " ${sources[*]} " == *" $file "* ]] || { echo "$file: has barriers, and is not among the files to mutate"; exit 1; }
done
for file in common/compute/cuda/*.cu*; do # what is not alone on its line would be left out below
    [[ $(grep -c '__syncthreads' "$file") == $(grep -c '^ *__syncthreads();' "$file") ]] ||
        { echo "$file: expected each __syncthreads() alone on its line"; exit 1; }
done
"$program" kernels >/dev/null 2>&1 || { echo "the test fails without a mutation"; exit 1; }
survivors=0 count=0
for file in "${sources[@]}"; do
    for line in $(grep -n '^ *__syncthreads();' "$file" | cut -d: -f1); do
        count=$((count + 1))
        if COSYFARM_EMU_WITHOUT_BARRIER=${file##*/}:$line timeout 50 "$program" kernels >/dev/null 2>&1; then
            echo "$file:$line: deleting this barrier is not noticed"
            survivors=$((survivors + 1))
        fi
    done
done
echo "$count barriers deleted, $survivors not noticed"
((survivors == 0 && count > 0))
