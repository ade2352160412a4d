"""A second list of attacks, written from the classes of published vulnerabilities of containers and kernels rather than
from this project's code. Each is what such an exploit does first; each must be refused. A CVE, where there is one, is a
member of the class. Run by `tests/envs/sandbox/test_attacks.py` on every backend.
"""

from bench.attacks import REFUSED, python

FAMILIES = {
    # sockets with which an unprivileged user reached a kernel's bugs: (family, type, protocol)
    "CVE-2017-6074, DCCP": (2, 6, 33), "CVE-2010-3904, RDS": (21, 5, 0), "CVE-2021-43267, TIPC": (30, 4, 0),
    "CVE-2021-3609, CAN": (29, 2, 2), "CVE-2020-12351, Bluetooth": (31, 3, 1), "NFC": (39, 5, 1),
    "CVE-2017-7308, packets": (17, 3, 768), "CVE-2022-27666, IPsec keys": (15, 3, 2),
    "CVE-2021-26708, VSOCK": (40, 1, 0),
    "raw": (2, 3, 1), "CVE-2019-8912, ALG": (38, 5, 0), "CVE-2021-42008, 6PACK": (3, 5, 0),
    "CVE-2014-4943, PPP": (24, 1, 1), "XDP": (44, 3, 0), "SMC": (43, 1, 0),
    "LLC": (26, 1, 0), "X25": (9, 5, 0), "IUCV": (32, 1, 0),
    "KCM": (41, 5, 0), "ROSE": (11, 5, 0),
    "netlink, whose queues nothing counts": (16, 3, 0), "netlink between users": (16, 3, 2),
    "CVE-2021-23133, SCTP": (2, 1, 132), "CVE-2022-4129, L2TP": (2, 2, 115), "CVE-2023-1206, MPTCP": (2, 1, 262),
}  # fmt: skip
SYSTEM_CALLS = {
    # (x86_64, aarch64)
    "CVE-2022-0185, fsconfig": (431, 431), "CVE-2022-0185, fsopen": (430, 430), "CVE-2016-0728, keyctl": (250, 219),
    "CVE-2016-0728, add_key": (248, 217), "request_key": (249, 218), "CVE-2020-8835, bpf": (321, 280),
    "CVE-2021-41073, io_uring_setup": (425, 425), "CVE-2022-29582, io_uring_enter": (426, 426),
    "CVE-2013-2094, perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "CVE-2015-1328, mount": (165, 40), "CVE-2021-30465, move_mount": (429, 429), "umount2": (166, 39),
    "unshare": (272, 97), "pivot_root": (155, 41), "setns": (308, 268),
    "CVE-2014-3519, open_by_handle_at": (304, 265), "CVE-2014-3519, name_to_handle_at": (303, 264),
    "init_module": (175, 105), "iopl": (172, 425), "CVE-2012-0056, process_vm_writev": (311, 271),
    "modify_ldt": (154, 425),
    "kexec_load": (246, 104),
    "pidfd_getfd": (438, 438), "fanotify_init": (300, 262),
    "process_madvise": (440, 440), "memfd_secret": (447, 447),
    "quotactl": (179, 60), "acct": (163, 89), "kcmp": (312, 272),
}  # fmt: skip
WRITES = {
    "CVE-2022-0492, release_agent": "/sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent",
    "core_pattern": "/proc/sys/kernel/core_pattern",
    "modprobe": "/proc/sys/kernel/modprobe /proc/sys/kernel/hotplug",
    "uevent_helper": "/sys/kernel/uevent_helper",
    "binfmt_misc": "/proc/sys/fs/binfmt_misc/register",
    "sysrq": "/proc/sysrq-trigger",
    "acpi and scsi": "/proc/acpi/wakeup /proc/scsi/scsi /proc/bus/pci/00/00.0",
    "CVE-2019-5736, the runtime's program": "/proc/1/exe /proc/self/exe /usr/bin/runc",
    "CVE-2016-9962, the runtime's descriptors": "/proc/1/fd/0 /proc/1/fd/3 /proc/1/cwd/x",
    "CVE-2012-0056, memory of PID 1": "/proc/1/mem /proc/1/task/1/mem",
    "kernel memory": "/dev/mem /dev/kmem /dev/port /proc/kcore /proc/kmem",
    "virtual machines": "/dev/kvm /dev/vhost-net /dev/vhost-vsock /dev/vfio/vfio",
    "file systems in programs": "/dev/fuse /dev/cuse /dev/loop-control /dev/mapper/control",
    "network devices": "/dev/net/tun /dev/ppp",
    "debug and trace": "/sys/kernel/debug/x /sys/kernel/tracing/tracing_on /sys/kernel/security/x",
    "power and firmware": "/sys/power/state /sys/firmware/efi/efivars/x /proc/mtrr",
    "settings of the network": "/proc/sys/net/ipv4/ip_forward /proc/sys/net/core/somaxconn",
    "CVE-2018-15664, the daemon": "/run/docker.sock /var/run/docker.sock /run/containerd/containerd.sock",
    "CVE-2021-41091, the daemon's layers": "/var/lib/docker/x /var/lib/containerd/x",
}
"""Files that must not open for writing, where they are there at all."""

