"""Several processes on one store: the bytes of one, refusals, kills, repair."""

import pathlib
import random
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.data.store import reader, writer
from saejax.data.store.share import Share
from saejax.errors import InputError
from tests import shared
from tests.data import tiny


class ShareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def config(self, name, **changes):
    changes = {"bucket_rows": 256, **changes}
    return tiny.config(self.corpus, self.folder / name, **changes)

  def harvest(self, name, share=None, function=tiny.forward, **changes):
    repair = changes.pop("repair", False)
    return harvest.harvest_share(
      self.config(name, **changes),
      share=share or Share(),
      repair=repair,
      source=tiny.source(function),
    )

  # --- together ---------------------------------------------------------------

  @parameterized.product(
    processes=(2, 3, 4), rows=(2_000, 100_000), pool_batches=(3,)
  )
  def test_several_processes_write_the_bytes_of_one(self, processes, **changes):
    self.harvest("one", **changes)
    whole = tiny.files(self.folder / "one")
    done = []
    order = random.Random(processes).sample(range(processes), processes)
    for process in order:
      found = self.harvest("many", Share(process, processes), **changes)
      done.append([store.complete for store in found[0]])
    self.assertEqual(tiny.files(self.folder / "many"), whole)
    self.assertEqual(done[-1], [True, True])
    self.assertFalse(done[0][0])
    reader.open(found[0][0].place).verify()

  def test_a_process_computes_its_own_rows_alone(self):
    computed = []

    def counts(ids, mask):
      computed.append(int(mask.sum()))
      return tiny.forward(ids, mask)

    self.harvest("one", function=counts)
    alone = sum(computed)
    shares = []
    for process in range(4):
      computed.clear()
      self.harvest("many", Share(process, 4), function=counts)
      shares.append(sum(computed))
    # Each bucket, of 256 rows, has up to two forward batches of 90 that another
    # has too, and each process measures or reads the median norm.
    self.assertLess(max(shares), alone / 4 + 2 * 90 * 2 + 600)

  def test_a_second_process_of_the_same_number(self):
    with self._writing("a", Share(1, 2)) as refused:
      refused("is being written by another process 1 of 2", Share(1, 2))
      found = self.harvest("a", Share(0, 2))  # beside the other
      self.assertFalse(found[0][0].complete)

  def test_a_process_that_counts_other_processes(self):
    with self._writing("a", Share(1, 2)) as refused:
      for share in (Share(), Share(0, 3), Share(3, 4)):
        refused(f"processes={share.processes}: .*counts others", share)
    self.harvest("a", Share(1, 4))  # once the other has ended
    self.harvest("a")
    self.harvest("one")
    one, a = (tiny.files(self.folder / name) for name in ("one", "a"))
    self.assertEqual(a, one)

  def _writing(self, name, share):
    """A process in the middle of its harvest, as a context."""
    test = self

    class Writing:
      def __enter__(self):
        command = [sys.executable, "-m", "tests.data.tiny", str(test.corpus)]
        command += [str(test.folder / name), "1", "256"]
        command += [str(share.process), str(share.processes)]
        self.process = subprocess.Popen(
          command, cwd=shared.ROOT, stdout=subprocess.PIPE
        )
        for _ in range(3):  # the third is after the calibration
          self.process.stdout.readline()
        return self.refused

      def refused(self, message, share):
        with test.assertRaisesRegex(InputError, message):
          test.harvest(name, share)

      def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    return Writing()

  def test_numbers_of_processes_that_cannot_be(self):
    for process, processes in ((2, 2), (-1, 2), (0, 0)):
      with self.assertRaisesRegex(InputError, f"process={process}: must be"):
        Share(process, processes)

  # --- while it grows ---------------------------------------------------------

  def test_a_store_is_read_while_it_grows(self):
    seen = []

    def looks(ids, mask):
      folders = list((self.folder / "a").glob("store-*"))
      if folders and list(folders[0].glob("ledger/*.json")):
        store = reader.open(folders[0], growing=True)
        seen.append((store.rows, store.content, store.whole("x")["x"]))
      return tiny.forward(ids, mask)

    self.harvest("a", function=looks)
    train = reader.open(next(iter((self.folder / "a").glob("store-*"))))
    counts = [rows for rows, _, _ in seen]
    self.assertEqual(counts, sorted(counts))
    self.assertGreater(len(set(counts)), 3)
    self.assertLen({content for _, content, _ in seen}, len(set(counts)))
    whole = np.concatenate([train.read(*part) for part in train.intervals])
    for rows, _, x in seen:
      np.testing.assert_array_equal(x, whole[:rows])

  def test_without_a_bucket_there_is_nothing_to_read(self):
    def stops(ids, mask):
      if (self.folder / "a").exists():
        raise KeyboardInterrupt
      return tiny.forward(ids, mask)

    with self.assertRaises(KeyboardInterrupt):
      self.harvest("a", function=stops)
    (path,) = (self.folder / "a").iterdir()
    with self.assertRaisesRegex(InputError, "must have a finished bucket"):
      reader.open(path, growing=True)

  def test_compressed_rows_are_the_same_rows(self):
    plain = self.harvest("a", rows=600)[0][0].place
    found = self.harvest("b", rows=600, compression="zstd")[0][0].place
    self.assertNotEqual(found.name, plain.name)
    one, other = reader.open(plain), reader.open(found)
    for name, values in one.whole(*one.columns).items():
      np.testing.assert_array_equal(other.whole(name)[name], values)
    size = lambda place: sum(
      file.stat().st_size for file in place.folder.glob("doc/c/*")
    )
    self.assertLess(size(found), size(plain) / 2)
    shard = found.folder / "x/c/1/0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with self.assertRaisesRegex(InputError, "x: a shard is corrupt"):
      other.verify()
    before = other.content
    self.harvest("b", rows=600, compression="zstd", repair=True)
    reader.open(found).verify()
    self.assertEqual(reader.open(found).content, before)

  # --- repair -----------------------------------------------------------------

  @parameterized.parameters(
    "x/c/3/0",
    "doc/c/1",
    "ledger/00000002.json",
    "meta.json",
    "stats.json",
    "manifest.json",
    "calibration.json",
    "x/zarr.json",
  )
  def test_what_is_damaged_or_gone_is_harvested_again(self, name):
    found = self.harvest("a")
    before = tiny.files(self.folder / "a")
    file = found[0][0].place.folder / name
    content = file.read_bytes()
    middle = len(content) // 2
    for damage in (
      None,
      content[:middle],
      content[:middle] + b"?" + content[middle + 1 :],
    ):
      file.unlink() if damage is None else file.write_bytes(damage)
      computed = []

      def counts(ids, mask):
        computed.append(int(mask.sum()))  # noqa: B023
        return tiny.forward(ids, mask)

      self.harvest("a", function=counts, repair=True)
      self.assertEqual(tiny.files(self.folder / "a"), before, name)
      # One bucket of 256 rows at most, and the median norm of 100.
      self.assertLess(sum(computed), 256 + 3 * 90 + 200, name)
      reader.open(found[0][0].place).verify()

  def test_a_repair_touches_no_other_store_and_waits_for_no_writer(self):
    place = self.harvest("a")[0][0].place
    before = tiny.files(place.folder)
    other = {**reader.open(place).meta, "bucket_rows": 512}
    with self.assertRaisesRegex(InputError, "meta.json: differs from the set"):
      writer.Writer(place, other, repair=True)
    self.assertEqual(tiny.files(place.folder), before)
    with writer.Writer(place, reader.open(place).meta):
      (place.folder / "x/c/3/0").unlink()
      left = tiny.files(place.folder)
      with self.assertRaisesRegex(InputError, "by another process 0 of 1"):
        self.harvest("a", repair=True)
      self.assertEqual(tiny.files(place.folder), left)

  def test_buckets_without_their_metadata_are_not_gone_on_with(self):
    place = self.harvest("a")[0][0].place
    meta = reader.open(place).meta
    for name in ("meta.json", "manifest.json"):
      (place.folder / name).unlink()
    with self.assertRaisesRegex(InputError, "meta.json: the file is missing"):
      writer.Writer(place, meta)

  def test_a_repair_that_gives_other_rows_is_refused(self):
    found = self.harvest("a")
    shard = found[0][0].place.folder / "x/c/3/0"
    shard.unlink()
    with self.assertRaisesRegex(InputError, "00000003.json: has other rows"):
      self.harvest(
        "a", function=lambda i, m: 2 * tiny.forward(i, m), repair=True
      )
    self.harvest("a", repair=True)
    reader.open(found[0][0].place).verify()


if __name__ == "__main__":
  absltest.main()
