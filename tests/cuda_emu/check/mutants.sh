#!/usr/bin/env bash
# mutants.sh - deletes each __syncthreads() of norms, attentions, convolutions and the sampler in turn and demands that
# the test of the kernels then fails: a check that cannot fail proves nothing.
#
#   mutants.sh BUILD_DIR LINK    LINK: the command that links the test, OBJECTS standing for the mutated ones
set -u
build=$1 link=$2
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
program=$build/tests/cuda_emu/check/backend
base=(-std=c++17 -O1 -ffp-contract=off -fno-exceptions -fno-rtti -w -DCF_CUDA_EMU)
sources=(common/compute/cuda/ops_norm.cu common/compute/cuda/ops_attn.cu common/compute/cuda/attn_mma.cu
    common/compute/cuda/attn_decode.cu common/compute/cuda/conv_mma.cu common/compute/cuda/ops_ras.cu)

for file in $(grep -l '__syncthreads' common/compute/cuda/*.cu); do
    [[ " ${sources[*]} " == *" $file "* ]] || { echo "$file: has barriers, and is not among the files to mutate"; exit 1; }
done
for file in common/compute/cuda/*.cu*; do # what is not alone on its line would be left out below
    [[ $(grep -c '__syncthreads' "$file") == $(grep -c '^ *__syncthreads();' "$file") ]] ||
        { echo "$file: expected each __syncthreads() alone on its line"; exit 1; }
done
"$program" kernels >/dev/null 2>&1 || { echo "the test fails without a mutation"; exit 1; }
survivors=0 count=0
for file in common/compute/cuda/cuda_common.cuh "${sources[@]}"; do
    for line in $(grep -n '^ *__syncthreads();' "$file" | cut -d: -f1); do
        count=$((count + 1))
        rm -rf "$dir/tree"
        mkdir -p "$dir/tree/common/compute/cuda"
        cp common/compute/cuda/* "$dir/tree/common/compute/cuda/"
        sed -i "${line}s/__syncthreads();//" "$dir/tree/$file"
        objects=()
        for source in "${sources[@]}"; do
            [[ $file == "$source" || ($file == *.cuh && $source != *mma*) ]] || continue
            object=$dir/$(basename "$source" .cu).o
            g++ "${base[@]}" -I"$dir/tree" -I. -Itests/cuda_emu -c -o "$object" -x c++ "$dir/tree/$source" || exit 1
            objects+=("$object")
        done
        ${link/OBJECTS/${objects[*]}} -o "$dir/mutant" || { echo "the mutant does not link"; exit 1; }
        if timeout 50 "$dir/mutant" kernels >"$dir/log" 2>&1; then
            echo "$file:$line: deleting this barrier is not noticed"
            survivors=$((survivors + 1))
        fi
    done
done
echo "$count barriers deleted, $survivors not noticed"
((survivors == 0 && count > 0))
