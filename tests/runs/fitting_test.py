"""Tests of saejax.fit and saejax.fit_grid: rows of any kind, refusals, resume."""

import functools
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax.data import streams
from saejax.errors import InputError
from saejax.kernels import native
from saejax.recipes import row_sparse
from saejax.training import lock
from tests import shared, toy

D, N = 16, 32
SETTINGS = {"n": N, "steps": 40, "batch_rows": 64, "progress": False}


@functools.cache
def rows(count=2000):
  truth = toy.dictionary(N, D)
  return np.asarray(toy.planted(jax.random.key(0), count, truth))


@functools.cache
def fitted():
  return saejax.fit(rows(), k=4, **SETTINGS)


def equal(one, two):
  leaves = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
  return all(np.array_equal(a, b) for a, b in leaves)


class FitTest(parameterized.TestCase):
  def test_an_array_is_split_and_reconstructed(self):
    sae, found = fitted()
    self.assertEqual((sae.n, sae.d, found.rows), (N, D, 100))
    self.assertEqual(found.l0, 4)
    self.assertLess(found.fvu, 0.6)
    self.assertTrue(np.isfinite(found.nmse))

  def test_the_same_call_gives_the_same_bits_and_another_seed_others(self):
    self.assertTrue(equal(saejax.fit(rows(), k=4, **SETTINGS)[0], fitted()[0]))
    other = saejax.fit(rows(), k=4, seed=1, **SETTINGS)[0]
    self.assertFalse(equal(other, fitted()[0]))

  def test_store_batches_and_iterator_are_taken_with_held_out_rows(self):
    x, held_out = rows()[:1900], rows()[1900:]
    store = saejax.write_store(
      self.create_tempdir().full_path + "/store", {"x": x}
    )
    stream = lambda: streams.array_batches(
      {"x": x}, batch_rows=64, seed=0, epochs=2
    )
    for given in (store, stream(), iter([b["x"] for b in stream()])):
      sae, found = saejax.fit(given, k=4, held_out=held_out, **SETTINGS)
      self.assertEqual((sae.n, found.rows, found.l0), (N, 100, 4))
      self.assertLess(found.fvu, 0.6)

  def test_a_run_folder_resumes_to_the_same_bits(self):
    folder = self.create_tempdir().full_path + "/run"
    whole = saejax.fit(rows(), k=4, run_dir=folder, **SETTINGS)
    again = saejax.fit(rows(), k=4, run_dir=folder, **SETTINGS)
    self.assertTrue(equal(whole[0], again[0]))
    with self.assertRaisesRegex(InputError, "holds a run"):
      saejax.fit(rows() + 1, k=4, run_dir=folder, **SETTINGS)

  @absltest.skipUnless(
    any(map(shutil.which, native.COMPILERS)), "there is no C++ compiler"
  )
  def test_native_kernels_give_the_same_sae_and_belong_to_the_run(self):
    folder = self.create_tempdir().full_path + "/run"
    sae, found = saejax.fit(
      rows(), k=4, native=True, run_dir=folder, **SETTINGS
    )
    plain, theirs = fitted()
    self.assertAlmostEqual(found.fvu, theirs.fvu, places=4)
    for ours, other in zip(*map(jax.tree.leaves, (sae, plain)), strict=True):
      np.testing.assert_allclose(ours, other, atol=1e-3)
    with self.assertRaisesRegex(InputError, r"native=True \(now absent\)"):
      saejax.fit(rows(), k=4, run_dir=folder, **SETTINGS)
    with self.assertRaisesRegex(InputError, "native=True: runs on one device"):
      saejax.fit(rows(), k=4, native=True, mesh=(1, 2, 1), **SETTINGS)

  @parameterized.parameters(
    ({"x": 0.1}, "x=1900 equal rows"),
    ({"x": 0.0}, "x=1900 equal rows"),
    ({"target": np.ones((2000, 3))}, "target=1900 equal rows"),
    ({"target": np.ones((100, 3))}, "target=.*x has 2000 rows"),
    ({"target": np.ones(2000)}, r"target=.*must be \[rows, d\]"),
    ({"weight": np.ones(7)}, "weight=.*x has 2000 rows"),
  )
  def test_fields_that_teach_nothing_or_do_not_fit_are_refused(self, bad, said):
    bad = {n: np.full((2000, D), v) if n == "x" else v for n, v in bad.items()}
    with self.assertRaisesRegex(InputError, said):
      saejax.fit({"x": rows(), **bad}, k=4, **SETTINGS)

  @parameterized.parameters(1e25, 1e-25)
  def test_rows_whose_squares_leave_float32_are_refused(self, scale):
    with self.assertRaisesRegex(InputError, "squares fit in float32"):
      saejax.fit(rows() * np.float32(scale), k=4, **SETTINGS)

  def test_a_folder_that_another_process_uses_is_refused(self):
    folder = self.create_tempdir().full_path
    with lock.RunLock(folder), self.assertRaisesRegex(InputError, "run_dir"):
      saejax.fit(rows(), k=4, run_dir=folder, **SETTINGS)

  def test_a_built_recipe_is_taken_and_nothing_beside_it(self):
    recipe = row_sparse.topk(D, N, 3, dead_after_tokens=10_000)
    settings = {**SETTINGS, "n": None}
    sae, found = saejax.fit(rows(), recipe, **settings)
    self.assertEqual((sae.n, found.l0), (N, 3))
    for name in ("k", "n"):
      with self.assertRaisesRegex(InputError, f"{name}=4: .*already built"):
        saejax.fit(rows(), recipe, **{**settings, name: 4})

  def test_a_threshold_of_batchtopk_keeps_k(self):
    _, found = saejax.fit(rows(), "batchtopk", k=4, **SETTINGS)
    self.assertAlmostEqual(found.l0, 4, delta=0.8)  # 100 held-out rows

  @parameterized.named_parameters(
    ("recipe", {"recipe": "topkk"}, "recipe=topkk: must be one of topk"),
    ("argument", {"theta": 1.0}, "theta=1.0: topk has no such argument"),
    ("k", {"k": 33}, r"k=33: must be a whole number in \[1, n=32\]"),
    ("prep", {"prep": "whiten"}, "prep=whiten: must be one of none"),
    ("rate", {"learning_rate": float("inf")}, "learning_rate=inf"),
    ("steps", {"steps": 0}, "steps=0: must be at least 1"),
    ("rows", {"batch_rows": 0}, "batch_rows=0: must be at least 1"),
    ("mesh", {"mesh": (1, 2, 1)}, "mesh.*needs 2 devices"),
  )
  def test_bad_arguments_are_refused_by_name(self, bad, message):
    given = {"k": 4, **SETTINGS, **bad}
    with self.assertRaisesRegex(InputError, message):
      saejax.fit(rows(), given.pop("recipe", "topk"), **given)

  def test_bad_rows_are_refused_by_name(self):
    broken = rows().copy()
    broken[7, 3] = np.nan
    with self.assertRaisesRegex(InputError, "x=1 of 2000 rows: must be finite"):
      saejax.fit(broken, k=4, **SETTINGS)
    with self.assertRaisesRegex(InputError, "x=95 equal rows"):
      saejax.fit(np.ones((100, D), np.float32), k=4, **SETTINGS)
    with self.assertRaisesRegex(InputError, "held_out.*must be given"):
      saejax.fit(iter([rows()]), k=4, **SETTINGS)

  def test_a_run_folder_gives_the_bits_of_memory(self):
    folder = self.create_tempdir().full_path + "/run"
    sae, _ = saejax.fit(rows(), k=4, run_dir=folder, **SETTINGS)
    self.assertTrue(equal(sae, fitted()[0]))

  def test_numbers_that_are_not_finite_raise(self):
    wild = {**SETTINGS, "learning_rate": 1e38}
    with self.assertRaisesRegex(FloatingPointError, "lower learning_rate"):
      saejax.fit(rows(), k=4, **wild)
    with self.assertRaisesRegex(FloatingPointError, "lower learning_rate"):
      saejax.fit_grid(rows(), k=[2, 4], **wild)
    bad = rows()[:64].copy()
    bad[3, 3] = np.inf
    stream = iter([rows()[:64], bad, *[rows()[64:128]] * 40])
    with self.assertRaisesRegex(FloatingPointError, "step 1: rows.*leave"):
      saejax.fit(stream, k=4, held_out=rows()[:100], **SETTINGS)

  def test_a_stream_that_ends_early_says_when(self):
    stream = iter([rows()[:64]] * 7)
    with self.assertRaisesRegex(InputError, "ended after 7 batches"):
      saejax.fit(stream, k=4, held_out=rows()[:100], **SETTINGS)

  def test_memory_alone_imports_neither_checkpoints_nor_grain(self):
    code = """
import sys, numpy as np, saejax
x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
saejax.fit(x, n=16, k=2, steps=3, batch_rows=32, progress=False)
never = ("orbax", "grain", "tensorstore", "tensorboardX", "torch")
found = [m for m in never if m in sys.modules]
assert not found, found
"""
    done = subprocess.run(
      [sys.executable, "-c", code],
      cwd=shared.ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])


