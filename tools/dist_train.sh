#!/usr/bin/env bash
# Train with several processes, one a GPU (without GPUs: that many processes on the CPU):
#     tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (of node 0) and one PORT for all.
# On one machine a free port is found; PORT chooses it.
set -euo pipefail
if [ $# -lt 2 ] || [[ ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]    (GPUS: the number of processes on this machine)" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python}" "$here/torchrun.py" "$gpus" "$here/train.py" "$config" --launcher pytorch "$@"
