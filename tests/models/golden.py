"""Golden files of the model families, as model folders and expectations."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy
from absl.testing import parameterized

from saejax import errors
from saejax.models import family, taps
from saejax.models import model as model_lib

FILES = pathlib.Path(__file__).resolve().parents[1] / "golden"
SMALL = (  # of width 16, with every site
  "gemma2_caps_windows",
  "gemma3_text_local_global",
  "gemma_shared_key",
  "gpt_neox_parallel",
  "gpt_neox_sequential_tied",
  "mistral_windows",
  "phi3_longrope",
  "phi3_windows_part_rotated",
  "qwen2_tied",
  "qwen2_yarn_some_windows",
  "qwen3_dynamic",
)
CASES = (
  "bert",
  "bert_no_pooler_relu",
  "gpt2",
  "gpt2_bare",
  "gpt2_untied_scaled",
  "llama_gqa_tied",
  "llama_linear_rope",
  "llama_mha_biased",
  "llama_scaled_rope",
  *SMALL,
)
DECODERS = tuple(case for case in CASES if not case.startswith("bert"))
# Content of a JSON file that no model has, by what is wrong with it.
HOSTILE = {
  "nested too deep": b'{"a":' * 100_000,
  "lists too deep": b"[" * 100_000,
  "a number": b"5",
  "null": b"null",
  "a list": b"[{}]",
  "not a value": b"NaN",
  "no UTF-8": b'{"a": "\xff"}',
  "cut": b'{"model_type": "be',
  "nothing": b"",
  "digits": b'{"a": ' + b"9" * 5000 + b"}",
}
# What the records of the first families hold.
FIVE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def sites(config: model_lib.Config) -> list[str]:
  """Names of every site of a model."""
  return [
    taps.resolve(config, layer, point).name
    for point in model_lib.FAMILIES[config.family].points(config)
    for layer in (
      [None] if point in family.OUTER_POINTS else range(config.layers)
    )
  ]


def expected(name: str) -> dict[str, np.ndarray]:
  """What transformers computed, and the batch it computed it for."""
  tensors = safetensors.numpy.load_file(FILES / f"models_{name}.safetensors")
  return {
    key.removeprefix("golden/"): value
    for key, value in tensors.items()
    if key.startswith("golden/")
  }


def config(name: str) -> dict:
  path = FILES / f"models_{name}.safetensors"
  with safetensors.safe_open(path, framework="numpy") as file:
    return json.loads(file.metadata()["config"])


def weights(name: str) -> dict[str, np.ndarray]:
  tensors = safetensors.numpy.load_file(FILES / f"models_{name}.safetensors")
  return {k: v for k, v in tensors.items() if not k.startswith("golden/")}


def folder(
  path: str | pathlib.Path,
  name: str,
  *,
  settings: Mapping | None = None,
  tensors: Mapping[str, np.ndarray] | None = None,
) -> str:
  """Writes a case as a model folder at `path`.

  Args:
    settings: changes to config.json; None removes one.
    tensors: the weights, where not those of the case.
  """
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  values = config(name) | dict(settings or {})
  values = {k: v for k, v in values.items() if v is not None}
  (path / "config.json").write_text(json.dumps(values))
  saved = weights(name) if tensors is None else dict(tensors)
  saved = {k: np.ascontiguousarray(v) for k, v in saved.items()}
  safetensors.numpy.save_file(saved, path / "model.safetensors")
  return str(path)


class Refusals(parameterized.TestCase):
  """Models in the folder `path` that are refused in one line."""

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path)

  def assert_refused(self, *parts: str, dtype: str = "float32"):
    with self.assertRaises(errors.InputError) as caught:
      model_lib.load(str(self.path), dtype=dtype)
    message = str(caught.exception)
    self.assertStartsWith(message, "harvest.model=")
    self.assertNotIn("\n", message)
    for part in parts:
      self.assertIn(part, message)
