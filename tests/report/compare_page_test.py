"""saejax/report/compare_page.py: the page, also in Chromium where it is there."""

import copy
import json
import pathlib
import re

from absl.testing import absltest

from saejax.report import compare_page
from tests import chromium
from tests.report import samples
from tests.report.feature_page_test import BAD, example


def latent(number, *tokens, **more):
  return {
    "latent": number,
    "count": 12,
    "density": 0.03 / (number + 1),
    "mean": 0.5,
    "max": 2.0,
    "examples": [example("top", 2.0, *tokens)],
  } | more


def member(number, role, cosine, **more):
  joint = {"both": 9, "covers": 0.75, "inside": 0.5, "correlation": 0.6}
  return {"latent": number, "role": role, "cosine": cosine} | joint | more


def item(kind, side, number, *members, **more):
  named = {"kind": kind, "side": side, "latent": number}
  return named | {"members": list(members)} | more


def sae(name, **kinds):
  none = dict.fromkeys(("matched", "split", "part", "absorbed", "unmatched"), 0)
  return {
    "name": name,
    "n": 64,
    "d": 8,
    "activation": "TopK, k 4",
    "prep": "Affine",
    "live": 60,
    "l0": 4.0,
    "fvu": 0.2,
    "kinds": none | kinds,
  }


def data():
  unobserved = {"latent": 8, "role": "near", "cosine": 0.1}
  return {
    "format": 1,
    "rules": {
      "tau": 0.7,
      "cosine": 0.4,
      "specific_cosine": 0.025,
      "cover": 0.8,
      "inside": 0.5,
      "gain": 0.05,
      "near": 8,
    },
    "store": {"name": "s", "model": "m", "site": "l", "split": "held_out"},
    "rows": 400,
    "documents": 7,
    "saes": {
      "a": sae("first", matched=2, split=1, unmatched=1),
      "b": sae("second", matched=2, part=2, absorbed=1),
    },
    "fvu_difference": {"effect": 0.05, "low": -0.01, "high": 0.11},
    "match": {
      "method": "exact",
      "pairs": 60,
      "shared": 2,
      "same_number": 0,
      "share": {"a": 0.04, "b": 0.03},
      "edges": [-1, 0, 0.5, 1],
      "counts": [0, 30, 30],
      "null": [20, 40, 0],
      "null_shared": 0,
      "both": 1,
    },
    "items": [
      item("matched", "a", 3, member(5, "match", 0.9)),
      item("matched", "a", 4, member(6, "match", 0.8)),
      item(
        *("split", "a", 4),
        member(6, "part", 0.8, added=0.5),
        member(7, "part", 0.5, added=0.4),
        covered=0.9,
      ),
      item(
        *("absorbed", "b", 9),
        member(3, "main", 0.6, added=0.75),
        member(4, "specific", 0.2, added=0.2),
        covered=0.95,
      ),
      item("unmatched", "a", 11, unobserved),
    ],
    "latents": {
      "a": [
        latent(3, "a", " walrus"),
        latent(4, "x", BAD),
        latent(11, "", "z"),
      ],
      "b": [latent(i, "b", f" word{i}") for i in (5, 6, 7, 8, 9)],
    },
  }


