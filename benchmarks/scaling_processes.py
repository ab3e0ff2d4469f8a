"""The training command in several processes against one, by its weights.

A part of scaling_efficiency.py. `experiments/train.py` trains on a small store:
in one process on one device, in one process on the devices of a mesh, and by
`experiments/launch_local.py` in processes of two devices each on that mesh.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from saejax.data.store import create

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "experiments"
STEPS, ROWS, D = 24, 64, 16
DEVICES = 2  # of each process
TOLERANCE = 1e-4
# Flags of the method, processes, and mesh.
TRIALS = (
  ("topk", "--sae.k=4", 2, (1, 2, 2)),
  ("topk", "--sae.k=4 --sae.seeds=2", 4, (2, 2, 2)),
)
SECONDS = 1200  # for one command


def rows(trials: Sequence[Any] = TRIALS) -> list[dict[str, Any]]:
  """The weights of several processes beside those of one.

  Args:
    trials: method, its flags, processes, mesh.

  Returns:
    For each trial the largest |w - reference| / |reference| of an array, of one
    process on the same mesh and of one on one device; and whether the first is
    0 where no axis has more than two devices, and both are in the tolerance.
  """
  found = []
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    _store(folder)
    for recipe, flags, processes, mesh in trials:
      args = (folder, f"--sae.recipe={recipe} {flags}")
      several = _weights(*args, mesh, processes)
      same, one = _weights(*args, mesh, 1), _weights(*args, (1, 1, 1), 1)
      from_same, from_one = _apart(several, same), _apart(several, one)
      exact = from_same == 0 or max(mesh) > 2
      found.append(
        {
          "recipe": recipe,
          "processes": processes,
          "devices": DEVICES,
          "mesh": list(mesh),
          "saes": len({name.partition("/")[0] for name in several}),
          "same_mesh": from_same,
          "one_device": from_one,
          "equal": exact and max(from_same, from_one) <= TOLERANCE,
        }
      )
      print(found[-1], file=sys.stderr, flush=True)
  return found


def _store(folder: pathlib.Path) -> None:
  """Stores of rows to train on, and held out."""
  draw = np.random.default_rng(0)
  sizes = {"bucket_rows": 512, "shard_rows": 256, "chunk_rows": 64}
  for name, count in (("train", STEPS * ROWS), ("held_out", 256)):
    x = draw.laplace(size=(count, D)).astype(np.float32)
    create.write_store(folder / name, {"x": x}, **sizes)


def _weights(
  folder: pathlib.Path, flags: str, mesh: tuple[int, ...], processes: int
) -> dict[str, np.ndarray]:
  """The arrays of all SAEs of a run, by the name of SAE and array.

  Raises:
    RuntimeError: the command failed, with the end of what it said.
  """
  run = folder / f"run{len(list(folder.iterdir()))}"
  command = [
    str(SCRIPTS / "train.py"),
    f"--store={folder / 'train'}",
    f"--held_out={folder / 'held_out'}",
    f"--run_dir={run}",
    "--sae.n=128",
    f"--train.mesh={','.join(map(str, mesh))}",
    f"--train.batch_rows={ROWS}",
    f"--train.steps={STEPS}",
    "--train.log_steps=8",
    "--train.dead_after_tokens=128",
    # Members in several stacks or in turn would be other programs.
    f"--train.members={'stacked' if '--sae.seeds' in flags else 'auto'}",
    *flags.split(),
  ]
  if processes > 1:
    launcher = [str(SCRIPTS / "launch_local.py"), f"--processes={processes}"]
    wait = "--heartbeat_timeout_seconds=600"
    command = [*launcher, f"--devices={DEVICES}", wait, "--", *command]
  count = mesh[0] * mesh[1] * mesh[2]
  given = os.environ.get("XLA_FLAGS", "")
  forced = f"{given} --xla_force_host_platform_device_count={count}"
  around = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, *command],
    env={**os.environ, **around, "XLA_FLAGS": forced},
    capture_output=True,
    text=True,
    timeout=SECONDS,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(f"{command}: {(done.stdout + done.stderr)[-2000:]}")
  return {
    f"{path.parent.name}/{name}": array
    for path in sorted(run.glob("saes/*/sae.safetensors"))
    for name, array in safetensors.load_file(path).items()
  }


def _apart(got: dict[str, Any], want: dict[str, Any]) -> float:
  """The largest |w - reference| / |reference| of the arrays of all SAEs."""
  if got.keys() != want.keys() or not got:
    raise RuntimeError(f"the runs have other arrays: {[*got]}, {[*want]}")
  return max(
    float(np.linalg.norm(got[name] - w) / (np.linalg.norm(w) or 1))
    for name, w in want.items()
  )
