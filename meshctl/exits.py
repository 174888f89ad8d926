"""Exit codes of every command; `meshctl --help` and docs/meshctl.md tell them.

Without `typing.Final`: `meshctl --help` loads this module, and that one costs a fifth of its time.
"""

EXIT_OK = 0
EXIT_PROBLEM = 1
"""The answer is that something is wrong."""
EXIT_USAGE = 2
"""The question is wrong: arguments, files, names."""
EXIT_UNREACHABLE = 3
"""There is no answer: cluster or agent are silent, or refuse."""
