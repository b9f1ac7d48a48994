"""``from boxdet.utils.contextmanagers import concurrent``, as in the guide."""
from boxdet.apis.asynchronous import concurrent

__all__ = ['concurrent']
