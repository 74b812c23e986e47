# shellcheck shell=bash disable=SC2034,SC2154
# Shared by slurm.sh, slurm-head.sh and slurm-workers.sh, which source it.

# Array tasks are named by array and index: the bare number of one of them stands for the whole array.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
head_file=${HEAD_FILE:-$PWD/.slurm-head}

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

unfinished=yes  # whether the job must be queued again after a warning
to_remove=''    # a file to remove when the job ends for good
steps=()        # processes that end with the job
command=''      # the process that a warning is passed on to

# SLURM's warning ahead of the time limit. The command hears it once: a second signal would cut its ending short.
warn() {
  warned=yes
  if [ -n "$command" ]; then
    kill -TERM "$command" 2>/dev/null || true
    command=''
  fi
}
trap warn TERM

# Run a command that a warning interrupts, and return its exit code.
run() {
  [ "$warned" = no ] || return 143
  "$@" &
  local started=$! status=0
  command=$started
  [ "$warned" = no ] || warn
  while kill -0 "$started" 2>/dev/null; do
    wait "$started" || true
  done
  wait "$started" || status=$?
  command=''
  return "$status"
}

# The state of a job in the queue; nothing if it is there no more.
state_of() {
  local told
  for _ in 1 2 3 4 5 6; do
    if told=$(squeue --noheader --jobs="$1" --format=%T 2>&1); then
      echo "$told"
      return
    fi
    [[ $told != *'Invalid job id'* ]] || return 0
    sleep 5  # SLURM is busy
  done
  echo UNKNOWN
}

queue_again() {
  echo "job $job: queued again"
  scontrol requeue "$job" || echo "error: SLURM does not queue job $job again; submit it again" >&2
}

finish() {
  local status=$1
  trap - EXIT
  # A job that was cancelled is no longer RUNNING, and stays cancelled.
  if [ "$warned" = yes ] && [ "$unfinished" = yes ] && [ "$(state_of "$job")" = RUNNING ]; then
    queue_again
  elif [ -n "$to_remove" ]; then
    rm -f "$to_remove"
  fi
  kill "${steps[@]}" 2>/dev/null || true
  wait
  exit "$status"
}
trap 'finish $?' EXIT

new_token() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

count_nodes="
import sys, time, ray
wanted, patience = int(sys.argv[1]), float(sys.argv[2])
deadline = time.monotonic() + patience
joined = 0
while joined < wanted:
    if time.monotonic() > deadline:
        sys.exit(f'error: {joined} of {wanted} nodes have joined Ray after {patience:.0f} s')
    time.sleep(1)
    try:
        ray.init(log_to_driver=False, logging_level='CRITICAL', ignore_reinit_error=True)
        joined = sum(node['Alive'] for node in ray.nodes())
    except Exception:
        joined = 0  # the head is still starting
"

# Wait until Ray has so many nodes, for at most so many seconds.
wait_for_nodes() {
  run .venv/bin/python -c "$count_nodes" "$@"
}

# Run the sweep, not through make, which would hide the exit code; exit with its code.
sweep() {
  local status=0
  run .venv/bin/gfe-study sweep "$1" --address auto --storage "$storage" "${@:2}" || status=$?
  [ "$status" -gt 2 ] || unfinished=no  # 0, 1 and 2 are the sweep's own words; anything else cut it short
  exit "$status"
}
