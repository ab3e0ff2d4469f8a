"""Methods that read more of a row than x train from a store and resume."""

import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.batches import StoreBatches
from saejax.data.store import create
from saejax.recipes import budgets, common, conditioned, contrastive, row_sparse
from saejax.sae.context import as_batch
from saejax.training import fit, loop

ROWS, D, N, BATCH, STEPS = 400, 4, 8, 50, 6

X = np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)
COND = np.arange(ROWS, dtype=np.int32) % 3
OWN = {"dead_after_tokens": 1000}
METHODS = {
  "topk": (lambda: row_sparse.topk(D, N, 2, **OWN), {"x": X}),
  "tide": (
    lambda: conditioned.tide(D, N, 2, timesteps=3, **OWN),
    {"x": X, "cond": COND},
  ),
  "layergroup": (
    lambda: conditioned.layergroup(D, N, 2, scale=jnp.ones(3), **OWN),
    {"x": X, "cond": COND},
  ),
  "transcoder": (
    lambda: row_sparse.topk(D, N, 2, target=common.Target(d=3), **OWN),
    {"x": X, "target": X[:, :3] * 2},
  ),
  "csae": (
    lambda: contrastive.csae(D, N, steps=STEPS, **OWN),
    {"x": np.stack([X, X + 1], axis=1)},
  ),
  "adaptivek": (
    lambda: budgets.adaptivek(D, N, steps=STEPS, min_k=1, max_k=4, **OWN),
    {"x": X, "score": np.abs(X[:, 0])},
  ),
}


class Stop(Exception):
  pass


class Stopping:
  """A stream that ends in an exception before the batch of a step."""

  def __init__(self, stream, at):
    self._stream, self._left = stream, at

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def __next__(self):
    if not self._left:
      raise Stop
    self._left -= 1
    return next(self._stream)


class StoreColumnsTest(parameterized.TestCase):
  def stream(self, name):
    path = pathlib.Path(self.create_tempdir().full_path) / "store"
    sizes = {"bucket_rows": 128, "shard_rows": 64, "chunk_rows": 32}
    store = create.write_store(path, METHODS[name][1], **sizes)
    return lambda: StoreBatches(store, batch_rows=BATCH, seed=0)

  def train(self, name, stream, folder):
    return loop.train(
      lambda k: METHODS[name][0](),
      [fit.member(k=2)],
      stream,
      config=loop.TrainConfig(batch_rows=BATCH, checkpoint_steps=2),
      folder=folder,
      total_steps=STEPS,
      fingerprint={},
      stream=io.StringIO(),
    )[0].sae

  @parameterized.parameters(*METHODS)
  def test_every_field_of_the_recipe_comes_from_the_store(self, name):
    recipe, columns = METHODS[name]
    stream = self.stream(name)()
    recipe().check(stream.fields, 2)
    batch = next(stream)
    found = as_batch(batch)
    for field, values in columns.items():
      got = getattr(found, field)
      self.assertEqual(got.dtype, values.dtype)
      self.assertEqual(got.shape, (BATCH, *values.shape[1:]))
    sample = stream.sample(100)
    self.assertEqual(set(sample), set(columns))
    self.assertLen({len(values) for values in sample.values()}, 1)
    stream.close()

  @parameterized.parameters("tide", "transcoder")
  def test_a_stopped_run_ends_with_the_same_weights(self, name):
    make = self.stream(name)
    folder = pathlib.Path(self.create_tempdir().full_path)
    whole = self.train(name, make(), folder / "whole")
    with self.assertRaises(Stop):
      self.train(name, Stopping(make(), 5), folder / "stopped")
    again = self.train(name, make(), folder / "stopped")
    jax.tree.map(np.testing.assert_array_equal, again, whole)


if __name__ == "__main__":
  absltest.main()
