"""Landlock, Linux's way for a process without rights to give up more: which files it and its children may open from now on.

    version()                            0 where the kernel has none
    restrict(read=[…], write=[…], devices=[…])    for this thread and all that it starts, for good

What is not named cannot be opened, listed or made; the attributes of a file whose name is known can still be asked for (`stat`),
since Landlock does not know of that. With version 4 no TCP port can be opened or connected to, with version 6 processes
outside cannot be sent signals. The numbers are those of the kernel's include/uapi/linux/landlock.h; they are the same on all
processors.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = _EXECUTE | _READ_FILE | _READ_DIR
WRITE = (
    _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_FIFO | _MAKE_SYM | _REFER
    | _TRUNCATE
)
DEVICE = _WRITE_FILE | _READ_FILE | _READ_DIR | _TRUNCATE | _IOCTL_DEV
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

# What a version of Landlock knows of files: version 1 has the first 13, later ones add to it.
_KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}


def version() -> int:
    """The version of Landlock that this kernel has; 0 for none."""
    if not sys.platform.startswith("linux"):
        return 0
    found = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(0, int(found))


def no_new_privileges() -> None:
    """No program that is started from now on gets more rights than this process has (set-user-id is ignored). OSError."""
    if _libc().prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _failed("prctl")


def restrict(read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path]) -> None:
    """Everything beneath `read` may be read and executed, beneath `write` read, changed, made and removed, beneath `devices` used
    as devices are. Paths that are not there are left out. `no_new_privileges` comes first. Raises OSError."""
    have = version()
    if not have:
        raise OSError("this kernel has no Landlock")
    files = max((bits for least, bits in _KNOWN.items() if least <= have), default=0)
    handled = struct.pack("=QQQ", files, 0b11 if have >= 4 else 0, 0b11 if have >= 6 else 0)
    size = 24 if have >= 6 else 16 if have >= 4 else 8
    ruleset = int(_libc().syscall(_CREATE_RULESET, handled, ctypes.c_size_t(size), 0))
    if ruleset < 0:
        raise _failed("landlock_create_ruleset")
    try:
        for paths, rights in ((read, READ), (write, WRITE), (devices, DEVICE)):
            for path in paths:
                _allow(ruleset, path, rights & files)
        if _libc().syscall(_RESTRICT_SELF, ruleset, 0):
            raise _failed("landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not there, or nothing that this user could use
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= _OF_FILES
        if _libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, opened), 0):
            raise _failed(f"landlock_add_rule for {path}")
    finally:
        os.close(opened)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
