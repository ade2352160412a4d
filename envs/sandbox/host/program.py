"""What runs inside a sandbox, as files to carry there and the words that start it: a sandbox needs no access to this
project's own files."""

from pathlib import Path

from sandboxrl.envs.sandbox.inside import serve

PACKAGE = serve.__name__.rpartition(".")[0]
FILES = {
    f"{PACKAGE.replace('.', '/')}/{source.name}": source.read_bytes()
    for source in sorted(Path(str(serve.__file__)).parent.glob("*.py"))
    if source.name != "__init__.py"
}
"""Path below the folder they are carried to, and contents."""


def words(folder: str, module: str) -> list[str]:
    """What comes after the interpreter to run `main` of a module of PACKAGE from FILES in `folder`."""
    start = f"import sys; sys.path.insert(0, {folder!r}); from {PACKAGE}.{module} import main; main()"
    return ["-I", "-S", "-c", start]
