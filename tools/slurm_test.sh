#!/usr/bin/env bash
# Test as a job of Slurm:
#     tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# GPUS (8) processes on nodes of GPUS_PER_NODE (8) with CPUS_PER_TASK (5) cores each; SRUN_ARGS: more options of srun;
# PY_ARGS: more options of tools/test.py. A partition without GPUs runs that many processes on the CPU.
# The processes meet on a port that follows from the job's number, or on --cfg-options dist_params.port=N.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [PY_ARGS=...]" \
        "$0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    exit 2
fi
partition=$1
job=$2
config=$3
checkpoint=$4
shift 4
here=$(cd "$(dirname "$0")" && pwd)
exec bash "$here/srun.sh" "$partition" "$job" "$here/test.py" "$config" "$checkpoint" "$@"
