"""Tests of saejax.sae.axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jaxtyping import Array, Float

from saejax.sae import activations, axes, ensembles, kron, part
from tests import toy

D, N = 6, 12


class Shrunk(activations.Activation):
  """An activation of somebody else: per latent, not per latent, nested."""

  s: Float[Array, "n"]
  across: Float[Array, "d n"]
  one: Float[Array, ""]
  inner: tuple[activations.Activation, ...]


def sae():
  activation = Shrunk(
    s=jnp.zeros(N),
    across=jnp.zeros((D, N)),
    one=jnp.zeros(()),
    inner=(
      activations.Threshold(jnp.zeros(N)),
      activations.Threshold(jnp.zeros(())),
    ),
  )
  return toy.sae(n=N, d=D, activation=activation, prep_=toy.affine(D))


class AxesTest(parameterized.TestCase):
  def check(self, found):
    self.assertEqual(found.encoder.W, ("n", "d"))
    self.assertEqual(found.encoder.b, ("n",))
    self.assertEqual(found.decoder.W, ("n", "d"))
    self.assertEqual(found.decoder.b, ("d",))
    self.assertEqual(found.prep.centre, ("d",))
    self.assertEqual(found.prep.scale, ())
    self.assertEqual(found.activation.s, ("n",))
    self.assertEqual(found.activation.across, ("d", "n"))
    self.assertEqual(found.activation.one, ())
    self.assertEqual(found.activation.inner[0].theta, ("n",))
    self.assertEqual(found.activation.inner[1].theta, ())

  @parameterized.parameters(False, True)
  def test_names_those_of_every_array(self, stacked):
    tree = jax.eval_shape(sae)
    if stacked:
      more = lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype)
      tree = jax.tree.map(more, tree)
    self.check(axes.axes(tree, stacked=stacked))

  def test_maps_beside_the_tree_it_was_made_from(self):
    counts = jax.tree.map(
      lambda leaf, names: leaf.ndim - len(names), sae(), axes.axes(sae())
    )
    self.assertEqual(set(jax.tree.leaves(counts)), {0})

  def test_moments_have_those_of_their_weights(self):
    labels = lambda tree: jax.tree.map(
      lambda leaf: "wide" if leaf.ndim > 1 else "flat", tree
    )
    labelled = optax.multi_transform(
      {"wide": optax.adam(1.0), "flat": optax.sgd(1.0, momentum=0.9)}, labels
    )
    state = jax.eval_shape(lambda: optax.adam(1.0).init(sae()))
    self.check(axes.axes(state)[0].mu)
    self.assertEqual(axes.axes(state)[0].count, ())
    state = axes.axes(jax.eval_shape(lambda: labelled.init(sae())))
    wide = state.inner_states["wide"].inner_state[0].mu
    flat = state.inner_states["flat"].inner_state[0].trace
    self.assertEqual(wide.encoder.W, ("n", "d"))
    self.assertEqual(wide.encoder.b, optax.MaskedNode())
    self.assertEqual(flat.encoder.b, ("n",))
    self.assertEqual(flat.activation.inner[0].theta, ("n",))

  def test_latents_of_a_stage_are_not_those_of_the_whole(self):
    stage = toy.sae(n=N, d=D)
    whole = toy.sae(n=N, d=D, prep_=ensembles.Residual((stage,)))
    found = axes.axes(whole)
    self.assertEqual(found.prep.stages[0].encoder.W, ("n_stage", "d"))
    self.assertEqual(found.prep.stages[0].decoder.b, ("d",))
    self.assertEqual(found.encoder.W, ("n", "d"))

  def test_heads_are_not_latents(self):
    found = axes.axes(
      kron.init(
        jax.random.key(0),
        n=N,
        d=D,
        sizes=(2, 2, 3),
        activation=activations.TopK(2),
      )
    )
    self.assertEqual(found.encoder.P, ("h", "m", "d"))
    self.assertEqual(found.encoder.b_Q, ("h", "q"))

  def test_an_array_of_another_rank_has_none(self):
    bent = sae().replace(prep=toy.affine(D).replace(centre=np.zeros((2, D))))
    self.assertIsNone(axes.axes(bent).prep.centre)

  def test_refuses_an_array_that_a_part_does_not_declare(self):
    class Hidden(part.Part):
      s: object

    with self.assertRaisesRegex(TypeError, "Hidden.s holds an array"):
      axes.axes(Hidden(np.zeros(3)))


if __name__ == "__main__":
  absltest.main()
