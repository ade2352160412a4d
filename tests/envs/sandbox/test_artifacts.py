"""What a person gets out of a sandbox whatever the model made of /testbed/output: the good files, and a list."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sandboxrl.envs.sandbox.artifacts import collect

DEEP = "import os\nfor i in range(1500): os.mkdir('d'); os.chdir('d')\nopen('f', 'w').write('x')"
LONG = "import os\nfor i in range(30): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('f', 'w').write('x')"
HUGE = "import os\nfor i in range(6000): os.mkdir('d' * 250); os.chdir('d' * 250)\nopen('f', 'w').write('x')"
BYTES = r"import os; open(b'\xff\xfe\n', 'w').write('x'); os.mkdir('a'); os.mkfifo('pipe'); os.symlink('/etc', 'l')"


@pytest.mark.parametrize("program", [DEEP, LONG, HUGE, BYTES], ids=["deep", "long", "both", "odd names"])
def test_one_odd_tree_costs_itself_only(machine, program):
    async def body(box):
        await box.write({"odd.py": program.encode()})
        await box.exec(
            "mkdir -p output; cd output; echo good > good.txt; mkdir z; echo more > z/more; python3 ../odd.py"
        )
        with TemporaryDirectory() as folder:
            found = await collect(box, Path(folder) / "out")
        assert {("good.txt", 5), ("z/more", 5)} <= set(found.files)
        assert found.left_out

    machine.run(body)


def test_a_sandbox_that_ends_meanwhile_leaves_what_was_copied(machine):
    async def body(box):
        await box.exec("mkdir -p output; for i in $(seq 20); do echo $i > output/$i; done")
        read, count = box.read_part, 0

        async def reading(*of_what):
            nonlocal count
            count += 1
            if count == 5:
                await box.close()
            return await read(*of_what)

        box.read_part = reading
        with TemporaryDirectory() as folder:
            found = await collect(box, Path(folder) / "out")
        assert len(found.files) == 4 and "ended" in found.left_out[-1][1]

    machine.run(body)
