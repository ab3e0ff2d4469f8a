"""Tests of the choice between the forms of an op."""

import jax
import jax.numpy as jnp
from absl.testing import absltest

from saejax.kernels import dispatch


def form():
  """1 for the XLA form, 2 for the Pallas form."""
  return dispatch.run(
    jnp.zeros(()),
    xla=lambda x: x + 1,
    tpu=lambda x, interpret=False: x + 2,
  )


class DispatchTest(absltest.TestCase):
  def test_without_a_tpu_the_plain_form_runs(self):
    for name in ("auto", "xla", "pallas"):
      with dispatch.kernels(name):
        self.assertEqual(jax.jit(form)(), 1)

  def test_a_changed_setting_traces_anew(self):
    f = jax.jit(form)
    self.assertEqual(f(), 1)
    with dispatch.kernels("pallas", interpret=True):
      self.assertEqual(f(), 2)
    with dispatch.kernels("xla", interpret=True):
      self.assertEqual(f(), 1)
    self.assertEqual(f(), 1)

  def test_an_op_without_a_kernel_runs_its_plain_form(self):
    with dispatch.kernels("pallas", interpret=True):
      f = jax.jit(lambda x: dispatch.run(x, xla=lambda x: x + 1, tpu=None))
      self.assertEqual(f(jnp.zeros(())), 1)

  def test_an_unknown_name_is_refused(self):
    enter = dispatch.kernels("cuda").__enter__  # pyright: ignore
    self.assertRaisesRegex(ValueError, "got 'cuda'", enter)


if __name__ == "__main__":
  absltest.main()
