#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: start GPUS processes of a tool on this machine.
#     tools/torchrun.sh GPUS TOOL [its arguments]
# NNODES, NODE_RANK, MASTER_ADDR and PORT as they describe; without PORT a free one is taken.
set -euo pipefail
gpus=$1
tool=$2
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
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$PORT" --nproc_per_node="$gpus" "$here/$tool" "$@"
