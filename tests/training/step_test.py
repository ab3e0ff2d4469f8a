"""Tests of saejax.training.step: engines, order of a step, its program."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from saejax.recipes import batch_sparse, nested, row_sparse
from saejax.training import step
from saejax.training.parts import constraints, losses, rules, schedules
from saejax.training.recipe import Hyper, Rule, Term
from tests import compiled, toy

RATE = 3e-3
HYPER = Hyper(learning_rate=jnp.asarray(RATE))


@dataclasses.dataclass(frozen=True)
class Counts(Rule):
  """A rule of somebody else, with one statistic per latent."""

  named: tuple[tuple[str, str], ...]

  def init(self, sae):
    return {"counts": jnp.zeros((sae.n,))}

  def axes(self):
    return dict(self.named)


def topk(d=8, n=40, k=4, **kwargs):
  return row_sparse.topk(d, n, k, **{"dead_after_tokens": 10**6, **kwargs})


def plain(*args, **kwargs):
  """TopK without AuxK, which compiles in half the time."""
  recipe = topk(*args, **kwargs)
  return dataclasses.replace(recipe, terms={"nmse": recipe.terms["nmse"]})


def start(recipe, *, dead=False):
  """A state whose biases are not 0.

  With `dead`, half of the latents are shrunk: positive, but never among the k
  largest.
  """

  def make():
    state = step.init_state(recipe, jax.random.key(3))
    sae = state.sae
    half = jnp.arange(sae.n) < dead * (sae.n // 2)
    shrink = jnp.where(half, 0.05, 1.0)
    return state.replace(
      sae=sae.replace(
        encoder=sae.encoder.replace(
          W=sae.W_enc * shrink[..., None],
          b=0.1 * toy.rows(sae.n, seed=11) * shrink,
        ),
        decoder=sae.decoder.replace(b=0.1 * toy.rows(sae.d, seed=12)),
      )
    )

  return jax.jit(make)()


def batches(count, rows, d):
  return [3 * toy.rows(rows, d, seed=100 + i) + 1 for i in range(count)]


def gradients(state):
  """The first step's gradients, from Adam's first moment (1 - b1) g."""
  return jax.tree.map(lambda m: m / 0.1, state.opt_state[0].mu)


CLIPPED = {"dead_after_tokens": 32, "clip_norm": 0.3}
batchtopk = functools.partial(batch_sparse.batchtopk, **CLIPPED)
matryoshka = functools.partial(nested.matryoshka, **CLIPPED)
CASES = {  # recipe, rows, tolerance of gradients, dead latents
  "usual": (plain(), 32, 1e-5, False),
  "k_is_1_ragged": (plain(7, 37, 1), 31, 1e-5, False),
  "k_is_n": (plain(6, 16, 16), 24, 1e-5, False),
  "aux": (
    topk(
      k_aux=5,
      dead_after_tokens=32,
      clip_norm=0.3,
      ema_decay=0.9,
      prep=toy.affine(8),
    ),
    32,
    1e-5,
    True,
  ),
  "bfloat16": (plain(dtype="bfloat16"), 32, 2e-2, False),
  "batch": (batchtopk(8, 40, 2.5, k_aux=5), 32, 1e-5, True),
  "prefixes": (matryoshka(8, 40, 2, aux_weight=0), 32, 1e-5, False),
}


@functools.cache
def run(case: str, engine: str, steps: int = 20):
  """Losses of all steps, the first step's gradients, the last state."""
  recipe, rows, _, dead = CASES[case]
  state = start(recipe, dead=dead)
  body, traces = step.make_step(recipe, engine=engine), []
  one = jax.jit(lambda *given: traces.append(given) or body(*given))
  found, first = [], None
  for x in batches(steps, rows, state.sae.d):
    state, metrics = one(state, HYPER, x)
    found.append(jax.device_get(metrics))
    first = first or state
  assert len(traces) == 1, f"traced again on a later step: {traces}"
  return found, gradients(first), state


class EnginesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_same_loss_and_gradients(self, case):
    tolerance = CASES[case][2]
    (dense, *_), dense_gradients, _ = run(case, "dense")
    (sparse, *_), sparse_gradients, _ = run(case, "sparse")
    self.assertEqual(dense.keys(), sparse.keys())
    for name in dense:
      np.testing.assert_allclose(
        sparse[name], dense[name], rtol=tolerance, atol=1e-6, err_msg=name
      )
    largest = max(
      float(jnp.abs(g).max()) for g in jax.tree.leaves(dense_gradients)
    )
    toy.assert_trees_close(
      sparse_gradients, dense_gradients, rtol=0, atol=tolerance * largest
    )

  @parameterized.parameters(*CASES)
  def test_same_parameters_after_20_steps(self, case):
    _, _, dense = run(case, "dense")
    _, _, sparse = run(case, "sparse")
    if case == "bfloat16":  # Adam steps by the sign of gradients near 0
      moved = optax.tree.norm(
        jax.tree.map(jnp.subtract, dense.sae, start(CASES[case][0]).sae)
      )
      apart = optax.tree.norm(jax.tree.map(jnp.subtract, dense.sae, sparse.sae))
      self.assertLess(float(apart / moved), 0.1)
      return
    toy.assert_trees_close(sparse.sae, dense.sae, rtol=1e-4, atol=2e-5)
    toy.assert_trees_equal(sparse.stats, dense.stats)

  def test_weights_updated_in_place_are_the_same_after_5_steps(self):
    recipe = plain(clip_norm=0.1)
    states = []
    for size in (constraints.LARGE_BYTES, 0):
      with mock.patch.object(constraints, "LARGE_BYTES", size):
        state, one = start(recipe), jax.jit(step.make_step(recipe))
        for x in batches(5, 64, 8):
          state, _ = one(state, HYPER, x)
      states.append(state)
    usual, large = (jax.tree.leaves((s.sae, s.opt_state)) for s in states)
    for want, got in zip(usual, large, strict=True):
      np.testing.assert_allclose(got, want, atol=1e-6)

  def test_the_aux_case_is_one_where_aux_works(self):
    found, _, state = run("aux", "sparse")
    self.assertGreaterEqual(found[0]["dead"], 0.5)  # silent for one batch
    self.assertGreater(found[0]["aux"], 0.1)
    before = start(CASES["aux"][0], dead=True)
    moved = jnp.abs(state.sae.W_enc - before.sae.W_enc).max(axis=1)
    self.assertGreater(float(moved[:20].max()), 1e-3)  # dead rows learn

  def test_auto_is_sparse_where_rows_are_bounded(self):
    recipe = CASES["usual"][0]
    state, (x,) = start(recipe), batches(1, 32, 8)
    auto, sparse, dense = (
      jax.jit(step.make_step(recipe, engine=engine)).lower(state, HYPER, x)
      for engine in ("auto", "sparse", "dense")
    )
    self.assertEqual(auto.as_text(), sparse.as_text())
    self.assertNotEqual(auto.as_text(), dense.as_text())

  @parameterized.parameters("dense", "sparse")
  def test_loss_falls(self, engine):
    found, *_ = run("usual", engine)
    self.assertLess(found[-1]["loss"], 0.95 * found[0]["loss"])

  def test_prep_is_never_moved(self):
    _, _, state = run("aux", "sparse")
    toy.assert_trees_equal(state.sae.prep, toy.affine(8))
    final = step.averaged(CASES["aux"][0], state)
    toy.assert_trees_close(final.prep, toy.affine(8), rtol=1e-6, atol=0)


