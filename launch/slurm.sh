#!/usr/bin/env bash
# Submits a command to Slurm, with one process for each GPU of each node.
#
#   launch/slurm.sh --gpus-per-node=1 --time=24:00:00 -- launch.train --config=FILE --workdir=DIR
#   launch/slurm.sh --nodes=4 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 -- launch.train --config=FILE --workdir=DIR
#
# Flags before -- are sbatch's and are passed on, such as --partition and --account; --dry_run prints the command and
# runs nothing. What follows -- is passed to `python -m`, with --distributed=auto. Python is .venv/bin/python, or that of
# the environment variable PYTHON. The log is slurm-JOB.out. Five minutes before the time limit launch.train saves and
# the job is queued again (launch/slurm_job.sh); so it is when a node fails. To save and end it: scancel --signal=TERM JOB.

set -eo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh

split_arguments "$@"
require_command
distribute
gpus=''
for flag in "${own[@]}"; do
  case $flag in --gpus-per-node=*) gpus=${flag##*[=:]} ;; esac # 8, or h100:8
done
[[ $gpus =~ ^[0-9]+$ ]] || fail "give --gpus-per-node=NUMBER, which is also the number of processes on a node"

run sbatch --job-name="${command[0]}" --open-mode=append --requeue --signal=B:USR1@300 --ntasks-per-node="$gpus" \
  "${own[@]}" launch/slurm_job.sh "${command[@]}"
