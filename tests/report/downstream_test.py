"""Tests of saejax.report.downstream: SAEs in the model on the page of a run."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from saejax.report import downstream, results, scaling
from tests.report import samples

FLAG = "--downstream_tokens="
LANGUAGE = {"tokens_asked": 900, "tokens": 800, "documents": 9, "clean": 3.25}
EMBEDDING = {"tokens_asked": 900, "windows": 41}


def in_language_model(point):
  loss = 4 * point["n"] ** -0.3 * point["k"] ** -0.4
  costs = {"": loss, "_pca": 2 * loss, "_random": 3 * loss}
  costs |= {"_mean": 5.0, "_zero": 8.0}
  found = {f"ce_increase{end}": cost for end, cost in costs.items()}
  found |= {f"ce_recovered{end}": 1 - c / 8 for end, c in costs.items()}
  for end, factor in (("_low", 0.9), ("_high", 1.2)):
    found[f"ce_increase{end}"] = factor * loss
    found[f"ce_recovered{end}"] = 1 - (2.1 - factor) * loss / 8
  return point | found


def in_embedding_model(point):
  loss = point["n"] ** -0.3 / point["k"]
  found = {}
  for i, end in enumerate(("", "_pca", "_random", "_mean", "_zero")):
    found[f"cosine_distance{end}"] = (1 + i) * loss
    found[f"neighbours_kept{end}"] = 0.9 - 0.1 * i
  return point | found


class DownstreamTest(parameterized.TestCase):
  def write(self, points, **more):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    found = results.collect(config={}, points=points) | more
    scaling.write(found, None, folder)
    return folder, samples.Outline((folder / scaling.PAGE).read_text("utf-8"))

  def test_a_language_model_has_intervals_and_controls(self):
    points = [in_language_model(p) for p in samples.points()]
    folder, outline = self.write(points, downstream=LANGUAGE)
    self.assertTrue((folder / "downstream.png").exists())
    best = min(p["ce_increase"] for p in points)
    for text in (
      "Loss in the model",
      f"{best:.3f}",
      "CE increase, PCA",
      "800 held-out tokens of 9 documents",
      "model itself (3.250)",
      "zeros, which are not drawn, 8.000 nats",
      "with 95 % intervals",
      f"{0.9 * best:.3f} to {1.2 * best:.3f}",
    ):
      self.assertIn(text, outline.text)
    self.assertNotIn(FLAG, outline.text)
    header, row = (folder / "results.csv").read_text().splitlines()[:2]
    first = dict(zip(header.split(","), row.split(","), strict=True))
    self.assertEqual(
      float(first["ce_increase_pca"]), 2 * points[0]["ce_increase"]
    )

  def test_an_embedding_model_has_distances_and_neighbours(self):
    points = [in_embedding_model(p) for p in samples.points()]
    _, outline = self.write(points, downstream=EMBEDDING)
    for text in (
      "1 − cosine",
      "Neighbours kept",
      "41 held-out windows",
      "90.0",
    ):
      self.assertIn(text, outline.text)
    self.assertNotIn("Recovered", outline.text)
    self.assertNotIn("nats", outline.text)

  def test_the_flag_is_named_only_where_a_run_has_it_and_it_is_off(self):
    for more, count in (({"downstream": None}, 1), ({}, 0)):
      folder, outline = self.write(samples.points(), **more)
      self.assertEqual(outline.text.count(FLAG), count)
      self.assertNotIn("Loss in the model", outline.text)
      self.assertFalse((folder / "downstream.png").exists())

  def test_the_figure_has_every_curve_and_is_on_log_axes_if_it_can_be(self):
    points = [in_language_model(p) for p in samples.points()]
    points += [p | {"ce_increase": 2 * p["ce_increase"]} for p in points]
    made = downstream.loss_against_n(points)
    (axes,) = made.axes
    curves = {line.get_gid(): line.get_xydata() for line in axes.lines}
    for k in (4, 8, 16):
      mine = [p for p in points if p["k"] == k]
      wanted = [
        np.mean([p["ce_increase"] for p in mine if p["n"] == n])
        for n in (512, 1024, 2048)
      ]
      np.testing.assert_allclose(curves[f"k = {k}"][:, 1], wanted)
      pca = curves[f"k = {k}, PCA"][:, 1]
      self.assertAlmostEqual(pca[0], mine[0]["ce_increase_pca"])
      self.assertIn(f"k = {k}, random", curves)
    self.assertEqual((axes.get_xscale(), axes.get_yscale()), ("log", "log"))
    low, high = axes.get_ylim()
    least = min(p["ce_increase_low"] for p in points)
    self.assertTrue(low < least and high > 5.0, (low, high))  # the mean is 5
    better = [points[0] | {"ce_increase": -0.01}, *points[1:9]]
    (axes,) = downstream.loss_against_n(better).axes
    self.assertEqual(axes.get_yscale(), "linear")


if __name__ == "__main__":
  absltest.main()
