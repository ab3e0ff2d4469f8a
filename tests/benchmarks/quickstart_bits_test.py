"""Tests of benchmarks/quickstart_bits.py."""

import json
import pathlib

import jax
import jax.numpy as jnp
from absl.testing import absltest

import saejax
from benchmarks import quickstart_bits
from saejax.errors import InputError
from saejax.sae import activations, initial


class QuickstartBitsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.run_dir = pathlib.Path(self.create_tempdir())
    self.sae = initial.init(
      jax.random.key(0), n=8, d=4, activation=activations.TopK(2)
    )

  def save(self, sae):
    about = {"nmse": 0.5, "fvu": 0.5, "l0": 2.0, "dead": 0.0}
    saejax.save(sae, self.run_dir / "saes" / "n8", about=about)
    return quickstart_bits.weights(self.run_dir)["n8"]

  def test_one_bit_of_one_weight_is_seen(self):
    before = self.save(self.sae)
    b = self.sae.decoder.b.at[0].set(jnp.float32(1e-45))
    moved = self.sae.replace(decoder=self.sae.decoder.replace(b=b))
    after = self.save(moved)
    self.assertNotEqual(before["sha256"], after["sha256"])
    self.assertEqual(before["sha256"], self.save(self.sae)["sha256"])

  def test_a_folder_without_saes_is_refused(self):
    with self.assertRaisesRegex(InputError, "run the quickstart first"):
      quickstart_bits.weights(self.run_dir)

  def test_the_record_has_the_sixteen_of_the_quickstart(self):
    recorded = json.loads(quickstart_bits.RECORDED.read_text())
    self.assertLen(recorded["saes"], 16)


if __name__ == "__main__":
  absltest.main()
