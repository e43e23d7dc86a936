"""Kernels that a stranger might send: C that tries what it should not be able to do, and reports how it went.

    probe('open("/etc/shadow", O_RDONLY)')     x[0] = 0 when the call worked, else its errno
    DAEMON                                      leaves two processes behind; x[0] and x[1] are their numbers
"""

from __future__ import annotations

import numpy as np

from tapml.devices.interface import Device, Launch
from tapml.kernels import Kernel

ONE = (1, 1, 1)
WORDS = 64

HEAD = """
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
"""


def probe(call: str) -> Kernel:
    """`call` is an expression of C that is -1 (or a null pointer cast to -1) when it failed."""
    source = f"{HEAD}\nvoid probe(float* x) {{ errno = 0; long got = (long)({call}); x[0] = got == -1 ? errno : 0; }}"
    return Kernel("c", "probe", source, ("read_write",), ONE, ONE)


# One child that stays in its group, and one that tries to leave it by every way there is. It declares what it calls, since an
# agent lets no header through.
DAEMON = Kernel("c", "leave", """
int fork(void); int pause(void); int pipe(int*); int setsid(void); int setpgid(int, int); int getpid(void); int close(int);
void* signal(int, void*); int prctl(int, ...); long read(int, void*, unsigned long); long write(int, const void*, unsigned long);
void _exit(int); int waitpid(int, int*, int);

void leave(float* x) {
  x[0] = fork();
  if (x[0] == 0) for (;;) pause();
  int pipes[2];
  if (pipe(pipes)) return;
  int first = fork();
  if (first == 0) {
    setsid(); setpgid(0, 0); signal(1, (void*)1); prctl(1, 0);
    int second = fork();
    if (second == 0) {
      setsid();
      int own = getpid();
      if (write(pipes[1], &own, sizeof own) < 0) _exit(1);
      for (int i = 0; i < 3; ++i) close(i);
      for (;;) pause();
    }
    _exit(0);
  }
  waitpid(first, 0, 0);
  int left = -1;
  if (read(pipes[0], &left, sizeof left) < 0) left = -1;
  x[1] = left;
}
""", ("read_write",), ONE, ONE)


def run(device: Device, kernel: Kernel) -> list[int]:
    """What it wrote, as whole numbers."""
    buffer = device.allocate(4 * WORDS)
    device.write(buffer, bytes(4 * WORDS))
    loaded = device.load(kernel)
    device.run([Launch(loaded, (buffer,))])
    return [int(number) for number in np.frombuffer(device.read(buffer, 4 * WORDS), np.float32)]
