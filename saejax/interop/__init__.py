"""Published weights: reading, writing and converting the formats of others.

`names.load` resolves a path, `hf:ORG/REPO/PATH` or `sae-lens:RELEASE/ID`;
`record.Record` is the one form that every format is read into and written from.
"""

from typing import TYPE_CHECKING

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(
  __name__,
  _lazy.modules(__path__),
  {
    "convert": "saejax.interop.conversion",
    "load": "saejax.interop.names",
    "push_to_hub": "saejax.interop.publish",
    "read": "saejax.interop.names",
    "Record": "saejax.interop.record",
  },
)

if TYPE_CHECKING:
  from saejax.interop.conversion import convert as convert
  from saejax.interop.names import load as load
  from saejax.interop.names import read as read
  from saejax.interop.publish import push_to_hub as push_to_hub
  from saejax.interop.record import Record as Record
