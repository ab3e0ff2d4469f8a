"""Merged stores: every row once, refusals, resuming; what info says of them."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest, merged
from saejax.data.store import create, reader
from saejax.data.store import place as places
from saejax.data.store.share import Share
from saejax.data.text import rules
from saejax.errors import InputError
from saejax.studies import info
from tests.data import tiny
from tests.experiments import script

SMALL = {"bucket_rows": 256, "shard_rows": 128, "chunk_rows": 32}


class MergedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    corpus = tiny.corpus(self.folder / "corpus")
    other = tiny.corpus(self.folder / "other", documents=25)
    self.stores = [
      harvest.harvest(
        tiny.config(name, self.folder / "stores", rows=rows),
        source=tiny.source(),
      )[0]
      for name, rows in ((corpus, 1_100), (other, 700))
    ]

  def merge(self, name="merged", stores=None, **changes):
    place = merged.merge(
      stores or self.stores, self.folder / name, **(SMALL | changes)
    )
    return place

  def test_every_row_is_there_once_with_documents_of_its_own(self):
    found = reader.open(self.merge())
    self.assertEqual(found.rows, sum(store.rows for store in self.stores))
    want = set()
    for number, store in enumerate(self.stores):
      one = store.whole("doc", "pos", "tok")
      documents = one["doc"] + number * merged.DOCUMENTS
      want |= set(zip(documents, one["pos"], one["tok"], strict=True))
    all_ = found.whole("x", "doc", "pos", "tok")
    got = list(zip(all_["doc"], all_["pos"], all_["tok"], strict=True))
    self.assertLen(got, len(want))
    self.assertEqual(set(got), want)
    vectors = tiny.vectors()[all_["tok"]]
    np.testing.assert_array_equal(all_["x"][:, 1:], vectors[:, 1:])
    self.assertEqual(found.meta["split"], "train")
    self.assertIn(tiny.CLS, rules.from_store(found).special)

  def test_the_order_is_kept_without_a_seed(self):
    found = reader.open(self.merge(shuffle_seed=None))
    want = np.concatenate([store.whole("tok")["tok"] for store in self.stores])
    np.testing.assert_array_equal(found.whole("tok")["tok"], want)

  def test_several_processes_and_one_give_the_same_bytes(self):
    self.merge()
    for process in (1, 0):
      self.merge("several", share=Share(process, 2))
    several = tiny.files(self.folder / "several")
    self.assertEqual(several, tiny.files(self.folder / "merged"))

  def test_stores_that_do_not_belong_together(self):
    source = tiny.source()
    source.meta["model"] = {"name": "another", "weights": "1"}
    other, held_out = harvest.harvest(
      tiny.config(self.folder / "corpus", self.folder / "c"), source=source
    )
    own = create.write_store(self.folder / "own", np.ones((9, 3), np.float32))
    for store, name in (
      (other, "model"),
      (held_out, "model"),
      (own, "calibration_rows"),
    ):
      with self.assertRaisesRegex(
        InputError, f"stores=.*must have the {name} "
      ):
        self.merge("x", [self.stores[0], store])
    with self.assertRaisesRegex(InputError, "stores=1: must be two or more"):
      self.merge("x", self.stores[:1])
    self.assertFalse((self.folder / "x").exists())

  def test_the_commands(self):
    paths = ",".join(str(store.path) for store in self.stores)
    flags = [f"--{name}={size}" for name, size in SMALL.items()]
    code, out, err = script.run(
      "merge", f"--stores={paths}", f"--dir={self.folder / 'm'}", *flags
    )
    self.assertEqual(code, 0, err)
    found = reader.open(out.strip())
    code, out, err = script.run("info", f"--path={found.path}")
    self.assertEqual(code, 0, err)
    self.assertIn("complete", out)
    self.assertIn(f"{found.rows:,} of at most {found.rows:,}", out)
    self.assertIn(found.content, out)

  def test_info_of_a_store_that_is_being_written(self):
    config = tiny.config(self.folder / "corpus", self.folder / "part")
    found = harvest.harvest_share(
      config, share=Share(1, 2), source=tiny.source()
    )
    lines = dict(info.described(found[0][0].place))
    self.assertEqual(
      lines["state"], "being written, or stopped; buckets not there: 0, 2"
    )
    self.assertIn("process 1 of 2", lines["written"])
    self.assertEqual(lines["buckets"], "2 of at most 4")
    with self.assertRaisesRegex(InputError, "path=.*must be a store"):
      list(info.described(places.at(self.folder)))


if __name__ == "__main__":
  absltest.main()
