"""What the TAB key offers after ``boxdet …``, and the lines that make bash, zsh and fish ask for it."""
from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from boxdet.cli.programs import PROGRAMS
from boxdet.errors import ConfigError, nearest
from boxdet.files.shipped import ROOT, config_folders

# Each asks `boxdet completion -- WORD …` for the candidates of the last word; where there is none, files are completed.
SCRIPTS = {
    'bash': '''\
_boxdet() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(boxdet completion -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" \\
        -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _boxdet boxdet
''',
    'zsh': '''\
#compdef boxdet
_boxdet() {
    local -a found
    found=("${(@f)$(boxdet completion -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [[ -n $found ]] && compadd -a found
    _files
}
compdef _boxdet boxdet
''',
    'fish': '''\
function __boxdet
    set -l words (commandline -opc) (commandline -ct)
    boxdet completion -- $words[2..] 2>/dev/null
end
complete -c boxdet -a '(__boxdet)'
''',
}


def script(arguments: Sequence[str]) -> str:
    """What the shell is to read: ``eval "$(boxdet completion bash)"``.

    Args:
        arguments: the name of the shell.

    Raises:
        ConfigError: none, or another shell.
    """
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        given = ' '.join(arguments)
        raise ConfigError(f"boxdet completion takes the name of a shell, {', '.join(SCRIPTS)}, not "
                          f"'{given}'{nearest(given, SCRIPTS)}")
    return SCRIPTS[arguments[0]]


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of ``words``, which follow 'boxdet', may become; none where a file is to be written there."""
    *before, word = words or ['']
    if not before:
        known = [*PROGRAMS, 'completion']
    elif before[0] == 'completion':
        known = list(SCRIPTS)
    else:
        known = _of_program(before[0].replace('-', '_'), before[1:], word)
    return sorted(one for one in known if one.startswith(word))


def _of_program(name: str, before: Sequence[str], word: str) -> list[str]:
    path = ROOT / PROGRAMS.get(name, '')
    if path.suffix == '.sh':  # its options are those of the program that it starts
        path = path.with_name(path.stem.partition('_')[2] + '.py')
    if not path.is_file():
        return []
    options, choices, takes_config = _arguments_of(path)
    if before and before[-1] in choices:
        return choices[before[-1]]
    if word.startswith('-'):
        return options
    first = not any(one.startswith('-') for one in before)
    return sorted({file.stem for folder in config_folders() for file in folder.rglob('*.py')
                   if '_base_' not in file.parts}) if takes_config and first else []


def _arguments_of(path: Path) -> tuple[list[str], dict[str, list[str]], bool]:
    """Options of a program, the choices of those that have some, whether it takes a config: read, not run."""
    options, takes_config = ['--help'], False
    choices: dict[str, list[str]] = {}
    for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(call, ast.Call) or getattr(call.func, 'attr', '') != 'add_argument':
            continue
        names = [str(arg.value) for arg in call.args if isinstance(arg, ast.Constant)]
        takes_config = takes_config or 'config' in names
        options += [name for name in names if name.startswith('--')]
        for keyword in call.keywords:
            if keyword.arg == 'choices' and isinstance(keyword.value, (ast.List, ast.Tuple)):
                choices.update({name: [str(ast.literal_eval(one)) for one in keyword.value.elts] for name in names})
    return options, choices, takes_config
