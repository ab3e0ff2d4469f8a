"""experiments/geometry.py: the three modes on an SAE of a small language model."""

import json
import pathlib

import jax
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.sae import activations, files, initial
from saejax.studies import word_pairs
from tests import shared
from tests.experiments import corpora, script

MODEL = "models/babyllama-105"
PAIRS = {
  "plural": "cat dog park ball day tree girl boy toy car",
  "past": "play jump walk look want help ask kick talk push",
}


class GeometryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.sae = self.folder / "sae"
    self.run_dir = self.folder / "run"

  def save(self, about):
    sae = initial.init(
      jax.random.key(0), d=128, n=320, activation=activations.TopK(8)
    )
    files.save(sae, self.sae, about=about)

  def run_script(self, mode, **more):
    flags = {
      "mode": mode,
      "sae": self.sae,
      "run_dir": self.run_dir,
      "dir": self.folder / "sums",
      "draws": 4,
    }
    flags |= more
    return script.run("geometry", *(f"--{k}={v}" for k, v in flags.items()))

  def points(self):
    found = json.loads((self.run_dir / "results.json").read_text())
    self.assertIn("geometry.py", (self.run_dir / "report.html").read_text())
    return {point["arm"]: point for point in found["points"]}

  def test_galaxy_has_the_spectrum_of_random_rows_beside_it(self):
    self.save({})
    code, _, err = self.run_script("galaxy", first=5, last=100, components=10)
    self.assertEqual(code, 0, err)
    found = self.points()
    # The rows of a new SAE are random.
    self.assertAlmostEqual(
      found["SAE"]["alpha"], found["random rows"]["alpha"], delta=0.05
    )
    self.assertAlmostEqual(
      found["SAE"]["clustering"], found["SAE"]["clustering_control"], delta=0.5
    )

  def test_lobes_of_a_store(self):
    _, store = harvest.harvest(
      harvest.HarvestConfig(
        model=str(shared.path(MODEL)),
        layer=1,
        corpus=str(corpora.stories(self.folder)),
        context=32,
        rows=400,
        held_out_fraction=0.5,
        held_out_rows=300,
        bucket_rows=256,
        shard_rows=128,
        chunk_rows=64,
        dir=str(self.folder / "stores"),
      )
    )
    self.save({"site": store.meta["site"]})
    how = {"store": store.path, "block": 8, "threshold": 0, "lobes": "2,3"}
    code, _, err = self.run_script("lobes", **how)
    self.assertEqual(code, 0, err)
    found = self.points()
    self.assertEqual(list(found), ["2 lobes", "3 lobes"])
    for point in found.values():
      self.assertEqual(sum(point["sizes_functional"]), point["latents"])
      self.assertBetween(point["prediction"], 0, 1)
    self.assertFalse((self.folder / "sums").exists())
    how |= {"most": 30, "run_dir": self.folder / "some"}
    code, _, err = self.run_script("lobes", **how)
    self.assertEqual(code, 0, err)
    some = json.loads((self.folder / "some" / "results.json").read_text())
    self.assertLessEqual(some["points"][0]["latents"], 30)

  def test_crystals_of_words(self):
    self.save({})
    ending = {"plural": "s", "past": "ed"}
    file = self.folder / "pairs.tsv"
    file.write_text(
      "\n".join(
        f"{name}\t{word}\t{word}{ending[name]}"
        for name, words in PAIRS.items()
        for word in words.split()
      )
    )
    code, _, err = self.run_script(
      "crystals",
      pairs=file,
      model=shared.path(MODEL),
      site="layers.1.resid_post",
    )
    self.assertEqual(code, 0, err)
    found = self.points()
    self.assertEqual(list(found), ["activations", "latents"])
    self.assertGreater(found["activations"]["silhouette"], 0)

  @parameterized.parameters(
    ({"mode": "planets"}, "mode=planets: must be one of galaxy"),
    ({"mode": "lobes"}, "store=: must not be empty for lobes"),
    ({"mode": "crystals"}, "pairs=: must not be empty for crystals"),
    ({"mode": "galaxy", "last": 500}, "last=500: must be at most 128"),
    (
      {"mode": "galaxy", "last": 60, "components": 200},
      "components=200: must be at most 128",
    ),
  )
  def test_bad_input_is_one_line(self, flags, says):
    self.save({})
    code, _, err = self.run_script(**flags)
    self.assertEqual(code, 2, err)
    self.assertIn(says, err)
    self.assertNotIn("Traceback", err)

  def test_a_line_that_is_no_pair_is_named(self):
    found = word_pairs.parsed(["a\t b\tc", "", "d\te\tf\n"])
    self.assertEqual(found, (["a", "d"], [" b", "e"], ["c", "f"]))
    with self.assertRaisesRegex(ValueError, "line 2: must be a relation and"):
      word_pairs.parsed(["a\tb\tc", "a\tb"], "file")


if __name__ == "__main__":
  absltest.main()
