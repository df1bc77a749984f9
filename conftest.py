"""What is collected: modules that need an extra, only where it is installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["dbdask/torch"]
