"""Makes tests/golden/interop/: files that real clients wrote, and their outputs.

Needs the environment of `make clients`:
  .venv-clients/bin/python tests/clients/make_golden.py

Every case is a folder with the files of a client and expected.safetensors: rows
x, their latents z and outputs x_hat, as the client computes them after loading
its files. Widths are 8 and 16; biases, norms and thresholds are drawn so that a
wrong fold or a wrong side of a threshold shows.
"""

import dataclasses
import json
import pathlib
import shutil
import zlib

import numpy as np
import safetensors.numpy
import torch
from client import DICTIONARIES, run
from sae_lens import registry
from sparsify import SparseCoder, SparseCoderConfig

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "interop"
D, N, K, ROWS, OUT = 8, 16, 3, 24, 6
SCALE = 1.7


def draw(case: str, *shape: int, scale: float = 1.0) -> torch.Tensor:
  """Normal numbers that depend on the case and the shape."""
  rng = np.random.default_rng(zlib.crc32(f"{case}{shape}{scale}".encode()))
  return torch.tensor(scale * rng.standard_normal(shape), dtype=torch.float32)


def fill(case: str, module: torch.nn.Module) -> None:
  """Random weights: biases of half their size, thresholds above and below."""
  for name, parameter in module.named_parameters():
    last = name.rpartition(".")[2]
    scale = 0.5 if parameter.ndim == 1 else 0.8
    values = draw(case + name, *parameter.shape, scale=scale)
    if last == "threshold":
      values = values.abs() + 0.1
    parameter.data = values
  module.eval()


def expect(
  case: str, client: str, folder: pathlib.Path, width: int = D
) -> None:
  x = draw(case + "rows", ROWS, width, scale=1.2).numpy() + np.float32(0.3)
  z, x_hat = run(client, folder, x)
  z = z.toarray() if hasattr(z, "toarray") else z
  active = (z != 0).mean()
  if not 0.02 < active < 0.9:
    raise ValueError(f"{case}: {active:.0%} of the latents are active")
  safetensors.numpy.save_file(
    {
      "x": x,
      "z": np.ascontiguousarray(z),
      "x_hat": np.ascontiguousarray(x_hat),
    },
    folder / "expected.safetensors",
    {"client": client},
  )
  print(f"{case}: {active:.0%} active")


def folder_of(case: str) -> pathlib.Path:
  folder = GOLDEN / case
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  return folder


# --- SAELens -----------------------------------------------------------------


def lens(case: str, architecture: str, **settings) -> None:
  """An inference SAE in the files of version 6."""
  sae_class, config_class = registry.get_sae_class(architecture)
  sae = sae_class(config_class(d_in=D, d_sae=N, **settings))
  sae.cfg.metadata.model_name = "toy"
  sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
  fill(case, sae)
  if architecture == "matching_pursuit":
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
  folder = folder_of(case)
  sae.save_model(folder)
  expect(case, "saelens", folder)


def lens_training(case: str, architecture: str, fold: bool, **settings) -> None:
  """A training checkpoint, with what its inference export gives."""
  sae_class, config_class = registry.get_sae_training_class(architecture)
  sae = sae_class(config_class(d_in=D, d_sae=N, k=K, **settings))
  fill(case, sae)
  sae.topk_threshold = torch.tensor(0.8, dtype=torch.double)
  folder = folder_of(case)
  sae.save_model(folder)
  if fold:
    sae.fold_activation_norm_scaling_factor(SCALE)
  exported = folder_of(f"{case}_exported")
  sae.save_inference_model(exported)
  expect(case, "saelens", exported)
  shutil.copy(exported / "expected.safetensors", folder)


def lens_old(case: str, tensors: dict, **cfg) -> None:
  """A flat cfg.json of versions before 6."""
  flat = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu"}
  flat |= {"model_name": "toy", "hook_point": "blocks.3.hook_resid_post"}
  folder = folder_of(case)
  (folder / "cfg.json").write_text(json.dumps({**flat, **cfg}, indent=1))
  tensors = {k: v.contiguous() for k, v in tensors.items()}
  arrays = {key: value.numpy() for key, value in tensors.items()}
  safetensors.numpy.save_file(arrays, folder / "sae_weights.safetensors")
  expect(case, "saelens", folder)


