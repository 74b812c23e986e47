#!/bin/bash
# The sweep of a study and Ray's head; the trials run in the jobs of cluster/slurm-workers.sh. From the folder of the
# project, which all nodes must see:
#   make install && sbatch cluster/slurm-head.sh SPACE [further options of gfe-study sweep]
#   sbatch --array=1-8 cluster/slurm-workers.sh       before or after it, as often as you like
# Ahead of the time limit the sweep is stopped in good order and the job queued again; it continues where it was.
#SBATCH --job-name=gfe-head
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# FILL IN: memory, time; add --partition and --account as the site asks.
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=24:00:00

warned=no
trap 'warned=yes' TERM
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
space=${1:?which space? sbatch cluster/slurm-head.sh amd}
shift

storage=${STORAGE:-$PWD/results}  # FILL IN, or set STORAGE: a folder that all nodes see
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://mlflow.example.org:5000}  # FILL IN
# FILL IN, or set HEAD_ADDRESS: this node's address in the network that joins the nodes
address=${HEAD_ADDRESS:-$(hostname -I | cut -d' ' -f1)}
# After a requeue another port: on a shared node, workers of the old Ray may still be there.
export RAY_ADDRESS=$address:$((20000 + (SLURM_JOB_ID + 997 * ${SLURM_RESTART_COUNT:-0}) % 10000))

# shellcheck source=cluster/slurm-lib.sh
. cluster/slurm-lib.sh
if [ -r "$head_file" ]; then
  read -r other _ < "$head_file"
  if [ "$other" != "$job" ] && [ -n "$(state_of "$other")" ]; then
    echo "error: $head_file belongs to job $other; for a second head set HEAD_FILE, here and for its workers" >&2
    exit 2
  fi
  rm "$head_file"
fi
to_remove=$head_file
RAY_AUTH_TOKEN=$(new_token)

echo "job $job: starting Ray's head"
.venv/bin/ray start --head --block --include-dashboard=false --num-cpus=0 --node-ip-address="$address" \
  --port="${RAY_ADDRESS##*:}" --min-worker-port=0 --max-worker-port=0 &
steps+=($!)
wait_for_nodes 1 180

# The workers' way in, for this user alone.
(umask 077; echo "$job $RAY_ADDRESS $RAY_AUTH_TOKEN" > "$head_file.$job")
mv "$head_file.$job" "$head_file"
echo "job $job: waiting for the first worker"
wait_for_nodes 2 1e9
sweep "$space" "$@"
