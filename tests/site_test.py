"""The site has a page of everything, and the package's texts agree."""

import datetime
import importlib
import importlib.util
import inspect
import pathlib
import re

import yaml
from absl.testing import absltest, parameterized

import saejax
from docs.site import entries, nav, pages, recipes, tutorials
from saejax import fields
from saejax.recipes import arguments, catalogue
from saejax.studies import short_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
GROUPS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
SCRIPT = '''# ---
# jupytext:
#   formats: py:percent
# ---

# %% [markdown]
# # First
#
# Text with `code`.

# %%
x = 1  # a comment

# %% [markdown]
"""
More text.
"""
'''


def setup():
  spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class NavTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    docs = ROOT / "docs"
    found = {str(f.relative_to(docs)) for f in docs.rglob("*.md")}
    self.written = {f for f in found if not f.startswith("site/")}
    parts = (pages.made, recipes.made, tutorials.made, pages.copied)
    made = {path for part in parts for path in part(ROOT)}
    self.pages = {f for f in {*self.written, *made} if f.endswith(".md")}
    self.nav = config["nav"]

  def test_every_page_is_in_nav_once(self):
    found = nav.named(nav.expanded(self.nav, sorted(self.pages)))
    self.assertCountEqual(found, self.pages)

  def test_new_pages_and_folders_are_listed_and_absent_ones_are_not(self):
    new = {"new.md", "tutorials/README.md", "tutorials/a.md"}
    filled = nav.expanded(self.nav, sorted(self.pages | new))
    inside = {t: e for entry in filled for t, e in entry.items()}
    self.assertIn("new.md", inside["How-to guides"])
    self.assertEqual(inside["Tutorials"][0], "tutorials/README.md")
    self.assertIn("tutorials/a.md", inside["Tutorials"])
    gone = {f for f in self.pages if not f.startswith("tutorials/")}
    titles = [t for e in nav.expanded(self.nav, sorted(gone)) for t in e]
    self.assertNotIn("Tutorials", titles)
    self.assertIn("How-to guides", titles)


class RecipePagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.found = recipes.made(ROOT)

  def test_every_recipe_has_a_page_and_a_line_in_the_table(self):
    names = {pathlib.PurePosixPath(path).stem for path in self.found}
    self.assertEqual(names, {"index", *catalogue.METHODS})
    for name in catalogue.METHODS:
      self.assertIn(f"| [{name}]({name}.md) |", self.found["recipes/index.md"])

  def test_pages_name_the_function_and_what_must_be_given(self):
    for recipe in recipes.every(ROOT):
      method = catalogue.METHODS[recipe.name]
      module = importlib.import_module(f"saejax.recipes.{recipe.module}")
      self.assertIs(getattr(module, recipe.function), method.make)
      self.assertEqual(recipe.sweeps, method.sweeps)
      self.assertEqual(recipe.paper, method.paper)
      needed = [
        leaf.name
        for leaf in arguments.leaves(recipe.name)
        if leaf.default is fields.MISSING
      ]
      self.assertEqual(list(recipe.required), needed, recipe.name)
      page = self.found[f"recipes/{recipe.name}.md"]
      self.assertIn(recipe.summary, page)
      for name in needed:
        self.assertIn(f"--sae.{name}=...", page)
      where = f"{method.make.__module__}.{method.make.__name__}"
      self.assertIn(f"::: {where}\n", page)

  def test_results_are_those_of_the_page_of_methods(self):
    text = (ROOT / "docs/methods.md").read_text()
    against, tested = recipes.tables(text)
    variants = {
      name: variant.recipe
      for name, variant in short_runs.VARIANTS.items()
      if name != variant.recipe
    }
    self.assertEqual(recipes.VARIANTS, variants)
    counts = {"measured": 0, "claims": 0}
    for recipe in recipes.every(ROOT):
      page = self.found[f"recipes/{recipe.name}.md"]
      for kind, rows in (
        ("measured", recipes.measured(recipe, against)),
        ("claims", recipes.claims(recipe, tested)),
      ):
        counts[kind] += len(rows)
        for row in rows:
          self.assertIn("| " + " | ".join(row) + " |", page)
    sites = against[0].count("dead")
    self.assertEqual(counts["measured"], sites * (len(against) - 2))
    first = lambda row: row.split("|")[1].split(":")[0].strip()
    ours = [row for row in tested[2:] if first(row) in catalogue.METHODS]
    self.assertEqual(counts["claims"], len(ours))
    (row,) = (r for r in ours if "kronsae: fewer operations" in r)
    for cell in ("-0.284", "[-0.284, -0.284]", "holds"):
      self.assertIn(cell, row)
      self.assertIn(cell, self.found["recipes/kronsae.md"])


