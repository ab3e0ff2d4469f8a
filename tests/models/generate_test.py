"""saejax/models/generate.py: samples are the model's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import generate, ops, tokenizer
from saejax.models import model as model_lib
from tests import shared
from tests.models import golden

FAMILIES = ("gpt2_untied_scaled", "llama_gqa_tied", *golden.SMALL)
BOS = 1


@jax.jit
def run(model, ids):
  return model(ids, jnp.ones(ids.shape, bool))


@functools.partial(jax.jit, static_argnames="last")
def one_by_one(model, ids, last):
  def step(cache, at):
    logits, cache = generate.next_logits(model, cache, ids[:, at], at)
    return cache, logits

  cache = generate.empty_cache(model, len(ids), last)
  return jax.lax.scan(step, cache, jnp.arange(last))[1].swapaxes(0, 1)


class Base(parameterized.TestCase):
  def load(self, case="llama_gqa_tied"):
    return model_lib.load(golden.folder(self.create_tempdir(), case))


class CacheTest(Base):
  @parameterized.parameters(*FAMILIES)
  def test_one_token_at_a_time_gives_the_logits_of_the_whole(self, case):
    model = self.load(case)
    ids = jax.random.randint(jax.random.key(0), (3, 9), 0, model.vocabulary)
    got, want = one_by_one(model, ids, 9), run(model, ids)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-4)

  @parameterized.parameters(*FAMILIES)
  def test_greedy_samples_are_the_likeliest_tokens(self, case):
    model = self.load(case)
    found = generate.generate(
      model,
      total_tokens=6,
      max_tokens=6,
      prompt=[BOS, 3],
      temperature=0.0,
      batch_rows=2,
    )
    ids = np.concatenate([np.tile([[BOS, 3]], (2, 1)), found.ids], axis=1)
    logits = np.asarray(run(model, jnp.asarray(ids, jnp.int32)))
    np.testing.assert_array_equal(logits[:, 1:-1].argmax(-1), found.ids)
    self.assertEqual(found.unique, 1)


class SamplesTest(Base):
  @parameterized.parameters(0.7, 1.0)
  def test_first_tokens_follow_the_softmax(self, temperature):
    # faithful, check 2, by chi-square over the tokens expected 5 times or more.
    model = self.load()
    found = generate.generate(
      model,
      total_tokens=4096,
      max_tokens=1,
      prompt=[BOS],
      temperature=temperature,
      batch_rows=2048,
    )
    self.assertLen(found.ids, 4096)
    logits = run(model, jnp.asarray([[BOS]]))[0, 0]
    p = np.asarray(jax.nn.softmax(logits / temperature), np.float64)
    seen = np.bincount(found.ids[:, 0], minlength=len(p))
    common = p * len(found.ids) >= 5
    expected = np.append(p[common], p[~common].sum()) * len(found.ids)
    observed = np.append(seen[common], seen[~common].sum())
    result = scipy.stats.chisquare(observed, expected * 4096 / expected.sum())
    self.assertGreater(result.pvalue, 1e-3)

  def test_the_nucleus_is_the_fewest_tokens_of_its_probability(self):
    p = np.array([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]])
    logits = jnp.asarray(np.log(p), jnp.float32)
    for top_p, want in (
      (0.5, [[0, 1, 0, 0], [1, 0, 0, 0]]),
      (0.7, [[0, 1, 0, 1], [1, 0, 0, 0]]),
      (0.8, [[0, 1, 1, 1], [1, 0, 0, 0]]),
      (0.98, [[1, 1, 1, 1], [1, 1, 1, 0]]),
    ):
      kept = np.isfinite(generate.nucleus(logits, top_p))
      np.testing.assert_array_equal(kept[0], np.array(want[0], bool))
      self.assertEqual(kept[1].sum(), sum(want[1]))
      self.assertTrue(kept[1, 0])

  def test_seeds_name_the_samples_and_batches_differ(self):
    model = self.load()
    draw = functools.partial(
      generate.generate, model, max_tokens=8, prompt=[BOS], batch_rows=4
    )
    one = draw(total_tokens=60)
    np.testing.assert_array_equal(one.ids, draw(total_tokens=60).ids)
    self.assertFalse((one.ids[:4] == one.ids[4:8]).all())
    self.assertFalse((one.ids == draw(total_tokens=60, seed=1).ids).all())
    # A batch does not depend on how many are drawn.
    np.testing.assert_array_equal(draw(total_tokens=1).ids, one.ids[:4])

  def test_a_sample_ends_at_the_end_token(self):
    model = self.load()
    draw = functools.partial(
      generate.generate, model, total_tokens=300, max_tokens=12, prompt=[BOS]
    )
    free = draw(batch_rows=64)
    end = int(np.bincount(free.ids.ravel()).argmax())
    found = draw(batch_rows=64, end=end)
    self.assertNotIn(end, found.ids)
    for ids, length, other in zip(
      found.ids, found.lengths, free.ids, strict=False
    ):
      stop = list(other).index(end) if end in other else 12
      self.assertEqual(length, stop)
      np.testing.assert_array_equal(ids[:stop], other[:stop])
      np.testing.assert_array_equal(ids[stop:], generate.NONE)
    self.assertEqual(found.tokens, found.lengths.sum())
    self.assertGreaterEqual(found.tokens, 300)
    documents = found.documents()
    self.assertLen(documents, int((found.lengths > 0).sum()))
    self.assertLess(found.unique, len(found.ids) + 1)

  def test_repeated_samples_are_counted_once(self):
    ids = np.array([[1, 2], [1, 2], [1, -1], [3, 4]], np.int32)
    samples = generate.Samples(ids, np.array([2, 2, 1, 2]))
    self.assertEqual(samples.unique, 3)
    self.assertEqual(samples.tokens, 7)

  @parameterized.parameters(
    ("total_tokens", 0),
    ("batch_rows", 0),
    ("max_tokens", 0),
    ("max_tokens", 10_000),
    ("temperature", -1.0),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("prompt", []),
    ("prompt", [10**6]),
    ("prompt", [BOS, -1]),
    ("prompt", [1.5]),
    ("end", 40),
    ("end", -1),
  )
  def test_settings_out_of_range_are_refused(self, field, value):
    settings = {"total_tokens": 5, "max_tokens": 4, "prompt": [BOS]}
    with self.assertRaises(errors.InputError) as caught:
      generate.generate(self.load(), **(settings | {field: value}))
    self.assertEqual(caught.exception.field, f"generate.{field}")

  def test_an_encoder_writes_nothing(self):
    with self.assertRaisesRegex(errors.InputError, "language model"):
      generate.generate(
        self.load("bert"), total_tokens=5, max_tokens=4, prompt=[BOS]
      )


class ViewTest(Base):
  @parameterized.parameters(*FAMILIES)
  def test_the_whole_view_is_the_default(self, case):
    model = self.load(case)
    ids = jax.random.randint(jax.random.key(0), (2, 7), 0, model.vocabulary)
    mask = jnp.ones(ids.shape, bool)
    view = jax.jit(lambda m, ids: m(ids, mask, view=ops.whole(mask)))
    np.testing.assert_array_equal(view(model, ids), run(model, ids))

  def test_an_encoder_has_no_view(self):
    model, mask = self.load("bert"), jnp.ones((1, 3), bool)
    with self.assertRaisesRegex(ValueError, "encoder"):
      model(mask.astype(jnp.int32), mask, view=ops.whole(mask))

  def test_positions_begin_anew_in_each_segment(self):
    mask = jnp.asarray([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]], bool)
    segment = jnp.asarray([[0, 0, 1, 1, 1, 1], [7, 7, 7, 4, 5, 5]])
    view = ops.segmented(mask, segment)
    np.testing.assert_array_equal(view.positions[0, :5], [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(view.positions[1, 1:], [0, 1, 0, 0, 1])


class BabyLlamaTest(absltest.TestCase):
  def test_it_writes_different_stories_from_bos(self):
    folder = shared.path("models/babyllama-105")
    words = tokenizer.load(folder)
    model = model_lib.load(str(folder))
    found = generate.generate(
      model,
      total_tokens=300,
      max_tokens=40,
      prompt=[words.bos or 0],
      end=words.eos,
      batch_rows=16,
    )
    # Beginnings repeat: "Once upon a time, there was a little girl named Li".
    self.assertBetween(found.unique, 8, 16)
    # Its own samples are far likelier to it than random characters are.
    rng = np.random.default_rng(0)
    noise = rng.integers(3, words.vocabulary, found.ids.shape)
    loss = []
    for ids in (np.maximum(found.ids, 0), noise):
      framed = np.insert(ids, 0, words.bos or 0, axis=1)
      framed = jnp.asarray(framed, jnp.int32)
      logp = jax.nn.log_softmax(run(model, framed)[:, :-1])
      picked = jnp.take_along_axis(logp, framed[:, 1:, None], axis=-1)
      loss.append(-float(jnp.mean(picked)))
    self.assertLess(loss[0], 2)
    self.assertGreater(loss[1], 5)


if __name__ == "__main__":
  absltest.main()
