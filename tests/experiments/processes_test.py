"""Training in two processes: stopped, killed, and resumed by any number."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl.testing import absltest
from safetensors import numpy as safetensors

from saejax.data.store import create
from tests import shared

STEPS = 1_500
TRAIN = str(shared.ROOT / "experiments" / "train.py")


def flags(folder: pathlib.Path, run: str, *more: str) -> list[str]:
  return [
    TRAIN,
    f"--store={folder / 'train'}",
    f"--held_out={folder / 'held_out'}",
    f"--run_dir={folder / run}",
    "--sae.n=16",
    "--sae.k=2",
    "--train.mesh=1,2,1",
    "--train.batch_rows=32",
    f"--train.steps={STEPS}",
    "--train.checkpoint_steps=100",
    "--train.log_steps=100",
    *more,
  ]


def start(*command: str, devices: int = 1) -> subprocess.Popen:
  given = os.environ.get("XLA_FLAGS", "")
  forced = f"{given} --xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    [sys.executable, *command],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env={
      **os.environ,
      "PYTHONPATH": str(shared.ROOT),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": forced,
      # What one start has compiled serves the next ones.
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    },
  )


class TrainTest(absltest.TestCase):
  folder: pathlib.Path

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    temporary = tempfile.TemporaryDirectory()
    cls.folder = pathlib.Path(cls.enterClassContext(temporary))
    draw = np.random.default_rng(0)
    sizes = {"bucket_rows": 512, "shard_rows": 256, "chunk_rows": 64}
    for name, rows in (("train", 1_500), ("held_out", 300)):
      x = draw.laplace(size=(rows, 8)).astype(np.float32)
      create.write_store(cls.folder / name, {"x": x}, **sizes)
    # One process with the two devices.
    alone = start(*flags(cls.folder, "alone"), devices=2)
    said = alone.communicate(timeout=600)[1]
    if alone.returncode:
      raise AssertionError(said)

  def launch(self, run: str, heartbeat: int = 600) -> subprocess.Popen:
    """Two processes of one device each."""
    script = str(shared.ROOT / "experiments" / "launch_local.py")
    wait = f"--heartbeat_timeout_seconds={heartbeat}"
    return start(script, "--processes=2", wait, "--", *flags(self.folder, run))

  def pids(self, started: subprocess.Popen) -> list[int]:
    """Those of the processes, which the launcher says first."""
    line = started.stderr.readline()
    self.assertRegex(line, r"^started 2 processes: pids \d+, \d+$")
    return [int(pid) for pid in re.findall(r"\d+", line)[1:]]

  def ended(self, started: subprocess.Popen, wanted: int = 0) -> str:
    """What it said; its exit code is as wanted."""
    _, said = started.communicate(timeout=600)
    self.assertEqual(started.returncode, wanted, said)
    return said

  def until_saved(self, run: str, started: subprocess.Popen) -> None:
    """Waits for the first checkpoint that both processes have completed."""
    saved = self.folder / run / "n16" / "checkpoints"
    while len(list(saved.glob("*/sums*.json"))) < 2:
      if started.poll() is not None:
        self.fail(self.ended(started))
      time.sleep(0.02)

  def weights(self, run: str) -> dict[str, np.ndarray]:
    path = self.folder / run / "saes" / "n16-k2-seed0" / "sae.safetensors"
    return safetensors.load_file(path)

  def test_a_run_is_killed_stopped_and_resumed_by_other_numbers(self):
    # One of two is killed.
    started = self.launch("run", heartbeat=10)
    pids = self.pids(started)
    self.until_saved("run", started)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    said = self.ended(started, 75)
    self.assertLess(time.monotonic() - began, 25)  # twice the timeout
    self.assertIn("process 1 was lost: SIGKILL", said)
    # The same command resumes, and all stop where one is asked to.
    started = self.launch("run")
    pids = self.pids(started)
    logs = self.folder / "run" / "logs"
    resumed = re.compile(r"resuming from (.*\n)+step \d")
    while not resumed.search((logs / "process-1.log").read_text()):
      self.assertIsNone(started.poll())
      time.sleep(0.02)
    os.kill(pids[1], signal.SIGINT)  # as after SIGTERM
    said = self.ended(started, 143)
    (first,) = re.findall(r"resuming from step ([\d,]+)", said)
    (step,) = re.findall(r"stopped by SIGTERM, saved at step ([\d,]+)", said)
    counts = [int(text.replace(",", "")) for text in (first, step)]
    self.assertEqual(counts[0] % 100, 0)
    self.assertBetween(counts[1], counts[0] + 1, STEPS - 1)
    for process in range(2):
      log = (logs / f"process-{process}.log").read_text()
      self.assertIn(f"saved at step {step}\n", log)
    # One process goes on.
    said = self.ended(start(*flags(self.folder, "run"), devices=2))
    self.assertIn(f"resuming from step {step}\n", said)
    found = self.weights("run")
    for name, wanted in self.weights("alone").items():
      np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    # The flags that the run leaves say nothing of where it ran.
    kept = (self.folder / "run" / "run.flags").read_text()
    self.assertNotIn("distributed", kept)

  def test_processes_of_other_flags_are_refused_before_anything_is_written(
    self,
  ):
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      port = probe.getsockname()[1]
    started = [
      start(
        *flags(self.folder, "refused", f"--train.seed={seed}"),
        f"--distributed.coordinator=localhost:{port}",
        "--distributed.processes=2",
        f"--distributed.process={seed}",
      )
      for seed in range(2)
    ]
    for process in started:
      said = self.ended(process, 2)
      self.assertIn(
        "--train.seed=0: must be equal in all processes, and process 1 has 1; "
        "start all processes with the same command",
        said,
      )
    self.assertFalse((self.folder / "refused").exists())


if __name__ == "__main__":
  absltest.main()
