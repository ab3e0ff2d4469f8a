"""Tests of rows of several sources side by side."""

import numpy as np
from absl.testing import absltest

from saejax.data import joined, rows, shared
from saejax.data.store import columns

ROWS = 60


class Site:
  """Rows (doc, pos, x = scale * number) in blocks of 10, some dropped."""

  group, files = None, {}
  columns = {  # noqa: RUF012
    "x": columns.Column(dtype="float32", shape=(2,), axes=("d",), train=True),
    "doc": columns.Column(dtype="int64"),
    "pos": columns.Column(dtype="int32"),
  }

  def __init__(self, scale, dropped):
    self.scale, self.dropped, self.about = scale, dropped, {"scale": scale}
    self.prepared = []

  def prepare(self, recorded):
    self.prepared.append(recorded)
    return {"limit": self.scale}

  def count(self, most):
    return min(ROWS, most)

  def blocks(self, spans, resume=None):
    for number, span in enumerate(spans):
      for start in range(span.start, min(span.stop, ROWS), 10):
        every = np.arange(start, min(start + 10, span.stop, ROWS))
        kept = every[~np.isin(every, self.dropped)]
        values = {
          "x": np.stack([kept, kept], 1).astype(np.float32) * self.scale,
          "doc": kept // 7,
          "pos": (kept % 7).astype(np.int32),
        }
        dropped = {"outlier": len(every) - len(kept)}
        resume = rows.Resume({}, int(every[-1]) + 1)
        yield rows.Block(number, values, resume, dropped, len(every))


class JoinedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.parts = [Site(1.0, [3, 4]), Site(-2.0, [4, 25])]

  def test_a_token_dropped_at_one_site_is_a_row_of_none(self):
    blocks = list(joined.Joined(self.parts).blocks([rows.Span(0, ROWS)]))
    x = np.concatenate([block.values["x.0"][:, 0] for block in blocks])
    other = np.concatenate([block.values["x.1"][:, 0] for block in blocks])
    kept = [i for i in range(ROWS) if i not in (3, 4, 25)]
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(other, -2 * x)
    self.assertEqual(blocks[0].dropped, {"outlier": 2})
    self.assertEqual(blocks[2].dropped, {"outlier": 1})
    place = blocks[1].values
    np.testing.assert_array_equal(place["doc"] * 7 + place["pos"], x[8:18])

  def test_sites_are_rows_of_their_own_with_one_order(self):
    sizes = {"most_rows": ROWS, "buffer_rows": 20, "statistics_rows": ROWS}
    one, two = joined.sites(self.parts, **sizes)
    self.assertEqual((one.meta["scale"], two.meta["scale"]), (1.0, -2.0))
    self.assertEqual(two.trained, ("x",))
    self.assertNotEqual(one.content, two.content)
    np.testing.assert_allclose(two.stats["mean"], -2 * one.stats["mean"])
    np.testing.assert_array_equal(two.read(0, 3), -2 * one.read(0, 3))
    readers = shared.readers([one, two], batch_rows=10, seed=0)
    for _ in range(8):
      left, right = (next(reader) for reader in readers)
      np.testing.assert_array_equal(right["x"], -2 * left["x"])
      np.testing.assert_array_equal(right["row"], left["row"])
    for reader in readers:
      reader.close()
    self.assertEqual(two.columns["x"], Site.columns["x"])

  def test_it_records_and_restores_what_each_source_measured(self):
    both = joined.Joined(self.parts)
    found = both.prepare(None)
    both.prepare(found)
    self.assertEqual(self.parts[1].prepared, [None, {"limit": -2.0}])


if __name__ == "__main__":
  absltest.main()
