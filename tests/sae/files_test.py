"""Tests of saejax.sae.files."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap

import flax.struct
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jaxtyping import Array, Float

from saejax import durable, errors
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

  theta: Float[Array, "n"]
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
      structure = durable.read_sealed(path)
      structure["sae"]["parts"]["activation"]["part"] = name
      durable.write_sealed(path, structure)
      self.assertRefused("must be a part of this version of saejax")

  def test_a_folder_without_an_sae_is_refused(self):
    self.assertRefused("must be the folder of a saved SAE")

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
    self.assertRefused(rf"^sae=.*{name}")

  def test_every_flipped_byte_that_changes_something_is_refused(self):
    sae = toy.sae()
    about = {"nmse": 0.25, "site": {"layer": 3}}
    rng = np.random.default_rng(0)
    for name in (files.ARRAYS, files.STRUCTURE):
      files.save(sae, self.folder, about=about)
      path = self.folder / name
      whole = path.read_bytes()
      refused = 0
      for at in rng.integers(len(whole), size=60):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
          read = files.load(self.folder)
        except errors.InputError as error:
          self.assertIn(name, str(error))
          refused += 1
          continue
        # Blanks of the JSON.
        toy.assert_trees_equal(read, sae)
        self.assertEqual(files.about(self.folder), about)
      self.assertGreater(refused, 30)

  def test_arrays_of_another_sae_are_refused(self):
    other = self.folder.with_name("other")
    files.save(toy.sae(seed=0), self.folder)
    files.save(toy.sae(seed=1), other)
    shutil.copy(other / files.ARRAYS, self.folder / files.ARRAYS)
    self.assertRefused(f"{files.ARRAYS}: must have the size and checksum")

  def test_a_moved_folder_is_read_as_it_was(self):
    files.save(toy.sae(), self.folder, about={"nmse": 0.5})
    moved = self.folder.rename(self.folder.with_name("moved"))
    toy.assert_trees_equal(files.load(moved), toy.sae())
    self.assertEqual(files.about(moved), {"nmse": 0.5})

  def test_no_space_is_one_line_and_leaves_the_sae_that_was_there(self):
    code = textwrap.dedent("""
      import resource, signal, sys
      from saejax import durable, errors
      from saejax.sae import files
      from tests import toy
      files.save(toy.sae(), sys.argv[1], about={"first": True})
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      for limit in (1000, 3000):  # in the arrays, in the structure
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        try:
          files.save(toy.sae(), sys.argv[1], about={"x": "y" * 4000})
        except errors.InputError as error:
          print(error)
    """)
    done = subprocess.run(
      [sys.executable, "-c", code, str(self.folder)],
      capture_output=True,
      text=True,
      cwd=pathlib.Path(errors.__file__).parent.parent,
    )
    self.assertEqual((done.returncode, done.stderr), (0, ""))
    lines = done.stdout.splitlines()
    self.assertLen(lines, 2, done.stdout)
    for line in lines:
      self.assertRegex(
        line, "^sae=.*the disk must have room for .*; free space"
      )
    self.assertEqual(files.about(self.folder), {"first": True})
    self.assertLen(list(self.folder.parent.iterdir()), 1)

  def change(self, edit):
    files.save(toy.sae(), self.folder)
    path = self.folder / files.STRUCTURE
    structure = durable.read_sealed(path)
    edit(structure)
    durable.write_sealed(path, structure)

  @parameterized.parameters(
    lambda s: s["sae"].pop("parts"),
    lambda s: s["sae"]["parts"].pop("encoder"),
    lambda s: s["sae"]["parts"]["activation"]["static"].pop("k"),
    lambda s: s["sae"]["static"].update(colour="red"),
    lambda s: s.update(sae=["not", "a", "part"]),
  )
  def test_a_damaged_structure_is_refused(self, edit):
    self.change(edit)
    self.assertRefused("must hold a complete sae.json and sae.safetensors")

  def test_a_later_version_is_refused(self):
    self.change(lambda s: s.update(version=files.VERSION + 1))
    self.assertRefused("version")


if __name__ == "__main__":
  absltest.main()
