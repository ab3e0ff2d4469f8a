"""Arrays on disk as rows of a store: the same rows whatever the file."""

import itertools
import pathlib
from unittest import mock

import ml_dtypes
import numpy as np
import tensorstore as ts
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

from saejax.data import files, fill, rows
from saejax.data.store import create
from saejax.errors import InputError

ROWS = 300
SMALL = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 8}


def arrays():
  x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
  return {"x": x, "target": x[:, :2] * 2, "user": np.arange(ROWS)}


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, kind):
    path = self.folder / f"rows{kind}"
    if kind == ".npz":
      np.savez(path, **arrays())
    elif kind == ".safetensors":
      safetensors.save_file(arrays(), path)
    else:
      for name, array in arrays().items():
        kvstore = {"driver": "file", "path": str(path / name)}
        spec = {"driver": kind.removeprefix("."), "kvstore": kvstore}
        ts.open(
          spec, create=True, shape=array.shape, dtype=array.dtype.name
        ).result().write(array).result()
    return path

  @parameterized.parameters(".npz", ".safetensors", ".zarr", ".zarr3")
  def test_every_kind_gives_the_store_of_the_arrays(self, kind):
    train, held_out = files.harvest(
      self.write(kind), self.folder, rows=200, held_out_rows=50, **SMALL
    )
    same, _ = files.harvest(arrays(), self.folder / "b", rows=200, **SMALL)
    found = train.whole("x", "target", "user")
    np.testing.assert_array_equal(np.sort(found["user"]), np.arange(200))
    for name, values in arrays().items():
      np.testing.assert_array_equal(found[name], values[found["user"]])
      np.testing.assert_array_equal(held_out.whole(name)[name], values[250:])
      np.testing.assert_array_equal(same.whole(name)[name], found[name])
    self.assertEqual(train.meta["split"], "train")
    self.assertEqual(held_out.meta["split"], "held_out")
    self.assertEqual(train.trained, ("x", "target"))

  def test_one_array_is_x_and_bfloat16_stays(self):
    x = arrays()["x"].astype(ml_dtypes.bfloat16)
    np.save(self.folder / "a.npy", x)
    train, none = files.harvest(self.folder / "a.npy", self.folder, rows=10**6)
    self.assertIsNone(none)
    self.assertEqual((train.rows, train.columns["x"].dtype), (ROWS, "bfloat16"))

  def test_a_stopped_harvest_goes_on_to_the_same_bytes(self):
    source = files.array_rows(arrays())

    class Stops:
      def __getattr__(self, name):
        return getattr(source, name)

      def blocks(self, spans, resume=None):
        found = source.blocks(spans, resume)
        yield from itertools.islice(found, 3)
        raise KeyboardInterrupt

    meta = fill.describe(
      source, rows=ROWS, split="train", shuffle_seed=0, **SMALL
    )
    self.enter_context(mock.patch.object(rows, "_BLOCK_ROWS", 50))
    with self.assertRaises(KeyboardInterrupt):
      fill.fill(Stops(), self.folder / "a", meta)
    self.assertFalse((self.folder / "a" / "manifest.json").exists())
    stopped = fill.fill(source, self.folder / "a", meta)
    whole = fill.fill(source, self.folder / "b", meta)
    for name in arrays():
      np.testing.assert_array_equal(
        stopped.whole(name)[name], whole.whole(name)[name]
      )
    self.assertEqual(stopped.stats["read"], ROWS)

  @parameterized.parameters(
    ("rows.txt", b"1 2", "must be a file .npy"),
    ("rows.npy", b"\x93NUMPY", "cannot be read"),
    ("rows.safetensors", b"\xff" * 20, "cannot be read"),
    ("rows.npz", b"", "cannot be read"),
    ("gone.npy", None, "cannot be read"),
  )
  def test_files_that_are_not(self, name, content, message):
    if content is not None:
      (self.folder / name).write_bytes(content)
    with self.assertRaisesRegex(InputError, f"source=.*{name}: {message}"):
      files.array_rows(self.folder / name)

  def test_too_few_rows_to_hold_out(self):
    with self.assertRaisesRegex(InputError, "held_out_rows=300"):
      files.harvest(arrays(), self.folder, rows=10, held_out_rows=300)

  def test_an_equal_write_store_has_the_same_rows(self):
    train, _ = files.harvest(arrays(), self.folder, rows=ROWS, **SMALL)
    other = create.write_store(self.folder / "w", arrays(), **SMALL)
    for name in arrays():
      np.testing.assert_array_equal(
        train.whole(name)[name], other.whole(name)[name]
      )


if __name__ == "__main__":
  absltest.main()
