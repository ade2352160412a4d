"""Which system calls a sandbox may make: one policy, as a BPF program for bubblewrap and as a profile for Docker.

The kernel's own permission checks come first; this closes what they leave open to an ordinary process: kernel keyrings,
io_uring, asynchronous I/O (one budget for the whole machine), bpf, performance counters, page-fault handlers, new
namespaces, mounts, the clock, module and kexec loading, socket families that leave the network namespace (AF_VSOCK
reaches the hypervisor) or have no use here, whatever would reach PID 1, terminal
injection, and every system call newer than this list. Foreign instruction sets (32-bit x86, x32) are refused.
"""

import errno
import platform
import struct
from typing import Any

NEWEST_KNOWN = 456
"""futex_requeue, Linux 6.7. Numbers above 424 are the same on every architecture."""

DENIED: dict[str, tuple[int | None, int | None]] = {
    # name: (x86_64, aarch64)
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "chroot": (161, 51),
    "clock_adjtime": (305, 266), "clock_settime": (227, 112), "delete_module": (176, 106), "fanotify_init": (300, 262),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430),
    "fspick": (433, 433), "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioperm": (173, None), "iopl": (172, None), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "memfd_secret": (447, 447), "modify_ldt": (154, None),
    "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241), "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41), "process_vm_writev": (311, 271), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "reboot": (169, 142), "request_key": (249, 218), "setdomainname": (171, 162), "sethostname": (170, 161),
    "setns": (308, 268), "settimeofday": (164, 170), "swapoff": (168, 225), "swapon": (167, 224),
    "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282), "vhangup": (153, 58),
    "kcmp": (312, 272), "lookup_dcookie": (212, 18), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "process_madvise": (440, 440), "sysfs": (139, None), "uselib": (134, None), "ustat": (136, None),
    "io_setup": (206, 0),
}  # fmt: skip

FIRST_PROCESS: dict[str, tuple[int, int, tuple[tuple[int, int], ...]]] = {
    # name: (x86_64, aarch64, pairs of an argument and the value that would mean PID 1, or all processes of a user)
    "kill": (62, 129, ((0, 1),)), "tkill": (200, 130, ((0, 1),)), "tgkill": (234, 131, ((0, 1), (1, 1))),
    "rt_sigqueueinfo": (129, 138, ((0, 1),)), "rt_tgsigqueueinfo": (297, 240, ((0, 1), (1, 1))),
    "pidfd_open": (434, 434, ((0, 1),)), "prlimit64": (302, 261, ((0, 1),)), "ptrace": (101, 117, ((1, 1),)),
    "process_vm_readv": (310, 270, ((0, 1),)), "get_robust_list": (274, 100, ((0, 1),)),
    "sched_setscheduler": (144, 119, ((0, 1),)), "sched_setparam": (142, 118, ((0, 1),)),
    "sched_setattr": (314, 274, ((0, 1),)), "sched_setaffinity": (203, 122, ((0, 1),)),
    "setpriority": (141, 140, ((0, 2), (1, 1))), "ioprio_set": (251, 30, ((0, 3), (1, 1))),
}  # fmt: skip
"""PID 1 serves the host: nothing that runs beside it may signal it, slow it down or take its limits away."""
UNCOUNTED = {"memfd_create": (319, 279)}
SYSTEM_V = {"shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190)}
"""Ways to memory that belongs to no program: refused where nothing else bounds it."""

LOCAL, INTERNET = 1, (2, 10)
SOCKET_FAMILIES = (LOCAL, *INTERNET)
"""AF_UNIX, AF_INET, AF_INET6. What AF_NETLINK queues no control group counts: one sandbox could fill the machine."""
PROTOCOLS = (0, 1, 6, 17, 58)
"""Of the internet: the default, ICMP, TCP, UDP, ICMPv6. Others load modules of the kernel (SCTP, DCCP, L2TP)."""
NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW* flag of clone(2)
TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
WRITE_LEASE = (1024,)  # F_SETLEASE: holds up whoever else opens the file, 45 s at a time, and sandboxes share files
PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)  # 0x40000: debuggers switch off address randomisation

