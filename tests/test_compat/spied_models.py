"""What the scripts of this folder share: a batch with masks, and subclasses that note which methods were called."""
import numpy as np
import torch

from boxdet.structures.batch import Batch, ImageMeta
from boxdet.structures.instances import Instances
from boxdet.structures.masks import BitmapMasks

called = set()


def batch():
    """Two images with two objects each."""
    boxes = torch.tensor([[8., 8, 60, 70], [40, 30, 110, 100]])
    bits = np.zeros((2, 128, 128), np.uint8)
    bits[0, 8:70, 8:60] = bits[1, 30:100, 40:110] = 1
    meta = ImageMeta(img_shape=(128, 128, 3), ori_shape=(64, 64, 3), pad_shape=(128, 128, 3),
                     scale_factor=np.full(4, 2, np.float32))
    gt = [Instances(bboxes=boxes, labels=torch.tensor([0, 1]), masks=BitmapMasks(bits, 128, 128)) for _ in range(2)]
    return Batch(torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5)), [meta, meta], gt,
                 [torch.zeros(0, 4)] * 2)


def spying(registry, base, *names):
    """The name of a registered subclass whose methods add themselves to ``called``, and call the base's."""
    def spy(name):
        def method(self, *args, **kwargs):
            called.add(name)
            return getattr(super(made, self), name)(*args, **kwargs)
        return method
    made = type(f'My{base.__name__}', (base,), {name: spy(name) for name in names})
    return registry.register_module(name=made.__name__, force=True)(made).__name__
