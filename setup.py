"""Install boxdet: `pip install -e .`, with `[tests]`, `[export]`, `[optional]` or `[all]`. Nothing is compiled.

The configs and tools are used from the checkout, as in mmdetection's guide, and are not part of the wheel.
"""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def requirements(name: str) -> list[str]:
    """The lines of requirements/NAME.txt without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    stripped = (line.split('#')[0].strip() for line in lines)
    return [line for line in stripped if line]


extras = {name: requirements(name) for name in ('optional', 'export', 'tests')}
extras['all'] = sorted(set(sum(extras.values(), [])))

setup(
    name='boxdet',
    version=runpy.run_path(str(ROOT / 'boxdet' / 'version.py'))['__version__'],
    description="Two-stage object detection with mmdetection 2.x's configs, on torchvision's operators",
    long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['boxdet', 'boxdet.*']),
    package_data={'boxdet': ['zoo.json'], 'boxdet.evaluation': ['report.html']},
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require=extras,
)
