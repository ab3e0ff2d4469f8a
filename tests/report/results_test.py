"""Tests of saejax.report.results and machine."""

import csv
import dataclasses
import io
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax import errors, machine
from saejax.evals import scaling_law
from saejax.report import results
from tests.report import samples


@dataclasses.dataclass(frozen=True)
class Inner:
  n: tuple[int, ...] = (512, 1024)


@dataclasses.dataclass(frozen=True)
class Config:
  run_dir: str = "runs/x"
  sae: Inner = Inner()


class ResultsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def test_written_results_have_all_that_was_promised(self):
    fit = scaling_law.fit(samples.points(), resamples=20)
    found = results.collect(config=Config(), points=samples.points(), fit=fit)
    results.write(found, self.folder)
    read = results.read(self.folder)
    self.assertEqual(
      read["config"], {"run_dir": "runs/x", "sae": {"n": [512, 1024]}}
    )
    self.assertLen(read["points"], 9)
    self.assertContainsSubset(
      {
        "n",
        "k",
        "seed",
        "tokens",
        "nmse",
        "fvu",
        "l0",
        "dead",
        "cosine",
        "seconds",
        "group_seconds",
      },
      read["points"][0],
    )
    self.assertContainsSubset(
      {*scaling_law.PARAMETERS, "r2", "intervals", "holdout_error"},
      read["fit"],
    )
    self.assertEqual(set(read["fit"]["intervals"]), set(scaling_law.PARAMETERS))
    for low, high in read["fit"]["intervals"].values():
      self.assertLessEqual(low, high)
    rebuilt = [read["fit"][name] for name in scaling_law.PARAMETERS]
    for p in read["points"]:
      got = scaling_law.surface(np.array(rebuilt), p["n"], p["k"])
      self.assertAlmostEqual(float(got), p["nmse"], places=4)

  def test_without_a_fit_the_reason_is_written(self):
    found = results.collect(
      config=Config(), points=samples.points()[:2], fit_reason="too few"
    )
    results.write(found, self.folder)
    read = results.read(self.folder)
    self.assertIsNone(read["fit"])
    self.assertEqual(read["fit_reason"], "too few")

  def test_json_is_strict_whatever_the_numbers(self):
    odd = samples.points()[0] | {
      "nmse": float("nan"),
      "fvu": float("inf"),
      "l0": np.float32(3.5),
      "dead": jnp.asarray(0.25),
      "tokens": np.int64(7),
      "seconds": np.array([1.0, np.nan]),
    }
    results.write(
      results.collect(config={"p": pathlib.Path("a")}, points=[odd]),
      self.folder,
    )
    text = (self.folder / results.JSON).read_text()

    def refuse(token):
      self.fail(f"{token} is not JSON")

    (read,) = json.loads(text, parse_constant=refuse)["points"]
    self.assertIsNone(read["nmse"])
    self.assertIsNone(read["fvu"])
    self.assertEqual(read["l0"], 3.5)
    self.assertEqual(read["dead"], 0.25)
    self.assertEqual(read["tokens"], 7)
    self.assertEqual(read["seconds"], [1.0, None])

  def test_csv_has_a_row_a_point_with_scalars_only(self):
    some = samples.points()
    some[1]["nmse"] = float("nan")
    some[2]["extra"] = "a,b"
    rows = list(csv.DictReader(io.StringIO(results.table(some))))
    self.assertLen(rows, 9)
    self.assertEqual(list(rows[0])[:3], ["n", "k", "seed"])
    self.assertEqual(list(rows[0])[-1], "extra")
    self.assertNotIn("density", rows[0])
    self.assertEqual(float(rows[0]["nmse"]), some[0]["nmse"])
    self.assertEqual(rows[1]["nmse"], "")
    self.assertEqual(rows[2]["extra"], "a,b")

  def test_a_run_without_points_is_written_too(self):
    results.write(results.collect(config={}, points=[]), self.folder)
    self.assertEqual(results.read(self.folder)["points"], [])
    text = (self.folder / results.CSV).read_text()
    self.assertStartsWith(text, "n,k,seed")

  def test_a_folder_that_is_a_file_is_refused(self):
    file = self.folder / "file"
    file.write_text("keep")
    with self.assertRaisesRegex(errors.InputError, "run_dir="):
      results.write(results.collect(config={}, points=[]), file)
    self.assertEqual(file.read_text(), "keep")

  def test_reading_what_is_not_there_names_the_folder(self):
    with self.assertRaisesRegex(errors.InputError, "run_dir=.*results.json"):
      results.read(self.folder)


class EnvironmentTest(absltest.TestCase):
  def test_says_versions_and_hardware(self):
    found = machine.environment()
    self.assertEqual(found["jax"], jax.__version__)
    self.assertEqual(found["saejax"], saejax.__version__)
    self.assertEqual(found["python"], sys.version.split()[0])
    self.assertEqual(found["device_kind"], jax.devices()[0].device_kind)
    self.assertBetween(found["cores"], 1, 100_000)
    self.assertTrue(found["cpu"])
    json.dumps(found, allow_nan=False)

  def test_the_commit_is_one_or_absent(self):
    found = machine.commit()
    if found is not None:
      self.assertRegex(found, r"^[0-9a-f]{40,64}\+?$")


if __name__ == "__main__":
  absltest.main()
