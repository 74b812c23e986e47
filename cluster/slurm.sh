#!/bin/bash
# A study on the nodes of one SLURM job. From the folder of the project, which all nodes must see:
#   make install && sbatch cluster/slurm.sh SPACE [further options of gfe-study sweep]
# Ahead of the time limit the sweep is stopped in good order and the job queued again; it continues where it was.
#SBATCH --job-name=gfe-sweep
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# FILL IN: nodes, cores of a node, time; add --partition, --account and --gpus-per-node as the site asks.
#SBATCH --nodes=2
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
space=${1:?which space? sbatch cluster/slurm.sh amd}
shift

storage=${STORAGE:-$PWD/results}  # FILL IN, or set STORAGE: a folder that all nodes see
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://mlflow.example.org:5000}  # FILL IN
address=$(hostname -I | cut -d' ' -f1)  # FILL IN: this node's address in the network that joins the nodes
export RAY_ADDRESS=$address:$((20000 + SLURM_JOB_ID % 10000))

# A token of this job's own; srun hands it on in the environment.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_USAGE_STATS_ENABLED=0
# srun has not taken it from sbatch since SLURM 22.05.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

steps=()
trap 'kill "${steps[@]}" 2>/dev/null || true; wait' EXIT

alive="
import sys, ray
ray.init(log_to_driver=False, logging_level='ERROR')
sys.exit(sum(node['Alive'] for node in ray.nodes()) < int(sys.argv[1]))"
wait_for_nodes() {
  for _ in $(seq 60); do
    .venv/bin/python -c "$alive" "$1" 2>/dev/null && return
    sleep 2
  done
  echo "error: fewer than $1 nodes at $RAY_ADDRESS" >&2
  exit 1
}

names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${names%%$'\n'*}
srun --nodes=1 --ntasks=1 --nodelist="$head" \
  .venv/bin/ray start --head --block --include-dashboard=false --num-cpus="$SLURM_CPUS_PER_TASK" \
  --node-ip-address="$address" --port="${RAY_ADDRESS##*:}" &
steps+=($!)
wait_for_nodes 1
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --exclude="$head" \
    .venv/bin/ray start --block --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" &
  steps+=($!)
fi
# The sweep counts the slots once, when it starts.
wait_for_nodes "$SLURM_JOB_NUM_NODES"

# Not through make, which would hide the exit code.
.venv/bin/gfe-study sweep "$space" --address auto --storage "$storage" "$@" &
sweep=$!
told=no
trap 'told=yes; kill -TERM "$sweep" 2>/dev/null || true' TERM
while kill -0 "$sweep" 2>/dev/null; do
  wait "$sweep" || true
done
status=0
wait "$sweep" || status=$?

# A job that was cancelled is no longer RUNNING, and stays cancelled.
if [ "$told" = yes ] && [ "$status" -ge 130 ] &&
  [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
