"""docs/troubleshooting.md: each entry is reached from a message, and each message reaches an entry."""
import re
import subprocess
import sys


def test_messages_and_entries_belong_together(repo_root):
    headings = re.findall(r'^## (.+)$', (repo_root / 'docs/troubleshooting.md').read_text(), re.M)
    entries = {heading.lower().replace(' ', '-') for heading in headings}
    reached = {anchor for path in (repo_root / 'boxdet').rglob('*.py')
               for anchor in re.findall(r'docs/troubleshooting\.md#([\w-]+)', path.read_text())}
    assert reached == entries and len(entries) == 6


def test_what_it_advises_are_keys_that_there_are(repo_root):
    text = (repo_root / 'docs/troubleshooting.md').read_text()
    options = ['data.samples_per_gpu=1', 'optimizer_config.cumulative_iters=2', 'fp16.loss_scale=dynamic',
               "optimizer_config.grad_clip=dict(max_norm=35, norm_type=2)", 'model.backbone.with_cp=True',
               "fp16.dtype='bfloat16'"]
    for option in options:
        assert option in text, option
    from boxdet.engine.config import check_config, load_config
    cfg = load_config(repo_root / 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py', {
        'data.samples_per_gpu': 1, 'optimizer_config.cumulative_iters': 2, 'fp16': dict(dtype='bfloat16'),
        'optimizer_config.grad_clip': dict(max_norm=35, norm_type=2), 'model.backbone.with_cp': True,
        'lr_config.warmup': 'linear', 'lr_config.warmup_iters': 1000, 'opencv_num_threads': 0,
        'mp_start_method': 'spawn'})
    check_config(cfg)


def test_out_of_memory_is_one_line():
    program = ('from boxdet.errors import run_command\n'
               'class OutOfMemoryError(RuntimeError): pass\n'
               'def main(): raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\\nmore")\n'
               'run_command(main)')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ('error: out of memory: CUDA out of memory. Tried to allocate 2 GiB.; see '
                           'docs/troubleshooting.md#out-of-memory\n')
