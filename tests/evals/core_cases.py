"""SAEs and text that SAEBench and saejax evaluate alike, see core_compat_test.

tests/clients/make_core_golden.py runs SAEBench on them.
"""

import jax.numpy as jnp

from saejax.sae import activations, gated, jumprelu, prep
from saejax.sae.sae import SAE
from tests import shared, toy

MODEL = "models/babyllama-105"
GOLDEN = shared.ROOT / "tests" / "golden" / "core_saebench.json"
LAYER, HOOK = 2, "blocks.2.hook_resid_post"
D, N = 128, 48
RMS = 0.04  # of a coordinate of the site
CONTEXT, PROMPTS, RECONSTRUCTION, VARIANCE = 32, 4, 2, 3
ANIMALS = ("dog", "cat", "little bird", "big brown bear", "fish")
PLACES = ("park", "river", "house of a friend", "farm", "zoo")
DOCUMENTS = [
  f"One day, a {animal} named {'TimSueBobAnnMax'[3 * i : 3 * i + 3]} went to "
  f"the {PLACES[(i * j + 2) % 5]}. It saw {j + 2} red balls and a "
  f"{ANIMALS[(i + j) % 5]}! They played and were happy."
  for j in range(3)
  for i, animal in enumerate(ANIMALS)
]
_AFFINE = prep.Affine(
  centre=0.01 * toy.rows(D, seed=3), scale=jnp.asarray(RMS, jnp.float32)
)


def saes() -> dict[str, SAE]:
  """One SAE of each activation that SAEBench can fold; TopK has unit rows."""
  longer = 0.1 * (0.5 + jnp.abs(toy.rows(N, 1, seed=4)))

  def sae(activation, **more):
    made = toy.sae(n=N, d=D, activation=activation, prep_=_AFFINE, **more)
    W = longer * made.W_dec
    return made.replace(decoder=made.decoder.replace(W=W))

  topk = toy.sae(n=N, d=D, activation=activations.TopK(6))
  gates = gated.init(toy.rows(N, D) / 8).replace(
    b_gate=0.3 * toy.rows(N, seed=5),
    b_mag=0.2 * toy.rows(N, seed=6) + 0.5,
    r_mag=0.3 * toy.rows(N, seed=7),
  )
  high = jnp.linspace(0.1, 6.0, N).at[:3].set(1e3)  # three latents are dead
  return {
    "topk": topk.replace(
      encoder=topk.encoder.replace(b=RMS * topk.b_enc),
      decoder=topk.decoder.replace(b=RMS * topk.b_dec),
    ),
    "relu": sae(activations.ReLU()),
    "jumprelu": sae(jumprelu.JumpReLU(high), pre_bias=False),
    "gated": sae(gated.Gate()).replace(encoder=gates),
  }
