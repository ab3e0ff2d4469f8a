"""benchmarks/scaling_efficiency.py finds what differs; its result is whole."""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from benchmarks import (
  scaling_efficiency,
  scaling_exchanges,
  scaling_values,
)
from benchmarks.scaling_cases import CASES
from saejax.errors import InputError
from saejax.recipes import catalogue

RESULT = pathlib.Path(scaling_efficiency.__file__).parent / "results"
CELL = {
  "start": True,
  "weights": 1e-6,
  "metrics": 1e-6,
  "noise": None,
  "dead": True,
  "counts": 0,
  "far": 0,
}


def committed():
  return json.loads((RESULT / "scaling-efficiency.json").read_text())


class ScalingTest(parameterized.TestCase):
  @parameterized.parameters(
    ("start", False),
    ("weights", 2e-5),
    ("weights", float("nan")),
    ("metrics", float("inf")),
    ("dead", False),
    ("counts", 1),
    ("far", 1),
  )
  def test_a_difference_fails(self, name, value):
    self.assertTrue(scaling_values.agrees(CELL))
    cell = {**CELL, name: value}
    self.assertFalse(scaling_values.agrees(cell))
    found = {"values": {"topk": {"1,8,1": cell}}}
    self.assertEqual(scaling_efficiency.failures(found), ["topk on 1,8,1"])

  def test_one_device_that_is_as_sensitive_explains_it(self):
    noise = {"weights": 1e-3, "metrics": 0, "counts": 1, "dead": False}
    cell = {**CELL, "weights": 1e-3, "counts": 1, "dead": False}
    self.assertTrue(scaling_values.agrees({**cell, "noise": noise}))
    for name, less in {"weights": 1e-4, "counts": 0, "dead": True}.items():
      found = {**cell, "noise": {**noise, name: less}}
      self.assertFalse(scaling_values.agrees(found), name)

  def test_metrics_that_only_one_has_differ(self):
    nan = np.asarray([[1.0], [np.nan]])
    self.assertEqual(scaling_values.difference(nan, nan), 0)
    self.assertEqual(scaling_values.difference(np.ones((2, 1)), nan), np.inf)

  def test_the_committed_result_has_all_methods_and_meshes_and_agrees(self):
    found = committed()
    self.assertEqual([*found["values"]], [*CASES])
    for name, row in found["values"].items():
      shapes = scaling_values.meshes(name)
      self.assertEqual([*row], [",".join(map(str, s)) for s in shapes], name)
    self.assertContainsSubset(catalogue.METHODS, CASES)
    self.assertEqual(scaling_efficiency.failures(found), [])
    self.assertEqual({r["processes"] for r in found["processes"]}, {2, 4})

  def test_topk_exchanges_its_candidates_and_its_reconstruction(self):
    sizes, shards = scaling_exchanges.SIZES, scaling_exchanges.MESH[2]
    code = [2, sizes.rows, shards * sizes.k]
    once = {
      "all-gather": [code],
      "all-reduce": [[sizes.rows, sizes.d]],
    }
    rows = [r for r in committed()["exchanges"] if r["method"] == "topk"]
    for row, times in zip(rows, (1, 2), strict=True):
      want = {kind: shapes * times for kind, shapes in once.items()}
      self.assertEqual(row["activations"], want)
      self.assertEqual(row["activation_bytes"], row["least"])

  def test_refuses_unknown_cases(self):
    with self.assertRaisesRegex(InputError, "nonsense"):
      scaling_efficiency.Config(cases=("nonsense",))


if __name__ == "__main__":
  absltest.main()
