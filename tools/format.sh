#!/usr/bin/env bash
# format.sh - lays out all sources with clang-format, or with --check says which ones differ.
# One major version is asked: others lay out some lines differently. Exit 77: that version is not installed.
set -u
version=14
cd "$(dirname "$0")/.." || exit 1
tool=$(command -v "clang-format-$version" || command -v clang-format)
if [[ -z $tool ]] || ! "$tool" --version | grep -q "version $version\."; then
    echo "clang-format $version is not installed"
    exit 77
fi
mapfile -t sources < <(find common llm_worker flow_worker hift_worker enroll orchestrator tools tests -regextype egrep -regex '.*\.(c|h|cc|hh|cu|cuh)' | sort)
if [[ ${1:-} == --check ]]; then
    "$tool" --dry-run -Werror --ferror-limit=1 "${sources[@]}" 2>&1 | grep 'error:'
    exit $((1 - PIPESTATUS[1])) # grep found an error: 1
fi
"$tool" -i "${sources[@]}"
