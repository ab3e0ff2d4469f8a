"""The plan of a run, by the script."""

import dataclasses
import json
import os
import pathlib
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create
from saejax.plans import chips, topologies
from tests.experiments import script

SMALL = ("--sae.d=32", "--sae.n=64,128", "--sae.k=2,4", "--train.batch_rows=64")


class PlanTest(parameterized.TestCase):
  def test_it_prints_a_plan_of_each_n_and_writes_the_records(self):
    file = pathlib.Path(self.create_tempdir().full_path) / "plan.json"
    code, out, err = script.run(
      "plan", *SMALL, "--rows=6400", f"--write={file}"
    )
    self.assertEqual(code, 0, err)
    for text in ("n 64, d 32, k 4, 2 SAEs", "memory", "in 100 steps"):
      self.assertIn(text, out)
    first, second = json.loads(file.read_text())
    self.assertEqual((first["n"], second["n"]), (64, 128))
    self.assertEqual(first["run"]["store_bytes"], 6400 * (2 * 32 + 16))
    self.assertGreater(second["memory"]["total"], first["memory"]["total"])
    self.assertLess(second["memory"]["total"], 2**24)

  def test_a_dry_run_prints_the_plan_writes_nothing_and_starts_no_processes(
    self,
  ):
    folder = pathlib.Path(self.create_tempdir().full_path)
    x = np.random.default_rng(0).normal(size=(640, 32)).astype(np.float32)
    sizes = {"bucket_rows": 512, "shard_rows": 256, "chunk_rows": 64}
    create.write_store(folder / "store", {"x": x}, **sizes)
    create.write_store(folder / "held_out", {"x": -x[:128]}, **sizes)
    environment = {"JAX_PLATFORMS": "cpu", "SLURM_NTASKS": "1"}
    with (
      mock.patch.dict(os.environ, environment),
      mock.patch.object(jax.distributed, "initialize") as started,
    ):
      code, out, err = script.run(
        "train",
        f"--store={folder / 'store'}",
        f"--held_out={folder / 'held_out'}",
        f"--run_dir={folder / 'run'}",
        *("--dry_run", "--sae.n=64", "--sae.k=2,4", "--train.batch_rows=64"),
      )
    self.assertEqual(code, 0, err)
    self.assertIn("n 64, d 32, k 4, 2 SAEs, 64 rows a step", out)
    started.assert_not_called()
    self.assertFalse((folder / "run").exists())

  def test_what_does_not_fit_is_refused_with_what_would_help(self):
    file = pathlib.Path(self.create_tempdir().full_path) / "plan.json"
    chip = dataclasses.replace(chips.TPUS["v5e"], memory=2**16)
    here = topologies.Topology(
      name="v5e:1x1", chip=chip, devices=tuple(jax.devices()[:1])
    )
    with mock.patch.object(topologies, "find", return_value=here):
      code, out, err = script.run("plan", *SMALL, f"--write={file}")
    self.assertEqual(code, 2, err)
    self.assertIn("does not fit", out)
    line = err.splitlines()[-1]
    for part in ("topology=v5e:1x1", "n=64 needs", "--train.batch_rows to 32"):
      self.assertIn(part, line)
    self.assertRegex(line, "or use --topology=v5e:[248]x")
    self.assertFalse(file.exists())

  @parameterized.parameters(
    (("--sae.k=2",), "sae.d"),
    (("--sae.d=32", "--sae.k=2", "--topology=v5p-256"), "topology"),
    (("--sae.d=32", "--sae.k=2", "--train.mesh=1,2,1"), "train.mesh"),
    (("--sae.d=32", "--sae.k=2", "--rows=5"), "rows"),
  )
  def test_bad_input_is_one_line_and_nothing_is_written(self, flags, name):
    file = pathlib.Path(self.create_tempdir().full_path) / "plan.json"
    code, _, err = script.run("plan", *flags, f"--write={file}")
    self.assertEqual(code, 2, err)
    self.assertIn(name, err.splitlines()[-1])
    self.assertFalse(file.exists())


if __name__ == "__main__":
  absltest.main()
