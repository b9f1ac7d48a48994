"""The command ``boxdet``: the programs of ``tools/`` and ``demo/`` by a name, and completion in the shell."""
