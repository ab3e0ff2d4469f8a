"""Meshes that do not fit are refused before a run writes anything."""

from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.runs import preflight
from saejax.runs.config import sae_config
from saejax.training.config import TrainConfig


def checked(mesh, *, recipe="topk", rows=64, **sae):
  config = sae_config(recipe, **{"k": 2, "n": (32,), **sae})
  train = TrainConfig(batch_rows=rows, steps=4, mesh=mesh)
  preflight.check(1024, 8, config, train)


class MeshTest(parameterized.TestCase):
  @parameterized.parameters(
    ((1, 1, 8), {"n": (32, 60)}, "sae.n=60: .*multiple of 8.*train.mesh"),
    (
      (1, 8, 1),
      {"rows": 60},
      "train.batch_rows=60: .*multiple of 8.*train.mesh",
    ),
    ((2, 2, 2), {"seeds": 3}, "train.mesh=2,2,2: .*SAEs, 3,.*a multiple of 2"),
    ((1, 4, 4), {}, r"needs 16 devices, but 8 .*train.mesh=1,8,1; XLA_FLAGS="),
    (
      (1, 1, 8),
      {"recipe": "kronsae"},
      "train.mesh=1,1,8: sae.encoder.P .*along its size 4; .*use 4 devices",
    ),
  )
  def test_is_refused_with_flag_rule_and_remedy(self, mesh, settings, said):
    with self.assertRaisesRegex(InputError, said):
      checked(mesh, **settings)

  def test_others_are_not(self):
    checked((2, 2, 2), seeds=2)
    checked((1, 2, 4), recipe="kronsae")


if __name__ == "__main__":
  absltest.main()
