"""Loading, merging, origins and options (config.py, config_source.py); the check is in test_config_check.py."""

import copy
import os
import pickle
import sys

import pytest

from boxdet.engine.config import ABSENT, Config, load_config, parse_options, parse_value
from boxdet.errors import ConfigError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into an empty working directory: ``write(name, text) -> name``."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name
    return write


# ------------------------------------------------------------------------------ inheritance


def test_dicts_merge_lists_replace_and_delete_starts_over(write):
    write('base.py', "a = dict(x=1, y=dict(z=2), l=[1, 2])\nb = 3\n")
    cfg = load_config(write('leaf.py', "_base_ = './base.py'\na = dict(y=dict(w=5), l=[3])\n"))
    assert cfg.to_dict() == dict(a=dict(x=1, y=dict(z=2, w=5), l=[3]), b=3)
    cfg = load_config(write('anew.py', "_base_ = 'base.py'\na = dict(_delete_=True, y=dict(_delete_=True, w=5))\n"))
    assert cfg.a == dict(y=dict(w=5))


def test_several_bases_and_the_order_of_files(write):
    write('one.py', 'a = 1\n')
    write('sub/two.py', "_base_ = '../three.py'\nb = 2\n")
    write('three.py', 'c = 3\n')
    cfg = load_config(write('leaf.py', "_base_ = ['one.py', 'sub/two.py']\nc = 4\n"))
    assert cfg.to_dict() == dict(a=1, b=2, c=4)
    assert [str(file) for file in cfg.files] == ['one.py', 'three.py', 'sub/two.py', 'leaf.py']


def test_variables_are_used_many_times_without_being_shared(write):
    cfg = load_config(write('a.py', "norm = dict(type='GN', _delete_=True)\na = dict(n=norm)\nb = dict(n=norm)\n"))
    cfg.a.n.type = 'BN'
    assert cfg.b.n == dict(type='GN') and cfg.norm == dict(type='GN')


def test_base_values_and_file_names(write):
    write('base.py', "lr = 0.02\nsteps = [8, 11]\nmodel = dict(depth=50)\n")
    text = """_base_ = 'base.py'
half = {{_base_.lr}} / 2
lr_config = dict(step={{ _base_.steps }}, depth={{_base_.model.depth}}, more=[s + 1 for s in {{_base_.steps}}])
work_dir = './work_dirs/{{ fileBasenameNoExtension }}{{fileExtname}}'
kept = {1, 2}
"""
    cfg = load_config(write('leaf.py', text))
    assert cfg.half == 0.01 and cfg.work_dir == './work_dirs/leaf.py' and cfg.kept == {1, 2}
    assert cfg.lr_config == dict(step=[8, 11], depth=50, more=[9, 12])
    cfg.lr_config.step.append(1)
    assert cfg.steps == [8, 11]


def test_code_functions_and_imports_are_not_keys(write):
    text = "import os\nfrom pathlib import Path\ndef f():\n    return 4\nfor i in range(2):\n    n = f() + i\ndel i\n"
    assert load_config(write('a.py', text)).to_dict() == dict(n=5)


@pytest.mark.parametrize('name, text', [
    ('leaf.json', '{"_base_": ["base.py"], "b": {"y": 2}, "l": {{_base_.l}}}'),
    ('leaf.yaml', '_base_: base.py\nb:\n  y: 2\nl: {{_base_.l}}\n'),
    ('leaf.yml', '_base_:\n  [base.py]\nb: {y: 2}\nl: "{{ _base_.l }}"\n'),
])
def test_json_and_yaml(write, name, text):
    write('base.py', "b = dict(x=1)\nl = [1, 'two']\n")
    assert load_config(write(name, text)).to_dict() == dict(b=dict(x=1, y=2), l=[1, 'two'])


