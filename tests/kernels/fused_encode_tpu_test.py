"""Tests of the Pallas form of kernels/fused_encode, simulated on CPU."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.experimental.pallas import tpu as pltpu

from saejax.kernels import dispatch
from saejax.kernels.fused_encode import op, ref, tpu, xla
from tests import toy

SIMULATED = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
# Ragged in every direction: 2 strips of rows, 3 tiles of latents, d below 128.
ROWS, D, N, K = 21, 24, 300, 6
SIZES = tpu.Blocks(rows=32, strip=16, group=16, buckets=128, depth=2)
ALL, SOME, NONE = "all", "some", "none"


@functools.cache
def kernel(k=K, dtype="float32", **how):
  """encode_select for rows and weights of float32, simulated with races."""

  def encode(x, W, b):
    return tpu.encode_select(
      x.astype(dtype),
      W.astype(dtype),
      b,
      k=k,
      sizes=SIZES,
      interpret=SIMULATED,
      **how,
    )

  return jax.jit(encode)


def integers(bound, *shape, seed=0):
  drawn = np.random.default_rng(seed).integers(-bound, bound + 1, shape)
  return drawn.astype(np.float32)


def case(kind):
  """x, W, b of which every sum is exact, so that no order of sums matters."""
  x, W = integers(127, ROWS, D), integers(127, N, D, seed=1)
  b = integers(127, N, seed=2)
  if kind == "ties":
    x, W, b = x // 64, W // 64, b // 64
  if kind == "equal":
    W, b = np.ones_like(W), np.ones_like(b)
  if kind == "equal tail":  # equal entries at the edge of the k largest
    x, W, b = np.abs(x), np.ones_like(W), np.zeros_like(b)
    b[:3] = 1
  if kind == "one bucket":  # more winners in a bucket than it keeps
    b[5::128] += 1e6
  if kind == "one bucket of some rows":
    W[5::128, 0] = 1e6
  if kind == "negative":
    b = b - 1e6
  if kind == "competing":
    b[40:] = -np.inf
  if kind == "too few competing":
    b[3:] = -np.inf
  if kind == "inf":
    b[[7, 200]] = np.inf
  if kind == "inf of both signs":
    W[[7, 200], 3] = [np.inf, -np.inf]
  if kind == "nan":
    W[130, 2] = np.nan
  if kind == "nan in two rows":
    x[[2, 19], 4] = np.nan
  if kind == "zeros":
    x, b = np.zeros_like(x), np.full_like(b, -0.0)
  if kind == "zeros of both signs":
    x, b = np.zeros_like(x), np.copysign(0, b)
  if kind == "denormal":
    x, b = np.zeros_like(x), np.arange(N, dtype=np.float32) * np.float32(1e-44)
  return x, W, b


def dense(x, W, b, k=K, *, ordered=True, magnitude=False):
  select = xla.selection(ordered=ordered, magnitude=magnitude)
  return jax.jit(lambda x, W, b: select(xla.pre_activations(x, W, b), k))(
    x, W, b
  )


class EncodeSelectTest(parameterized.TestCase):
  def check(self, args, redone, k=K, **how):
    got = kernel(k, **how)(*args)
    for have, want in zip(got[:2], dense(*args, k, **how), strict=True):
      np.testing.assert_array_equal(have, want)
    count = int(np.sum(got[2]))
    found = ALL if count == ROWS else SOME if count else NONE
    self.assertEqual(found, redone, count)

  @parameterized.parameters(
    ("distinct", NONE),
    ("ties", SOME),
    ("equal", ALL),
    ("equal tail", ALL),
    ("one bucket", ALL),
    ("one bucket of some rows", SOME),
    ("negative", NONE),
    ("competing", NONE),
    ("too few competing", ALL),
    ("inf", ALL),
    ("inf of both signs", ALL),
    ("nan", ALL),
    ("nan in two rows", SOME),
    ("zeros", ALL),
    ("zeros of both signs", ALL),
    ("denormal", ALL),
  )
  def test_equals_the_dense_selection(self, kind, redone):
    self.check(case(kind), redone)

  @parameterized.parameters(
    ("distinct", NONE),
    ("ties", SOME),
    ("one bucket", ALL),
    ("competing", NONE),
    ("inf of both signs", ALL),
  )
  def test_equals_it_in_index_order_and_by_magnitude(self, kind, redone):
    self.check(case(kind), redone, ordered=False, magnitude=True)

  def test_the_largest_alone(self):
    self.check(case("ties"), NONE, k=1)

  def test_bfloat16_operands_are_summed_in_float32(self):
    args = case("distinct")  # integers below 2^8 are exact in bfloat16
    got = kernel(dtype="bfloat16")(*args)
    for have, want in zip(got[:2], dense(*args), strict=True):
      np.testing.assert_array_equal(have, want)
    self.assertEqual(got[0].dtype, jnp.float32)


def candidates(a):
  """Values and tiles of each row's buckets, kept one by one."""
  buckets, depth = SIZES.buckets, SIZES.depth
  values = np.full((len(a), depth, buckets), -np.inf, np.float32)
  tiles = np.zeros(values.shape, np.int32)
  for row, line in enumerate(a):
    for bucket in range(buckets):
      order = sorted(
        range(bucket, len(line), buckets), key=lambda i: (-line[i], i)
      )
      for level, i in enumerate(order[:depth]):
        values[row, level, bucket] = line[i]
        tiles[row, level, bucket] = i // buckets
  return values.reshape(len(a), -1), tiles.reshape(len(a), -1)


