"""Tests of saejax.training.parts.losses: closed forms, and where gradients go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations
from saejax.sae.latents import SparseLatents
from saejax.training.parts import losses, rules
from saejax.training.recipe import Record
from tests import toy

N, D, B = 24, 8, 30
TRACKER = rules.DeadTracker(100)


def written(x, z, W, b):
  """A record of a pass whose every number is given."""
  return toy.record(z, x=x, W=W, b=b)


class ReconstructionTest(parameterized.TestCase):
  def test_mse_sums_over_d(self):
    x, z, W, b = (toy.rows(*s) for s in ((5, 4), (5, 3), (3, 4), (4,)))
    got = losses.mse(written(x, z, W, b))
    want = ((np.asarray(x) - (np.asarray(z) @ W + b)) ** 2).sum(axis=1)
    self.assertEqual(got.shape, (5,))
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_normalised_mse_of_predicting_the_mean_is_one(self):
    x = 3 * toy.rows(50, 6) + 7
    nothing = jnp.zeros((50, 2)), jnp.ones((2, 6))
    record = written(x, *nothing, jnp.mean(x, axis=0))
    np.testing.assert_allclose(
      jnp.mean(losses.normalised_mse(record)), 1, rtol=1e-5
    )

  def test_normalised_mse_is_the_fraction_of_variance_unexplained(self):
    x, z, W, b = (toy.rows(*s) for s in ((50, 6), (50, 3), (3, 6), (6,)))
    r = np.asarray(x) - (np.asarray(z) @ W + b)
    centred = np.asarray(x) - np.asarray(x).mean(axis=0)
    np.testing.assert_allclose(
      jnp.mean(losses.normalised_mse(written(x, z, W, b))),
      (r**2).sum() / (centred**2).sum(),
      rtol=1e-5,
    )

  @parameterized.product(
    loss=[losses.normalised_mse, losses.batch_norm_mse], rows=[1, 4]
  )
  def test_normalised_losses_of_equal_rows_are_0_with_no_gradient(
    self, loss, rows
  ):
    x = jnp.broadcast_to(toy.rows(1, 6), (rows, 6))
    z, W = jnp.ones((rows, 2)), toy.rows(2, 6)

    def total(b):
      return jnp.sum(loss(written(x, z, W, b)))

    value, g = jax.value_and_grad(total)(jnp.ones(6))
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(g, 0)
    spread = loss(written(x.at[0].add(1e-3), z, W, jnp.ones(6)))
    self.assertEqual(jnp.sum(spread) > 0, rows > 1)

  @parameterized.parameters(losses.mse, losses.normalised_mse)
  def test_takes_any_batch_shape(self, loss):
    x, z, W, b = (toy.rows(*s) for s in ((6, 4), (6, 3), (3, 4), (4,)))
    flat = loss(written(x, z, W, b))
    got = loss(written(x.reshape(2, 3, 4), z.reshape(2, 3, 3), W, b))
    np.testing.assert_allclose(got, flat.reshape(2, 3), rtol=1e-5)


class SparsityTest(parameterized.TestCase):
  def records(self):
    z = jnp.asarray([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    values = jnp.asarray([[-2.0, 1.0], [0.0, 0.0]])
    sparse = SparseLatents(values, jnp.asarray([[2, 0], [1, 1]]), 3)
    W = jnp.asarray([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])  # norms 5, 1, 2
    x, b = jnp.zeros((2, 2)), jnp.zeros(2)
    return written(x, z, W, b), written(x, sparse, W, b)

  def test_l1_sums_sizes(self):
    for record in self.records():
      np.testing.assert_array_equal(losses.l1(record), [3, 0])

  def test_l1_by_decoder_norm_weighs_sizes_by_norms(self):
    for record in self.records():
      np.testing.assert_array_equal(losses.l1_decoder_norm(record), [9, 0])

  def test_only_plain_l1_falls_when_the_decoder_grows(self):
    x, z, W, b = (toy.rows(*s) for s in ((5, 4), (5, 3), (3, 4), (4,)))
    before, after = written(x, z, W, b), written(x, z / 2, 2 * W, b)
    np.testing.assert_allclose(losses.mse(after), losses.mse(before), rtol=1e-4)
    np.testing.assert_allclose(
      losses.l1_decoder_norm(after), losses.l1_decoder_norm(before), rtol=1e-5
    )
    np.testing.assert_allclose(
      losses.l1(after), losses.l1(before) / 2, rtol=1e-5
    )

  @parameterized.parameters((1.0, 0.6), (0.5, 0.2), (0.1, 0.5))
  def test_the_best_code_is_shrunk_by_half_the_coefficient(self, size, weight):
    # One latent of size a in an orthonormal dictionary: max(a - weight / 2, 0).
    W = jnp.linalg.qr(toy.rows(5, 5))[0]
    x = size * W[None, 2]

    def loss(code):
      record = written(x, jax.nn.relu(code), W, jnp.zeros(5))
      return jnp.sum(losses.mse(record) + weight * losses.l1(record))

    code = jnp.full((1, 5), 0.3)
    code, _ = jax.lax.scan(
      lambda c, _: (c - 0.05 * jax.grad(loss)(c), None), code, length=300
    )
    want = np.zeros((1, 5))
    want[0, 2] = max(size - weight / 2, 0)
    np.testing.assert_allclose(jax.nn.relu(code), want, atol=1e-4)


@functools.cache
def aux(engine: str, k_aux: int, pre_bias: bool, signed: bool = False):
  """The AuxK term and its gradients, compiled: (sae, since, x)."""
  kept = {"score": "magnitude", "keep": "signed"} if signed else {}
  term = losses.aux_k(k_aux, among=TRACKER, **kept)

  def value(sae, since, x):
    record = Record(
      forward=sae.forward(x, engine=engine),
      sae=sae,
      stats={rules.SINCE_FIRED: since},
      engine=engine,
    )
    return term.fn(record)

  return jax.jit(jax.value_and_grad(value))


def aux_by_hand(sae, since, x, k_aux: int, signed: bool = False):
  """The term and its gradients in NumPy, float64."""
  x, W_enc, b_enc, W_dec, b_dec = (
    np.asarray(a, np.float64)
    for a in (x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
  )
  centred = x - (b_dec if sae.pre_bias else 0)
  u = centred @ W_enc.T + b_enc
  z = np.maximum(u, 0)
  for row, order in zip(z, np.argsort(-u, axis=1), strict=True):
    row[order[sae.activation.k :]] = 0
  e = x - (z @ W_dec + b_dec)
  variance = ((e - e.mean(axis=0)) ** 2).sum(axis=1).mean()
  dead = np.flatnonzero(np.asarray(since) >= TRACKER.dead_after_tokens)
  keep = np.zeros(u.shape, bool)
  for row, scores in zip(keep, u[:, dead], strict=True):
    size = np.abs(scores) if signed else scores
    row[dead[np.argsort(-size)[:k_aux]]] = True
  z = np.where(keep, u if signed else np.maximum(u, 0), 0)
  miss = z @ W_dec - e
  value = (miss**2).sum(axis=1).mean() / variance
  d_e_hat = 2 * miss / (len(x) * variance)
  d_u = (d_e_hat @ W_dec.T) * (z != 0)
  gradients = {
    "encoder.W": d_u.T @ centred,
    "encoder.b": d_u.sum(axis=0),
    "decoder.W": z.T @ d_e_hat,
    "decoder.b": -(d_u.sum(axis=0) @ W_enc) * sae.pre_bias,
  }
  return value, gradients


SINCE = np.random.default_rng(0).integers(0, 200, N).astype(np.int32)
SINCE[3], SINCE[4] = 99, 100  # the last alive, the first dead
ALL = np.full(N, 1000, np.int32)
CASES = {  # since, k_aux, pre-bias, signed
  "some": (SINCE, 3, True, False),
  "no_pre_bias": (SINCE, 3, False, False),
  "fewer_dead_than_k": (np.where(np.arange(N) == 7, 150, 0), 3, True, False),
  "equally_long": (ALL, 3, True, False),
  "all_dead": (ALL, N, True, False),
  "signed": (SINCE, 3, True, True),
  "fewer_signed": (np.where(np.arange(N) == 7, 150, 0), 3, True, True),
}


class AuxKTest(parameterized.TestCase):
  def run_case(self, engine, since, k_aux, pre_bias, signed, x=None):
    # A small k leaves dead latents that are positive: losers of the race.
    sae = toy.sae(n=N, d=D, activation=activations.TopK(2), pre_bias=pre_bias)
    x = toy.rows(B, D) if x is None else x
    run = aux(engine, k_aux, pre_bias, signed)
    value, g = run(sae, jnp.asarray(since, jnp.int32), x)
    gradients = {
      "encoder.W": g.encoder.W,
      "encoder.b": g.encoder.b,
      "decoder.W": g.decoder.W,
      "decoder.b": g.decoder.b,
    }
    return sae, x, value, jax.tree.map(np.asarray, gradients)

  @parameterized.product(case=[*CASES], engine=["dense", "sparse"])
  def test_value_and_gradients_equal_those_by_hand(self, case, engine):
    since, k_aux, _, signed = CASES[case]
    sae, x, value, got = self.run_case(engine, *CASES[case])
    want_value, want = aux_by_hand(sae, since, x, k_aux, signed)
    np.testing.assert_allclose(value, want_value, rtol=1e-4)
    for name in want:
      np.testing.assert_allclose(got[name], want[name], atol=1e-5, err_msg=name)

  @parameterized.parameters("dense", "sparse")
  def test_gradient_reaches_encoder_rows_of_dead_latents_alone(self, engine):
    _, _, _, g = self.run_case(engine, *CASES["some"])
    dead = SINCE >= 100
    for name in ("encoder.W", "encoder.b", "decoder.W"):
      reached = np.abs(g[name]).reshape(N, -1).max(axis=1) > 0
      self.assertFalse(reached[~dead].any(), name)  # exactly 0
      self.assertGreater(reached[dead].sum(), 0.7 * dead.sum(), name)

  @parameterized.parameters("dense", "sparse")
  def test_without_pre_bias_none_reaches_b_dec(self, engine):
    *_, g = self.run_case(engine, *CASES["no_pre_bias"])
    np.testing.assert_array_equal(g["decoder.b"], 0)
    *_, g = self.run_case(engine, *CASES["some"])
    self.assertGreater(np.abs(g["decoder.b"]).max(), 1e-3)

  @parameterized.parameters("dense", "sparse")
  def test_is_exactly_0_where_none_is_dead(self, engine):
    alive = np.full(N, 99, np.int32)
    _, _, value, g = self.run_case(engine, alive, 3, True, False)
    self.assertEqual(value, 0)
    for name, leaf in g.items():
      np.testing.assert_array_equal(leaf, 0, err_msg=name)

  @parameterized.product(engine=["dense", "sparse"], rows=[1, 5])
  def test_is_exactly_0_where_the_residual_does_not_vary(self, engine, rows):
    x = jnp.broadcast_to(toy.rows(1, D), (rows, D))
    _, _, value, g = self.run_case(engine, ALL, 3, True, False, x)
    self.assertEqual(value, 0)
    for name, leaf in g.items():
      np.testing.assert_array_equal(leaf, 0, err_msg=name)

  @parameterized.parameters("dense", "sparse")
  def test_with_all_dead_and_k_aux_n_every_positive_latent_is_used(
    self, engine
  ):
    sae, x, _, g = self.run_case(engine, *CASES["all_dead"])
    u = np.asarray(sae.forward(x, engine="dense").pre.a)
    reached = np.abs(g["decoder.W"]).max(axis=1) > 0
    np.testing.assert_array_equal(reached, (u > 0).any(axis=0))

  def test_may_be_left_without_its_normaliser(self):
    x, since = toy.rows(9, 6), jnp.asarray([99, 0, 99, 0], jnp.int32)
    record = toy.record(
      jnp.zeros((9, 4)),
      x=x,
      W=toy.rows(4, 6, seed=2),
      a=toy.rows(9, 4, seed=3),
      sae=toy.sae(n=4, d=6),
      stats={"tokens_since_fired": since},
    )
    make = functools.partial(
      losses.aux_k, 2, among=rules.DeadTracker(10), weight=1.0
    )
    spread = losses.variance(x)
    np.testing.assert_allclose(
      make(normalised=False).fn(record), spread * make().fn(record), rtol=1e-5
    )

  def test_default_k_aux_is_the_power_of_two_nearest_half_d(self):
    for d, k_aux in ((768, 512), (384, 256), (128, 64), (2, 1), (1, 1)):
      self.assertEqual(losses.default_k_aux(d), k_aux)


if __name__ == "__main__":
  absltest.main()
