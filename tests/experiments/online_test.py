"""Training on rows as the model computes them, by the script."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import saejax
from benchmarks import kill_resume
from saejax.data import harvest, shared
from saejax.data.text import subject
from tests import shared as shared_files
from tests.experiments import corpora, script

SITES = ("layers.1.resid_post", "layers.4.resid_post")
HARVEST = (
  "--harvest.context=64",
  "--harvest.rows=4000",
  "--harvest.held_out_rows=1000",
  "--harvest.bucket_rows=1024",
  "--harvest.shard_rows=1024",
  "--harvest.chunk_rows=256",
  "--harvest.calibration_rows=256",
)
TRAIN = (
  "--sae.n=32",
  "--sae.k=4",
  "--sae.aux_weight=0",  # which takes half of the time to compile
  "--train.batch_rows=64",
  "--train.epochs=3",
  "--train.checkpoint_steps=30",
  "--train.log_steps=5",
)
BUFFER = ("--harvest.buffer_rows=1000", "--harvest.statistics_rows=1000")


class OnlineTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.model = shared_files.path("models/babyllama-105")
    self.texts = corpora.wikitext(self.folder)

  def flags(self, *more):
    return [
      f"--harvest.model={self.model}",
      f"--harvest.corpus={self.texts}",
      f"--harvest.dir={self.folder / 'stores'}",
      *HARVEST,
      *more,
    ]

  def train(self, run, *more):
    code, _, err = script.run("train", f"--run_dir={run}", *TRAIN, *more)
    self.assertEqual(code, 0, err)
    (point,) = json.loads((run / "results.json").read_text())["points"]
    return point

  def start(self, *flags):
    return subprocess.Popen(
      [sys.executable, "experiments/train.py", *flags],
      cwd=script.ROOT,
      env={**os.environ, "PYTHONPATH": str(script.ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def stop(self, run, number, *flags):
    """Stops a run as soon as a site has another complete checkpoint."""
    before = kill_resume.completed(run)
    process = self.start(*flags)
    while process.poll() is None and kill_resume.completed(run) <= before:
      time.sleep(0.002)
    process.send_signal(number)
    out, _ = process.communicate()
    self.assertNotEqual(process.returncode, 0, out)
    self.assertEmpty(list(run.rglob("points.json")), out)
    return process.returncode, out

  def test_with_the_whole_corpus_in_the_buffer_it_is_as_good_as_a_store(self):
    flags = self.flags("--harvest.layer=4")
    code, out, err = script.run("harvest", *flags)
    self.assertEqual(code, 0, err)
    store, held_out = out.split()
    stored = self.train(
      self.folder / "stored", f"--store={store}", f"--held_out={held_out}"
    )
    online = self.train(
      self.folder / "online",
      "--online",
      *flags,
      "--harvest.buffer_rows=10_000",
      "--harvest.statistics_rows=10_000",
    )
    self.assertAlmostEqual(online["fvu"], stored["fvu"], delta=0.01)
    self.assertEqual(online["rows"], stored["rows"])
    about = saejax.about(self.folder / "online/saes/n32-k4-seed0")
    self.assertEqual(about["held_out"]["store"], held_out)
    self.assertIn("of the first", about["train"]["online"]["statistics"])

  def test_sites_that_are_stopped_end_as_those_that_are_not(self):
    flags = ["--online", *self.flags(*BUFFER, *TRAIN)]
    flags.append(f"--harvest.sites={','.join(SITES)}")
    whole, stopped = self.folder / "whole", self.folder / "stopped"
    code, _, err = script.run("train", f"--run_dir={whole}", *flags)
    self.assertEqual(code, 0, err)
    again = (f"--run_dir={stopped}", *flags)
    code, out = self.stop(stopped, signal.SIGKILL, *again)
    self.assertEqual(code, -signal.SIGKILL, out)
    code, out = self.stop(stopped, signal.SIGTERM, *again)
    self.assertEqual(code, 128 + signal.SIGTERM, out)
    process = self.start(*again)
    out, _ = process.communicate()
    self.assertEqual(process.returncode, 0, out)
    one, two = (
      {
        str(path.relative_to(run)): kill_resume.content(path, run)
        for path in kill_resume.files(run)
        if "saes" in path.parts or path.name in ("metrics.jsonl", "points.json")
      }
      for run in (whole, stopped)
    )
    for site in SITES:
      self.assertTrue((whole / site / "results.json").exists())
      self.assertIn(f"{site}/n32/metrics.jsonl", one)
    self.assertEqual(two, one)

  def test_sites_share_every_forward_pass(self):
    read, counts = subject._Forward.read, []
    rows = {}
    for sites in (SITES[1:], SITES):
      config = harvest.OnlineConfig(
        model=str(self.model),
        corpus=str(self.texts),
        dir=str(self.folder / "stores"),
        context=64,
        rows=4000,
        held_out_rows=1000,
        buffer_rows=1000,
        sites=sites,
      )
      found = harvest.online_sites(config)
      with mock.patch.object(
        subject._Forward, "read", autospec=True, side_effect=read
      ) as counted:
        readers = shared.readers(
          [each for each, _ in found], batch_rows=64, seed=0
        )
        for _ in range(20):
          rows = [next(reader) for reader in readers]
        for reader in readers:
          reader.close()
      counts.append(counted.call_count)
    np.testing.assert_array_equal(rows[0]["row"], rows[1]["row"])
    self.assertFalse(np.array_equal(rows[0]["x"], rows[1]["x"]))
    self.assertLess(counts[1], counts[0] + 3)  # what was computed ahead differs

  @parameterized.parameters(
    (("--online", "--store=a"), "--store", "beside --online"),
    (("--online", "--held_out=a"), "--held_out", "beside --online"),
    (
      ("--store=a", "--held_out=b", "--harvest.buffer_rows=9"),
      "--harvest.buffer_rows",
      "--online",
    ),
    (
      ("--online", "--harvest.buffer_rows=100"),
      "--harvest.buffer_rows=100",
      "at least 128",
    ),
    (("--online", "--harvest.d=12"), "--harvest.d", "beside --online"),
    (("--online", "--train.lanes=2"), "--train.lanes=2", "beside --online"),
    (
      ("--online", "--train.batch_rows=8192"),
      "--train.batch_rows=8192",
      "at most 4000",
    ),
  )
  def test_contradictions_are_refused_by_name(self, flags, name, rule):
    given = self.flags() if "--online" in flags else []
    run = self.folder / "run"
    code, _, err = script.run(
      "train", *given, *TRAIN, f"--run_dir={run}", *flags
    )
    self.assertEqual(code, 2, err)
    line = err.splitlines()[-1]
    self.assertStartsWith(line, name)
    self.assertIn(rule, line)
    self.assertFalse(run.exists())


if __name__ == "__main__":
  absltest.main()
