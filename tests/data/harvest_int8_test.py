"""Harvests into stores of int8 codes."""

import pathlib

import numpy as np
from absl.testing import absltest

from saejax.data import harvest
from saejax.errors import InputError
from saejax.studies import info
from tests.data import tiny


class HarvestInt8Test(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def config(self, **changes):
    return tiny.config(self.corpus, self.folder / "stores", **changes)

  def harvest(self, **changes):
    return harvest.harvest(self.config(**changes), source=tiny.source())

  def test_rows_are_stored_as_int8_and_the_loss_is_recorded(self):
    exact, _ = self.harvest()
    train, held_out = self.harvest(dtype="int8")
    x = tiny.everything(train)["x"]
    want = tiny.everything(exact)["x"]
    self.assertEqual(x.dtype, np.float32)
    self.assertEqual(train.columns["x"].code, "int8")
    step = np.abs(want).max(-1, keepdims=True) / 127
    self.assertLessEqual((np.abs(x - want) / step).max(), 0.5001)
    # The same threshold of both parts, and the same record.
    found = train.stats["calibration"]["codes"]
    self.assertEqual(held_out.stats["calibration"]["codes"], found)
    relative = np.linalg.norm(x - want, axis=-1) / np.linalg.norm(want, axis=-1)
    self.assertBetween(
      found["relative_error"], relative.mean() / 2, 2 * relative.mean()
    )
    shown = dict(info.described(train.place))
    self.assertRegex(shown["int8"], r"lost 0\.\d+% of a row's norm")
    shard = train.path / next(iter(train.lines[0]["shards"]))
    shard.unlink()
    harvest.harvest_share(
      self.config(dtype="int8"), source=tiny.source(), repair=True
    )
    train.verify()

  def test_int8_holds_no_nan(self):
    with self.assertRaisesRegex(
      InputError, "must be refuse beside harvest.dty"
    ):
      self.config(dtype="int8", nonfinite="keep")


if __name__ == "__main__":
  absltest.main()
