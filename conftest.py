"""What is collected: modules that need an extra, only where it is installed."""

from importlib.util import find_spec

collect_ignore = [
    package
    for package, extra in (("dbdask/torch", "torch"), ("dbdask/sklearn", "sklearn"))
    if not find_spec(extra)
]
