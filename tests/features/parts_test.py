"""saejax/features/parts.py: passes are resumed, cut and shared without a trace."""

import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

from saejax import errors
from saejax.data.store import create, reader
from saejax.data.store.share import Share
from saejax.data.text import neighbours
from saejax.features import (
  activity,
  correlations,
  delphi,
  observing,
  parts,
  summary,
)
from saejax.sae import activations
from tests import structure_test, toy
from tests.features import stores

D, N, ROWS = 8, 24, 300


class Stop(Exception):
  """Ends a pass."""


def eighths(x):
  """Rounds to eighths: the small sums of their products are exact in float32."""
  return np.round(np.asarray(x) * 8).astype(np.float32) / 8


def sae(activation=activations.TopK(3), seed=0):
  """An SAE whose latents do not depend on the shapes of matmuls."""
  return jax.tree.map(eighths, toy.sae(activation=activation, seed=seed))


def written(folder, order, bucket_rows=128):
  """A store of rows of eighths in some order; one row is not finite."""
  x = eighths(toy.rows(ROWS, D, seed=5))
  x[11, 2] = np.nan
  columns = {"x": x, "doc": np.arange(ROWS) // 50, "pos": np.arange(ROWS) % 50}
  columns["tok"] = np.arange(ROWS)
  return create.write_store(
    folder,
    {name: values[order] for name, values in columns.items()},
    bucket_rows=bucket_rows,
    shard_rows=64,
    chunk_rows=32,
    shuffle_seed=None,
  )


def observed(store, *, choice=activity.Choice(random=9), own=None, **options):
  """Activity with correlations of a store, as one dictionary of arrays."""
  own = own or sae()
  related = correlations.Correlations(np.arange(N), N, D)
  found = observing.observe(own, store, choice, watch=related, **options)
  return parts.flat(found) | related.sums


class PassTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(
      mock.patch.object(
        neighbours, "tokenizer_of", lambda store: stores.Words()
      )
    )
    self.store = written(self.folder / "s", np.arange(ROWS))

  def kept(self, name="pass", process=0, processes=1, seconds=0.0):
    return parts.Pass(self.folder / name, Share(process, processes), seconds)

  def shared(self, make, processes):
    """The result of the last of several processes, which run in turn."""
    for process in reversed(range(1, processes)):
      with self.assertRaises(parts.Unfinished):
        make(self.kept(f"of-{processes}", process, processes))
    return make(self.kept(f"of-{processes}", 0, processes))

  def check(self, got, want, *, but=()):
    """Integers, values and rows are equal; sums are to 1e-9."""
    self.assertEqual(sorted(got), sorted(want))
    for name in want.keys() - set(but):
      np.testing.assert_allclose(
        got[name], want[name], rtol=1e-9, atol=1e-12, err_msg=name
      )

  @parameterized.parameters(activations.TopK(3), activations.ReLU())
  def test_neither_cuts_nor_processes_nor_the_order_of_rows_matter(self, kind):
    own = sae(kind)
    z = np.nan_to_num(np.asarray(own.encode(self.store.whole("x")["x"])))
    z[11] = 0
    for choice in (activity.Choice(random=9), activity.Choice(latents=[3, 17])):
      want = observed(self.store, choice=choice, own=own)
      np.testing.assert_allclose(
        want["sum"], z.sum(axis=0, dtype=float), rtol=1e-9
      )
      np.testing.assert_allclose(
        want["pairs"], z.T.astype(float) @ z, rtol=1e-9, atol=1e-12
      )
      for batch_rows in (7, 64):
        cut = observed(
          self.store, choice=choice, own=own, batch_rows=batch_rows
        )
        self.check(cut, want)
      make = functools.partial(
        observed, self.store, choice=choice, own=own, batch_rows=32
      )
      shared = self.shared(lambda kept, make=make: make(kept=kept), 2)
      self.check(shared, want)
      shutil.rmtree(self.folder / "of-2")
      order = np.random.default_rng(0).permutation(ROWS)
      other = written(self.folder / f"o{len(choice.latents)}", order, 192)
      # Which of equal values is first, and what is drawn, is by row number.
      by_row = [name for name in want if name.startswith("samples/")]
      self.check(
        observed(other, choice=choice, own=own, batch_rows=96),
        want,
        but=["summary/top_rows", *by_row],
      )

  def test_a_summary_is_the_same_in_parts(self):
    want = parts.flat(summary.summarise(sae(), self.store, top=5))
    make = lambda kept: parts.flat(
      summary.summarise(sae(), self.store, top=5, batch_rows=32, kept=kept)
    )
    self.check(self.shared(make, 3), want)

  def test_more_processes_than_batches(self):
    make = lambda kept: observed(self.store, kept=kept)
    self.check(self.shared(make, 5), observed(self.store))

  def test_a_stopped_pass_is_that_of_an_undisturbed_one_bit_for_bit(self):
    sae_ = toy.sae(activation=activations.TopK(3))  # with roundings
    want = observed(self.store, own=sae_, batch_rows=32)
    self.enter_context(mock.patch.object(parts, "_LEAST", 0))
    seen = []
    for stop in (0, 64, 200, ROWS + 1):

      def progress(done, total, stop=stop):
        seen.append(done)
        if done >= stop:
          raise Stop

      made = lambda: observed(
        *(self.store,), own=sae_, batch_rows=32, kept=self.kept(),
        progress=progress,
      )  # fmt: skip
      if stop > ROWS:
        got = made()
      else:
        with self.assertRaises(Stop):
          made()
    for name in want:
      np.testing.assert_array_equal(got[name], want[name], name)
    # Each batch was added once; those before which it stopped are seen twice.
    self.assertEqual(
      seen, [0, 0, 32, 64, 64, 96, 128, 160, 192, 224, 224, 256, 288, 300]
    )

  def test_delphi_continues_its_files(self):
    kept = self.kept("delphi", seconds=0)
    for at, seconds in ((64, 1e9), (128, 0), (192, 1e9)):
      kept = self.kept("delphi", seconds=seconds)
      with self.assertRaises(Stop):
        self.delphi(self.folder / "out", kept, at)
    got = self.delphi(self.folder / "out", kept)
    want = self.delphi(self.folder / "want", None)
    self.assertEqual(got, want)
    shared = self.shared(
      lambda kept: self.delphi(self.folder / "shared", kept), 3
    )
    self.assertEqual(shared, want)

  def delphi(self, folder, kept, at=None):
    """Bytes of the files by name, and the number of entries."""

    def progress(stage, done, total):
      if at is not None and done >= at:
        raise Stop

    count = delphi.write(
      *(folder, sae(), self.store), length=16, splits=3, batch_rows=32,
      progress=progress, kept=kept,
    )  # fmt: skip
    files = sorted((folder / "site").glob("*.safetensors"))
    found = [safetensors.load_file(file) for file in files]
    entries = sum(len(f["activations"]) for f in found)
    self.assertEqual(count, entries)
    return [file.read_bytes() for file in files]

  def test_sums_of_another_pass_are_refused_by_name(self):
    observed(self.store, kept=self.kept())
    other = written(self.folder / "other", np.arange(ROWS)[::-1])
    for what, message in (
      ({"own": sae(seed=1)}, "sae="),
      ({"top": 3}, r"settings.top=10 \(now 3\)"),
      ({"choice": activity.Choice(random=8)}, r"random=9 \(now 8\)"),
    ):
      with self.assertRaisesRegex(errors.InputError, f"dir=.*{message}"):
        observed(self.store, kept=self.kept(), **what)
    with self.assertRaisesRegex(errors.InputError, "store=.*remove it"):
      observed(other, kept=self.kept())
    with self.assertRaisesRegex(errors.InputError, "pass=activity"):
      summary.summarise(sae(), self.store, kept=self.kept())
    (file,) = self.folder.glob("pass/*/sums.npz")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with self.assertRaisesRegex(errors.InputError, "sums.npz"):
      observed(self.store, kept=self.kept())

  def test_a_part_of_another_pass_is_not_merged(self):
    with self.assertRaises(parts.Unfinished):
      observed(self.store, kept=self.kept("two", 1, 2), top=3)
    with self.assertRaisesRegex(errors.InputError, "part-00001.*settings.top"):
      observed(self.store, kept=self.kept("two", 0, 2))

  def test_a_killed_process_is_continued_bit_for_bit(self):
    folder = self.folder / "killed"
    process = subprocess.Popen(
      [sys.executable, "-m", "tests.features.parts_test", *map(str, (self.store.path, folder))],
      cwd=structure_test.ROOT,
      env={**os.environ, "PYTHONPATH": str(structure_test.ROOT)},
    )  # fmt: skip
    end = time.monotonic() + 300
    while not list(folder.glob("*/sums.npz")):
      self.assertIsNone(process.poll(), "it was done before it was killed")
      self.assertLess(time.monotonic(), end)
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (file,) = folder.glob("*/sums.npz")
    self.assertFalse(parts.read(file)[1]["done"])
    own = toy.sae(activation=activations.TopK(3))
    got = observed(
      self.store, own=own, batch_rows=4, kept=parts.Pass(folder, seconds=0)
    )
    want = observed(self.store, own=own, batch_rows=4)
    for name in want:
      np.testing.assert_array_equal(got[name], want[name], name)


def run(store: str, folder: str) -> None:
  """The pass that is killed; it waits between batches."""
  observed(
    *(reader.open(store),),
    own=toy.sae(activation=activations.TopK(3)),
    batch_rows=4,
    kept=parts.Pass(pathlib.Path(folder), seconds=0),
    progress=lambda done, total: time.sleep(0.05),
  )


if __name__ == "__main__":
  if len(sys.argv) == 3 and "/" in sys.argv[1]:
    run(*sys.argv[1:])
  else:
    absltest.main()