ALLOWED = """
    accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod chown clock_getres
    clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group
    faccessat faccessat2 fadvise64 fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync
    fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue
    futex_wait futex_waitv futex_wake futimesat get_mempolicy get_robust_list getcpu getcwd getdents getdents64
    getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom
    getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr
    lstat madvise map_shadow_stack mbind membarrier memfd_create mincore mkdir mkdirat mknod mknodat mlock mlock2
    mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap msgctl
    msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_open
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2
    prlimit64 process_mrelease process_vm_readv pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat renameat2
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto
    set_mempolicy set_mempolicy_home_node set_robust_list set_tid_address setfsgid setfsuid setgid setgroups
    setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr
    shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs statx symlink symlinkat
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat
    utime utimensat utimes vfork vmsplice wait4 waitid write writev
""".split()
"""For Docker's profile, which names what is allowed. Names its library does not know are left out by the daemon."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CONDITIONAL = {
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199), "ioctl": (16, 29),
    "personality": (135, 92), "fcntl": (72, 25),
}  # fmt: skip

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_ARCH_OFFSET, _NUMBER_OFFSET = 4, 0


def bpf(machine: str = "", counted: bool = True, system_v: bool = True) -> bytes:
    """The policy as a classic BPF program (`struct sock_filter[]`) for `machine`, by default this one. Raises KeyError
    for a machine whose system call numbers are not listed here.

    Where memory is not `counted` by a control group, there is none that no program maps; without `system_v` no System V
    object can be made.

    Size: one program, in the order in which the kernel runs it.
    """
    column, arch = _MACHINES[machine or platform.machine()]
    program: list[bytes] = []

    def emit(code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        program.append(struct.pack("=HBBI", code, if_true, if_false, value))

    def refuse(number: int) -> None:
        emit(_RETURN, _ERRNO | number)

    def decide(call: str, argument: int, values: tuple[int, ...], then: int, otherwise: int) -> None:
        """What `call` returns when that argument of it is one of `values`, and when it is none."""
        emit(_JUMP_EQUAL, _CONDITIONAL[call][column], 0, 2 * len(values) + 2)
        emit(_LOAD, _argument(argument))
        for value in values:
            emit(_JUMP_EQUAL, value, 0, 1)
            emit(_RETURN, then)
        emit(_RETURN, otherwise)

    emit(_LOAD, _ARCH_OFFSET)
    emit(_JUMP_EQUAL, arch, 1, 0)
    emit(_RETURN, _KILL_PROCESS)
    emit(_LOAD, _NUMBER_OFFSET)
    emit(_JUMP_GREATER, NEWEST_KNOWN, 0, 1)
    refuse(errno.ENOSYS)
    for numbers in DENIED.values():
        denied = numbers[column]
        if denied is not None:
            emit(_JUMP_EQUAL, denied, 0, 1)
            refuse(errno.EPERM)
    absent = ({} if counted else UNCOUNTED) | ({} if system_v else SYSTEM_V)
    for absentee in absent.values():
        emit(_JUMP_EQUAL, absentee[column], 0, 1)
        refuse(errno.ENOSYS)
    for *numbers_of, meant in FIRST_PROCESS.values():
        emit(_JUMP_EQUAL, numbers_of[column], 0, 3 * len(meant) + 1)
        for argument, value in meant:
            emit(_LOAD, _argument(argument))
            emit(_JUMP_EQUAL, value, 0, 1)
            refuse(errno.EPERM)
        emit(_RETURN, _ALLOW)
    emit(_JUMP_EQUAL, _CONDITIONAL["clone3"][column], 0, 1)
    refuse(errno.ENOSYS)  # its flags are behind a pointer; the C library falls back to clone
    emit(_JUMP_EQUAL, _CONDITIONAL["clone"][column], 0, 4)
    emit(_LOAD, _argument(0))
    emit(_JUMP_SET, NEW_NAMESPACE, 0, 1)
    refuse(errno.EPERM)
    emit(_RETURN, _ALLOW)
    decide("ioctl", 1, TERMINAL_INJECTION, _ERRNO | errno.EPERM, _ALLOW)
    decide("fcntl", 1, WRITE_LEASE, _ERRNO | errno.EPERM, _ALLOW)
    emit(_JUMP_EQUAL, _CONDITIONAL["socket"][column], 0, 2 * len(PROTOCOLS) + 8)
    emit(_LOAD, _argument(0))
    emit(_JUMP_EQUAL, LOCAL, 0, 1)
    emit(_RETURN, _ALLOW)
    emit(_JUMP_EQUAL, INTERNET[0], 2, 0)
    emit(_JUMP_EQUAL, INTERNET[1], 1, 0)
    refuse(errno.EAFNOSUPPORT)
    emit(_LOAD, _argument(2))
    for protocol in PROTOCOLS:
        emit(_JUMP_EQUAL, protocol, 0, 1)
        emit(_RETURN, _ALLOW)
    refuse(errno.EPROTONOSUPPORT)
    decide("socketpair", 0, SOCKET_FAMILIES, _ALLOW, _ERRNO | errno.EAFNOSUPPORT)
    decide("personality", 0, PERSONALITIES, _ALLOW, _ERRNO | errno.EPERM)
    emit(_RETURN, _ALLOW)
    return b"".join(program)


def _argument(index: int) -> int:
    """Offset of the low half of a system call's argument on a little-endian machine."""
    return 16 + 8 * index


def docker_profile() -> dict[str, Any]:
    """The policy as Docker's seccomp profile, a JSON object. What is neither allowed nor denied does not exist."""

    def rule(names: list[str], action: str, **more: Any) -> dict[str, Any]:
        return {"names": names, "action": f"SCMP_ACT_{action}", **more}

    def equal(value: int, index: int = 0) -> list[dict[str, Any]]:
        return [{"index": index, "value": value, "op": "SCMP_CMP_EQ"}]

    no_namespace = [{"index": 0, "value": NEW_NAMESPACE, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    rules = [
        rule(ALLOWED, "ALLOW"),
        rule(list(DENIED), "ERRNO", errnoRet=errno.EPERM),
        rule(
            ["clone3"], "ERRNO", errnoRet=errno.ENOSYS
        ),  # its flags are behind a pointer; libraries fall back to clone
        rule(["fallocate"], "ERRNO", errnoRet=errno.EOPNOTSUPP),  # fills a disk in one call; libraries write instead
        rule(["clone"], "ALLOW", args=no_namespace),
        *(rule(["personality"], "ALLOW", args=equal(value)) for value in PERSONALITIES),
        *(rule(["socketpair"], "ALLOW", args=equal(family)) for family in SOCKET_FAMILIES),
        rule(["socket"], "ALLOW", args=equal(LOCAL)),
        *(
            rule(["socket"], "ALLOW", args=[*equal(family), *equal(protocol, 2)])
            for family in INTERNET
            for protocol in PROTOCOLS
        ),
    ]
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.ENOSYS, "syscalls": rules}
