"""saejax/evals/heads/induction.py: heads made by hand, and random ones."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import errors
from saejax.evals.heads import induction
from saejax.models import gpt2, taps, weights
from saejax.models import model as model_lib

V, P = 24, 16  # tokens and positions
D = 2 * V + P  # a token, the token before it, a position
TOKENS = np.arange(1, V)


def model(strength: float) -> model_lib.Model:
  """Heads that attend to the token before, then to what followed a copy."""
  token, before, place = slice(0, V), slice(V, 2 * V), slice(2 * V, D)
  norm = lambda: weights.Norm(jnp.ones(D), jnp.zeros(D))
  zero = weights.Linear(jnp.zeros((D, D)), jnp.zeros(D))

  def layer(q, k, v, out):
    W = np.stack([strength * q, k, v], axis=1).reshape(D, 1, 3 * D)
    return {
      "norm_pre": norm(),
      "qkv": weights.Joint(jnp.asarray(W, jnp.float32), None),
      "out": weights.Linear(jnp.asarray(out, jnp.float32), None),
      "norm_mid": norm(),
      "up": zero,
      "down": zero,
    }

  def map_(rows, columns, matrix):
    full = np.zeros((D, D))
    full[rows, columns] = matrix
    return full

  eye = np.eye(V)
  first = layer(
    map_(place, place, np.eye(P, k=-1)),  # at p asks for p - 1
    map_(place, place, np.eye(P)),
    map_(token, token, eye),
    map_(token, before, eye),
  )
  second = layer(
    map_(token, token, eye),
    map_(before, token, eye),
    np.zeros((D, D)),
    np.zeros((D, D)),
  )
  config = gpt2.Config(
    vocabulary=V,
    d=D,
    layers=2,
    heads=1,
    d_mlp=D,
    max_positions=P,
    eps=1e-5,
    activation="relu",
    scale=True,
    scale_by_layer=False,
    tied=True,
    has_head=False,
  )
  embed = np.eye(D, dtype=np.float32)
  params = {
    "token": jnp.asarray(embed[token]),
    "position": jnp.asarray(embed[place]),
    "layers": (first, second),
    "norm": norm(),
  }
  return model_lib.Model(params=params, config=config, name="by hand")


class InductionTest(absltest.TestCase):
  def score(self, strength, **options):
    return induction.by_prefix(
      model(strength),
      TOKENS,
      prefixes=(1, 2, 3, 5),
      count=24,
      length=P,
      first=0,
      batch=8,
      **options,
    )

  def test_an_induction_head_scores_1_at_every_length(self):
    # attn-sae, check 4.
    found = self.score(20.0)
    self.assertEqual(found.score.shape, (4, 2, 1))
    np.testing.assert_allclose(found.score[:, 1, 0], 1, atol=0.02)
    self.assertLess(found.score[:, 0, 0].max(), 0.05)  # of the token before
    self.assertEqual(found.best(1), [(1, 0)])
    # One equal token is enough for it.
    np.testing.assert_allclose(found.corrupted[1:, 1, 0], 1, atol=0.02)
    self.assertTrue(np.isnan(found.corrupted[0]).all())
    record = found.record(1)
    self.assertIsNone(record["heads"]["1.0"]["corrupted"][0])

  def test_a_head_that_attends_evenly_scores_1_over_its_tokens(self):
    found = self.score(0.0, layers=[1])
    np.testing.assert_allclose(found.score[:, 0, 0], found.even, rtol=1e-5)
    self.assertBetween(found.even.max(), 1 / P, 0.2)

  def test_a_random_head_is_near_that(self):
    rng = np.random.default_rng(0)
    random = model(0.0)
    noise = lambda a: jnp.asarray(
      rng.standard_normal(a.shape, np.float32) / D**0.5
    )
    layers = tuple(
      p | {"qkv": weights.Joint(0.3 * noise(p["qkv"].W), None)}
      for p in random.params["layers"]
    )
    random = random.replace(params=random.params | {"layers": layers})
    found = induction.by_prefix(
      random, TOKENS, prefixes=(1, 4), count=64, length=P, first=0
    )
    ratio = found.score / found.even[:, None, None]
    np.testing.assert_allclose(ratio, 1, atol=0.35)

  def test_without_the_last_token_of_the_prefix_nothing_is_found(self):
    texts = induction.texts(TOKENS, 3, count=24, length=P, first=0)
    broken = texts.corrupted(TOKENS, back=0)
    np.testing.assert_array_equal((texts.ids != broken.ids).sum(axis=1), 1)
    mask = np.ones(texts.ids.shape, bool)
    run = lambda ids: taps.patterns(model(20.0), ids, mask, [1])
    self.assertGreater(texts.score(run(texts.ids))[0, 0], 0.95)
    self.assertLess(broken.score(run(broken.ids))[0, 0], 0.2)

  def test_texts_hold_the_prefix_twice_and_other_tokens_once(self):
    for prefix in (1, 4, 7):
      texts = induction.texts(TOKENS, prefix, count=50, length=P)
      for row, s, t in zip(
        texts.ids, texts.source, texts.destination, strict=True
      ):
        one, two = row[s - prefix : s], row[t - prefix + 1 : t + 1]
        np.testing.assert_array_equal(one, two)
        self.assertLess(s + 1, t - prefix + 1)
        self.assertLen(set(row.tolist()), P - prefix)
      np.testing.assert_array_equal(
        texts.answer, texts.ids[np.arange(50), texts.source]
      )

  def test_texts_that_are_too_short_are_refused(self):
    with self.assertRaisesRegex(errors.InputError, "prefix=8"):
      induction.texts(TOKENS, 8, length=P)
    with self.assertRaisesRegex(errors.InputError, "tokens=9"):
      induction.texts(TOKENS[:9], 1, length=P)
    with self.assertRaisesRegex(errors.InputError, "back=2"):
      induction.texts(TOKENS, 2, length=P, count=2).corrupted(TOKENS, back=2)


if __name__ == "__main__":
  absltest.main()
