"""Tests of saejax.report.page, extras and axes."""

import base64
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from saejax import errors
from saejax.report import axes, extras, page
from tests.report import samples

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))


def every_block() -> list[page.Block]:
  return [
    page.Prose("One `code`.\n\nTwo <b> & β_k."),
    page.Heading("Heading"),
    page.Note("Take care"),
    page.Equation("α = 1"),
    page.Code("a < b && c"),
    page.Numbers([("0.5", "half")]),
    page.Figure(PNG, 'alt "quoted"', "Caption"),
    page.Table(
      [page.Column("k", "rows"), page.Column("Name", right=False)],
      [("1", "<script>x"), ("2", "b")],
      "A table",
    ),
    page.Details(
      "Folded",
      [page.facts("Facts", {"sae": {"k_aux": 8, "ok": True}, "d": ""})],
    ),
  ]


class PageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.text = page.render("T & T", [page.Section("S", every_block())])
    self.outline = samples.Outline(self.text)

  def test_is_well_formed_and_needs_no_other_file(self):
    self.assertEmpty(self.outline.open)
    for tag, attributes in self.outline.tags:
      self.assertNotIn(tag, ("link", "iframe"))
      for name in ("src", "href"):
        self.assertRegex(attributes.get(name, "#"), r"^(#|data:)")
    self.assertNotRegex(self.text, r"https?:|@import|url\(|fetch\(|XMLHttp")
    self.assertIn("default-src 'none'", self.text)

  def test_text_is_escaped(self):
    for raw in ("<script>x", "Two <b>", "T & T", "a < b"):
      self.assertNotIn(raw, self.text)
      self.assertIn(raw, self.outline.text)

  def test_figures_hold_their_bytes_and_have_a_text_for_the_blind(self):
    (image,) = [a for tag, a in self.outline.tags if tag == "img"]
    self.assertEqual(image["alt"], 'alt "quoted"')
    data = image["src"].removeprefix("data:image/png;base64,")
    self.assertEqual(base64.b64decode(data), PNG)

  def test_fits_a_phone_and_paper(self):
    names = [a.get("name") for tag, a in self.outline.tags if tag == "meta"]
    self.assertIn("viewport", names)
    self.assertIn("@media print", self.text)
    self.assertIn("@media screen and (max-width", self.text)

  def test_code_and_subscripts_are_set(self):
    self.assertIn("<code>code</code>", self.text)
    self.assertIn("β<sub>k</sub>", self.text)
    self.assertIn("<code>sae.k_aux</code>", self.text)

  def test_what_is_folded_is_there(self):
    tags = [tag for tag, _ in self.outline.tags]
    self.assertEqual((tags.count("details"), tags.count("summary")), (1, 1))
    self.assertIn("sae.k_aux", self.outline.text)

  def test_a_lone_backtick_is_text(self):
    self.assertEqual(page.inline("a ` <b"), "a ` &lt;b")

  def test_facts_are_written_as_people_read(self):
    rows = dict(page.flat({"a": {"b": 4096, "c": (1, 2)}, "d": None}))
    self.assertEqual(rows, {"a.b": "4,096", "a.c": "1, 2", "d": "not set"})

  def test_a_row_of_the_wrong_length_is_refused(self):
    table = page.Table([page.Column("a")], [("1", "2")], "")
    with self.assertRaises(ValueError):
      page.render("T", [page.Section("S", [table])])

  def test_is_written_whole(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder) / "report.html"
    page.write(path, "T & T", [page.Section("S", every_block())])
    self.assertEqual(path.read_text("utf-8"), self.text)


class ExtrasTest(parameterized.TestCase):
  @parameterized.parameters("matplotlib", "jinja2")
  def test_a_missing_package_is_named_with_the_command(self, package):
    missing = ModuleNotFoundError("no", name=package)
    with (
      mock.patch.object(extras.importlib, "import_module", side_effect=missing),
      self.assertRaisesRegex(
        errors.InputError, f"{package} is not installed.*pip install"
      ) as caught,
    ):
      extras.require(package)
    self.assertNotIn("\n", str(caught.exception))

  def test_a_package_broken_inside_is_not_called_missing(self):
    broken = ModuleNotFoundError("no", name="kiwisolver")
    with (
      mock.patch.object(extras.importlib, "import_module", side_effect=broken),
      self.assertRaises(ModuleNotFoundError),
    ):
      extras.require("matplotlib")

  def test_installed_packages_pass(self):
    extras.check()


class TicksTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.13, 0.52),
    (0.18, 0.38),
    (0.3, 0.34),
    (0.3333, 0.3334),
    (1e-6, 1.0),
    (1e-12, 1e12),
    (400, 5000),
  )
  def test_a_log_axis_has_a_few_round_ticks_inside(self, low, high):
    ticks = axes.round_ticks(low, high)
    self.assertBetween(len(ticks), 1 if high / low < 1.01 else 3, 8)
    self.assertEqual(ticks, sorted(set(ticks)))
    self.assertGreaterEqual(ticks[0], low * 0.999)
    self.assertLessEqual(ticks[-1], high * 1.001)

  def test_numbers_on_axes_are_plain(self):
    self.assertEqual(axes.number(1024), "1,024")
    self.assertEqual(axes.number(0.15), "0.15")
    self.assertEqual(axes.number(0.012), "0.012")
    self.assertEqual(axes.number(16_777_216), "16.78M")

  def test_ordered_values_have_colours_and_markers_of_their_own(self):
    styles = axes.styles([32, 4, 8, 4, 16])
    self.assertEqual(list(styles), [4, 8, 16, 32])
    self.assertLen({s["marker"] for s in styles.values()}, 4)
    # Brightness rises with the value: order survives in grey.
    grey = [sum(s["color"][:3]) for s in styles.values()]
    self.assertEqual(grey, sorted(grey))


if __name__ == "__main__":
  absltest.main()
