"""The documentation site is built without a warning: links, anchors, pages in the navigation, docstrings of the API."""
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_site(repo_root, tmp_path):
    done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path / 'site'],
                          capture_output=True, text=True, cwd=repo_root)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (repo_root / 'docs').glob('*.md')} - {'index'}
    assert {path.parent.name for path in (tmp_path / 'site').glob('*/index.html')} == pages
    api = (tmp_path / 'site/api/index.html').read_text()
    assert 'id="boxdet.apis.inference.init_detector"' in api and 'cfg_options' in api
    assert '../configs/' not in (tmp_path / 'site/model_zoo/index.html').read_text()
