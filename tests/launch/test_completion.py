"""What the shell completes, asked as bash asks it: through the function that README's line defines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
eval "$(register-python-argcomplete sandboxrl)"
COMP_WORDS=($COMP_LINE); COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
_python_argcomplete sandboxrl
echo "${COMPREPLY[*]}"
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sandboxrl tra", "train "),
        ("sandboxrl train --fr", "--fresh --from-step"),
        ("sandboxrl train ti", "tiny "),
        ("sandboxrl explain tiny learner.schedule_", "learner.schedule_floor= learner.schedule_steps="),
    ],
)
def test_the_shell_completes(typed: str, offered: str) -> None:
    environment = os.environ | {
        "COMP_LINE": typed,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", "-c", ASK], env=environment, capture_output=True, text=True)
    assert done.stdout.rstrip("\n") == offered, done.stderr