def plain(case: str, *, out: int = D, **more: torch.Tensor) -> dict:
  return {
    "W_enc": draw(case + "W_enc", D, N, scale=0.8),
    "b_enc": draw(case + "b_enc", N, scale=0.5),
    "W_dec": draw(case + "W_dec", N, out, scale=0.8),
    "b_dec": draw(case + "b_dec", out, scale=0.5),
    **more,
  }


def make_lens() -> None:
  lens("saelens_standard", "standard", apply_b_dec_to_input=True)
  lens("saelens_standard_no_bias", "standard", apply_b_dec_to_input=False)
  for name in ("layer_norm", "constant_norm_rescale"):
    lens(f"saelens_{name}", "standard", normalize_activations=name)
  for name in ("jumprelu", "gated"):
    lens(f"saelens_{name}", name, apply_b_dec_to_input=False)
    lens(f"saelens_{name}_bias", name, apply_b_dec_to_input=True)
  for name in ("topk", "abstopk"):
    for rescale in (False, True):
      case = f"saelens_{name}" + "_rescale" * rescale
      lens(case, name, k=K, rescale_acts_by_decoder_norm=rescale)
  lens(
    "saelens_topk_layer_norm", "topk", k=K, normalize_activations="layer_norm"
  )
  lens("saelens_pursuit", "matching_pursuit", residual_threshold=0.5)
  lens(
    "saelens_pursuit_steps",
    "matching_pursuit",
    residual_threshold=0.0,
    max_iterations=4,
    stop_on_duplicate_support=False,
    apply_b_dec_to_input=False,
  )
  for jump in ("", "jumprelu_"):
    for skip in ("", "skip_"):
      name = f"{jump}{skip}transcoder"
      lens(f"saelens_{name}", name, d_out=OUT, apply_b_dec_to_input=False)


def make_lens_checkpoints() -> None:
  for rescale in (False, True):
    tail = "_rescale" * rescale
    both = {"rescale_acts_by_decoder_norm": rescale}
    lens_training(f"saelens_batchtopk{tail}", "batchtopk", False, **both)
  lens_training(
    "saelens_batchtopk_scaled",
    "batchtopk",
    True,
    rescale_acts_by_decoder_norm=True,
    normalize_activations="expected_average_only_in",
  )
  lens_training(
    "saelens_matryoshka",
    "matryoshka_batchtopk",
    False,
    matryoshka_widths=[4, 8, N],
  )


def make_lens_old() -> None:
  lens_old("saelens_old", plain("old"), normalize_activations=None)
  lens_old(
    "saelens_old_topk",
    plain("old_topk"),
    activation_fn_str="topk",
    activation_fn_kwargs={"k": K},
    normalize_activations="layer_norm",
    sae_lens_version="5.3.0",
  )
  weights = plain("old_gated")
  weights["b_mag"] = weights.pop("b_enc")
  weights |= {k: draw("old" + k, N, scale=0.5) for k in ("b_gate", "r_mag")}
  lens_old("saelens_old_gated", weights, architecture="gated")
  theta = draw("old_theta", N).abs()
  lens_old(
    "saelens_old_jumprelu",
    plain("old_jump", threshold=theta),
    architecture="jumprelu",
    apply_b_dec_to_input=False,
    normalize_activations=False,
  )


# --- dictionary_learning -----------------------------------------------------


