"""Several processes of `jax.distributed` that run one command together.

All run the same program on one mesh of the devices of all. Process 0 writes files
that are not parts of a checkpoint; what it refuses, all refuse. In one process
every function here is the identity or does nothing.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import os
import pathlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from saejax import checks, interrupt, machine, terminal
from saejax.errors import InputError

T = TypeVar("T")
PyTree = Any
# Exit code of a process that lost another one (EX_TEMPFAIL): start all again.
LOST = 75
LOGS = "logs"  # folder in that of a run, with a file for each process
# JAX errors of a collective or of the coordinator whose peer is gone.
_LOST = re.compile(
  r"[A-Z_]+: (?is:.*(gloo|nccl|connection|coordination|heartbeat|deadline))"
)
_LAST_SECONDS = 2.0  # that process 0 leaves the others to fail as it did
_boundaries = itertools.count()  # of `stop_signal`, the same in all processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
  """Which processes run a command together; none: as JAX finds on a cluster."""

  coordinator: str | None = None  # HOST:PORT of process 0
  processes: int | None = None  # number of processes
  process: int | None = None  # number of this process, from 0
  # seconds of silence after which a process counts as lost
  heartbeat_timeout_seconds: int = 10

  def __post_init__(self):
    checks.at_least(self, 1, "heartbeat_timeout_seconds")
    if self.processes is not None:
      checks.at_least(self, 1, "processes")
    if self.process is not None:
      most = float("inf") if self.processes is None else self.processes
      if not 0 <= self.process < most:
        raise InputError(
          "process",
          self.process,
          f"must be in [0, {most}), the number of processes",
          "number the processes from 0",
        )
    if self.coordinator is not None and not re.search(
      r":\d+$", self.coordinator
    ):
      rule = "must be HOST:PORT of process 0"
      raise InputError("coordinator", self.coordinator, rule, "add the port")


# Flags that say where a process runs, and nothing about the run.
FLAGS = tuple(
  f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)
)


@contextlib.contextmanager
def started(config: Any) -> Iterator[None]:
  """Joins the processes of a command, and leaves them at its end.

  A process that loses another one says so and ends with exit code 75: all are to
  be started again.

  Args:
    config: config of the command, whose field `distributed` says which processes
      there are.

  Raises:
    InputError: there is no coordinator, or the processes disagree about flags,
      code or versions; raised in all of them.
  """
  if not _initialized(config.distributed):
    yield
    return
  try:
    settings = dataclasses.asdict(config)
    del settings["distributed"]["process"]
    agree(settings)
    agree(code(), remedy="install the same version on all hosts")
    yield
  except BaseException as error:
    if _is_lost(error):
      terminal.say(
        f"process {jax.process_index()}: lost another process; repeat the "
        f"command of all to resume ({_shown(error)})"
      )
      _leave(LOST)
    atexit.register(_leave, _exit_code(error))
    raise
  # A process that ends earlier would be taken for lost.
  jax.distributed.shutdown()


def _is_lost(error: BaseException) -> bool:
  """Whether an error of JAX is that another process is gone."""
  if not isinstance(error, jax.errors.JaxRuntimeError | ValueError):
    return False
  return _LOST.match(str(error)) is not None


def _exit_code(error: BaseException) -> int:
  """The exit code that `config.run` gives an exception."""
  if isinstance(error, SystemExit):
    return error.code if isinstance(error.code, int) else 1
  return 2 if isinstance(error, InputError) else 1


def _leave(exit_code: int) -> None:
  """Ends this process at once: Python's own end would wait for the others."""
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
    sys.stderr.flush()
  if jax.process_index() == 0:  # its end is that of all
    time.sleep(_LAST_SECONDS)
  os._exit(exit_code)


def _initialized(config: DistributedConfig) -> bool:
  """Starts `jax.distributed` where there are several processes."""
  given = config.coordinator, config.processes, config.process
  if given == (None, None, None) and not _on_cluster():
    return False
  waiting = "waiting for the other processes: start each, with its own number"
  try:
    with terminal.busy(waiting, after_seconds=20):  # JAX aborts after 300
      jax.distributed.initialize(
        *given,
        heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
        # Otherwise JAX asks the cluster, if only for the devices.
        cluster_detection_method="deactivate" if None not in given else None,
      )
  except ValueError as error:
    if given == (None, None, None):  # a TPU host alone
      return False
    raise InputError(
      "distributed.coordinator",
      config.coordinator,
      f"JAX finds no cluster here ({error})",
      "give --distributed.coordinator, --distributed.processes and "
      "--distributed.process",
    ) from error
  return True


def _on_cluster() -> bool:
  """Whether to let JAX look for processes: under SLURM, Open MPI, on a TPU."""
  environment = os.environ
  slurm = environment.get("SLURM_NTASKS", "1") != "1"
  mpi = environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
  platforms = environment.get("JAX_PLATFORMS", "tpu").split(",")
  tpu = "TPU_SKIP_MDS_QUERY" not in environment and "tpu" in platforms
  return (
    (slurm and "SLURM_STEP_NODELIST" in environment)
    or (mpi and "OMPI_MCA_orte_hnp_uri" in environment)
    or (tpu and importlib.util.find_spec("libtpu") is not None)
  )


def _shown(error: BaseException) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def is_first() -> bool:
  """Whether this process writes files."""
  return jax.process_index() == 0


def gathered(value: T) -> list[T]:
  """Returns the value of each process, in all of them.

  Args:
    value: JSON-serialisable.
  """
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(text)))
  room = 1 << int(lengths.max()).bit_length()  # few sizes, few programs
  texts = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
  return [
    json.loads(row[:length].tobytes())
    for row, length in zip(texts, lengths, strict=True)
  ]


