"""saejax/notebook.py and what is shown by it: escaped, self-contained tables."""

import html.parser
import pathlib
import pickle
import re

import jax
import numpy as np
from absl.testing import absltest

import saejax
from saejax import notebook
from saejax.data.store import create
from saejax.evals import examples
from saejax.features import summary
from saejax.sae import activations
from tests import toy

BAD = '<script>alert("x")</script>&amp;'


class _Reader(html.parser.HTMLParser):
  """Rows of cells, the marked texts, and whether tags close in order."""

  def __init__(self, text: str):
    super().__init__()
    self.rows, self.marked, self.open = [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.open.append(tag)
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag == "mark":
      self.marked.append("")

  def handle_endtag(self, tag):
    if self.open.pop() != tag:
      raise AssertionError(f"{tag} closes another tag")

  def handle_data(self, data):
    if {"td", "th"} & set(self.open):
      self.rows[-1][-1] += data
    if "mark" in self.open:
      self.marked[-1] += data


class NotebookTest(absltest.TestCase):
  def read(self, text: str) -> _Reader:
    found = _Reader(text)
    self.assertEmpty(found.open)
    self.assertNotIn("<script", text)
    self.assertNotRegex(text, r"https?:|url\(|src=|href=")
    # Readable on any page: the notebook's own colours, or translucent ones.
    for colour in re.findall(r"(?:color|background):([^;\"]+)", text):
      self.assertRegex(colour, r"inherit|transparent|rgba\(.*\.\d+\)")
    return found

  def store(self, x=None, **about):
    folder = pathlib.Path(self.create_tempdir().full_path)
    x = np.ones((100, 8), np.float32) if x is None else x
    return create.write_store(
      folder / "s", {"x": x, "doc": np.arange(len(x))}, about=about
    )

  def test_text_is_escaped_everywhere(self):
    found = self.read(notebook.facts(BAD, {BAD: BAD, "none": None, "no": ""}))
    self.assertEqual(found.rows, [[BAD, BAD]])
    marked = notebook.Marked(BAD, BAD, BAD)
    found = self.read(notebook.table(BAD, [BAD], [[BAD], [marked]]))
    self.assertEqual(found.rows, [[BAD], [BAD], [3 * BAD]])
    self.assertEqual(found.marked, [BAD])

  def test_numbers_and_long_texts_are_short(self):
    found = self.read(
      notebook.table("t", ["a", "b", "c"], [[12345, 1 / 3, "x" * 1000]])
    )
    number, fraction, text = found.rows[1]
    self.assertEqual((number, fraction), ("12,345", "0.3333"))
    self.assertLen(text, 300)

  def test_an_sae_has_its_parts_and_shapes(self):
    sae = toy.sae(activation=activations.TopK(3))
    found = dict(self.read(sae._repr_html_()).rows)
    self.assertIn("TopK(k=3", found["activation"])
    self.assertIn(f"float32[{sae.n},{sae.d}]", found["decoder"])
    sizes = sum(x.size for x in jax.tree.leaves(sae))
    self.assertEqual(found["parameters"], f"{sizes:,}")
    self.assertNotIn("model", found)
    shapes = jax.eval_shape(lambda: sae)
    self.assertEqual(shapes._repr_html_(), sae._repr_html_())

  def test_a_loaded_sae_has_what_it_was_trained_on(self):
    folder = self.create_tempdir().full_path + "/sae"
    about = {
      "model": {"name": BAD, "weights": {"sha": "1"}},
      "site": {"layer": 3, "point": "resid_post"},
      "train": {"store": "runs/s", "rows": 5000},
      "fvu": 0.25,
    }
    sae = toy.sae(activation=activations.TopK(3))
    saejax.save(sae, folder, about=about)
    loaded = saejax.load(folder)
    found = dict(self.read(loaded._repr_html_()).rows)
    self.assertEqual(found["model"], f"name {BAD}")
    self.assertEqual(found["site"], "layer 3, point resid_post")
    self.assertEqual(found["trained on"], "runs/s")
    self.assertEqual((found["rows"], found["fvu"]), ("5,000", "0.25"))
    # It is no part of the pytree, and does not pass to a changed SAE.
    self.assertEqual(jax.tree.structure(loaded), jax.tree.structure(sae))
    toy.assert_trees_equal(loaded, sae)
    changed = dict(
      self.read(loaded.replace(dtype="bfloat16")._repr_html_()).rows
    )
    self.assertNotIn("model", changed)
    saejax.save(sae, folder, about={"train": "text", "model": None})
    self.read(saejax.load(folder)._repr_html_())

  def test_a_store_has_its_columns_and_origin(self):
    store = self.store(model={"name": BAD}, site={"layer": 2})
    rows = self.read(store._repr_html_()).rows
    found = {row[0]: row[1:] for row in rows}
    self.assertEqual(found["rows"], ["100"])
    self.assertEqual(found["model"], [f"name {BAD}"])
    self.assertEqual(found["site"], ["layer 2"])
    self.assertEqual(found["dropped"], ["none"])
    self.assertEqual(found["x"][:2], [store.columns["x"].dtype, "[8]"])
    self.assertIn("doc", found)

  def test_dropped_rows_are_named(self):
    store = self.store()
    store.stats["dropped"] = {"outlier": 1234, "padding": 0}
    found = {r[0]: r[1:] for r in self.read(store._repr_html_()).rows}
    self.assertEqual(found["dropped"], ["outlier 1,234"])

  def test_a_summary_has_its_most_frequent_latents(self):
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    sae, store = toy.sae(activation=activations.TopK(3)), self.store(x)
    for top in (0, 3):
      got = summary.summarise(sae, store, top=top)
      rows = self.read(got._repr_html_()).rows
      self.assertIn(["rows", "300"], rows)
      head = next(i for i, row in enumerate(rows) if row[0] == "latent")
      latent, density, _, largest, row = rows[head + 1]
      place = int(np.argmax(got.count))
      self.assertEqual(latent, str(got.latents[place]))
      self.assertEqual(density, f"{got.density[place]:.3%}")
      want = got.top(int(latent))
      shown = f"{want[0][0]:.4g}" if top else ""
      self.assertEqual(largest, shown)
      self.assertEqual(row, str(want[1][0]) if top else "")

  def test_examples_have_their_token_marked(self):
    def example(token, context):
      return examples.Example(1.5, 10, 2, 3, token, context)

    found = examples.Examples(
      7,
      [
        example("<b>", "a [[ x [[<b>]] & c ]]"),
        example("�", "before [[é]] after"),  # decoded apart from its context
        example("d", "no mark"),
      ],
      ("[[", "]]"),
    )
    read = self.read(found._repr_html_())
    self.assertEqual(read.marked, ["<b>", "é"])
    self.assertEqual(read.rows[1][-1], "a [[ x <b> & c ]]")
    self.assertEqual(read.rows[2][-1], "before é after")
    self.assertEqual(read.rows[3], ["1.5", "10", "2", "3", "no mark"])
    again = pickle.loads(pickle.dumps(found))
    self.assertEqual(again, found)
    self.assertEqual(again._repr_html_(), found._repr_html_())
    plain = examples.Examples(7, [example("a", "a b")], ("", ""))
    self.assertEmpty(self.read(plain._repr_html_()).marked)


if __name__ == "__main__":
  absltest.main()
