"""Tests of saejax.compile_cache."""

import json
import os
import pathlib
import subprocess
import sys
import zlib
from unittest import mock

import jax
from absl.testing import absltest, parameterized
from jax.experimental.compilation_cache import compilation_cache

from saejax import compile_cache
from tests import shared

THRESHOLD = "jax_persistent_cache_min_compile_time_secs"

FIT = """
import collections, hashlib, json
import jax, numpy, saejax
counts = collections.Counter()
jax.monitoring.register_event_listener(
  lambda name, **_: counts.update([name.split("/")[-1]]))
before = jax.config.jax_compilation_cache_dir
x = numpy.random.default_rng(0).normal(size=(600, 8)).astype("float32")
sae, found = saejax.fit(x, n=16, k=2, steps=20, batch_rows=64, progress=False)
total = hashlib.sha256()
for leaf in jax.tree.leaves(sae):
  total.update(numpy.asarray(leaf).tobytes())
print(json.dumps({
  "weights": total.hexdigest(),
  "fvu": found.fvu,
  "hits": counts["cache_hits"],
  "misses": counts["cache_misses"],
  "folders": [before, jax.config.jax_compilation_cache_dir],
}))
"""


def fitted(**environment):
  """What a process that fits an SAE prints."""
  inherited = {k: v for k, v in os.environ.items() if k[:4] != "JAX_"}
  found = subprocess.run(
    [sys.executable, "-c", FIT],
    env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
    cwd=shared.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(found.stdout), found.stderr


def without_a_cache():
  """Takes JAX's folder, which the other tests use, away for a test."""
  jax.config.update(compile_cache.DIR, None)
  compilation_cache.reset_cache()


def entries(root):
  return sorted(p.name for p in pathlib.Path(root).glob("*/*-cache"))


class ProcessesTest(absltest.TestCase):
  def test_a_second_process_compiles_nothing_and_gives_the_same_bits(self):
    root = self.create_tempdir().full_path
    first, _ = fitted(XDG_CACHE_HOME=root)
    second, said = fitted(XDG_CACHE_HOME=root)
    off, _ = fitted(XDG_CACHE_HOME=root, SAEJAX_COMPILE_CACHE="off")
    self.assertEqual(first["hits"], 0)
    self.assertGreater(first["misses"], 5)
    self.assertEqual((second["hits"], second["misses"]), (first["misses"], 0))
    self.assertEqual((off["hits"], off["misses"]), (0, 0))
    for found in (first, second, off):
      self.assertEqual(found["weights"], first["weights"])
      self.assertEqual(found["fvu"], first["fvu"])
      self.assertEqual(found["folders"], [None, None])
    self.assertEqual(said, "")
    (folder,) = pathlib.Path(root, "saejax", "compiled").glob("*/")
    self.assertLen(list(folder.glob("*-cache")), first["misses"])
    self.assertEqual(folder.stat().st_mode & 0o077, 0)


class EnabledTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    before = getattr(jax.config, compile_cache.DIR)
    self.addCleanup(compilation_cache.reset_cache)
    self.addCleanup(jax.config.update, compile_cache.DIR, before)
    without_a_cache()
    self.root = self.create_tempdir().full_path

  def chosen(self, value):
    return mock.patch.dict(os.environ, {compile_cache.VARIABLE: value})

  def test_only_what_is_compiled_inside_is_kept(self):
    threshold = getattr(jax.config, THRESHOLD)
    x = jax.device_put(1.0)
    with self.chosen(self.root), compile_cache.enabled() as folder:
      self.assertEqual(getattr(jax.config, compile_cache.DIR), str(folder))
      jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(x))
    kept = entries(self.root)
    self.assertLen(kept, 1)
    jax.block_until_ready(jax.jit(lambda x: x * 5 + 1)(x))
    self.assertEqual(entries(self.root), kept)
    self.assertIsNone(getattr(jax.config, compile_cache.DIR))
    self.assertEqual(getattr(jax.config, THRESHOLD), threshold)

  def test_a_folder_that_jax_is_set_to_use_is_left(self):
    theirs = self.create_tempdir().full_path
    jax.config.update(compile_cache.DIR, theirs)
    with self.chosen(self.root), compile_cache.enabled() as folder:
      self.assertIsNone(folder)
      self.assertEqual(getattr(jax.config, compile_cache.DIR), theirs)

  def test_a_folder_that_cannot_be_written_is_not_used(self):
    file = self.create_tempfile("file").full_path
    with self.chosen(file), compile_cache.enabled() as folder:
      self.assertIsNone(folder)
      self.assertIsNone(getattr(jax.config, compile_cache.DIR))

  def test_another_number_of_cores_has_another_folder(self):
    with self.chosen(self.root):
      with compile_cache.enabled() as ours:
        pass
      with (
        mock.patch("saejax.machine.cores", return_value=1000),
        compile_cache.enabled() as theirs,
      ):
        self.assertNotEqual(ours, theirs)


class TidyTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    (self.root / "machine").mkdir()

  def put(self, name, data, used):
    path = self.root / "machine" / f"{name}-cache"
    path.write_bytes(data)
    os.utime(path, (used, used))
    return path

  def test_a_part_of_an_entry_is_removed(self):
    data = zlib.compress(os.urandom(1000))
    self.put("whole", data, 1e9)
    self.put("part", data[:-1], 1e9)
    self.put("empty", b"", 1e9)
    compile_cache.tidy(self.root)
    self.assertEqual(entries(self.root), ["whole-cache"])

  def test_a_part_of_an_entry_in_zstd_is_removed(self):
    try:
      import zstandard
    except ImportError:
      self.skipTest("zstandard is not installed")
    data = zstandard.ZstdCompressor().compress(os.urandom(1000))
    self.put("whole", data, 1e9)
    self.put("part", data[:-1], 1e9)
    compile_cache.tidy(self.root)
    self.assertEqual(entries(self.root), ["whole-cache"])

  def test_what_was_checked_is_not_read_again(self):
    compile_cache.tidy(self.root)
    self.put("old", b"", 1e9)
    compile_cache.tidy(self.root)
    self.assertEqual(entries(self.root), ["old-cache"])

  def test_the_least_recently_used_are_removed_beyond_the_size(self):
    data = zlib.compress(os.urandom(1000))
    for i, name in enumerate("badc"):
      self.put(name, data, 1e9 + i)
    compile_cache.tidy(self.root, most_bytes=2 * len(data))
    self.assertEqual(entries(self.root), ["c-cache", "d-cache"])


if __name__ == "__main__":
  absltest.main()
