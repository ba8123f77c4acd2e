#!/bin/bash
# The one torchrun line: `distsam train` on one process a GPU, on this machine or on several.
#
#   NPROC=2 launch/torchrun.sh configs/quickstart.yaml train.steps=500
#
# Variables, all optional on one machine:
#   NPROC            processes on this machine (auto: one a GPU, without a GPU one a CPU core)
#   NNODES           machines (1)
# and on several machines, the same on each of them:
#   RDZV_ENDPOINT    host:port of the machine where the processes meet; the port must be free there
#   RDZV_ID          any word that no other run uses with that endpoint (distsam)
#   LOCAL_ADDR       how the others reach this machine, if not by its host name
#   OMP_NUM_THREADS  CPU threads of one process (1: more processes, rather than more threads, use the cores)
#   PYTHON           the interpreter that has distsam (python)
#
# Ends with the exit code of the process that failed first: 2 for a config that cannot be used, after one line.
set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if [ "${NNODES:-1}" = 1 ]; then
    rendezvous=(--standalone)
else
    rendezvous=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-id "${RDZV_ID:-distsam}"
        --rdzv-endpoint "${RDZV_ENDPOINT:?set it to host:port of one of the $NNODES machines}")
fi
if [ -n "${LOCAL_ADDR:-}" ]; then
    rendezvous+=(--local-addr "$LOCAL_ADDR")
fi

exec "${PYTHON:-python}" -m distsam.launch "${rendezvous[@]}" --nproc-per-node "${NPROC:-auto}" -m distsam train "$@"
