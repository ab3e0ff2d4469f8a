"""Harvests of a function: row rules, provenance, order, resume, refusals."""

import dataclasses
import pathlib
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import durable
from saejax.data import harvest
from saejax.data.store import ledger, reader
from saejax.data.store import place as places
from saejax.data.text import corpus as text
from saejax.errors import InputError
from tests import shared
from tests.data import tiny


class Stop(BaseException):
  """Ends a harvest wherever it is."""


class HarvestTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def config(self, name="stores", **changes):
    return tiny.config(self.corpus, self.folder / name, **changes)

  def harvest(self, name="stores", source=None, progress=None, **changes):
    return harvest.harvest(
      self.config(name, **changes),
      source=source or tiny.source(),
      progress=progress,
    )

  def expected(self, part, found):
    """(doc, pos, tok) of every row of a part, from the texts themselves."""
    corpus = text.documents(str(self.corpus))
    rows = []
    for i in corpus.part(part, 0.25):
      for pos, tok in enumerate(tiny.encode(corpus[i]).tolist()):
        dropped = tok in (tiny.CLS, tiny.SEP, tiny.USER_ID, tiny.OUTLIER_ID)
        if not dropped:
          rows.append((int(i), pos, tok))
    return rows

  def rows(self, found):
    all_ = tiny.everything(found)
    return list(
      zip(*(all_[name].tolist() for name in ("doc", "pos", "tok")), strict=True)
    )

  # --- What is kept ----------------------------------------------------------

  def test_rows_are_the_tokens_that_pass_the_rules_once_each(self):
    train, held_out = self.harvest(rows=100_000, held_out_rows=100_000)
    self.assertCountEqual(self.rows(train), self.expected(text.TRAIN, train))
    # The held-out store is in document order.
    self.assertEqual(
      self.rows(held_out), self.expected(text.HELD_OUT, held_out)
    )
    self.assertEqual(train.stats["rows"], train.rows)
    self.assertNotEqual(self.rows(train), self.expected(text.TRAIN, train))

  def test_rows_carry_the_vector_of_their_token(self):
    for found in self.harvest():
      all_ = tiny.everything(found)
      want = tiny.vectors()[all_["tok"]]
      np.testing.assert_array_equal(all_["x"][:, 1:], want[:, 1:])

  def test_targets_and_positions_go_with_their_rows(self):
    def doubled(ids, mask):
      return 2 * tiny.forward(ids, mask)[..., :3]

    target = dataclasses.replace(tiny.source(doubled), d=3)
    found = harvest.harvest(
      self.config(cond="position"), source=tiny.source(), target=target
    )
    for store in found:
      self.assertEqual(store.trained, ("x", "cond", "target"))
      all_ = store.whole(*store.columns)
      np.testing.assert_array_equal(all_["target"], 2 * all_["x"][:, :3])
      np.testing.assert_array_equal(all_["cond"], all_["pos"])

  def test_each_rule_counts_what_it_drops(self):
    _, held_out = self.harvest(held_out_rows=100_000)
    corpus = text.documents(str(self.corpus))
    tokens = [tiny.encode(corpus[i]) for i in corpus.part(text.HELD_OUT, 0.25)]
    ids = np.concatenate(tokens)
    windows = sum(-(-len(t) // 16) for t in tokens)
    dropped = held_out.stats["dropped"]
    self.assertGreater((ids == tiny.OUTLIER_ID).sum(), 0)
    self.assertEqual(dropped["outlier"], (ids == tiny.OUTLIER_ID).sum())
    self.assertEqual(dropped["drop_ids"], (ids == tiny.USER_ID).sum())
    self.assertEqual(dropped["special"], 2 * windows + (ids == tiny.CLS).sum())
    self.assertEqual(held_out.stats["read"], len(ids))
    self.assertEqual(
      held_out.rows + dropped["outlier"] + dropped["drop_ids"],
      len(ids) - (ids == tiny.CLS).sum(),
    )

  def test_both_stores_have_the_threshold_of_the_training_part(self):
    train, held_out = self.harvest()
    self.assertEqual(train.stats["calibration"], held_out.stats["calibration"])
    self.assertBetween(train.stats["calibration"]["median_norm"][0], 1, 300)

  def test_without_a_multiple_outliers_stay(self):
    train, _ = self.harvest(outlier_multiple=0.0, rows=100_000)
    self.assertIn(tiny.OUTLIER_ID, tiny.everything(train)["tok"])

  def test_rows_that_are_not_finite_are_kept(self):
    def broken(ids, mask):
      x = np.asarray(tiny.forward(ids, mask)).copy()
      x[ids == 2 + ord("c"), 1] = np.nan
      return jnp.asarray(x)

    source = tiny.source(function=broken)
    train, _ = self.harvest(source=source, nonfinite="keep")
    all_ = tiny.everything(train)
    bad = ~np.isfinite(all_["x"]).all(-1)
    np.testing.assert_array_equal(bad, all_["tok"] == 2 + ord("c"))
    self.assertEqual(train.stats["nonfinite_rows"], bad.sum())

  def test_the_rows_wanted_but_for_outliers_among_them(self):
    for rows in (1, 511, 512, 513):
      train, _ = self.harvest(name=f"s{rows}", rows=rows)
      outliers = train.stats["dropped"]["outlier"]
      self.assertEqual(train.rows + outliers, rows)
      every, _ = self.harvest(name=f"all{rows}", rows=rows, outlier_multiple=0)
      self.assertEqual(every.rows, rows)

  def test_a_bucket_with_outliers_leaves_a_gap_before_the_next(self):
    train, _ = self.harvest()
    starts = [start for start, _ in train.intervals]
    self.assertEqual(starts, [0, 512, 1024, 1536])
    self.assertLess(train.intervals[0][1], 512)
    with self.assertRaises(IndexError):
      train.read(511, 512)
    found = train.take([stop - 1 for _, stop in train.intervals], "tok")
    np.testing.assert_array_equal(
      found["tok"], [train.read(b - 1, b, "tok")[0] for _, b in train.intervals]
    )

  def test_held_out_documents_are_whole_and_fit(self):
    _, held_out = self.harvest(held_out_rows=500)
    self.assertLessEqual(held_out.rows, 500)
    found = self.rows(held_out)
    documents = {doc for doc, _, _ in found}
    whole = [
      row
      for row in self.expected(text.HELD_OUT, held_out)
      if row[0] in documents
    ]
    self.assertEqual(found, whole)

  def test_rows_are_rounded_to_bfloat16(self):
    exact, _ = self.harvest()
    rounded, _ = self.harvest(dtype="bfloat16")
    x = tiny.everything(rounded)["x"]
    self.assertEqual(x.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
      x, tiny.everything(exact)["x"].astype(jnp.bfloat16)
    )

  # --- Names and repetition --------------------------------------------------

  def test_the_folder_is_named_by_what_shapes_the_bytes(self):
    config = self.config()
    meta = harvest.meta(config, source=tiny.source())
    train, _ = self.harvest()
    self.assertEqual(train.place, harvest.path(config, meta))
    self.assertRegex(train.path.name, "^store-[0-9a-f]{16}$")
    self.assertEqual(
      train.path.name, f"store-{durable.digest(train.meta)[:16]}"
    )
    for change in (
      {"context": 20},
      {"forward_batch": 6},
      {"pool_batches": 4},
      {"bucket_rows": 1024},
      {"shard_rows": 128},
      {"chunk_rows": 16},
      {"rows": 2001},
      {"seed": 1},
      {"dtype": "bfloat16"},
      {"drop_ids": (5,)},
      {"outlier_multiple": 9.0},
      {"document_tokens": 100},
    ):
      other = harvest.meta(self.config(**change), source=tiny.source())
      self.assertNotEqual(durable.digest(other), durable.digest(meta), change)
    moved = self.config(name="elsewhere")
    self.assertEqual(harvest.meta(moved, source=tiny.source()), meta)

  def test_a_complete_harvest_is_opened_and_not_repeated(self):
    first = self.harvest()
    before = tiny.files(self.folder / "stores")

    def never(ids, mask):
      raise AssertionError("the model ran again")

    again = self.harvest(source=tiny.source(function=never))
    self.assertEqual([s.path for s in again], [s.path for s in first])
    self.assertEqual(tiny.files(self.folder / "stores"), before)

  def test_progress_is_told(self):
    told = []
    self.harvest(progress=told.append)
    last = {record["phase"]: record for record in told}
    self.assertEqual(list(last), ["train", "held_out"])
    dropped = last["train"]["dropped"]["outlier"]
    self.assertEqual(last["train"]["rows"] + dropped, 2000)
    self.assertEqual(last["train"]["rows_wanted"], 2000)
    self.assertTrue(all(record["complete"] for record in last.values()))
    self.assertGreater(last["train"]["rows_per_second"], 0)

  @parameterized.parameters(("bfloat16", True), ("float32", False))
  def test_what_bfloat16_would_lose_is_told_before_the_first_row(
    self, dtype, warns
  ):
    def offset(ids, mask):
      return tiny.forward(ids, mask) + jnp.array([0, 0, 90.0] + [0] * 5)

    told = []
    train, _ = self.harvest(
      source=tiny.source(offset),
      progress=told.append,
      dtype=dtype,
      outlier_multiple=0,
    )
    warnings = [record for record in told if "warning" in record]
    self.assertEqual(bool(warnings), warns)
    if warns:
      self.assertIn("warning", told[0])
      self.assertRegex(told[0]["warning"], "mean is .* times .*float32")
    ratio = train.stats["calibration"]["mean_over_std_max"]
    self.assertBetween(ratio, 60, 130)

  # --- Stopping anywhere -----------------------------------------------------

  @parameterized.parameters(
    {}, {"pool_batches": 1}, {"forward_batch": 40}, {"bucket_rows": 256}
  )
  def test_stopped_at_any_batch_the_same_call_ends_with_the_same_bytes(
    self, **changes
  ):
    self.harvest(name="whole", **changes)
    whole = tiny.files(self.folder / "whole")
    calls = 0

    def stops(ids, mask):
      nonlocal calls
      calls += 1
      if calls == at:
        raise Stop
      return tiny.forward(ids, mask)

    stops_seen = 0
    for at in (1, 2, 9, 17, 26, 30):
      name, calls = f"stopped{at}", 0
      try:
        self.harvest(name=name, source=tiny.source(function=stops), **changes)
      except Stop:
        stops_seen += 1
        if (self.folder / name).exists():  # not in the calibration
          self._leave_debris(self.folder / name)
        self.harvest(name=name, **changes)
      self.assertEqual(tiny.files(self.folder / name), whole, at)
    self.assertGreater(stops_seen, 1)

  def _leave_debris(self, folder):
    """What a kill may leave: drafts, a shard and a lock that nobody names."""
    path = max(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns)
    (path / "ledger").mkdir(exist_ok=True)
    (path / "ledger" / "00000000.json.77.tmp").write_bytes(b'{"bucket":0,"fi')
    if not (path / "x" / "c" / "7").exists():
      (path / "x" / "c" / "7").mkdir(parents=True)
      (path / "x" / "c" / "7" / "0").write_bytes(b"half a shard")
    (path / "doc" / "c").mkdir(exist_ok=True)
    (path / "doc" / "c" / "7.__lock").write_bytes(b"lock")
    (path / "stats.json.tmp").write_bytes(b"{")
    if not (path / "manifest.json").exists():
      (path / "tokenizer.tmp").write_bytes(b"half")

  def test_at_most_one_bucket_is_computed_again(self):
    rows = 0

    def counts(ids, mask):
      nonlocal rows
      rows += int(mask.sum())
      if rows > 1700:
        raise Stop
      return tiny.forward(ids, mask)

    with self.assertRaises(Stop):
      self.harvest(source=tiny.source(function=counts))
    (path,) = (self.folder / "stores").iterdir()
    written = ledger.rows(ledger.read(places.at(path)).values())
    # A bucket in the making, one being written, batches under way.
    self.assertGreaterEqual(written, 1700 - 120 - 2 * 512 - 3 * 90)

  # --- Refusals --------------------------------------------------------------

  @parameterized.parameters(
    ("rows", 0),
    ("held_out_fraction", 0.0),
    ("held_out_fraction", 1.0),
    ("dtype", "float16"),
    ("context", 0),
    ("forward_batch", 0),
    ("seed", -1),
    ("shard_rows", 33),
    ("bucket_rows", 513),
    ("outlier_multiple", -1.0),
    ("special_tokens", "bos"),
    ("nonfinite", "drop"),
  )
  def test_settings_out_of_range(self, name, value):
    with self.assertRaises(InputError) as caught:
      self.config(**{name: value})
    self.assertEqual(caught.exception.field, f"harvest.{name}")
    self.assertEqual(caught.exception.value, value)

  def test_a_corpus_whose_rows_are_all_outliers(self):
    with self.assertRaisesRegex(InputError, "every row was dropped .*outlier"):
      self.harvest(outlier_multiple=1e-9)

  def test_a_full_disk_keeps_the_finished_buckets(self):
    self.harvest(name="whole", bucket_rows=1024, shard_rows=1024)
    # Room for the ledger, the first shards and not for a whole one.
    code = f"""
      import pathlib, resource, sys, time
      from saejax.data import harvest
      from saejax.data.store import ledger, place as places
      from saejax.errors import InputError
      from tests.data import tiny
      def first_bucket_is_written():  # in the background
        folder = pathlib.Path({str(self.folder / "full")!r})
        return any(ledger.read(places.at(path)) for path in folder.iterdir())
      config = tiny.config(
        pathlib.Path({str(self.corpus)!r}),
        pathlib.Path({str(self.folder / "full")!r}),
        bucket_rows=1024, shard_rows=1024,
      )
      calls = 0
      def fills(ids, mask):
        global calls
        calls += 1
        if calls == 20:  # in the second bucket
          until = time.monotonic() + 60
          while not first_bucket_is_written() and time.monotonic() < until:
            time.sleep(0.01)
          resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return tiny.forward(ids, mask)
      try:
        harvest.harvest(config, source=tiny.source(function=fills))
      except InputError as error:
        print(error)
        sys.exit(2)
    """
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code)],
      cwd=shared.ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(done.stdout, "^path=.*File too large.*repeat")
    self.assertLen(done.stdout.splitlines(), 1)
    (path,) = (self.folder / "full").iterdir()
    with self.assertRaisesRegex(InputError, "must be complete"):
      reader.open(path)
    (entry,) = ledger.read(places.at(path)).values()
    for name, size in entry["shards"].items():
      self.assertEqual((path / name).stat().st_size, size)
    self.assertEqual(reader.open(path, growing=True).rows, entry["rows"])
    self.harvest(name="full", bucket_rows=1024, shard_rows=1024)
    self.assertEqual(
      tiny.files(self.folder / "full"), tiny.files(self.folder / "whole")
    )


if __name__ == "__main__":
  absltest.main()