class CertificateTest(parameterized.TestCase):
  """Rows before anything is redone."""

  def setUp(self):
    super().setUp()
    self.candidates = jax.jit(
      partial(
        tpu._candidates, magnitude=False, sizes=SIZES, interpret=SIMULATED
      )
    )
    self.largest = jax.jit(
      partial(tpu._largest, k=K, sizes=SIZES, interpret=SIMULATED)
    )

  def rows(self):
    """Pre-activations of 32 rows, each against the certificate in its way."""
    rng = np.random.default_rng(0)
    a = rng.integers(-9, 9, (32, N)).astype(np.float32)
    a[:8] += rng.random((8, N)).astype(np.float32)
    for row in range(8, 16):  # the winners in one bucket, as many as `row`
      a[row, 3 + 128 * np.arange(3)] += 100 * (np.arange(3) < row % 4)
    a[16:20] = -np.abs(a[16:20]) - 1
    a[20] = 5
    a[21, 128:] = a[21, :128].max() + 1  # the k-th equals what was dropped
    a[22, :] = -np.inf
    a[23, 5:] = -np.inf
    a[24] = np.sort(a[24])  # every tile displaces the one before it
    a[25] = -np.sort(-a[25])
    return a

  def test_candidates_are_those_of_each_bucket_in_order(self):
    a = self.rows()
    a[22:24] = np.maximum(a[22:24], -1e6)  # inf by 0 is NaN
    got = self.candidates(np.eye(32, dtype=np.float32), a.T, np.zeros(N))
    values, tiles = candidates(a)
    np.testing.assert_array_equal(got[0], values)
    kept = values > -np.inf
    np.testing.assert_array_equal(got[1][kept], tiles[kept])

  def test_a_row_is_certified_iff_its_kth_is_above_the_pivot(self):
    a = self.rows()
    values, tiles = candidates(a)
    got, codes, certified = self.largest(values, tiles)
    order = np.argsort(-a, axis=1, kind="stable")[:, :K]
    want = np.take_along_axis(a, order, axis=1)
    pivot = values.reshape(32, SIZES.depth, -1)[:, -1].max(axis=1)
    best = np.sort(values, axis=1)[:, -K]
    sure = (best > pivot) & ~np.any(want == 0, axis=1)
    np.testing.assert_array_equal(certified[:, 0], sure)
    self.assertBetween(int(sure.sum()), 8, 24)
    np.testing.assert_array_equal(got[sure, :K], want[sure])
    np.testing.assert_array_equal(codes[sure, :K], order[sure])

  def test_zero_and_inf_are_never_certified(self):
    a = self.rows()[:16]
    a[:8, 0], a[8:, 1] = 1000, np.inf
    a[:8] = np.where(a[:8] < 1000, np.minimum(a[:8], 0), a[:8])
    a[:, 2] = np.maximum(a[:, 2], 0)
    a[1:8:2, 2] = -0.0
    _, _, certified = self.largest(*candidates(a))
    np.testing.assert_array_equal(certified, 0)


