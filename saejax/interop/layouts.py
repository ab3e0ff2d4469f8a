"""Releases of one file with a linear encoder and decoder under other names.

Each is a `Layout`: the names and axes of its tensors, how it is recognised, and
what its names say of the site. They are read only.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from saejax.errors import InputError
from saejax.interop import kinds, reference
from saejax.interop.files import Files, Tensors
from saejax.interop.formats import Forward, Hints
from saejax.interop.record import FIELD, Record, Site, Source


@dataclasses.dataclass(frozen=True)
class Layout:
  """A release with ReLU, or with TopK of a k that its name gives.

  Attributes:
    name: of the format.
    keys: our name of each tensor -> its name and axes in the file.
    subtract: whether b_dec is subtracted before encoding.
    recognises: whether the name of a file, and those beside it, are of this
      release.
    site: what the name of the repository and file says.
    k: pattern of k in the name; "" for ReLU.
  """

  name: str
  keys: Mapping[str, tuple[str, str]]
  subtract: bool
  recognises: Callable[[str, Files], bool]
  site: Callable[[Files], Site]
  k: str = ""

  def matches(self, files: Files) -> bool:
    """Whether there is one file of this release with its tensors.

    Args:
      files: the files.
    """
    name = self._file(files)
    if name is None or not self.recognises(name, files):
      return False
    return files.keys(name) >= {key for key, _ in self.keys.values()}

  def read(self, files: Files, hints: Hints) -> Record:
    """Reads an SAE.

    Args:
      files: the files.
      hints: `k`, where the name does not give it; `site`.

    Raises:
      InputError: the file is damaged, or k is unknown.
    """
    t, tensors = self._weights(files)
    k = self._k(files, hints)
    encoder, decoder = self.keys["W_enc"][1], self.keys["W_dec"][1]
    return Record(
      W_enc=t["W_enc"] if encoder == "n d" else t["W_enc"].T,
      b_enc=t["b_enc"],
      W_dec=t["W_dec"] if decoder == "n d" else t["W_dec"].T,
      b_dec=t["b_dec"],
      kind=kinds.Relu() if k is None else kinds.TopK(k),
      subtract_b_dec=self.subtract,
      site=Site(**{**self.site(files).known(), **hints.site}),
      source=Source(self.name, "", tensors.dtype, files.name),
    )

  def forward(self, files: Files, hints: Hints) -> Forward:
    """The forward pass.

    Args:
      files, hints: as for `read`.
    """
    k = self._k(files, hints)
    t = {key: np.float64(v) for key, v in self._weights(files)[0].items()}
    axes = {"n d": "bd,nd->bn", "d n": "bd,dn->bn"}[self.keys["W_enc"][1]]
    back = {"n d": "bn,nd->bd", "d n": "bn,dn->bd"}[self.keys["W_dec"][1]]

    def run(x):
      c = x - t["b_dec"] if self.subtract else x
      a = np.einsum(axes, c, t["W_enc"]) + t["b_enc"]
      z = reference.relu(a)
      if k is not None:
        z = reference.top(a, z, k)
      return z, np.einsum(back, z, t["W_dec"]) + t["b_dec"]

    return run

  def _file(self, files: Files) -> str | None:
    names = files.matching((".pt", ".pth"))
    return names[0] if len(names) == 1 else None

  def _weights(self, files: Files) -> tuple[dict[str, np.ndarray], Tensors]:
    name = self._file(files)
    if name is None:
      rule = "must have one .pt or .pth file"
      raise InputError(FIELD, files.name, rule, "give the path of one")
    tensors = files.tensors(name)
    found = tensors.weights(dict(self.keys.values()))
    return {ours: found[key] for ours, (key, _) in self.keys.items()}, tensors

  def _k(self, files: Files, hints: Hints) -> int | None:
    if not self.k:
      return None
    found = re.search(self.k, files.name)
    k = hints.k or (found and int(found[1]))
    if not k:
      rule = "has k in the name of its repository alone"
      raise InputError(
        FIELD, files.name, rule, "load it by that name, or pass k"
      )
    return k


def _resid_post(model: str, pattern: str, context: int | None = None):
  def site(files: Files) -> Site:
    layer = re.search(pattern, files.name)
    hook = f"blocks.{layer[1]}.hook_resid_post" if layer else None
    return Site(model or None, hook, None, context)

  return site


def _qwen(files: Files) -> Site:
  found = re.search(r"SAE-Res-(.+?)-W\d+K-L0_\d+", files.name)
  model = f"Qwen/{found[1]}" if found else ""
  return _resid_post(model, r"layer(\d+)\.sae\.pt", 1024)(files)


def _goodfire(files: Files) -> Site:
  found = re.search(r"(Llama-[\w.-]+?-Instruct)-SAE-l(\d+)", files.name)
  if not found:
    return Site()
  return Site(f"meta-llama/{found[1]}", f"blocks.{found[2]}.hook_resid_post")


def _hook_z(files: Files) -> Site:
  config = next(name for name in files.names if name.endswith("_cfg.json"))
  hook = files.json(config).get("act_name")
  return Site("gpt2", hook, None, 128, True, "Skylion007/openwebtext")


def _linear(encoder: str, decoder: str) -> dict[str, tuple[str, str]]:
  return {
    "W_enc": (f"{encoder}.weight", "n d"),
    "b_enc": (f"{encoder}.bias", "n"),
    "W_dec": (f"{decoder}.weight", "d n"),
    "b_dec": (f"{decoder}.bias", "d"),
  }


def _direct(encoder: str, decoder: str) -> dict[str, tuple[str, str]]:
  return {
    "W_enc": ("W_enc", encoder),
    "b_enc": ("b_enc", "n"),
    "W_dec": ("W_dec", decoder),
    "b_dec": ("b_dec", "d"),
  }


GOODFIRE = Layout(
  "goodfire",
  _linear("encoder_linear", "decoder_linear"),
  subtract=False,
  recognises=lambda name, files: True,
  site=_goodfire,
)
DEEPSEEK_R1 = Layout(
  "deepseek_r1",
  _linear("encoder", "decoder"),
  subtract=False,
  recognises=lambda name, files: name != "ae.pt",
  site=_resid_post(
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", r"l(\d+)\.pt", 1024
  ),
)
QWEN_SCOPE = Layout(
  "qwen_scope",
  _direct("n d", "d n"),
  subtract=False,
  recognises=lambda name, files: name.endswith(".sae.pt"),
  site=_qwen,
  k=r"-L0_(\d+)",
)
HOOK_Z = Layout(
  "hook_z",
  _direct("d n", "n d"),
  subtract=True,
  recognises=lambda name, files: files.has(
    name.removesuffix(".pt") + "_cfg.json"
  ),
  site=_hook_z,
)
