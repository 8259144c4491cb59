#!/usr/bin/env bash
# run.sh - runs the programs and steps of a plan, several at a time, and counts what they report.
#
#   tests/run.sh OUT_DIR JOBS PLAN_FILE
#
# A line of the plan is `kind|label|limit_s|command`:
#   tap   a test program that speaks TAP (cmocka, the fuzz replays). It has to announce its cases and report each of them;
#         a crash, a time-out, silence or a missing report is a failure of its own, whatever was reported before. One that
#         ends with 77 before it has announced anything is skipped, as a step is.
#   step  a command judged by its exit status: 0 passed, 77 skipped (its last line says why), anything else failed.
# Output of each goes to OUT_DIR/<label>.log; of those that fail the end is printed. The last line is
# `N passed, M failed, K skipped`; the exit status is 1 when M > 0.
set -u

out_dir=$1
jobs_max=$2
plan=$3
rm -rf "$out_dir"
mkdir -p "$out_dir"

# Prints "passed failed skipped remark" for a TAP log and the exit status of the program that wrote it.
count_tap() { # log status
    if [[ $2 == 77 ]] && ! grep -q '^1\.\.' "$1"; then
        echo "0 0 1 $(tail -n 1 "$1")"
        return
    fi
    awk -v status="$2" '
        /^1\.\.[0-9]+/          { planned += substr($1, 4) }
        /^(not )?ok [0-9]+.*# *SKIP/ { skipped++; next }
        /^ok [0-9]+/            { passed++ }
        /^not ok [0-9]+/        { failed++ }
        END {
            reported = passed + failed + skipped
            if (status == 124 || status == 137)
                { failed++; remark = "timed out" }
            else if (status > 128)
                { failed++; remark = "killed by signal " (status - 128) }
            else if (planned == 0)
                { failed++; remark = "reported no cases" }
            else if (planned != reported)
                { failed++; remark = "announced " planned " cases, reported " reported }
            else if (status != 0 && failed == 0)
                { failed++; remark = "exit status " status }
            printf "%d %d %d %s\n", passed, failed, skipped, remark
        }' "$1"
}

count_step() { # log status
    case $2 in
    0) echo "1 0 0" ;;
    77) echo "0 0 1 $(tail -n 1 "$1")" ;;
    124 | 137) echo "0 1 0 timed out" ;;
    *) echo "0 1 0 exit status $2" ;;
    esac
}

run_one() { # kind label limit_s command
    local log="$out_dir/${2//[\/ ]/.}.log" begin=$EPOCHREALTIME status=0 counts passed failed skipped remark word=ok
    # The braces keep bash's own "Aborted" notice out of the report.
    { CMOCKA_MESSAGE_OUTPUT=TAP timeout -k 5 "$3" bash -c "$4" >"$log" 2>&1 </dev/null; } 2>/dev/null || status=$?
    counts=$("count_$1" "$log" "$status")
    read -r passed failed skipped remark <<<"$counts"
    echo "$passed $failed $skipped" >"${log%.log}.counts"
    ((failed == 0)) || word=FAIL
    local text="$passed passed"
    ((failed == 0)) || text+=", $failed failed"
    ((skipped == 0)) || text+=", $skipped skipped"
    [[ -z ${remark:-} ]] || text+=" ($remark)"
    # One write per program, so that lines of programs that end together do not mix.
    local line
    printf -v line '%-5s %-32s %6.1f s  %s\n' "$word" "$2" \
        "$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')" "$text"
    ((failed == 0)) || line+=$(tail -n 30 "$log" | sed 's/^/      | /')$'\n'
    printf '%s' "$line"
}

labels=()
while IFS='|' read -r kind label limit_s command; do
    kind=${kind//[[:space:]]/}
    [[ -n $kind ]] || continue
    labels+=("$label")
    while (($(jobs -rp | wc -l) >= jobs_max)); do wait -n || true; done
    run_one "$kind" "$label" "$limit_s" "$command" &
done <"$plan"
wait

passed=0 failed=0 skipped=0
for label in "${labels[@]}"; do
    counts="$out_dir/${label//[\/ ]/.}.counts"
    p=0 f=1 s=0 # a program without counts is a failure of this script, and still a failure
    if [[ -f $counts ]]; then read -r p f s <"$counts"; fi
    ((passed += p, failed += f, skipped += s))
done
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0 && passed > 0))
