"""Which tokens of a conversation are an assistant's, and harvests of them."""

import dataclasses
import pathlib

import numpy as np
import tokenizers
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.data.text import conversations, turns
from saejax.data.text import corpus as text
from saejax.errors import InputError
from saejax.models import tokenizer
from tests.data import tiny

TALK = (
  {"role": "user", "content": "Say assistant: twice"},
  {"role": "assistant", "content": "assistant assistant, ünï 日本"},
  {"role": "user", "content": "end"},
  {"role": "assistant", "content": "bye"},
)


def words() -> tokenizer.Tokenizer:
  """Bytes, without a merge: a character may be several tokens."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE({a: i for i, a in enumerate(alphabet)}, [])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  backend.decoder = tokenizers.decoders.ByteLevel()
  return tokenizer.Tokenizer(
    backend, None, None, None, None, None, frozenset(), (), (), 256
  )


class TurnsTest(parameterized.TestCase):
  @parameterized.parameters("plain", "chatml", "llama3")
  def test_rows_are_the_contents_of_the_roles(self, name):
    template = conversations.TEMPLATES[name]
    w = words()
    for roles, wanted in (
      (("assistant",), TALK[1]["content"] + TALK[3]["content"]),
      (("user",), TALK[0]["content"] + TALK[2]["content"]),
      ((), ""),
    ):
      ids, rows = turns.tokens(TALK, template, w, roles=roles)
      self.assertEqual(w.decode(ids), template(TALK))
      self.assertEqual(w.decode(ids[rows]), wanted)

  def test_templates_that_strip_and_begin_with_words_of_their_own(self):
    def template(given):
      parts = [f"<{t['role']}> {t['content'].strip()} </>" for t in given]
      return "system: be good. " + "".join(parts)

    spaced = [{**turn, "content": f"  {turn['content']} "} for turn in TALK]
    w = words()
    ids, rows = turns.tokens(spaced, template, w)
    wanted = TALK[1]["content"] + TALK[3]["content"]
    self.assertEqual(w.decode(ids[rows]), wanted)

  @parameterized.parameters(
    lambda given: " ".join(t["content"] for t in reversed(given)),
    lambda given: f"{len(given)} turns: " + given[-1]["content"],
    lambda given: "nothing",
  )
  def test_templates_in_which_contents_are_not_found_are_refused(
    self, template
  ):
    talk = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with self.assertRaisesRegex(InputError, "template=user.*turn"):
      turns.tokens(talk, template, words())

  def test_only_an_assistants_tokens_are_harvested(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    w, template = words(), conversations.TEMPLATES["plain"]
    generator = np.random.default_rng(0)
    talks = [
      [
        {**turn, "content": turn["content"] + " " + "xyz "[: 1 + i % 3] * i}
        for turn in TALK
      ]
      for i in generator.permutation(40).tolist()
    ]
    pairs = [turns.tokens(talk, template, w) for talk in talks]
    ids, rows = zip(*pairs, strict=True)
    name = text.write_ids(folder / "chat.jsonl", ids, rows=rows)
    seen = []

    def forward(given, mask):
      seen.append(given[mask])
      return tiny.forward(given, mask)

    source = conversations.as_conversations(
      dataclasses.replace(tiny.source(forward), vocabulary=258)
    )
    size = max(map(len, ids))
    config = tiny.config(
      name,
      folder / "stores",
      context=size,
      rows=1_500,
      held_out_rows=1_000,
      drop_ids=(),
      outlier_multiple=0,
    )
    for store in harvest.harvest(config, source=source):
      corpus = text.documents(name)
      table = tiny.everything(store)
      for doc in np.unique(table["doc"]).tolist():
        own = corpus.encode(doc, str)
        pos = np.sort(table["pos"][table["doc"] == doc])
        wanted = np.flatnonzero(own >= 0)
        np.testing.assert_array_equal(pos, wanted[: len(pos)])
        said = w.decode(own[wanted])
        self.assertStartsWith(said, "assistant assistant, ünï 日本")
        self.assertNotIn("Say", said)
      self.assertGreater(store.stats["dropped"]["corpus"], 100)
    # The model has seen the user's words, too.
    self.assertIn("Say assistant: twice", w.decode(np.concatenate(seen)))
    self.assertGreaterEqual(min(a.min() for a in seen), 0)

  @parameterized.parameters(
    ('{"ids": [1, 2], "rows": [1]}', "'rows'.*0 or 1 for each"),
    ('{"ids": [1, 2], "rows": [1, 2]}', "'rows'.*0 or 1 for each"),
    ('{"ids": [1, 2], "rows": 1}', "'rows'.*0 or 1 for each"),
    ('{"ids": [1, -2], "rows": [1, 1]}', "'ids' is a list of token ids"),
  )
  def test_bad_rows_of_a_corpus_are_refused(self, line, message):
    path = pathlib.Path(self.create_tempdir().full_path, "a.jsonl")
    path.write_text(line)
    with self.assertRaisesRegex(InputError, f"line 1.*{message}"):
      text.documents(f"ids:{path}")

  def test_rows_of_another_length_are_not_written(self):
    path = pathlib.Path(self.create_tempdir().full_path, "a.jsonl")
    with self.assertRaisesRegex(ValueError, "rows must have 2 entries"):
      text.write_ids(path, [[1, 2]], rows=[[True]])
    with self.assertRaisesRegex(ValueError, "zip"):
      text.write_ids(path, [[1, 2], [1]], rows=[[True, True]])


if __name__ == "__main__":
  absltest.main()
