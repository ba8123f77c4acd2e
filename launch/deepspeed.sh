#!/bin/bash
# `distsam train` under DeepSpeed's own launcher, on this machine or on those of a hostfile.
#
#   NPROC=2 launch/deepspeed.sh configs/quickstart.yaml engine.kind=deepspeed engine.stage=2
#
# Variables, all optional:
#   NPROC            processes on this machine, without a hostfile (as many as there are GPUs, or 1)
#   HOSTFILE         lines such as "worker-1 slots=8"; the launcher reaches those machines by ssh
#   MASTER_PORT      where the processes meet (without a hostfile one that is free, with one DeepSpeed's 29500)
#   OMP_NUM_THREADS  CPU threads of one process (1: more processes, rather than more threads, use the cores)
#   PYTHON           the interpreter that has distsam and deepspeed (python)
#
# The launcher is for those whose cluster is used to it: launch/torchrun.sh and srun start the same run. Ends with the
# exit code of a process that failed: 2 for a config that cannot be used. On SIGTERM the run saves a checkpoint and ends.
set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python="${PYTHON:-python}"

"$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("deepspeed"))' ||
    { echo "launch/deepspeed.sh: deepspeed is not installed; pip install 'distsam[deepspeed]'" >&2; exit 2; }

if [ -n "${HOSTFILE:-}" ]; then
    where=(--hostfile "$HOSTFILE" ${MASTER_PORT:+--master_port "$MASTER_PORT"})
else
    # Two runs on one machine cannot meet at one port.
    free='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
    # Without a hostfile of ours it takes /job/hostfile, where there is one.
    where=(--hostfile /nonexistent --master_port "${MASTER_PORT:-$("$python" -c "$free")}" ${NPROC:+--num_gpus "$NPROC"})
fi

"$python" -m deepspeed.launcher.runner "${where[@]}" --no_local_rank --module distsam train "$@" &
runner=$!

# What the runner has started: it passes SIGTERM on to none of them, and they would train on.
stop() {
    for child in $(cat "/proc/$runner/task/$runner/children" 2>/dev/null); do
        kill -TERM "$child" 2>/dev/null || true
    done
}
trap stop TERM INT

# A signal ends `wait`; the run has then still to save.
status=0
while kill -0 "$runner" 2>/dev/null; do
    wait "$runner" && status=0 || status=$?
done
exit "$status"
