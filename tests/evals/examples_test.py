"""Tests of saejax.evals.examples."""

import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data.store import create
from saejax.data.text import neighbours
from saejax.evals import examples
from saejax.sae import activations, initial


class TopExamplesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 8)).astype(np.float32)
    self.store = create.write_store(
      f"{folder}/s",
      {
        "x": x,
        "doc": np.repeat(np.arange(10), 50),
        "pos": np.tile(np.arange(50), 10),
        "tok": np.arange(500),
      },
      bucket_rows=128,
      shard_rows=64,
      chunk_rows=32,
    )

    # Words for tokens: what a tokenizer would give.
    def text(store, row, before=8, after=4, mark=("", "")):
      token = store.take([row], "tok")["tok"][0]
      return f"{before} {mark[0]}{token}{mark[1]} {after}"

    self.enter_context(mock.patch.object(neighbours, "text", text))

  def sae(self, activation):
    return initial.init(jax.random.key(0), n=16, d=8, activation=activation)

  @parameterized.named_parameters(
    ("sparse", activations.TopK(3)), ("dense", activations.ReLU())
  )
  def test_finds_the_largest_rows_of_the_whole_store(self, activation):
    sae = self.sae(activation)
    every = [self.store.read(a, b) for a, b in self.store.intervals]
    z = np.asarray(sae.encode(np.concatenate(every)))[:, 5]
    numbers = np.concatenate([np.arange(a, b) for a, b in self.store.intervals])
    want = np.argsort(-z, kind="stable")[:7]
    for batch_rows in (48, 4096):
      got = examples.top_examples(
        sae, self.store, 5, count=7, batch_rows=batch_rows
      )
      self.assertEqual([e.row for e in got], numbers[want].tolist())
      np.testing.assert_allclose(
        [e.activation for e in got], z[want], rtol=1e-5
      )
      where = self.store.provenance([e.row for e in got])
      self.assertEqual([e.doc for e in got], where["doc"].tolist())
      self.assertEqual([e.pos for e in got], where["pos"].tolist())

  def test_the_token_is_marked_in_its_context(self):
    (got,) = examples.top_examples(
      self.sae(activations.ReLU()), self.store, 2, count=1, before=3, after=1
    )
    token = self.store.provenance([got.row])["tok"][0]
    self.assertEqual(got.context, f"3 [[{token}]] 1")
    self.assertEqual(got.token, f"0 {token} 0")

  def test_a_dead_latent_has_no_examples(self):
    sae = self.sae(activations.ReLU())
    b = sae.encoder.b.at[4].set(-1e6)
    sae = sae.replace(encoder=sae.encoder.replace(b=b))
    self.assertEqual(examples.top_examples(sae, self.store, 4), [])

  def test_fewer_active_rows_than_asked_for_gives_those(self):
    sae = self.sae(activations.ReLU())
    active = int(
      sum(
        (np.asarray(sae.encode(self.store.read(a, b)))[:, 3] > 0).sum()
        for a, b in self.store.intervals
      )
    )
    got = examples.top_examples(sae, self.store, 3, count=1000)
    self.assertLen(got, active)

  @parameterized.parameters(-1, 16)
  def test_an_unknown_latent_is_refused(self, latent):
    with self.assertRaisesRegex(errors.InputError, rf"latent={latent}: .*16"):
      examples.top_examples(self.sae(activations.TopK(3)), self.store, latent)


if __name__ == "__main__":
  absltest.main()