class ReferenceTest(absltest.TestCase):
  def test_the_first_page_has_all_names_and_all_subpackages_have_one(self):
    found = pages.reference_pages(ROOT)
    first = found["reference/index.md"]
    self.assertEqual(set(pages.names(ROOT)), set(saejax._NAMES))
    for name in saejax.__all__:
      if not inspect.ismodule(getattr(saejax, name)):
        self.assertIn(f"::: saejax.{name}\n", first)
    packages = {
      ".".join(path.parent.relative_to(ROOT / "saejax").parts)
      for path in (ROOT / "saejax").rglob("__init__.py")
    } - {"", "presets"}
    self.assertContainsSubset(packages, {*pages.PACKAGES, "studies.claims"})
    page = found["reference/data.text.md"]
    self.assertIn("::: saejax.data.text.windows\n", page)

  def test_entries_of_several_arguments_are_split(self):
    text = (
      "F.\n\nArgs:\n  d, n: width, and\n    latents.\n  k: a, b: c.\n\nx, y: z."
    )
    self.assertEqual(
      entries.split(text),
      "F.\n\nArgs:\n  d: width, and\n    latents.\n  n: width, and\n    latents."
      "\n  k: a, b: c.\n\nx, y: z.",
    )


class TutorialsTest(absltest.TestCase):
  def test_percent_scripts_become_pages(self):
    self.assertEqual(
      tutorials.page_of(SCRIPT, "first_sae.py"),
      "# First\n\nText with `code`.\n\n```python\nx = 1  # a comment\n```\n\n"
      "More text.\n\nThe script is `docs/tutorials/first_sae.py`.\n",
    )

  def test_links_to_files_of_the_checkout_are_links_to_their_pages(self):
    text = "[a](first_sae.py), [b](../../benchmarks/README.md#step)"
    self.assertEqual(
      nav.linked(text, "tutorials/README.md"),
      "[a](first_sae.md), [b](../performance.md#step)",
    )
    self.assertEqual(
      nav.linked("[c](../CHANGELOG.md) [d](../saejax/a.py)", "plan.md"),
      "[c](changelog.md) d",
    )

  def test_a_script_without_a_title_has_its_name(self):
    page = tutorials.page_of("# %%\nx = 1\n", "first_sae.py")
    self.assertStartsWith(page, "# first sae\n\n```python\nx = 1\n```")


class PackageTest(parameterized.TestCase):
  @parameterized.parameters("", "https://host/o/saejax")
  def test_the_description_has_no_relative_link(self, address):
    readme = (ROOT / "README.md").read_text()
    self.assertRegex(readme, r"\]\(docs/")
    text = setup().description(readme, address)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    self.assertEmpty([t for t in targets if not t.startswith("https://")])
    picture = f"]({address}/raw/main/docs/scaling.png)"
    self.assertEqual(picture in text, bool(address))
    plain = text.replace("\n", " ")
    self.assertRegex(plain, r"A method of your own takes \[?under 40 lines")

  def test_urls_are_those_of_the_one_setting(self):
    self.assertEqual(setup().urls(""), {})
    self.assertEqual(setup().repository(), pages.repository(ROOT))
    for url in setup().urls("https://host/o/saejax").values():
      self.assertStartsWith(url, "https://host/o/saejax")

  def test_the_citation_has_the_version_of_the_package(self):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    self.assertEqual(cited["version"], saejax.__version__)
    self.assertEqual(cited["cff-version"], "1.2.0")
    for name in ("message", "title", "authors"):
      self.assertTrue(cited[name])

  def test_the_changelog_keeps_a_changelog(self):
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *rest = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    self.assertStartsWith(first, "[Unreleased]\n")
    versions = []
    for part in rest:
      head = re.match(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)\n", part)
      assert head, part.splitlines()[0]
      datetime.date.fromisoformat(head[2])
      versions.append(tuple(map(int, head[1].split("."))))
    self.assertEqual(versions, sorted(versions, reverse=True))
    self.assertEqual(".".join(map(str, versions[0])), saejax.__version__)
    for part in (first, *rest):
      groups = re.findall(r"^### (.*)", part, re.MULTILINE)
      self.assertContainsSubset(groups, GROUPS)
      self.assertLen(set(groups), len(groups))


if __name__ == "__main__":
  absltest.main()
