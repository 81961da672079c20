# shellcheck shell=bash
# Sourced by the other scripts here: their arguments, and commands that are only printed with --dry_run.

# split_arguments ARGUMENT...: puts what stands before -- into `own`, and the words after it into `command`.
# --dry_run sets `dry_run`; --help prints the comment at the top of the script.
split_arguments() {
  own=() command=() dry_run=''
  while (($#)); do
    case $1 in
      --)
        shift
        command=("$@")
        return
        ;;
      --dry_run) dry_run=1 ;;
      --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
      *) own+=("$1") ;;
    esac
    shift
  done
}

# fail MESSAGE: one line on stderr, and exit status 2.
fail() {
  echo "error: $1" >&2
  exit 2
}

# require_command: fails where nothing follows --, such as launch.train --config=FILE --workdir=DIR.
require_command() {
  ((${#command[@]})) || fail "give the command after --, such as: -- launch.train --config=FILE --workdir=DIR"
}

# distribute: adds --distributed=auto to `command`, unless it says itself how the processes find each other.
distribute() {
  local word
  for word in "${command[@]}"; do
    case $word in --distributed | --distributed=*) return ;; esac
  done
  command+=(--distributed=auto)
}

# quoted WORD...: prints the words as a shell reads them.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/$quote}'" ;;
    esac
    line+="$word "
  done
  printf '%s' "${line% }"
}

# run WORD...: prints a command and runs it; with --dry_run prints it only.
run() {
  if [[ $dry_run ]]; then
    quoted "$@"
    echo
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}
