r"""Change the source one place at a time and count the changes that the tests do not notice.

    python benchmarks/mutants.py [FILE ...] [--number 240] [--seed 0] [--json out.json]
    python benchmarks/mutants.py --json out.json --only 61-120        # a part of them, by their numbers
    python benchmarks/mutants.py --json out.json --survivors --wider  # those again that out.json has alive

A mutant is a file with one change: a comparison or an operator swapped, a number or a truth value changed, a condition
negated, a call left out. They are drawn with a seed, from each file as many as it has places. A warm process that has
imported torch forks one child a mutant; the child sees the changed source in place of the file, which stays as it is,
and runs the tests that mirror the file up to the first failure. What these leave alive meets the wider tests (--wider)
of its folder. Printed are the mutants that no test noticed, to be read: some change nothing that could be seen.
"""
import argparse
import ast
import copy
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEADS = ('bbox_head', 'cascade_roi_head', 'keypoint_head', 'mask_head', 'rpn_head', 'shared_head', 'standard_roi_head')
FILES = [*(f'boxdet/matching/{name}.py' for name in ('anchors', 'assigner', 'box_coder', 'sampler')),
         *(f'boxdet/geometry/{name}.py' for name in ('boxes', 'keypoints', 'masks', 'nms', 'nms_rounds', 'roi_align')),
         *(f'boxdet/models/{name}.py' for name in HEADS),
         'boxdet/datasets/pipelines/geometric.py', 'boxdet/datasets/warps.py']
# Beside the file of the same name: tests that ask the same code.
ALSO = {
    'boxdet/matching/assigner.py': ['tests/test_matching/test_iou.py'],
    'boxdet/geometry/boxes.py': ['tests/test_matching/test_iou.py'],
    'boxdet/geometry/masks.py': ['tests/test_structures/test_masks.py', 'tests/test_datasets/test_warps.py'],
    'boxdet/geometry/nms.py': ['tests/test_geometry/test_nms_rounds.py', 'tests/test_models/test_rpn_head.py'],
    'boxdet/datasets/warps.py': ['tests/test_datasets/test_geometric.py'],
    'boxdet/datasets/pipelines/geometric.py': ['tests/test_datasets/test_warps.py'],
    'boxdet/models/cascade_roi_head.py': ['tests/test_models/test_roi_heads.py'],
    'boxdet/models/standard_roi_head.py': ['tests/test_models/test_roi_heads.py',
                                           'tests/test_models/test_keypoint_head.py'],
    'boxdet/models/shared_head.py': ['tests/test_models/test_roi_heads.py'],
}
_MODELS = [f'tests/test_models/test_{name}.py' for name in (
    'roi_heads', 'unnoticed', 'empty', 'detectors', 'without_waiting', 'test_time_augmentation', 'reference')]
WIDER = {
    'boxdet/models': _MODELS,
    'boxdet/matching': ['tests/test_models/test_rpn_head.py', 'tests/test_models/test_roi_sampling.py', *_MODELS],
    'boxdet/geometry': ['tests/test_structures', 'tests/test_models/test_keypoint_head.py',
                        'tests/test_models/test_mask_head.py', 'tests/test_models/test_rpn_head.py', *_MODELS],
    'boxdet/datasets': ['tests/test_datasets/test_compose.py', 'tests/test_datasets/test_test_time.py',
                        'tests/test_datasets/test_mixing.py', 'tests/test_datasets/test_auto_augment.py'],
}

_SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}
_DROPPED = {'abs', 'ceil', 'clamp', 'clip', 'cumsum', 'detach', 'exp', 'flip', 'floor', 'log', 'mean', 'relu', 'round',
            'sigmoid', 'softmax', 'sqrt', 'sum'}


