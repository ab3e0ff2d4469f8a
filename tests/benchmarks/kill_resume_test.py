"""Tests of benchmarks/kill_resume.py, on a run that takes a second."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Harvests 40 files, then trains 40 steps, going on where it was killed. How it
# goes wrong when told to is what the benchmark is there to find; it does so
# whenever it is started again, wherever the kill came.
RUN = """
import json, os, pathlib, sys, time
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
run, stores = pathlib.Path(flags["run_dir"]), pathlib.Path(flags["dir"])
fault = flags["fault"]
stores.mkdir(parents=True, exist_ok=True)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "saes" / "a").mkdir(parents=True, exist_ok=True)
again = (run / "started").exists()
(run / "started").touch()

def write(path, text):
  path.with_name("new").write_text(text)
  os.replace(path.with_name("new"), path)

for i in range(40):
  path = stores / f"shard-{i}"
  if not path.exists():
    time.sleep(0.01)
    write(path, str(os.getpid() if fault == "store" and i == 30 else i))
write(stores / "meta.json", json.dumps({"rows": 40, "host": os.getpid()}))

checkpoint, metrics = run / "checkpoints" / "1", run / "metrics.jsonl"
state = json.loads(checkpoint.read_text()) if checkpoint.exists() else [0, 1]
lines = metrics.read_text().splitlines(True) if metrics.exists() else []
write(metrics, "".join(lines[: state[0]]))
for step in range(state[0] + 1, 41):
  time.sleep(0.01)
  wrong = again and step == 40
  state = [step, (state[1] * 7 + step + (wrong and fault == "SAE")) % 9973]
  with metrics.open("a") as f:
    line = json.dumps({"kind": "train", "step": step, "timing": time.time()})
    f.write((line + "\\n") * (2 if wrong and fault == "metrics" else 1))
  if step % 5 == 0:
    write(checkpoint, json.dumps(state))
write(run / "saes" / "a" / "weights", str(state[1]))
sys.exit(3 if fault == "code" else 0)
"""


class KillResumeTest(absltest.TestCase):
  def start(self, fault: str, kills: int = 6) -> tuple[int, str]:
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    (folder / "run.py").write_text(RUN)
    done = subprocess.run(
      [
        sys.executable,
        str(ROOT / "benchmarks" / "kill_resume.py"),
        f"--command=python {folder / 'run.py'}",
        f"--args=--fault={fault}",
        "--stores_flag=--dir",
        f"--kills={kills}",
        "--signals=SIGKILL",
        "--phases=harvest,training",
      ],
      capture_output=True,
      text=True,
      timeout=120,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout + done.stderr

  def test_a_run_that_resumes_exactly_passes_all_kills(self):
    code, output = self.start("none")
    self.assertEqual(code, 0, output)
    last = output.splitlines()[-1]
    self.assertStartsWith(last, "0 differences after 6 kills")
    self.assertIn("in harvest", last)
    self.assertIn("in training", last)

  def test_a_store_that_differs_is_found(self):
    code, output = self.start("store")
    self.assertEqual(code, 1, output)
    self.assertIn("store shard-30: other content", output)

  def test_weights_that_differ_are_found(self):
    code, output = self.start("SAE")
    self.assertEqual(code, 1, output)
    self.assertIn("SAE a/weights: other content", output)

  def test_a_step_recorded_twice_is_found(self):
    code, output = self.start("metrics")
    self.assertEqual(code, 1, output)
    self.assertIn("a step is there twice", output)

  def test_a_command_that_fails_is_not_taken_for_an_end(self):
    code, output = self.start("code")
    self.assertNotEqual(code, 0)
    self.assertIn("the command ended with 3", output)


if __name__ == "__main__":
  absltest.main()