def test_a_dict_may_replace_none_but_not_a_number(write):
    write('base.py', 'a = dict(grad_clip=None, depth=50)\n')
    assert load_config(write('ok.py', "_base_ = 'base.py'\na = dict(grad_clip=dict(max_norm=35))\n")).a.grad_clip
    with pytest.raises(ConfigError, match=r'a\.depth \(bad\.py:2\): a dict cannot be merged into .* int'):
        load_config(write('bad.py', "_base_ = 'base.py'\na = dict(depth=dict(n=1))\n"))


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize('text, message', [
    ("a = 1\nb = dict(x=1\n", r'bad\.py:2: .*never closed'),
    ("a = 1\n\nb = nothing\n", r"bad\.py:3: NameError: name 'nothing' is not defined"),
    ("_base_ = './bse.py'\n", r"bse\.py: no such config file \(a '_base_' of bad\.py\); did you mean base\.py\?"),
    ("_base_ = './nowhere/absent.py'\n", r'there is no folder nowhere'),
    ("_base_ = './nowhere/base.py'\n", r'did you mean base\.py\?'),
    ("a = {{_base_.a}}\n_base_ = 'ba' + 'se.py'\n", r"bad\.py:1: NameError"),
    ("_base_ = [1] + [2]\n", r"bad\.py:1: '_base_' must be a file name"),
    ("_base_ = './bad.py'\n", r"bad\.py: '_base_' leads back to bad\.py"),
    ("_base_ = ['base.py', 'other.py']\n", r"bad\.py: the bases base\.py and other\.py both set 'a'"),
    ("_base_ = 3\n", r"bad\.py:1: '_base_' must be a file name"),
    ("_base_ = 'base.py'\n\nb = {{_base_.c}}\n", r"bad\.py:3: AttributeError"),
    ("text = 'a'\n", r"bad\.py: 'text' is a name that Config keeps for itself"),
    ("with read_base():\n    from .bse import *\n", r"bse\.py: no such config file \(a '_base_' of bad\.py\); did you "
                                                    r"mean base\.py"),
    ("custom_imports = dict(imports=['no.such.module'])\n", r"custom_imports \(bad\.py:1\): cannot import 'no\.such"),
])
def test_errors_name_file_and_line(write, text, message):
    write('base.py', 'a = 1\n')
    write('other.py', 'a = 2\n')
    with pytest.raises(ConfigError, match=message):
        load_config(write('bad.py', text))


@pytest.mark.parametrize('name, text, message', [
    ('bad.json', '{"a": 1,\n "b": }', r'bad\.json:2: '),
    ('bad.yaml', 'a: 1\nb: [1, 2\n', r'bad\.yaml:3: '),
    ('bad.yaml', '- 1\n- 2\n', 'holds keys and values, not a list'),
    ('bad.json', '{"_base_": "base.py", "b": {{_base_.c}}}', r"bad\.json: its bases set no 'c'"),
    ('bad.toml', 'a = 1', r'is a \.py, \.json, \.yaml or \.yml file'),
])
def test_errors_in_data_files(write, name, text, message):
    write('base.py', 'a = 1\n')
    with pytest.raises(ConfigError, match=message):
        load_config(write(name, text))


def test_a_missing_file_names_the_nearest(write):
    write('mask_rcnn_r50.py', '')
    with pytest.raises(ConfigError, match=r'no such config file; did you mean mask_rcnn_r50\.py\?'):
        load_config('mask_rcnn_r5.py')


def test_custom_imports_are_imported(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write('my_own_heads_module.py', 'VALUE = 1\n')
    config = write('a.py', "custom_imports = dict(imports=['my_own_heads_module'], allow_failed_imports=False)\n")
    load_config(config, import_custom_modules=False)
    assert 'my_own_heads_module' not in sys.modules
    load_config(config)
    assert sys.modules.pop('my_own_heads_module').VALUE == 1


def test_custom_imports_are_looked_for_in_the_working_directory(write, monkeypatch):
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p not in ('', os.getcwd())])
    write('beside_the_user.py', 'VALUE = 2\n')
    load_config(write('a.py', "custom_imports = dict(imports='beside_the_user')\n"))
    assert sys.modules.pop('beside_the_user').VALUE == 2


# ------------------------------------------------------------------------------ origins


@pytest.fixture
def layered(write):
    write('base.py', '''model = dict(
    depth=50,
    init=dict(type='P', checkpoint='r50'))
pipeline = [
    dict(f=0.5)]
data = dict(pipeline=pipeline)
''')
    write('mid.py', "_base_ = 'base.py'\nmodel = dict(depth=101)\n")
    return write('leaf.py', "_base_ = 'mid.py'\n\nmodel = dict(init=dict(_delete_=True, type='X'))\n")


def test_explain_tells_who_set_and_what_was_overridden(layered):
    cfg = load_config(layered, ['model.depth=18', 'data.pipeline.0.f=0'])
    told = [(s.place, s.value) for s in cfg.explain('model.depth')]
    assert told == [('base.py:2', 50), ('mid.py:2', 101), ('--cfg-options', 18)]
    told = [(s.place, s.value) for s in cfg.explain('data.pipeline.0.f')]
    assert told == [('base.py:5', 0.5), ('--cfg-options', 0)]
    assert cfg.origin('data.pipeline.0.f') == '--cfg-options' and cfg.origin('model.depth.no.such') == '--cfg-options'


