"""Fashion-MNIST (MIT licence): 70,000 grey pictures of clothes, from a package of Debian.

The package is `dataset-fashion-mnist`. Where it is not installed, apt downloads it, and its files
are kept in a cache; nothing is installed.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from pipelines.command_line import say

PACKAGE = "dataset-fashion-mnist"
WITHIN = Path("usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def cache() -> Path:
    """Return the folder that keeps what was downloaded."""
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(above) / "dbdask" / "fashion-mnist"


def folder(installed: Path = Path("/") / WITHIN) -> Path:
    """Return the folder of the four idx files; download them if there is none.

    Raises
    ------
    FileNotFoundError
        They are neither installed nor in the cache, and cannot be downloaded.
    """
    for known in (installed, cache()):
        if known.is_dir():
            say(f"Fashion-MNIST is in {known}")
            return known
    say(f"downloading Debian's package {PACKAGE} (31 MB)")
    try:
        download(cache())
    except (OSError, subprocess.CalledProcessError) as error:
        raise FileNotFoundError(
            f"Fashion-MNIST could not be obtained: {_reason(error)}. Install Debian's package "
            f"with `apt-get install {PACKAGE}` (after `apt-get update` if it is not known), or "
            "give pictures of your own with --idx or --folder"
        ) from error
    say(f"Fashion-MNIST is now in {cache()}")
    return cache()


def download(into: Path) -> None:
    """Download the package, and move its files to a new folder at once.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        A program is missing or fails, or the package has other files.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent) as name:
        _run(["apt-get", "download", PACKAGE], name)
        package = next(Path(name).glob("*.deb"), None)
        if package is None:
            raise FileNotFoundError(f"apt-get download {PACKAGE} has left no package")
        _run(["dpkg-deb", "-x", package.name, "files"], name)
        (Path(name) / "files" / WITHIN).rename(into)


def _run(command: list[str], within: str) -> None:
    subprocess.run(command, cwd=within, check=True, capture_output=True, text=True)


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or error.stdout or "").strip().splitlines()
        return f"`{' '.join(error.cmd)}` failed: {said[-1] if said else error.returncode}"
    return str(error)
