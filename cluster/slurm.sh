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

warned=no
trap 'warned=yes' TERM
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
space=${1:?which space? sbatch cluster/slurm.sh amd}
shift

storage=${STORAGE:-$PWD/results}  # FILL IN, or set STORAGE: a folder that all nodes see
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://mlflow.example.org:5000}  # FILL IN
# FILL IN, or set HEAD_ADDRESS: this node's address in the network that joins the nodes
address=${HEAD_ADDRESS:-$(hostname -I | cut -d' ' -f1)}
# Another port after a requeue: what is left of the old Ray may still be there.
export RAY_ADDRESS=$address:$((20000 + (SLURM_JOB_ID + 997 * ${SLURM_RESTART_COUNT:-0}) % 10000))
# srun has not taken it from sbatch since SLURM 22.05.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# shellcheck source=cluster/slurm-lib.sh
. cluster/slurm-lib.sh
RAY_AUTH_TOKEN=$(new_token)  # of this job's own; srun hands it on in the environment

echo "job $job: starting Ray on $SLURM_JOB_NODELIST"
names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${names%%$'\n'*}
srun --nodes=1 --ntasks=1 --nodelist="$head" \
  .venv/bin/ray start --head --block --include-dashboard=false --num-cpus="$SLURM_CPUS_PER_TASK" \
  --node-ip-address="$address" --port="${RAY_ADDRESS##*:}" &
steps+=($!)
wait_for_nodes 1 180
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --exclude="$head" \
    .venv/bin/ray start --block --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" &
  steps+=($!)
  echo "job $job: waiting for $others more nodes"
  wait_for_nodes "$SLURM_JOB_NUM_NODES" 180
fi
sweep "$space" "$@"
