#!/usr/bin/env bash
# Runs one command on all hosts of a Cloud TPU slice:
#
#   launch/tpu_vm.sh SLICE ZONE COMMAND...
#   launch/tpu_vm.sh first us-west4-a saejax train --store=gs://... \
#     --held_out=gs://... --run_dir=/shared/runs/first --train.mesh=1,4,4
#
# JAX finds the processes by the slice's metadata. Here logs/SLICE/N.log (SAEJAX_LOGS)
# has the output of host N, and that of host 0 is shown; each host keeps its own in
# ~/saejax-logs. The command is repeated where a process is lost, RESTARTS times (20).
set -uo pipefail

if [ $# -lt 3 ]; then
  echo "usage: tpu_vm.sh SLICE ZONE COMMAND..." >&2
  exit 2
fi
slice=$1
zone=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
logs=${SAEJAX_LOGS:-logs/$slice}
mkdir -p "$logs" || exit 2
on_slice=(--zone="$zone" --worker=all)
printf -v command '%q ' bash process.sh saejax-logs "$@"

gcloud compute tpus tpu-vm scp "$here/process.sh" "$slice:" \
  "${on_slice[@]}" || exit

: >"$logs/0.log"
tail -n +1 -F "$logs/0.log" 2>/dev/null &
shown=$!
bash "$here/restart.sh" "$logs" \
  gcloud compute tpus tpu-vm ssh "$slice" "${on_slice[@]}" \
  --output-directory="$logs" --command="$command"
code=$?
sleep 1 # the last lines
kill "$shown"
exit "$code"
