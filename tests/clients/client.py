"""Runs published clients: loads a folder with the real library, in PyTorch.

Needs an environment of its own, which the library and its tests do not:
  make clients
  .venv-clients/bin/python tests/clients/client.py [NAME FOLDER ROWS OUT]...

ROWS is a .npy of rows; OUT gets the latents and reconstructions, as .npz. NAME is
a key of `CLIENTS`. Nothing is copied from the clients: they are called.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from dictionary_learning import dictionary
from dictionary_learning.trainers import batch_top_k, top_k
from dictionary_learning.trainers import matryoshka_batch_top_k as matryoshka
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sparsify import SparseCoder

torch.set_num_threads(1)
Pass = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def saelens(folder: pathlib.Path) -> Pass:
  """SAELens' own files, by `SAE.load_from_disk`."""
  return lens_pass(SAE.load_from_disk(folder))


def lens_pass(sae: Any) -> Pass:
  """Latents and outputs of an SAE or transcoder of SAELens."""
  return lambda x: (sae.encode(x), sae(x))


DICTIONARIES = {
  "AutoEncoder": dictionary.AutoEncoder,
  "AutoEncoderNew": dictionary.AutoEncoderNew,
  "GatedAutoEncoder": dictionary.GatedAutoEncoder,
  "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder,
  "AutoEncoderTopK": top_k.AutoEncoderTopK,
  "BatchTopKSAE": batch_top_k.BatchTopKSAE,
  "MatryoshkaBatchTopKSAE": matryoshka.MatryoshkaBatchTopKSAE,
}


def dictionary_learning(folder: pathlib.Path) -> Pass:
  """Dictionaries, by `from_pretrained` of the class in config.json.

  The decoder of AutoEncoder is left as it is, where the client would give its
  rows unit norm and its latents other units.
  """
  config = json.loads((folder / "config.json").read_text())
  name = config["trainer"]["dict_class"]
  more = {"normalize_decoder": False} if name == "AutoEncoder" else {}
  found = DICTIONARIES[name].from_pretrained(str(folder / "ae.pt"), **more)
  return lambda x: (found.encode(x), found(x))


def sparsify(folder: pathlib.Path) -> Pass:
  """Sparse coders, by `load_from_disk`."""
  coder = SparseCoder.load_from_disk(folder)

  def run(x):
    out = coder(x)
    z = torch.zeros(len(x), coder.num_latents)
    z.scatter_(1, out.latent_indices, out.latent_acts)
    return z, out.sae_out

  return run


def through_saelens(loader: str, repo: str) -> Callable[[pathlib.Path], Pass]:
  """Other releases, by SAELens' loader, which gets local files for the hub's.

  A folder in the case's folder has the path in the repository.
  """

  def load(folder: pathlib.Path) -> Pass:
    place = min(
      (p for p in folder.rglob("*") if p.name.startswith("layer")),
      key=lambda p: len(p.parts),
      default=None,
    )
    files = [p for p in folder.iterdir() if p.suffix in (".pt", ".pth")]
    inside = place or files[0]
    while inside.is_dir() and all(p.is_dir() for p in inside.iterdir()):
      inside = next(inside.iterdir())
    name = str(inside.relative_to(folder))
    with local_hub(folder):
      cfg, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](
        repo_id=repo, folder_name=name, device="cpu", cfg_overrides={}
      )
    cfg = loaders.handle_config_defaulting({**cfg, "dtype": "float32"})
    cfg["d_in"], cfg["d_sae"] = state["W_enc"].shape  # some are by the model
    if "d_out" in cfg:
      cfg["d_out"] = state["W_dec"].shape[1]
    config = SAE.get_sae_config_class_for_architecture(cfg["architecture"])
    sae_class = SAE.get_sae_class_for_architecture(cfg["architecture"])
    sae = sae_class(config.from_dict(cfg))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict({k: v.float() for k, v in state.items()})
    return lens_pass(sae)

  return load


@contextlib.contextmanager
def local_hub(folder: pathlib.Path) -> Iterator[None]:
  """Gives files of a folder in place of those of a repository."""

  def download(repo_id, filename, subfolder="", **_):
    path = folder / subfolder / filename
    if not path.exists():
      raise loaders.EntryNotFoundError(filename, mock.Mock())
    return str(path)

  def shapes(repo, filename):
    found = loaders.load_safetensors_weights(folder / filename)
    return {key: list(value.shape) for key, value in found.items()}

  with (
    mock.patch.object(loaders, "hf_hub_download", download),
    mock.patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
  ):
    yield


CLIENTS: dict[str, Callable[[pathlib.Path], Pass]] = {
  "saelens": saelens,
  "dictionary_learning": dictionary_learning,
  "sparsify": sparsify,
  "gemma_scope": through_saelens("gemma_2", "google/gemma-scope-2b-pt-res"),
  "gemma_scope_transcoder": through_saelens(
    "gemma_2_transcoder", "google/gemma-scope-2b-pt-transcoders"
  ),
  "gemma_scope_2": through_saelens("gemma_3", "google/gemma-scope-2-1b-pt"),
  "circuit_tracer": through_saelens("mwhanna_transcoder", "mwhanna/qwen3-4b"),
  "qwen_scope": through_saelens(
    "qwen_scope", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_3"
  ),
  "deepseek_r1": through_saelens("deepseek_r1", "qresearch/DeepSeek-SAE"),
  "goodfire": through_saelens(
    "goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
  ),
}


def run(name: str, folder: pathlib.Path, x: np.ndarray) -> tuple[Any, Any]:
  """Latents and reconstructions of rows.

  Args:
    name: key of `CLIENTS`.
    folder: the files.
    x: rows.
  """
  with torch.no_grad():
    z, x_hat = CLIENTS[name](folder)(torch.tensor(x))
  return z.numpy(), x_hat.numpy()


def main() -> None:
  jobs = iter(sys.argv[1:])
  for name, folder, rows, out in zip(jobs, jobs, jobs, jobs, strict=True):
    z, x_hat = run(name, pathlib.Path(folder), np.load(rows))
    np.savez(out, z=z, x_hat=x_hat)


if __name__ == "__main__":
  main()
