"""A backend of your own: bubblewrap's sandboxes, each with the files of a folder already in its /testbed.

sandbox: {backend: seeded_backend.py:Seeded, options: {folder: /data/course}}
"""

from dataclasses import replace
from pathlib import Path

from sandboxrl import Sandbox, SandboxConfig, open_backend
from sandboxrl.data.errors import InputError


class Seeded:
    name = "seeded"

    def __init__(self, config: SandboxConfig) -> None:
        folder = Path(config.options.get("folder", ""))
        if not config.options.get("folder") or not folder.is_dir():
            raise InputError("sandbox.options.folder must name a folder")
        self._files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self._inner = open_backend(replace(config, backend="bubblewrap", options={}))

    async def start(self, image: str = "") -> Sandbox:
        box = await self._inner.start(image)
        try:
            await box.write(self._files)
        except BaseException:
            await box.close()
            raise
        return box

    async def close(self) -> None:
        await self._inner.close()
