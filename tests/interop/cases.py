"""The golden cases: files of real clients, and what these compute with them."""

import dataclasses
import pathlib

import numpy as np
from safetensors import numpy as safetensors

from saejax.interop import formats, names
from saejax.interop.files import Files
from saejax.interop.formats import Hints
from tests import shared

FOLDER = shared.ROOT / "tests" / "golden" / "interop"
SCALE = 1.7  # of make_golden.py
_GEMMA = "layer_3/width_16k/average_l0_59"
# Case -> repository it stands for, and path in it.
PLACES = {
  "gemma_scope": ("google/gemma-scope-2b-pt-res", _GEMMA),
  "gemma_scope_transcoder": ("google/gemma-scope-2b-pt-transcoders", _GEMMA),
  "gemma_scope_2": (
    "google/gemma-scope-2-1b-pt",
    "resid_post/layer_3_width_16k_l0_small",
  ),
  "gemma_scope_2_affine": (
    "google/gemma-scope-2-1b-pt",
    "transcoder/layer_3_width_16k_l0_small_affine",
  ),
  "qwen_scope": ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_3", "layer3.sae.pt"),
  "deepseek_r1": ("qresearch/DeepSeek-SAE", "SAE-l19.pt"),
  "goodfire": (
    "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
    "Llama-3.1-8B-Instruct-SAE-l19.pth",
  ),
  "circuit_tracer": ("mwhanna/qwen3-4b-transcoders", "layer_3.safetensors"),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A golden case; x, z and x_hat are what a client was given and gave."""

  name: str
  files: Files
  hints: Hints
  x: np.ndarray
  z: np.ndarray
  x_hat: np.ndarray
  client: str

  def read(self) -> names.Found:
    """The record, with the format found by its files."""
    format = formats.detect(self.files)
    record = formats.get(format).read(self.files, self.hints)
    return names.Found(record, format, self.files, self.hints)


def every() -> list[str]:
  """Names of all cases."""
  return sorted(path.name for path in FOLDER.iterdir())


def path(name: str) -> pathlib.Path:
  """The folder or file that a user would name."""
  return FOLDER / name / PLACES.get(name, ("", ""))[1]


def case(name: str) -> Case:
  """One case."""
  folder = FOLDER / name
  expected = safetensors.load_file(folder / "expected.safetensors")
  with open(folder / "expected.safetensors", "rb") as file:
    client = file.read(400).split(b'"client":"')[1].split(b'"')[0].decode()
  place = "/".join(filter(None, PLACES.get(name, (name, ""))))
  hints = Hints(scale=SCALE) if name.endswith("_scaled") else Hints()
  return Case(name, Files(path(name), place), hints, **expected, client=client)


def assert_same(test, want, got, z_atol=1e-5) -> None:
  """Latents and outputs agree, but where a latent is at its threshold."""
  z, x_hat = (np.asarray(a, np.float64) for a in want)
  z_got, x_hat_got = (np.asarray(a, np.float64) for a in got)
  flipped = (z != 0) != (z_got != 0)
  test.assertEqual(flipped.sum(), 0)
  scale = max(1.0, np.abs(x_hat).max())
  np.testing.assert_allclose(z_got, z, rtol=1e-5, atol=z_atol)
  np.testing.assert_allclose(x_hat_got, x_hat, rtol=1e-5, atol=1e-5 * scale)
