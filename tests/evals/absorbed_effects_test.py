"""saejax/evals/spelling/absorbed_effects.py: integrated gradients, and who absorbs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from saejax.errors import InputError
from saejax.evals.spelling import absorbed_effects, first_letter, letter_probes
from saejax.models import model as model_lib
from saejax.sae import activations, prep
from tests import toy
from tests.evals import spelling_world
from tests.models import golden

D, N = 6, 10
SCALE = 8.0  # of logits


def parts(seed=0):
  """z, e, decoder and a row of weights."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  z = jnp.abs(draw(N)) * jnp.asarray(np.arange(N) % 2, jnp.float32)
  W, b = draw(N, D), draw(D)
  return z, draw(D), lambda z: z @ W + b, draw(D)


def linear(x, about):
  """Logits that are linear in x; about is the matrix."""
  return SCALE * about @ x


def given(W, b, z, x):
  """Latents of rows that are looked up by their nearest neighbour."""
  rows, codes = z
  place = jnp.argmin(jnp.sum(jnp.square(rows - x), axis=-1))
  return codes[place], lambda z: z @ W + b


class IntegratedTest(parameterized.TestCase):
  def gap(self, metric, steps):
    z, e, decode, _ = parts()
    effect, error = absorbed_effects.integrated(
      metric, z, e, decode, steps=steps
    )
    want = metric(decode(0 * z)) - metric(decode(z) + e)
    return float(effect.sum() + error - want), float(want)

  @parameterized.parameters(1, 2, 6, 10)
  def test_effects_of_a_linear_metric_sum_to_its_change(self, steps):
    w = parts()[3]
    gap, want = self.gap(lambda x: 3 + w @ x, steps)
    self.assertLess(abs(gap), 1e-5 * abs(want))

  def test_the_gap_of_a_quadratic_metric_halves_with_the_step(self):
    w = parts()[3]
    gaps = [
      self.gap(lambda x: jnp.square(w @ x) + w @ x, steps)[0]
      for steps in (2, 4, 8, 16)
    ]
    self.assertGreater(abs(gaps[0]), 1)
    for a, b in itertools.pairwise(gaps):
      self.assertAlmostEqual(a / b, 2, delta=0.01)

  def test_the_first_point_is_the_clean_one(self):
    z, e, decode, w = parts()
    metric = lambda x: jnp.sum(jnp.sin(w * x))
    effect, error = absorbed_effects.integrated(metric, z, e, decode, steps=1)
    slope = jax.grad(metric)(decode(z) + e)
    W = decode(jnp.eye(N)) - decode(jnp.zeros(N))
    np.testing.assert_allclose(effect, -z * (W @ slope), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(error, -e @ slope, rtol=1e-4)
    self.assertEqual(
      np.abs(effect[::2]).max(), 0
    )  # latents that are not active

  def test_no_steps_are_refused(self):
    z, e, decode, w = parts()
    with self.assertRaisesRegex(InputError, "^steps=0"):
      absorbed_effects.integrated(lambda x: w @ x, z, e, decode, steps=0)


class AbsorberTest(parameterized.TestCase):
  @parameterized.parameters(
    ([-3.0, 0.5, -1.9], 0.1, 0),
    ([-3.0, 0.5, -2.1], 0.1, -1),  # not clear of the second
    ([-3.0, 2.1, 0.0], 0.1, -1),  # whatever its sign
    ([3.0, 0.5, -1.0], 0.1, -1),  # it lowers the answer
    ([-3.0, 0.5, -1.0], 0.02, -1),  # not along the probe
    ([-0.9, 0.0, 0.0], 0.1, -1),
  )
  def test_the_largest_effect_decides(self, effect, cosine, want):
    found = absorbed_effects.absorber(
      np.asarray(effect), np.array([cosine, 0.9, 0.9])
    )
    self.assertEqual(found, want)


class AbsorptionTest(parameterized.TestCase):
  def found(self, absorbs, **settings):
    w = spelling_world.world(absorbs, noise=0.02)
    fitted = letter_probes.fit(w.x, w.z, w.letter, w.train)
    codes = (jnp.asarray(w.x), jnp.asarray(w.z.toarray(), jnp.float32))
    W = jnp.asarray(w.directions, jnp.float32)
    coder = Partial(given, W, jnp.zeros(W.shape[1]), codes)
    about = np.tile(w.letters.astype(np.float32), (len(w.x), 1, 1))
    return w, absorbed_effects.absorption(
      fitted, linear, coder, w.x, about, w.directions, **settings
    )

  def test_a_planted_absorbed_group_is_the_rate(self):
    w, found = self.found(True)
    for place, letter in enumerate(found):
      own = (w.letter == place) & ~w.train
      last = own & w.absorbed
      self.assertEqual(letter.words, own.sum())
      self.assertEqual(letter.candidates, last.sum())
      self.assertAlmostEqual(letter.rate, last.sum() / own.sum())
      want = [(i, int(w.own[i])) for i in np.flatnonzero(last).tolist()]
      self.assertEqual(list(letter.absorbed), want)

  def test_a_sample_of_candidates_stands_for_all(self):
    _, every = self.found(True)
    _, some = self.found(True, most_words=3)
    for a, b in zip(every, some, strict=True):
      self.assertEqual((b.sampled, b.candidates), (3, a.candidates))
      self.assertAlmostEqual(a.rate, b.rate)

  def test_latents_that_are_the_features_absorb_nothing(self):
    _, found = self.found(False)
    self.assertEqual([letter.rate for letter in found], [0.0] * 4)
    self.assertEqual([letter.candidates for letter in found], [0] * 4)


class ModelTest(absltest.TestCase):
  def test_effects_in_a_model_sum_to_the_change_of_the_answer(self):
    path = self.create_tempdir().full_path
    model = model_lib.load(golden.folder(path, "llama_gqa_tied"))
    ids = np.random.default_rng(0).integers(3, model.vocabulary, (2, 9))
    words = first_letter.Words(np.arange(2), tuple("ab"), np.arange(2))
    prompts = first_letter.Prompts(
      words, ids.astype(np.int32), 5, np.arange(26) % model.vocabulary, 0
    )
    site = "layers.0.resid_post"
    x = first_letter.activations(model, site, prompts)
    read = first_letter.readout(model, site, prompts)
    sae = toy.sae(
      d=model.d,
      n=24,
      activation=activations.TopK(4),
      prep_=prep.RowLayerNorm(),
    )
    z, effect, error = absorbed_effects.effects(
      read, absorbed_effects.coder(sae), x[0], prompts.ids[0], 3, steps=64
    )
    out = sae.forward(x[:1])
    zero = sae.decode(jnp.zeros((1, 24)), out.statistics)[0]
    run = jax.jit(lambda read, h, ids: read(h, ids))
    logits = [run(read, h, prompts.ids[0]) for h in (zero, x[0])]
    M = [float(l[3] - (l.sum() - l[3]) / 25) for l in logits]
    np.testing.assert_array_equal(effect != 0, z != 0)
    self.assertGreater(abs(M[0] - M[1]), 0.1)
    # The gap of a one-sided sum, see above.
    change = effect.sum() + error
    self.assertLess(abs(change - (M[0] - M[1])), 0.05 * abs(M[0] - M[1]))
    self.assertGreater(abs(error), 0.1 * abs(change))

  def test_a_transcoder_is_refused(self):
    sae = toy.sae().replace(target_prep=prep.Identity())
    with self.assertRaisesRegex(InputError, "transcoder"):
      absorbed_effects.coder(sae)


if __name__ == "__main__":
  absltest.main()
