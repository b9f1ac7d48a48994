"""dist_train.sh and dist_test.sh with four, three and two gloo processes on this machine."""
import importlib.util

import pytest
import torch

from boxdet.checkpoints.io import load_checkpoint
from boxdet.evaluation import load_results
from tests.test_docs.examples import launched, runs


def single_process(repo_root, *arguments):
    """tools/test.py in this process."""
    spec = importlib.util.spec_from_file_location('test_tool', repo_root / 'tools/test.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main([str(argument) for argument in arguments])


@pytest.mark.parametrize('option', [['--show'], ['--eval', 'bbox', '--show-dir', 'd']])
def test_showing_takes_one_process(run, option):
    refused = run('dist_test.sh', 'c.py', 'x.pth', '2', *option)
    assert refused.status == 2 and not refused.out
    advice = f"works with one process: run  python tools/test.py c.py x.pth {' '.join(option)}"
    assert refused.err.strip().endswith(advice)


@pytest.mark.slow
@runs('docs/distributed.md: tools/dist_t', 'README.md: bash tools/dist_t')
def test_four_train_three_test_two_go_on(examples, run, toy_config, repo_root, tmp_path):
    train, test, *without_options = (one.filled for one in examples)
    assert all(f'bash {line}'.startswith(short) for line, short in zip((test, train), without_options))
    script, arguments, _ = launched(train, {'config.py': toy_config})
    trained = run(script, *arguments, '--work-dir', tmp_path)
    assert trained.status == 0, trained.err
    assert '4 processes x 1 images' in trained.out and len(list(tmp_path.glob('*.log.json'))) == 1
    checkpoint = tmp_path / 'epoch_1.pth'
    meta = load_checkpoint(checkpoint)['meta']
    assert (meta['world_size'], meta['iter']) == (4, 3)  # 12 images

    # 5 images on 3 ranks
    script, arguments, _ = launched(test, {'config.py': toy_config, 'latest.pth': checkpoint,
                                           'exchange': tmp_path / 'exchange'})
    tested = run(script, *arguments, '--out', tmp_path / 'three.pkl')
    assert tested.status == 0 and 'bbox_mAP: ' in tested.out and 'segm_mAP: ' in tested.out, tested.err
    single_process(repo_root, toy_config, checkpoint, '--out', tmp_path / 'one.pkl', '--device', 'cpu')
    three, one = load_results(tmp_path / 'three.pkl'), load_results(tmp_path / 'one.pkl')
    assert len(three) == len(one) == 5 and sum(map(len, one)) > 5
    for ours, theirs in zip(three, one):
        assert torch.equal(ours.bboxes, theirs.bboxes) and torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels) and list(ours.masks) == list(theirs.masks)

    resumed = run('dist_train.sh', toy_config, '2', '--work-dir', tmp_path, '--auto-resume', '--no-validate',
                  '--cfg-options', 'runner.max_epochs=2')
    assert resumed.status == 0, resumed.err
    assert 'was saved with world_size 4' in resumed.out and 'now there are world_size 2' in resumed.out
    meta = load_checkpoint(tmp_path / 'epoch_2.pth')['meta']
    assert (meta['world_size'], meta['epoch'], meta['seed']) == (2, 2, 0)
