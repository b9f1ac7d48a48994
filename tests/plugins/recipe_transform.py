"""A transform that takes transforms of another library, as 2.x's Albu does; 'Resize' is not boxdet's here."""
from boxdet.datasets import PIPELINES


@PIPELINES.register_module()
class Recipe:
    def __init__(self, transforms, **kwargs):
        if [one['type'] for one in transforms] != ['Invert', 'Resize'] or transforms[1]['height'] != 3:
            raise ValueError(transforms)
        self.options = kwargs

    def __call__(self, results):
        results['img'] = 255 - results['img']
        results['inverted'] = self.options['note']
        return results
