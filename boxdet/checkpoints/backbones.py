"""Backbone weights that configs ask for by name: ``scheme://name`` to an address.

The names are those of mmcv 1.x (``open-mmlab://``, ``mmcls://``), torchvision and detectron2.
"""
from __future__ import annotations

from boxdet.errors import CheckpointError, nearest

_OPEN_MMLAB = {
    'vgg16_caffe': 'vgg16_caffe-292e1171.pth',
    'detectron/resnet50_caffe': 'resnet50_caffe-788b5fa3.pth',
    'detectron/resnet101_caffe': 'resnet101_caffe-3ad79236.pth',
    'detectron2/resnet50_caffe': 'resnet50_msra-5891d200.pth',
    'detectron2/resnet101_caffe': 'resnet101_msra-6cc46731.pth',
    'detectron2/resnext101_32x8d': 'resnext101_32x8d-1516f1aa.pth',
    'resnext50_32x4d': 'resnext50-32x4d-0ab1a123.pth',
    'resnext101_32x4d': 'resnext101_32x4d-a5af3160.pth',
    'resnext101_64x4d': 'resnext101_64x4d-ee2c6f71.pth',
    'contrib/resnet50_gn': 'resnet50_gn_thangvubk-ad1730dd.pth',
    'detectron/resnet50_gn': 'resnet50_gn-9186a21c.pth',
    'detectron/resnet101_gn': 'resnet101_gn-cac0ab98.pth',
    'jhu/resnet50_gn_ws': 'resnet50_gn_ws-15beedd8.pth',
    'jhu/resnet101_gn_ws': 'resnet101_gn_ws-3e3c308c.pth',
    'jhu/resnext50_32x4d_gn_ws': 'resnext50_32x4d_gn_ws-0d87ac85.pth',
    'jhu/resnext101_32x4d_gn_ws': 'resnext101_32x4d_gn_ws-34ac1a9e.pth',
    'resnet18_v1c': 'resnet18_v1c-b5776b93.pth',
    'resnet50_v1c': 'resnet50_v1c-2cccc1ad.pth',
    'resnet101_v1c': 'resnet101_v1c-e67eebb6.pth',
    'jhu/resnext50_32x4d_gn': 'resnext50_32x4d_gn-c7e8b754.pth',
    'jhu/resnext101_32x4d_gn': 'resnext101_32x4d_gn-ac3bb84e.pth',
    'msra/hrnetv2_w18_small': 'hrnetv2_w18_small-b5a04e21.pth',
    'msra/hrnetv2_w18': 'hrnetv2_w18-00eb2006.pth',
    'msra/hrnetv2_w32': 'hrnetv2_w32-dc9eeb4f.pth',
    'msra/hrnetv2_w40': 'hrnetv2_w40-ed0b031c.pth',
    'msra/hrnetv2_w48': 'hrnetv2_w48-d2186c55.pth',
    'res2net101_v1d_26w_4s': 'res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth',
    'regnetx_400mf': 'regnetx_400mf-a5b10d96.pth',
    'regnetx_800mf': 'regnetx_800mf-1f4be4c7.pth',
    'regnetx_1.6gf': 'regnetx_1.6gf-5791c176.pth',
    'regnetx_3.2gf': 'regnetx_3.2gf-c2599b0f.pth',
    'regnetx_4.0gf': 'regnetx_4.0gf-a88f671e.pth',
    'regnetx_6.4gf': 'regnetx_6.4gf-006af45d.pth',
    'regnetx_8.0gf': 'regnetx_8.0gf-3c68abe7.pth',
    'regnetx_12gf': 'regnetx_12gf-4c2a3350.pth',
    'resnest50': 'resnest50_d2-7497a55b.pth',
    'resnest101': 'resnest101_d2-f3b931b2.pth',
    'resnest200': 'resnest200_d2-ca88e41f.pth',
}
_MMCLS = {
    'vgg11': 'vgg/vgg11_batch256_imagenet_20210208-4271cd6c',
    'vgg13': 'vgg/vgg13_batch256_imagenet_20210208-4d1d6080',
    'vgg16': 'vgg/vgg16_batch256_imagenet_20210208-db26f1a5',
    'vgg19': 'vgg/vgg19_bn_batch256_imagenet_20210208-da620c4f',
    'vgg11_bn': 'vgg/vgg11_bn_batch256_imagenet_20210207-f244902c',
    'vgg13_bn': 'vgg/vgg13_bn_batch256_imagenet_20210207-1a8b7864',
    'vgg16_bn': 'vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29',
    'vgg19_bn': 'vgg/vgg19_bn_batch256_imagenet_20210208-da620c4f',
    'resnet18': 'resnet/resnet18_batch256_imagenet_20200708-34ab8f90',
    'resnet34': 'resnet/resnet34_batch256_imagenet_20200708-32ffb4f7',
    'resnet50': 'resnet/resnet50_batch256_imagenet_20200708-cfb998bf',
    'resnet101': 'resnet/resnet101_batch256_imagenet_20200708-753f3608',
    'resnet152': 'resnet/resnet152_batch256_imagenet_20200708-ec25b1f9',
    'resnet50_v1d': 'resnet/resnetv1d50_batch256_imagenet_20200708-1ad0ce94',
    'resnet101_v1d': 'resnet/resnetv1d101_batch256_imagenet_20200708-9cb302ef',
    'resnet152_v1d': 'resnet/resnetv1d152_batch256_imagenet_20200708-e79cb6a2',
    'resnext50_32x4d': 'resnext/resnext50_32x4d_b32x8_imagenet_20210429-56066e27',
    'resnext101_32x4d': 'resnext/resnext101_32x4d_b32x8_imagenet_20210506-e0fa3dd5',
    'resnext101_32x8d': 'resnext/resnext101_32x8d_b32x8_imagenet_20210506-23a247d5',
    'resnext152_32x4d': 'resnext/resnext152_32x4d_b32x8_imagenet_20210524-927787be',
    'resnest50': 'resnest/resnest50_imagenet_converted-1ebf0afe',
    'resnest101': 'resnest/resnest101_imagenet_converted-032caa52',
    'resnest200': 'resnest/resnest200_imagenet_converted-581a60f2',
    'resnest269': 'resnest/resnest269_imagenet_converted-59930960',
    'mobilenet_v2': 'mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af',
}
_PLACES = {
    'open-mmlab': ('https://download.openmmlab.com/pretrain/third_party/{}', _OPEN_MMLAB),
    'mmcls': ('https://download.openmmlab.com/mmclassification/v0/{}.pth', _MMCLS)}
_PLACES['openmmlab'] = _PLACES['open-mmlab']
SCHEMES = ('torchvision', 'modelzoo', 'detectron2', *_PLACES)


def url(scheme: str, name: str) -> str:
    """The address behind ``scheme://name``, a scheme of ``SCHEMES``.

    Raises:
        CheckpointError: no model of that name is known; the message has the nearest.
    """
    if scheme in ('torchvision', 'modelzoo'):
        return _torchvision_url(name)
    if scheme == 'detectron2':  # a path in its storage
        return f'https://dl.fbaipublicfiles.com/detectron2/{name}'
    address, names = _PLACES[scheme]
    if name not in names:
        raise CheckpointError(f'{scheme}://{name}: no model of that name is known{nearest(name, names)}')
    return address.format(names[name])


def _torchvision_url(name: str) -> str:
    from torchvision import models
    names = models.list_models(module=models)
    if name not in names:
        raise CheckpointError(f"torchvision://{name}: torchvision has no such model{nearest(name, names)}")
    # The first weights that torchvision published are the ones that torchvision:// meant when configs were written.
    return next(iter(models.get_model_weights(name))).url
