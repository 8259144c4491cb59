#!/usr/bin/env bash
# offline-bundle.sh - packs what a GPU host without a network needs: programs, the libraries they load, sources, and the
# tests and measurements of a card, built.
#
#   tools/offline-bundle.sh [--small] [--no-source] OUT.tar.gz|OUT.tar.xz [MODEL_DIR]
#
# On the host, which needs the driver and no compiler: unpack, cd cosyfarm, export LD_LIBRARY_PATH=$PWD/lib, then
#   bin/cosyfarm ...
#   COSYFARM_SHARED=$PWD source/tests/gpu/check.sh $PWD/build          what only a card proves (make check-gpu)
#   source/tests/gpu/bench.sh $PWD/build MODEL                         what it gives (make bench-gpu)
# cuBLASLt is large (half a gigabyte) and is the one library of CUDA that is needed. --small leaves it out, for hosts
# that have CUDA or PyTorch (where the loader does not find it, its folder belongs into LD_LIBRARY_PATH too:
# find / -name 'libcublasLt.so.1[23]'), and takes the symbols of debuggers away: 97 MiB as .tar.gz. --no-source leaves
# out sources and references, for a host that has this checkout: 52 MiB; there tests/gpu/check.sh cosyfarm/build.
# The programs share most of their bytes, so .tar.xz is half of that, and takes minutes to make.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
small="" source=yes
while [[ ${1:-} == --* ]]; do
    case $1 in
    --small) small=yes ;;
    --no-source) source="" ;;
    *) echo "expected --small or --no-source, found $1" >&2; exit 64 ;;
    esac
    shift
done
out=${1:?usage: tools/offline-bundle.sh [--small] [--no-source] OUT.tar.gz|OUT.tar.xz [MODEL_DIR]} model=${2:-}
built=build/default
make -s check-gpu-build >&2
nm $built/bin/llm_worker | grep -q ' cuda' || { echo "this build has no CUDA backend: nvcc was not found" >&2; exit 69; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
top=$dir/cosyfarm
mkdir -p "$top/build/tests" "$top/lib"
cp -r $built/bin "$top/build/"
for program in ops/test_ops gpu/outbox bench/probe_gpu; do
    install -D $built/tests/$program "$top/build/tests/$program"
done
ln -s build/bin "$top/bin"
# All libraries but those of the C library, which have to be the host's.
find "$top/build" -type f -exec ldd {} + 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' | while read -r library; do
    cp -L "$library" "$top/lib/"
done
words="without cuBLASLt"
if [[ -n $small ]]; then
    find "$top/build" -type f -exec strip {} +
else
    found=
    for folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/lib/x86_64-linux-gnu; do
        for library in "$folder"/libcublasLt.so.1[23]; do
            [[ -e $library && -z $found ]] || continue
            cp -L "$library" "$top/lib/" && found=$library
        done
    done
    [[ -n $found ]] || { echo "libcublasLt.so was not found (set CUDA_HOME)" >&2; exit 69; }
    words="cuBLASLt from $found"
fi
if [[ -n $source ]]; then
    git archive --prefix=source/ HEAD | tar -x -C "$top"
    # References beyond those of the repository, where this machine has them.
    for folder in "${COSYFARM_SHARED:-../shared}"/golden/{tiny,small}-0*; do
        [[ ! -d $folder ]] || { mkdir -p "$top/golden" && cp -r "$folder" "$top/golden/"; }
    done
fi
[[ -z $model ]] || cp -rL "$model" "$top/model"
XZ_OPT=-9 tar -C "$dir" -caf "$out" cosyfarm
echo "$out: $(du -h "$out" | cut -f1), $words"
