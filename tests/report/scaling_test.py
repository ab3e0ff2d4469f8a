"""Tests of saejax.report.scaling, scaling_page and plots."""

import pathlib
import struct
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.evals import scaling_law
from saejax.report import axes, extras, plots, results, scaling
from tests.report import samples

NS, KS = (512, 1024, 2048, 4096), (4, 8, 16)


class ScalingReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.points = samples.points(NS, KS)

  def write(self, points, fit=None, reason=None, metrics=None):
    found = results.collect(
      config={"sae": {"n": NS}},
      points=points,
      fit=fit,
      fit_reason=reason,
      data={"model": "m"},
    )
    scaling.write(found, fit, self.folder, metrics=metrics)
    text = (self.folder / scaling.PAGE).read_text("utf-8")
    return samples.Outline(text)

  def names(self):
    return {f.name for f in self.folder.iterdir()}

  def test_writes_numbers_plots_and_page(self):
    rng = np.random.default_rng(0)
    for point in self.points:
      point["nmse"] *= float(np.exp(0.002 * rng.standard_normal()))
    fit = scaling_law.fit(self.points, resamples=20)
    outline = self.write(
      self.points, fit, metrics={n: samples.records() for n in NS}
    )
    self.assertEqual(
      self.names(),
      {
        "results.json",
        "results.csv",
        "report.html",
        "loss_against_n.png",
        "loss_against_k.png",
        "frontier.png",
        "residuals.png",
        "training_curves.png",
        "held_out_curves.png",
        "density.png",
      },
    )
    images = [a for _, a in outline.tags if a.get("role") == "img"]
    self.assertLen(images, 7)
    for image in images:
      self.assertGreater(len(image["aria-label"]), 40)
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    self.assertEqual(len(ids), len(set(ids)))
    for text in (
      f"{fit.r2:.4f}",
      f"{self.points[0]['nmse']:.4f}",
      "predicting",
      "--flagfile=",
      "Environment",
      "toy run",
      "Held-out loss during training",
    ):
      self.assertIn(text, outline.text)
    for png in self.folder.glob("*.png"):
      width, height = struct.unpack(">II", png.read_bytes()[16:24])
      self.assertEqual(width, round(axes.WIDTH * axes.DPI))
      self.assertGreater(height, 300)

  def test_two_by_two_reports_without_a_law(self):
    some = samples.points((512, 1024), (4, 8))
    outline = self.write(some, reason="sae.n=512,1024: too few")
    self.assertIn("No law was fitted: sae.n=512,1024", outline.text)
    self.assertNotIn("residuals.png", self.names())
    self.assertIn("loss_against_n.png", self.names())

  def test_one_sae_and_none_at_all_are_reported_too(self):
    self.write(self.points[:1])
    outline = self.write([])
    self.assertIn("No SAE finished", outline.text)

  def test_frozen_members_are_listed_and_left_out(self):
    self.points[4] |= {"status": "diverged at step 7", "nmse": None}
    fit = scaling_law.fit(self.points, resamples=5)
    outline = self.write(self.points, fit)
    self.assertIn(
      "n = 1,024, k = 8, seed 0 (diverged at step 7)",
      outline.text.replace("\u00a0", " "),
    )
    self.assertLen(plots.good(self.points), 11)

  def test_a_method_without_k_has_no_plot_against_k(self):
    some = [p | {"k": 0} for p in samples.points(NS, (4,))]
    with self.assertRaises(errors.InputError):
      scaling_law.fit(some)
    self.write(some, reason="no k")
    self.assertNotIn("loss_against_k.png", self.names())
    self.assertIn("loss_against_n.png", self.names())

  def test_numbers_are_safe_where_the_plots_cannot_be_drawn(self):
    missing = ModuleNotFoundError("no", name="matplotlib")
    with (
      mock.patch.object(extras.importlib, "import_module", side_effect=missing),
      self.assertRaisesRegex(errors.InputError, "pip install"),
    ):
      self.write(self.points)
    self.assertEqual(self.names(), {"results.json", "results.csv"})

  def test_equal_results_give_equal_pictures(self):
    fit = scaling_law.fit(self.points, resamples=5)
    one = scaling.draw(self.points[:], fit, {})
    two = scaling.draw(self.points[:], fit, {})
    self.assertEqual(one, two)


