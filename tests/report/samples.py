"""What the tests of reports share: points, records, a reader of pages."""

import html.parser

import numpy as np

from saejax.evals import scaling_law


def points(ns=(512, 1024, 2048), ks=(4, 8, 16)):
  truth = np.array([-0.30, -0.05, -0.12, -0.025, -2.0, -0.2])
  return [
    {
      "n": n,
      "k": k,
      "seed": 0,
      "learning_rate": 4e-3,
      "status": "ok",
      "tokens": 300_000,
      "nmse": float(scaling_law.surface(truth, n, k)),
      "fvu": 0.3,
      "l0": float(k),
      "dead": 0.01,
      "cosine": 0.8,
      "seconds": 3.5,
      "group_seconds": 14.0,
      "density": {"log10_edges": [-2.0, -1.0, 0.0], "counts": [3, 4]},
    }
    for n in ns
    for k in ks
  ]


def records(ks=(4, 8, 16), steps=20):
  held_out = [
    {
      "kind": "held_out",
      "step": step,
      "tokens": 2048 * step,
      "members": {f"k{k}-seed0": {"nmse": 2.0 / step} for k in ks},
    }
    for step in range(10, steps + 1, 10)
  ]
  return held_out + [
    {
      "kind": "train",
      "step": step,
      "tokens": 2048 * step,
      "timing": {"seconds": float(step)},
      "members": {
        f"k{k}-seed0": {"loss": 1.1 / step, "mse": 1.0 / step + 0.1 / k}
        for k in ks
      },
    }
    for step in range(1, steps + 1)
  ]


class Outline(html.parser.HTMLParser):
  """Collects tags with attributes, and that they are closed in order."""

  # A page's own elements; those of SVG say themselves that they are empty.
  VOID = frozenset({"meta", "img", "br", "input"})

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.open: list[str] = []
    self.text = ""
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if self.open.pop() != tag:
      raise AssertionError(f"</{tag}> closes something else")

  def handle_data(self, data):
    self.text += data
