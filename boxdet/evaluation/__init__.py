"""Results to numbers and files: evaluators, result files. Reads dataset metadata, never models."""

from boxdet.registry import EVALUATORS

from .evaluate import build_evaluator, evaluate, format_results
from .evaluator import Evaluator
from .predictions import from_legacy, load_results, save_results

__all__ = ['EVALUATORS', 'Evaluator', 'build_evaluator', 'evaluate', 'format_results', 'from_legacy', 'load_results',
           'save_results']
