#!/bin/bash
# Nodes for the study of cluster/slurm-head.sh, one a job. From the same folder:
#   sbatch --array=1-8 cluster/slurm-workers.sh
# A worker joins the head's Ray and leaves with it. It may be cancelled, and more may be submitted, at any time. Ahead
# of its time limit it is queued again.
#SBATCH --job-name=gfe-worker
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
# FILL IN: cores, memory, time (many times a trial's); add --partition, --account and --gpus as the site asks.
#SBATCH --cpus-per-task=16
#SBATCH --mem=16G
#SBATCH --time=04:00:00

warned=no
trap 'warned=yes' TERM
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
patience=${HEAD_WAIT:-600}  # seconds without a head after which a worker gives up

# shellcheck source=cluster/slurm-lib.sh
. cluster/slurm-lib.sh
head=''    # the head's job
joined=no  # whether this worker was part of its Ray

# Read the head's file; whether its Ray answers.
find_head() {
  local address
  [ -r "$head_file" ] && read -r head address RAY_AUTH_TOKEN < "$head_file" || return
  export RAY_ADDRESS=$address
  run timeout 10 bash -c "< /dev/tcp/${address%:*}/${address##*:}" 2>/dev/null
}

echo "job $job: waiting for a head in $head_file"
SECONDS=0
while [ "$warned" = no ]; do
  if find_head; then
    echo "job $job: joining the Ray of job $head"
    joined=yes began=$SECONDS
    run .venv/bin/ray start --block --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" \
      --min-worker-port=0 --max-worker-port=0 || true
    [ $((SECONDS - began)) -lt 120 ] || SECONDS=0  # it was not refused
  elif [ "$joined" = yes ] && [ -z "$(state_of "$head")" ]; then
    echo "job $job: the head, job $head, has ended"
    exit 0
  elif [ "$SECONDS" -ge "$patience" ]; then
    echo "error: no head after $patience s; start one with sbatch cluster/slurm-head.sh SPACE" >&2
    if [ -n "$head" ] && [ -n "$(state_of "$head")" ]; then
      queue_again  # the head itself waits in the queue
    fi
    exit 1
  fi
  run sleep 5 || true
done
exit 143
