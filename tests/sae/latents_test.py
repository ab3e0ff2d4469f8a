"""Tests of saejax.sae.latents: three forms of the same latents."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae.latents import DenseLatents, EntryLatents, SparseLatents
from tests import toy

N, D = 9, 5
VALUES = jnp.asarray([[[1.0, 2.0], [0.0, -3.0]], [[0.5, 0.0], [0.0, 0.0]]])
INDICES = jnp.asarray([[[4, 0], [8, 4]], [[7, 8], [0, 0]]])
Z = np.zeros((2, 2, N), np.float32)
Z[0, 0, 4], Z[0, 0, 0], Z[0, 1, 4], Z[1, 0, 7] = 1, 2, -3, 0.5
FORMS = {
  "sparse": SparseLatents(VALUES, INDICES, N),
  "entries": EntryLatents(
    jnp.asarray([1.0, 2.0, -3.0, 0.5, 0.0]),
    jnp.asarray([0, 0, 1, 2, 3]),
    jnp.asarray([4, 0, 4, 7, 2]),
    N,
    (2, 2),
  ),
  "dense": DenseLatents(jnp.asarray(Z)),
}


class LatentsTest(parameterized.TestCase):
  @parameterized.parameters(*FORMS)
  def test_dense_holds_every_value_in_its_place(self, form):
    np.testing.assert_array_equal(jax.jit(lambda f: f.dense())(FORMS[form]), Z)

  @parameterized.product(form=[*FORMS], dtype=["float32", "bfloat16"])
  def test_decode_is_the_product_with_the_dictionary(self, form, dtype):
    W = toy.rows(N, D)
    got = jax.jit(lambda f: f.decode(W, dtype))(FORMS[form])
    self.assertEqual(got.dtype, jnp.float32)
    rounded = np.asarray(W.astype(dtype), np.float32)
    np.testing.assert_allclose(got, Z @ rounded, atol=1e-5)

  @parameterized.parameters(*FORMS)
  def test_runs_of_latents_are_decoded_apart(self, form):
    W = toy.rows(N, D)
    ends = (0, 4, 4, 8)
    got = jax.jit(lambda f: f.decode_runs(W, ends))(FORMS[form])
    self.assertLen(got, 4)
    starts = (0, *ends[:-1])
    for part, start, end in zip(got, starts, ends, strict=True):
      want = Z[..., start:end] @ W[start:end]
      np.testing.assert_allclose(part, want, atol=1e-5)

  @parameterized.parameters(*FORMS)
  def test_rows_of_weight_0_fire_nothing(self, form):
    fired = FORMS[form].fired(jnp.asarray([[0.0, 0.0], [2.0, 1.0]]))
    np.testing.assert_array_equal(fired, [i == 7 for i in range(N)])

  @parameterized.parameters(*FORMS)
  def test_sums_count_and_fired(self, form):
    latents, weights = FORMS[form], jnp.arange(1.0, N + 1)
    np.testing.assert_array_equal(latents.sum(), [[3, 3], [0.5, 0]])
    np.testing.assert_array_equal(latents.sum(weights), [[7, 15], [4, 0]])
    np.testing.assert_array_equal(latents.squares(), [[5, 9], [0.25, 0]])
    np.testing.assert_array_equal(latents.count(), [[2, 1], [1, 0]])
    np.testing.assert_array_equal(
      latents.fired(), [i in (0, 4, 7) for i in range(N)]
    )


if __name__ == "__main__":
  absltest.main()