class OrderTest(parameterized.TestCase):
  def oracle(self, recipe, optimizer, x_batches, decay, clip):
    """Removal, clip, optimizer, renormalising, average; plain autodiff."""
    sae = start(recipe).sae
    opt_state = optimizer.init(sae)
    weights, rates, norms = [], [], []

    def loss(sae, x):
      z = sae.encode(x)
      r = x - (z @ sae.decoder.W + sae.decoder.b)
      return jnp.sum(r**2) / jnp.sum((x - jnp.mean(x, axis=0)) ** 2)

    for i, x in enumerate(x_batches):
      g = jax.jit(jax.grad(loss))(sae, x)
      W, g_W = sae.decoder.W, g.decoder.W
      g_W = g_W - jnp.sum(g_W * W, axis=1, keepdims=True) * W
      g = g.replace(decoder=g.decoder.replace(W=g_W))
      norm = float(optax.tree.norm(g))
      g = jax.tree.map(lambda a, norm=norm: a * min(1.0, clip / norm), g)
      with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(g, opt_state, sae)
      factor = float(recipe.schedule(jnp.asarray(i)))
      sae = jax.tree.map(
        lambda w, u, factor=factor: w + factor * u, sae, updates
      )
      sae = sae.replace(decoder=sae.decoder.replace(W=toy.unit(sae.decoder.W)))
      weights.append(sae)
      rates.append(RATE * factor)
      norms.append(norm)
    ages = decay ** np.arange(len(weights))[::-1]
    mean = jax.tree.map(
      lambda *a: sum(w * v for w, v in zip(ages / ages.sum(), a, strict=True)),
      *weights,
    )
    mean = mean.replace(
      decoder=mean.decoder.replace(W=toy.unit(mean.decoder.W))
    )
    return sae, mean, rates, norms

  @parameterized.parameters((optax.sgd, "sparse"), (optax.adam, "dense"))
  def test_removal_clip_optimizer_renormalise_average(self, make, engine):
    decay, clip, count = 0.8, 0.05, 3
    recipe = dataclasses.replace(
      topk(clip_norm=clip, ema_decay=decay),
      optimizer=make,
      schedule=schedules.warmup_decay(count, warmup_steps=1),
    )
    xs = batches(count, 32, 8)
    sae, mean, rates, norms = self.oracle(recipe, make(RATE), xs, decay, clip)
    one = jax.jit(step.make_step(recipe, engine=engine))
    state = start(recipe)
    for x, rate, norm in zip(xs, rates, norms, strict=True):
      state, metrics = one(state, HYPER, x)
      np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
      np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
      self.assertGreater(norm, clip)  # so that clipping is seen
    toy.assert_trees_close(state.sae, sae, rtol=1e-5, atol=1e-6)
    toy.assert_trees_close(
      step.averaged(recipe, state), mean, rtol=1e-5, atol=1e-6
    )
    norms = jnp.linalg.norm(state.sae.W_dec, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)

  def test_without_average_users_hold_the_weights(self):
    recipe = topk()
    state = start(recipe)
    self.assertIs(step.averaged(recipe, state), state.sae)

  def test_total_is_the_weighted_sum_of_named_terms(self):
    recipe = dataclasses.replace(
      row_sparse.relu_l1(8, 20, coefficient=0.3, dead_after_tokens=100),
      terms={
        "mse": Term(fn=losses.mse),
        "l1": Term(fn=losses.l1, weight=lambda s: 0.1 * s.astype(jnp.float32)),
        "batch": Term(fn=lambda record: jnp.max(record.forward.x), weight=2.0),
      },
    )
    one = jax.jit(step.make_step(recipe))
    state = start(recipe)
    for i, x in enumerate(batches(3, 16, 8)):
      state, m = one(state, HYPER, x)
      want = m["mse"] + 0.1 * i * m["l1"] + 2 * m["batch"]
      np.testing.assert_allclose(m["loss"], want, rtol=1e-5)
      np.testing.assert_allclose(m["batch"], x.max())

  def test_skipping_an_idle_term_changes_nothing(self):
    # Dead from the third step on: the cond goes both ways.
    recipe = topk(k_aux=5, dead_after_tokens=96)
    aux = dataclasses.replace(recipe.terms["aux"], active=None)
    never_skipped = dataclasses.replace(
      recipe, terms={**recipe.terms, "aux": aux}
    )
    out = []
    for r in (recipe, never_skipped):
      one, state, values = jax.jit(step.make_step(r)), start(r, dead=True), []
      for x in batches(5, 32, 8):
        state, metrics = one(state, HYPER, x)
        values.append(float(metrics["aux"]))
      out.append((state, values))
    self.assertEqual([v > 0 for v in out[0][1]], [False] * 2 + [True] * 3)
    np.testing.assert_allclose(out[0][1], out[1][1], rtol=1e-5)
    toy.assert_trees_close(out[0][0], out[1][0], rtol=1e-5, atol=1e-6)


