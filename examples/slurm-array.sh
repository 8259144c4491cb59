#!/bin/bash
# slurm-array.sh - one manifest on many nodes: an array task is a node, and a shard of the manifest.
#
#   sbatch --array=0-3 slurm-array.sh MODEL MANIFEST DIR 4 [options of cosyfarm batch]
#
# The fourth argument is the number of shards. It is said, not taken from the array: after `--array=2`, to do one shard
# again, it must still be 4. MODEL, MANIFEST and DIR lie on storage that all nodes share. Logs are appended to.
#
# The task ends when its shard is done. It goes back into the queue by itself when a later start can go on (69, 70, 75,
# or killed), at most 20 times; it fails, and stays failed, when somebody has to look (64, 65, 78 and whatever else).
#SBATCH --job-name=cosyfarm
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=cosyfarm-%A_%a.log
# To this shell, before the time limit: grace_s (20 s) for the rows in work and a minute that Slurm may be late.
#SBATCH --signal=B:TERM@90
set -u

(($# >= 4)) || {
    echo "usage: sbatch --array=0-3 slurm-array.sh MODEL MANIFEST DIR SHARDS [options]" >&2
    exit 64
}
model=$1 manifest=$2 dir=$3 shards=$4
shift 4
starts=${SLURM_RESTART_COUNT:-0}

"${COSYFARM:-cosyfarm}" batch "$@" -m "$model" "$manifest" -o "$dir" --shard "$SLURM_ARRAY_TASK_ID/$shards" &
pid=$!
echo "shard $SLURM_ARRAY_TASK_ID/$shards start $starts node ${SLURMD_NODENAME:-?} pid $pid"
trap 'kill -TERM $pid 2>/dev/null' TERM
while
    wait $pid
    kill -0 $pid 2>/dev/null # a signal ended the wait, and not the batch
do :; done
wait $pid
code=$?
echo "shard $SLURM_ARRAY_TASK_ID/$shards start $starts ended with $code"

case $code in
69 | 70 | 75 | 1[3-9][0-9])
    if ((starts < 20)); then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit $code
