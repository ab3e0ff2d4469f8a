"""Tests of saejax.training.parts.revival: AuxK in all its forms, by hand."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations
from saejax.training.parts import losses, revival, rules
from saejax.training.recipe import MEMBERS, Record
from tests import toy

N, D, B = 64, 8, 100  # few dead are at most 8
TRACKER = rules.DeadTracker(100)


@functools.cache
def aux(engine: str, k_aux: int, pre_bias: bool, signed: bool = False):
  """The AuxK term and its gradients, compiled: (sae, since, x)."""
  kept = {"score": "magnitude", "keep": "signed"} if signed else {}
  term = revival.aux_k(k_aux, among=TRACKER, **kept)

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
  "compact": (np.where(np.arange(N) % 5 == 4, 150, 0), 2, True, False),
  "compact_signed": (np.where(np.arange(N) % 5 == 4, 150, 0), 2, True, True),
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
    pre = sae.forward(x, engine="dense").pre
    assert pre is not None
    u = np.asarray(pre.a)
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
      revival.aux_k, 2, among=rules.DeadTracker(10), weight=1.0
    )
    spread = losses.variance(x)
    np.testing.assert_allclose(
      make(normalised=False).fn(record), spread * make().fn(record), rtol=1e-5
    )

  def test_default_k_aux_is_the_power_of_two_nearest_half_d(self):
    for d, k_aux in ((768, 512), (384, 256), (128, 64), (2, 1), (1, 1)):
      self.assertEqual(revival.default_k_aux(d), k_aux)


@functools.cache
def stacked():
  """The term and its gradients of two members that are vmapped."""
  term = revival.aux_k(3, among=TRACKER)

  def value(sae, since, x):
    record = Record(
      forward=sae.forward(x, engine="sparse"),
      sae=sae,
      stats={rules.SINCE_FIRED: since},
      engine="sparse",
      stacked=True,
    )
    return term.fn(record)

  return jax.jit(
    jax.vmap(jax.value_and_grad(value), (None, 0, None), axis_name=MEMBERS)
  )


class FormsTest(parameterized.TestCase):
  def arguments(self, *dead: int):
    since = np.zeros((len(dead), N), np.int32)
    for row, count in zip(since, dead, strict=True):
      row[np.random.default_rng(count).permutation(N)[:count]] = 150
    sae = toy.sae(n=N, d=D, activation=activations.TopK(2), pre_bias=True)
    return sae, jnp.asarray(since), toy.rows(B, D)

  @parameterized.parameters(*range(11), N)
  def test_any_number_of_dead_equals_the_dense_engine(self, count):
    sae, (since,), x = self.arguments(count)
    want = aux("dense", 3, True)(sae, since, x)
    got = aux("sparse", 3, True)(sae, since, x)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-5), got, want
    )

  @parameterized.parameters((1, 1), (1, 9), (8, 1), (2, N))
  def test_stacked_members_equal_each_one_alone(self, *counts):
    sae, since, x = self.arguments(*counts)
    got = stacked()(sae, since, x)
    for i in range(len(counts)):
      want = aux("sparse", 3, True)(sae, since[i], x)
      jax.tree.map(
        lambda g, w, i=i: np.testing.assert_allclose(g[i], w, atol=1e-5),
        got,
        want,
      )

  def test_stacked_members_choose_one_form(self):
    jaxpr = stacked().trace(*self.arguments(1, 9)).jaxpr
    # A branch by their own counts would have become a select of both forms.
    self.assertTrue(any(conditions(jaxpr.jaxpr)))


def conditions(jaxpr):
  """Whether each cond of a program chooses by a number, not by the platform."""
  platform = {
    id(out)
    for equation in jaxpr.eqns
    if equation.primitive.name == "platform_index"
    for out in equation.outvars
  }
  for equation in jaxpr.eqns:
    if equation.primitive.name == "cond":
      yield id(equation.invars[0]) not in platform
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from conditions(inner)


if __name__ == "__main__":
  absltest.main()