class StateTest(parameterized.TestCase):
  def test_shapes_are_known_without_numbers(self):
    recipe = topk(ema_decay=0.9)
    make = functools.partial(step.init_state, recipe)
    abstract = jax.eval_shape(make, jax.random.key(0))
    real = make(jax.random.key(0))
    self.assertEqual(
      jax.tree.map(lambda a: (a.shape, a.dtype), abstract),
      jax.tree.map(lambda a: (a.shape, a.dtype), real),
    )
    out, _ = jax.eval_shape(
      step.make_step(recipe),
      abstract,
      HYPER,
      jax.ShapeDtypeStruct((32, 8), jnp.float32),
    )
    self.assertEqual(jax.tree.structure(out), jax.tree.structure(real))
    self.assertEqual(
      jax.tree.map(lambda a: (a.shape, a.dtype), out),
      jax.tree.map(lambda a: (a.shape, a.dtype), real),
    )

  def test_starts_on_the_constraint_with_nothing_counted(self):
    state = step.init_state(topk(), jax.random.key(0))
    np.testing.assert_allclose(
      jnp.linalg.norm(state.sae.W_dec, axis=1), 1, rtol=1e-6
    )
    self.assertEqual(
      [int(state.step), bool(state.alive), int(state.failed_step)],
      [0, True, -1],
    )
    np.testing.assert_array_equal(state.stats[rules.SINCE_FIRED], 0)

  @parameterized.parameters(
    ((),),
    ((("counts", ""),),),
    ((("counts", "n d"),),),
  )
  def test_refuses_a_rule_that_does_not_name_the_axes_of_a_statistic(
    self, named
  ):
    recipe = dataclasses.replace(plain(), rules=(Counts(named),))
    with self.assertRaisesRegex(TypeError, "Counts.*the 1 axes of counts"):
      jax.eval_shape(lambda: step.init_state(recipe, jax.random.key(0)))

  def test_the_key_kept_is_not_the_one_that_drew_the_weights(self):
    key = jax.random.key(0)
    kept = step.init_state(topk(), key).key
    drew, other = jax.random.split(key)
    self.assertTrue((kept == other) and kept != drew)

  def test_donated_states_are_given_up_and_give_the_same(self):
    recipe = CASES["usual"][0]
    (x,) = batches(1, 32, 8)
    one = jax.jit(step.make_step(recipe, engine="sparse"), donate_argnums=0)
    given = start(recipe)
    state, _ = one(given, HYPER, x)
    jax.block_until_ready(state)
    self.assertTrue(given.sae.W_enc.is_deleted())
    self.assertTrue(given.opt_state[0].nu.decoder.W.is_deleted())
    toy.assert_trees_close(
      gradients(state), run("usual", "sparse")[1], rtol=1e-6, atol=1e-7
    )


class CompiledTest(absltest.TestCase):
  """The whole sparse step, at sizes where a chunk is a part of a batch."""

  B, D, N, K = 8192, 24, 8192, 8  # no prefix sum is taken over 24 entries

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    recipe = topk(cls.D, cls.N, cls.K, dead_after_tokens=1, k_aux=12)
    state = jax.eval_shape(lambda: step.init_state(recipe, jax.random.key(0)))
    x = jax.ShapeDtypeStruct((cls.B, cls.D), jnp.float32)
    one = jax.jit(step.make_step(recipe, engine="sparse"))
    cls.program = one.lower(state, HYPER, x).compile()
    cls.text = cls.program.as_text()

  def test_nothing_is_sorted_over_the_latents_of_a_batch(self):
    for shape in compiled.sorts(self.text):
      if len(shape) > 1:  # statistics [n] may be sorted
        self.assertLessEqual(shape[-1], self.K, shape)

  def test_no_array_of_rows_by_entries_by_width(self):
    found = compiled.arrays(self.text)
    self.assertIn((self.N, self.D), found)
    sizes = {int(np.prod(shape)) for shape in found if shape[-1:] == (self.D,)}
    self.assertLess(max(sizes), self.B * self.K * self.D)

  def test_no_array_of_rows_by_latents_outlives_a_chunk(self):
    found = compiled.arrays(self.text)
    self.assertNotIn((self.B, self.N), found)
    temporary = self.program.memory_analysis().temp_size_in_bytes
    self.assertLess(temporary, 0.75 * 4 * self.B * self.N)


if __name__ == "__main__":
  absltest.main()
