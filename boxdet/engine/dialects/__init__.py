"""Configs of other projects, read at the door: what comes out is mmdetection 2.x's, which is all that boxdet speaks.

* ``mmdet3``: mmdetection 3.x's sections; ``mmdet3_data``, ``mmdet3_pipeline``, ``mmdet3_training`` hold the tables.
* ``pure_python``: mmengine's ``with read_base()`` files. ``packages``: ``_base_ = 'mmdet::…'``.
* ``checkpoint``: what a checkpoint of mmdetection holds for a resume.
"""
