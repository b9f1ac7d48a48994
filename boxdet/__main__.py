"""``python -m boxdet`` is the command ``boxdet``."""
from boxdet.cli.command import main

if __name__ == '__main__':
    main()
