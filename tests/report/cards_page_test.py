"""saejax/report/cards_page.py and notes.py: the words around cards and results."""

from absl.testing import absltest, parameterized

from saejax.features import overview
from saejax.report import cards_page, notes, page


def card(pick, *values):
  example = {"value": 2.0, "at": 1, "values": list(values)}
  example["tokens"] = ["a\n", " b\ud800", "c", "d"][: len(values)]
  return {
    "latent": pick.latent,
    "count": 12,
    "density": 0.03,
    "mean": 0.5,
    "max": 2.0,
    "examples": [example] if values else [],
    "nearest": [{"latent": 9, "value": 0.4}],
    "pick": pick,
  }


def blocks(*cards, **more):
  found = {"rows": 400, "n": 64, "dead": 3, "latents": list(cards)}
  return cards_page.blocks(found, sae="n = 64", command="--sae=s", **more)


class CardsTest(parameterized.TestCase):
  def test_tokens_have_their_share_of_the_largest_value(self):
    pick = overview.Pick(3, overview.RANDOM)
    prose, made = blocks(card(pick, 0.0, 2.0, -0.5, 0.0))
    (one,) = made.items
    (example,) = one.examples
    self.assertEqual(
      [(t.text, t.share, t.kind) for t in example.tokens],
      [
        ("a↵", None, ""),
        (" ", None, ""),
        ("b?", 1.0, "at"),
        ("c", 0.25, "cold"),
        ("d", None, ""),
      ],
    )
    self.assertEqual(one.facts[0], ("fires on", "3 % (12 rows)"))
    self.assertIn("No direction is shared", prose.text)
    page.render("T", [page.Section("S", [prose, made])])

  @parameterized.parameters(
    (overview.Pick(3, overview.MOST_DENSE), "most dense"),
    (overview.Pick(3, overview.LEAST_DENSE), "fire at all"),
    (overview.Pick(3, overview.SPLIT, (3, 5, 8)), r"3 latents have .*\(5, 8\)"),
    (
      overview.Pick(3, overview.SPLIT, range(3, 15), 7),
      r"latent 7 of the SAE with n = 32 .* 12 latents.* 9 and others",
    ),
  )
  def test_a_card_says_why_it_is_there(self, pick, words):
    _, made = blocks(card(pick, 0.0, 2.0), smaller=32)
    self.assertRegex(made.items[0].why, words)

  def test_an_sae_whose_latents_are_all_dead_has_a_note(self):
    (note,) = blocks()
    self.assertIn("No latent of the SAE with n = 64 fires", note.text)


class NotesTest(parameterized.TestCase):
  @parameterized.parameters((0, False), (319_488, True), (10**7, False))
  def test_a_run_of_few_tokens_is_a_toy(self, tokens, is_toy):
    self.assertEqual(bool(notes.toy([{"tokens": tokens}])), is_toy)

  def test_many_dead_latents_are_explained(self):
    point = {"n": 4096, "k": 4, "dead": 0.46, "rows": 32768}
    (note,) = notes.dead([point, {**point, "k": 8, "dead": 0.1}])
    for part in ("46 %", "n = 4,096, k = 4", "32,768", "2,212", "1 other SAE"):
      self.assertIn(part, note.text)
    self.assertEmpty(notes.dead([{**point, "dead": 0.04}, {"n": 1, "k": 1}]))


if __name__ == "__main__":
  absltest.main()
