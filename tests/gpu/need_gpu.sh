#!/usr/bin/env bash
# need_gpu.sh - runs a command where there is an NVIDIA GPU, and says that it was skipped where there is none. With
# COSYFARM_GPU_EMULATED set the emulated device will do: a rehearsal of everything but the tools of a card.
set -u
[[ -n ${COSYFARM_GPU_EMULATED:-} ]] || nvidia-smi -L >/dev/null 2>&1 || { echo "no NVIDIA GPU (nvidia-smi -L)"; exit 77; }
command -v "$1" >/dev/null || [[ -x $1 ]] || { echo "$1 is not installed"; exit 77; }
exec "$@"
