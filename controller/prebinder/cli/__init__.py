"""The `prebinder` command: reads the configuration, wires the parts, runs them, and asks those that run.

Exit codes (documented in docs/cli.md):
    0    done
    1    the build or launch that was asked for failed
    2    bad usage, or a configuration file that cannot be used
    3    something that is needed is away: no controller, engine, Hub, registry; a port that is taken
    130  interrupted
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console command."""
    try:
        # Here, because it takes a second, and Ctrl-C may come meanwhile.
        from prebinder.cli.commands import run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
