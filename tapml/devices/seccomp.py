"""A filter of system calls (seccomp) for a process that runs kernels of others, set without any library.

    why_not()          "" where it can be set; else the reason
    restrict()         for all threads of this process and all that it starts, for good

It is a list of what is refused, since drivers use much and each another part: the network, leaving the process group (so that
whoever ends the group ends everything), changing files that could not be opened, looking into other processes, changing their
limits, namespaces, mounts, keys, BPF, io_uring (which would go around the filter) and System V shared memory (which outlives its
maker). Calls that are newer than `NEWEST` are unknown, so they are refused as well.

The filter is classic BPF over `struct seccomp_data`, see the kernel's
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# Numbers of system calls: x86-64, and the table that AArch64 and RISC-V share; None where there is none.
REFUSED: dict[str, tuple[int, int | None]] = {
    # the network
    "socket": (41, 198),
    # leaving the process group
    "setsid": (112, 157), "setpgid": (109, 154),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # ways around this filter, and large parts of the kernel that no driver needs
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "personality": (135, 92),
    # namespaces and file systems
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # what Landlock lets through: modes, owners, times and attributes of files by their names, and watching folders
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "setxattrat": (463, 463), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "removexattrat": (466, 466), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "truncate": (76, 45), "inotify_init": (253, None), "inotify_init1": (294, 26),
    # what outlives its maker
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "syslog": (103, 116), "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None),
    "vhangup": (153, 58), "lookup_dcookie": (212, 18),
}  # fmt: skip

# Refused unless an argument is harmless.
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_PRLIMIT = (302, 261)
_SETPRIORITY = (141, 140)
_NEW_NAMESPACES = 0x7E020000

NEWEST = 467

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "riscv64": (1, 0xC00000F3)}
_X32 = 0x40000000

_LOAD, _EQUAL, _GREATER, _ANY_OF, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}
_SET_MODE_FILTER, _GET_ACTION_AVAIL, _SYNCHRONIZE_THREADS = 1, 2, 1


def why_not() -> str:
    """Why no filter can be set here; "" where one can."""
    if not sys.platform.startswith("linux"):
        return f"{platform.system()} has no seccomp"
    if platform.machine() not in _MACHINES:
        return f"no seccomp filter is written for {platform.machine()} processors"
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return "no seccomp filter is written for programs of 32 bits"
    action = ctypes.c_uint32(_ERRNO)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SECCOMP[platform.machine()], _GET_ACTION_AVAIL, 0, ctypes.byref(action)):
        return f"no seccomp in this kernel ({os.strerror(ctypes.get_errno())})"
    return ""


def program(machine: str) -> bytes:
    """The filter for a machine (`platform.machine()`), as instructions of 8 bytes."""
    column, architecture = _MACHINES[machine]
    refuse, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    code = [
        _step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, _NUMBER),
        _step(_GREATER, NEWEST, 0, 1), _step(_RETURN, unknown),  # also the numbers of x32, which begin at 0x40000000
    ]
    assert NEWEST < _X32
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, refuse)]
    # The C library goes on with clone, whose flags can be seen from here.
    code += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, unknown)]
    code += [
        _step(_EQUAL, _CLONE[column], 0, 4), _step(_LOAD, _ARGUMENTS), _step(_ANY_OF, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, refuse), _step(_RETURN, _ALLOW),
    ]
    for numbers, argument in ((_PRLIMIT, 0), (_SETPRIORITY, 1)):  # whose: 0 is the process itself
        code += [
            _step(_EQUAL, numbers[column], 0, 4), _step(_LOAD, _ARGUMENTS + 8 * argument), _step(_EQUAL, 0, 1, 0),
            _step(_RETURN, refuse), _step(_RETURN, _ALLOW),
        ]
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def restrict() -> None:
    """Sets the filter. `landlock.no_new_privileges` comes first. Raises OSError."""
    reason = why_not()
    if reason:
        raise OSError(reason)
    code = program(platform.machine())
    room = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HxxxxxxQ", len(code) // 8, ctypes.addressof(room))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SECCOMP[platform.machine()], _SET_MODE_FILTER, _SYNCHRONIZE_THREADS, described):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
