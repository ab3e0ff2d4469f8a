"""Tests of kernels/topk/select.py where scores are split over eight devices."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels import mesh
from saejax.kernels.topk import select
from tests import compiled
from tests.kernels import select_test

B, N = 16, 32
SHAPES = [(8, 1), (1, 8), (2, 4)]  # data, latent
COUNTS = {
  (-1,): [3, np.arange(B)[:, None] * 2 - 1],
  (0,): [2, np.arange(N) - 2],
  (0, 1): [0, 1, 100, B * N - 1, B * N + 5],
}


def scores(kind):
  with mock.patch.multiple(select_test, B=B, N=N):
    a = select_test.scores(kind)
  if kind == "half":  # ties on every device, and larger ones on some
    a = np.where(a > 1, a, 0).astype(np.float32)
  return a


def on(shape, f):
  """f, compiled for a mesh of that shape."""
  devices = jax.make_mesh(
    shape,
    (mesh.DATA, mesh.LATENT),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )

  def run(*args):
    with jax.set_mesh(devices):
      return jax.block_until_ready(jax.jit(f)(*args))

  return run


class LargestTest(parameterized.TestCase):
  @parameterized.product(
    shape=SHAPES, axes=list(COUNTS), two_words=[False, True]
  )
  def test_equals_a_stable_sort_for_every_count(self, shape, axes, two_words):
    select_ = on(shape, lambda a, c: select.largest(a, c, axes))
    words = {"ONE_WORD": 0 if two_words else select.ONE_WORD}
    if two_words:
      words["word_bits"] = lambda shape: 2
    with mock.patch.multiple(select, **words):
      for kind in ("normal", "ties", "equal", "half"):
        for count in COUNTS[axes]:
          a, count = scores(kind), np.asarray(count, np.float32)
          np.testing.assert_array_equal(
            select_(a, count),
            select_test.largest(a, count, axes),
            err_msg=f"{kind} {count}",
          )

  def test_stacked_members_are_selected_alike(self):
    a = np.stack([scores("ties"), scores("half")])
    both = jax.vmap(lambda a: select.largest(a, 40, (0, 1)))
    want = [select_test.largest(each, np.asarray(40), (0, 1)) for each in a]
    np.testing.assert_array_equal(on((2, 4), both)(a), np.stack(want))

  def test_no_device_holds_the_scores_of_others(self):
    where = jax.make_mesh(
      (1, 8),
      (mesh.DATA, mesh.LATENT),
      axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    a = jax.ShapeDtypeStruct(
      (B, N),
      jnp.float32,
      sharding=jax.NamedSharding(where, jax.P(None, mesh.LATENT)),
    )
    with jax.set_mesh(where):
      program = jax.jit(lambda a: select.largest(a, 40, (0, 1)))
      text = program.lower(a).compile().as_text()
    self.assertIn((B, N // 8), compiled.arrays(text))
    self.assertNotIn((B, N), compiled.arrays(text))


if __name__ == "__main__":
  absltest.main()
