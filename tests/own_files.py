"""A user's own files that are called like the rooms of this project, and a copy of the checkout to put them into."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN = ("data.py", "rl.py", "launch.py", "envs/__init__.py", "recipes/__init__.py")


def put_own_files(folder: Path) -> None:
    """Importing any of them is an error. What is there already stays."""
    for name in OWN:
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).write_text(f"raise SystemExit('the user\\'s own {name} was run')\n")


def copy_of_the_checkout(folder: Path) -> Path:
    """What git knows, as it lies there now."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (folder / name).symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    return folder
