#!/usr/bin/env bash
# Runs one process of a command that runs on several hosts, and keeps its log:
#
#   process.sh LOGS COMMAND...
#
# What the process prints, the lines of JAX's runtime included, is appended to
# LOGS/HOST.log, or LOGS/HOST-NUMBER.log where the scheduler numbers processes. The
# last line says how it ended.
#
# A process that loses another one is aborted by the runtime, which runs no Python
# (134 in a shell). Here it returns 75 then, as does one that a signal killed: start
# all processes again. Other exit codes are passed on.
set -uo pipefail
ulimit -c 0 # no core file of an aborted process

if [ $# -lt 2 ]; then
  echo "usage: process.sh LOGS COMMAND..." >&2
  exit 2
fi
logs=$1
shift
number=${SLURM_PROCID:-${TPU_WORKER_ID:-${JOB_COMPLETION_INDEX:-}}}
name="process${number:+ $number} on $(hostname)"
log=$logs/$(hostname)${number:+-$number}.log
mkdir -p "$logs" && : >>"$log" || exit 2
before=$(wc -c <"$log")
lock=/tmp/saejax-$(id -u)-$(realpath "$log" | cksum | cut -d " " -f 1).lock
exec 9>"$lock"
if ! flock -n 9; then # after a lost connection, say
  echo "$name: exit code 2, since another process writes $log; stop that first"
  exit 2
fi

# Numbers of the processes that the runtime says it lost; the leader is process 0.
lost() {
  tail -c "+$((before + 1))" "$log" | awk '
    /tasks are unhealthy/ { listed = 1; next }
    /the leader task was preempted|Either the leader task/ { print 0 }
    listed && /^([^ ]*task:)?[0-9]+$/ { sub(/.*:/, ""); print; next }
    { listed = 0 }' | sort -nu | paste -sd, -
}

say() {
  echo "$1" | tee -a -p "$log"
}

# Whoever signals the process signals its group. The log is open until it ends,
# even where nobody reads standard output any more.
trap : INT TERM HUP
"$@" 2>&1 | (
  trap '' INT TERM HUP
  exec tee -a -p "$log"
)
ended=${PIPESTATUS[0]}

code=$ended
if [ "$ended" -gt 128 ]; then
  case $ended in
    129 | 130 | 143) ;; # stopped by a signal
    *) code=75 ;;
  esac
fi
others=$(lost)
if [ -n "$others" ]; then
  say "$name: lost process $others"
fi
if tail -c "+$((before + 1))" "$log" | grep -q 'Service/RegisterTask'; then
  say "$name: not all processes came; start each of them once, and see their logs"
fi
if [ "$ended" != "$code" ]; then
  say "$name: exit code $code, for $ended"
else
  say "$name: exit code $code"
fi
exit "$code"