def make_dictionaries() -> None:
  groups = {"group_sizes": [4, 4, 8]}
  ranked = {"k": K}
  settings_of = {
    "AutoEncoderTopK": ranked,
    "BatchTopKSAE": ranked,
    "MatryoshkaBatchTopKSAE": ranked | groups,
  }
  for name, kind in DICTIONARIES.items():
    settings = settings_of.get(name, {})
    case = f"dictionary_learning_{name}"
    model = kind(D, N, **settings)
    fill(case, model)
    if name.endswith("BatchTopKSAE"):
      model.threshold.fill_(0.9)
    model.scale_biases(SCALE) if hasattr(model, "scale_biases") else None
    folder = folder_of(case)
    torch.save(model.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": N}
    trainer |= {"layer": 3, "lm_name": "toy", "submodule_name": "resid_post_3"}
    trainer |= {"k": K} if "k" in settings else {}
    config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    expect(case, "dictionary_learning", folder)


# --- sparsify ----------------------------------------------------------------


def make_sparsify() -> None:
  for case, settings in {
    "sparsify_topk": {},
    "sparsify_groupmax": {"activation": "groupmax", "k": 4},
    "sparsify_transcoder": {"transcode": True, "skip_connection": True},
    "sparsify_skip": {"skip_connection": True, "num_latents": N},
  }.items():
    base = {"k": K, "expansion_factor": N // D}
    cfg = SparseCoderConfig(**{**base, **settings})
    coder = SparseCoder(D, cfg)
    fill(case, coder)
    folder = folder_of(case)
    coder.save_to_disk(folder)
    expect(case, "sparsify", folder)


# --- releases that SAELens reads ----------------------------------------------


@dataclasses.dataclass(frozen=True)
class Release:
  """A release: its client, the file in it, and how its tensors lie."""

  client: str
  file: str
  keys: dict[str, str]  # ours -> "name", or "name.T" where transposed
  out: int = D


LINEAR = {
  "W_enc": "encoder.weight.T",
  "b_enc": "encoder.bias",
  "W_dec": "decoder.weight.T",
  "b_dec": "decoder.bias",
}
LOWER = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec"}
SAME = {key: key for key in LOWER}
RELEASES = {
  "gemma_scope": Release(
    "gemma_scope",
    "layer_3/width_16k/average_l0_59/params.npz",
    {**SAME, "threshold": "threshold"},
  ),
  "gemma_scope_transcoder": Release(
    "gemma_scope_transcoder",
    "layer_3/width_16k/average_l0_59/params.npz",
    {**SAME, "threshold": "threshold"},
    OUT,
  ),
  "gemma_scope_2": Release(
    "gemma_scope_2",
    "resid_post/layer_3_width_16k_l0_small/params.safetensors",
    {**LOWER, "threshold": "threshold"},
  ),
  "gemma_scope_2_affine": Release(
    "gemma_scope_2",
    "transcoder/layer_3_width_16k_l0_small_affine/params.safetensors",
    {**LOWER, "threshold": "threshold", "W_skip": "affine_skip_connection"},
    OUT,
  ),
  "qwen_scope": Release(
    "qwen_scope",
    "layer3.sae.pt",
    {**SAME, "W_enc": "W_enc.T", "W_dec": "W_dec.T"},
  ),
  "deepseek_r1": Release("deepseek_r1", "SAE-l19.pt", LINEAR),
  "goodfire": Release(
    "goodfire",
    "Llama-3.1-8B-Instruct-SAE-l19.pth",
    {k: v.replace("coder.", "coder_linear.") for k, v in LINEAR.items()},
  ),
  "circuit_tracer": Release(
    "circuit_tracer",
    "layer_3.safetensors",
    {**SAME, "W_enc": "W_enc.T"},
  ),
}


def make_releases() -> None:
  for case, release in RELEASES.items():
    folder = folder_of(case)
    weights = plain(case, out=release.out)
    weights["threshold"] = draw(case + "theta", N).abs()
    weights["W_skip"] = draw(case + "skip", D, release.out)
    tensors = {}
    for ours, theirs in release.keys.items():
      value = weights[ours]
      turned = value.T.contiguous() if theirs.endswith(".T") else value
      tensors[theirs.removesuffix(".T")] = turned
    path = folder / release.file
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: value.numpy() for key, value in tensors.items()}
    if path.suffix == ".npz":
      np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
      safetensors.numpy.save_file(arrays, path)
    else:
      torch.save(tensors, path)
    if case == "circuit_tracer":
      settings = {"d_model": D, "d_feature": N, "batch_size": 128}
      lines = [f"{k}:\n  value: {v}\n" for k, v in settings.items()]
      (folder / "wandb-config.yaml").write_text("".join(lines))
      (folder / "config.yaml").write_text("model_name: toy\n")
    expect(case, release.client, folder)


def main() -> None:
  make_lens()
  make_lens_checkpoints()
  make_lens_old()
  make_dictionaries()
  make_sparsify()
  make_releases()


if __name__ == "__main__":
  main()
