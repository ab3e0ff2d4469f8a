"""What the text of a compiled step holds: collectives, sorts, kernels.

Collectives are told apart by the conditionals that they are inside of, since a
step executes one branch of each: with AuxK or without, from the sparse engine or
done over in the dense one.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from saejax.training import step

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)
BYTES = {"pred": 1, "bf16": 2}  # others say their bits
_ARRAY = re.compile(r"\b(pred|bf16|f8\w+|[fsu]\d+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
  r"(?:calls|body|condition|to_apply|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_END = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_TRIPS = re.compile(r'known_trip_count[\\":{ ]+n[\\": ]+(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of a program, one of possibly many arrays.

  Attributes:
    kind: name of the operation.
    arrays: dtype and shape of each array that it gives on a device.
    branch: the conditionals that it is inside of, each with the number of its
      branch, outermost first.
    times: passes of the loops around it; 0 where a loop's length is unknown.
    source: the operation that it was made for.
  """

  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]
  branch: tuple[tuple[str, int], ...]
  times: int
  source: str

  @property
  def bytes(self) -> int:
    """Bytes of all arrays, in one pass."""
    return sum(item_bytes(t) * math.prod(s) for t, s in self.arrays)


def item_bytes(dtype: str) -> int:
  """Bytes of an entry.

  Args:
    dtype: the dtype, as a program's text names it.
  """
  bits = re.search(r"\d+", dtype)
  return BYTES.get(dtype) or max(1, int(bits[0] if bits else 8) // 8)


def arrays(text: str) -> set[tuple[int, ...]]:
  """Returns the shapes of all arrays that a text names.

  Args:
    text: text of a compiled program.
  """
  return {shape for _, shape in named(text)}


def named(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """Returns dtype and shape of every array that a text names, in its order.

  Args:
    text: text of a compiled program.
  """
  return [
    (dtype, tuple(int(size) for size in dims.split(",") if size))
    for dtype, dims in _ARRAY.findall(text)
  ]


def collectives(text: str) -> list[Collective]:
  """Returns the collectives of a program, in its order.

  Args:
    text: text of a compiled program.
  """
  bodies, entry = _computations(text)
  return list(_walk(bodies, entry, (), 1))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation by its name, and the name of the first."""
  found: dict[str, list[str]] = {}
  entry, name = "", ""
  for line in text.splitlines():
    if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
      name = head[2]
      found[name] = []
      entry = name if head[1] else entry
    elif name:
      found[name].append(line)
  return found, entry


def _walk(
  bodies: dict[str, list[str]],
  name: str,
  branch: tuple[tuple[str, int], ...],
  times: int,
) -> Iterator[Collective]:
  """The collectives of a computation and of those that it calls."""
  for line in bodies.get(name, ()):
    if hit := _COLLECTIVE.search(line):
      yield _collective(line, hit, branch, times)
    elif " conditional(" in line:  # the branch of a condition: 0 or 1
      called = _BRANCHES.search(line)
      names = re.findall(r"[\w.\-]+", called[1]) if called else []
      for way in () if names else ("false", "true"):
        names += re.findall(rf"{way}_computation=%?([\w.\-]+)", line)
      for i, inner in enumerate(names):
        yield from _walk(bodies, inner, (*branch, (_name(line), i)), times)
    else:
      passes = times
      if " while(" in line:
        passes = times * _trips(bodies, line)
      for inner in _CALLED.findall(line):
        yield from _walk(bodies, inner, branch, passes)


def _trips(bodies: dict[str, list[str]], line: str) -> int:
  """Passes of a loop; 0 where they are unknown.

  Programs for TPUs do not say them. JAX counts loops of a known length from 0 up to
  a constant, the only one in the condition.
  """
  if known := _TRIPS.search(line):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", line)
  text = "\n".join(bodies.get(condition[1], ())) if condition else ""
  ends = _END.findall(text)
  return int(ends[0]) if len(ends) == 1 and "direction=LT" in text else 0


def _name(line: str) -> str:
  found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) =", line)
  return found[1] if found else ""


def _collective(line, hit, branch, times) -> Collective:
  result = line[line.index("=") : hit.start()]
  given = named(result)
  if hit[2] and hit[1] != "all-reduce":
    # The result of an asynchronous start begins with its operands.
    half = len(given) // 2
    given = given[half:] if hit[1] == "all-gather" else given[1:2]
  source = re.search(r'op_name="([^"]*)"', line)
  return Collective(
    kind=hit[1],
    arrays=tuple(given),
    branch=branch,
    times=times,
    source=source[1] if source else "",
  )


def executed(found: Sequence[Collective], aux: bool) -> list[Collective]:
  """Returns the collectives of one step that is not done over.

  Of a conditional inside another the branch of most bytes counts.

  Args:
    found: collectives of the step's program.
    aux: whether the step computes terms that are not always active, such as
      AuxK.
  """
  found = [c for c in found if f"/{step.REDONE}/" not in c.source]
  always = [c for c in found if not c.branch]
  inside = [c for c in found if c.branch and c.branch[0][1] == int(aux)]
  return always + _heaviest(
    [dataclasses.replace(c, branch=c.branch[1:]) for c in inside]
  )


def _heaviest(found: list[Collective]) -> list[Collective]:
  """Those outside of conditionals, and of each conditional the largest branch."""
  kept = [c for c in found if not c.branch]
  for name in dict.fromkeys(c.branch[0][0] for c in found if c.branch):
    inside = [c for c in found if c.branch and c.branch[0][0] == name]
    ways = [
      _heaviest(
        [
          dataclasses.replace(c, branch=c.branch[1:])
          for c in inside
          if c.branch[0][1] == way
        ]
      )
      for way in {c.branch[0][1] for c in inside}
    ]
    kept += max(ways, key=lambda way: sum(c.bytes * c.times for c in way))
  return kept


def sorts(text: str) -> list[tuple[int, ...]]:
  """Returns the shapes that a program sorts, one for each sort.

  Args:
    text: text of a compiled program.
  """
  lines = [line for line in text.splitlines() if " sort(" in line]
  return [named(line.split("=", 1)[1])[0][1] for line in lines]


def kernels(text: str) -> dict[str, int]:
  """Counts the calls of each Pallas kernel, by its name.

  Args:
    text: text of a program compiled for TPUs.
  """
  calls = [line for line in text.splitlines() if '"tpu_custom_call"' in line]
  names = [re.sub(r"\.\d+$", "", _name(line)) for line in calls]
  return {name: names.count(name) for name in dict.fromkeys(names)}