class Mutant(NamedTuple):
    """One change: the file, its line, what was there and what is there now, and the whole source with it."""

    file: str
    line: int
    before: str
    after: str
    source: str


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may stand in the place of `node`."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SWAPS:
        yield ast.Compare(node.left, [_SWAPS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in _SWAPS:
        yield ast.BinOp(node.left, _SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(_SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _SWAPS:
        yield ast.AugAssign(node.target, _SWAPS[type(node.op)](), node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, (ast.If, ast.IfExp)):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _DROPPED:
        yield node.args[0] if isinstance(node.func.value, ast.Name) and node.func.value.id in ('np', 'torch', 'math') \
            and node.args else node.func.value


def _places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """(parent, field, index) of everything below `node` that runs: no annotations, no messages of errors."""
    for field, value in ast.iter_fields(node):
        if field in ('annotation', 'returns', 'decorator_list') or isinstance(node, (ast.Raise, ast.Assert)):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield node, field, index
                yield from _places(child)


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """Every mutant of one file."""
    tree = ast.parse(text)
    for parent, field, index in list(_places(tree)):
        value = getattr(parent, field)
        node = value if index is None else value[index]
        for changed in _changed(node):
            if index is None:
                setattr(parent, field, changed)
            else:
                value[index] = changed
            whole = ast.unparse(ast.fix_missing_locations(tree))
            if index is None:
                setattr(parent, field, node)
            else:
                value[index] = node
            yield Mutant(file, getattr(node, 'lineno', 0), ast.unparse(node).split('\n')[0],
                         ast.unparse(ast.fix_missing_locations(changed)).split('\n')[0], whole)


def tests_of(file: str) -> list[str]:
    """The test files that mirror a file of boxdet/."""
    path = Path(file)
    folder = 'test_' + path.parts[1]
    mirrors = (f'tests/{folder}/test_{path.stem}.py', f'tests/{folder}/test_defaults.py', *ALSO.get(file, ()))
    return [name for name in mirrors if (ROOT / name).exists()]


def _run(mutant: Mutant | None, tests: list[str], seconds: float) -> tuple[bool, float]:
    """Whether the tests pass with the mutant (None: the source as it is), in a fork; and the seconds that they took.

    A child that runs past `seconds` is killed: the mutant is noticed.
    """
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        if mutant is not None:
            _put_in_place(mutant)
        import pytest
        status = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', '-m', 'not slow', *tests])
        os._exit(int(status))
    while time.monotonic() - start < seconds:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0, time.monotonic() - start
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False, seconds


def _put_in_place(mutant: Mutant) -> None:
    """From now on the import of the mutant's file finds its source."""
    path, get_code = str(ROOT / mutant.file), importlib.machinery.SourceFileLoader.get_code

    def changed(self: importlib.machinery.SourceFileLoader, fullname: str) -> object:
        return compile(mutant.source, path, 'exec') if self.path == path else get_code(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = changed


def draw(files: list[str], number: int, seed: int) -> list[Mutant]:
    """`number` mutants of all files together, each place as likely as any other, in the order of files and lines."""
    every = [mutant for file in files for mutant in mutants(file, (ROOT / file).read_text())]
    chosen = random.Random(seed).sample(range(len(every)), min(number, len(every)))
    return [every[k] for k in sorted(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='*', default=FILES, metavar='FILE', help='below boxdet/ (default: the geometry, '
                        'the matching, the heads and the geometric transforms)')
    parser.add_argument('--number', type=int, default=240, help='mutants to draw (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--wider', action='store_true', help='what is left meets the tests of WIDER too')
    parser.add_argument('--json', metavar='FILE', help='also write every mutant with its outcome, beside what it holds')
    parser.add_argument('--only', metavar='FIRST-LAST', help='of those drawn')
    parser.add_argument('--survivors', action='store_true', help='only those that --json has alive')
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import cv2  # noqa: F401  (imported once, before the forks)
    import mmengine  # noqa: F401
    import pytest  # noqa: F401
    import torchvision  # noqa: F401
    rows = json.loads(Path(args.json).read_text()) if args.json and Path(args.json).exists() else {}
    chosen, limits = draw(args.files, args.number, args.seed), {}
    first, last = map(int, args.only.split('-')) if args.only else (1, len(chosen))
    for count, mutant in enumerate(chosen, 1):
        if not first <= count <= last or args.survivors and not rows.get(str(count), {}).get('alive'):
            continue
        tests = tests_of(mutant.file)
        if mutant.file not in limits:
            passes, seconds = _run(None, tests, 600)
            if not passes:
                parser.error(f'{" ".join(tests)} fail without any change')
            limits[mutant.file] = 30 + 5 * seconds
        alive, seconds = _run(mutant, tests, limits[mutant.file])
        wider = WIDER.get('/'.join(mutant.file.split('/')[:2]), [])
        if alive and args.wider and wider:
            alive, more = _run(mutant, wider, 600)
            seconds += more
        rows[str(count)] = dict(file=mutant.file, line=mutant.line, before=mutant.before, after=mutant.after,
                                alive=alive)
        print(f'{count}/{len(chosen)} {"ALIVE  " if alive else "noticed"} {seconds:5.1f} s  '
              f'{mutant.file}:{mutant.line}  '
              f'{mutant.before}  ->  {mutant.after}', flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1))
    left = sum(row['alive'] for row in rows.values())
    print(f'{left} of {len(rows)} mutants were not noticed: {100 * left / max(len(rows), 1):.1f} %')


if __name__ == '__main__':
    main()
