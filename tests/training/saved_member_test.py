"""One member read from a checkpoint of several: its weights, and refusals."""

import io
import pathlib
from functools import partial

import jax
import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax.data import streams
from saejax.errors import InputError
from saejax.recipes import batch_sparse
from saejax.training import checkpoint_folder, loop
from saejax.training.members import Member
from tests import toy

D, N, STEPS = 16, 64, 10
MEMBERS = tuple(
  Member(arguments=(("k", k),), seed=seed, learning_rate=3e-3)
  for k, seed in ((2, 0), (4, 0), (4, 1))
)
recipe = partial(batch_sparse.batchtopk, D, N, dead_after_tokens=300)


class SavedMemberTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def train(self, which=MEMBERS, make=recipe, **settings):
    return loop.train(
      make,
      which,
      streams.array_batches(
        {"x": np.asarray(toy.rows(500, D))}, batch_rows=64, seed=0, epochs=9
      ),
      config=loop.TrainConfig(batch_rows=64, checkpoint_steps=5, **settings),
      folder=self.folder,
      total_steps=STEPS,
      metric=lambda _, ratings=iter((1.0, 2.0)): next(ratings),  # keeps both
      stream=io.StringIO(),
    )

  def assert_is(self, found, expected):
    self.assertEqual(
      jax.tree.structure(found), jax.tree.structure(expected)
    )  # with the member's own k, over a batch
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  @parameterized.parameters("stacked", "in_turn")
  def test_a_member_is_what_it_was_in_training(self, how):
    trained = self.train(members=how)
    for one in trained:
      found = saejax.load_checkpoint(self.folder, one.member.name)
      self.assert_is(found, one.trained)
    earlier = saejax.load_checkpoint(self.folder, "k2-seed0", step=5)
    moved = np.asarray(earlier.W_dec - trained[0].trained.W_dec)
    self.assertGreater(np.abs(moved).max(), 0)

  def test_stored_weights_are_widened_as_in_training(self):
    make = partial(recipe, param_dtype="bfloat16")
    (one,) = self.train(MEMBERS[:1], make)
    found = saejax.load_checkpoint(self.folder)
    self.assertEqual(str(found.W_dec.dtype), "float32")
    self.assert_is(found, one.trained)

  def test_refusals_name_what_is_there(self):
    with self.assertRaisesRegex(InputError, "must have a complete checkpoint"):
      saejax.load_checkpoint(self.folder)
    self.train(MEMBERS[:1])
    self.assert_is(
      saejax.load_checkpoint(self.folder),
      saejax.load_checkpoint(self.folder, "k2-seed0"),
    )
    with self.assertRaisesRegex(
      InputError, "k3-seed0.*must be one of.*k2-seed0"
    ):
      saejax.load_checkpoint(self.folder, "k3-seed0")
    with self.assertRaisesRegex(InputError, "step.*7.*there: .*10"):
      saejax.load_checkpoint(self.folder, step=7)
    newest = checkpoint_folder.scan(self.folder / "checkpoints").complete[-1]
    file = max(
      (p for p in newest.path.rglob("*") if p.is_file()),
      key=lambda p: p.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with self.assertRaisesRegex(InputError, "damaged.*another checksum"):
      saejax.load_checkpoint(self.folder, "k2-seed0")


if __name__ == "__main__":
  absltest.main()
