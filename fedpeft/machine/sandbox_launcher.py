"""Isolation of a process: this file runs as a program of its own, with the standard library alone.

It reads its orders as JSON from standard input, enters new namespaces and starts Python in an empty file system. It
kills the process when its time is over, and writes one line to standard output: how the process ended.

    exit 0 | signal 9 | time | setup MESSAGE

What a program in it meets:

- user, mount, process, network, IPC and host name namespaces of its own: no network device, no process but itself.
- an empty file system in memory of limited size, and Python and the system's libraries, for reading only.
- no environment but a constant seed of hashes, no privileges, and no way to gain any.
- limits of memory, processor time, file size and open files.
- a filter of system calls: no processes, threads, sockets, mounts, shared memory or tracing.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
"""CLONE_NEW: USER, NS, PID, NET, IPC and UTS."""

READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
KEPT_FLAGS = {8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""Flags of statvfs that a remount must keep, as flags of mount: noexec, noatime, nodiratime, relatime."""

ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""With it, sets of texts have the same order in each run. The option -I of Python would ignore it."""

DETACH = 2
NOBODY = 65534
SET_PARENT_DEATH_SIGNAL, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 1, 22, 38

# name: number on x86_64, on aarch64
CALLS = {
    "clone": (56, 220), "clone3": (435, 435), "fork": (57, None), "vfork": (58, None),
    "socket": (41, 198), "socketpair": (53, 199), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "ptrace": (101, 117), "prctl": (157, 167),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218),
}  # fmt: skip
"""System calls that are refused with EPERM."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of `CALLS` and AUDIT_ARCH, by machine."""

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library, and raise OSError if it fails."""
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount a file system, or change a mount."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    call("mount", *encoded, ctypes.c_ulong(flags), options.encode())


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies."""
    call("prctl", SET_PARENT_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)


def enter_namespaces() -> None:
    """Enter new namespaces, in which this process is a user without privileges outside."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEW_NAMESPACES)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def show_read_only(path: str, root: str) -> None:
    """Show a folder or file of the machine at the same path below `root`, for reading only."""
    target = root + path
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        open(target, "x").close()
    mount(path, target, None, BIND | RECURSIVE)
    places = [place for place in list_mounts() if place == target or place.startswith(target + "/")]
    if target not in places:  # otherwise it would stay writable
        raise OSError(f"{path} is not among the mounts")
    for place in places:
        given = os.statvfs(place).f_flag
        kept = sum(flag for has, flag in KEPT_FLAGS.items() if given & has)
        mount(None, place, None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES | kept)


def list_mounts() -> list[str]:
    """Return the places of all mounts; the kernel writes spaces and backslashes as octal numbers."""
    with open("/proc/self/mountinfo", "rb") as table:
        places = [line.split(b" ")[4] for line in table]
    return [os.fsdecode(re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), place)) for place in places]


def enter_file_system(root: str, shown: list[str], files: dict[str, str], size: int) -> None:
    """Replace the file system by an empty one in memory.

    Args:
        root: an empty folder.
        shown: paths that can be read.
        files: texts of the files in it, by name.
        size: most bytes of all files.
    """
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("sandbox", root, "tmpfs", NO_SUID | NO_DEVICES, f"size={size},nr_inodes=4096,mode=755")
    for path in shown:
        show_read_only(path, root)
    os.makedirs(f"{root}/tmp", exist_ok=True)  # something in it may be shown
    for name, text in files.items():
        with open(f"{root}/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/tmp")


def set_limits(memory: int, seconds: int, file_size: int) -> None:
    """Limit memory and file size (bytes), processor time (seconds), open files and processes."""
    for name, value in (
        ("AS", memory), ("CPU", seconds), ("FSIZE", file_size), ("NOFILE", 64), ("NPROC", 1), ("CORE", 0),
        ("MEMLOCK", 0), ("MSGQUEUE", 0),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def build_filter(machine: str) -> bytes:
    """Return the program that refuses `CALLS` (struct sock_filter): errors for them, and death for other machines."""
    column, architecture = MACHINES[machine]
    numbers = [number for of in CALLS.values() if (number := of[column]) is not None]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050001, 0x7FFF0000
    lines: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # the second set of calls of x86_64
        (answer, 0, 0, kill),
    ]
    for place, number in enumerate(numbers):
        lines.append((equal, len(numbers) - place, 0, number))
    lines += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def drop_privileges(machine: str) -> None:
    """Give up the way to privileges, and filter the system calls."""
    program = build_filter(machine)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    none = ctypes.c_ulong(0)
    call("prctl", SET_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), none, none, none)
    call("prctl", SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(given), none, none)


def become_sandbox(orders: dict[str, Any], errors: int) -> NoReturn:
    """Turn this process into the isolated one; write to `errors` why that failed."""
    try:
        die_with_parent()
        end = select.poll()
        end.register(errors, 0)
        if end.poll(0):  # nobody reads: the parent died before the line above, so no signal would come
            os._exit(1)
        os.setsid()
        enter_file_system(orders["root"], orders["shown"], orders["files"], orders["file_bytes"])
        nothing = orders["nothing"]
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        kept = [os.dup(number) for number in orders["channels"]]  # a target may be another's source
        errors = os.dup(errors)
        high = max([*kept, errors, 3 + len(kept)]) + 1
        kept = [_move(number, high + place) for place, number in enumerate(kept)]
        errors = _move(errors, high + len(kept))
        for place, number in enumerate(kept):
            os.dup2(number, 3 + place)
        os.closerange(3 + len(kept), errors)
        set_limits(orders["memory_bytes"], orders["cpu_seconds"], orders["file_bytes"])
        drop_privileges(platform.machine())
        os.execve(orders["python"], ["python", "-P", "-s", "-S", "-B", "/main.py"], ENVIRONMENT)
    except BaseException as error:
        os.write(errors, f"{type(error).__name__}: {error}".encode()[:500])
    os._exit(1)


def _move(number: int, to: int) -> int:
    os.dup2(number, to, inheritable=False)
    return to


def wait(child: int, deadline: float) -> str:
    """Return how a process ended; kill it at `deadline` (seconds of the monotonic clock)."""
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not ended:
        return "time"
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def main() -> None:
    """Run the orders on standard input."""
    die_with_parent()
    orders = json.loads(sys.stdin.buffer.read())
    if platform.machine() not in MACHINES:
        print(f"setup {platform.machine()} is not one of {', '.join(MACHINES)}")
        return
    deadline = time.monotonic() + orders["seconds"]
    try:
        orders["nothing"] = os.open("/dev/null", os.O_RDWR)
        enter_namespaces()
        reading, writing = os.pipe()
        child = os.fork()
    except OSError as error:
        print(f"setup {error}")
        return
    if child == 0:
        os.close(reading)
        become_sandbox(orders, writing)
    for number in (writing, *orders["channels"]):
        os.close(number)  # so that the other side sees the end
    failed = os.read(reading, 500).decode(errors="replace")
    ended = wait(child, deadline)
    print(f"setup {failed}" if failed else ended)


if __name__ == "__main__":
    main()
