"""saejax/data/conversations.py: one conversation at a time, or as if it were."""

import dataclasses
import importlib
import json
import pathlib
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.data.text import conversations
from saejax.data.text import corpus as text
from saejax.errors import InputError
from saejax.models import model as models
from saejax.models import taps, tokenizer
from tests import shared
from tests.data import tiny

TALK = (
  {"role": "user", "content": "Tell me a story."},
  {"role": "assistant", "content": "Once upon a time {there} was a cat."},
)
SITE = "layers.3.resid_post"


class TemplateTest(parameterized.TestCase):
  def test_templates_by_hand(self):
    self.assertEqual(
      conversations.TEMPLATES["chatml"](TALK),
      "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"
      "Once upon a time {there} was a cat.<|im_end|>\n",
    )
    self.assertEqual(
      conversations.TEMPLATES["llama3"](TALK[:1]),
      "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
      "Tell me a story.<|eot_id|>",
    )
    self.assertEqual(
      conversations.TEMPLATES["plain"](TALK[:1]), "user: Tell me a story.\n"
    )

  def test_a_models_own_template(self):
    try:
      importlib.import_module("transformers")
    except ImportError:
      self.skipTest("transformers is not installed")
    folder = shared.path("models/babyllama-105")
    with self.assertRaisesRegex(InputError, "must have a chat template"):
      conversations.render(folder, TALK)
    own = pathlib.Path(self.create_tempdir().full_path)
    for name in ("tokenizer.json", "config.json"):
      (own / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = (
      "{% for m in messages %}[{{ m.role }}] {{ m.content }};{% endfor %}"
      "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    (own / "tokenizer_config.json").write_text(json.dumps(config))
    self.assertEqual(
      conversations.render(own, TALK[:1]), "[user] Tell me a story.;"
    )
    self.assertEqual(
      conversations.render_all(own, [TALK[:1]], reply=True),
      ["[user] Tell me a story.;[assistant] "],
    )

  def test_without_transformers_the_message_says_so(self):
    with (
      mock.patch.object(conversations, "EXTRA", "no_such_package"),
      self.assertRaisesRegex(InputError, "pip install"),
    ):
      conversations.render("folder", TALK)


class DeduplicateTest(absltest.TestCase):
  def talk(self, *turns):
    return [{"role": "user", "content": content} for content in turns]

  def test_by_hand(self):
    # fast, check 3, with runs of 3 words.
    talks = [
      self.talk("a b c d"),
      self.talk("x b c d y"),  # b c d was seen
      self.talk("a b", "c d"),  # no turn has 3 words
      self.talk("x  b\nc e"),  # x b c was only in one that was dropped
      self.talk("e f", "q x b c"),  # x b c was seen
      self.talk("a b c d"),
    ]
    self.assertEqual(conversations.deduplicate(talks, words=3), [0, 2, 3])

  def test_runs_have_20_words(self):
    words = [f"w{i}" for i in range(20)]
    talks = [
      self.talk(" ".join(words)),
      self.talk(" ".join(words[:19])),
      self.talk(" ".join([*words, "more"])),
    ]
    self.assertEqual(conversations.deduplicate(talks), [0, 1])


class PackTest(parameterized.TestCase):
  def documents(self):
    lengths = (3, 7, 0, 5, 2, 12, 4)
    return [
      np.arange(n, dtype=np.int32) + 100 * i for i, n in enumerate(lengths)
    ]

  @parameterized.parameters(*conversations.PACKINGS)
  def test_each_token_is_there_once(self, packing):
    documents = self.documents()
    found = conversations.pack(documents, packing=packing, max_tokens=8)
    self.assertLessEqual(found.ids.shape[1], 8)
    most = None if packing == "block" else 8
    for number, ids in enumerate(documents):
      own = found.mask & (found.doc == number)
      order = np.argsort(found.pos[own])
      np.testing.assert_array_equal(found.ids[own][order], ids[:most])
      np.testing.assert_array_equal(
        np.sort(found.pos[own]), np.arange(len(ids))[:most]
      )
    np.testing.assert_array_equal(found.ids[~found.mask], 0)
    np.testing.assert_array_equal(found.doc[~found.mask], -1)

  def test_a_row_each_or_as_full_as_they_get(self):
    rows = {
      packing: len(
        conversations.pack(self.documents(), packing=packing, max_tokens=8).ids
      )
      for packing in conversations.PACKINGS
    }
    self.assertEqual(rows, {"per_sample": 6, "segmented": 4, "block": 5})

  @parameterized.parameters(
    ({"packing": "none"}, "packing"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"documents": [[]]}, "max_tokens"),
  )
  def test_what_cannot_be_is_refused(self, changes, field):
    settings = {"documents": self.documents(), "max_tokens": 8} | changes
    with self.assertRaises(InputError) as caught:
      conversations.pack(**settings)
    self.assertEqual(caught.exception.field, field)


class ActivationsTest(absltest.TestCase):
  """fast, check 1, on a real model."""

  def setUp(self):
    super().setUp()
    folder = str(shared.path("models/babyllama-105"))
    self.model = models.load(folder)
    self.words = tokenizer.load(folder)
    turns = [
      TALK,
      TALK[:1],
      ({"role": "user", "content": "Who was the boy in the park?"},),
    ]
    template = conversations.TEMPLATES["plain"]
    bos = np.asarray([self.words.bos], np.int32)
    self.documents = [
      np.concatenate([bos, self.words.encode(template(t))]) for t in turns
    ]

  def read(self, packing, max_tokens=256):
    packed = conversations.pack(
      self.documents, packing=packing, max_tokens=max_tokens
    )
    return conversations.activations(self.model, packed, SITE, batch_rows=2)

  def test_packings_against_each_sample_alone(self):
    alone = [
      taps.read(
        self.model,
        jnp.asarray(ids)[None],
        jnp.ones((1, len(ids)), bool),
        [SITE],
      )[SITE][0]
      for ids in self.documents
    ]
    want = np.concatenate([np.asarray(x) for x in alone])
    size = np.abs(want).max()
    first = len(self.documents[0])
    for packing in conversations.PACKINGS:
      found = self.read(packing)
      np.testing.assert_array_equal(
        found["tok"], np.concatenate(self.documents)
      )
      away = np.abs(found["x"] - want).max(axis=1) / size
      if packing == "block":
        self.assertLess(away[:first].max(), 1e-5)
        self.assertGreater(np.median(away[first:]), 1e-2)
      else:
        self.assertLess(away.max(), 1e-5)

  def test_segments_share_rows(self):
    packed = conversations.pack(
      self.documents, packing="segmented", max_tokens=256
    )
    self.assertLen(packed.ids, 1)

  def test_special_tokens_are_rows(self):
    found = self.read("per_sample")
    bos = found["tok"] == self.words.bos
    self.assertEqual(bos.sum(), 3)
    np.testing.assert_array_equal(found["pos"][bos], 0)


class MixingBufferTest(parameterized.TestCase):
  def parts(self, sizes):
    row = np.arange(sum(sizes))
    stops = np.cumsum(sizes)[:-1]
    return [{"row": r, "x": r[:, None] * 2.0} for r in np.split(row, stops)]

  @parameterized.parameters(((10,) * 7,), ((70,),), ((1, 33, 0, 36),))
  def test_half_is_given_each_time_and_each_row_once(self, sizes):
    # fast, check 2.
    given = list(
      conversations.mixing_buffer(self.parts(sizes), capacity_rows=20, seed=0)
    )
    self.assertEqual([len(g["row"]) for g in given], [10] * 7)
    row = np.concatenate([g["row"] for g in given])
    self.assertCountEqual(row.tolist(), range(70))
    for part in given:
      np.testing.assert_array_equal(part["x"][:, 0], part["row"] * 2)
    # Only what was in the buffer can be given, and it is mixed.
    self.assertLess(given[0]["row"].max(), 20)
    self.assertNotEqual(given[0]["row"].tolist(), list(range(10)))

  def test_padding_never_comes_in(self):
    folder = str(shared.path("models/babyllama-105"))
    model = models.load(folder)
    documents = [np.full(n, 10 + n, np.int32) for n in (3, 9, 1, 6)]
    packed = conversations.pack(documents, max_tokens=16)
    columns = conversations.activations(model, packed, SITE, batch_rows=4)
    mixed = list(
      conversations.mixing_buffer([columns], capacity_rows=8, seed=0)
    )
    tok = np.concatenate([part["tok"] for part in mixed])
    self.assertCountEqual(tok, np.concatenate(documents))

  def test_a_buffer_of_one_row_is_refused(self):
    with self.assertRaisesRegex(InputError, "capacity_rows"):
      next(conversations.mixing_buffer([], capacity_rows=1, seed=0))


class IdsCorpusTest(absltest.TestCase):
  """Documents of token ids: a model's samples, conversations."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    rng = np.random.default_rng(0)
    # Among them ids that text would never encode to: CLS inside a document.
    documents = [rng.integers(2, 30, n) for n in rng.integers(5, 60, 40)]
    self.documents = [*documents, documents[0], np.asarray([3, tiny.CLS, 4])]
    self.name = text.write_ids(self.folder / "ids.jsonl", self.documents)

  def harvest(self, source):
    config = harvest.HarvestConfig(
      corpus=self.name,
      rows=10_000,
      held_out_rows=800,
      context=64,
      document_tokens=60,
      bucket_rows=256,
      shard_rows=256,
      chunk_rows=64,
      outlier_multiple=0,
      dtype="float32",
      dir=str(self.folder / "stores"),
    )
    return harvest.harvest(config, source=source)

  def test_a_corpus_of_ids(self):
    corpus = text.documents(self.name)
    self.assertLen(corpus, 41)  # one of 42 twice
    self.assertTrue(corpus.describe()["ids"])
    refuse = mock.Mock(side_effect=AssertionError)
    found = {tuple(corpus.encode(i, refuse)) for i in range(41)}
    self.assertEqual(found, {tuple(d) for d in self.documents})

  def test_harvest_takes_ids_as_they_are(self):
    train, held_out = self.harvest(tiny.source())
    corpus = text.documents(self.name)
    for store in (train, held_out):
      columns = store.whole("doc", "pos", "tok")
      for doc in np.unique(columns["doc"]):
        own = columns["doc"] == doc
        order = np.argsort(columns["pos"][own])
        ids = corpus.encode(int(doc), tiny.encode)
        want = ids[ids != tiny.CLS]
        np.testing.assert_array_equal(columns["tok"][own][order], want)

  def test_conversations_keep_their_special_tokens_and_get_no_others(self):
    source = conversations.as_conversations(tiny.source())
    seen = []
    forward = source.forward
    source = dataclasses.replace(
      source,
      forward=lambda ids, mask: seen.append(ids[mask]) or forward(ids, mask),
    )
    stores = self.harvest(source)
    tok = np.concatenate([s.whole("tok")["tok"] for s in stores])
    self.assertEqual((tok == tiny.CLS).sum(), 1)
    self.assertLen(tok, sum(map(len, self.documents[:-2])) + 3)
    self.assertNotIn(tiny.SEP, np.concatenate(seen))

  def test_lines_that_hold_no_ids_are_refused(self):
    for line in ('{"text": "a"}', '{"ids": ["a"]}', '{"ids": [-1]}', "[1]"):
      path = self.folder / "bad.jsonl"
      path.write_text(line + "\n")
      with self.assertRaisesRegex(InputError, "list of token ids"):
        text.documents(f"ids:{path}")


if __name__ == "__main__":
  absltest.main()
