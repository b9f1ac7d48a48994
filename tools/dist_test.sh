#!/usr/bin/env bash
# Test with several processes, one a GPU (without GPUs: that many processes on the CPU):
#     tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (of node 0) and one PORT for all.
# On one machine a free port is found; PORT chooses it.
set -euo pipefail
if [ $# -lt 3 ] || [[ ! $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]    (GPUS: the number of processes on this" \
        "machine)" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
for option in "$@"; do
    case $option in --show | --show-dir | --show-dir=*)
        echo "$0: $option works with one process: run  python tools/test.py $config $checkpoint $*" >&2
        exit 2 ;;
    esac
done
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python}" "$here/torchrun.py" "$gpus" "$here/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
