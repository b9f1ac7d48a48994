#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share: run a tool in GPUS tasks of a Slurm job.
#     tools/srun.sh PARTITION JOB_NAME TOOL [its arguments]
set -euo pipefail
partition=$1
job=$2
shift 2
gpus=${GPUS:-8}
cpus=${CPUS_PER_TASK:-5}
for setting in "GPUS=$gpus" "GPUS_PER_NODE=${GPUS_PER_NODE:-8}" "CPUS_PER_TASK=$cpus"; do
    if [[ ! $setting =~ =[1-9][0-9]*$ ]]; then
        echo "error: $setting must be a whole number, 1 or more" >&2
        exit 2
    fi
done
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
for command in srun sinfo; do
    if ! command -v "$command" >/dev/null; then
        echo "error: there is no $command here: run this on a machine of the Slurm cluster" \
            "(without Slurm: tools/dist_train.sh, tools/dist_test.sh)" >&2
        exit 2
    fi
done
options=()
resources=$(sinfo --noheader --partition="$partition" --format=%G 2>&1) || {
    echo "error: sinfo: $resources" >&2
    exit 2
}
if [ -z "$resources" ]; then
    echo "error: Slurm has no partition '$partition'; it has $(sinfo --noheader --format=%R | sort -u | xargs)" >&2
    exit 2
fi
if [[ $resources == *gpu* ]]; then
    options+=("--gres=gpu:$per_node")
else
    echo "warning: partition $partition offers no GPUs: $gpus processes on the CPU" >&2
fi
# SRUN_ARGS and PY_ARGS are lists of words.
# shellcheck disable=SC2086
"${PYTHON:-python}" "$(dirname "$0")/torchrun.py" --check "$@" --launcher slurm ${PY_ARGS:-}
# A task on the CPU computes with the cores that Slurm gives it.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
# shellcheck disable=SC2086
exec srun --partition="$partition" --job-name="$job" "${options[@]}" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="$cpus" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$@" --launcher slurm ${PY_ARGS:-}
