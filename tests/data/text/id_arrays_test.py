"""Arrays of token ids on disk as documents."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.data.text import corpus as text
from saejax.errors import InputError
from tests.data import tiny
from tests.data.text import own_models_test

END = 2


def documents(count=60):
  generator = np.random.default_rng(0)
  return [
    generator.integers(3, 258, size)
    for size in [1, 5_000, *generator.integers(1, 90, count - 2)]
  ]


class IdArraysTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def ids(self, name):
    corpus = text.documents(name)
    refuse = lambda text: self.fail(text)
    return [corpus.encode(i, refuse).tolist() for i in range(len(corpus))]

  def write(self, kind):
    """The documents in one form; the name of the corpus."""
    found = documents()
    joined = np.concatenate([[*d, END] for d in found])
    if kind in ("uint16", "uint32", "int32", "int64"):
      joined.astype(kind).tofile(self.folder / "a.bin")
      return f"ids:{self.folder}/a.bin:{kind}:end={END}"
    if kind == "end":
      np.save(self.folder / "a.npy", joined)
      return f"ids:{self.folder}/a.npy:end={END}"
    starts = np.cumsum([0, *map(len, found)])[:-1]
    np.save(self.folder / "a.npy", np.concatenate(found).astype(np.uint16))
    np.save(self.folder / "s.npy", starts)
    return f"ids:{self.folder}/a.npy:starts={self.folder}/s.npy"

  @parameterized.parameters(
    "uint16", "uint32", "int32", "int64", "end", "starts"
  )
  def test_every_form_has_the_documents(self, kind):
    found = documents()
    name = self.write(kind)
    got = text.documents(name)
    want = {tuple(d.tolist()) for d in found}  # equal ones are kept once
    self.assertCountEqual(map(tuple, self.ids(name)), want)
    self.assertEqual(got.highest, max(int(d.max()) for d in found))
    self.assertEqual(got.lengths.sum(), sum(map(len, want)))
    self.assertEqual(got[0], " ".join(map(str, self.ids(name)[0])))
    other = text.documents(self.write("int32"))
    self.assertEqual(got.fingerprint, other.fingerprint)

  def test_fixed_rows(self):
    table = np.arange(60).reshape(6, 10)
    np.save(self.folder / "a.npy", table)
    self.assertCountEqual(self.ids(f"ids:{self.folder}/a.npy"), table.tolist())
    np.save(self.folder / "b.npy", np.arange(25))
    want = [[*range(10)], [*range(10, 20)], [*range(20, 25)]]
    name = f"ids:{self.folder}/b.npy:tokens=10"
    self.assertCountEqual(self.ids(name), want)
    # Documents end with their file.
    np.save(self.folder / "c.npy", np.arange(100, 115))
    name = f"ids:{self.folder}/[bc].npy:tokens=10"
    want += [[*range(100, 110)], [*range(110, 115)]]
    self.assertCountEqual(self.ids(name), want)

  def test_a_harvest_of_an_array(self):
    source = own_models_test.of_function(words=None)
    name = self.write("uint16")
    config = tiny.config(name, self.folder / "stores", drop_ids=())
    train, _ = harvest.harvest(config, source=source)
    rows = tiny.everything(train)
    corpus = text.documents(name)
    for row in range(0, train.rows, 97):
      ids = corpus.encode(int(rows["doc"][row]), str)
      self.assertEqual(ids[rows["pos"][row]], rows["tok"][row])

  @parameterized.parameters(
    ("a.npy", np.arange(9), "must say where documents begin.*:end=ID"),
    ("a.bin:end=3", np.arange(8), "must say the dtype.*:uint16"),
    ("a.bin:uint16:end=3", np.zeros(3, np.uint8), "numbers of 2 bytes.*3"),
    ("a.bin:uint16:end=3", np.zeros(0), "numbers of 2 bytes.*0"),
    ("a.npy", np.zeros((2, 3)), "must have integers.*float64"),
    ("a.npy", np.zeros((2, 3, 4), int), "must have integers"),
    ("a.npy:end=3:tokens=4", np.arange(9), "one of end, tokens and starts"),
    ("a.npy:tokens=0", np.arange(9), "tokens of at least 1"),
    ("a.npy:tokens=3", np.ones((2, 3), int), "documents of 3 tokens already"),
    ("a.npy:tokens=3", np.array([1, -1]), r"ids in \[0, 2\^31\), and has -1"),
    ("a.npy:tokens=3", np.array([2**31]), r"ids in \[0, 2\^31\)"),
    ("a.npy:end=3", np.array([3, 3]), "at least one document"),
    ("a.npy:starts=a.npy", np.array([1, 2]), "must ascend from 0"),
    ("b.npy:tokens=3", np.arange(9), "at least one file"),
    ("a.npy", None, "must be readable"),
    ("a.jsonl:tokens=3", None, "a file .npy or .bin"),
  )
  def test_bad_arrays_are_refused(self, name, array, message):
    path = self.folder / name.partition(":")[0].replace("b.", "a.")
    if array is None:
      path.write_bytes(b"no array")
    elif path.suffix == ".npy":
      np.save(path, array)
    else:
      array.astype(np.uint8).tofile(path)
    name = name.replace("starts=", f"starts={self.folder}/")
    with self.assertRaisesRegex(InputError, f"harvest.corpus=.*{message}"):
      text.documents(f"ids:{self.folder}/{name}")

  def test_a_file_that_changes_in_use_is_refused(self):
    corpus = text.documents(self.write("uint16"))
    (documents()[0] * 0 + 5).astype(np.uint16).tofile(self.folder / "a.bin")
    with self.assertRaisesRegex(InputError, "changed while"):
      for i in range(len(corpus)):
        corpus.encode(i, str)


if __name__ == "__main__":
  absltest.main()
