"""What boxdet imports stands in requirements/, and what stands there is imported or explained."""
import ast
import re
import sys

# Modules that are called other than their distribution.
DISTRIBUTIONS = {'PIL': 'pillow', 'cv2': 'opencv-python', 'mmcv': 'mmcv-lite', 'mlflow': 'mlflow-skinny',
                 'yaml': 'pyyaml'}
# What requirements/runtime.txt says of timm; what torch brings, and is asked for only by a type checker.
ELSEWHERE = {'timm', 'typing-extensions'}


def imported(folder):
    """Distributions that the files below ``folder`` import, whole or within a function."""
    names = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition('.')[0])
    foreign = names - set(sys.stdlib_module_names) - {'boxdet', '__future__', '_compat_pickle'}
    return {DISTRIBUTIONS.get(name, name.replace('_', '-')) for name in foreign}


def required(repo_root):
    """Whether each distribution in requirements/ has an explanation in its line or its file."""
    explained = {}
    for path in (repo_root / 'requirements').glob('*.txt'):
        lines = path.read_text().splitlines()
        for line in lines:
            name = re.match(r'[\w-]+', line)
            if name:
                explained[name[0].lower()] = '#' in line or path.stem not in ('runtime', 'tests')
    return explained


def test_what_is_imported_is_required(repo_root):
    assert imported(repo_root / 'boxdet') - ELSEWHERE <= set(required(repo_root))


def test_what_is_required_is_imported_or_explained(repo_root):
    used = imported(repo_root / 'boxdet')
    assert [name for name, explained in required(repo_root).items() if name not in used and not explained] == []
