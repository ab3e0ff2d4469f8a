"""Tests of saejax.sae.part."""

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jaxtyping import Array, Float, Int

from saejax.sae import activations, decoders, latents, part, prep

W, Z = jnp.ones((3, 2)), jnp.ones((4, 2))
I = jnp.ones((4, 2), jnp.int32)


class Sixth(part.Part):
  """A part of somebody else, with the fields of ours."""

  W: Float[Array, "n d"]
  b: Float[Array, "d"]


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


class AxesTest(parameterized.TestCase):
  @parameterized.parameters(
    jax.Array,
    np.ndarray,
    jax.Array | None,
    tuple[jax.Array, ...],
    dict[str, jax.Array],
    "jax.Array",
    "Float[Array, 'n'] | jax.Array",
    Float[Array, "..."],
  )
  def test_refuses_a_class_with_an_array_without_named_axes(self, annotation):
    with self.assertRaisesRegex(TypeError, "Nameless.s is an array without"):
      _define("Nameless", annotation)

  def test_refuses_two_kinds_of_array_that_a_rank_does_not_tell_apart(self):
    with self.assertRaisesRegex(TypeError, "Unclear.s .* of one rank"):
      _define("Unclear", Float[Array, "n"] | Float[Array, "d"])

  @parameterized.parameters(
    (Float[Array, "n d"], 2, ("n", "d")),
    (Float[Array, ""], 0, ()),
    (Float[Array, "n"] | Float[Array, ""], 1, ("n",)),
    (Float[Array, "n"] | Float[Array, ""], 0, ()),
    ("Float[Array, 'n'] | None", 1, ("n",)),
    (tuple[Float[Array, "d n"], ...], 2, ("d", "n")),
    (Float[Array, "n d"] | Int[Array, "n d"], 2, ("n", "d")),
    (Float[Array, "*b n"], 3, ("*b", "n")),
    (Float[Array, "n"], 2, None),
  )
  def test_reads_the_axes_of_an_array_of_each_rank(self, field, rank, want):
    self.assertEqual(part.axes_of(_define("Good", field), "s", rank), want)

  def test_a_class_defined_later_is_read_when_it_is_used(self):
    made = _define("Early", "Later | None")
    with self.assertRaisesRegex(TypeError, "Early.s cannot be evaluated"):
      part.axes_of(made, "s", 1)

  def test_static_fields_and_parts_inside_need_no_axes(self):
    for annotation in (part.Part, tuple[part.Part, ...], part.Part | None):
      _define("Outer", annotation)

    class Chooses(part.Part):
      table: tuple[jax.Array, ...] = flax.struct.field(pytree_node=False)

    self.assertTrue(issubclass(Chooses, part.Part))


def _define(name, annotation):
  """A part with one field."""
  space = {"__annotations__": {"s": annotation}, "__module__": __name__}
  return type(part.Part)(name, (part.Part,), space)


if __name__ == "__main__":
  absltest.main()
