"""Windows and forward batches against hand-written lists."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.text import rules, windows

RULES = {"special", "first", "drop_ids"}


def plan(**changes):
  values = {
    "context": 8,
    "forward_batch": 2,
    "pool_batches": 1,
    "document_tokens": 0,
    "prefix": (100,),
    "suffix": (101,),
  }
  own = {"special": frozenset({100, 101})}
  own |= {n: changes.pop(n) for n in RULES & changes.keys()}
  return windows.Plan(**(values | changes), rules=rules.RowRules(**own))


def documents(*lengths):
  return [np.arange(n, dtype=np.int32) for n in lengths]


def run(plan, found, start=windows.START):
  return list(
    windows.batches(plan, range(len(found)), found.__getitem__, start)
  )


class WindowsTest(parameterized.TestCase):
  def test_rows_are_every_token_once_with_its_place(self):
    found = documents(0, 3, 13, 6, 1)
    kept = [
      row
      for b in run(plan(), found)
      for row in zip(b.doc[b.keep], b.pos[b.keep], b.ids[b.keep], strict=True)
    ]
    want = [(i, p, p) for i, doc in enumerate(found) for p in range(len(doc))]
    self.assertEqual(kept, want)

  def test_windows_are_framed_and_never_cross_documents(self):
    first, second = run(plan(), documents(8, 3))
    np.testing.assert_array_equal(
      first.ids, [[100, 0, 1, 2, 3, 4, 5, 101], [100, 6, 7, 101, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(first.mask.sum(-1), [8, 4])
    np.testing.assert_array_equal(second.ids[0, :5], [100, 0, 1, 2, 101])

  def test_planted_ids_are_dropped_wherever_they_stand(self):
    # BOS at position 0 and 7, and an end token that is also the padding id.
    ids = np.asarray([100, 5, 0, 6, 0, 7, 8, 100, 9, 3], np.int32)
    chosen = plan(context=16, forward_batch=1, drop_ids=(3,))
    (batch,) = run(chosen, [ids])
    np.testing.assert_array_equal(batch.ids[batch.keep], [5, 0, 6, 0, 7, 8, 9])
    np.testing.assert_array_equal(batch.pos[batch.keep], [1, 2, 3, 4, 5, 6, 8])
    dropped = {"padding": 4, "special": 4, "first": 0, "drop_ids": 1}
    self.assertEqual(batch.dropped, dropped)
    self.assertEqual(batch.tokens, 10)
    self.assertEqual(chosen.rows(ids), 7)

  @parameterized.parameters(0, 1, 3)
  def test_first_positions_of_each_window_are_dropped(self, first):
    for prefix, kept in (((), 8 - first), ((100,), 7 - max(first - 1, 0))):
      chosen = plan(prefix=prefix, suffix=(), first=first, forward_batch=3)
      (batch,) = run(chosen, documents(2 * chosen.window + 2))
      self.assertEqual(batch.keep[:2].sum(-1).tolist(), [kept, kept])
      self.assertFalse(batch.keep[:, :first].any())
      self.assertEqual(batch.keep.sum(), chosen.rows(np.arange(batch.tokens)))
      real = batch.keep.sum() + sum(batch.dropped.values())
      self.assertEqual(real, batch.ids.size)
      never = max(first - len(prefix), 0)
      lengths = (chosen.window, chosen.window, 2)
      want = sum(min(never, length) for length in lengths)
      self.assertEqual(batch.dropped["first"], want)

  def test_no_suffix_for_models_with_bos_alone(self):
    (batch,) = run(
      plan(suffix=(), special=frozenset({100}), forward_batch=1), documents(7)
    )
    np.testing.assert_array_equal(batch.ids, [[100, 0, 1, 2, 3, 4, 5, 6]])

  def test_document_tokens_cuts_documents(self):
    (batch,) = run(plan(document_tokens=4, forward_batch=3), documents(9, 2))
    np.testing.assert_array_equal(batch.doc[batch.keep], [0, 0, 0, 0, 1, 1])

  def test_pools_put_windows_of_like_length_together(self):
    lengths = [30, 3, 30, 3, 30, 3, 30, 3]
    chosen = plan(context=32, forward_batch=4, pool_batches=2)
    found = run(chosen, documents(*lengths))
    self.assertEqual([b.ids.shape[1] for b in found], [32, 8])
    mixed = run(plan(context=32, forward_batch=4), documents(*lengths))
    self.assertEqual([b.ids.shape[1] for b in mixed], [32, 32])
    rows = {
      (int(d), int(p))
      for b in found
      for d, p in zip(b.doc[b.keep], b.pos[b.keep], strict=True)
    }
    self.assertLen(rows, sum(lengths))

  def test_few_shapes(self):
    found = run(
      plan(context=128, forward_batch=3, pool_batches=4),
      documents(*np.random.default_rng(0).integers(0, 400, 200)),
    )
    shapes = {b.ids.shape for b in found}
    self.assertLessEqual(len(shapes), 4)
    self.assertEqual({B for B, _ in shapes}, {3})

  @parameterized.parameters(1, 3)
  def test_starting_at_any_batch_gives_the_same_rest(self, pool_batches):
    found = documents(5, 0, 40, 13, 7, 1, 1, 90, 2)
    chosen = plan(pool_batches=pool_batches)
    whole = run(chosen, found)
    for i, batch in enumerate(whole):
      rest = run(chosen, found, batch.point)
      self.assertLen(rest, len(whole) - i)
      for a, b in itertools.zip_longest(rest, whole[i:]):
        self.assertEqual(a.point, b.point)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.doc, b.doc)
        np.testing.assert_array_equal(a.pos, b.pos)
        self.assertEqual(a.dropped, b.dropped)

  def test_the_end_has_no_batches(self):
    found = documents(5, 40)
    self.assertEmpty(run(plan(), found, windows.Point(2, 0, 0)))

  def test_every_row_of_the_mask_sees_a_token(self):
    (batch,) = run(plan(forward_batch=4), documents(3))
    self.assertTrue(batch.mask.any(-1).all())
    self.assertEqual(int(batch.keep.sum()), 3)
    self.assertEqual(sum(batch.dropped.values()) + 3, batch.ids.size)


if __name__ == "__main__":
  absltest.main()
