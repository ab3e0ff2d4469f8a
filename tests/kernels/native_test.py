"""Tests of the C++ form of the ops, where there is a C++ compiler."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.kernels import dispatch, native
from saejax.kernels.entries import op as entries
from saejax.kernels.fused_encode import op as fused_encode
from saejax.kernels.sparse_decode import op as sparse
from saejax.kernels.topk import native as topk_native
from saejax.kernels.topk import op as topk
from saejax.kernels.topk import select

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILER = any(map(shutil.which, native.COMPILERS))
SPECIAL = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42, -1e-42]


def run(f, *args):
  """f under jit, in its C++ form."""
  with dispatch.kernels("auto", native=True):
    compiled = jax.jit(f).lower(*args).compile()
  if "saejax." not in compiled.as_text():
    raise AssertionError("no call of the library in the compiled program")
  return compiled(*args)


def equal_bits(got, want):
  got, want = np.asarray(got), np.asarray(want)
  np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def code(b, k, n):
  """A code with zeros and repeated indices."""
  rng = np.random.default_rng(b)
  values = jnp.where(rng.random((b, k)) > 0.2, normal(b, k, seed=b), 0)
  return values, jnp.asarray(rng.integers(0, n, (b, k)), jnp.int32)


@absltest.skipUnless(COMPILER, "there is no C++ compiler")
class SelectTest(parameterized.TestCase):
  def check(self, a, k):
    values, indices = run(partial(topk.k_largest, k=k), a)
    want, where = jax.lax.top_k(a, k)
    np.testing.assert_array_equal(indices, where)
    equal_bits(values, want)
    values, indices = run(partial(topk.k_largest, k=k, ordered=False), a)
    np.testing.assert_array_equal(indices, np.sort(where, axis=-1))
    equal_bits(values, jnp.take_along_axis(a, indices, axis=-1))

  @parameterized.parameters(
    (33, 6144, 32), (3, 1000, 1), (4, 100, 99), (2, 12000, 256), (5, 7, 7),
    (1, 1, 1), (17, 301, 4),
  )  # fmt: skip
  def test_equals_lax_top_k(self, rows, n, k):
    self.check(normal(rows, n), k)

  @parameterized.parameters(1, 8, 60, 300)
  def test_ties_go_to_the_lowest_index(self, k):
    self.check(jnp.round(normal(20, 300)), k)
    self.check(jnp.zeros((3, 300)), k)

  @parameterized.parameters(1, 5, 64, 200)
  def test_orders_zeros_infinities_nans_and_denormals(self, k):
    rng = np.random.default_rng(1)
    a = rng.choice(np.asarray(SPECIAL, np.float32), (8, 200))
    a[4:] = np.where(rng.random((4, 200)) < 0.1, a[4:], normal(4, 200))
    self.check(jnp.asarray(a), k)

  def test_a_lone_entry_is_found_wherever_it_is(self):
    a = jnp.zeros((12, 12000)).at[jnp.arange(12), jnp.arange(12) * 999].set(1.0)
    self.check(a - 1, 256)

  def test_under_vmap_and_grad_equals_the_plain_form(self):
    x, W = normal(40, 6), normal(3, 301, 6, seed=1)
    weights = normal(3, 40, 4, seed=2)

    def loss(W, weights):
      b = jnp.zeros(301)
      v, _ = fused_encode.encode_topk(x, jnp.zeros(6), W, b, 4, ordered=False)
      return jnp.sum(v * weights)

    both = jax.vmap(jax.value_and_grad(loss))
    got, want = run(both, W, weights), jax.jit(both)(W, weights)
    for ours, theirs in zip(got, want, strict=True):
      np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


@absltest.skipUnless(COMPILER, "there is no C++ compiler")
class LargestTest(parameterized.TestCase):
  def check(self, a, count, size):
    found = run(partial(topk_native.largest, size=size), a, jnp.float32(count))
    want = np.nonzero(select.largest(a, jnp.float32(count), (0, 1)))
    filled = np.asarray(found[2])
    self.assertEqual(filled.sum(), len(want[0]))
    self.assertTrue(filled[: len(want[0])].all())
    np.testing.assert_array_equal(found[0][filled], want[0])
    np.testing.assert_array_equal(found[1][filled], want[1])

  @parameterized.product(
    shape=[(64, 200), (7, 50), (1, 9), (513, 64)],
    kind=["normal", "ties", "equal", "special", "negative"],
  )
  def test_equals_the_selection_by_counting(self, shape, kind):
    a = normal(*shape)
    if kind == "ties":
      a = jnp.round(a)
    elif kind == "equal":
      a = jnp.ones(shape)
    elif kind == "special":
      rng = np.random.default_rng(1)
      a = jnp.asarray(rng.choice(np.asarray(SPECIAL, np.float32), shape))
    elif kind == "negative":
      a = -jnp.abs(a)
    size = 3 * shape[0]
    for count in (size, size - 2, 1, 0):
      self.check(a, count, size)

  def test_members_are_apart_under_vmap(self):
    a, counts = normal(3, 17, 40), jnp.asarray([34.0, 20, 0])
    found = run(jax.vmap(partial(topk_native.largest, size=34)), a, counts)
    np.testing.assert_array_equal(jnp.sum(found[2], axis=-1), counts)
    for one, count, rows in zip(a, counts, found[0], strict=True):
      want = np.nonzero(select.largest(one, count, (0, 1)))[0]
      np.testing.assert_array_equal(rows[: len(want)], want)


@absltest.skipUnless(COMPILER, "there is no C++ compiler")
class GradientsTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1, 1, 1), (5, 3, 7, 11), (131, 8, 37, 40), (300, 19, 130, 33)
  )
  def test_equal_the_plain_form(self, b, k, d, n):
    args = (*code(b, k, n), normal(b, d), normal(n, d, seed=1))
    f = partial(sparse.gradients, dtype="float32")
    for ours, theirs in zip(run(f, *args), f(*args), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    f = partial(sparse.scatter_rows, n=n)
    np.testing.assert_allclose(
      run(f, *args[:3]), f(*args[:3]), atol=1e-4, rtol=1e-5
    )

  @parameterized.parameters((1, 1, 1, 1), (5, 11, 7, 11), (131, 600, 37, 40))
  def test_of_entries_equal_the_plain_form(self, b, size, d, n):
    values, indices = code(size, 1, n)
    rows = np.sort(np.random.default_rng(0).integers(0, b, size))
    entry = values[:, 0], jnp.asarray(rows, jnp.int32), indices[:, 0]
    g, W = normal(b, d), normal(n, d, seed=1)
    f = partial(entries.gradients, dtype="float32")
    both = run(f, *entry, g, W), f(*entry, g, W)
    for ours, theirs in zip(*both, strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    f = partial(entries.add_rows, size=b)
    swapped = entry[0], entry[1], entry[2], W
    np.testing.assert_allclose(run(f, *swapped), f(*swapped), atol=1e-4)

  def test_a_latent_on_every_row_and_latents_on_none(self):
    y = normal(700, 5)
    values, indices = jnp.ones((700, 1)), jnp.full((700, 1), 3)
    got = run(partial(sparse.scatter_rows, n=200), values, indices, y)
    want = jnp.zeros((200, 5)).at[3].set(jnp.sum(y, axis=0))
    np.testing.assert_allclose(got, want, atol=1e-4)

  def test_absent_entries_and_indices_outside_add_nothing(self):
    values = jnp.asarray([[0.0, 2.0, 3.0, 4.0]])
    indices = jnp.asarray([[0, 1, -1, 2]])
    y, W = jnp.ones((1, 3)), normal(2, 3).at[0].set(jnp.nan)
    d_values, d_W = run(
      partial(sparse.gradients, dtype="float32"), values, indices, y, W
    )
    np.testing.assert_array_equal(d_W, [[0, 0, 0], [2, 2, 2]])
    np.testing.assert_allclose(d_values, [[0, jnp.sum(W[1]), 0, 0]], rtol=1e-6)

  def test_members_are_apart_under_vmap(self):
    values, indices = jax.tree.map(
      lambda *a: jnp.stack(a), code(20, 3, 9), code(20, 3, 9)
    )
    values *= jnp.asarray([1.0, 2.0])[:, None, None]
    y = normal(20, 4)
    scatter = jax.vmap(partial(sparse.scatter_rows, n=9), (0, 0, None))
    got = run(scatter, values, indices, y)
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-6)
    np.testing.assert_allclose(got, scatter(values, indices, y), atol=1e-5)

  def test_decode_is_differentiated_by_the_call(self):
    values, indices = code(50, 4, 30)
    W, weights = normal(30, 8), normal(50, 8, seed=1)
    loss = lambda v, W: jnp.sum(sparse.decode(v, indices, W) * weights)
    gradient = jax.grad(loss, (0, 1))
    for ours, theirs in zip(
      run(gradient, values, W), gradient(values, W), strict=True
    ):
      np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


class LoadTest(absltest.TestCase):
  def test_it_is_for_cpus_alone(self):
    with (
      mock.patch.object(jax, "default_backend", lambda: "gpu"),
      self.assertRaisesRegex(InputError, "train.native.* this is a gpu"),
    ):
      native.load.__wrapped__()

  def start(self, **changed: str) -> subprocess.CompletedProcess[str]:
    program = (
      "from saejax.errors import InputError\n"
      "from saejax.kernels import native\n"
      "try: native.load()\n"
      "except InputError as e: print(e)\n"
    )
    cache = self.enter_context(tempfile.TemporaryDirectory())
    environment = {
      **os.environ,
      "XDG_CACHE_HOME": cache,
      "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
      [sys.executable, "-c", program],
      capture_output=True,
      text=True,
      env={**environment, "JAX_PLATFORMS": "cpu", **changed},
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.made = list(pathlib.Path(cache).rglob("*"))
    return done

  @absltest.skipUnless(COMPILER, "there is no C++ compiler")
  def test_the_library_alone_is_left_in_the_cache(self):
    self.assertEqual(self.start().stdout, "")
    files = [path for path in self.made if path.is_file()]
    self.assertEqual([path.suffix for path in files], [".so"])

  def test_no_compiler_is_refused_with_the_flag_and_the_remedy(self):
    said = self.start(PATH="/nowhere").stdout
    self.assertRegex(said, "train.native.* needs a C.. compiler.*install one")

  def test_a_compiler_that_fails_is_refused_and_leaves_nothing(self):
    said = self.start(CXX="false").stdout
    self.assertRegex(said, "train.native.*false failed.*CXX")
    self.assertEmpty([path for path in self.made if path.is_file()])


if __name__ == "__main__":
  absltest.main()
