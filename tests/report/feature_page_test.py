"""saejax/report/feature_page.py: the page, also in Chromium where it is there."""

import copy
import json
import pathlib
import re

from absl.testing import absltest, parameterized

from saejax.report import feature_page
from tests import chromium
from tests.report import samples

BAD = "</script><script>window.bad = 1</script><img src=x onerror=bad=2>"


def example(group, value, *tokens):
  values = [0.0] * len(tokens)
  values[1] = value
  return {
    "group": group,
    "value": value,
    "row": 5,
    "doc": 2,
    "pos": 9,
    "at": 1,
    "tokens": list(tokens),
    "values": values,
  }


def card(latent, *examples, **more):
  return {
    "latent": latent,
    "count": 12,
    "density": 0.03 / (latent + 1),
    "mean": 0.5,
    "max": 2.0,
    "histogram": {"first": 70, "counts": [1, 4, 2]},
    "examples": list(examples),
    "nearest": [{"latent": 9, "value": 0.4}, {"latent": 7, "value": 0.3}],
    "together": [],
  } | more


def data():
  favoured = {
    "promoted": [{"token": "<b>", "logit": 1.5}],
    "suppressed": [{"token": " no", "logit": -1.5}],
  }
  return {
    "format": 1,
    "sae": {"n": 64, "d": 8},
    "store": {"name": "s", "model": "m", "site": "l", "split": "held_out"},
    "rows": 400,
    "per_octave": 4,
    "lowest": -20,
    "latents": [
      card(3, example("top", 2.0, "a", " walrus", "\n"), **favoured),
      card(
        9, example("top", 2.0, "x", BAD), example("1", -0.2, "y", " é\ud800")
      ),
      card(11, count=0, max=0, histogram={"first": 0, "counts": []}),
    ],
  }


class FeaturePageTest(parameterized.TestCase):
  def test_the_page_needs_no_other_file_and_is_well_formed(self):
    text = feature_page.render(data(), "T <i>")
    outline = samples.Outline(text)
    self.assertEmpty(outline.open)
    scripts = [a for tag, a in outline.tags if tag == "script"]
    self.assertEqual(scripts, [{"type": "application/json", "id": "data"}, {}])
    for tag, attributes in outline.tags:
      self.assertNotIn(tag, ("link", "iframe", "img", "i"))
      self.assertNotIn("src", attributes)
    self.assertIn("default-src 'none'", text)
    self.assertIn('name="viewport" content="width=device-width', text)
    self.assertNotRegex(text, r"@import|url\(|fetch\(|XMLHttp")

  def test_the_embedded_data_are_those_given(self):
    text = feature_page.render(data(), "T")
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    self.assertNotRegex(found, "[<>&]")
    self.assertEqual(json.loads(found), data())

  def test_data_are_checked_against_the_schema(self):
    feature_page.validate(data())
    changes = {
      r"latents\[0\].count must be": lambda d: d["latents"][0].update(count=-1),
      r"\$.rows is missing": lambda d: d.pop("rows"),
      r"format must be 1": lambda d: d.update(format=2),
      r"group must be one": lambda d: d["latents"][0]["examples"][0].update(
        group="5"
      ),
      r"examples\[0\].at must be below 3": (
        lambda d: d["latents"][0]["examples"][0].update(at=3)
      ),
      r"examples\[0\] must have as many values": (
        lambda d: d["latents"][0]["examples"][0]["values"].pop()
      ),
    }
    for message, change in changes.items():
      bad = copy.deepcopy(data())
      change(bad)
      with self.assertRaisesRegex(ValueError, message):
        feature_page.render(bad, "T")


@absltest.skipUnless(chromium.PATH, "Chromium is not installed")
class ChromiumTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.page = folder / "page.html"
    feature_page.write(self.page, data(), "T")
    self.tab = self.enter_context(chromium.tab())
    self.tab.screen(1200, 800)
    self.tab.open(self.page)

  def heading(self):
    return self.tab.value("document.querySelector('h2')?.textContent")

  def colour(self):
    return self.tab.value("getComputedStyle(document.body).backgroundColor")

  def links(self):
    return self.tab.value(
      "[...document.querySelectorAll('#list a')].map(a => a.hash)"
    )

  def test_moving_about_by_keys_clicks_and_fragments(self):
    tab = self.tab
    self.assertEqual(self.heading(), "Latent 3")
    for key, latent in (("j", 9), ("ArrowDown", 11), ("j", 11), ("k", 9)):
      tab.press(key)
      self.assertEqual(self.heading(), f"Latent {latent}")
      self.assertEqual(tab.value("location.hash"), f"#latent={latent}")
    tab.click("#list a", 0)
    self.assertEqual(self.heading(), "Latent 3")
    tab.click("a.chip")  # a neighbour that is on the page
    self.assertEqual(self.heading(), "Latent 9")
    tab.value("location.hash = 'latent=7'")
    tab.settle()
    self.assertIn("no latent", tab.value("card.textContent"))
    tab.value("location.hash = 'latent=11'")
    tab.settle()
    self.assertIn("Never active", tab.value("card.textContent"))
    self.assertEqual((tab.errors, len(tab.requests)), ([], 1))

  def test_text_of_tokens_is_text(self):
    tab = self.tab
    tab.click("#list a", 1)
    self.assertIn(BAD, tab.value("document.querySelector('.text').textContent"))
    self.assertIsNone(tab.value("window.bad ?? null"))
    self.assertEqual(tab.value("document.images.length"), 0)
    colours = tab.value(
      "[...document.querySelectorAll('.at')].map(e => e.style.background)"
    )
    self.assertLen(set(colours), 2)  # negative values have another colour
    tab.click(".at", 0)
    self.assertIn(
      ": 2;", tab.value("document.querySelector('.read').innerText")
    )

  def test_search_and_notes_which_outlive_the_page(self):
    tab = self.tab
    tab.press("/")
    for key in "walr":
      tab.press(key)
    self.assertEqual(self.links(), ["#latent=3"])
    tab.press("Escape")
    tab.value("search.value = '', search.dispatchEvent(new Event('input'))")
    tab.press("j")
    tab.press("n")
    for key in "jot":  # no keys of the page while writing
      tab.press(key)
    self.assertEqual(self.heading(), "Latent 9")
    tab.open(self.page)
    tab.value("search.value = 'jot', search.dispatchEvent(new Event('input'))")
    self.assertEqual(self.links(), ["#latent=9"])
    self.assertEqual(tab.value("document.querySelectorAll('.noted').length"), 1)

  def test_the_list_by_density(self):
    tab = self.tab
    tab.value(
      "order.value = 'density', order.dispatchEvent(new Event('change'))"
    )
    self.assertEqual(self.links(), ["#latent=3", "#latent=9", "#latent=11"])

  def test_dark_as_the_system_is_and_by_key(self):
    self.assertEqual(self.colour(), "rgb(255, 255, 255)")
    self.tab.screen(1200, 800, dark=True)
    self.tab.open(self.page)
    self.assertEqual(self.colour(), "rgb(20, 26, 33)")
    self.tab.press("t")
    self.assertEqual(self.colour(), "rgb(255, 255, 255)")

  def test_a_narrow_screen_is_not_scrolled_sideways(self):
    self.tab.screen(420, 900)
    for latent in (3, 9, 11):
      self.tab.value(f"location.hash = 'latent={latent}'")
      self.tab.open(self.page)
      widths = self.tab.value(
        "[innerWidth, document.documentElement.scrollWidth]"
      )
      self.assertEqual(widths, [420, 420])


if __name__ == "__main__":
  absltest.main()
