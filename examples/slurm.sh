#!/usr/bin/env bash
#SBATCH --job-name=meprop-bench
#SBATCH --array=1-4               # one job for each shard, from 1; as many as SHARDS below
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive               # what else runs on the node would be measured, too
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@300       # five minutes before the end: what is done is reported, and the rest can be resumed
#SBATCH --output=slurm-%A-%a.log
#
# One shard of a run on each of several nodes; --out is a folder that all of them see.
#
#   sbatch examples/slurm.sh speedup --preset targets --out /shared/reports
#   sbatch --array=3 examples/slurm.sh speedup --preset targets --out /shared/reports      shard 3 again, where it stopped
#   meprop-bench merge /shared/reports/*_targets-shard-*-of-4 --out /shared/reports/targets

set -euo pipefail

# N of the split. It is not the size of the array, which is 1 when a single shard is submitted again.
SHARDS="${SHARDS:-4}"

# Temporary files lie on the node, in a folder of this job alone. Jobs that share a device see its lock all the same.
scratch="$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/meprop-bench.XXXXXX")"
trap 'rm -rf "$scratch"' EXIT
export TMPDIR="$scratch"

# No srun: it would give a step the processors of one task, where the job has the whole node.
meprop-bench "$@" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --resume &
run=$!
ended=
trap 'ended=1; kill -TERM "$run" 2> /dev/null || true' TERM INT
code=0
wait "$run" || code=$?
while [[ -n "$ended" ]]; do # a signal ends the waiting, and the run comes to an end of its own
  ended=
  code=0
  wait "$run" || code=$?
done
exit "$code"