def test_explain_tells_what_delete_removed(layered):
    cfg = load_config(layered)
    told = [(s.place, s.value) for s in cfg.explain('model.init.checkpoint')]
    assert told == [('base.py:3', 'r50'), ('leaf.py:3', ABSENT)]
    inside = {s.key: s.value for s in cfg.explain('model.init')}
    assert inside == {('model', 'init', 'type'): 'X', ('model', 'init', 'checkpoint'): ABSENT}


def test_explain_of_a_key_that_nobody_set(layered):
    with pytest.raises(ConfigError, match="model.dept: nothing sets this key; did you mean 'depth'"):
        load_config(layered).explain('model.dept')


def test_copies_keep_the_origins(layered):
    cfg = load_config(layered)
    for again in (copy.deepcopy(cfg), copy.copy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert again.to_dict() == cfg.to_dict() and again.origin('model.depth') == 'mid.py:2'


# ------------------------------------------------------------------------------ options


@pytest.mark.parametrize('text, value', [
    ('1', 1), ('1e-3', 1e-3), ('-2.5', -2.5), ('True', True), ('false', False), ('None', None), ('inf', float('inf')),
    ('resnet', 'resnet'), ('data/coco/', 'data/coco/'), ('', ''), ('[]', []), ('()', ()), ('(1,)', (1,)),
    ('1,2', [1, 2]), ('a,b', ['a', 'b']), ('[a, b]', ['a', 'b']), ('(640, 480)', (640, 480)), ('"(1,2)"', (1, 2)),
    ("'[(1, 2), (3, 4)]'", [(1, 2), (3, 4)]), ('[[1, x], y]', [[1, 'x'], 'y']), ("{'a': 1}", {'a': 1}),
    ('"torchvision://resnet50"', 'torchvision://resnet50'), ('2017', 2017), ("'True'", True),
])
def test_values_of_options(text, value):
    read = parse_value(text)
    assert read == value and type(read) is type(value)


def test_options_split_at_the_first_equals_sign():
    assert parse_options(['a.b=1', 'c=x=y', ' d =[1,2]']) == {'a.b': 1, 'c': 'x=y', 'd': [1, 2]}
    for bad in ('a.b', '=1'):
        with pytest.raises(ConfigError, match='KEY=VALUE'):
            parse_options([bad])


def test_options_reach_into_lists_and_make_new_keys(write):
    path = write('a.py', "p = [dict(t='A', x=1), dict(t='B')]\nscale = (1, 2)\nn = None\n")
    cfg = load_config(path, ['p.1.flip=0', 'p.0.x=(5, 6)', 'new.deep.key=1', 'scale.1=7', 'n.a=1'])
    assert cfg.p == [dict(t='A', x=(5, 6)), dict(t='B', flip=0)]
    assert cfg.new.deep.key == 1 and cfg.scale == [1, 7] and cfg.n.a == 1
    cfg.merge_from_dict({'p.0': dict(x=2), 'p.1': dict(_delete_=True, z=1)})
    assert cfg.p == [dict(t='A', x=2), dict(z=1)]


def test_the_next_index_of_a_list_adds_one(write):
    path = write('a.py', "log_config = dict(hooks=[dict(type='TextLoggerHook')])\nnames = ['a']\n")
    cfg = load_config(path, ['log_config.hooks.1.type=TensorboardLoggerHook', 'log_config.hooks.1.interval=5',
                             'names.1=b'])
    assert cfg.log_config.hooks == [dict(type='TextLoggerHook'), dict(type='TensorboardLoggerHook', interval=5)]
    assert cfg.names == ['a', 'b'] and cfg.origin('log_config.hooks.1.interval') == '--cfg-options'


def test_a_variable_is_set_before_others_are_computed_from_it(write):
    write('base.py', '''
root = 'data/coco/'
norm = dict(mean=[1, 2], std=[3, 4])
steps = [dict(type='A'), dict(type='Normalize', **norm)]
data = dict(train=dict(ann_file=root + 'a.json', pipeline=steps), val=dict(ann_file=root + 'v.json'))
''')
    leaf = write('leaf.py', "_base_ = 'base.py'\ntest = {{_base_.root}} + 't.json'\n"
                            'data = dict(test=dict(ann_file=test))\n')
    cfg = load_config(leaf, ['root=/my/', 'norm.mean=[9, 9]', 'steps.0.n=7'])
    assert [cfg.data[split].ann_file for split in ('train', 'val', 'test')] == [
        '/my/a.json', '/my/v.json', '/my/t.json']
    assert cfg.data.train.pipeline == [dict(type='A', n=7), dict(type='Normalize', mean=[9, 9], std=[3, 4])]
    assert [(s.place.rpartition('/')[2], s.value) for s in cfg.explain('root')] == [
        ('base.py:2', 'data/coco/'), ('--cfg-options', '/my/')]
    assert load_config(leaf).data.train.ann_file == 'data/coco/a.json'
    text = "_base_ = 'base.py'\nroot = 'other/'\ndata = dict(train=dict(ann_file=root))\n"
    again = load_config(write('again.py', text), dict(root='/my/'))
    assert again.data.train.ann_file == '/my/' and again.data.val.ann_file == '/my/v.json'


def test_any_python_is_a_config(write, tmp_path):
    write('base.py', "a = 1\nb = dict(x=1)\n")
    (tmp_path / 'names.txt').write_text('apple\npear\n')
    cfg = load_config(write('any.py', f'''
import os
from pathlib import Path
here = Path({str(tmp_path)!r})
if os.environ.get('NO_SUCH_VARIABLE'):
    _base_ = 'absent.py'
else:
    _base_ = [here / 'base.py']
with open(here / 'names.txt') as file:
    classes = tuple(file.read().split())
try:
    c = {{{{_base_.b.x}}}} + 1
finally:
    b = dict(y=here / 'y')
for number in range(3):
    pass
def helper():
    return classes[0]
first = helper()
'''))
    assert (cfg.a, cfg.b, cfg.c) == (1, dict(x=1, y=f'{tmp_path}/y'), 2)
    assert (cfg.classes, cfg.first) == (('apple', 'pear'), 'apple')
    assert 'file' not in cfg and Config.fromstring(cfg.pretty_text).to_dict() == cfg.to_dict()
    write('more.py', 'd = 4\n')
    both = load_config(write('both.py', "where = '.'\n_base_ = [f'{where}/base.py']\n_base_ += ['more.py']\n"))
    assert (both.a, both.d) == (1, 4)


def test_a_config_in_the_wrong_folder_is_found(write, tmp_path, monkeypatch):
    (tmp_path / 'configs/mask_rcnn').mkdir(parents=True)
    write('configs/mask_rcnn/mask_rcnn_r50.py', 'a = 1\n')
    monkeypatch.chdir(tmp_path)
    for wrong in ('configs/mask_rcnn_r50.py', 'configs/faster_rcnn/mask_rcnn_r50.py', 'mask_rcnn_r50.py'):
        with pytest.raises(ConfigError, match=r'did you mean configs/mask_rcnn/mask_rcnn_r50\.py\?'):
            load_config(wrong)


@pytest.mark.parametrize('option, message', [
    ('p.3.t=1', r"--cfg-options p\.3\.t: 'p' has 2 items, 0 to 1; 2 adds one"),
    ('p.t=1', r"'p' is a list of 2; name one by its index, p\.0\.t"),
    ('p.0.t.x=1', r"'p\.0\.t' is 'A', which has no 'x'"),
])
def test_options_that_cannot_be_set(write, option, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write('a.py', "p = [dict(t='A'), dict(t='B')]\n"), [option])


# ------------------------------------------------------------------------------ text


def test_text_is_read_back_without_running_it(write):
    values = dict(model=dict(type='X', **{'a-b': 1, 'class': 2}), ints={1: 2}, inf=float('inf'), low=-float('inf'),
                  one=(1,), empty=[(), [], {}], words="it's\n\"so\"", none=None, long=[dict(a=(1, 2), b='z' * 100)] * 3)
    cfg = Config(values)
    assert Config.fromstring(cfg.pretty_text).to_dict() == values
    assert load_config(write('again.py', cfg.pretty_text)).to_dict() == values
    assert max(len(line) for line in cfg.pretty_text.splitlines()) < 125


@pytest.mark.parametrize('text', ["import os\n", "a = open('x')\n", 'a = dict(b=print(1))\n', 'a += 1\n', 'a = b\n'])
def test_text_that_would_run_is_refused(text):
    with pytest.raises(ConfigError, match=r'<config text>:1: '):
        Config.fromstring(text)


def test_text_of_mmdetection_2_checkpoints_is_read():
    text = "model = dict(\n    type='FasterRCNN',\n    beta=0.111, w=-1, s=[(1, 2), (3, 4)])\nx = None\n"
    cfg = Config.fromstring(text)
    assert cfg.model == dict(type='FasterRCNN', beta=0.111, w=-1, s=[(1, 2), (3, 4)]) and cfg.x is None


def test_dump_writes_a_file_that_loads(write, tmp_path):
    cfg = load_config(write('a.py', "a = dict(x=(1, 2), y=[dict(type='T')])\n"))
    cfg.dump(tmp_path / 'out.py')
    assert load_config(tmp_path / 'out.py').to_dict() == cfg.to_dict()
