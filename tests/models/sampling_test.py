"""saejax/models/sampling.py: tokens are drawn from the set that may be drawn."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.models import sampling

P = np.array([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]])
LOGITS = jnp.asarray(np.log(P), jnp.float32)


class AllowedTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"top_p": 0.45}, [[0, 1, 0, 0], [1, 0, 0, 0]]),
    ({"top_p": 0.7}, [[0, 1, 0, 1], [1, 0, 0, 0]]),
    ({"top_p": 0.8}, [[0, 1, 1, 1], [1, 0, 0, 0]]),
    # Of equally likely tokens the lower ids come first.
    ({"top_p": 0.985}, [[1, 1, 1, 1], [1, 1, 1, 0]]),
    ({"top_k": 1}, [[0, 1, 0, 0], [1, 0, 0, 0]]),
    ({"top_k": 3}, [[0, 1, 1, 1], [1, 1, 1, 0]]),
    ({"top_k": 9}, [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ({"min_p": 0.25}, [[0, 1, 1, 1], [1, 0, 0, 0]]),
    ({"min_p": 0.45}, [[0, 1, 0, 1], [1, 0, 0, 0]]),
    ({"min_p": 1.0}, [[0, 1, 0, 0], [1, 0, 0, 0]]),
    # The nucleus is of the k likeliest: 0.5 of 0.75 is 2/3.
    ({"top_k": 2, "top_p": 0.6}, [[0, 1, 0, 0], [1, 0, 0, 0]]),
    ({"top_k": 2, "top_p": 0.7}, [[0, 1, 0, 1], [1, 0, 0, 0]]),
  )
  def test_it_is_the_set_of_the_definition(self, settings, want):
    got = sampling.allowed(LOGITS, sampling.Sampling(**settings))
    np.testing.assert_array_equal(got, np.array(want, bool))

  def test_draws_are_from_the_set_in_proportion(self):
    keys = jax.random.split(jax.random.key(0), 4096)
    logits = jnp.broadcast_to(LOGITS[:1], (4096, 4))
    drawn = sampling.choose(keys, logits, sampling.Sampling(top_p=0.7))
    shares = np.bincount(np.asarray(drawn), minlength=4) / 4096
    np.testing.assert_allclose(shares, [0, 2 / 3, 0, 1 / 3], atol=0.03)

  def test_temperature_divides_before_the_restriction(self):
    keys = jax.random.split(jax.random.key(0), 512)
    logits = jnp.broadcast_to(LOGITS[:1], (512, 4))
    hot = sampling.Sampling(temperature=4.0, top_p=0.7)
    drawn = sampling.choose(keys, logits, hot)
    # p^(1/4) is 0.19, 0.28, 0.21, 0.24 of the whole.
    self.assertEqual(set(drawn.tolist()), {1, 2, 3})

  def test_rows_have_keys_of_their_own(self):
    keys = jax.random.split(jax.random.key(0), 8)
    logits = jnp.zeros((8, 50))
    whole = sampling.choose(keys, logits, sampling.Sampling())
    alone = sampling.choose(keys[3:4], logits[3:4], sampling.Sampling())
    self.assertEqual(int(whole[3]), int(alone[0]))
    self.assertGreater(len(set(whole.tolist())), 3)


if __name__ == "__main__":
  absltest.main()
