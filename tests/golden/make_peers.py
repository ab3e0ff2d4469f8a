"""Makes tests/golden/peers.safetensors: losses and gradients of other code.

Needs an environment of its own, which the library and its tests do not:
  pip install torch==2.13.0 sae-lens==6.54.12 dictionary-learning==0.1.0
  python tests/golden/make_peers.py

Every case has the same weights and rows (`weights/...`, `x`, `silent`: tokens
since each latent fired) and keeps the peer's loss and its gradient in each
weight, row i being latent i: `<case>/loss`, `<case>/W_enc`, ... The peers' own
loss methods are called; nothing is copied from them.
"""

import importlib.metadata
import pathlib

import numpy as np
import safetensors.numpy
import torch
from dictionary_learning import trainers
from dictionary_learning.trainers import matryoshka_batch_top_k
from sae_lens.saes import jumprelu_sae, matryoshka_batchtopk_sae, sae

GOLDEN = pathlib.Path(__file__).parent
D, N, B, K = 8, 32, 16, 3
EPS, COEFFICIENT, TARGET_L0 = 0.4, 0.3, 5.0
GROUPS = (8, 8, 16)
DEAD = 10_000_000  # tokens, as in dictionary_learning
STEP = 5000  # after every warm-up of theirs


def draw() -> dict[str, np.ndarray]:
  """Weights, rows and silences; thresholds above eps/2.

  Twelve latents are dead and too weak to be kept by TopK, though often positive.
  """
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  W_dec = normal(N, D)
  W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
  silent = np.zeros((N,), np.int64)
  silent[rng.permutation(N)[:12]] = DEAD
  W_enc = (W_dec + 0.3 * normal(N, D)) * np.where(silent, 0.2, 1)[:, None]
  return {
    "x": 2 * normal(B, D),
    "silent": silent,
    "W_enc": W_enc.astype(np.float32),
    "b_enc": 0.2 * normal(N),
    "W_dec": W_dec,
    "b_dec": 0.3 * normal(D),
    "theta": (0.3 + 0.5 * rng.random(N)).astype(np.float32),
    "b_gate": 0.3 * normal(N),
    "b_mag": 0.3 * normal(N),
    "r_mag": 0.3 * normal(N),
  }


GIVEN = draw()
X = torch.tensor(GIVEN["x"])


def compute() -> dict[str, np.ndarray]:
  """Every case."""
  silent = torch.tensor(GIVEN["silent"])
  common = {"steps": 30_000, "activation_dim": D, "dict_size": N}
  common |= {"layer": 0, "lm_name": "", "device": "cpu"}
  linear = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight.T",
    "b_dec": "b_dec",
  }
  plain = {"W_enc": "W_enc.T", "b_enc": "b_enc"}
  plain |= {"W_dec": "W_dec", "b_dec": "b_dec"}
  jump = {**plain, "theta": "threshold"}
  gated = {
    "W_enc": "encoder.weight",
    "W_dec": "decoder.weight.T",
    "b_dec": "decoder_bias",
    "b_gate": "gate_bias",
    "b_mag": "mag_bias",
    "r_mag": "r_mag",
  }
  top = {**common, "k": K}
  found = {}

  def dictionary(case, trainer, names, dead=True):
    if dead:
      trainer.num_tokens_since_fired = silent.clone()
    loss = lambda: trainer.loss(X, step=STEP)
    found.update(result(case, trainer.ae, names, loss))

  dictionary("topk", trainers.top_k.TopKTrainer(**top), linear)
  dictionary("batchtopk", trainers.batch_top_k.BatchTopKTrainer(**top), linear)
  fractions = [size / N for size in GROUPS]
  nested = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer(
    **top, group_fractions=fractions
  )
  dictionary("matryoshka", nested, plain)
  learned = trainers.jumprelu.JumpReluTrainer(
    **common,
    bandwidth=EPS,
    sparsity_penalty=COEFFICIENT,
    target_l0=TARGET_L0,
  )
  dictionary("jumprelu_post_jump", learned, jump)
  heads = trainers.gdm.GatedSAETrainer(**common, l1_penalty=COEFFICIENT)
  dictionary("gated", heads, gated, dead=False)

  for mode in ("step", "quadratic", "tanh"):
    for ste_to_input in (False, True):
      cfg = jumprelu_sae.JumpReLUTrainingSAEConfig(
        d_in=D,
        d_sae=N,
        apply_b_dec_to_input=False,
        jumprelu_bandwidth=EPS,
        jumprelu_sparsity_loss_mode=mode,
        jumprelu_ste_to_input=ste_to_input,
        target_l0=TARGET_L0,
        pre_act_loss_coefficient=COEFFICIENT if mode == "tanh" else None,
      )
      lens = jumprelu_sae.JumpReLUTrainingSAE(cfg)
      reach = "_to_input" if ste_to_input else ""
      found.update(lens_result(f"jumprelu_{mode}{reach}", lens, jump))
  cfg = matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig(
    d_in=D,
    d_sae=N,
    apply_b_dec_to_input=True,
    k=K,
    matryoshka_widths=np.cumsum(GROUPS).tolist(),
    rescale_acts_by_decoder_norm=False,
    aux_loss_coefficient=0.0,
  )
  lens = matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE(cfg)
  found.update(lens_result("matryoshka_sum", lens, plain))
  return found


def lens_result(case: str, model, names) -> dict[str, np.ndarray]:
  """Of a SAELens model with every latent dead, its coefficient full."""
  given = sae.TrainStepInput(
    sae_in=X,
    coefficients={"l0": COEFFICIENT},
    dead_neuron_mask=torch.ones(N, dtype=torch.bool),
    n_training_steps=STEP,
    is_logging_step=False,
  )
  loss = lambda: model.training_forward_pass(given).loss
  return result(case, model, names, loss)


def result(case: str, model, names, loss) -> dict[str, np.ndarray]:
  """The loss and its gradients with the common weights.

  `names`: from ours to the peer's, with ".T" where theirs is transposed.
  """
  for ours, theirs in names.items():
    value = torch.tensor(GIVEN[ours])
    parameter = model.get_parameter(theirs.removesuffix(".T"))
    parameter.data = value.T.clone() if theirs.endswith(".T") else value
  total = loss()
  total.backward()
  found = {f"{case}/loss": total.detach().numpy()}
  for ours, theirs in names.items():
    gradient = model.get_parameter(theirs.removesuffix(".T")).grad.numpy()
    found[f"{case}/{ours}"] = gradient.T if theirs.endswith(".T") else gradient
  return found


def main() -> None:
  torch.set_num_threads(1)
  given = {
    name if name in ("x", "silent") else f"weights/{name}": value
    for name, value in GIVEN.items()
  }
  arrays = {
    name: np.ascontiguousarray(value)
    for name, value in {**given, **compute()}.items()
  }
  names = ("sae-lens", "dictionary-learning", "torch")
  versions = {name: importlib.metadata.version(name) for name in names}
  safetensors.numpy.save_file(arrays, GOLDEN / "peers.safetensors", versions)


if __name__ == "__main__":
  main()
