#!/usr/bin/env bash
# Repeats a command that starts the processes of several hosts, while one of them was
# lost:
#
#   restart.sh LOGS COMMAND...
#
# COMMAND runs process.sh on every host. LOGS has a file for each, whose last line
# says how it ended; a file without that line is of a lost process. The exit code is
# that of what failed by itself, or else 75 after RESTARTS (20) repetitions, 143 where
# a signal stopped all, and 0.
set -uo pipefail

if [ $# -lt 2 ]; then
  echo "usage: restart.sh LOGS COMMAND..." >&2
  exit 2
fi
logs=$1
shift
mkdir -p "$logs" || exit 2
mark=$logs/.began
stopped=""
trap 'stopped=1' INT TERM HUP

# The exit code of all, from that of the command and from the logs it has written.
exit_code() {
  local own=$1 log code failed="" highest=0 files=0
  while IFS= read -r log; do
    files=$((files + 1))
    code=$(tail -n 1 "$log" |
      sed -n 's/^.*process.* on .*: exit code \([0-9]*\).*$/\1/p')
    code=${code:-75}
    case $code in
      0 | 75 | 143) [ "$code" -gt "$highest" ] && highest=$code ;;
      *) [ "$code" -lt "${failed:-256}" ] && failed=$code ;;
    esac
  done < <(find "$logs" -maxdepth 1 -name '*.log' -newer "$mark")
  if [ -n "$failed" ]; then
    echo "$failed"
  elif [ "$highest" != 0 ]; then
    echo "$highest"
  else
    echo "$own" # the processes ended well, or were not started
  fi
}

for ((repeated = 0; ; repeated++)); do
  touch "$mark"
  sleep 1 # logs are newer, also where times are whole seconds
  "$@"
  code=$(exit_code $?)
  if [ "$code" != 75 ] || [ "$repeated" -ge "${RESTARTS:-20}" ]; then
    break
  fi
  if [ -n "$stopped" ]; then
    code=143
    break
  fi
  echo "restart.sh: a process was lost; starting all again ($((repeated + 1)))"
  sleep "${RESTART_SECONDS:-10}"
done
echo "restart.sh: exit code $code"
exit "$code"
