"""Kernels compile for TPUs at a real size, and hold no more than they say.

Skipped where libtpu is not installed (make aot). Compiled, not timed.
"""

from functools import partial

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from saejax.kernels.fused_encode import op as encode_op
from saejax.kernels.fused_encode import tpu as encode_tpu
from saejax.kernels.jumprelu import tpu as jumprelu
from saejax.kernels.jumprelu.ref import Estimator
from saejax.kernels.row_optimizer import ref as row_ref
from saejax.kernels.row_optimizer import tpu as row_optimizer
from tests import compiled, tpu

B, D, N, K = 4096, 2304, 65536, 64
WHOLE = 4 * B * N  # bytes of [B, n] in float32
CHIPS = tuple(tpu.CHIPS)


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


ROWS = array(B, D, dtype=jnp.bfloat16)
WEIGHTS = array(N, D, dtype=jnp.bfloat16)


class EncodeSelectTest(parameterized.TestCase):
  @parameterized.product(chip=CHIPS, magnitude=[False, True])
  def test_kernels_hold_the_candidates_alone(self, chip, magnitude):
    sizes = encode_tpu.blocks(B, N, D, K, jnp.bfloat16)
    assert sizes is not None

    def kernels(x, W, b):
      found = encode_tpu._candidates(x, W, b, magnitude, sizes, False)
      return encode_tpu._largest(*found, K, sizes, False)

    program = tpu.compiled(chip, kernels, ROWS, WEIGHTS, array(N))
    self.assertEqual(program.as_text().count('"tpu_custom_call"'), 2)
    self.assertEmpty(compiled.sorts(program.as_text()))
    candidates = 8 * B * sizes.depth * sizes.buckets
    temporary = program.memory_analysis().temp_size_in_bytes
    self.assertLess(temporary, candidates + (8 << 20))

  def test_the_op_has_no_array_of_rows_by_latents_and_sorts_at_most_k(self):
    encode = partial(encode_op.encode_topk, k=K, dtype="bfloat16")
    program = tpu.compiled(
      "v5e", encode, array(B, D), array(D), array(N, D), array(N)
    )
    text = program.as_text()
    self.assertIn("encode_candidates", text)
    self.assertNotIn((B, N), compiled.arrays(text))
    for shape in compiled.sorts(text):
      self.assertLessEqual(shape[-1], K)
    copies = 2 * D * (B + N)  # operands in bfloat16
    temporary = program.memory_analysis().temp_size_in_bytes - copies
    self.assertLess(temporary, 0.125 * WHOLE)

  def test_the_op_compiles_for_as_many_entries_as_lanes(self):
    encode = partial(
      encode_op.encode_topk, k=128, dtype="bfloat16", ordered=False
    )
    shapes = array(B, 256), array(256), array(N, 256), array(N)
    self.assertIn(
      "encode_candidates", tpu.compiled("v5e", encode, *shapes).as_text()
    )


class JumpReLUTest(parameterized.TestCase):
  @parameterized.parameters(*CHIPS)
  def test_kernels_have_no_temporary(self, chip):
    estimator = Estimator(1.0)
    sizes = jumprelu.blocks(B, N, D, estimator, jnp.bfloat16)
    assert sizes is not None
    forward = partial(jumprelu.forward, sizes=sizes)
    backward = partial(jumprelu.backward, estimator=estimator, sizes=sizes)
    gradient = ROWS, WEIGHTS, array(B, N), array(B), array(N)
    for program in (
      tpu.compiled(chip, forward, ROWS, WEIGHTS, array(N), array(N)),
      tpu.compiled(chip, backward, *gradient),
    ):
      temporary = program.memory_analysis().temp_size_in_bytes
      self.assertLess(temporary, 8 << 20)

  @parameterized.parameters(*jumprelu.ESTIMATORS)
  def test_every_estimator_compiles(self, kernel):
    estimator = Estimator(1.0, kernel, True)
    sizes = jumprelu.blocks(B, N, D, estimator, jnp.bfloat16)
    assert sizes is not None
    backward = partial(jumprelu.backward, estimator=estimator, sizes=sizes)
    tpu.compiled(
      "v5e", backward, ROWS, WEIGHTS, array(B, N), array(B), array(N)
    )


class RowOptimizerTest(parameterized.TestCase):
  def compiled(self, chip, update):
    args = *[array(N, D)] * 4, array(5)
    how = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
    return tpu.compiled(chip, partial(update, **how), *args, donated=(0, 2, 3))

  @parameterized.parameters(*CHIPS)
  def test_updates_in_place_and_moves_fewer_bytes_than_xla(self, chip):
    block = row_optimizer.rows(N, D, jnp.float32)
    kernel = self.compiled(chip, partial(row_optimizer.update, block=block))
    memory = kernel.memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 1 << 20)
    self.assertGreaterEqual(memory.alias_size_in_bytes, 12 * N * D)
    plain = self.compiled(chip, row_ref.update)
    moved = [
      p.cost_analysis()["bytes accessed"] / (N * D) for p in (kernel, plain)
    ]
    self.assertLess(moved[0], 28.1)
    self.assertGreater(moved[1], 1.5 * moved[0])


if __name__ == "__main__":
  absltest.main()
