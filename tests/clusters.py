"""Stand-ins of the commands of clusters, which start processes on this machine.

A command that is run has the number of the attempt in $ATTEMPT.
"""

import pathlib

SRUN = """
while [ "${1#--}" != "$1" ]; do shift; done
export ATTEMPT=$(($(cat attempt 2>/dev/null || echo 0) + 1))
echo $ATTEMPT >attempt
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids="$pids $!"
done
highest=0
for pid in $pids; do
  wait $pid; code=$?
  [ $code -gt $highest ] && highest=$code
done
exit $highest
"""
GCLOUD = """
for word in "$@"; do
  case $word in
    scp | ssh) what=$word ;;
    --output-directory=*) to=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
echo "$@" >>gcloud.txt
if [ $what = scp ]; then
  for i in 0 1; do mkdir -p host-$i && cp "$5" host-$i; done
  exit
fi
export ATTEMPT=$(($(cat attempt 2>/dev/null || echo 0) + 1))
echo $ATTEMPT >attempt
for i in 0 1; do
  (cd host-$i && TPU_WORKER_ID=$i bash -c "$command" >"../$to/$i.log") &
  pids="$pids $!"
done
status=0
for pid in $pids; do wait $pid || status=$?; done
exit $status
"""


def write(folder: pathlib.Path) -> None:
  """Writes the commands to a folder, for PATH; each works in its own folder.

  Args:
    folder: the folder, which is made.
  """
  folder.mkdir(parents=True)
  for name, text in (
    ("srun", SRUN),
    ("gcloud", GCLOUD),
    ("scontrol", 'echo "$@" >scontrol.txt'),
  ):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)
