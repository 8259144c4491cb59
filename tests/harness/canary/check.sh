#!/usr/bin/env bash
# check.sh - proves that tests/run.sh sees failures: runs the canary in each way of failing and compares the counts.
#   check.sh CANARY_PROGRAM SCRATCH_DIR
set -u
canary=$1
scratch=$2
mkdir -p "$scratch"
bad=0

expect() { # way kind limit_s wanted-last-line command
    printf '%s|canary/%s|%s|%s\n' "$2" "$1" "$3" "$5" >"$scratch/$1.plan"
    got=$(tests/run.sh "$scratch/$1" 1 "$scratch/$1.plan" 2>&1)
    status=$?
    if [[ $(tail -n 1 <<<"$got") != "$4" || $status -eq 0 ]]; then
        printf 'canary %s: expected "%s" and a failing status, found status %d and:\n%s\n' "$1" "$4" "$status" "$got"
        bad=1
    fi
}

expect fail tap 20 "1 passed, 1 failed, 1 skipped" "$canary fail"
expect crash tap 20 "1 passed, 1 failed, 1 skipped" "$canary crash"
expect leave tap 20 "1 passed, 1 failed, 1 skipped" "$canary leave"
expect hang tap 1 "1 passed, 1 failed, 1 skipped" "$canary hang"
expect silent tap 20 "0 passed, 1 failed, 0 skipped" "$canary silent"
expect missing tap 20 "0 passed, 1 failed, 0 skipped" "$canary.not-built"
expect step step 20 "0 passed, 1 failed, 0 skipped" "false"
exit $bad
