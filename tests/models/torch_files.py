"""Files of torch.save for tests, written instruction by instruction."""

import pathlib
import pickle
import struct
import zipfile

import numpy as np
from absl.testing import parameterized

from saejax.errors import InputError
from saejax.models import torch_file


def text(value: str) -> bytes:
  raw = value.encode()
  return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
  raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
  return f"c{module}\n{attribute}\n".encode()


def group(*items: bytes) -> bytes:
  return b"(" + b"".join(items) + b"t"


def program(body: bytes) -> bytes:
  return b"\x80\x02" + body + b"."


def storage(key="0", kind="FloatStorage", count=4, old=False) -> bytes:
  parts = [text("storage"), name("torch", kind), text(key), text("cpu")]
  return group(*parts, number(count), *([b"N"] if old else [])) + b"Q"


def tensor(of=None, offset=0, shape=(4,), strides=(1,)) -> bytes:
  sizes = [group(*map(number, numbers)) for numbers in (shape, strides)]
  ordered = name("collections", "OrderedDict") + b")R"
  arguments = group(
    storage() if of is None else of, number(offset), *sizes, b"\x89", ordered
  )
  return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


VALUES = np.arange(4, dtype=np.float32)


class Files(parameterized.TestCase):
  """Files in both forms at `path`, and their refusals."""

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, "model.pt")

  def zipped(
    self, body: bytes, *, members=None, compression=zipfile.ZIP_STORED
  ):
    """Writes the zip form."""
    own = {"data/0": VALUES.tobytes(), "version": b"3\n"} | dict(members or {})
    with zipfile.ZipFile(self.path, "w", compression) as archive:
      archive.writestr("archive/data.pkl", program(body))
      for member, content in own.items():
        if content is not None:
          archive.writestr(f"archive/{member}", content)

  def in_line(self, body: bytes, *, keys=("0",), after=None, magic=None):
    """Writes the old form."""
    if after is None:
      after = struct.pack("<q", 4) + VALUES.tobytes()
    found = pickle.dumps(torch_file.MAGIC if magic is None else magic, 2)
    found += pickle.dumps(torch_file.VERSION, 2)
    found += pickle.dumps({"little_endian": True}, 2)
    found += program(body) + pickle.dumps(list(keys), 2) + after
    self.path.write_bytes(found)

  def assert_refused(self, *parts: str, **settings):
    with self.assertRaises(InputError) as caught:
      torch_file.read(self.path, **settings)
    message = str(caught.exception)
    self.assertStartsWith(message, "path=")
    self.assertNotIn("\n", message)
    for part in parts:
      self.assertIn(part, message)
