"""The floors of docs/architecture.md, kept by reading the source: imports inside functions count too."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / 'boxdet').rglob('*.py'))
# Rooms on one floor do not see each other; errors and version stand under everything.
FLOORS = {'errors': -1, 'version': -1, 'files': 0, 'geometry': 0, 'structures': 1, 'registry': 1, 'abilities': 1,
          'idle_overrides': 0, 'matching': 2, 'visualization': 2, 'checkpoints': 2, 'datasets': 3, 'models': 3,
          'evaluation': 4, 'engine': 5, 'export': 5,
          'apis': 6, 'utils': 7, 'cli': 7, '__main__': 8, 'compat': 8, 'runtime': 0}
# Where the projects below us may be touched; everywhere else they would spread.
OUTSIDERS = {
    'onnxruntime': ('boxdet/runtime.py', 'boxdet/apis/export.py'),
    'mmengine': ('boxdet/registry.py', 'boxdet/engine/', 'boxdet/compat/'),
    'mmcv': ('boxdet/datasets/', 'demo/', 'boxdet/compat/'),
    'pycocotools': ('boxdet/geometry/masks.py', 'boxdet/structures/masks.py', 'boxdet/datasets/', 'boxdet/evaluation/',
                    'boxdet/compat/', 'tools/', 'demo/'),
    'cv2': ('boxdet/geometry/masks.py', 'boxdet/datasets/', 'boxdet/visualization/', 'boxdet/engine/environment.py',
            'boxdet/apis/', 'boxdet/runtime.py', 'tools/', 'demo/'),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path) for path in FILES}


def imported(path: Path) -> list[tuple[str, int]]:
    """The modules that a file imports (absolute), by line; ``from x import y`` counts as x.y where that is one."""
    name = module_name(path)
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[:len(package.split('.')) - node.level + 1] if node.level else []
            source = '.'.join(above + ([node.module] if node.module else []))
            for alias in node.names:
                inner = f'{source}.{alias.name}'
                found.append((inner if inner in MODULES else source, node.lineno))
    return found


def named(path: Path) -> list[tuple[str, int]]:
    """The modules that a file names in texts, docstrings aside, as importlib or a registry would take them."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documentation = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, holders) and node.body
                     and isinstance(node.body[0], ast.Expr)}
    return [(node.value, node.lineno) for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
            and '.' in node.value and '.'.join(node.value.split('.')[:2]) in MODULES]


def room(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} - {''} <= set(FLOORS)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = room(module_name(path))
    # registry.py is where every room's classes meet by name; nothing else reaches up, by importlib either.
    found = imported(path) + (named(path) if here != 'registry' else [])
    upward = [f'{path.relative_to(ROOT)}:{line} imports {target}' for target, line in found
              if target.split('.')[0] == 'boxdet' and here and room(target) and room(target) != here
              and FLOORS[room(target)] >= FLOORS[here]]
    assert not upward


def test_a_name_in_a_text_counts_as_an_import(tmp_path):
    path = tmp_path / 'somewhere.py'
    path.write_text('"""boxdet.engine"""\nimport importlib\nW = '
                    'dict(a=importlib.import_module("boxdet.evaluation.evaluate"))\n')
    assert named(path) == [('boxdet.evaluation.evaluate', 3)]


def test_no_two_files_import_each_other():
    edges = {(module_name(path), target) for path in FILES for target, _ in imported(path) if target in MODULES}
    pairs = sorted({tuple(sorted(edge)) for edge in edges if edge[::-1] in edges and edge[0] != edge[1]})
    assert not pairs


@pytest.mark.parametrize('package', OUTSIDERS)
def test_other_projects_are_touched_in_their_rooms_only(package):
    files = [path for folder in ('boxdet', 'tools', 'demo') for path in (ROOT / folder).rglob('*.py')]
    astray = [f'{path.relative_to(ROOT)}:{line}' for path in files for target, line in imported(path)
              if target.split('.')[0] == package
              and not str(path.relative_to(ROOT)).startswith(OUTSIDERS[package])]
    assert not astray


def test_torch_backends_are_set_only_where_the_user_asked():
    astray = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
            if any(isinstance(t, ast.Attribute) and ast.unparse(t).startswith('torch.backends') for t in targets):
                astray.append(f'{path.relative_to(ROOT)}:{node.lineno}')
    # environment.py does what --deterministic and cudnn_benchmark=True say.
    assert [place for place in astray if not place.startswith('boxdet/engine/environment.py')] == []


def test_registries_name_modules_that_exist():
    from boxdet import registry
    missing = [(name, module) for name, value in vars(registry).items() if isinstance(value, registry.Registry)
               for module in value._modules if importlib.util.find_spec(module) is None]
    assert not missing


def test_the_table_of_families_names_what_each_file_registers():
    from boxdet.registry import FAMILIES, LAYERS, MATCHING, MODELS
    files = {path.stem for path in (ROOT / 'boxdet/models/families').glob('*.py')} - {'__init__'}
    assert {module.rpartition('.')[2] for module in FAMILIES} == files
    found = {module: set() for module in FAMILIES}
    for registry in (MODELS, LAYERS, MATCHING):
        for name in registry.names():
            if registry.get(name).__module__ in found:
                found[registry.get(name).__module__].add(name)
    assert found == {module: set(names) for module, names in FAMILIES.items()}


@pytest.mark.parametrize('folder', ['boxdet', 'tools', 'demo', 'benchmarks'])
def test_functions_stay_short_and_finished(folder):
    faults = []
    for path in (ROOT / folder).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) \
                    and node.end_lineno - node.body[0].lineno + 1 > 60:
                faults.append(f'{path.relative_to(ROOT)}:{node.lineno} {node.name} is longer than 60 lines')
            if isinstance(node, ast.Raise) and node.exc is not None and 'NotImplementedError' in ast.unparse(node.exc):
                faults.append(f'{path.relative_to(ROOT)}:{node.lineno} is not implemented')
            if isinstance(node, ast.ImportFrom) and any(alias.name == '*' for alias in node.names):
                faults.append(f'{path.relative_to(ROOT)}:{node.lineno} imports *')
    assert not faults


def test_no_file_has_a_catch_all_name():
    assert not [path for path in FILES if path.stem in ('misc', 'utils', 'util', 'helpers', 'helper', 'common', 'core')]


def test_the_type_checker_leaves_nothing_out():
    section = (ROOT / 'pyproject.toml').read_text(encoding='utf-8').partition('[tool.mypy]')[2]
    keys = {line.partition('=')[0].strip() for line in section.splitlines() if '=' in line}
    assert {'files', 'plugins'} <= keys
    assert not keys & {'disable_error_code', 'ignore_errors', 'strict_optional', 'exclude', 'follow_imports'}
