"""Losses and gradients equal those of SAELens and dictionary_learning.

tests/golden/make_peers.py says what their numbers are. Reductions differ and
are accounted for here: each case says how.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

from saejax.recipes import batch_sparse, nested, row_sparse, thresholds
from saejax.sae import decoders, encoders, gated
from saejax.training import recipe, step
from saejax.training.parts import losses, rules
from saejax.training.recipe import Hyper

GOLDEN = safetensors.load_file(
  pathlib.Path(__file__).parent.parent / "golden" / "peers.safetensors"
)
D, N, K = 8, 32, 3
EPS, COEFFICIENT, TARGET = 0.4, 0.3, 5.0
DEAD = {"dead_after_tokens": 10_000_000}
AUX = {**DEAD, "k_aux": D // 2, "aux_weight": 1 / 32}  # theirs
PREFIXES = (8, 16, 32)
SPREAD = float(losses.variance(jnp.asarray(GOLDEN["x"])))
SCALES = {"topk": SPREAD}  # theirs over ours

jumprelu = functools.partial(
  thresholds.jumprelu,
  D,
  N,
  coefficient=COEFFICIENT,
  coefficient_warmup=0.0,
  bandwidth=EPS,
  theta=EPS,
  **DEAD,
)
CASES = {
  # Ours is divided by the spread of the rows.
  "topk": lambda: row_sparse.topk(
    D, N, K, **{**AUX, "aux_weight": 1 / 32 / SPREAD}
  ),
  "batchtopk": lambda: batch_sparse.batchtopk(D, N, K, **AUX),
  # The mean over prefixes of terms weighted by 1/G.
  "matryoshka": lambda: nested.matryoshka(
    D,
    N,
    K,
    prefixes=PREFIXES,
    weights=(1 / 9,) * 3,
    reduction="sum",
    bias_only=False,
    **AUX,
  ),
  "matryoshka_sum": lambda: nested.matryoshka(
    D,
    N,
    K,
    prefixes=PREFIXES,
    reduction="sum",
    bias_only=False,
    **{**AUX, "aux_weight": 0.0},
  ),
  "jumprelu_post_jump": lambda: jumprelu(
    penalty="l0_target", target_l0=TARGET, post_jump=True
  ),
  "gated": lambda: thresholds.gated(D, N, coefficient=COEFFICIENT, **DEAD),
}
for reach in ("", "_to_input"):
  ours = functools.partial(jumprelu, ste_to_input=bool(reach))
  CASES |= {
    f"jumprelu_step{reach}": ours,
    # 2 / target (L0 - target)^2 = 2 target (L0 / target - 1)^2
    f"jumprelu_quadratic{reach}": functools.partial(
      ours,
      coefficient=COEFFICIENT * 2 * TARGET,
      penalty="l0_target",
      target_l0=TARGET,
      target_scope="row",
    ),
    f"jumprelu_tanh{reach}": functools.partial(
      ours, penalty="tanh", silent_weight=COEFFICIENT
    ),
  }


class PeersTest(parameterized.TestCase):
  def weights(self, sae):
    """The SAE with the common weights."""
    given = lambda name: jnp.asarray(GOLDEN[f"weights/{name}"])
    if isinstance(sae.encoder, gated.Gated):
      heads = (given(name) for name in ("b_gate", "b_mag", "r_mag"))
      encoder = gated.Gated(given("W_enc"), *heads)
    else:
      encoder = encoders.Affine(W=given("W_enc"), b=given("b_enc"))
    activation = sae.activation
    if hasattr(activation, "theta"):
      activation = activation.replace(theta=given("theta"))
    return sae.replace(
      encoder=encoder,
      activation=activation,
      decoder=decoders.Free(W=given("W_dec"), b=given("b_dec")),
    )

  @parameterized.parameters(*zip(CASES))
  def test_loss_and_gradients_are_theirs(self, name):
    # An optimizer that does nothing but remember the gradient.
    method = dataclasses.replace(
      CASES[name](),
      optimizer=lambda rate: optax.trace(decay=0.0),
      gradient=recipe.unchanged,
    )
    state = step.init_state(method, jax.random.key(0))
    silent = jnp.asarray(GOLDEN["silent"], jnp.int32)
    state = state.replace(
      sae=self.weights(state.sae),
      stats={**state.stats, rules.SINCE_FIRED: silent},
    )
    state, metrics = jax.jit(step.make_step(method, engine="dense"))(
      state,
      Hyper(learning_rate=jnp.float32(1.0)),
      jnp.asarray(GOLDEN["x"]),
    )
    gradients = state.opt_state.trace
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    scale = SCALES.get(name, 1.0)
    close(scale * metrics["loss"], GOLDEN[f"{name}/loss"])
    if "aux" in method.terms:
      self.assertGreater(float(metrics["aux"]), 0)
    found = {
      "W_enc": gradients.encoder.W,
      "W_dec": gradients.decoder.W,
      "b_dec": gradients.decoder.b,
      "theta": getattr(gradients.activation, "theta", None),
      **{
        field: getattr(gradients.encoder, ours, None)
        for field, ours in (
          ("b_enc", "b"),
          ("b_gate", "b_gate"),
          ("b_mag", "b_mag"),
          ("r_mag", "r_mag"),
        )
      },
    }
    compared = 0
    for field, gradient in found.items():
      self.assertEqual(gradient is not None, f"{name}/{field}" in GOLDEN)
      if gradient is not None:
        want = GOLDEN[f"{name}/{field}"]
        atol = 1e-5 * np.abs(want).max()
        close(scale * gradient, want, atol=atol, err_msg=field)
        compared += 1
    self.assertGreaterEqual(compared, 4)


if __name__ == "__main__":
  absltest.main()
