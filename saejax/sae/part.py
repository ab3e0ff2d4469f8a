"""The base of the parts that an SAE is made of."""

import inspect

import flax.struct

CLASS = "part"  # name of the static field that holds the class's name


class Part(flax.struct.PyTreeNode):
  """A frozen pytree whose structure names its class.

  JAX (0.10 and 0.11) takes dataclass nodes of two classes with equal fields for
  one tree structure. Their hashes differ, but where those collide in a cache,
  one class silently gets the program compiled for the other. A static field
  with the class's name keeps the structures apart.
  """

  def __init_subclass__(cls, **kwargs):
    cls.__annotations__ = {**inspect.get_annotations(cls), CLASS: str}
    name = f"{cls.__module__}.{cls.__qualname__}"
    field = flax.struct.field(
      pytree_node=False, default=name, repr=False, kw_only=True
    )
    setattr(cls, CLASS, field)
    super().__init_subclass__(**kwargs)
