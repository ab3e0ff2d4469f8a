"""The published formats: how each is recognised, read, written and defined.

A format is a module or object with

    matches(files)         whether a folder has its files, by names and keys
    read(files, hints)     the record of a folder
    forward(files, hints)  the forward pass of its authors, in NumPy
    write(record)          the files of a record; absent where it is read only

`forward` reads the tensors itself and shares no code with `read` but that of the
configuration: what `certificate` compares is two ways from the same bytes.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.interop import kinds, refused
from saejax.interop.files import Files
from saejax.interop.record import FIELD, Record

# Maps rows x [b, d] to latents z [b, n] and outputs x_hat [b, d_out].
Forward = Callable[
  [Float[np.ndarray, "b d"]],
  tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b d_out"]],
]


@dataclasses.dataclass(frozen=True)
class Hints:
  """What the files of some releases leave out.

  Attributes:
    scale: factor of x that was applied in training and is not folded.
    k: active latents per row.
    site: fields of `record.Site` that a registry gives.
  """

  scale: float | None = None
  k: int | None = None
  site: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Format(Protocol):
  """A format; see the module."""

  def matches(self, files: Files) -> bool: ...

  def read(self, files: Files, hints: Hints) -> Record: ...

  def forward(self, files: Files, hints: Hints) -> Forward: ...


class Lossy(InputError):
  """A conversion that would lose something, which `--allow_lossy` may name.

  Attributes:
    loss: its name.
  """

  def __init__(self, loss: str, what: str):
    self.loss = loss
    rule = f"{what}, which loses something"
    remedy = f"pass --allow_lossy={loss}, or choose a format that has it"
    super().__init__("allow_lossy", "", rule, remedy)

  def __reduce__(self):
    return type(self), (self.loss, self.rule)


def without(name: str, kind: kinds.Kind) -> InputError:
  """The error for an activation that a format has not.

  It is a `Lossy` one where latents are ranked, since thresholds can replace ranks.

  Args:
    name: the format, as its authors call it.
    kind: the activation.
  """
  what = f"{name} has no {kind}"
  unsigned = isinstance(kind, kinds.TopK) and not kind.signed
  if unsigned or isinstance(kind, kinds.GroupMax):
    return Lossy("threshold", what)
  return InputError("format", name, what, "choose saelens or saejax")


# Name -> module, or module:object. The first that matches is taken if no other
# does; those that are only refused come last.
NAMES = {
  "saelens": "saelens",
  "dictionary_learning": "dictionary_learning",
  "sparsify": "sparsify",
  "gemma_scope": "gemma_scope",
  "gemma_scope_2": "gemma_scope_2",
  "llama_scope": "llama_scope",
  "llama_scope_r1": "llama_scope_r1",
  "llamascopium": "llamascopium",
  "openai": "openai",
  "goodfire": "layouts:GOODFIRE",
  "deepseek_r1": "layouts:DEEPSEEK_R1",
  "qwen_scope": "layouts:QWEN_SCOPE",
  "hook_z": "layouts:HOOK_Z",
  "circuit_tracer": "circuit_tracer",
}


def get(name: str) -> Any:
  """Returns a format.

  Args:
    name: a key of `NAMES`.

  Raises:
    InputError: there is no such format.
  """
  if name not in NAMES:
    rule = f"must be one of {', '.join(NAMES)}"
    raise InputError("format", name, rule, "choose one")
  module, _, inner = NAMES[name].partition(":")
  found = importlib.import_module(f"saejax.interop.{module}")
  return getattr(found, inner) if inner else found


def writable() -> list[str]:
  """Names of the formats that are written."""
  return [name for name in NAMES if hasattr(get(name), "write")]


def detect(files: Files) -> str:
  """Returns the name of the format of some files.

  Args:
    files: the files.

  Raises:
    InputError: no format matches, several do, or it is one that saejax has not.
  """
  refused.check(files)
  found = [name for name in NAMES if get(name).matches(files)]
  if len(found) == 1:
    return found[0]
  rule = "must be the files of one SAE in a format that saejax reads"
  if found:
    rule = f"could be {' or '.join(found)}"
  else:
    some = ", ".join(files.names[:8]) or "nothing"
    rule += f" ({', '.join(NAMES)}); there is {some}"
  raise InputError(
    FIELD, files.name, rule, "name its format (format=, --source)"
  )
