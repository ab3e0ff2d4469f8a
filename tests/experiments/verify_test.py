"""experiments/verify.py: sound stores are named, damaged files too."""

import pathlib

import numpy as np
from absl.testing import absltest

from saejax.data.store import create
from tests.experiments import script


class VerifyTest(absltest.TestCase):
  def test_a_sound_store_and_one_with_a_flipped_byte(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    found = [create.write_store(folder / name, x) for name in ("a", "b")]
    code, out, err = script.run("verify", f"--path={folder / 'a'}")
    self.assertEqual((code, err), (0, ""))
    self.assertIn(f"100 rows, content {found[0].content}: sound", out)
    shard = folder / "b" / "x" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, out, err = script.run("verify", f"--path={folder / 'b'}")
    self.assertEqual(code, 2)
    self.assertLen(err.splitlines(), 1)
    self.assertIn("b/x/c/0/0", err)


if __name__ == "__main__":
  absltest.main()
