#!/bin/bash
# `distsam train` under DeepSpeed's own launcher, on this machine or on those of a hostfile.
#
#   NPROC=2 launch/deepspeed.sh configs/quickstart.yaml engine.kind=deepspeed engine.stage=2
#
# Variables, all optional:
#   NPROC            processes on this machine, without a hostfile (as many as there are GPUs, or 1)
#   HOSTFILE         lines such as "worker-1 slots=8"; the launcher reaches those machines by ssh
#   OMP_NUM_THREADS  CPU threads of one process (1: more processes, rather than more threads, use the cores)
#   PYTHON           the interpreter that has distsam and deepspeed (python)
#
# The launcher is for those whose cluster is used to it: launch/torchrun.sh and srun start the same run. Ends with the
# exit code of a process that failed: 2 for a config that cannot be used.
set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if [ -n "${HOSTFILE:-}" ]; then
    where=(--hostfile "$HOSTFILE")
else
    # Without this it takes /job/hostfile, where there is one.
    where=(--hostfile /nonexistent ${NPROC:+--num_gpus "$NPROC"})
fi

exec "${PYTHON:-python}" -m deepspeed.launcher.runner "${where[@]}" --no_local_rank --module distsam train "$@"
