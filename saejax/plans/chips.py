"""Rates and memory of chips, and the slices that can be had of them.

Rates of TPUs are those of jax/_src/tpu_info.py (jax 0.10). Links are what a device
sends around one ring of its slice, both ways together, from Google's "How to Scale
Your Model" (2025), chapter "TPUs"; the two devices of a tpu7x chip share links that
Cloud TPU's page gives the bandwidth of a v5p's, 1,200 GB/s a chip. Slices are those
of Cloud TPU's pages on each kind. `memory` is what the compiler of libtpu 0.0.42.1
lets a program use. H200: bfloat16 matmul and copy as measured (a data sheet says 990
TFLOP/s and 4.8 TB/s), NVLink 4 in one direction.
"""

import dataclasses

from saejax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A kind of chip.

  Attributes:
    name: short name.
    flops: bfloat16 operations per second of a device.
    bandwidth: bytes per second to and from a device's memory.
    memory: bytes of a device that a program may use.
    link: bytes per second around a ring of devices, both ways.
    devices: JAX devices of a chip.
    slices: shapes that can be had, of chips; none for counts.
  """

  name: str
  flops: float
  bandwidth: float
  memory: int
  link: float
  devices: int = 1
  slices: tuple[str, ...] = ()


GIB = 2**30
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = (
  "2x2x1",
  "2x2x2",
  "2x2x4",
  "2x4x4",
  "4x4x4",
  "4x4x8",
  "4x8x8",
  "8x8x8",
  "8x8x16",
  "8x16x16",
)
TPUS = {
  "v5e": Chip(
    name="v5e",
    flops=197e12,
    bandwidth=0.82e12,
    memory=int(15.75 * GIB),
    link=90e9,
    slices=FLAT,
  ),
  "v5p": Chip(
    name="v5p",
    flops=459e12,
    bandwidth=2.46e12,
    memory=int(95.74 * GIB),
    link=180e9,
    slices=(*CUBES, "16x16x16", "16x16x24"),
  ),
  "v6e": Chip(
    name="v6e",
    flops=920e12,
    bandwidth=1.64e12,
    memory=int(31.25 * GIB),
    link=180e9,
    slices=FLAT,
  ),
  "tpu7x": Chip(
    name="tpu7x",
    flops=1155e12,
    bandwidth=3.7e12,
    memory=int(94.75 * GIB),
    link=90e9,
    devices=2,
    slices=CUBES,
  ),
}
H200 = Chip(
  name="h200",
  flops=790e12,
  bandwidth=4.3e12,
  memory=150_754_820_096,
  link=450e9,
)
# Cloud TPU names some slices by their cores instead of their shape.
CORES = {"v5p": 2, "v4": 2}


def check_slice(chip: Chip, shape: str, field: str, value: str) -> None:
  """Refuses a shape that cannot be had.

  Args:
    chip: the kind.
    shape: the shape, such as "4x4".
    field, value: the setting, for the error.

  Raises:
    InputError: there is no such slice; the remedy names the nearest ones.
  """
  if shape in chip.slices:
    return
  known = ", ".join(f"{chip.name}:{s}" for s in chip.slices)
  remedy = f"choose one of {known}"
  if shape.isdigit():
    cores = int(shape) // CORES.get(chip.name, 1)
    of_size = [s for s in chip.slices if chips_of(s) == cores]
    if of_size:
      remedy = f"{value} has {cores} chips: use {chip.name}:{of_size[0]}"
  raise InputError(field, value, f"is no slice of {chip.name} chips", remedy)


def chips_of(shape: str) -> int:
  """Chips of a slice.

  Args:
    shape: its shape, such as "4x4".

  >>> chips_of("4x4x8")
  128
  """
  count = 1
  for size in shape.split("x"):
    count *= int(size)
  return count
