"""Tests of saejax.evals.error.dark_matter on dictionaries that are known."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.error import dark_matter, document_sums, error_scaling
from saejax.evals.error.document_sums import Bootstrap, Rows
from saejax.evals.error.normal_equations import NormalEquations
from saejax.sae import activations
from tests import toy
from tests.features import stores

FEW = Bootstrap(resamples=50)
DOCUMENT = 25  # rows of each


def orthonormal(n, rng):
  """Orthonormal rows."""
  return np.linalg.qr(rng.standard_normal((n, n)))[0].astype(np.float32)


def codes(rows, n, rng, *, rate=0.2, binary=False):
  """Sparse codes: 1, or exponential, where on."""
  on = rng.random((rows, n)) < rate
  size = 1 if binary else rng.exponential(1.0, (rows, n))
  return (on * size).astype(np.float32)


def of(x, *, batch_rows=700, **columns):
  """Reads rows in batches, of documents of 25 rows."""
  doc = np.arange(len(x)) // DOCUMENT

  def read():
    for i in range(0, len(x), batch_rows):
      part = slice(i, i + batch_rows)
      yield Rows(x[part], doc[part], {k: v[part] for k, v in columns.items()})

  return read


def halves(x):
  """The rows of training and of held-out documents."""
  return document_sums.split(of(x))


def lookup(x, x_hat):
  """A reconstruction that is given for every row, found by its bytes."""
  known = {row.tobytes(): i for i, row in enumerate(x)}

  def reconstruct(rows):
    at = [known[row.tobytes()] for row in rows]
    return x_hat[at], np.ones(len(at))

  return reconstruct


def omitting(x, z, D, count):
  """A reconstruction by all but the first features."""
  return lookup(x, z[:, count:] @ D[count:])


class LinearPartTest(parameterized.TestCase):
  def test_an_sae_that_omits_features_of_an_orthonormal_dictionary(self):
    rng = np.random.default_rng(0)
    D, z = orthonormal(32, rng), codes(3000, 32, rng)
    x = z @ D
    found = dark_matter.decompose(
      omitting(x, z, D, 8), *halves(x), bootstrap=FEW
    )
    self.assertAlmostEqual(found.r2.value, 1, places=6)
    self.assertAlmostEqual(found.linear_share.value, 1, places=6)
    self.assertAlmostEqual(found.fvu.value, 0.25, delta=0.02)
    self.assertAlmostEqual(found.nonlinear_fvu.value, 0, places=6)

  def test_an_overcomplete_dictionary_is_not_linear_in_x(self):
    rng = np.random.default_rng(0)
    D = rng.standard_normal((128, 64)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    z = codes(8000, 128, rng, rate=0.05)
    x = z @ D
    found = dark_matter.decompose(
      omitting(x, z, D, 64), *halves(x), bootstrap=FEW
    )
    self.assertBetween(found.r2.value, 0.5, 0.9)
    self.assertLess(found.nonlinear_fvu.value, found.fvu.value)
    self.assertGreater(found.nonlinear_fvu.value, 0.05)

  @parameterized.parameters(0.1, 0.2, 0.4)
  def test_noise_of_the_reconstruction_is_nonlinear(self, sigma):
    rng = np.random.default_rng(0)
    D, z = orthonormal(32, rng), codes(12_000, 32, rng, rate=0.1)
    x = z @ D
    noise = sigma * rng.standard_normal(x.shape).astype(np.float32)
    x_hat = z[:, 16:] @ D[16:] + noise
    found = dark_matter.decompose(lookup(x, x_hat), *halves(x), bootstrap=FEW)
    v = (z[:, :16] @ D[:16]).var(axis=0)
    predicted = np.mean(v / (v + sigma**2))
    self.assertAlmostEqual(found.r2.value, predicted, delta=0.01)
    whole = x.var(axis=0).sum()
    self.assertAlmostEqual(
      found.nonlinear_fvu.value, 32 * sigma**2 / whole, delta=0.02
    )

  def test_the_fit_has_no_intercept_and_r2_is_about_the_mean(self):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2000, 4)) + [0, 1, 2, 0]).astype(np.float32)
    offset = np.array([0.0, 0.0, 2.0, 5.0], np.float32)
    e = 0.5 * x + offset
    train, test = halves(x)
    found = dark_matter.decompose(lookup(x, x - e), train, test, bootstrap=FEW)
    used, left = (
      np.concatenate([r.x for r in side()]) for side in (train, test)
    )
    A = np.linalg.lstsq(used, 0.5 * used + offset)[0]
    np.testing.assert_allclose(found.A, A, atol=1e-4)
    e = 0.5 * left + offset
    rest = ((e - left @ A) ** 2).sum(axis=0)
    want = np.mean(1 - rest / ((e - e.mean(axis=0)) ** 2).sum(axis=0))
    self.assertAlmostEqual(found.r2.value, want, delta=1e-3 * abs(want))

  def test_intervals_are_over_documents(self):
    rng = np.random.default_rng(0)
    D, z = orthonormal(16, rng), codes(4000, 16, rng)
    doc_scale = np.repeat(rng.exponential(1, 160), DOCUMENT)[:, None]
    x = (z * doc_scale).astype(np.float32) @ D
    x_hat = x - rng.standard_normal(x.shape).astype(np.float32) / 4
    found = dark_matter.decompose(lookup(x, x_hat), *halves(x))
    self.assertLess(found.fvu.low, found.fvu.value)
    self.assertGreater(found.fvu.high, found.fvu.value)
    # Rows taken for independent would give an interval several times narrower.
    self.assertGreater((found.fvu.high - found.fvu.low) / found.fvu.value, 0.15)

  def test_any_batches_give_the_same_numbers(self):
    rng = np.random.default_rng(0)
    D, z = orthonormal(8, rng), codes(600, 8, rng)
    x = z @ D
    sae = toy.sae(n=16, d=8, activation=activations.TopK(3))
    made = [
      dark_matter.decompose(
        dark_matter.reconstructor(sae, batch_rows=64),
        of(x[:300], batch_rows=size),
        of(x[300:], batch_rows=size),
        bootstrap=FEW,
      ).record()
      for size in (300, 37)
    ]
    for name in ("r2", "fvu", "nonlinear_fvu"):
      np.testing.assert_allclose(made[0][name], made[1][name], rtol=1e-4)
    self.assertEqual(made[0]["l0"], 3)
    np.testing.assert_allclose(
      list(made[0]["from_self"].values()),
      list(made[1]["from_self"].values()),
      rtol=1e-3,
    )

  def test_rows_of_a_store_are_read_from_all_of_it(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    store = stores.store(folder / "s")
    every = list(document_sums.of_store(store, batch_rows=64)())
    x = np.concatenate([rows.x for rows in every])
    np.testing.assert_array_equal(x, store.whole("x")["x"])
    self.assertEqual(set(every[0].columns), {"pos", "tok"})
    late = document_sums.of_store(store, first_position=40)()
    self.assertTrue(all((rows.columns["pos"] >= 40).all() for rows in late))
    part = list(document_sums.of_store(store, most=100, batch_rows=32)())
    self.assertLessEqual(sum(len(rows.x) for rows in part), 100)
    few = document_sums.of_store(store, most=1, batch_rows=32)()
    self.assertLen([rows for rows in few if len(rows.x)], 1)
    train, test = document_sums.split(document_sums.of_store(store), seed=3)
    docs = [
      {int(d) for rows in side() for d in rows.doc} for side in (train, test)
    ]
    self.assertEqual(docs[0] | docs[1], set(range(stores.DOCUMENTS)))
    self.assertEmpty(docs[0] & docs[1])

  def test_refuses_what_cannot_be_fitted(self):
    x = np.ones((100, 8), np.float32)
    rec = lookup(x, 0 * x)
    with self.assertRaisesRegex(InputError, "^train=10 rows: must have at"):
      dark_matter.decompose(rec, of(x[:10]), of(x))
    with self.assertRaisesRegex(InputError, "^held_out=no row"):
      dark_matter.decompose(rec, of(x), of(x[:0]))
    with self.assertRaisesRegex(InputError, "^compat=paper: must be ref"):
      dark_matter.decompose(rec, of(x), of(x), compat="paper")
    with self.assertRaisesRegex(InputError, "^test=1: must be between"):
      document_sums.split(of(x), test=1)


class NormTest(absltest.TestCase):
  def norms(self, binary, compat=""):
    rng = np.random.default_rng(0)
    D = orthonormal(24, rng)
    z = codes(3000, 24, rng, binary=binary)
    x = z @ D
    return dark_matter.decompose(
      omitting(x, z, D, 8), *halves(x), bootstrap=FEW, compat=compat
    )

  def test_the_norm_of_binary_features_is_linear_in_x(self):
    found = self.norms(binary=True)
    for v in ("x", "reconstruction", "error", "linear"):
      self.assertAlmostEqual(found.from_self[v].value, 1, places=6)
      self.assertAlmostEqual(found.from_x[v].value, 1, places=6)

  def test_the_norm_of_exponential_features_is_not(self):
    found = self.norms(binary=False)
    for v in ("x", "reconstruction", "error"):
      self.assertBetween(found.from_self[v].value, 0.5, 0.95)
    # No map of the reconstruction alone gives the norm of the error.
    self.assertLess(found.from_self["x"].value, 0.95)

  def test_the_reference_predicts_from_x_without_an_intercept(self):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 4)).astype(np.float32)
    own = [
      dark_matter.decompose(
        lookup(x, 0 * x), *halves(x), compat=compat, bootstrap=FEW
      )
      .from_x["x"]
      .value
      for compat in ("", "reference")
    ]
    self.assertAlmostEqual(own[0], 0, delta=0.05)
    self.assertLess(own[1], -1)  # a mean of 4 with a variance of 8

  def test_baselines_predict_the_error_where_they_know_it(self):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 8)).astype(np.float32)
    token = rng.integers(0, 20, 4000)
    size = (1 + token[:, None]).astype(np.float32)
    e = size * x / np.linalg.norm(x, axis=1, keepdims=True)
    read = of(x, tok=token, loss=token.astype(float) ** 2)
    found = dark_matter.decompose(
      lookup(x, x - e), *document_sums.split(read), bootstrap=FEW
    )
    self.assertAlmostEqual(found.baselines["token"].value, 1, places=4)
    self.assertGreater(found.baselines["loss"].value, 0.9)
    self.assertLess(found.baselines["norm"].value, 0.1)
    self.assertTrue(np.isclose(found.baselines["l0"].value, 0, atol=0.05))

  def test_a_token_without_training_rows_gets_the_mean(self):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4)).astype(np.float32)
    found = dark_matter.decompose(
      lookup(x, 0 * x),
      of(x[:200], tok=np.zeros(200, int)),
      of(x[200:], tok=np.full(200, 7)),
      bootstrap=FEW,
    )
    self.assertAlmostEqual(found.baselines["token"].value, 0, delta=0.1)


class ScalingTest(absltest.TestCase):
  def decomposed(self, share, seed=0):
    """A decomposition whose error is `share` of the variance, by document."""
    rng = np.random.default_rng(seed)
    below = np.where(np.arange(document_sums.GROUPS) < 60, 25.0, 0)
    noise = 1 + 0.05 * rng.standard_normal(len(below))
    sums = {"x": below, "error": 2 * share * below * noise}
    sums["nonlinear"] = share * below * noise
    none = document_sums.Estimate(0, 0, 0)
    return dark_matter.Decomposition(
      *(
        1500,
        1500,
        60,
        8.0,
        none,
        none,
        none,
        none,
        {},
        {},
        {},
        np.eye(2),
        sums,
      )
    )

  def test_the_law_of_planted_widths_is_found(self):
    widths = [256, 512, 1024, 2048, 4096, 8192]
    found = [self.decomposed(0.05 + 0.8 * w**-0.5) for w in widths]
    law = error_scaling.law(
      widths, found, part="nonlinear", bootstrap=Bootstrap(20)
    )
    self.assertAlmostEqual(law.m.value, -0.5, delta=0.03)
    self.assertAlmostEqual(law.c.value, 0.05, delta=0.003)
    self.assertAlmostEqual(float(law.predict(64)), 0.15, delta=0.01)
    self.assertLessEqual(law.c.low, law.c.value)

  def test_the_slope_of_a_part_and_its_interval(self):
    widths = [256, 1024, 4096]
    found = [self.decomposed(w**-0.25, seed=w) for w in widths]
    slope = error_scaling.slope(widths, found, bootstrap=FEW)
    self.assertAlmostEqual(slope.value, -0.25, delta=0.01)
    self.assertBetween(slope.high - slope.low, 1e-4, 0.05)
    flat = [self.decomposed(0.1, seed=w) for w in widths]
    slope = error_scaling.slope(widths, flat, bootstrap=FEW)
    self.assertAlmostEqual(slope.value, 0, delta=0.01)
    with self.assertRaisesRegex(InputError, "^widths="):
      error_scaling.slope([256, 256], found[:2])
    with self.assertRaisesRegex(InputError, "^part=all"):
      error_scaling.slope(widths, found, part="all")
    with self.assertRaisesRegex(InputError, "^widths=.*at least 3"):
      error_scaling.law(widths[:2], found[:2])

  def test_the_nonlinear_part_of_a_small_sae_predicts_a_large_one(self):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 8)).astype(np.float32)
    noise = np.zeros_like(x)
    noise[:, 0] = rng.exponential(1, 4000)  # in both, and not linear in x
    small, big = lookup(x, 0.5 * x - noise), lookup(x, x - noise)
    train, test = halves(x)
    A, _ = dark_matter.linear_map(small, train)
    found = error_scaling.per_token((small, A), big, train, test, bootstrap=FEW)
    self.assertGreater(found.with_nonlinear.value, found.r2.value + 0.1)
    left = 1 - found.r2.value
    gain = 100 * (found.with_nonlinear.value - found.r2.value) / left
    self.assertAlmostEqual(found.gain, gain)

  def test_intercepts_and_dependent_columns(self):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    x = np.concatenate([x, x[:, :1] * 1000, np.ones((200, 1))], axis=1)
    y = x @ np.array([[1.0], [2], [3], [0], [0]]) + 4
    for parts in ((200,), (63, 137)):
      sums = NormalEquations(5, 1)
      for part in np.split(np.arange(200), np.cumsum(parts)[:-1]):
        sums.add(x[part], y[part])
      np.testing.assert_allclose(sums.solve()(x), y, atol=1e-6)
    sums = NormalEquations(5, 1, intercept=False)
    sums.add(x, y)
    np.testing.assert_allclose(sums.solve()(x), y, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