class OpTest(parameterized.TestCase):
  """The whole op with its kernels, by the plain interpreter."""

  def setUp(self):
    super().setUp()
    self.enter_context(dispatch.kernels("pallas", interpret=True))

  def test_gradients_are_those_of_the_definition(self):
    x, b_pre = toy.rows(9, 6), toy.rows(6, seed=1)
    W, b = toy.rows(130, 6, seed=2), toy.rows(130, seed=3)

    def with_gradients(encode):
      def loss(*args):
        values, indices = encode(*args, 5)
        return jnp.sum(values**2), (values, indices)

      return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(x, b_pre, W, b)

    got = with_gradients(op.encode_topk)
    want = with_gradients(ref.encode_topk)
    np.testing.assert_array_equal(got[1][1], want[1][1])
    toy.assert_trees_close(got, want, atol=2e-4, rtol=1e-5)

  def test_counts_the_rows_that_were_redone(self):
    x, W, b = case("distinct")
    b[5::128] += 1e6
    encode = jax.jit(partial(op.encode_topk_counted, k=3))
    zero = jnp.zeros(D)
    self.assertEqual(encode(x, zero, W, b)[2], 0)  # a bucket keeps three
    self.assertEqual(encode(x, zero, np.ones_like(W), b * 0)[2], 0)
    self.assertEqual(encode(0 * x, zero, W, b * 0)[2], ROWS)

  @parameterized.parameters(1, 40)
  def test_keeps_one_or_all_of_the_latents(self, k):
    x, W, b = case("ties")
    args = x, W[:40], b[:40]
    got = jax.jit(partial(op.encode_topk, k=k))(x, jnp.zeros(D), *args[1:])
    for have, want in zip(got, dense(*args, k), strict=True):
      np.testing.assert_array_equal(have, want)

  def test_a_lone_one_among_zeros_is_found_in_any_tile(self):
    x, W = np.ones((2, 1), np.float32), np.zeros((12_000, 1), np.float32)
    W[11_003] = 1
    b, zero = jnp.zeros(12_000), jnp.zeros(1)
    values, indices = jax.jit(partial(op.encode_topk, k=256))(x, zero, W, b)
    np.testing.assert_array_equal(indices[:, 0], 11_003)
    np.testing.assert_array_equal(values[:, 1:], 0)
    np.testing.assert_array_equal(indices[0, 1:], np.arange(255))

  def test_vmapped_over_members_equals_each(self):
    x, W, b = case("distinct")
    encode = lambda W, b: op.encode_topk(x, jnp.zeros(D), W, b, K)
    stack = np.stack([W, W[::-1]]), np.stack([b, b[::-1]])
    got = jax.jit(jax.vmap(encode))(*stack)
    for member in range(2):
      want = dense(x, stack[0][member], stack[1][member])
      for have, each in zip(got, want, strict=True):
        np.testing.assert_array_equal(have[member], each)


class BlocksTest(parameterized.TestCase):
  @parameterized.parameters(
    (4096, 65536, 2304, 64, "bfloat16"),
    (16384, 131072, 4096, 32, "float32"),
    (700, 24576, 768, 100, "bfloat16"),
    (1, 65536, 16384, 1, "bfloat16"),
  )
  def test_candidates_fit_and_are_few(self, rows, n, d, k, dtype):
    sizes = tpu.blocks(rows, n, d, k, dtype)
    self.assertTrue(tpu.pays(n, sizes))
    self.assertEqual(
      (sizes.rows % sizes.strip, sizes.rows % sizes.group), (0, 0)
    )
    self.assertLessEqual(tpu._vmem_bytes(sizes, d, dtype), tpu.VMEM_BYTES)
    self.assertLess(tpu._tail(k, sizes.buckets, sizes.depth), tpu.REDONE)

  @parameterized.parameters(
    (64, 1024, 64, 1024, "bfloat16"),  # k = n
    (64, 65536, 64, 1024, "bfloat16"),  # more than candidates can hold
    (64, 65536, 64, 32, "float16"),
    (64, 1 << 23, 64, 32, "bfloat16"),
    (64, 65536, 1 << 20, 32, "bfloat16"),
  )
  def test_other_shapes_have_no_kernel(self, *shape):
    self.assertIsNone(tpu.blocks(*shape))

  def test_more_than_the_candidates_is_refused(self):
    x, W, b = case("distinct")
    with self.assertRaisesRegex(NotImplementedError, "k=257"):
      tpu.encode_select(x, W, b, k=257, sizes=SIZES)


if __name__ == "__main__":
  absltest.main()
