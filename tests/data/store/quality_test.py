"""Rows that nothing can be learned from are refused by the store's name."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create, quality
from saejax.errors import InputError


def normal(scale=1.0):
  return np.random.default_rng(0).normal(size=(2000, 4)) * scale


def overflowed():
  x = normal().astype(np.float16)
  x[5, 1] = np.inf
  return x


def outliers():
  x = normal()
  x[7] *= 2000
  return x


class CheckRowsTest(parameterized.TestCase):
  def store(self, x):
    path = pathlib.Path(self.create_tempdir().full_path) / "named"
    if x.dtype == np.float64:
      x = x.astype(np.float32)
    return create.write_store(path, x)

  @parameterized.named_parameters(
    ("zero", np.zeros((50, 3)), "rows are zero"),
    ("constant", np.full((50, 3), 0.1), "rows are equal"),
    ("one row", np.ones((1, 3)), "rows are equal"),
    ("nan", np.full((50, 3), np.nan), "all 50 rows have a non-finite"),
    ("overflowed", overflowed(), "1 of 2000 rows overflowed float16"),
    ("tiny", normal(1e-30), "mean of .x..2"),
    ("huge", normal(1e16), "mean of .x..2"),
  )
  def test_refused_by_name(self, x, message):
    with self.assertRaisesRegex(InputError, f"^store=.*named: .*{message}"):
      quality.check_rows(self.store(x))

  @parameterized.named_parameters(
    ("normal", normal(), None),
    ("small", normal(1e-6), None),
    ("outliers", outliers(), "times the median"),
    ("offset", normal() + [0, 0, 100, 0], "its standard deviation"),
    (
      "some nan",
      np.where(np.arange(2000)[:, None] == 3, np.nan, normal()),
      "1",
    ),
  )
  def test_warned_of(self, x, message):
    store = self.store(x)
    quality.check_rows(store)
    found = quality.warnings(store)
    self.assertLen(found, 0 if message is None else 1)
    for line in found:
      self.assertRegex(line, f"named: .*{message}")


if __name__ == "__main__":
  absltest.main()
