"""Lets the engine's tests import their toy training (pytest's importlib mode leaves sys.path alone)."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
