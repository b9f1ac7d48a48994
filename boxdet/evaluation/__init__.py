"""Results to numbers and files: COCO metrics, proposal recall, result files. Reads dataset metadata, never
models.
"""

from .evaluate import evaluate, format_results
from .predictions import from_legacy, load_results, save_results

__all__ = ['evaluate', 'format_results', 'from_legacy', 'load_results', 'save_results']
