#!/usr/bin/env bash
# no_cuda.sh - the orchestrator links, and loads, nothing of CUDA, in whichever build; the keeper beside it shows that
# this would be seen.
#   no_cuda.sh EMU_BUILD CPU_BUILD
set -u
failed=0
of_cuda() { # program: its symbols of CUDA, libraries of CUDA, and whether it can load one
    nm "$1" | grep -E ' (cu[A-Z]|cuda|__cuda|cublas|emu_|dlopen)'
    ldd "$1" | grep -E 'libcuda|libcublas|libnvidia'
}
[[ -n $(of_cuda "$1/bin/exchange_keeper") ]] || { echo "$1/bin/exchange_keeper: nothing of CUDA is seen in it"; exit 1; }
for build in "$@"; do
    program=$build/bin/orchestrator
    [[ -x $program ]] || { echo "$program: expected the program, found none"; exit 1; }
    found=$(of_cuda "$program")
    [[ -z $found ]] || { printf '%s: expected nothing of CUDA, found:\n%s\n' "$program" "$found"; failed=1; }
done
exit $failed
