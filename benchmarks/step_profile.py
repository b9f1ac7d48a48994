"""Where the time of a training step goes: by part of the model and by kind of operator (for ``train_peers.py``).

Every operator's own time is counted once. Those of the backward pass belong to the part whose operator they
differentiate: autograd numbers both alike. What no operator takes, Python and the dispatcher between them, is a kind of
its own.
"""
from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

_LABEL = 'part: '
_NODE = 'autograd::engine::evaluate_function'
OTHER = 'the rest'

# The first kind of which one of the words is in an operator's name.
KINDS = {
    'convolutions': ('conv',),
    'matrix products': ('::mm', 'addmm', 'bmm', 'matmul', '::linear'),
    'RoIAlign': ('embedding_bag', 'roi_align', 'ROIAlign'),
    'suppression': ('nms',),
    'optimizer': ('_fused_sgd', '_foreach', 'Optimizer'),
    'activations, pooling, upsampling': ('relu', 'threshold', 'max_pool', 'upsample', 'sigmoid', 'softmax'),
    'copies, picking, sorting': ('copy_', 'clone', '::cat', 'index', 'gather', 'scatter', 'sort', 'nonzero', 'topk',
                                 'fill_', 'zero_', 'where', 'masked', 'searchsorted', 'unique', 'stack'),
    'sums and products': ('::add', '::mul', '::sub', '::div', '::sum', '::mean', 'addcmul', 'rsqrt', 'clamp', '::neg'),
}
PYTHON, REST = 'Python and dispatch', 'other operators'


def label(owner: Any, method: str, part: str) -> None:
    """Let what ``owner.method`` does be counted as ``part`` (the innermost of several)."""
    from torch.profiler import record_function
    call = getattr(owner, method)

    @functools.wraps(call)
    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(_LABEL + part):
            return call(*args, **kwargs)
    setattr(owner, method, labelled)


def times(step: Callable[[], Any]) -> dict[tuple[str, str, str], float]:
    """Milliseconds of (part, 'forward' or 'backward', kind) in one call of ``step``."""
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = [event for event in found.events() if event.cpu_time_total]
    parts: dict[int, str] = {}  # of an operator's number
    for event in sorted(events, key=lambda event: event.time_range.start):  # the innermost operator comes last
        if event.sequence_nr >= 0 and _above(event, _NODE) is None:
            parts[event.sequence_nr] = _part(event)
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    for event in events:
        node = _above(event, _NODE)
        part = _part(event) if node is None else parts.get(node.sequence_nr, OTHER)
        sums[part, 'forward' if node is None else 'backward', _kind(event.name)] += event.self_cpu_time_total / 1e3
    return dict(sums)


def table(columns: dict[str, dict[tuple[str, str, str], float]], key: Callable[[tuple[str, str, str]], str],
          order: Iterable[str] = ()) -> str:
    """A Markdown table in ms: a column for each of ``columns`` (what ``times`` gave), a row for each ``key``."""
    rows: dict[str, dict[str, float]] = {name: {} for name in order}
    for column, found in columns.items():
        for place, value in found.items():
            row = rows.setdefault(key(place), {})
            row[column] = row.get(column, 0) + value
    rows['**all**'] = {column: sum(found.values()) for column, found in columns.items()}
    lines = ['| ms | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    lines += [f'| {name} | ' + ' | '.join(f'{row.get(column, 0):,.0f}' for column in columns) + ' |'
              for name, row in rows.items() if row]
    return '\n'.join(lines)


def _above(event: Any, prefix: str) -> Any:
    """The nearest event around ``event``, itself included, whose name begins so."""
    while event is not None and not event.name.startswith(prefix):
        event = event.cpu_parent
    return event


def _part(event: Any) -> str:
    owner = _above(event, _LABEL)
    return OTHER if owner is None else owner.name.removeprefix(_LABEL)


def _kind(name: str) -> str:
    for kind, words in KINDS.items():
        if any(word in name for word in words):
            return kind
    return REST if '::' in name and not name.startswith(_NODE) else PYTHON
