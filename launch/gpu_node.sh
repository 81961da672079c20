#!/usr/bin/env bash
# Runs a command on the NVIDIA GPUs of this machine, all in one process.
#
#   launch/gpu_node.sh [--gpus=0,1] -- launch.train --config=FILE --workdir=DIR
#
# Without --gpus it uses all GPUs. What follows -- is passed to `python -m`; --dry_run prints the command and runs
# nothing. Python is .venv/bin/python, or that of the environment variable PYTHON. Without a usable GPU it fails, where
# JAX alone would use the CPU. SIGTERM and Ctrl-C reach launch.train, which saves. For several machines without a
# scheduler, start it on each with --distributed=HOST:PORT,INDEX,COUNT after --.

set -eo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh

split_arguments "$@"
require_command
environment=(JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}")
for flag in "${own[@]}"; do
  case $flag in
    --gpus=*) environment+=(CUDA_VISIBLE_DEVICES="${flag#--gpus=}") ;;
    *) fail "$flag is not a flag of this script; flags of the command follow --; see --help" ;;
  esac
done

run exec env "${environment[@]}" "${PYTHON:-.venv/bin/python}" -m "${command[@]}"
