"""saejax/models/generate.py: samples are the model's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import decoding, generate, ops, tokenizer
from saejax.models import model as model_lib
from tests import compiled, shared
from tests.models import gguf_files, golden

FAMILIES = ("gpt2_untied_scaled", "llama_gqa_tied", *golden.SMALL)
BOS = 1
PROMPTS = ([BOS, 3], [BOS], [BOS, 5, 2, 9, 4])
greedy = functools.partial(generate.generate, temperature=0)


@jax.jit
def run(model, ids):
  return model(ids, jnp.ones(ids.shape, bool))


@functools.partial(jax.jit, static_argnames="last")
def one_by_one(model, ids, last):
  def step(cache, at):
    logits, cache = decoding.next_logits(model, cache, ids[:, at], at)
    return cache, logits

  cache = decoding.empty_cache(model, len(ids), last)
  return jax.lax.scan(step, cache, jnp.arange(last))[1].swapaxes(0, 1)


def likeliest(model, prompt, count):
  """Greedy tokens by whole forward passes."""
  ids = np.zeros((1, 16), np.int32)
  ids[0, : len(prompt)] = prompt
  for at in range(len(prompt), len(prompt) + count):
    ids[0, at] = run(model, jnp.asarray(ids))[0, at - 1].argmax()
  return ids[0, len(prompt) : len(prompt) + count].tolist()


class Base(parameterized.TestCase):
  def load(self, case="llama_gqa_tied"):
    return model_lib.load(golden.folder(self.create_tempdir(), case))


class PromptsTest(Base):
  @parameterized.parameters(*FAMILIES)
  def test_one_token_at_a_time_gives_the_logits_of_the_whole(self, case):
    model = self.load(case)
    ids = jax.random.randint(jax.random.key(0), (3, 9), 0, model.vocabulary)
    got, want = one_by_one(model, ids, 9), run(model, ids)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-4)

  @parameterized.parameters(*FAMILIES)
  def test_prompts_of_any_length_go_on_with_the_likeliest_tokens(self, case):
    model = self.load(case)
    found = greedy(model, PROMPTS, max_tokens=6)
    for prompt, ids in zip(PROMPTS, found.ids, strict=True):
      self.assertEqual(ids.tolist(), likeliest(model, prompt, 6))
    self.assertEqual(found.reasons, ("length",) * 3)
    self.assertEmpty(found.texts)

  def test_padding_may_be_on_either_side(self):
    model = self.load()
    want = greedy(model, PROMPTS, max_tokens=6).ids
    for left in (True, False):
      ids, mask = np.full((3, 6), 7, np.int32), np.zeros((3, 6), bool)
      for r, prompt in enumerate(PROMPTS):
        at = slice(6 - len(prompt), 6) if left else slice(0, len(prompt))
        ids[r, at], mask[r, at] = prompt, True
      got = greedy(model, ids, mask=mask, max_tokens=6).ids
      np.testing.assert_array_equal(got, want)

  def test_scanned_layers_give_the_same_tokens(self):
    model = self.load()
    got = greedy(model.scanned(), PROMPTS, max_tokens=6)
    want = greedy(model, PROMPTS, max_tokens=6)
    np.testing.assert_array_equal(got.ids, want.ids)

  def test_a_sample_depends_on_its_number_and_prompt_alone(self):
    model = self.load()
    prompts = [*PROMPTS, [BOS, 8, 8], [BOS] * 12]
    draw = functools.partial(generate.generate, model, max_tokens=8, seed=3)
    found = draw(prompts)
    for rows in (1, 2, 4):
      got = draw(prompts, batch_rows=rows)
      np.testing.assert_array_equal(got.ids, found.ids)
    others = [[2, 2]] * 5
    others[2] = prompts[2]
    np.testing.assert_array_equal(draw(others).ids[2], found.ids[2])
    np.testing.assert_array_equal(
      draw([prompts[2]], first=2).ids[0], found.ids[2]
    )
    self.assertFalse(
      (draw(prompts[:1] * 5).ids == found.ids[0]).all(axis=1)[1:].any()
    )

  def test_prompts_of_similar_length_and_other_settings_share_programs(self):
    model = self.load()
    draw = functools.partial(generate.generate, model, max_tokens=3, top_p=0.9)
    draw([[BOS] * 3, [BOS]])
    with compiled.nothing(self):
      draw([[BOS] * 9, [BOS] * 16], max_tokens=2, seed=1)
      draw([[BOS] * 2, [BOS] * 16], temperature=0.5, top_p=0.3)
    with self.assertRaises(AssertionError), compiled.nothing(self):
      draw([[BOS] * 2, [BOS] * 17])


class SamplesTest(Base):
  @parameterized.parameters(0.7, 1.0)
  def test_first_tokens_follow_the_softmax(self, temperature):
    # faithful, check 2, by chi-square over the tokens expected 5 times or more.
    model = self.load()
    found = generate.samples(
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

  def test_seeds_name_the_samples_and_batches_differ(self):
    model = self.load()
    draw = functools.partial(
      generate.samples, model, max_tokens=8, prompt=[BOS], batch_rows=4
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
      generate.samples, model, total_tokens=300, max_tokens=12, prompt=[BOS]
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
    samples = generate.Samples(ids, np.array([2, 2, 1, 2]), ("length",) * 4)
    self.assertEqual(samples.unique, 3)
    self.assertEqual(samples.tokens, 7)

  @parameterized.parameters(
    ("total_tokens", 0),
    ("batch_rows", 0),
    ("max_tokens", 0),
    ("max_tokens", 10_000),
  )
  def test_sizes_out_of_range_are_refused(self, field, value):
    settings = {"total_tokens": 5, "max_tokens": 4, "prompt": [BOS]}
    with self.assertRaises(errors.InputError) as caught:
      generate.samples(self.load(), **(settings | {field: value}))
    self.assertEqual(caught.exception.field, f"generate.{field}")

  def test_samples_that_are_all_empty_are_refused(self):
    model = self.load()
    first = int(run(model, jnp.asarray([[BOS]]))[0, -1].argmax())
    with self.assertRaisesRegex(errors.InputError, "every sample is empty"):
      generate.samples(
        model,
        total_tokens=5,
        max_tokens=4,
        prompt=[BOS],
        temperature=0,
        end=first,
      )


class ChecksTest(Base):
  @parameterized.parameters(
    ("temperature", -1.0),
    ("temperature", float("nan")),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_k", 0),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("prompts", []),
    ("prompts", "a text, not a list"),
    ("prompts", ["no tokenizer"]),
    ("prompts", [BOS, 3]),
    ("prompts", [[BOS], []]),
    ("prompts", [[10**6]]),
    ("prompts", [[BOS, -1]]),
    ("prompts", [[1.5]]),
    ("prompts", [[BOS] * 10_000]),
    ("mask", np.ones((1, 2), bool)),
    ("end", 40),
    ("end", -1),
    ("end", [BOS, 40]),
    ("stop", ["no tokenizer"]),
    ("stop", "a string, not a list"),
    ("stop", [""]),
    ("max_tokens", 0),
    ("batch_rows", 0),
  )
  def test_settings_out_of_range_are_refused(self, field, value):
    settings = {"max_tokens": 4, "prompts": [[BOS]]} | {field: value}
    with self.assertRaises(errors.InputError) as caught:
      generate.generate(self.load(), **settings)
    self.assertEqual(caught.exception.field, f"generate.{field}")

  def test_mask_must_fit_and_leave_tokens(self):
    ids = np.ones((1, 3), np.int32)
    with self.assertRaisesRegex(errors.InputError, "at least one id"):
      greedy(self.load(), ids, mask=np.zeros((1, 3), bool), max_tokens=1)

  def test_an_encoder_writes_nothing(self):
    with self.assertRaisesRegex(errors.InputError, "language model"):
      generate.generate(self.load("bert"), [[BOS]], max_tokens=4)


class TextTest(absltest.TestCase):
  """On a model of random weights with a tokenizer, from a GGUF file."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = model_lib.load(str(gguf_files.GOLDEN))
    cls.words = tokenizer.load(gguf_files.GOLDEN)
    cls.draw = staticmethod(
      functools.partial(
        generate.generate,
        cls.model,
        ["the others", "in the end, then"],
        words=cls.words,
        max_tokens=26,
        end=(),
        seed=1,
      )
    )
    cls.free = cls.draw()

  def test_texts_follow_the_prompts(self):
    self.assertEqual(self.free.reasons, ("length",) * 2)
    for ids, text in zip(self.free.ids, self.free.texts, strict=True):
      self.assertEqual(text, self.words.decode(ids))
    prompts = [
      [*self.words.prefix, *self.words.encode(text)]
      for text in ("the others", "in the end, then")
    ]
    got = generate.generate(
      self.model, prompts, words=self.words, max_tokens=26, end=(), seed=1
    )
    np.testing.assert_array_equal(got.ids, self.free.ids)

  def test_a_stop_string_ends_the_text_before_it(self):
    whole = self.free.texts[0]
    for start in (0, 7, len(whole) // 2):
      stop = whole[start : start + 5]
      found = self.draw(stop=["absent from it", stop])
      self.assertEqual(found.reasons[0], "stop")
      self.assertEqual(found.texts[0], whole[: whole.index(stop)])
      n = int(found.lengths[0])
      ids = self.free.ids[0]
      np.testing.assert_array_equal(found.ids[0, :n], ids[:n])
      np.testing.assert_array_equal(found.ids[0, n:], generate.NONE)
      # The last token is the one that completes the stop string.
      self.assertIn(stop, self.words.decode(ids[:n]))
      self.assertNotIn(stop, self.words.decode(ids[: n - 1]))
      if stop not in self.free.texts[1]:
        np.testing.assert_array_equal(found.ids[1], self.free.ids[1])
        self.assertEqual(found.reasons[1], "length")

  def test_any_of_several_end_tokens_ends_a_sample(self):
    ends = [int(self.free.ids[0, 9]), int(self.free.ids[1, 4])]
    found = self.draw(end=ends)
    for r, ids in enumerate(self.free.ids):
      stop = int(np.isin(ids, ends).argmax())
      self.assertEqual(found.lengths[r], stop)
      self.assertEqual(found.reasons[r], "end")
      np.testing.assert_array_equal(found.ids[r, :stop], ids[:stop])

  def test_the_tokenizers_end_token_is_the_default(self):
    found = self.draw(end=None, seed=2)
    same = self.draw(end=self.words.eos, seed=2)
    np.testing.assert_array_equal(found.ids, same.ids)
    self.assertNotIn(self.words.eos, found.ids)


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
    found = generate.samples(
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
