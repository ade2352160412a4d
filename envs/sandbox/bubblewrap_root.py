"""What a bubblewrap sandbox sees: its environment and its root, as options of `bwrap` and the files that it makes.

The host's system folders by allow-list, or a root filesystem folder; all of it read-only.
"""

import os
import stat
from pathlib import Path

from sandboxrl.envs.sandbox import network
from sandboxrl.envs.sandbox.inside.nursery import INSIDE_UID
from sandboxrl.envs.sandbox.protocol import WORKDIR, BackendUnavailable, SandboxConfig

HOME = "/home/user"
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = """
    alternatives bash.bashrc debian_version fonts host.conf inputrc java-11-openjdk java-17-openjdk java-21-openjdk
    ld.so.cache localtime magic magic.mime matplotlibrc mime.types os-release profile protocols R services shells
    ssl/certs ssl/openssl.cnf terminfo texmf timezone
""".split()
"""Below /etc: configuration that programs need and that says nothing about the host's people, services or secrets."""
COPIED_BYTES = 16 << 10
"""Files up to this size are copied rather than mounted: each sandbox carries a copy of each mount."""
OWN_FOLDERS = ("/proc", "/sys", "/dev", "/tmp", "/run", "/home", WORKDIR)
"""Made fresh for each sandbox, never taken from a root filesystem."""

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
        *("--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        *("--setenv", "HOME", HOME, "--setenv", "USER", "user", "--setenv", "LC_CTYPE", "C.UTF-8"),
    ]
    for name, value in config.env.items():
        arguments += ["--setenv", name, value]
    files: list[Placed] = []
    if config.rootfs:
        root = Path(config.rootfs).absolute()
        for folder in (*reversed(root.parents), root):
            if folder.is_dir() and not _open_to_sandboxes(folder):
                raise BackendUnavailable(
                    f"sandbox.rootfs={config.rootfs}: sandboxes run as an ordinary user, to whom {folder} is closed; "
                    f"open it with: chmod o+x {folder}"
                )
        if not (root / "usr/bin/python3").exists() or not (root / "bin/bash").exists():
            raise BackendUnavailable(f"sandbox.rootfs={config.rootfs}: needs /usr/bin/python3 and /bin/bash inside")
        arguments += _show_root(root)
    else:
        arguments += ["--dir", "/etc", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]
        for path in (*SYSTEM_FOLDERS, *(f"/etc/{name}" for name in ETC)):
            _show(path, arguments, files)
        files += [placed(path, text.encode()) for path, text in SYNTHETIC_FILES.items()]
    if config.network != "none" and config.rootfs and not (Path(config.rootfs) / "etc/resolv.conf").exists():
        raise BackendUnavailable(
            f"sandbox.rootfs={config.rootfs}: names could not be resolved; make the place for that: "
            f"touch {config.rootfs}/etc/resolv.conf"
        )
    if config.network == "full":
        arguments += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    elif config.network == "egress":
        names = "".join(f"nameserver {address}\n" for address in network.resolvers())
        files.append((names.encode(), ("--perms", "0444", "--ro-bind-data", DESCRIPTOR, "/etc/resolv.conf")))
    arguments += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for own in ("/tmp", HOME, "/run", WORKDIR):
        arguments += ["--dir", own]
    return arguments, files


def _open_to_sandboxes(folder: Path) -> bool:
    """Whether what lies in it can be reached: by anybody where root gives each sandbox a uid, else by this user."""
    return bool(folder.stat().st_mode & stat.S_IXOTH) if os.geteuid() == 0 else os.access(folder, os.X_OK)


def _show_root(root: Path) -> list[str]:
    """Options that make a root filesystem folder visible, read-only, entry by entry: what is mounted over it need not
    exist in it."""
    if any((root / WORKDIR[1:]).glob("*")):
        raise BackendUnavailable(
            f"sandbox.rootfs={root}: files in its {WORKDIR} would be hidden; use sandbox.backend=docker"
        )
    arguments = []
    for entry in sorted(root.iterdir()):
        inside = f"/{entry.name}"
        if entry.is_symlink():
            arguments += ["--symlink", os.readlink(entry), inside]
        elif inside not in OWN_FOLDERS:
            arguments += ["--ro-bind", str(entry), inside]
    return arguments


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
