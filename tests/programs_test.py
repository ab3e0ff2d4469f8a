"""Programs that a JAX researcher writes first, around a small SAE.

Others are beside them: an array of one's own, a sweep over k and a store in
tests/runs/fitting_test.py, a part of one's own in docs/own-method.md, evaluation
in tests/evals/held_out_test.py, top examples in README.md, eight devices in
programs_devices_test.py.
"""

import dataclasses
import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from flax import nnx

import saejax
from saejax.recipes import row_sparse
from saejax.training.recipe import Term
from tests import toy

D, N = 16, 32
SETTINGS = {"steps": 30, "batch_rows": 64, "progress": False}


@functools.cache
def rows():
  return np.asarray(toy.planted(jax.random.key(0), 2000, toy.dictionary(N, D)))


@functools.cache
def trained():
  return saejax.fit(rows(), n=N, k=4, **SETTINGS)[0]


class ProgramsTest(absltest.TestCase):
  def test_a_loss_of_ones_own(self):
    def huber(record):
      error = record.forward.target - record.forward.x_hat
      return jnp.sum(optax.losses.huber_loss(error), axis=-1)

    base = row_sparse.topk(D, N, 4, dead_after_tokens=10_000)
    recipe = dataclasses.replace(base, terms={"huber": Term(fn=huber)})
    _, found = saejax.fit(rows(), recipe, **SETTINGS)
    self.assertLess(found.fvu, 0.9)

  def test_an_optimizer_of_ones_own(self):
    base = row_sparse.topk(D, N, 4, dead_after_tokens=10_000)
    recipe = dataclasses.replace(base, optimizer=optax.lion)
    sae, found = saejax.fit(rows(), recipe, learning_rate=1e-3, **SETTINGS)
    self.assertLess(found.fvu, 0.9)
    self.assertFalse(np.array_equal(sae.W_dec, trained().W_dec))

  def test_a_loop_of_ones_own_by_grad_and_optax(self):
    @jax.jit
    def step(sae, state, x):
      loss = lambda sae: jnp.mean((sae(x) - x) ** 2)
      value, gradients = jax.value_and_grad(loss)(sae)
      updates, state = optax.sgd(0.5).update(gradients, state, sae)
      return optax.apply_updates(sae, updates), state, value

    sae, losses = trained(), []
    state = optax.sgd(0.5).init(sae)
    for _ in range(5):
      sae, state, value = step(sae, state, rows()[:256])
      losses.append(float(value))
    self.assertLess(losses[-1], losses[0])

  def test_an_sae_inside_an_nnx_module(self):
    class Spliced(nnx.Module):
      def __init__(self, sae, rngs):
        self.sae = nnx.data(nnx.Variable(sae))
        self.out = nnx.Linear(D, 3, rngs=rngs)

      def __call__(self, x):
        return self.out(self.sae.get_value()(x))

    model = Spliced(trained(), nnx.Rngs(0))
    y = nnx.jit(lambda m, x: m(x))(model, rows()[:8])
    np.testing.assert_allclose(
      y, model.out(trained()(rows()[:8])), rtol=1e-5, atol=1e-6
    )

  def test_an_sae_inside_an_equinox_module(self):
    class Spliced(equinox.Module):
      sae: saejax.SAE
      out: equinox.nn.Linear

      def __call__(self, x):
        return self.out(self.sae(x))

    model = Spliced(trained(), equinox.nn.Linear(D, 3, key=jax.random.key(0)))
    batched = equinox.filter_jit(lambda model, x: jax.vmap(model)(x))
    y = batched(model, jnp.asarray(rows()[:8]))
    gradients = equinox.filter_grad(lambda m: jnp.sum(m(rows()[0])))(model)
    self.assertEqual(y.shape, (8, 3))
    self.assertTrue(np.isfinite(gradients.sae.W_dec).all())

  def test_a_steering_direction_is_the_change_of_x_per_unit_of_a_latent(self):
    sae, x = trained(), rows()[:4]
    z = sae.encode(x)
    more = sae.decode(z.at[:, 5].add(1.0)) - sae.decode(z)
    expected = np.broadcast_to(sae.direction(5), more.shape)
    np.testing.assert_allclose(more, expected, rtol=1e-4, atol=1e-5)

  def test_members_are_vmapped_like_any_pytree(self):
    init = lambda key: saejax.init(
      key, d=D, n=N, activation=saejax.sae.activations.TopK(4)
    )
    saes = jax.vmap(init)(jax.random.split(jax.random.key(0), 3))
    z = jax.vmap(lambda sae: sae.encode(rows()[:8]))(saes)
    self.assertEqual(z.shape, (3, 8, N))


if __name__ == "__main__":
  absltest.main()
