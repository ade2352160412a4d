"""What a bubblewrap sandbox sees: its environment and its root, as options of `bwrap` and the files that it makes.

The host's system folders by allow-list, read-only. A root filesystem folder is a stranger's: bwrap and the nursery, who
are root where the user is, put it aside as a whole and look at nothing in it. Each sandbox enters it by itself
(`envs/sandbox/inside/root.py`), as an ordinary user in namespaces of its own.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from sandboxrl.envs.sandbox.host.surroundings import environment, memory_told
from sandboxrl.envs.sandbox.inside.nursery import INSIDE_UID
from sandboxrl.envs.sandbox.inside.root import GIVEN_ROOT, MEMORY, NAMES, NEW_ROOT
from sandboxrl.envs.sandbox.network import packet_filter
from sandboxrl.envs.sandbox.protocol import WORKDIR, BackendUnavailable, SandboxConfig

HOME = "/home/user"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = """
    alternatives bash.bashrc debian_version fonts host.conf inputrc java-11-openjdk java-17-openjdk java-21-openjdk
    ld.so.cache localtime magic magic.mime matplotlibrc mime.types os-release profile protocols R services shells
    ssl/certs ssl/openssl.cnf terminfo texmf timezone
""".split()
"""Below /etc: configuration that programs need and that says nothing about the host's people, services or secrets."""
COPIED_BYTES = 16 << 10
"""Files up to this size are copied rather than mounted: each sandbox carries a copy of each mount."""

SYNTHETIC_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n"
    f"user:x:{INSIDE_UID}:{INSIDE_UID}:user:{HOME}:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": f"root:x:0:\nuser:x:{INSIDE_UID}:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

Placed = tuple[bytes, tuple[str, ...]]
"""Contents that reach bwrap through a descriptor, and the options that say what becomes of them."""
DESCRIPTOR = "{descriptor}"


def root_seen(config: SandboxConfig) -> tuple[list[str], list[Placed]]:
    """bwrap's options, and the files it makes. Raises BackendUnavailable for a root filesystem that cannot be one."""
    arguments = [
        *("--setenv", "PATH", f"{SYSTEM_PATH}:{HOME}/.local/bin"),
        *("--setenv", "HOME", HOME, "--setenv", "USER", "user", "--setenv", "LC_CTYPE", "C.UTF-8"),
    ]
    for name, value in environment(config).items():
        arguments += ["--setenv", name, value]
    files: list[Placed] = []
    arguments += ["--dir", "/etc", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]
    for folder in sorted({f"/etc/{Path(name).parent}" for name in ETC if "/" in name} | {"/run", "/run/nursery"}):
        arguments += ["--dir", folder]  # those that bwrap makes unasked are closed to other users
    for path in (*SYSTEM_FOLDERS, *(f"/etc/{name}" for name in ETC)):
        _show(path, arguments, files)
    files.append(placed(MEMORY, memory_told(config.limits)))
    files += [placed(path, text.encode()) for path, text in SYNTHETIC_FILES.items()]
    if config.rootfs:
        _check_root(config)
        arguments += ["--dir", NEW_ROOT, "--ro-bind", str(Path(config.rootfs).absolute()), GIVEN_ROOT]
        if config.network != "none":
            files.append(placed(NAMES, _name_servers(config.network)))
    if config.network != "none":
        files.append(placed("/etc/resolv.conf", _name_servers(config.network)))
    arguments += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for own in ("/tmp", HOME, "/run", WORKDIR):
        arguments += ["--dir", own]
    return arguments, files


def _name_servers(net: str) -> bytes:
    if net == "egress":
        return "".join(f"nameserver {address}\n" for address in packet_filter.resolvers()).encode()
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except FileNotFoundError:  # then names resolve nowhere on this machine
        return b""


def _check_root(config: SandboxConfig) -> None:
    """Raises BackendUnavailable for a folder that cannot be a root. No link in it is followed."""
    root = Path(config.rootfs).absolute()
    for folder in (*reversed(root.parents), root):
        if folder.is_dir() and not _open_to_sandboxes(folder):
            raise BackendUnavailable(
                f"sandbox.rootfs={config.rootfs}: sandboxes run as an ordinary user, to whom {folder} is closed; "
                f"open it with: chmod o+x {folder}"
            )
    if not _inside(root, "bin/bash"):
        raise BackendUnavailable(f"sandbox.rootfs={config.rootfs}: needs /bin/bash inside")
    hidden = root / WORKDIR[1:]
    if hidden.is_dir() and not hidden.is_symlink() and any(hidden.iterdir()):
        raise BackendUnavailable(
            f"sandbox.rootfs={root}: files in its {WORKDIR} would be hidden; use sandbox.backend=docker"
        )
    if config.network != "none" and not has_own(root, "etc/resolv.conf", stat.S_ISREG):
        raise BackendUnavailable(
            f"sandbox.rootfs={config.rootfs}: names could not be resolved; make the place for that: "
            f"rm -f {config.rootfs}/etc/resolv.conf; touch {config.rootfs}/etc/resolv.conf"
        )


def has_own(root: Path, path: str, kind: Callable[[int], bool]) -> bool:
    """Whether `path` below `root` is of that kind, and no part of it a link."""
    try:
        modes = [(root / part).lstat().st_mode for part in (*reversed(Path(path).parents), Path(path))]
    except OSError:
        return False
    return kind(modes[-1]) and not any(stat.S_ISLNK(mode) for mode in modes)


def _inside(root: Path, path: str) -> bool:
    """Whether `path` leads to something in a root: its links lead where they will inside."""
    here, todo = Path(), [*reversed(Path(path).parts)]
    for _ in range(100):
        if not todo:
            return True
        part = todo.pop()
        if part in ("/", ".."):
            here = Path() if part == "/" else here.parent
            continue
        here /= part
        try:
            if (root / here).is_symlink():
                todo += reversed(Path(os.readlink(root / here)).parts)
                here = here.parent
            elif not (root / here).exists():
                return False
        except OSError:
            return False
    return False


def _open_to_sandboxes(folder: Path) -> bool:
    """Whether what lies in it can be reached: by anybody where root gives each sandbox a uid, else by this user."""
    return bool(folder.stat().st_mode & stat.S_IXOTH) if os.geteuid() == 0 else os.access(folder, os.X_OK)


def _show(path: str, arguments: list[str], files: list[Placed]) -> None:
    """Make a system path of the host visible, read-only: links stay links, small files are copied, the rest mounted."""
    if os.path.islink(path):
        arguments += ["--symlink", os.readlink(path), path]
    elif os.path.isfile(path) and os.path.getsize(path) <= COPIED_BYTES:
        files.append(placed(path, Path(path).read_bytes()))
    elif os.path.exists(path):
        arguments += ["--ro-bind", path, path]


def placed(path: str, data: bytes) -> Placed:
    """A file of everybody's to read."""
    return data, ("--perms", "0444", "--file", DESCRIPTOR, path)