COMMANDS: dict[str, tuple[str, str]] = {
    **{name: (python(f"attempt(socket.socket, {a}, {b}, {c})"), REFUSED + "|EPROTONOSUPPORT\n|ESOCKTNOSUPPORT\n")
       for name, (a, b, c) in FAMILIES.items()},
    **{name: (python(f"call({a} if os.uname().machine == 'x86_64' else {b}, 1, 0, 0, 0, 0)"), REFUSED)
       for name, (a, b) in SYSTEM_CALLS.items()},
    **{name: (f"for f in {paths}; do [ -e $f ] && (: >> $f) 2>/dev/null && echo open $f; done", "")
       for name, paths in WRITES.items()},
    "maps of users": (
        "for f in /proc/1/uid_map /proc/1/gid_map /proc/self/uid_map /proc/self/projid_map; do "
        "echo '0 0 4294967295' 2>/dev/null >> $f && echo written; done 2>/dev/null",
        "",
    ),
    "CVE-2024-21626, folders left open": (
        "for f in /proc/self/fd/*; do [ -d $f ] && ls $f/../../../etc/shadow $f/etc/shadow; done 2>/dev/null | wc -l",
        "0\n",
    ),
    "CVE-2020-15257, sockets without a file": ("grep -c '@' /proc/net/unix", "0\n"),
    "CVE-2016-5195, writing a page that is only read": (
        python(
            "f = open('/etc/passwd', 'rb'); before = f.read()\n"
            "w = os.open('/proc/self/mem', os.O_RDWR)\nimport ctypes\n"
            "c = ctypes.CDLL(None); c.mmap.restype = ctypes.c_void_p\n"
            "at = c.mmap(None, 4096, 1, 2, f.fileno(), 0)\nattempt(os.pwrite, w, b'ROOT', at)\n"
            "if open('/etc/passwd', 'rb').read() != before: print('CHANGED')"
        ),
        r"(DONE|EIO|EPERM|EACCES)\n",  # into its own copy at most
    ),
    "CVE-2022-0847, splicing into a page that is only read": (
        "cp /etc/hostname /tmp/h 2>/dev/null || echo x > /tmp/h; "
        + python(
            "r, w = os.pipe(); os.write(w, bytes(65536)); os.read(r, 65536)\nf = os.open('/etc/passwd', os.O_RDONLY)\n"
            "before = os.pread(f, 100, 0); os.splice(f, w, 1, offset_src=0) if hasattr(os, 'splice') else None\n"
            "os.write(w, b'ROOT'); print('DONE' if os.pread(f, 100, 0) != before else 'EPERM')"
        ),
        REFUSED,
    ),
    "CVE-2021-4034, programs that are root's": (
        "find / -xdev -perm -4000 -type f 2>/dev/null | while read p; do $p --version >/dev/null 2>&1; done; "
        "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"
    ),
    "CVE-2017-5226, keys typed for the user": (
        python("import fcntl\nm, s = os.openpty()\nattempt(fcntl.ioctl, s, 0x5412, b'x')"), REFUSED
    ),
    "CVE-2023-1523, text pasted by the console": (
        python("import fcntl\nm, s = os.openpty()\nattempt(fcntl.ioctl, s, 0x541C, b'\\x02')"), REFUSED
    ),
    "CVE-2009-1897, page zero": (
        python("import ctypes\nc = ctypes.CDLL(None); c.mmap.restype = ctypes.c_void_p\n"
               "print('DONE' if c.mmap(None, 4096, 3, 0x32, -1, 0) == 0 else 'EPERM')"), REFUSED
    ),
    "CVE-2014-0038, calls of another instruction set": (
        python("call(0x40000000 + 537, 0, 0, 0, 0, 0)"), f"({REFUSED})?"
    ),
    "CVE-2019-13272, trace by a parent": (
        python("call(101 if os.uname().machine == 'x86_64' else 117, 0x4206, 1, 0, 0)"), REFUSED
    ),
    "secrets of others' environment": (
        "cat /proc/1/environ /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c -i -e TOKEN= -e SECRET=",
        "0\n",
    ),
    "CVE-2018-18955, a user namespace within": ("unshare -Urm true 2>/dev/null && echo DONE", ""),
    "CVE-2021-22555, tables of the packet filter": (
        python("attempt(lambda: socket.socket().setsockopt(0, 64, bytes(84)))"), REFUSED + "|ENOPROTOOPT\n"
    ),
    "CVE-2024-1086, rules by netlink": (
        python(
            "def rules():\n    s = socket.socket(16, 3, 12); s.sendto(struct.pack('=IHHII', 20, 0xA00, 5, 1, 0) + "
            "bytes([2, 0, 0, 0]), (0, 0))\n    error = struct.unpack_from('=i', s.recv(4096), 16)[0]\n"
            "    if error: raise OSError(-error, '')\nattempt(rules)"
        ),
        REFUSED,
    ),
    "CVE-2022-2588, classes of traffic by netlink": (
        python(
            "def queue():\n    s = socket.socket(16, 3, 0); s.sendto(struct.pack('=IHHII', 36, 36, 0x605, 1, 0) + "
            "struct.pack('=BxxxiIII', 0, 1, 0, 0xffffffff, 0), (0, 0))\n"
            "    error = struct.unpack_from('=i', s.recv(4096), 16)[0]\n    if error: raise OSError(-error, '')\n"
            "attempt(queue)"
        ),
        REFUSED,
    ),
}  # fmt: skip
