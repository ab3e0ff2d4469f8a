"""Converts SAEs between saejax and published formats, with proof of parity.

    saejax convert --input=runs/a/saes/n1024-k16 --output=out --format=saelens
    saejax convert --input=hf:google/gemma-scope-2b-pt-res/layer_3/... \\
      --output=out --format=saejax

Prints the largest errors of latents and outputs, and writes them with the files
as certificate.json. Nothing is written where they differ or something would be
lost that --allow_lossy does not name.
"""

import dataclasses

from saejax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  input: str  # folder or file, hf:ORG/REPO/PATH, or sae-lens:RELEASE/ID
  output: str  # folder, new or an earlier conversion
  format: str  # format that is written; saejax for saejax's own
  source: str = ""  # format that is read; by default found by the files
  allow_lossy: tuple[str, ...] = ()  # what may be lost: threshold, ...
  unit_decoder: bool = False  # give decoder rows unit norm, rescaling latents
  rows: str = (
    ""  # store or .npy file of rows that are compared; random if empty
  )
  k: int = 0  # active latents per row, where the files leave it out; 0: unknown
  scale: float = 0.0  # factor of x in training, not folded; 0: unknown
  push: str = ""  # ORG/REPO/PATH on the Hugging Face Hub to upload to

  def __post_init__(self):
    for name in ("input", "output", "format"):
      if not getattr(self, name):
        raise InputError(name, "", "must be given", f"pass --{name}")
    for name in ("k", "scale"):
      if getattr(self, name) < 0:
        rule = "must be positive, or 0 for unknown"
        raise InputError(name, getattr(self, name), rule, "correct it")


def main(config: Config) -> None:
  """Converts, and prints the certificate's figures.

  Args:
    config: settings of the command.
  """
  from saejax.interop import certificate, conversion, publish

  found = conversion.convert(
    config.input,
    config.output,
    config.format,
    source=config.source or None,
    allow_lossy=config.allow_lossy,
    unit_decoder=config.unit_decoder,
    rows=certificate.read_rows(config.rows) if config.rows else None,
    k=config.k or None,
    scale=config.scale or None,
  )
  print(config.output)
  for name in ("in_saejax", "written"):
    p = found[name]
    print(
      f"  {name:10} max error z {p['z_error']:.2g}, x_hat {p['x_hat_error']:.2g};"
      f" L0 {p['l0_before']:.4g} -> {p['l0_after']:.4g}"
    )
  if config.push:
    print(publish.push_to_hub(config.output, config.push))
