"""Stores whose rows are int8 codes with a scale per row."""

import pathlib

import numpy as np
from absl.testing import absltest

from saejax.data import loader, merged
from saejax.data.store import codes, columns, create, manifest, reader
from saejax.errors import InputError
from saejax.studies import info

SIZES = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 16}
CODED = {
  "x": columns.Column(
    dtype="float32", shape=(6,), axes=("d",), train=True, code="int8"
  )
}


def rows(n=150):
  rng = np.random.default_rng(0)
  # A dimension far larger than the others, and rows of very different norms.
  x = rng.normal(size=(n, 6)) * [1, 1, 1, 1, 1, 100]
  x *= 10.0 ** rng.integers(-20, 20, (n, 1))
  x[3] = 0
  return x.astype(np.float32)


def write(path, x, **more):
  content = {"x": x, "key": np.arange(len(x))}
  return create.write_store(path, content, declare=CODED, **SIZES, **more)


class CodesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_rows_are_read_within_half_a_step(self):
    x = rows()
    store = write(self.folder / "a", x)
    found = store.take(np.arange(0))  # of no rows
    self.assertEqual(found["x"].dtype, np.float32)
    found = store.whole("x", "key", "x_scale")
    want = x[found["key"]]
    step = np.abs(want).max(-1) / 127
    np.testing.assert_allclose(found["x_scale"], step, rtol=1e-6)
    error = np.abs(found["x"] - want).max(-1)
    self.assertTrue((error <= 0.5001 * step).all())
    # As single rows, and as batches.
    some = [149, 3, 70]
    np.testing.assert_array_equal(store.take(some)["x"], found["x"][some])
    np.testing.assert_array_equal(store.read(70, 75), found["x"][70:75])
    batches = loader.batches(store, batch_rows=50, seed=0)
    for batch in batches:
      self.assertEqual(set(batch), {"x", "row"})
      np.testing.assert_array_equal(batch["x"], found["x"][batch["row"]])

  def test_a_store_takes_a_byte_per_number_and_a_scale_per_row(self):
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    coded = write(self.folder / "a", x)
    plain = create.write_store(self.folder / "b", x, **SIZES)

    def size(store, name):
      names = [n for line in store.lines for n in line["shards"]]
      names = [n for n in names if n.startswith(f"{name}/")]
      return sum((store.path / n).stat().st_size for n in names)

    saved = size(plain, "x") - size(coded, "x")
    self.assertEqual(saved, 64 * 6 * 3)
    self.assertIn("x_scale", coded.columns)
    coded.verify()

  def test_moments_are_those_of_the_rows_that_are_read(self):
    x = rows() / 1e20
    store = write(self.folder / "a", x)
    read = store.whole("x")["x"].astype(np.float64)
    np.testing.assert_allclose(store.stats["mean"], read.mean(0), rtol=1e-12)
    self.assertEqual(store.stats["max_abs"], np.abs(read).max())

  def test_damage_in_codes_or_scales_is_found(self):
    for name in ("x", "x_scale"):
      store = write(self.folder / name, rows())
      shard = next(
        n for n in store.lines[0]["shards"] if n.startswith(f"{name}/")
      )
      content = bytearray((store.path / shard).read_bytes())
      content[5] ^= 1
      (store.path / shard).write_bytes(content)
      with self.assertRaises(InputError):
        store.verify()
      with self.assertRaises(InputError):
        store.read(0, 4)

  def test_a_store_written_again_has_the_same_content(self):
    first, second = (write(self.folder / n, rows()) for n in "ab")
    self.assertEqual(first.content, second.content)

  def test_a_merge_keeps_the_codes(self):
    x = rows()
    parts = [
      write(self.folder / f"{i}", x[i * 75 : (i + 1) * 75], shuffle_seed=None)
      for i in range(2)
    ]
    place = merged.merge(parts, self.folder / "all", shuffle_seed=None, **SIZES)
    store = reader.open(place)
    self.assertEqual(store.columns["x"].code, "int8")
    store.verify()
    want = np.concatenate([part.whole("x")["x"] for part in parts])
    # Scales are computed anew from the decoded rows: the codes are the same.
    got = store.whole("x")["x"]
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_values_that_are_not_finite_are_refused(self):
    x = rows()
    x[7, 2] = np.inf
    with self.assertRaisesRegex(InputError, "not finite"):
      write(self.folder / "a", x)
    self.assertFalse((self.folder / "a" / manifest.NAME).exists())

  def test_a_code_of_numbers_or_integers_is_refused(self):
    for column in (
      columns.Column(dtype="float32", code="int8"),
      columns.Column(dtype="int32", shape=(2,), axes=("d",), code="int8"),
      columns.Column(dtype="float32", shape=(2,), axes=("d",), code="int4"),
    ):
      with self.assertRaisesRegex(InputError, "the code must be one of int8"):
        columns.check({"x": column})

  def test_the_error_that_is_measured_is_that_of_the_store(self):
    x = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32) + 3
    store = write(self.folder / "a", x, shuffle_seed=None)
    lost = store.whole("x")["x"] - x
    found = codes.error(x)
    variance = np.square(x - x.mean(0)).sum()
    self.assertAlmostEqual(
      found["fvu"] / (np.square(lost).sum() / variance), 1, places=4
    )
    relative = np.linalg.norm(lost, axis=-1) / np.linalg.norm(x, axis=-1)
    self.assertAlmostEqual(found["relative_error"], relative.mean(), places=6)
    self.assertEqual(codes.error(np.zeros((4, 2)))["fvu"], 0)

  def test_info_shows_the_column(self):
    store = write(self.folder / "a", rows() / 1e20)
    shown = dict(info.described(store.place))
    self.assertStartsWith(shown["column x"], "float32[6] as int8")


if __name__ == "__main__":
  absltest.main()
