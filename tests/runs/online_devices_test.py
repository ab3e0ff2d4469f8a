"""A model on one device and SAEs on others give what one device gives."""

import pathlib

import jax
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.errors import InputError
from saejax.recipes import row_sparse
from saejax.runs import reading
from saejax.sae import prep
from saejax.training import loop, sharding
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from tests.data import tiny

N, STEPS = 16, 20


class DevicesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    where: list[set] = []

    def forward(ids, mask):
      x = tiny.forward(ids, mask)
      where.append(x.devices())
      return x

    plain = vars(tiny.config(tiny.corpus(folder / "texts"), folder))
    config = harvest.OnlineConfig(**plain, buffer_rows=600, statistics_rows=500)
    self.rows, _ = harvest.online(config, source=tiny.source(forward))
    self.where = where

  def trained(self, mesh, first):
    config = TrainConfig(
      batch_rows=32, steps=STEPS, mesh=mesh, first_device=first
    )
    (batches,) = reading.batches([self.rows], config)
    options = config.options(STEPS)
    options["prep"] = prep.from_stats("centre_scale", self.rows.stats)
    options.pop("defaults")
    with batches:
      (found,) = loop.train(
        lambda: row_sparse.topk(tiny.D, N, 4, **options),
        [Member(seed=0, learning_rate=3e-3)],
        batches,
        config=config,
        total_steps=STEPS,
      )
    return found

  @parameterized.parameters(((1, 1, 1), 3), ((1, 4, 1), 4), ((1, 1, 2), 1))
  def test_disjoint_devices_give_the_same_sae(self, mesh, first):
    one = self.trained((1, 1, 1), 0)
    self.where.clear()
    other = self.trained(mesh, first)
    self.assertEqual(set.union(*self.where), {jax.devices()[0]})
    count = int(np.prod(mesh))
    wanted = set(jax.devices()[first : first + count])
    self.assertEqual(other.state.sae.W_dec.devices(), wanted)
    for ours, theirs in zip(
      jax.tree.leaves(other.sae), jax.tree.leaves(one.sae), strict=True
    ):
      np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)

  def test_devices_that_are_not_there_are_refused(self):
    with self.assertRaisesRegex(InputError, "2 devices from device 7 on"):
      sharding.make_mesh((1, 2, 1), first=7)


if __name__ == "__main__":
  absltest.main()
