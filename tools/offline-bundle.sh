#!/usr/bin/env bash
# offline-bundle.sh - packs what a GPU host without a network needs: programs, the libraries they load, sources, tests.
#
#   tools/offline-bundle.sh OUT.tar.gz [MODEL_DIR]
#
# On the host: unpack, then LD_LIBRARY_PATH=$PWD/lib bin/cosyfarm ...; the sources are there for `make check-gpu`. The
# driver is the host's own. cuBLASLt is large (half a gigabyte) and is the one library of CUDA that is needed.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?usage: tools/offline-bundle.sh OUT.tar.gz [MODEL_DIR]} model=${2:-}
make -s >&2
nm build/default/bin/llm_worker | grep -q ' cuda' || { echo "this build has no CUDA backend: nvcc was not found" >&2; exit 69; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
top=$dir/cosyfarm
mkdir -p "$top/bin" "$top/lib"
cp build/default/bin/* "$top/bin/"
# All libraries but those of the C library, which have to be the host's.
for program in "$top"/bin/*; do
    ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
done | sort -u | grep -vE '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' | while read -r library; do
    cp -L "$library" "$top/lib/"
done
found=
for folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/lib/x86_64-linux-gnu; do
    for library in "$folder"/libcublasLt.so.1[23]; do
        [[ -e $library && -z $found ]] || continue
        cp -L "$library" "$top/lib/" && found=$library
    done
done
[[ -n $found ]] || { echo "libcublasLt.so was not found (set CUDA_HOME)" >&2; exit 69; }
git archive --prefix=source/ HEAD | tar -x -C "$top"
[[ -z $model ]] || cp -rL "$model" "$top/model"
tar -C "$dir" -czf "$out" cosyfarm
echo "$out: $(du -h "$out" | cut -f1), cuBLASLt from $found"
