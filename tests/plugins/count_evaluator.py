"""An evaluator from scratch."""
from boxdet.evaluation.evaluator import Evaluator
from boxdet.registry import EVALUATORS


@EVALUATORS.register_module()
class CountEvaluator(Evaluator):
    def __init__(self, limit=0, **kwargs):
        super().__init__(**kwargs)
        self.limit = limit

    def reset(self, dataset, logger=None):
        self.counts = {}

    def process(self, indices, results):
        self.counts.update((index, len(result)) for index, result in zip(indices, results))

    def evaluate(self):
        return dict(images=len(self.counts), most=max(self.counts.values()), limit=self.limit)
