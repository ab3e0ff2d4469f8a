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


def with_prompts(store=True):
  """Data with prompts of three and two tokens, with or without a store."""
  found = data()
  if not store:
    for name in ("store", "rows", "per_octave", "lowest"):
      del found[name]
    kept = ("latent", "nearest", "promoted", "suppressed")
    found["latents"] = [
      {k: v for k, v in c.items() if k in kept} | {"examples": []}
      for c in found["latents"]
    ]
  one = lambda latent, value: {"latent": latent, "value": value}
  return found | {
    "subject": {"model": "m", "site": "l"},
    "strongest": 1,
    "prompts": [
      {
        "text": f"x{BAD}y",
        "tokens": ["x", BAD, "y"],
        "rows": [False, True, True],
        "latents": [[], [one(3, 2.0), one(9, 0.5)], [one(9, 1.5)]],
      },
      {
        "text": "no",
        "tokens": ["n", "o"],
        "rows": [True, True],
        "latents": [[one(9, -0.25)], []],
      },
    ],
  }


def with_effects():
  """Data with attribution and ablation."""
  found = data()
  first = found["latents"][0]
  first["examples"][0]["attribution"] = [0.0, -0.02, 0.01]
  window = {"row": 5, "group": "top", "value": 2, "change": 0.5, "linear": 0.4}
  first["ablation"] = {"mean": 0.5, "windows": [window]}
  effects = {"model": "m", "measure": "loss", "tokens": 32}
  return found | {"effects": effects}


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
    for good in (with_prompts(), with_prompts(store=False), with_effects()):
      feature_page.validate(good)
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
      r"latents\[0\].density is missing": lambda d: d["latents"][0].pop(
        "density"
      ),
      r"must have as many attribution": lambda d: d["latents"][0]["examples"][
        0
      ].update(attribution=[0.1]),
      r"prompts\[0\] must have as many rows": lambda d: d.update(
        prompts=[with_prompts()["prompts"][0] | {"rows": [True]}]
      ),
      r"prompts\[1\] has latent 9": lambda d: (
        d.update(prompts=with_prompts()["prompts"], latents=d["latents"][:1])
        or d["latents"].append(card(11))
        or d["prompts"][0]["latents"].__setitem__(slice(None), [[], [], []])
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

  def show(self, found):
    feature_page.write(self.page, found, "T")
    self.tab.value("location.hash = ''")
    self.tab.open(self.page)

  def texts(self, selector):
    return self.tab.value(
      f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)"
    )

  def test_prompts_by_keys_clicks_and_fragments(self):
    tab = self.tab
    self.show(with_prompts())
    self.assertLen(self.texts(".strip"), 2)
    # The first token that is a row, with one latent, its words and an example.
    self.assertIn("window.bad", self.heading())
    self.assertEqual(self.texts(".strong > a"), ["3"])
    self.assertEqual(self.texts(".strong .chip"), ["<b>"])
    self.assertEqual(self.texts(".strong .text"), ["a walrus↵\n"])
    self.assertIsNone(tab.value("window.bad ?? null"))
    for key, wanted in (
      ("ArrowRight", "y"),
      ("ArrowRight", "n"),
      ("ArrowRight", "o"),
      ("ArrowRight", "o"),
      ("ArrowLeft", "n"),
    ):
      tab.press(key)
      self.assertEqual(self.heading(), f"“{wanted}”")
    self.assertEqual(tab.value("location.hash"), "#prompt=1,0")
    self.assertEqual(self.texts(".below"), ["-0.25"])
    tab.click(".strip span", 0)
    self.assertIn("No row", tab.value("card.textContent"))
    tab.click(".strip span", 2)
    tab.click(".strong > a")
    self.assertEqual(self.heading(), "Latent 9")
    shaded = tab.value(
      "[...document.querySelectorAll('.strip span')]"
      ".map(e => Boolean(e.style.background))"
    )
    self.assertEqual(shaded, [False, True, True, True, False])
    # The list is by value in the prompts: 3, 9, 11.
    tab.press("j")
    self.assertEqual(self.heading(), "Latent 11")
    tab.value("location.hash = 'prompt=7,0'")
    tab.settle()
    self.assertIn("window.bad", self.heading())  # there is no such prompt
    self.assertEqual((tab.errors, len(tab.requests)), ([], 2))

  def test_prompts_without_a_store(self):
    tab = self.tab
    self.show(with_prompts(store=False))
    self.assertEqual(self.texts(".strong > a"), ["3"])
    tab.click(".strong > a")
    self.assertEqual(self.heading(), "Latent 3")
    self.assertIn("No examples", tab.value("card.textContent"))
    self.assertIn("m, l", tab.value("about.textContent"))
    self.assertEqual(tab.errors, [])
    tab.screen(420, 900)
    for place in ("prompt=0,1", "latent=3"):
      tab.value(f"location.hash = '{place}'")
      tab.open(self.page)
      widths = tab.value("[innerWidth, document.documentElement.scrollWidth]")
      self.assertEqual(widths, [420, 420])

  def test_effects_on_the_model(self):
    tab = self.tab
    self.show(with_effects())
    self.assertEqual(self.texts(".effects td"), ["2", "0.5", "0.4"])
    self.assertIn("nats per token", self.texts(".effects th")[1])
    self.assertIn("error of the SAE is kept", tab.value("card.textContent"))
    kinds = tab.value("[...document.querySelectorAll('.text span')]"
                      ".map(e => e.className)")  # fmt: skip
    self.assertEqual(kinds, ["", "at lowers", "raises"])
    tab.click(".text span", 2)
    self.assertIn("attribution 0.01 nats", self.texts(".read")[0])
    tab.press("j")  # a card without
    self.assertEqual(self.texts(".effects"), [])
    self.assertEqual(tab.errors, [])

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
    for _ in range(6):  # browsers may lose what was stored just before leaving
      tab.press("n")
      for key in "jot":  # no keys of the page while writing
        tab.press(key)
      self.assertEqual(self.heading(), "Latent 9")
      tab.open(self.page)
      tab.value("location.hash = 'latent=9'")
      tab.settle()
      if tab.value("document.querySelector('textarea').value"):
        break
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