class PlotsTest(parameterized.TestCase):
  def test_every_axis_says_what_it_shows_in_which_unit(self):
    points = samples.points(NS, KS)
    fit = scaling_law.fit(points, resamples=5)
    loss = plots.loss_against_n(points, fit).axes[0]
    self.assertEqual(loss.get_xlabel(), "latents n")
    self.assertIn("share of variance", loss.get_ylabel())
    self.assertIn(
      "per token", plots.loss_against_k(points, fit).axes[0].get_xlabel()
    )
    self.assertIn("%", plots.residuals(fit).axes[0].get_ylabel())
    curves, label = scaling.training_curves({512: samples.records()})
    figure = plots.training_curves(curves, label=label)
    self.assertIn("tokens", figure.get_supxlabel())
    self.assertIn("MSE", figure.get_supylabel())
    figure = plots.density(points)
    self.assertIn("share of held-out rows", figure.get_supxlabel())
    self.assertIn("%", figure.get_supylabel())

  def test_n_is_ticked_at_its_own_values(self):
    points = samples.points(NS, KS)
    figure = plots.loss_against_n(points, None)
    axes.png(figure)
    ticks = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    self.assertEqual(ticks, ["512", "1,024", "2,048", "4,096"])

  def test_curves_are_those_recorded(self):
    curves, label = scaling.training_curves({512: samples.records(), 1024: []})
    self.assertEqual(set(curves), {512})
    self.assertEqual(set(curves[512]), {(k, 0) for k in KS})
    tokens, values = curves[512][4, 0]
    np.testing.assert_array_equal(tokens, 2048.0 * np.arange(1, 21))
    np.testing.assert_allclose(values, 1 / np.arange(1, 21) + 0.025)
    self.assertIn("MSE of the batch", label)

  def test_held_out_curves_are_apart_from_those_of_batches(self):
    curves, label = scaling.held_out_curves({512: samples.records()})
    tokens, values = curves[512][4, 0]
    np.testing.assert_array_equal(tokens, 2048.0 * np.array([10, 20]))
    np.testing.assert_allclose(values, [0.2, 0.1])
    self.assertIn("held-out nmse", label)
    none = scaling.held_out_curves({512: samples.records(steps=5)})
    self.assertEqual(none, ({}, ""))

  def test_members_without_k_are_called_by_their_arguments(self):
    names = {"k8-seed1": (8, 1), "k8-l1=0.1-seed0": ("k8-l1=0.1", 0)}
    for name, want in {**names, "seed2": ("SAE", 2)}.items():
      self.assertEqual(scaling._member(name), want)
    some = [
      {**r, "members": {"l1=0.1-seed0": {"loss": 1.0}}}
      for r in samples.records()
    ]
    curves, label = scaling.training_curves({512: some})
    axes.png(plots.training_curves(curves, label=label))

  def test_the_dead_are_bars_and_no_histogram_is_cut(self):
    points = samples.points((512,), (4, 8))
    points[0]["dead"] = 0.46
    (panel,) = plots.density(points).axes
    bars = [p for p in panel.patches if p.get_gid().endswith("dead|0")]
    self.assertEqual([b.get_height() for b in bars], [46, 1])
    self.assertGreater(panel.get_ylim()[1], 46)
    ticks = [t.get_text() for t in panel.get_xticklabels()]
    self.assertEqual(ticks, ["dead", "10⁻²", "10⁻¹", "10⁰"])

  def test_curves_with_holes_are_drawn(self):
    some = samples.records()
    for record in some[10:]:
      record["members"]["k4-seed0"]["mse"] = float("nan")
    curves, label = scaling.training_curves({512: some})
    axes.png(plots.training_curves(curves, label=label))

  @parameterized.parameters(1, 2, 3, 5, 7)
  def test_any_number_of_panels_is_drawn(self, count):
    points = samples.points(tuple(2**i for i in range(8, 8 + count)), KS)
    figure = plots.density(points)
    shown = [a for a in figure.axes if a.get_visible()]
    self.assertLen(shown, count)

  def test_equal_losses_are_drawn(self):
    points = [p | {"nmse": 0.25} for p in samples.points(NS, KS)]
    fit = scaling_law.fit(points, resamples=5)
    self.assertLen(scaling.draw(points, fit, {}), 5)


if __name__ == "__main__":
  absltest.main()