class TargetTest(parameterized.TestCase):
  """Transcoders: rows with a target that is reconstructed from x."""

  def setUp(self):
    super().setUp()
    A = toy.rows(D, 6, seed=5)
    self.batch = {"x": rows(), "target": np.maximum(rows() @ A, 0) + 3}

  def check(self, sae, metrics, least):
    self.assertEqual((sae.encoder.width(sae.decoder), sae.d), (D, 6))
    self.assertLess(metrics.fvu, least)
    # A wrong mean, such as that of x, would make nmse far smaller than FVU.
    np.testing.assert_allclose(metrics.nmse, metrics.fvu, rtol=0.1)
    target = self.batch["target"]
    miss = np.sum((sae(rows()) - target) ** 2)
    spread = np.sum((target - target.mean(axis=0)) ** 2)
    self.assertLess(miss / spread, 1.1 * least)

  def test_arrays_and_iterators_with_a_target(self):
    settings = {**SETTINGS, "steps": 200, "k": 8}
    self.check(*saejax.fit(self.batch, **settings), 0.5)
    held_out = {name: a[:200] for name, a in self.batch.items()}
    parts = [*range(0, 2000, 100)] * 5
    stream = (
      {name: a[i : i + 100] for name, a in self.batch.items()} for i in parts
    )
    settings["steps"] = len(parts)
    self.check(*saejax.fit(stream, held_out=held_out, **settings), 0.7)

  def test_held_out_rows_without_a_target_are_refused_before_training(self):
    settings = {**SETTINGS, "steps": 10**9}
    with self.assertRaisesRegex(InputError, "held_out=.*must have a target"):
      saejax.fit(self.batch, held_out=rows(), **settings)

  def test_a_store_with_a_target(self):
    path = self.create_tempdir().full_path
    store = saejax.write_store(f"{path}/train", self.batch)
    held_out = saejax.write_store(f"{path}/held_out", self.batch)
    settings = {**SETTINGS, "steps": 200, "k": 8}
    sae, metrics = saejax.fit(store, held_out=held_out, **settings)
    self.check(sae, metrics, 0.5)
    again = saejax.evaluate(sae, held_out, mean=store)
    np.testing.assert_allclose(again.nmse, metrics.nmse, rtol=1e-5)


