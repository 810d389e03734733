"""``python -m tests.bench [NAME...]``: run the benchmarks, or those named, and print their tables.

A benchmark is a module of this package with a ``main()``.  Absolute times are those of this machine
at this moment; what counts are the ratios within one table.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

from tests import bench
from tests.guest.command import run_command


def main(names: list[str]) -> int:
    """Run ``names``; without any, all."""
    found = sorted(
        module.name for module in pkgutil.iter_modules(bench.__path__) if module.name != "__main__"
    )
    unknown = [name for name in names if name not in found]
    if unknown:
        print(
            f"there is no benchmark {', '.join(unknown)}; there are: {', '.join(found)}. "
            "One that has options takes them as python -m tests.bench.NAME --help says.",
            file=sys.stderr,
        )
        return 2
    for name in names or found:
        print(f"\n== {name}", flush=True)
        module = importlib.import_module(f"tests.bench.{name}")
        if hasattr(module, "main"):
            module.main()
    return 0


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
