#!/usr/bin/env bash
# Runs a command on all workers of a Cloud TPU VM slice.
#
#   launch/tpu_vm.sh create NAME --zone=ZONE --accelerator-type=v5p-32 --version=v2-alpha-tpuv5 [--spot]
#   launch/tpu_vm.sh queue NAME --zone=ZONE --accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 [--spot]
#   launch/tpu_vm.sh status NAME --zone=ZONE
#   launch/tpu_vm.sh setup NAME --zone=ZONE
#   launch/tpu_vm.sh mount NAME --zone=ZONE -- BUCKET
#   launch/tpu_vm.sh run NAME --zone=ZONE -- launch.train --config=FILE --workdir=DIR
#   launch/tpu_vm.sh logs NAME --zone=ZONE [--worker=0]
#   launch/tpu_vm.sh stop NAME --zone=ZONE
#   launch/tpu_vm.sh delete NAME --zone=ZONE
#   launch/tpu_vm.sh delete_queued NAME --zone=ZONE
#
# Flags before -- are gcloud's and are passed on, such as --project; --dry_run prints the commands and runs nothing.
# What follows -- is passed to `python -m` on every worker, with --distributed=auto, and goes on when the connection
# ends. `create` fails where no slice is free; `queue` waits for one, and `delete_queued` removes what it made.
# `setup` copies the commit that is checked out here to ~/tc_jepa of every worker and installs it in a virtual
# environment. `mount` mounts a bucket at ~/BUCKET with gcsfuse. `logs` prints the end of ~/tc_jepa/run.log. `stop` sends
# SIGTERM, after which launch.train saves; `run` with the same command resumes. Without a TPU a command fails, where JAX
# alone would use the CPU.

set -eo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh

FOLDER=tc_jepa # in the home folder of every worker
UV="\$HOME/.local/bin/uv"
RUNNING="[ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null"

split_arguments "$@"
action=${own[0]} name=${own[1]} flags=("${own[@]:2}")
case $action:$name in
  : | *: | *:-*) fail "give an action and the name of the slice, such as: $0 setup NAME --zone=ZONE; see --help" ;;
esac

tpu() { run gcloud compute tpus "$@"; }
on_all_workers() { tpu tpu-vm ssh "$name" --worker=all "${flags[@]}" --command="$1"; }

setup() {
  local archive=${TMPDIR:-/tmp}/$FOLDER-$$.tar.gz
  git diff --quiet HEAD -- || echo "warning: changes that are not committed are not copied" >&2
  run git archive --format=tar.gz --prefix="$FOLDER/" --output="$archive" HEAD
  tpu tpu-vm scp "$archive" "$name:$FOLDER.tar.gz" --worker=all "${flags[@]}"
  # The images of TPU VMs have an older Python; uv installs one.
  on_all_workers "set -e; tar -xzf $FOLDER.tar.gz; cd $FOLDER
    [ -x $UV ] || curl -LsSf https://astral.sh/uv/install.sh | sh
    $UV venv --allow-existing --python=3.12 .venv
    $UV pip install --python=.venv/bin/python --requirement=requirements.txt 'jax[tpu]>=0.10.2' \
      gcsfs google-cloud-storage"
  run rm "$archive"
}

mount() {
  ((${#command[@]} == 1)) || fail "give one bucket after --, such as: -- my-bucket"
  local bucket=${command[0]#gs://}
  on_all_workers "mkdir -p $(quoted "$bucket") && gcsfuse --implicit-dirs $(quoted "$bucket" "$bucket")"
}

start() {
  require_command
  distribute
  on_all_workers "cd $FOLDER || exit 1
    if $RUNNING; then echo 'a command is running here: stop it first' >&2; exit 1; fi
    JAX_PLATFORMS=tpu,cpu nohup .venv/bin/python -m $(quoted "${command[@]}") >>run.log 2>&1 </dev/null &
    echo \$! >run.pid"
}

case $action in
  create) tpu tpu-vm create "$name" "${flags[@]}" ;;
  queue) tpu queued-resources create "$name" --node-id="$name" "${flags[@]}" ;;
  status) tpu tpu-vm describe "$name" "${flags[@]}" ;;
  setup) setup ;;
  mount) mount ;;
  run) start ;;
  logs) on_all_workers "tail -n 40 $FOLDER/run.log" ;;
  stop) on_all_workers "cd $FOLDER || exit 1; if $RUNNING; then kill \"\$(cat run.pid)\"; fi" ;;
  delete) tpu tpu-vm delete "$name" "${flags[@]}" ;;
  delete_queued) tpu queued-resources delete "$name" --force "${flags[@]}" ;;
  *) fail "$action is not an action; see --help" ;;
esac