def sync() -> None:
  """Waits until all processes are here."""
  gathered(None)


def first(work: Callable[[], T]) -> T | None:
  """Does something in process 0, while the others wait.

  Args:
    work: what to do.

  Returns:
    Its result in process 0, None in the others.

  Raises:
    InputError: that of process 0, in all of them.
  """
  found, error = None, None
  if is_first():
    try:
      found = work()
    except InputError as raised:
      error = raised
      if jax.process_count() == 1:
        raise
  told = error and (error.field, str(error.value), error.rule, error.remedy)
  if told := gathered(told)[0]:
    raise error or InputError(*told)
  return found


def agree(
  settings: Mapping[str, Any],
  *,
  remedy: str = "start all processes with the same command",
) -> None:
  """Checks that settings are equal in all processes.

  Args:
    settings: JSON-serialisable values, mappings by their entries.
    remedy: what to do where they are not.

  Raises:
    InputError: they differ; in all processes, with the first setting that does.
  """
  if jax.process_count() == 1:
    return
  every = gathered(dict(_entries(settings, "")))
  for name in dict.fromkeys(name for own in every for name in own):
    values = [own.get(name) for own in every]
    other = next((i for i, v in enumerate(values) if v != values[0]), None)
    if other is not None:
      raise InputError(
        name,
        values[0],
        f"must be equal in all processes, and process {other} has "
        f"{values[other]}",
        remedy,
      )


def check_shared(folder: str | os.PathLike[str]) -> None:
  """Checks that all processes see one folder; leaves nothing there.

  Args:
    folder: folder of a run; where process 0 cannot write, its lock says so.

  Raises:
    InputError: they do not; in all.
  """
  if jax.process_count() == 1:
    return
  path = pathlib.Path(folder)
  mark = path / gathered(f".seen-{os.getpid()}-{time.time_ns()}")[0]
  made = [place for place in (path, *path.parents) if not place.exists()]
  if is_first():
    with contextlib.suppress(OSError):
      path.mkdir(parents=True, exist_ok=True)
      mark.touch()
  sync()
  seen = gathered(mark.exists())
  refused = seen[0] and not all(seen)
  if is_first():
    with contextlib.suppress(OSError):
      mark.unlink(missing_ok=True)
      for place in made if refused else ():
        place.rmdir()
  if refused:
    others = f"{seen.count(False)} of {len(seen)} processes see another"
    rule = f"must be one folder for all, and {others}"
    remedy = "name a folder on a file system that all hosts share"
    raise InputError("run_dir", folder, rule, remedy)


def _entries(settings: Mapping[str, Any], prefix: str):
  for name, value in settings.items():
    if isinstance(value, Mapping):
      yield from _entries(value, f"{prefix}{name}.")
    else:
      yield prefix + name, json.dumps(value, sort_keys=True)  # it may be NaN


def code() -> dict[str, Any]:
  """Returns what results depend on besides settings: sources and versions."""
  folder = pathlib.Path(__file__).resolve().parent
  total = hashlib.sha256()
  for path in sorted({*folder.rglob("*.py"), *folder.glob("kernels/**/*.py")}):
    total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
  wanted = ("saejax", "commit", "python", "jax", "jaxlib", "backend")
  environment = machine.environment()
  return {
    **{name: environment[name] for name in wanted},
    "code": total.hexdigest()[:16],
    "local_devices": jax.local_device_count(),
  }


def local(tree: PyTree) -> PyTree:
  """Returns arrays on this process's first device, whole.

  Args:
    tree: arrays, sharded over the devices of all processes or not.
  """
  if jax.process_count() == 1:
    return tree

  def one(leaf):
    if not hasattr(leaf, "sharding") or leaf.is_fully_addressable:
      return leaf
    if not leaf.is_fully_replicated:
      whole = NamedSharding(leaf.sharding.mesh, P())
      leaf = jax.jit(lambda a: a, out_shardings=whole)(leaf)
    return leaf.addressable_data(0)

  return jax.tree.map(one, tree)


def stop_signal() -> int | None:
  """Returns the signal after which to save and stop, or None.

  The same in all processes, which all call it after each call of their program:
  `jax.distributed` takes SIGTERM, and the processes agree on a step. Any other
  signal to one process becomes that.
  """
  if not jax.distributed.is_initialized():
    return interrupt.requested()
  if interrupt.taken() is not None:
    os.kill(os.getpid(), signal.SIGTERM)
  reached = multihost_utils.reached_preemption_sync_point(next(_boundaries))
  return signal.SIGTERM if reached else None


@contextlib.contextmanager
def logged(run_dir: pathlib.Path) -> Iterator[None]:
  """Writes what each process says to a file of its own.

  Process 0 goes on saying it on standard error too. In one process nothing
  changes.

  Args:
    run_dir: folder of the run.
  """
  if jax.process_count() == 1:
    yield
    return
  path = run_dir / LOGS / f"process-{jax.process_index()}.log"
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a", buffering=1) as file:
    tee = _Tee(file, sys.stderr if is_first() else None)
    with contextlib.redirect_stderr(tee):
      yield


class _Tee(io.TextIOBase):
  """A stream into a file, and into another stream where there is one."""

  def __init__(self, file: TextIO, other: TextIO | None):
    self._file, self._other = file, other

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):  # a full disk must not end the run here
      self._file.write(text)
    if self._other is not None:
      self._other.write(text)
    return len(text)

  def flush(self) -> None:
    if self._other is not None:
      self._other.flush()
