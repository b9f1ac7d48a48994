"""Results in the data set's order, on the CPU; progress on a terminal and elsewhere."""
import io

import pytest
import torch
from toy_training import ToyDetector, toy_loader

from boxdet.engine.evaluation_loop import Progress, run_inference


@pytest.mark.parametrize('batch', [1, 2, 8])
def test_results_in_order(batch, capsys):
    torch.manual_seed(0)
    model = ToyDetector()
    calls = []
    results = run_inference(model, toy_loader(5, batch, shuffle=False), 'cpu',
                            on_result=lambda index, meta, result: calls.append((index, meta.filename, result)))
    assert len(results) == 5 and not model.training and not results[0].scores.requires_grad
    assert [(i, name) for i, name, _ in calls] == [(i, f'img_{i}.jpg') for i in range(5)]
    assert all(torch.equal(result.scores, seen.scores) for result, (_, _, seen) in zip(results, calls))
    assert '5/5 images' in capsys.readouterr().out


def test_no_progress_when_not_wanted(capsys):
    run_inference(ToyDetector(), toy_loader(3, 1, shuffle=False), 'cpu', progress=False)
    assert capsys.readouterr().out == ''


def test_views_reach_the_detector_together():
    class Views(ToyDetector):
        def forward(self, batch, mode='loss', rescale=True):
            assert mode == 'predict' and rescale and isinstance(batch, list) and len(batch) == 2
            return super().forward(batch[0], mode)
    batches = list(toy_loader(4, 2, shuffle=False))

    class Loader(list):
        dataset = range(4)
    assert len(run_inference(Views(), Loader([b, b] for b in batches), 'cpu', progress=False)) == 4


def test_a_detector_that_loses_images_is_noticed():
    class Loses(ToyDetector):
        def forward(self, batch, mode='loss', rescale=True):
            return super().forward(batch, mode)[:1]
    with pytest.raises(RuntimeError, match='1 results for 2 images'):
        run_inference(Loses(), toy_loader(4, 2, shuffle=False), 'cpu', progress=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line():
    stream = Terminal()
    progress = Progress(4, stream=stream)
    progress._between = 0
    for _ in range(4):
        progress.advance(1)
    progress.close()
    assert stream.getvalue().count('\n') == 1 and stream.getvalue().count('\r') == 5
    assert '[###############               ] 2/4 images' in stream.getvalue()


def test_progress_elsewhere_is_lines():
    stream = io.StringIO()
    progress = Progress(40, ranks=2, stream=stream)
    for _ in range(20):
        progress.advance(1)
    progress.close()
    assert stream.getvalue().count('\n') == 1 and stream.getvalue().startswith('40/40 images, ')
