#!/usr/bin/env bash
# slurm_test.sh - examples/slurm-array.sh on a real Slurm of two nodes, all on loopback: 60 rows in four shards, one
# batch killed midway, one told to end. Both go on by themselves, and the ledgers are those of an undisturbed run.
#   slurm_test.sh SCRATCH_DIR
#
# Needs root, and slurmctld, slurmd and munge, which are installed with apt when missing. Controller, nodes and munged
# are its own, with configuration, keys, sockets and state in SCRATCH_DIR; they are ended by their numbers.
# Exit status 77: cannot run here, the last line says why.
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$1"
mkdir -p "$1"
d=$(cd "$1" && pwd)
bin=${COSYFARM_BIN:-$here/build/default/bin}
shards=4
started=()

skip() {
    echo "skipped: $*"
    exit 77
}

# The programs that were started here, newest first; then what they left running.
cleanup() {
    [[ -z ${job:-} ]] || scancel "$job" 2>/dev/null
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do kill "${started[i]}" 2>/dev/null; done
    wait
}
die() {
    echo "FAIL $*"
    tail -n 25 "$d"/log/*.log "$d"/job-*.log 2>/dev/null
    exit 1
}
within() { # seconds condition...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS <= end)) || return 1
        read -r -t 0.05 <> <(:) || true
    done
}

[[ $(id -u) == 0 ]] || skip "not root: slurmd needs it"
if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    command -v apt-get >/dev/null || skip "slurmctld, slurmd or munged is missing, and this is no Debian"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge \
        >"$d/apt.log" 2>&1 || skip "apt-get could not install slurmctld slurmd slurm-client munge"
fi
command -v python3 >/dev/null || skip "python3 is not installed"
trap cleanup EXIT

# ---- two nodes ----

mkdir -p "$d"/{state,spool,log,munge}
dd if=/dev/urandom of="$d/munge/key" bs=128 count=1 status=none
chmod 700 "$d/munge"
chmod 600 "$d/munge/key"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
export SLURM_CONF=$d/slurm.conf
cat >"$SLURM_CONF" <<END
ClusterName=cosyfarmtest
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$d/munge/socket,cred_expire=5
StateSaveLocation=$d/state
SlurmdSpoolDir=$d/spool/%n
SlurmctldPidFile=$d/slurmctld.pid
SlurmdPidFile=$d/slurmd.%n.pid
SlurmctldLogFile=$d/log/slurmctld.log
SlurmdLogFile=$d/log/slurmd.%n.log
SlurmctldPort=$(free_port)
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$(free_port) CPUs=1 RealMemory=500 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$(free_port) CPUs=1 RealMemory=500 State=UNKNOWN
PartitionName=batch Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
END
munged --foreground --force --key-file="$d/munge/key" --socket="$d/munge/socket" --pid-file="$d/munge/pid" \
    --seed-file="$d/munge/seed" >"$d/log/munged.log" 2>&1 &
started+=($!)
within 10 test -S "$d/munge/socket" || die "munged does not listen"
slurmctld -D -c -f "$SLURM_CONF" >"$d/log/ctld.out.log" 2>&1 &
started+=($!)
for n in n1 n2; do
    mkdir -p "$d/spool/$n"
    slurmd -D -N $n -f "$SLURM_CONF" >"$d/log/$n.out.log" 2>&1 &
    started+=($!)
done
two_idle() { [[ $(sinfo -h -t idle -o %D 2>/dev/null) == 2 ]]; }
within 30 two_idle || die "the two nodes did not come up"
echo "ok   two nodes are up"

# ---- what an undisturbed run says ----

"$bin/cosyfarm" model make "$d/model" --size tiny >"$d/log/model.log" 2>&1 || die "no model"
# Rows end one by one, so that there is a midway.
echo '{"llm_rows": 2, "flow_rows": 1, "hift_rows": 1, "threads": 1, "guard": false, "grace_s": 1}' >"$d/farm.json"
python3 - "$d/rows.jsonl" <<'END'
import json, sys
with open(sys.argv[1], "w") as file:
    for i in range(60):
        text = "Row %d of a manifest that four shards speak, and %s." % (i, "it goes on " * (i % 3 + 1))
        file.write(json.dumps({"id": "set/row-%02d" % i, "text": text}) + "\n")
END
"$bin/cosyfarm" batch -m "$d/model" --config "$d/farm.json" -q "$d/rows.jsonl" -o "$d/undisturbed" \
    >"$d/log/undisturbed.log" 2>&1 || die "the undisturbed run ended with $?"
echo "ok   undisturbed: $(wc -l <"$d/undisturbed/ledger.jsonl") rows"

# ---- the example, hurt ----

rows_of() { cat "$d/shared/ledger.$1-of-$shards.jsonl" 2>/dev/null | wc -l; }
midway() { (($(rows_of "$1") >= 3)); }
pid_of() { sed -n "s/^shard $1\/.* pid \([0-9]*\)$/\1/p" "$d/job-$1.log" | tail -n 1; }
task_id() { squeue -h -r -j "$job" -o '%i %A' | sed -n "s/^${job}_$1 //p"; }
job=$(COSYFARM="$bin/cosyfarm" sbatch --parsable --array=0-$((shards - 1)) --output="$d/job-%a.log" \
    "$here/examples/slurm-array.sh" "$d/model" "$d/rows.jsonl" "$d/shared" $shards --config "$d/farm.json") ||
    die "sbatch refused"
within 60 midway 0 || die "shard 0 makes no rows"
kill -KILL "$(pid_of 0)" || die "shard 0 was over before it could be killed"
rows=$(rows_of 0)
echo "ok   shard 0 killed after $rows rows"
within 60 midway 1 || die "shard 1 makes no rows"
# Without an answer for ten seconds scancel asks again, and then it is the next start that is told to end.
timeout 8 scancel --batch --signal=TERM "${job}_1" || echo "# scancel had no answer"
echo "ok   shard 1 told to end after $(rows_of 1) rows"
gone() { [[ -z $(squeue -h -j "$job" 2>/dev/null) ]]; }
within 300 gone || die "tasks are left: $(squeue -h -j "$job")"

# ---- what became of it ----

failed=0
expect() { # what file pattern
    if grep -qE -- "$3" "$2"; then echo "ok   $1"; else
        echo "FAIL $1: no \"$3\" in:"
        cat "$2"
        failed=1
    fi
}
expect "the killed batch goes back into the queue" "$d/job-0.log" "^shard 0/$shards start 0 ended with 137$"
expect "and goes on" "$d/job-0.log" "^shard 0/$shards start 1 ended with 0$"
expect "the batch that was told to end ends with 75" "$d/job-1.log" "^shard 1/$shards start 0 ended with 75$"
expect "and goes on" "$d/job-1.log" "^shard 1/$shards start 1 ended with 0$"
for i in 2 3; do expect "shard $i needs one start" "$d/job-$i.log" "^shard $i/$shards start 0 ended with 0$"; done
python3 - "$d" <<'END' || failed=1
import glob, json, sys
def rows(paths):
    found = {}
    for path in paths:
        for line in open(path):
            row = json.loads(line)
            assert row["id"] not in found, "%s: %s is there twice" % (path, row["id"])
            found[row["id"]] = {k: row[k] for k in ("status", "sha256", "samples", "seed", "tokens")}
    return found
wanted = rows([sys.argv[1] + "/undisturbed/ledger.jsonl"])
found = rows(glob.glob(sys.argv[1] + "/shared/ledger.*-of-4.jsonl"))
different = sorted(i for i in set(wanted) | set(found) if wanted.get(i) != found.get(i))
for i in different[:5]:
    print("FAIL %s: expected %s, found %s" % (i, wanted.get(i), found.get(i)))
if not different:
    print("ok   %d rows in 4 ledgers are those of the undisturbed run" % len(found))
sys.exit(len(found) != 60 or bool(different))
END
# A configuration that cannot be used is no reason to try again.
job=$(COSYFARM="$bin/cosyfarm" sbatch --parsable --array=0 --output="$d/bad-%a.log" "$here/examples/slurm-array.sh" \
    "$d/no-model" "$d/rows.jsonl" "$d/bad" 1)
within 60 gone || die "the task with a bad model is still there: $(squeue -h -j "$job")"
expect "78 is not started again" "$d/bad-0.log" "start 0 ended with 78$"
[[ $(grep -c ended "$d/bad-0.log") == 1 ]] || failed=1
job=
exit $failed
