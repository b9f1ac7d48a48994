"""What each of the processes of test_distributed.py runs: train the toy, evaluate it, save what came out."""
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import torch  # noqa: E402
from toy_training import ToyDetector, toy_loader, toy_runner  # noqa: E402

from boxdet.engine.distributed import (  # noqa: E402
    all_gather_objects,
    broadcast_object,
    get_dist_info,
    init_dist,
    mean_over_ranks,
    shut_down,
    wrap_distributed,
)
from boxdet.engine.evaluation_loop import run_inference  # noqa: E402
from boxdet.engine.hooks import CheckpointHook, EvaluationHook  # noqa: E402
from boxdet.engine.loggers import TextLoggerHook  # noqa: E402


def main(out: Path) -> None:
    init_dist(sys.argv[2], dict(backend='nccl'))  # there is no GPU: gloo
    rank, world = get_dist_info()
    torch.manual_seed(rank)  # DDP must make the weights one
    model = wrap_distributed(ToyDetector(), torch.device('cpu'))
    seen = []

    def evaluate(dataset, results, logger=None):
        seen.append(len(results))
        return dict(bbox_mAP=float(torch.cat([r.scores for r in results]).mean()))
    hooks = [CheckpointHook(interval=1), TextLoggerHook(interval=2),
             EvaluationHook(None, toy_loader(5, 2, shuffle=False, dist=True), evaluate, progress=False,
                            save_best='auto', tmpdir=str(out / 'exchange'))]
    runner = toy_runner(out / 'run', 2, hooks=hooks, model=model, loader=toy_loader(8, 1, dist=True))
    metrics, report = [], runner.report_metrics
    runner.report_metrics = lambda values, *args: (metrics.append(values), report(values, *args))
    runner.train()
    results = run_inference(runner.model, toy_loader(5, 1, shuffle=False, dist=True), 'cpu', progress=False)
    facts = dict(rank=rank, world=world, iterations=runner.iter, evaluated=seen, metrics=metrics,
                 gathered=all_gather_objects(rank * 10), broadcast=broadcast_object(f'from {rank}'),
                 mean=mean_over_ranks(dict(a=float(rank), b=2.)),
                 scores=None if results is None else torch.cat([r.scores for r in results]).tolist())
    (out / f'facts_{rank}.json').write_text(json.dumps(facts))
    torch.save(runner.model.module.state_dict(), out / f'weights_{rank}.pth')
    shut_down()


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
