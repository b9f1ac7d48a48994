"""``python -m boxdet.compat SCRIPT [ARGS ...]``: run a script that was written for mmdetection 2.x as it is."""
from __future__ import annotations

import os
import runpy
import sys

from boxdet.errors import CommandParser, DataError, run_command


def main() -> None:
    """Run the script of the command line."""
    parser = CommandParser(prog='python -m boxdet.compat', description=__doc__)
    parser.add_argument('--prefer-installed', action='store_true', help='leave a real mmdet alone, where there is one')
    parser.add_argument('script', help='the script; what follows is its own')
    known = sys.argv[1:]
    place = next((i for i, word in enumerate(known) if not word.startswith('-')), len(known))
    args = parser.parse_args(known[:place + 1])
    if not os.path.isfile(args.script):
        raise DataError(f'{args.script}: there is no such script')
    import boxdet.compat
    boxdet.compat.install(args.prefer_installed)
    sys.argv = [args.script, *known[place + 1:]]
    sys.path[0] = os.path.dirname(os.path.abspath(args.script))
    runpy.run_path(args.script, run_name='__main__')


if __name__ == '__main__':
    run_command(main)
