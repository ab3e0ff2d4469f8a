"""saejax/evals/pairs.py, families.py, compared.py: by brute force on small SAEs."""

import pathlib
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create
from saejax.data.store.share import Share
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.evals import compared, families, held_out, matching, pairs
from saejax.features import parts
from saejax.report import compare_page
from saejax.sae import activations, encoders, prep
from tests import toy
from tests.features.cards_test import Words

D = 8


def store(test, x, **more):
  doc = np.repeat(np.arange(len(x) // 50), 50)
  return create.write_store(
    f"{test.create_tempdir().full_path}/s",
    {
      "x": x,
      "doc": doc,
      "pos": np.arange(len(x)) % 50,
      "tok": np.arange(len(x)),
    },
    **({"bucket_rows": 128, "shard_rows": 64, "chunk_rows": 32} | more),
  )


def scaled(**more):
  """An SAE whose prep moves and scales rows, and with rows of many norms."""
  given = toy.sae(
    prep_=prep.Affine(centre=jnp.full(D, 0.3), scale=jnp.asarray(2.5)), **more
  )
  W = given.W_dec * jnp.linspace(0.2, 3, given.n)[:, None]
  return given.replace(decoder=given.decoder.replace(W=W))


class ObserveTest(parameterized.TestCase):
  @parameterized.parameters(None, 0)
  def test_numbers_are_those_of_dense_latents(self, shuffle_seed):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, D)).astype(np.float32)
    saes = scaled(n=24), toy.sae(n=40, activation=activations.ReLU(), seed=1)
    rows = store(self, x, shuffle_seed=shuffle_seed)
    found = pairs.observe(*saes, rows, near=3, batch_rows=96)
    z = [np.asarray(sae.encode(x)) for sae in saes]
    W = [np.asarray(sae.W_dec) for sae in saes]
    unit = [w / np.linalg.norm(w, axis=1, keepdims=True) for w in W]
    for side in (0, 1):
      mine, other, near = z[side], z[1 - side], found.near[side]
      cosine = unit[side] @ unit[1 - side].T
      order = np.argsort(-cosine, axis=1)[:, :3]
      np.testing.assert_array_equal(near.latent, order)
      together = (mine != 0).astype(int).T @ (other != 0)
      np.testing.assert_array_equal(
        near.both(), np.take_along_axis(together, order, 1)
      )
      for i in (0, 5):
        on = (other[:, order[i, [0, 2]]] != 0).any(axis=1) & (mine[:, i] != 0)
        self.assertEqual(near.any_of(i, [0, 2]), on.sum())
      with np.errstate(divide="ignore", invalid="ignore"):
        all_of = np.corrcoef(mine.T, other.T)[: mine.shape[1], mine.shape[1] :]
      np.testing.assert_allclose(
        found.correlation(side),
        np.take_along_axis(all_of, order, 1),
        atol=1e-5,
      )
      want = held_out.evaluate(saes[side], x)
      self.assertAlmostEqual(found.fvu(side), want.fvu, places=5)
      self.assertAlmostEqual(
        float(found.summaries[side].density.sum()), want.l0, places=5
      )
    self.assertLen(found.documents, 10)
    low, high = found.fvu_difference().low, found.fvu_difference().high
    effect = found.fvu(0) - found.fvu(1)
    self.assertTrue(low < effect < high)

  def test_a_stopped_pass_and_several_processes(self):
    rows = store(self, np.asarray(toy.rows(300, D)))
    saes = scaled(n=24), toy.sae(n=40, activation=activations.ReLU(), seed=1)

    def make(**how):
      found = pairs.observe(*saes, rows, batch_rows=32, **how)
      arrays = {"doc": found.documents, "error": found.error}
      for i, part in enumerate((*found.summaries, *found.near)):
        arrays |= parts.flat(part, f"{i}/")
      return arrays

    folder = pathlib.Path(self.create_tempdir().full_path)
    kept = parts.Pass(folder / "pass", seconds=0)

    def stop(done):
      if done == 160:
        raise RuntimeError("stopped")

    with (
      mock.patch.object(parts, "_LEAST", 0),
      self.assertRaisesRegex(RuntimeError, "stopped"),
    ):
      make(kept=kept, progress=stop)
    seen = []
    got, want = make(kept=kept, progress=seen.append), make()
    self.assertEqual(seen[0], 160)
    for name in want:
      np.testing.assert_array_equal(got[name], want[name], name)
    two = lambda process: parts.Pass(folder / "two", Share(process, 2))
    with self.assertRaises(parts.Unfinished):
      make(kept=two(1))
    got = make(kept=two(0))
    for name in want:
      np.testing.assert_allclose(
        got[name], want[name], rtol=1e-9, atol=1e-12, err_msg=name
      )

  def test_a_row_layer_norm_leaves_the_directions(self):
    given = toy.sae(prep_=prep.RowLayerNorm())
    plain = given.replace(prep=prep.Identity())
    np.testing.assert_allclose(
      pairs.directions(given), pairs.directions(plain), rtol=1e-6
    )


