"""Tokenizers in GGUF files: splits by name, merges by rank and by score."""

import pathlib

from absl.testing import absltest, parameterized

from saejax.models import gguf, gguf_tokenizer, tokenizer
from tests.models import gguf_files


class GgufTokenizerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, "model.gguf")

  @parameterized.parameters(
    ("llama-bpe", ["It", "'S", " ", "123", "45", ".", "½", "\n\n", " ", " xY"]),
    ("qwen2", ["It", "'S", " ", *"12345", ".", "½", "\n\n", " ", " xY"]),
    ("tekken", ["It", "'S", " ", *"12345", ".", "½", "\n\n", " ", " x", "Y"]),
    ("gpt-4o", ["It'S", " ", "123", "45", ".", "½", "\n\n", " ", " x", "Y"]),
    (
      "deepseek-coder",
      ["It", "'", "S", " ", *"12345", ".", "½", "\n", "\n", " ", " xY"],
    ),
    ("gpt-2", ["It", "'", "S", " 12345", ".", "½", "\n\n ", " xY"]),
    ("smollm", ["It", "'", "S", " ", *"12345", ".", "½", "\n\n ", " xY"]),
  )
  def test_texts_are_split_as_the_name_says(self, pre, want):
    settings = {gguf_tokenizer.PRE: pre}
    words = tokenizer.load(gguf_files.write(self.path, settings=settings))
    text = "It'S 12345.½\n\n  xY"
    found = words.backend.pre_tokenizer.pre_tokenize_str(text)
    self.assertEqual([text[a:b] for _, (a, b) in found], want)

  def test_words_that_are_tokens_need_no_merges(self):
    settings, _ = gguf_files.parts()
    tokens = [*settings[gguf.TOKENS], "qqq"]
    own = {
      gguf.TOKENS: tokens,
      gguf_tokenizer.TOKEN_TYPES: [*settings[gguf_tokenizer.TOKEN_TYPES], 1],
      "tokenizer.ggml.add_bos_token": None,
    }
    for pre, want in (("llama-bpe", ["qqq"]), ("qwen2", ["q", "q", "q"])):
      own[gguf_tokenizer.PRE] = pre
      words = tokenizer.load(gguf_files.write(self.path, settings=own))
      self.assertEqual([tokens[i] for i in words.encode("qqq")], want)
      # The file does not say whether BOS is added.
      self.assertEqual(words.prefix, (1,) if pre == "llama-bpe" else ())

  def test_pieces_are_merged_by_score_and_others_are_bytes(self):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [2, 3, 3] + [6] * 256
    words = ["\u2581", "a", "b", "c", "ab", "bc", "\u2581a", "abc", "<t>"]
    scores = [0.0] * 259 + [-9, -9, -9, -9, -3, -2, -1, -4, 0.0]
    own = {
      gguf_tokenizer.KIND: "llama",
      gguf.TOKENS: pieces + words,
      gguf_tokenizer.SCORES: [float(score) for score in scores],
      gguf_tokenizer.TOKEN_TYPES: types + [1] * 8 + [4],
      **{f"tokenizer.ggml.{role}_token_id": None for role in ("bos", "eos")},
      **{f"tokenizer.ggml.add_{role}_token": None for role in ("bos", "eos")},
      "tokenizer.ggml.padding_token_id": None,
    }
    found = tokenizer.load(gguf_files.write(self.path, settings=own))
    for text, want in (
      ("abc", ["\u2581a", "bc"]),
      ("  ab", ["\u2581", "\u2581", "\u2581a", "b"]),
      ("a<t>\u00e9", ["\u2581a", "<t>", "\u2581", "<0xC3>", "<0xA9>"]),
    ):
      ids = found.encode(text)
      self.assertEqual([(pieces + words)[i] for i in ids], want)
    self.assertEqual(found.decode(found.encode("  ab\u00e9\n")), "  ab\u00e9\n")
    self.assertEqual((found.bos, found.eos, found.prefix), (1, 2, (1,)))
    own["tokenizer.ggml.add_space_prefix"] = False
    plain = tokenizer.load(gguf_files.write(self.path, settings=own))
    self.assertEqual(
      [(pieces + words)[i] for i in plain.encode("abc")], ["abc"]
    )


if __name__ == "__main__":
  absltest.main()
