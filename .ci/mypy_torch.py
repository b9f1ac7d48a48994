"""A mypy plugin: a module's parts are of their own classes.

torch types whatever a module was given by assignment or ``register_buffer`` and that its class does not declare as
``Tensor | Module``, so that every call of a part and every number kept beside it would be an error. Such an attribute
is Any here. One that a class declares (``bbox_head: BBoxHead``) keeps its type.
"""
from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny, UnionType, get_proper_type

_MODULE = 'torch.nn.modules.module.Module.'


def _part(context: AttributeContext) -> Type:
    found = get_proper_type(context.default_attr_type)
    return AnyType(TypeOfAny.special_form) if isinstance(found, UnionType) else found


class _Parts(Plugin):
    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _part if fullname.startswith(_MODULE) else None


def plugin(version: str) -> type[Plugin]:
    """The entry point that mypy asks for."""
    return _Parts