def planted(fires_a, fires_b, cosine):
  """Pairs with these active rows [rows, n] and cosines [n_a, n_b]."""
  fires = [np.asarray(f, bool) for f in (fires_a, fires_b)]
  near = []
  for side, c in ((0, cosine), (1, cosine.T)):
    order = np.argsort(-c, axis=1, kind="stable")
    codes = np.zeros((len(order), 2 ** order.shape[1]), np.int64)
    for i, others in enumerate(order):
      hit = fires[1 - side][fires[side][:, i]][:, others]
      np.add.at(codes[i], (hit << np.arange(len(others))).sum(axis=1), 1)
    cosines = np.take_along_axis(c, order, 1)
    near.append(pairs.Near(order, cosines, np.zeros(order.shape), codes))
  totals = [
    mock.Mock(count=f.sum(axis=0), rows=len(f), spec=["count", "rows"])
    for f in fires
  ]
  none = np.zeros(0)
  return pairs.Pairs((none, none), tuple(totals), tuple(near), none, none, none)


def on(*spans, rows=200):
  """A column of latents that are active on these rows."""
  return np.stack(
    [(np.arange(rows) >= a) & (np.arange(rows) < b) for a, b in spans], axis=1
  )


class FamiliesTest(absltest.TestCase):
  def test_a_split_latent_has_parts_that_cover_it_together(self):
    a = on((0, 100), (100, 200))
    b = on((0, 55), (50, 95), (0, 200), (120, 190))
    cosine = np.array([[0.8, 0.5, 0.6, 0.0], [0.0, 0.1, 0.6, 0.9]])
    found = planted(a, b, cosine)
    (family,) = families.split(found, 0)
    self.assertEqual(family.latent, 0)
    members = found.near[0].latent[0, list(family.places)]
    self.assertEqual(members.tolist(), [0, 1])  # not 2, which is broader
    self.assertAlmostEqual(family.covered, 0.95)
    np.testing.assert_allclose(family.added, [0.55, 0.4])
    # Of the other SAE, latent 2 is split.
    (back,) = families.split(found, 1)
    self.assertEqual(back.latent, 2)
    strict = families.Rules(cosine=0.55)
    self.assertEmpty(families.split(found, 0, strict))

  def test_a_latent_that_one_covers_is_not_split(self):
    a, b = on((0, 100)), on((0, 85), (80, 99))
    found = planted(a, b, np.array([[0.8, 0.5]]))
    self.assertEmpty(families.split(found, 0))

  def test_an_absorbed_latent_has_specific_ones_where_the_main_is_off(self):
    a = on((0, 100))
    b = on((0, 75), (75, 99), (70, 200))
    cosine = np.array([[0.9, 0.1, 0.2]])
    (family,) = families.absorbed(planted(a, b, cosine), 0)
    self.assertEqual(family.places, (0, 2))  # latents 0 and 1 by cosine
    np.testing.assert_allclose(family.added, [0.75, 0.24])
    self.assertAlmostEqual(family.covered, 0.99)
    weak = np.array([[0.9, 0.02, 0.2]])  # no component along the direction
    self.assertEmpty(families.absorbed(planted(a, b, weak), 0))
    broad = on((0, 81), (75, 99), (70, 200))  # the main one covers enough
    self.assertEmpty(families.absorbed(planted(a, broad, cosine), 0))
    skip = frozenset([0])
    self.assertEmpty(families.absorbed(planted(a, b, cosine), 0, skip=skip))


class ComparedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(
      mock.patch.object(neighbours, "tokenizer_of", lambda store: Words())
    )
    rng = np.random.default_rng(0)
    self.x = rng.standard_normal((500, D)).astype(np.float32)
    self.rows = store(self, self.x)

  def test_a_permuted_copy_is_matched_with_equal_activity(self):
    given = scaled()
    order = np.random.default_rng(1).permutation(given.n)
    other = given.replace(
      encoder=encoders.Affine(W=given.W_enc[order], b=given.b_enc[order]),
      decoder=given.decoder.replace(W=2 * given.W_dec[order]),
    )
    data = compared.make(given, other, self.rows)
    compare_page.validate(data)
    live = data["saes"]["a"]["live"]
    self.assertEqual(data["match"]["shared"], live)
    self.assertEqual(data["match"]["both"], live)
    self.assertEqual(data["match"]["share"], {"a": 1, "b": 1})
    self.assertEqual(data["saes"]["b"]["kinds"]["unmatched"], 0)
    self.assertLess(data["match"]["null_shared"], live)
    pairs_ = [item for item in data["items"] if item["kind"] == "matched"]
    self.assertLen(pairs_, live)
    for item in pairs_:
      (member,) = item["members"]
      self.assertEqual(order[member["latent"]], item["latent"])
      self.assertAlmostEqual(member["correlation"], 1, places=3)
      self.assertEqual((member["covers"], member["inside"]), (1, 1))

  def test_every_live_latent_is_of_a_kind_and_shown_with_its_text(self):
    a, b = scaled(), toy.sae(n=40, seed=3)
    data = compared.make(a, b, self.rows, sizes=compared.Sizes(show=5))
    compare_page.validate(data)
    for side in "ab":
      kinds = data["saes"][side]["kinds"]
      self.assertGreaterEqual(sum(kinds.values()), data["saes"][side]["live"])
      shown = [
        item
        for item in data["items"]
        if (item["side"], item["kind"]) == (side, "unmatched")
      ]
      self.assertLen(shown, min(5, kinds["unmatched"]))
    z = np.asarray(a.encode(self.x))
    for card in data["latents"]["a"]:
      self.assertEqual(card["count"], (z[:, card["latent"]] != 0).sum())
      for e in card["examples"]:
        value = z[int(e["tokens"][e["at"]]), card["latent"]]
        self.assertAlmostEqual(e["value"], value, places=2)

  def test_what_cannot_be_compared_is_refused_by_name(self):
    a = toy.sae()
    transcoder = a.replace(target_prep=prep.Identity(), pre_bias=False)
    for pair, message in (
      ((a, toy.sae(d=6)), r"b=width 6: must be of the site of a, .* width 8"),
      ((toy.sae(d=6), toy.sae(d=6)), r"store=.* of the SAEs, 6, not 8"),
      ((a, transcoder), "b=transcoder: must reconstruct its own input"),
    ):
      with self.assertRaisesRegex(InputError, message):
        compared.make(*pair, self.rows)
    with self.assertRaisesRegex(InputError, "rows that vary"):
      compared.make(a, a, store(self, np.ones((100, D), np.float32)))
    with (
      mock.patch.object(matching, "EXACT_LIMIT", 20),
      self.assertRaisesRegex(InputError, "match=exact: needs at most 20"),
    ):
      compared.make(a, a, self.rows, method="exact")

  def test_dead_latents_are_no_pairs(self):
    a = scaled()
    off = a.b_enc.at[3].set(-1e6)
    b = a.replace(encoder=encoders.Affine(W=a.W_enc, b=off))
    data = compared.make(a, b, self.rows, method="mnn")
    compare_page.validate(data)
    self.assertEqual(data["saes"]["b"]["live"], data["saes"]["a"]["live"] - 1)
    of_a = [i for i in data["items"] if i["side"] == "a" and i["latent"] == 3]
    self.assertNotEqual(of_a[0]["kind"], "matched")


if __name__ == "__main__":
  absltest.main()
