"""What a program under test may ask the kernel for: to compute, to read files, to start threads. Nothing else.

A filter of system calls (seccomp) that no later call can lift. It needs no privileges and no namespaces, so it holds
inside containers too. It lists what is allowed: no socket, no second process, no other program, no signal to anybody,
no file opened for writing, created, renamed or removed. A call that is not listed fails with EPERM, which Python raises
as PermissionError.

Imports the standard library only: it also runs where nothing else is on the path.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

# The call's number on x86-64 and on AArch64; None where that kernel does not have it.
ALLOWED = {
    # files, read only: see `open` and `openat` below
    "read": (0, 63), "pread64": (17, 67), "readv": (19, 65), "write": (1, 64), "writev": (20, 66), "close": (3, 57),
    "close_range": (436, 436), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "fstatfs": (138, 44), "statfs": (137, 43), "lseek": (8, 62), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283),
    # its own signals, threads and time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "set_tid_address": (218, 96), "set_robust_list": (273, 99), "rseq": (334, 293), "arch_prctl": (158, None),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "alarm": (37, None), "setitimer": (38, 103),
    "getitimer": (36, 102), "exit": (60, 93), "exit_group": (231, 94),
    # facts
    "gettid": (186, 178), "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179),
    "getrlimit": (97, 163), "getrusage": (98, 165), "getcpu": (309, 168),
}  # fmt: skip

# Allowed for some arguments only.
OPEN, OPENAT, CLONE, CLONE3 = (2, None), (257, 56), (56, 220), (435, 435)
FCNTL, IOCTL, PRLIMIT64 = (72, 25), (16, 29), (302, 261)

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
O_ACCMODE, O_CREAT, O_TRUNC = 0o3, 0o100, 0o1000
CLONE_THREAD = 0x10000
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
IOCTL_REQUESTS = (0x5401, 0x5451)  # TCGETS, FIOCLEX: what `open` asks

# Classic BPF over `struct seccomp_data {int nr; u32 arch; u64 instruction_pointer; u64 args[6];}`
LOAD, EQUALS, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
KILL, ALLOW, FAIL = 0x80000000, 0x7FFF0000, 0x00050000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def argument(i: int, high: bool = False) -> int:
    """Offset of half an argument."""
    return 16 + 8 * i + 4 * high


def rules(column: int, arch: int) -> list[Instruction]:
    """The filter's program for a machine."""
    program: list[Instruction] = [(LOAD, 0, 0, 4), (EQUALS, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]

    def on(numbers: tuple[int | None, ...], body: list[Instruction]) -> None:
        """Run `body`, which returns, where the call is this one."""
        if (number := numbers[column]) is not None:
            program.extend([(EQUALS, 0, len(body), number), *body])

    allow: list[Instruction] = [(RETURN, 0, 0, ALLOW)]
    refuse: list[Instruction] = [(RETURN, 0, 0, FAIL | errno.EPERM)]

    def one_of(i: int, values: tuple[int, ...], otherwise: int) -> list[Instruction]:
        tests = [(EQUALS, len(values) - at, 0, value) for at, value in enumerate(values)]
        return [(LOAD, 0, 0, argument(i)), *tests, (RETURN, 0, 0, FAIL | otherwise), *allow]

    for numbers in ALLOWED.values():
        on(numbers, allow)
    writes = O_ACCMODE | O_CREAT | O_TRUNC
    for numbers, flags in ((OPEN, 1), (OPENAT, 2)):
        on(numbers, [(LOAD, 0, 0, argument(flags)), (ANY_BIT, 0, 1, writes), *refuse, *allow])
    on(CLONE, [(LOAD, 0, 0, argument(0)), (ANY_BIT, 1, 0, CLONE_THREAD), *refuse, *allow])
    on(CLONE3, [(RETURN, 0, 0, FAIL | errno.ENOSYS)])  # its flags lie in memory; glibc then uses clone
    on(FCNTL, one_of(1, FCNTL_COMMANDS, errno.EPERM))
    on(IOCTL, one_of(1, IOCTL_REQUESTS, errno.ENOTTY))
    # Limits are read, never set: the new limits' address must be 0.
    low, high = argument(2), argument(2, high=True)
    on(PRLIMIT64, [(LOAD, 0, 0, low), (EQUALS, 0, 2, 0), (LOAD, 0, 0, high), (EQUALS, 1, 0, 0), *refuse, *allow])
    return [*program, *refuse]


def confine(cpu_seconds: int, memory_bytes: int) -> None:
    """Limit this process for good. Raises OSError where that cannot be done."""
    if not sys.platform.startswith("linux") or (machine := MACHINES.get(platform.machine())) is None:
        raise OSError(errno.ENOSYS, f"no confinement on {sys.platform} {platform.machine()}: use Linux on "
                                    f"{' or '.join(MACHINES)}")  # fmt: skip
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in rules(*machine))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    filtered = Program(len(program) // 8, program)
    for arguments in (
        (PR_SET_PDEATHSIG, 9, 0, 0, 0),
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filtered), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"no confinement here: prctl {arguments[0]}: {os.strerror(number)}")
