"""Chooses between the XLA, the Pallas and the C++ form of an op.

The choice is a setting of the thread that traces, and part of the key of
`jax.jit`'s caches: a jitted function is traced anew where it changed.

    with dispatch.kernels("xla"):
      ...

An op without a kernel for its platform, dtype or shape runs its XLA form,
whatever the setting.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import jax

from saejax.kernels import native as library

Kernels = Literal["auto", "xla", "pallas"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """Which form of an op runs.

  Attributes:
    kernels: "auto" runs a kernel on a TPU where its shape is one that it was
      made for; "pallas" runs it on a TPU wherever it is able to; "xla" never.
    interpret: how kernels are simulated on a machine without a TPU, for tests:
      a `pltpu.InterpretParams`, or True; False does not simulate them.
    native: whether an op runs its C++ form on a CPU, where it has one.
  """

  kernels: Kernels = "auto"
  interpret: Any = False
  native: bool = False


_setting = jax.make_user_context(Setting())


@contextlib.contextmanager
def kernels(
  kernels: Kernels, *, interpret: Any = False, native: bool = False
) -> Iterator[None]:
  """Sets the form of the ops that are traced inside the block.

  Args:
    kernels: "auto", "xla" or "pallas"; see `Setting`.
    interpret: how kernels are simulated, for tests; see `Setting`.
    native: whether to run the C++ forms on a CPU; see `native.load`, which is
      called for them.

  Raises:
    ValueError: an unknown name.
    InputError: the C++ forms cannot be had.
  """
  if kernels not in get_args(Kernels):
    raise ValueError(f"kernels must be in {get_args(Kernels)}, got {kernels!r}")
  if native:
    library.load()
  with _setting(Setting(kernels=kernels, interpret=interpret, native=native)):
    yield


def current() -> Setting:
  """The setting under which ops are traced now."""
  return _setting.value


def run(
  *args: jax.Array,
  xla: Callable,
  tpu: Callable | None = None,
  native: Callable | None = None,
) -> Any:
  """Runs one form of an op on its arrays.

  Args:
    *args: arrays.
    xla: the form in plain JAX.
    tpu: the Pallas form, which also takes `interpret`; None where there is none
      for these dtypes and shapes.
    native: the C++ form; None likewise.
  """
  setting = current()
  if native is not None and setting.native:
    return jax.lax.platform_dependent(*args, cpu=native, default=xla)
  if tpu is None or setting.kernels == "xla":
    return xla(*args)
  if setting.interpret:
    return tpu(*args, interpret=setting.interpret)
  return jax.lax.platform_dependent(*args, tpu=tpu, default=xla)
