"""System calls that a confined process cannot make: a seccomp filter, put together here and handed to the kernel.

Linux on x86_64 and aarch64. It needs no privilege, and what is refused returns an error, so that a library that only
tried goes on. Refused are: every new socket, and messages to others than the other end of one; starting programs and
processes; signals to, queues shared with, and a look into, other processes; changing anything in the file system; what
administers a machine; and system calls newer than this list.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

#: (number on x86_64, number on aarch64); None: there is no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    # One of datagrams sends to any socket that has a path.
    "socketpair": (53, 199),
    # Their addresses, and the descriptors that they pass on, lie in memory, where a filter cannot look.
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    # Through it sockets can be made without a system call of that name.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "truncate": (76, 45),
    "creat": (85, None),
    "fallocate": (285, 47),
    # Memory that does not count as address space.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    # The numbers of queues and semaphores can be guessed: without the call that looks them up the others still work.
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_notify": (244, 184),
    "fanotify_init": (300, 262),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "personality": (135, 92),
    "vhangup": (153, 58),
}
#: Their first argument may only name the process itself.
_OF_ITSELF: dict[str, tuple[int, int]] = {
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
_SIGNALS = ("kill", "tgkill")  # 0 names the process itself everywhere but here
_CLONE, _CLONE3, _OPENAT2, _OPENAT, _IOCTL = (56, 220), (435, 435), (437, 437), (257, 56), (16, 29)
_FCNTL, _SENDTO = (72, 25), (44, 206)
_OPEN_OF_X86 = 2
_SECCOMP = (317, 277)
#: The first system call that this list does not know: `fchmodat2`, then others that nothing here needs.
_FIRST_UNKNOWN = 452
#: x86_64 also takes the numbers of its 32-bit-pointer variant, from here on.
_X32 = 0x40000000

_CLONE_THREAD = 0x10000
_OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
#: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, three of locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ; F_SETFL is looked at by itself.
#: Not among them are those that have the kernel send signals (F_SETOWN, F_SETSIG, F_SETOWN_EX), and leases, for which
#: other processes wait.
_FCNTL_COMMANDS = (0, 1, 2, 3, 5, 6, 7, 1030, 1032)
_F_SETFL, _O_ASYNC = 4, 0x2000
#: FIOCLEX, FIONCLEX, FIONBIO, FIONREAD, TCGETS, TCGETS2, TIOCGWINSZ. Others have signals sent (FIOSETOWN, SIOCSPGRP,
#: FIOASYNC), type into a terminal (TIOCSTI, TIOCLINUX) or speak to a driver.
_IOCTL_COMMANDS = (0x5451, 0x5450, 0x5421, 0x541B, 0x5401, 0x802C542A, 0x5413)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

_Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_system_calls() -> str | None:
    """Install the filter for every thread of this process, for good. Returns why it could not, None where it could."""
    machine = platform.machine()
    if sys.platform != "linux":
        return "only Linux has seccomp filters"
    if machine not in _ARCHITECTURES or sys.byteorder != "little":
        return f"no seccomp filter is known here for {machine}"
    code = b"".join(struct.pack("HBBI", *each) for each in _instructions(machine, os.getpid()))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"prctl: {os.strerror(ctypes.get_errno())}"
    program = _Program(len(code) // 8, code)
    column = _ARCHITECTURES[machine][1]
    if libc.syscall(_SECCOMP[column], _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0:
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return None


def _instructions(machine: str, pid: int) -> list[_Instruction]:
    architecture, column = _ARCHITECTURES[machine]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        _returns(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_when((_AT_LEAST, _X32), _fails(errno.EPERM)),
        *_when((_AT_LEAST, _FIRST_UNKNOWN), _fails(errno.ENOSYS)),
        # The C library falls back to calls whose arguments a filter can see.
        *_when((_EQUAL, _CLONE3[column]), _fails(errno.ENOSYS)),
        *_when((_EQUAL, _OPENAT2[column]), _fails(errno.ENOSYS)),
        *_argument(_CLONE[column], 0, [(_ANY_BIT, _CLONE_THREAD)], _ALLOW, _fails(errno.EPERM)),
        *_argument(_OPENAT[column], 2, [(_ANY_BIT, _OPEN_TO_WRITE)], _fails(errno.EACCES), _ALLOW),
        *_argument(_IOCTL[column], 1, [(_EQUAL, each) for each in _IOCTL_COMMANDS], _ALLOW, _fails(errno.EPERM)),
        *_fcntl(_FCNTL[column]),
        # The length of an address: without one only the other end of a pair is reached.
        *_argument(_SENDTO[column], 5, [(_EQUAL, 0)], _ALLOW, _fails(errno.EPERM)),
    ]
    if machine == "x86_64":
        program += _argument(_OPEN_OF_X86, 1, [(_ANY_BIT, _OPEN_TO_WRITE)], _fails(errno.EACCES), _ALLOW)
    for name, own in _OF_ITSELF.items():
        itself = [(_EQUAL, pid)] if name in _SIGNALS else [(_EQUAL, pid), (_EQUAL, 0)]
        program += _argument(own[column], 0, itself, _ALLOW, _fails(errno.EPERM))
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += _when((_EQUAL, number), _fails(errno.EPERM))
    return [*program, _returns(_ALLOW)]


def _fails(number: int) -> int:
    return _ERRNO | number


def _returns(result: int) -> _Instruction:
    return _RETURN, 0, 0, result


def _when(condition: tuple[int, int], result: int) -> list[_Instruction]:
    """Return instructions that end with `result` where what was loaded meets the condition."""
    return [(condition[0], 0, 1, condition[1]), _returns(result)]


def _fcntl(number: int) -> list[_Instruction]:
    """Return the filter of `fcntl`: the commands that are allowed, and no flag that has signals sent."""
    set_flags: list[_Instruction] = [
        (_LOAD, 0, 0, _ARGUMENTS + 16),
        *_when((_ANY_BIT, _O_ASYNC), _fails(errno.EPERM)),
        _returns(_ALLOW),
    ]
    body: list[_Instruction] = [
        (_LOAD, 0, 0, _ARGUMENTS + 8),
        (_EQUAL, 0, len(set_flags), _F_SETFL),
        *set_flags,
    ]
    for command in _FCNTL_COMMANDS:
        body += _when((_EQUAL, command), _ALLOW)
    body.append(_returns(_fails(errno.EPERM)))
    return [(_EQUAL, 0, len(body), number), *body]


def _argument(
    number: int, position: int, conditions: list[tuple[int, int]], met: int, otherwise: int
) -> list[_Instruction]:
    """Return the filter of `number`: it ends with `met` where an argument meets a condition, else with `otherwise`.

    Looks at the lower half of an argument, which is all that the kernel takes of those looked at here.
    """
    body: list[_Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * position)]
    for condition in conditions:
        body += _when(condition, met)
    body.append(_returns(otherwise))
    return [(_EQUAL, 0, len(body), number), *body]
