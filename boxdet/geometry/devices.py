"""What is shared between threads and streams, and in which order it is used."""
from __future__ import annotations

import threading

import torch


def line_of_work(device: torch.device) -> tuple[int, int]:
    """This thread and its current stream on ``device``: work of one such pair is done in the order it is given in.

    What is remembered for the next call, such as a grid, is remembered for one line of work. Another one could read it
    before it is written, or after its memory was given to something else.
    """
    stream = 0
    if device.type == 'cuda' and torch.cuda.is_initialized():
        stream = torch.cuda.current_stream(device).cuda_stream
    return threading.get_ident(), stream
