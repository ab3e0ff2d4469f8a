"""Two processes: they refuse together, fit, are killed, stopped and resumed.

One test, since each start of a process takes seconds.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from absl.testing import absltest
from safetensors import numpy as safetensors

import saejax
from saejax.data import loader
from saejax.data.store import create
from saejax.studies import train
from tests import clusters, pair, shared
from tests.experiments import script

STEPS = 300
EXPERIMENTS = shared.ROOT / "experiments"
LAUNCH = shared.ROOT / "launch"


class PairTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    draw = np.random.default_rng(0)
    order = np.arange(2_000, dtype=np.float32)[:, None] + np.zeros(4, "f4")
    sizes = {"bucket_rows": 512, "shard_rows": 256, "chunk_rows": 64}
    for name, x in (
      ("order", order),
      ("train", draw.laplace(size=(1_500, 8)).astype(np.float32)),
      ("held_out", draw.laplace(size=(300, 8)).astype(np.float32)),
    ):
      create.write_store(self.folder / name, {"x": x}, **sizes)

  def flags(self, run: str) -> list[str]:
    return [
      f"--store={self.folder / 'train'}",
      f"--held_out={self.folder / 'held_out'}",
      f"--run_dir={self.folder / run}",
      "--sae.n=16",
      "--sae.k=2",
      f"--train.mesh={','.join(map(str, pair.MESH))}",
      "--train.batch_rows=32",
      f"--train.steps={STEPS}",
      "--train.checkpoint_steps=50",
      "--train.log_steps=50",
    ]

  def start(self, *command: str, **more: str) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    given = os.environ.get("XLA_FLAGS", "")
    return subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      cwd=self.folder,
      env={
        **kept,
        "PYTHONPATH": str(shared.ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{given} --xla_force_host_platform_device_count=2",
        # What one start has compiled serves the next ones.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
      },
    )

  def ended(self, started: subprocess.Popen, wanted: int) -> str:
    """What it said; its exit code is as wanted."""
    said, _ = started.communicate(timeout=600)
    self.assertEqual(started.returncode, wanted, said)
    return said

  def until(self, is_so: Callable[[], Any], started: subprocess.Popen) -> None:
    """Waits for something, while the processes run."""
    while not is_so():
      if started.poll() is not None:
        self.fail(started.communicate()[0])
      time.sleep(0.02)

  def weights(self, sae: str) -> dict[str, np.ndarray]:
    return safetensors.load_file(self.folder / sae / "sae.safetensors")

  def test_two_processes_refuse_together_fit_as_one_and_resume(self):
    found = self.killed()
    self.check_refusals(found)
    self.check_batches(found)
    self.check_fit(found)
    step = self.stopped()
    # One process with all devices goes on.
    with mock.patch.object(train, "_report"):
      code, _, said = script.run("train", *self.flags("run"))
      self.assertEqual(code, 0, said)
      self.assertIn(f"resuming from step {step:,}\n", said)
      code, _, said = script.run("train", *self.flags("alone"))
      self.assertEqual(code, 0, said)
    ours = self.weights("run/saes/n16-k2-seed0")
    for name, wanted in self.weights("alone/saes/n16-k2-seed0").items():
      np.testing.assert_array_equal(ours[name], wanted, err_msg=name)
    # The flags that the run leaves say nothing of where it ran.
    kept = (self.folder / "run" / "run.flags").read_text()
    self.assertNotIn("distributed", kept)

  def killed(self) -> list[dict[str, Any]]:
    """What two processes of the local launcher find; one is killed in training."""
    started = self.start(
      sys.executable,
      str(EXPERIMENTS / "launch_local.py"),
      *("--processes=2", "--devices=2", "--"),
      str(shared.ROOT / "tests" / "pair.py"),
      *self.flags("run"),
    )
    line = started.stdout.readline()
    self.assertRegex(line, r"^started 2 processes: pids \d+, \d+$")
    pids = [int(pid) for pid in re.findall(r"\d+", line)[1:]]
    # The first checkpoint that both processes have completed.
    saved = self.folder / "run" / "n16" / "checkpoints"
    self.until(lambda: len(list(saved.glob("*/sums*.json"))) >= 2, started)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    said = self.ended(started, 75)
    self.assertLess(time.monotonic() - began, 25)  # twice the timeout
    self.assertIn("process 1 was lost: SIGKILL", said)
    found = re.findall(r"^\[\d\] found (.*)$", said, re.M)
    return sorted(map(json.loads, found), key=lambda own: own["index"])

  def check_refusals(self, found: list[dict[str, Any]]) -> None:
    other = "must be equal in all processes, and process 1 has"
    self.assertLen(found, 2)
    for own in found:
      self.assertEqual(own["first"], "run_dir=x: is in use; wait")
      self.assertRegex(own["agree"], "^a.c=0: must be equal .* process 1 has 1")
      remedy = "start all processes with the same command"
      self.assertEqual(own["flags"], f"train.seed=0: {other} 1; {remedy}")
      remedy = "install the same version on all hosts"
      self.assertEqual(own["code"], f'jax="0": {other} "1"; {remedy}')
      remedy = "give all processes the same files"
      self.assertEqual(own["store"], f'store="0": {other} "1"; {remedy}')
      self.assertRegex(own["rows"], "^rows=.*must be equal in all processes")
      self.assertRegex(own["mesh"], "train.mesh=.*must have all 4 devices")
      self.assertRegex(own["batch"], "must divide by the 4 devices of the data")
      rule = "must be one folder for all, and 1 of 2 processes see another"
      self.assertIn(f"/own/{own['index']}: {rule}", own["shared"])
      self.assertIsNone(own["same"])
    self.assertEqual([own["result"] for own in found], [7, None])
    # Nothing was written where settings, the folder or the rows were refused.
    for name in ("own", "other"):
      self.assertFalse((self.folder / name).exists(), name)
    self.assertEmpty(list((self.folder / "shown").glob("[!.]*")))

  def check_batches(self, found: list[dict[str, Any]]) -> None:
    """Parts of batches are put together as the batches of one process."""
    store = saejax.open_store(self.folder / "order")
    wanted = [
      float((b["x"][:, 0] * np.arange(pair.BATCH)).sum())
      for b in loader.batches(store, batch_rows=pair.BATCH, seed=0)
    ]
    self.assertLen(wanted, 2_000 // pair.BATCH)
    for own in found:
      np.testing.assert_allclose(own["batches"], wanted, rtol=1e-6)

  def check_fit(self, found: list[dict[str, Any]]) -> None:
    """The fit is that of one process on a mesh of the same shape."""
    sae, metrics = saejax.fit(
      pair.rows(), "batchtopk", mesh=pair.MESH, **pair.FIT
    )
    saejax.save(sae, self.folder / "one")
    two = self.weights("two")
    for name, wanted in self.weights("one").items():
      if name.startswith("activation"):  # estimated by each process for itself
        np.testing.assert_allclose(two[name], wanted, rtol=1e-6)
      else:  # two devices along each axis: sums of two, in any order
        np.testing.assert_array_equal(two[name], wanted, err_msg=name)
    np.testing.assert_allclose(found[0]["fvu"], metrics.fvu, rtol=1e-5)
    self.assertEqual(found[0]["fvu"], found[1]["fvu"])

  def stopped(self) -> int:
    """Resumes the run under SLURM, where all stop when one is asked to.

    Returns:
      The step that was saved.
    """
    clusters.write(self.folder / "bin")
    started = self.start(
      "bash",
      str(LAUNCH / "slurm.sbatch"),
      *("bash", "-c", 'echo $$ >pid-$SLURM_PROCID; exec "$0" "$@"'),
      *(sys.executable, str(EXPERIMENTS / "train.py"), *self.flags("run")),
      "--distributed.heartbeat_timeout_seconds=600",
      PATH=f"{self.folder / 'bin'}:{os.environ['PATH']}",
      SAEJAX_LAUNCH=str(LAUNCH),
      SLURM_JOB_ID=str(free_job()),
    )
    logs = [self.folder / "run" / "logs" / f"process-{i}.log" for i in (0, 1)]
    resumed = re.compile(r"resuming from (.*\n)+step \d")
    self.until(lambda: resumed.search(logs[1].read_text()), started)
    pid = int((self.folder / "pid-1").read_text())
    os.kill(pid, signal.SIGHUP)  # as after SIGTERM
    said = self.ended(started, 143)
    self.assertIn("the job is queued again", said)
    (first,) = re.findall(r"resuming from step ([\d,]+)", said)
    (step,) = re.findall(r"stopped by SIGTERM, saved at step ([\d,]+)", said)
    for process, log in enumerate(logs):
      self.assertIn(f"saved at step {step}\n", log.read_text())
      self.assertRegex(said, f"process {process} on .*: exit code 143\n")
    counts = [int(text.replace(",", "")) for text in (first, step)]
    self.assertEqual(counts[0] % 50, 0)
    self.assertBetween(counts[1], counts[0] + 1, STEPS - 1)
    return counts[1]


def free_job() -> int:
  """A job whose port is free: JAX derives that of the coordinator from it."""
  for job in range(os.getpid(), os.getpid() + 4096):
    with socket.socket() as probe:
      try:
        probe.bind(("localhost", 61440 + job % 4096))
      except OSError:
        continue
      return job
  raise RuntimeError("no free port")


if __name__ == "__main__":
  absltest.main()
