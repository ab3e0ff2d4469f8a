"""Stores: what is written is read, and what is damaged is refused."""

import multiprocessing
import pathlib
import pickle
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create, reader
from saejax.errors import InputError
from tests import shared

SMALL = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 8}


def rows(n, d=6, dtype=np.float32):
  """Row i holds values that no other row holds."""
  x = np.arange(n, dtype=np.float32)[:, None] + np.arange(d) / 100
  return x.astype(dtype)


class StoreTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "store"

  def write(self, n=150, **changes):
    index = np.arange(n)
    columns = {"x": rows(n), "doc": index // 10, "tok": index}
    return create.write_store(self.path, columns, **(SMALL | changes))

  @parameterized.product(
    n=(1, 64, 150, 257), dtype=(np.float32, jnp.bfloat16), seed=(None, 3)
  )
  def test_every_row_is_there_once_with_its_columns(self, n, dtype, seed):
    x = rows(n, dtype=dtype)
    index = np.arange(n)
    columns = {
      "x": x,
      "target": np.stack([x, -x], axis=1),
      "doc": index * 7,
      "weight": (index / 3).astype(np.float16),
      "tok": index.astype(np.int32),
      "keep": index % 2 == 0,
    }
    found = create.write_store(self.path, columns, shuffle_seed=seed, **SMALL)
    self.assertEqual(found.rows, n)
    self.assertEqual(found.columns["x"].dtype, np.dtype(dtype).name)
    self.assertEqual(found.columns["target"].shape, (2, 6))
    self.assertEqual(found.trained, ("x", "target", "weight"))
    all_ = found.whole(*columns)
    order = all_["tok"]
    np.testing.assert_array_equal(np.sort(order), index)
    for name, values in columns.items():
      self.assertEqual(all_[name].dtype, values.dtype, name)
      np.testing.assert_array_equal(all_[name], values[order], name)
    if seed is None:
      np.testing.assert_array_equal(order, index)
    elif n > 100:
      self.assertFalse((order == index).all())
    some = np.random.default_rng(0).integers(0, n, 20)
    for name, values in found.take(some).items():
      np.testing.assert_array_equal(values, all_[name][some], name)
    self.assertEqual(set(found.provenance(some)), {"doc", "tok", "keep"})

  def test_moments_are_kept_of_each_float_column_in_its_shape(self):
    x = np.random.default_rng(0).normal(size=(150, 2, 3)).astype(np.float32)
    score = np.arange(150, dtype=np.float32)
    found = create.write_store(
      self.path, {"x": x, "score": score, "doc": np.arange(150)}, **SMALL
    )
    self.assertEqual(set(found.moments), {"x", "score"})
    exact = x.astype(np.float64)
    np.testing.assert_allclose(
      found.moments["x"]["mean"], exact.mean(0), atol=1e-12
    )
    np.testing.assert_allclose(found.moments["score"]["mean"], 74.5)
    np.testing.assert_allclose(
      found.moments["score"]["variance"], score.var(), rtol=1e-6
    )
    # Over all axes but d, for preps that treat every vector alike.
    flat = exact.reshape(-1, 3)
    np.testing.assert_allclose(found.stats["mean"], flat.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.stats["variance"], flat.var(0), rtol=1e-9)
    square = (flat**2).sum(-1).mean()
    self.assertAlmostEqual(found.stats["mean_square"], square, places=9)

  def test_rows_of_zeros_are_rows(self):
    found = create.write_store(
      self.path, np.zeros((40, 3), np.float32), **SMALL
    )
    np.testing.assert_array_equal(found.read(0, 40), np.zeros((40, 3)))

  def test_rows_that_are_not_finite_pass_unchanged(self):
    x = rows(40)
    x[3, 2], x[9, 0] = np.nan, np.inf
    found = create.write_store(self.path, x, shuffle_seed=None, **SMALL)
    np.testing.assert_array_equal(found.read(0, 40), x)
    self.assertEqual(found.stats["nonfinite_rows"], 2)
    self.assertEqual(found.stats["infinite_rows"], 1)
    self.assertTrue(np.isfinite(found.stats["mean"]).all())

  def test_rows_beyond_the_last_do_not_read_as_zeros(self):
    found = self.write(n=150)
    for read in (
      lambda: found.read(140, 151),
      lambda: found.read(-1, 3),
      lambda: found.take([150]),
      lambda: found.take([-1]),
    ):
      with self.assertRaises(IndexError):
        read()

  @parameterized.parameters((0, 1), (5, 150), (7, 9), (62, 66), (144, 150))
  def test_any_interval_is_read(self, start, stop):
    found = self.write()
    whole = found.whole("x")["x"]
    np.testing.assert_array_equal(found.read(start, stop), whole[start:stop])

  def test_pickles_without_handles(self):
    found = self.write()
    found.read(0, 8)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.read(0, 150), found.read(0, 150))

  # --- refusals --------------------------------------------------------------

  def refuse(self, message, **arguments):
    with self.assertRaisesRegex(InputError, message) as caught:
      reader.open(self.path, **arguments)
    self.assertNotIn("\n", str(caught.exception))
    return caught.exception

  def test_no_store(self):
    self.refuse("path=.*must be a store")

  def test_half_written_store(self):
    self.write()
    (self.path / "manifest.json").unlink()
    self.refuse("must be complete.*repeat the command")

  @parameterized.parameters(
    ("model", "minilm"),
    ("layer", 4),
    ("point", "mlp_out"),
    ("d", 7),
    ("split", "held_out"),
  )
  def test_another_model_or_site_or_width(self, field, value):
    about = {
      "model": {"name": "tiny"},
      "site": {"layer": 3, "point": "resid_post"},
    }
    self.write(about=about, split="train")
    right = {
      "model": "tiny",
      "layer": 3,
      "point": "resid_post",
      "d": 6,
      "split": "train",
    }
    reader.open(self.path, expect=right)
    error = self.refuse(f"{right[field]}", expect=right | {field: value})
    self.assertEqual(error.field, "expect")
    self.assertEqual(error.value, f"{field}={value}")

  def test_a_column_that_is_not_there(self):
    with self.assertRaisesRegex(InputError, "columns=cond: .*has doc, tok, x"):
      self.write().read(0, 5, "cond")

  # --- processes -------------------------------------------------------------

  def test_a_forked_child_is_refused_before_it_aborts(self):
    self.write()
    # A process of its own: JAX warns when its process forks.
    code = f"""
      import os, sys
      from saejax.data.store import reader as store
      from saejax.errors import InputError
      found = store.open({str(self.path)!r})
      found.read(0, 8)
      child = os.fork()
      if not child:
        refused = 0
        for use in (
          lambda: store.open({str(self.path)!r}),
          lambda: found.read(0, 8),
          lambda: found.provenance([1]),
        ):
          try:
            use()
          except InputError as error:
            refused += "fork" in str(error)
        os._exit(10 + refused)
      sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code)], cwd=shared.ROOT
    )
    self.assertEqual(done.returncode, 13)

  def test_a_spawned_child_reads(self):
    found = self.write()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
      got = pool.apply(found.read, (0, 8))
    np.testing.assert_array_equal(got, found.read(0, 8))


if __name__ == "__main__":
  absltest.main()
