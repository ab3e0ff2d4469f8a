"""Tests of saejax.evals.autointerp.judge_local: log-probabilities of a small model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import models
from saejax.errors import InputError
from saejax.evals.autointerp import judge, judge_local
from saejax.evals.autointerp.windows import plain
from saejax.models import tokenizer
from tests import shared


@functools.cache
def reader():
  path = shared.path("models/babyllama-105")
  return judge_local.Reader(
    model=models.load(str(path)), tokenizer=tokenizer.load(path)
  )


class LogPTest(absltest.TestCase):
  def test_it_is_the_models_own_whatever_the_padding(self):
    model, ids = reader().model, [5, 9, 40, 41, 7, 99]
    row, mask = jnp.asarray([ids]), jnp.ones((1, len(ids)), bool)
    want = jax.nn.log_softmax(model(row, mask)[0])
    want = [float(want[i, ids[i + 1]]) for i in (2, 3, 4)]
    pairs = [([3], [4] * 50), (ids[:3], ids[3:]), ([1], [])]
    found = judge_local.log_p(model, pairs, batch=4)
    np.testing.assert_allclose(found[1], want, atol=1e-4)
    self.assertEqual([len(f) for f in found], [50, 3, 0])

  def test_the_chain_rule(self):
    a, b, c = [5, 9], [40, 41], [7, 99, 8]
    model = reader().model
    whole, first, rest = judge_local.log_p(
      model, [(a, b + c), (a, b), (a + b, c)], batch=4
    )
    self.assertAlmostEqual(whole.sum(), first.sum() + rest.sum(), places=3)

  def test_a_text_needs_one_before_it(self):
    with self.assertRaisesRegex(InputError, "pairs=.*must not be empty"):
      judge_local.log_p(reader().model, [([], [1])])


class JudgesTest(absltest.TestCase):
  def test_the_neutral_text_has_gain_0(self):
    local = judge_local.Local(reader())
    window = plain(judge_local.NEUTRAL_TEXT)
    score = local.score("dogs", [window, plain("The dog barked.")], "detection")
    self.assertAlmostEqual(score[0], 0, places=4)
    self.assertGreater(abs(score[1]), 0.01)
    surprisal = judge_local.Surprisal(reader())
    score = surprisal.score(judge_local.NEUTRAL_TOPIC, [window], "detection")
    self.assertAlmostEqual(score[0], 0, places=4)

  def test_simulated_gains_add_up_to_the_score(self):
    surprisal = judge_local.Surprisal(reader())
    window = plain("The big dog barked")
    (levels,) = surprisal.simulate("dogs", [window])
    self.assertLen(levels, 4)
    self.assertTrue(((levels >= 0) & (levels <= 10)).all())

  def test_a_small_model_is_better_than_chance_and_the_gate_says_how(self):
    found = judge.gate(judge_local.Local(reader()), keywords=4)
    self.assertEqual(found.failed, 0)
    self.assertGreater(found.auroc, 0.6)
    self.assertEqual(found.able, found.auroc >= 0.8)

  def test_ids_of_another_tokenizer_are_refused(self):
    with self.assertRaisesRegex(InputError, "ids=300: must be in"):
      judge_local.log_p(reader().model, [([1], [300])])

  def test_an_encoder_is_refused(self):
    class Encoder:
      name = "e"

      @property
      def head(self):
        raise InputError("model", "e", "must have a language head", "another")

    with self.assertRaisesRegex(InputError, "language head"):
      judge_local.Reader(Encoder(), None)


if __name__ == "__main__":
  absltest.main()
