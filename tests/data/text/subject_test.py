"""Models as subjects: what frames windows, and ids the weights do not have."""

import json
import pathlib
from unittest import mock

import numpy as np
import tokenizers
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.data.store import reader
from saejax.data.text import subject
from saejax.errors import InputError
from saejax.models import model as models
from saejax.models import taps
from tests.data import tiny
from tests.models import golden

SPECIAL = {"<s>": 0, "</s>": 1, "[CLS]": 2, "[SEP]": 3, "<far>": 41}
WORDS = [f"w{i}" for i in range(4, 41)]  # 40 is beyond the weights


class SubjectTest(parameterized.TestCase):
  def folder(self, *, template="<s> $A", roles=(), case="gpt2", **settings):
    """A model of 40 ids with a tokenizer of 42."""
    path = pathlib.Path(self.create_tempdir().full_path)
    own = {"bos_token_id": None, "eos_token_id": None} | settings
    golden.folder(path, case, settings=own)
    words = {word: int(word[1:]) for word in WORDS}
    backend = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(SPECIAL | words, unk_token="w4")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=template, special_tokens=list(SPECIAL.items())
    )
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(dict(roles)))
    return str(path)

  @parameterized.parameters(
    ("gpt2", "z", 24),
    ("gpt2", "mlp_hidden", 96),
    ("gpt2", "final_norm", 24),
    ("llama_gqa_tied", "k", 8),
    ("llama_gqa_tied", "mlp_hidden", 40),
  )
  def test_rows_of_inner_points_have_the_heads_joined(self, case, point, d):
    folder = self.folder(case=case)
    found = subject.at_site(folder, 1, point)
    self.assertEqual(found.d, d)
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    mask = np.ones((2, 6), bool)
    x = found.forward(ids, mask)
    self.assertEqual(x.shape, (2, 6, d))
    model = models.load(folder)
    name = point if point == "final_norm" else f"layers.1.{point}"
    want = taps.read(model, ids, mask, [name])[name]
    np.testing.assert_array_equal(x, want.reshape(2, 6, d))

  @parameterized.parameters(
    ("<s> $A", {"bos_token": "<s>"}, "tokenizer", (0,), (), {0}),
    ("$A", {"bos_token": "<s>"}, "tokenizer", (), (), {0}),
    ("$A </s>", {"eos_token": "</s>"}, "tokenizer", (), (1,), {1}),
    ("[CLS] $A [SEP]", {}, "tokenizer", (2,), (3,), {2, 3}),
    ("$A", {"bos_token": "<s>"}, "add", (0,), (), {0}),
    (
      "<s> $A",
      {"cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "<s>"},
      "add",
      (2,),
      (3,),
      {0, 2, 3},
    ),
    ("<s> $A", {"bos_token": "<s>"}, "none", (), (), {0}),
  )
  def test_windows_follow_the_template_or_the_setting(
    self, template, roles, special_tokens, prefix, suffix, special
  ):
    found = subject.at_site(
      self.folder(template=template, roles=roles.items()),
      0,
      "resid_post",
      special_tokens=special_tokens,
    )
    self.assertEqual((found.prefix, found.suffix), (prefix, suffix))
    self.assertEqual(found.special, special)
    self.assertEqual(found.vocabulary, 40)

  def test_adding_tokens_that_the_tokenizer_lacks_is_refused(self):
    with self.assertRaisesRegex(
      InputError, "harvest.special_tokens=add: .*CLS and SEP, or BOS"
    ):
      subject.at_site(self.folder(), 0, "resid_post", special_tokens="add")
    with self.assertRaisesRegex(InputError, "special_tokens=bos"):
      subject.at_site(self.folder(), 0, "resid_post", special_tokens="bos")

  def test_special_tokens_beyond_the_weights_are_refused(self):
    folder = self.folder(template="<far> $A")
    with self.assertRaisesRegex(InputError, r"harvest.model=41: .*\[0, 40\)"):
      subject.at_site(folder, 0, "resid_post")
    # Round no window it does no harm.
    found = subject.at_site(folder, 0, "resid_post", special_tokens="none")
    self.assertEqual(found.encode("w5 w9").tolist(), [5, 9])
    for word in ("w40", "<far>"):
      with self.assertRaisesRegex(InputError, r"harvest.model=4[01]: .*40\)"):
        found.encode(f"w5 {word} w9")

  def test_ids_from_the_defaults_of_a_config_class_are_not_used(self):
    # Saved with GPT-2's defaults: once 100 % of the rows were NaN.
    folder = self.folder(template="$A", bos_token_id=50256, eos_token_id=50256)
    corpus = pathlib.Path(self.create_tempdir().full_path)
    for i in range(20):
      words = np.random.default_rng(i).choice(WORDS[:-1], 30)
      (corpus / f"{i}.txt").write_text(" ".join(words))
    for special_tokens in subject.SPECIAL_TOKENS[::2]:
      config = harvest.HarvestConfig(
        model=folder,
        layer=1,
        corpus=str(corpus),
        rows=200,
        held_out_rows=90,
        held_out_fraction=0.3,
        context=16,
        forward_batch=4,
        bucket_rows=128,
        shard_rows=128,
        chunk_rows=32,
        special_tokens=special_tokens,
        dir=str(corpus.parent / "stores"),
      )
      train, held_out = harvest.harvest(config)
      self.assertEqual(train.meta["prefix"], [])
      self.assertEqual(train.rows, 200)
      for store in (train, held_out):
        x = tiny.everything(store)["x"].astype(np.float32)
        self.assertTrue(np.isfinite(x).all())

  def test_source_and_target_of_one_model_are_read_in_one_forward(self):
    folder = self.folder()
    alone = [subject.at_site(folder, 1, p) for p in ("mlp_in", "mlp_out")]
    source, target = subject.shared(alone)
    reads = []

    def read(model, ids, mask, sites):
      reads.append(sites)
      return taps_read(model, ids, mask, sites)

    taps_read = taps.read
    with mock.patch.object(taps, "read", read):
      for seed in range(2):
        ids = np.random.default_rng(seed).integers(0, 40, (2, 6), np.int32)
        mask = np.ones((2, 6), bool)
        x, y = source.forward(ids, mask), target.forward(ids, mask)
        self.assertLen(reads, seed + 1)
        np.testing.assert_allclose(x, alone[0].forward(ids, mask), rtol=1e-6)
        np.testing.assert_allclose(y, alone[1].forward(ids, mask), rtol=1e-6)
        del reads[seed + 1 :]
    self.assertEqual(reads[0], ["layers.1.mlp_in", "layers.1.mlp_out"])
    # Subjects of two models, or of none, are left as they are.
    other = subject.at_site(self.folder(), 1, "mlp_out")
    self.assertIs(subject.shared([source, other])[1], other)
    self.assertEqual(subject.shared([alone[0]]), [alone[0]])

  def test_several_sites_are_harvested_in_one_forward_into_a_store_each(self):
    folder, where = self.folder(), self.create_tempdir().full_path
    corpus = pathlib.Path(where) / "corpus"
    corpus.mkdir()
    for i in range(12):
      words = np.random.default_rng(i).integers(0, 40, 60)
      text = " ".join(f"w{word}" for word in words)
      (corpus / f"{i}.txt").write_text(text)

    def config(name, **changes):
      same = {"model": str(folder), "forward_batch": 4, "drop_ids": ()}
      return tiny.config(corpus, pathlib.Path(where) / name, **same, **changes)

    sites = ("layers.0.resid_post", "layers.1.mlp_hidden", "embed")
    forwards = []

    def read(*arguments):
      forwards.append(arguments)
      return taps_read(*arguments)

    taps_read = taps.read
    with mock.patch.object(taps, "read", read):
      found = harvest.harvest_share(config("all", sites=sites))
    several = len(forwards)
    self.assertLen(found, 3)
    for name, stores in zip(sites, found, strict=True):
      layer, point = taps.parse(name)
      forwards.clear()
      with mock.patch.object(taps, "read", read):
        alone = harvest.harvest(config(name, layer=layer or 0, point=point))
      self.assertLess(several, len(forwards) + 20)  # and median norms
      for one, other in zip(stores, alone, strict=True):
        self.assertTrue(one.complete)
        self.assertEqual(one.place.name, other.place.name)
        one = reader.open(one.place)
        for column, values in other.whole(*other.columns).items():
          np.testing.assert_allclose(
            one.whole(column)[column].astype(np.float64),
            values.astype(np.float64),
            rtol=1e-5,
            atol=1e-5,
          )
    with self.assertRaisesRegex(InputError, "harvest.sites=nowhere"):
      harvest.harvest_share(config("no", sites=("nowhere",)))
    with self.assertRaisesRegex(InputError, "harvest.sites=.*one site"):
      harvest.harvest(config("no", sites=sites))

  def test_memory_of_a_window_grows_with_what_the_model_holds(self):
    found = subject.at_site(self.folder(), 0, "resid_post")
    # 10 tokens: ids and rows; 4 bytes of an MLP of 96 beside two streams of 24.
    self.assertEqual(
      found.bytes_of(10), 10 * (32 + 8 * 24) + 4 * 10 * (2 * 24 + 96)
    )
    # Scores of 4 heads grow with the square.
    self.assertGreater(found.bytes_of(10_000), 900 * found.bytes_of(100) / 2)


if __name__ == "__main__":
  absltest.main()
