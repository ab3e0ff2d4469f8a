"""Tests of saejax.sae.files."""

import json
import pathlib
import tempfile

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae import activations, decoders, files, part, prep
from tests import toy

SAES = {
  "topk": {},
  "prep": {"prep_": toy.affine(8), "pre_bias": False, "dtype": "bfloat16"},
  "relu": {"activation": activations.ReLU(), "decoder": decoders.Normalised},
  "row_layer_norm": {"prep_": prep.RowLayerNorm()},
}


class Threshold(part.Part):
  """A part of somebody else: learned arrays, static choices."""

  theta: jax.Array
  strict: bool = flax.struct.field(pytree_node=False)

  @property
  def row_k(self):
    return None

  def __call__(self, a, k=None):
    above = a > self.theta if self.strict else a >= self.theta
    return jnp.where(above, a, 0)

  def keep(self, values, k=None):
    return values


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory()), "a", "b"
    )

  def assertRefused(self, rule, **kwargs):
    with self.assertRaisesRegex(errors.InputError, rule) as caught:
      files.load(self.folder, **kwargs)
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.parameters(*SAES)
  def test_what_is_read_is_what_was_written(self, kind):
    sae = toy.sae(**SAES[kind])
    files.save(sae, self.folder)
    read = files.load(self.folder)
    toy.assert_trees_equal(read, sae)  # static choices too
    x = toy.rows(3, 8)
    np.testing.assert_array_equal(
      toy.reconstruct(read, x), toy.reconstruct(sae, x)
    )

  def test_saving_again_replaces_what_was_there(self):
    files.save(toy.sae(seed=0), self.folder)
    files.save(toy.sae(seed=1, n=30), self.folder, about={"nmse": 0.5})
    toy.assert_trees_equal(files.load(self.folder), toy.sae(seed=1, n=30))
    self.assertEqual(files.about(self.folder), {"nmse": 0.5})
    self.assertLen(list(self.folder.parent.iterdir()), 1)  # no draft left

  def test_a_part_from_outside_comes_back_where_the_caller_vouches_for_it(self):
    part = Threshold(theta=toy.rows(24), strict=True)
    sae = toy.sae(activation=part)
    files.save(sae, self.folder)
    name = f"{Threshold.__module__}.{Threshold.__qualname__}"
    self.assertRefused("must be a part of this version of saejax")
    toy.assert_trees_equal(
      files.load(self.folder, parts={name: Threshold}), sae
    )

  def test_only_parts_of_the_package_are_imported(self):
    files.save(toy.sae(), self.folder)
    path = self.folder / files.STRUCTURE
    for name in ("os.system", "saejax.sae.nowhere.X", "saejax.sae.prep.Nobody"):
      structure = json.loads(path.read_text())
      structure["sae"]["parts"]["activation"]["part"] = name
      path.write_text(json.dumps(structure))
      self.assertRefused("must be a part of this version of saejax")

  def test_a_folder_without_an_sae_is_refused(self):
    self.assertRefused("must hold a whole sae.json")

  @parameterized.product(
    name=[files.ARRAYS, files.STRUCTURE],
    damage=["missing", "empty", "cut", "other"],
  )
  def test_a_damaged_file_is_refused(self, name, damage):
    files.save(toy.sae(), self.folder)
    path = self.folder / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "empty":
      path.write_bytes(b"")
    elif damage == "cut":
      path.write_bytes(whole[: len(whole) // 2])
    elif damage == "other":
      path.write_bytes(b'{"other": [1, 2, 3]}')
    self.assertRefused("must hold a whole sae.json and sae.safetensors")

  def change(self, edit):
    files.save(toy.sae(), self.folder)
    path = self.folder / files.STRUCTURE
    structure = json.loads(path.read_text())
    edit(structure)
    path.write_text(json.dumps(structure))

  @parameterized.parameters(
    lambda s: s["sae"].pop("parts"),
    lambda s: s["sae"]["parts"].pop("encoder"),
    lambda s: s["sae"]["parts"]["activation"]["static"].pop("k"),
    lambda s: s["sae"]["static"].update(colour="red"),
    lambda s: s.update(sae=["not", "a", "part"]),
  )
  def test_a_damaged_structure_is_refused(self, edit):
    self.change(edit)
    self.assertRefused("must hold a whole sae.json and sae.safetensors")

  def test_a_later_version_is_refused(self):
    self.change(lambda s: s.update(version=files.VERSION + 1))
    self.assertRefused("version")


if __name__ == "__main__":
  absltest.main()
