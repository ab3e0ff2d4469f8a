"""Makes tests/golden/torch_*.pt: small files of torch.save, and their values.

Needs PyTorch, which the library does not:
  pip install torch==2.13.0 && python tests/golden/make_torch_files.py

torch_zip.pt and torch_old.pt hold the same object in the two forms, and
torch_values.safetensors its tensors by the path of their keys.
"""

import argparse
import pathlib

import safetensors.torch
import torch

GOLDEN = pathlib.Path(__file__).parent
DTYPES = {
  "double": torch.float64,
  "float": torch.float32,
  "half": torch.float16,
  "bfloat16": torch.bfloat16,
  "long": torch.int64,
  "int": torch.int32,
  "short": torch.int16,
  "char": torch.int8,
  "byte": torch.uint8,
  "bool": torch.bool,
}


def tensors() -> dict[str, torch.Tensor]:
  """Tensors of every type, and views of one storage."""
  generator = torch.Generator().manual_seed(0)
  values = torch.randint(0, 100, (3, 5), generator=generator)
  found = {name: values.to(dtype) for name, dtype in DTYPES.items()}
  shared = torch.randn(4, 6, generator=generator)
  return found | {
    "whole": shared,
    "part": shared[1:3, 2:],
    "turned": shared.T,
    "column": shared[:, 3],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
  }


def saved() -> dict:
  """The object: a state dict with parameters, and settings around it."""
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
  return {
    "model": module.state_dict(),
    "parameter": module[0].weight,
    "tensors": tensors(),
    "args": argparse.Namespace(
      layers=2, name="n\u00e9", rates=(0.1, None, True)
    ),
    "steps": [1, -2, 2**40, 2**70, {"a": 1.5}],
  }


if __name__ == "__main__":
  made = saved()
  torch.save(made, GOLDEN / "torch_zip.pt")
  torch.save(
    made, GOLDEN / "torch_old.pt", _use_new_zipfile_serialization=False
  )
  flat = {f"model/{name}": value for name, value in made["model"].items()}
  flat |= {f"tensors/{name}": value for name, value in made["tensors"].items()}
  safetensors.torch.save_file(
    {name: value.clone().contiguous() for name, value in flat.items()},
    GOLDEN / "torch_values.safetensors",
    {"torch": torch.__version__},
  )
