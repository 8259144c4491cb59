#!/usr/bin/env bash
# parity.sh - all references of the tiny and the small model on cuda:0; those in shared data where it is there.
#   parity.sh BUILD_DIR PRECISION     SIZES in the environment: which models, default "tiny small"
set -u
bin=$1/bin precision=$2 shared=${COSYFARM_SHARED:-../shared} failed=0 compared=0
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
compare() { # size folder profile
    local size=$1 folder=$2 profile=$3 files
    files=("$folder"/*.safetensors)
    [[ -e ${files[0]} ]] || { echo "$folder: no references here, nothing is compared with them"; return 0; }
    compared=$((compared + ${#files[@]}))
    "$bin/cosyfarm" model make "$dir/$size-$profile" --size "$size" --profile "$profile" >/dev/null || exit 1
    "$bin/cosyfarm" parity -m "$dir/$size-$profile" --device cuda:0 --precision "$precision" "${files[@]}" || failed=1
}
for size in ${SIZES:-tiny small}; do
    for profile in plain harsh; do
        name=$size-0 && [[ $profile == plain ]] || name=$size-0-harsh
        folder=$shared/golden/$name
        [[ -d $folder ]] || folder=tests/golden/$name
        compare "$size" "$folder" "$profile"
    done
done
echo "$compared cases in $precision"
exit $((failed || compared == 0))
