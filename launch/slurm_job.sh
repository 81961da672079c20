#!/usr/bin/env bash
# The job of launch/slurm.sh, which runs once, on the first node. Its arguments are those of `python -m`.
#
# Slurm sends USR1 before the time limit. The processes then get SIGTERM, launch.train saves and exits with 143, and the
# job is queued again. After scancel, which sends SIGTERM, and after an error it is not.

export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} # JAX fails without a GPU, where by default it would run on the CPU
limit='' early='' processes=''
stop() { # srun passes SIGTERM on to every process
  if [[ $processes ]]; then kill -TERM "$processes" 2>/dev/null; else early=1; fi
}
trap 'limit=1; stop' USR1
trap stop TERM

srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "${PYTHON:-.venv/bin/python}" -m "$@" &
processes=$!
[[ ! $early ]] || stop # the signal came before the number of the process was known
wait "$processes"
status=$?
while kill -0 "$processes" 2>/dev/null; do # a signal ends `wait` before srun has ended
  wait "$processes"
  status=$?
done

if [[ $limit && $status = 143 ]]; then
  echo "saved before the time limit; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
