#!/usr/bin/env bash
# Train with several processes, one a GPU (without GPUs: that many processes on the CPU):
#     tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (of node 0) and one PORT for all.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
nnodes=${NNODES:-1}
if [ -z "${PORT:-}" ]; then
    if [ "$nnodes" -gt 1 ]; then
        PORT=29500  # every node must know it
    else
        PORT=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    fi
fi
# Processes on the CPU share its cores; torchrun would give each a single thread.
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > gpus ? cores / gpus : 1))}
exec "$python" -m torch.distributed.run --nnodes="$nnodes" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$PORT" --nproc_per_node="$gpus" \
    "$here/train.py" "$config" --launcher pytorch "$@"
