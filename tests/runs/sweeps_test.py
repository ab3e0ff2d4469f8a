"""Tests of saejax.fit_grid: what members differ in, sites, a diverging member."""

import contextlib
import functools
import io
import pathlib

import jax
import numpy as np
from absl.testing import absltest

import saejax
from saejax.errors import InputError
from saejax.interop import names
from saejax.training import log
from tests import toy

D, N = 16, 32
SETTINGS = {"n": N, "steps": 12, "batch_rows": 64, "progress": False}


@functools.cache
def rows(seed=0):
  # Noise: of exact sums gradients are rounding, of which Adam takes the sign.
  return np.asarray(toy.rows(1000, D, seed=seed)) * (1 + seed) + seed


def leaves(sae):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(sae)]


class SweepTest(absltest.TestCase):
  def assert_close(self, one, two):
    for a, b in zip(leaves(one), leaves(two), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)

  def test_k_rates_and_seeds_in_one_program_are_the_separate_runs(self):
    found = saejax.fit_grid(
      rows(),
      k=[2, 4],
      learning_rate=[1e-3, 4e-3],
      members="stacked",
      **SETTINGS,
    )
    x = rows()[:200]
    one = found[1]  # of the smaller k, which is masked
    alone, metrics = saejax.fit(rows(), k=2, learning_rate=4e-3, **SETTINGS)
    self.assert_close(one.sae, alone)
    chosen = [sae.encode_sparse(x).indices for sae in (one.sae, alone)]
    np.testing.assert_array_equal(*chosen)
    self.assertAlmostEqual(one.metrics.fvu, metrics.fvu, places=5)
    rates = [(one.arguments["k"], one.learning_rate) for one in found]
    self.assertEqual(rates, [(2, 1e-3), (2, 4e-3), (4, 1e-3), (4, 4e-3)])

  def test_a_member_that_diverges_is_marked_and_the_others_are_unchanged(self):
    folder = pathlib.Path(self.create_tempdir().full_path, "run")
    run = functools.partial(saejax.fit_grid, rows(), k=4, **SETTINGS)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
      good, bad = run(learning_rate=[3e-3, 1e38], run_dir=folder)
    self.assertIn("warning: k4-rate=1e+38-seed0", said.getvalue())
    self.assertEqual(good.status, "ok")
    self.assertRegex(bad.status, "^diverged at step [0-9]+$")
    (alone,) = run(learning_rate=[3e-3])
    jax.tree.map(np.testing.assert_array_equal, good.sae, alone.sae)
    (there,) = (folder / "saes").glob("*-diverged")
    self.assertEqual(saejax.about(there)["status"], bad.status)
    self.assertTrue(np.isfinite(saejax.load(there).W_dec).all())
    with self.assertRaisesRegex(InputError, "sae=.*diverged at step"):
      names.read(there)
    last = log.read(folder)[-1]["members"]
    self.assertEqual(
      [("diverged_step" in own) for own in last.values()], [False, True]
    )
    with self.assertRaisesRegex(InputError, "holds a run"):
      run(learning_rate=[3e-3, 1e-3], run_dir=folder)

  def test_members_of_several_sites_are_the_runs_of_each(self):
    sites = {"l1": rows(), "l2": rows(1)}
    sae, metrics = saejax.fit(sites["l2"], k=4, **SETTINGS)
    for members in ("in_turn", "stacked"):
      found = saejax.fit_grid(
        saejax.Sites(sites), k=4, seeds=2, members=members, **SETTINGS
      )
      self.assertEqual(
        [(one.site, one.seed) for one in found],
        [(site, seed) for site in sites for seed in (0, 1)],
      )
      self.assert_close(found[2].sae, sae)
      self.assertAlmostEqual(found[2].metrics.fvu, metrics.fvu, places=5)
      centres = [float(leaves(one.sae.prep)[0].mean()) for one in found]
      np.testing.assert_allclose(centres, [0, 0, 1, 1], atol=0.05)

  def test_sites_that_do_not_fit_together_are_refused(self):
    narrow = {"a": rows(), "b": rows()[:, :8]}
    with self.assertRaisesRegex(InputError, "a of width 16, b of width 8"):
      saejax.fit_grid(saejax.Sites(narrow), k=4, **SETTINGS)
    both = saejax.Sites({"a": rows(), "b": rows()})
    with self.assertRaisesRegex(InputError, "held_out=a: must have the rows"):
      saejax.fit_grid(both, k=4, held_out={"a": rows()}, **SETTINGS)
    with self.assertRaisesRegex(InputError, "must have named sites"):
      saejax.Sites({})

  def test_recipes_of_equal_shape_share_the_reading(self):
    found = saejax.fit_grid(rows(), ["topk", "batchtopk"], k=4, **SETTINGS)
    self.assertEqual([one.recipe for one in found], ["topk", "batchtopk"])
    alone, _ = saejax.fit(rows(), "batchtopk", k=4, **SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, found[1].sae, alone)
    with self.assertRaisesRegex(InputError, "several recipe"):
      saejax.fit_grid(
        rows(), ["topk", "batchtopk"], k=4, members="stacked", **SETTINGS
      )


if __name__ == "__main__":
  absltest.main()
