"""Ways of sending on a doorbell for which Python has no function."""

import ctypes
import errno
import mmap
import os
import socket
import struct

LIBC = ctypes.CDLL(None, use_errno=True)


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class Header(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    ]


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def sendmmsg(fd):
    vector = Vector(b"\1", 1)
    header = Header(vectors=ctypes.pointer(vector), count=1)
    checked(LIBC.sendmmsg(fd, ctypes.byref(header), 1, socket.MSG_DONTWAIT))


class Uring:
    """An io_uring with one entry, for one send at a time."""

    SETUP, ENTER = 425, 426
    SEND = 26
    WAIT = 1
    SUBMISSIONS, COMPLETIONS, ENTRIES = 0, 0x8000000, 0x10000000

    def __init__(self):
        parameters = (ctypes.c_uint32 * 30)()
        self.fd = checked(LIBC.syscall(self.SETUP, 1, parameters))
        # The offsets of `struct io_uring_params`: submissions from word 10 on, completions from word 20 on.
        self.tail, self.array = parameters[11], parameters[16]
        self.head_done, self.done = parameters[20], parameters[25]
        self.submissions = mmap.mmap(self.fd, self.array + 4 * parameters[0], offset=self.SUBMISSIONS)
        self.completions = mmap.mmap(self.fd, self.done + 16 * parameters[1], offset=self.COMPLETIONS)
        self.entries = mmap.mmap(self.fd, 64 * parameters[0], offset=self.ENTRIES)
        self.mask_done = parameters[1] - 1
        self.byte = ctypes.create_string_buffer(b"\1")

    def send(self, fd):
        address = ctypes.addressof(self.byte)
        entry = struct.pack("=BBHi QQ II", self.SEND, 0, 0, fd, 0, address, 1, socket.MSG_DONTWAIT)
        self.entries[:64] = entry.ljust(64, b"\0")
        self.submissions[self.array : self.array + 4] = bytes(4)
        (tail,) = struct.unpack_from("=I", self.submissions, self.tail)
        struct.pack_into("=I", self.submissions, self.tail, tail + 1)
        checked(LIBC.syscall(self.ENTER, self.fd, 1, 1, self.WAIT, None, 0))
        (head,) = struct.unpack_from("=I", self.completions, self.head_done)
        at = self.done + 16 * (head & self.mask_done)
        (result,) = struct.unpack_from("=i", self.completions, at + 8)
        struct.pack_into("=I", self.completions, self.head_done, head + 1)
        if result == -errno.EAGAIN:
            raise BlockingIOError
        if result < 0:
            raise OSError(-result, os.strerror(-result))