class BoostingTest(absltest.TestCase):
  def test_a_stage_behind_an_sae_or_its_folder_lowers_the_error(self):
    first, before = fitted()
    folder = self.create_tempdir().full_path
    saejax.save(first, f"{folder}/first")
    run = functools.partial(saejax.fit, rows(), k=4, **SETTINGS)
    both, after = run(residual_of=first)
    self.assertLess(after.fvu, 0.8 * before.fvu)
    same, _ = run(residual_of=f"{folder}/first", run_dir=f"{folder}/run")
    self.assertTrue(equal(same, both))
    path = pathlib.Path(folder, "first")
    self.assertTrue(equal(run(residual_of=path)[0], both))
    with self.assertRaisesRegex(InputError, "residual_of"):
      run(residual_of=both, run_dir=f"{folder}/run")
    with self.assertRaisesRegex(InputError, "residual_of=3: must be an SAE"):
      run(residual_of=3)


class GridTest(absltest.TestCase):
  def test_every_combination_and_seed_in_order(self):
    settings = {**SETTINGS, "n": [16, 32]}
    found = saejax.fit_grid(rows(), k=[2, 4], seeds=2, **settings)
    self.assertEqual(
      [(t.n, t.arguments["k"], t.seed) for t in found],
      [(n, k, s) for n in (16, 32) for k in (2, 4) for s in (0, 1)],
    )
    for t in found:
      self.assertEqual(t.sae.n, t.n)
      self.assertAlmostEqual(t.metrics.l0, t.arguments["k"], delta=0.1)
    same = next(
      t for t in found if (t.n, t.seed, t.arguments["k"]) == (32, 0, 4)
    )
    self.assertTrue(equal(same.sae, fitted()[0]))

  def test_several_n_are_trained_in_one_pass_over_an_iterator(self):
    stream = lambda: iter([rows()[64 * (i % 20) :][:64] for i in range(40)])
    settings = {**SETTINGS, "held_out": rows()[1400:]}
    found = saejax.fit_grid(stream(), k=4, **{**settings, "n": [16, 32]})
    self.assertEqual([t.sae.n for t in found], [16, 32])
    alone, _ = saejax.fit(stream(), k=4, **settings)
    self.assertTrue(equal(found[1].sae, alone))

  def test_members_of_a_coupled_method_are_pairs(self):
    found = saejax.fit_grid(
      rows(), "mfr", k=4, coefficient=[0.01, 0.1], seeds=2, **SETTINGS
    )
    pairs = [(t.arguments["coefficient"], t.seed) for t in found]
    self.assertEqual(pairs, [(0.01, 0), (0.01, 1), (0.1, 0), (0.1, 1)])


if __name__ == "__main__":
  absltest.main()
