"""Tests of saejax.sae.part."""

import itertools

import jax
import jax.numpy as jnp
from absl.testing import absltest

from saejax.sae import activations, decoders, latents, part, prep

W, Z = jnp.ones((3, 2)), jnp.ones((4, 2))
I = jnp.ones((4, 2), jnp.int32)


class Sixth(part.Part):
  """A part of somebody else, with the fields of ours."""

  W: jax.Array
  b: jax.Array


PARTS = (
  prep.Identity(),
  prep.RowLayerNorm(),
  prep.Affine(centre=W, scale=W),
  activations.ReLU(),
  activations.TopK(2),
  activations.TopK(3),
  decoders.Free(W, W),
  decoders.Normalised(W, W),
  Sixth(W, W),
  latents.DenseLatents(Z),
  latents.SparseLatents(Z, I, 5),
  latents.CompactLatents(Z, I, 5),
)


class PartTest(absltest.TestCase):
  def test_no_two_parts_have_one_structure(self):
    # Where they had, a cache of compiled programs could take one for another.
    for a, b in itertools.combinations(PARTS, 2):
      self.assertNotEqual(jax.tree.structure(a), jax.tree.structure(b))

  def test_a_part_equals_another_of_its_class_and_choices(self):
    self.assertEqual(prep.Identity(), prep.Identity())
    self.assertEqual(activations.TopK(2), activations.TopK(2))
    self.assertNotEqual(activations.TopK(2), activations.TopK(3))
    for a in PARTS:
      rebuilt = jax.tree.map(lambda leaf: leaf, a)
      self.assertIs(type(rebuilt), type(a))
      self.assertEqual(jax.tree.structure(rebuilt), jax.tree.structure(a))

  def test_shows_its_own_fields_alone(self):
    self.assertNotIn("part", repr(activations.TopK(2)))


if __name__ == "__main__":
  absltest.main()