class ComparePageTest(absltest.TestCase):
  def test_the_page_needs_no_other_file_and_is_well_formed(self):
    text = compare_page.render(data(), "T <i>")
    outline = samples.Outline(text)
    self.assertEmpty(outline.open)
    for tag, attributes in outline.tags:
      self.assertNotIn(tag, ("link", "iframe", "img", "i"))
      self.assertNotIn("src", attributes)
    self.assertIn("default-src 'none'", text)
    self.assertNotRegex(text, r"@import|url\(|fetch\(|XMLHttp")
    (found,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    self.assertNotRegex(found, "[<>&]")
    self.assertEqual(json.loads(found), data())

  def test_data_are_checked_against_the_schema(self):
    compare_page.validate(data())
    changes = {
      r"\$.rows is missing": lambda d: d.pop("rows"),
      r"items\[0\].kind must be one": lambda d: d["items"][0].update(kind="x"),
      r"saes.a.live must be": lambda d: d["saes"]["a"].update(live=-1),
      r"\$.items\[0\]: b has no latent 99": (
        lambda d: d["items"][0]["members"][0].update(latent=99)
      ),
      r"\$.match.null must have": lambda d: d["match"]["null"].pop(),
      r"latents.b\[0\].examples\[0\] must have as many values": (
        lambda d: d["latents"]["b"][0]["examples"][0]["values"].pop()
      ),
    }
    for message, change in changes.items():
      bad = copy.deepcopy(data())
      change(bad)
      with self.assertRaisesRegex(ValueError, message):
        compare_page.render(bad, "T")


@absltest.skipUnless(chromium.PATH, "Chromium is not installed")
class ChromiumTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.page = folder / "page.html"
    compare_page.write(self.page, data(), "T")
    self.tab = self.enter_context(chromium.tab())
    self.tab.screen(1200, 800)
    self.tab.open(self.page)

  def heading(self):
    return self.tab.value("document.querySelector('h2')?.textContent")

  def links(self):
    return self.tab.value(
      "[...document.querySelectorAll('#list a')].map(a => a.hash)"
    )

  def choose(self, box, value):
    self.tab.value(
      f"{box}.value = {value!r}, {box}.dispatchEvent(new Event('change'))"
    )

  def test_the_summary_is_first_and_says_what_was_found(self):
    tab = self.tab
    self.assertEqual(self.heading(), "Summary")
    text = tab.value("card.innerText")
    self.assertIn("+0.0500, 95 % interval −0.0100 to +0.1100", text)
    self.assertIn("over 7 documents", text)
    self.assertIn("2 of 60 pairs have a cosine of decoder rows above 0.7", text)
    self.assertNotIn("equal numbers", text)
    self.assertEqual(
      tab.value("document.querySelectorAll('svg rect').length"), 3
    )
    tab.click("td a", 0)  # the matched ones
    self.assertEqual(self.heading(), "Matched: A 3 and B 5")
    tab.press("s")
    self.assertEqual(self.heading(), "Summary")

  def test_moving_about_by_keys_clicks_and_fragments(self):
    tab = self.tab
    for key, name in (
      ("j", "matched=a3"),
      ("j", "matched=a4"),
      ("k", "matched=a3"),
    ):
      tab.press(key)
      self.assertEqual(tab.value("location.hash"), f"#{name}")
    tab.click("#list a", 2)
    self.assertEqual(self.heading(), "Split: A 4")
    self.assertIn("cover 90 % of its rows", tab.value("card.innerText"))
    self.assertEqual(
      tab.value(
        "[...document.querySelectorAll('.beside h3')].map("
        "h => h.innerText.match(/^[AB] \\d+/)[0])"
      ),
      ["A 4", "B 6", "B 7"],
    )
    tab.click(".also a", 0)
    self.assertEqual(self.heading(), "Matched: A 4 and B 6")
    for fragment, heading in (
      ("absorbed=b9", "Absorbed: B 9"),
      ("b7", "Split: A 4"),  # the entry that it is in
      ("a11", "Unmatched: A 11"),
    ):
      tab.value(f"location.hash = {fragment!r}")
      tab.settle()
      self.assertEqual(self.heading(), heading)
    self.assertIn("–", tab.value("card.querySelector('table').innerText"))
    tab.value("location.hash = 'a99'")
    tab.settle()
    self.assertIn("no entry a99", tab.value("card.innerText"))
    self.assertEqual((tab.errors, len(tab.requests)), ([], 1))

  def test_search_kinds_and_order(self):
    tab = self.tab
    tab.press("/")
    for key in "word7":
      tab.press(key)
    self.assertEqual(self.links(), ["#split=a4"])
    tab.value("search.value = 'b6', search.dispatchEvent(new Event('input'))")
    self.assertEqual(self.links(), ["#matched=a4", "#split=a4"])
    tab.value("search.value = '', search.dispatchEvent(new Event('input'))")
    self.choose("kind", "absorbed b")
    self.assertEqual(self.links(), ["#absorbed=b9"])
    self.choose("kind", "")
    self.choose("order", "latent")
    self.assertEqual(self.links()[0], "#matched=a3")
    self.assertEqual(self.links()[-1], "#absorbed=b9")

  def test_text_of_tokens_is_text_and_tells_its_value(self):
    tab = self.tab
    tab.value("location.hash = 'matched=a4'")
    tab.settle()
    self.assertIn(BAD, tab.value("card.textContent"))
    self.assertIsNone(tab.value("window.bad ?? null"))
    self.assertEqual(tab.value("document.images.length"), 0)
    tab.click(".column.b .at", 0)
    read = tab.value("document.querySelector('.read').innerText")
    self.assertIn("“word6”: 2;", read)

  def test_dark_as_the_system_is_and_by_key(self):
    colour = "getComputedStyle(document.body).backgroundColor"
    self.assertEqual(self.tab.value(colour), "rgb(255, 255, 255)")
    self.tab.screen(1200, 800, dark=True)
    self.tab.open(self.page)
    self.assertEqual(self.tab.value(colour), "rgb(20, 26, 33)")
    self.tab.press("t")
    self.assertEqual(self.tab.value(colour), "rgb(255, 255, 255)")

  def test_a_narrow_screen_is_not_scrolled_sideways(self):
    self.tab.screen(420, 900)
    for fragment in ("summary", "matched=a4", "split=a4", "unmatched=a11"):
      self.tab.value(f"location.hash = {fragment!r}")
      self.tab.open(self.page)
      widths = self.tab.value(
        "[innerWidth, document.documentElement.scrollWidth]"
      )
      self.assertEqual(widths, [420, 420])


if __name__ == "__main__":
  absltest.main()
