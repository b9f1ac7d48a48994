"""Install boxdet: `pip install .`, with `[video]`, `[report]`, `[export]`, … or `[all]`. Nothing is compiled.

A wheel holds configs/, tools/, demo/ and the documents in boxdet/share, beside each other as in the checkout, which an
editable install (`pip install -e .`) uses itself; boxdet/files/shipped.py knows where they are.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Folders of the wheel's boxdet/share, and what of them it holds.
SHARED = {'configs': '**/*.py', 'tools': '**/*.*', 'demo': '*.*', 'docs': '*.md'}


class BuildWithShared(build_py):
    """build_py, and the folders of ``SHARED``."""

    def run(self):
        """Copy the modules, then the folders, as they are now."""
        super().run()
        if self.editable_mode:
            return
        share = Path(self.build_lib, 'boxdet', 'share')
        shutil.rmtree(share, ignore_errors=True)
        for path in self.shared():
            (share / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, share / path)

    def get_outputs(self, include_bytecode=True):
        """The files that ``run`` writes."""
        return [*super().get_outputs(include_bytecode),
                *(str(Path(self.build_lib, 'boxdet', 'share', path)) for path in self.shared())]

    def shared(self):
        """Their files, below the checkout."""
        return [path.relative_to(ROOT) for folder, pattern in SHARED.items()
                for path in sorted((ROOT / folder).glob(pattern)) if path.is_file() and path.suffix != '.pyc']


def requirements(name: str) -> list[str]:
    """The lines of requirements/NAME.txt without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    stripped = (line.split('#')[0].strip() for line in lines)
    return [line for line in stripped if line]


extras = {path.stem: requirements(path.stem) for path in sorted((ROOT / 'requirements').glob('*.txt'))
          if path.stem != 'runtime'}
extras['all'] = sorted(set(sum(extras.values(), [])))

setup(
    name='boxdet',
    version=runpy.run_path(str(ROOT / 'boxdet' / 'version.py'))['__version__'],
    description="Two-stage object detection with mmdetection 2.x's configs, on torchvision's operators",
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='object detection, instance segmentation, Faster R-CNN, Mask R-CNN, mmdetection, PyTorch',
    classifiers=['Programming Language :: Python :: 3', 'Operating System :: OS Independent',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    packages=find_packages(include=['boxdet', 'boxdet.*']),
    package_data={'boxdet': ['zoo.json'], 'boxdet.evaluation': ['report.html']},
    cmdclass={'build_py': BuildWithShared},
    entry_points={'console_scripts': ['boxdet = boxdet.cli.command:main']},
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require=extras,
)
