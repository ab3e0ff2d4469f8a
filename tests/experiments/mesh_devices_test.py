"""Sizes that a mesh of eight devices does not divide, and one that it does."""

import json
import pathlib

from absl.testing import absltest, parameterized

from tests.experiments import bad_input_test, script


class MeshTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.store = bad_input_test.make_store(self.folder / "store").path
    self.held_out = bad_input_test.make_store(self.folder / "held", 300).path

  def train(self, name, *more):
    return script.run(
      "train",
      f"--run_dir={self.folder / name}",
      f"--store={self.store}",
      f"--held_out={self.held_out}",
      "--sae.n=32",
      "--sae.k=4",
      "--train.batch_rows=64",
      *more,
    )

  @parameterized.parameters(
    ("--sae.n=36", "--train.mesh=1,1,8", "--sae.n=36", "latent"),
    ("--train.batch_rows=60", "--train.mesh=1,8,1", "--train.batch_rows", "8"),
    (
      "--sae.seeds=3",
      "--train.mesh=2,2,2",
      "--train.mesh",
      "the number of SAEs, 3",
    ),
    (
      "--train.members=in_turn --sae.seeds=2",
      "--train.mesh=2,1,1",
      "--train.members",
      "",
    ),
  )
  def test_sizes_that_do_not_divide_are_refused(
    self, setting, mesh, flag, word
  ):
    code, _, err = self.train("run", *setting.split(), mesh)
    self.assertEqual(code, 2, err)
    line = err.splitlines()[-1]
    self.assertStartsWith(line, flag)
    self.assertIn(word, line)
    self.assertFalse((self.folder / "run" / "saes").exists())

  def test_the_script_gives_the_same_metrics_on_a_mesh_as_on_one_device(self):
    found = []
    for mesh in ("1,1,1", "2,2,2"):
      code, _, err = self.train(mesh, "--sae.seeds=2", f"--train.mesh={mesh}")
      self.assertEqual(code, 0, err)
      path = self.folder / mesh / "results.json"
      found.append(json.loads(path.read_text())["points"])
    for one, eight in zip(*found, strict=True):
      self.assertAlmostEqual(one["nmse"], eight["nmse"], places=4)
      self.assertEqual(one["l0"], eight["l0"])


if __name__ == "__main__":
  absltest.main()
