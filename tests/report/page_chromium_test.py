"""The page of a run in Chromium: sorting, values, dark, a phone, no network."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from saejax.report import cards_page, curves, drawing, page
from tests import chromium

LONG = "a sentence that is longer than the screen of a phone, " * 4


def figure():
  axis = curves.Axis("x (units)", log=True)
  made = curves.panels(
    {"one": {"a": curves.Curve([1, 10, 100], [0.5, 0.3, 0.2])}}, axis, axis
  )
  return page.figure(drawing.plot(made, "f"), "alt", "Caption")


def card():
  tokens = [
    cards_page.Token("was <b>"),
    cards_page.Token("hot", 1.0, "at", "2.5"),
    cards_page.Token("ter", 0.2, "", "0.5"),
  ]
  example = cards_page.Example("2.5", tokens)
  return cards_page.Card(
    "Latent 7", "Drawn at random.", [("mean", "1")], [example]
  )


def table(columns, rows):
  named = [page.Column(f"Column {i}") for i in range(columns)]
  return page.Table(named, rows, "A table")


ROWS = [(v, *["1,000,000"] * 8) for v in ("512", "1,024", "–", "−3", "0.5")]


@absltest.skipUnless(chromium.PATH, "Chromium is not installed")
class ChromiumTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.page = pathlib.Path(folder) / "page.html"
    blocks = [
      figure(),
      table(9, ROWS),
      table(1, [("1",), ("2",)]),
      page.Details("Flags", [page.facts("F", {"flag": LONG})]),
      page.Cards([card()]),
    ]
    page.write(cls.page, "T", [page.Section("S", blocks)])
    cls.tab = cls.enterClassContext(chromium.tab())

  def setUp(self):
    super().setUp()
    self.opened(1100)

  def opened(self, width, **how):
    self.tab.screen(width, 900, **how)
    self.tab.requests.clear()
    self.tab.open(self.page)

  def tearDown(self):
    self.assertEqual((self.tab.errors, len(self.tab.requests)), ([], 1))
    super().tearDown()

  def column(self):
    return self.tab.value(
      "[...document.querySelectorAll('table')[0].tBodies[0].rows]"
      ".map(r => r.cells[0].textContent)"
    )

  def tip(self):
    return self.tab.value("document.querySelector('.tip')?.innerText ?? ''")

  def test_tables_are_sorted_by_mouse_and_by_key(self):
    self.tab.click("th button", 0)
    self.assertEqual(self.column(), ["−3", "0.5", "512", "1,024", "–"])
    self.tab.value("document.querySelector('th button').focus()")
    self.tab.press("Enter")
    self.tab.value("document.activeElement.click()")
    self.assertEqual(self.column(), ["1,024", "512", "0.5", "−3", "–"])
    self.assertEqual(
      self.tab.value("document.querySelector('th').ariaSort"), "descending"
    )

  def test_a_curve_says_its_values_under_the_mouse_and_by_key(self):
    tab = self.tab
    tab.value("document.querySelector('.drawing').focus()")
    tab.press("ArrowRight")  # the first point
    first = self.tip().split("\n")
    self.assertEqual(first, ["one, a", "x: 1", "x: 0.5"])
    tab.press("ArrowRight")
    self.assertIn("x: 10", self.tip())
    # The ring is where the mark is: the mouse there finds the same point.
    x, y = tab.value(
      "(r => [r.x + r.width / 2, r.y + r.height / 2])"
      "(document.querySelector('.ring').getBoundingClientRect())"
    )
    tab.press("Escape")
    self.assertEqual(self.tip(), "")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 3, y=y)
    tab.settle()
    self.assertIn("x: 10", self.tip())
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y + 300)
    tab.settle()
    self.assertEqual(self.tip(), "")

  def test_the_ring_is_on_the_mark_at_both_widths(self):
    for width in (1100, 420):
      self.opened(width)
      self.tab.value("document.querySelector('.drawing').focus()")
      self.tab.press("ArrowRight")
      away = self.tab.value("""(() => {
        const middle = e => (r => [r.x + r.width / 2, r.y + r.height / 2])(
          e.getBoundingClientRect());
        const [x, y] = middle(document.querySelector('.ring'));
        const marks = [...document.querySelectorAll('use')].map(middle);
        return Math.min(...marks.map(([a, b]) => Math.hypot(a - x, b - y)));
      })()""")
      self.assertLess(away, 2)

  def test_dark_as_the_system_is(self):
    colour = "getComputedStyle(document.body).backgroundColor"
    stroke = "getComputedStyle(document.querySelector('use')).fill"
    light = self.tab.value(colour), self.tab.value(stroke)
    self.opened(1100, dark=True)
    dark = self.tab.value(colour), self.tab.value(stroke)
    self.assertEqual(
      (light[0], dark[0]), ("rgb(255, 255, 255)", "rgb(20, 26, 33)")
    )
    self.assertNotEqual(light[1], dark[1])

  def test_a_phone_has_figures_of_its_own_and_says_what_scrolls(self):
    tall = {}
    for width in (1100, 420):
      self.opened(width)
      self.tab.value("document.querySelector('details').open = true")
      self.tab.settle()
      size, shown, texts, says = self.tab.value("""[
        [innerWidth, document.documentElement.scrollWidth],
        [...document.querySelectorAll('.drawing svg')].map(
          s => s.getClientRects().length > 0),
        [...document.querySelectorAll('.drawing text')].map(
          t => t.getBoundingClientRect().height).filter(h => h),
        [...document.querySelectorAll('.scrolls')].map(
          p => p.getClientRects().length > 0)]""")
      self.assertEqual(size, [width, width])
      self.assertEqual(shown, [width > 420, width == 420])
      tall[width] = min(texts)
      self.assertEqual(says, [width == 420, False, False])
    self.assertGreater(tall[420], 10)  # pixels of a line of text

  def test_it_is_read_without_its_script(self):
    self.tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
      self.opened(420)
    finally:
      self.tab.call("Emulation.setScriptExecutionDisabled", value=False)
    text = self.tab.value("document.body.innerText")
    for part in ("Latent 7", "was <b>hotter", "1,024", "scrolls sideways"):
      self.assertIn(part, text)
    self.assertEqual(
      self.tab.value("document.querySelectorAll('button').length"), 0
    )

  def test_tokens_are_shaded_by_their_values(self):
    colours = self.tab.value(
      "[...document.querySelectorAll('.example span[style]')]"
      ".map(e => getComputedStyle(e).backgroundColor)"
    )
    alphas = [float(c.removesuffix(")").split(", ")[3]) for c in colours]
    np.testing.assert_allclose(alphas, [0.8, 0.256], atol=0.005)


if __name__ == "__main__":
  absltest.main()
