"""The hub file as its format describes it: header, peer table, rings, slots. Written from the description alone."""

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import threading

MAGIC = b"RAPAHUB\0"
CLASSES = [(1 << 10, 1024), (16 << 10, 256), (256 << 10, 32), (4 << 20, 8), (16 << 20, 4)]
ENTRY, RING_HEADER, DESCRIPTOR, CLASS, EXTENT, META = 64, 192, 64, 192, 64, 16
NONE = 0xFFFF_FFFF
ACTIVE, DEAD, RESERVED = 1, 4, 8
DATA, EOS = 1, 4
LAYOUT = struct.Struct("=QIIIIIIIIQ16s")

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_FUTEX = 202 if platform.machine() == "x86_64" else 98


def up(value, to):
    return (value + to - 1) // to * to


class Places:
    """Where the parts lie; `page` puts each of them on a page of its own."""

    def __init__(self, max_peers, capacity, page):
        step = mmap.PAGESIZE if page else 64
        self.max_peers, self.capacity = max_peers, capacity
        self.table = 256
        self.rings = up(self.table + max_peers * ENTRY, step)
        self.ring_bytes = RING_HEADER + capacity * DESCRIPTOR
        self.classes = up(self.rings + max_peers * 2 * self.ring_bytes, step)
        self.extents = up(self.classes + len(CLASSES) * CLASS, step)
        at, self.extent_of = self.extents, []
        for size, slots in CLASSES:
            self.extent_of.append(at)
            at = up(at + EXTENT + slots * META, 64) + slots * size
        self.end = up(at, mmap.PAGESIZE)

    def entry(self, peer):
        return self.table + peer * ENTRY

    def ring(self, peer, to_peer):
        return self.rings + (2 * peer + to_peer) * self.ring_bytes

    def slot(self, number, index):
        base, (size, slots) = self.extent_of[number], CLASSES[number]
        return base + EXTENT + index * META, up(base + EXTENT + slots * META, 64) + index * size


def create(fd, places):
    """Writes a new hub into an empty file; the magic last."""
    os.ftruncate(fd, places.end)
    for number, (size, slots) in enumerate(CLASSES):
        base = places.extent_of[number]
        header = struct.pack("=B3xI Q I 4x I I", number, slots, 0, 0, EXTENT, up(EXTENT + slots * META, 64))
        metas = b"".join(
            struct.pack("=IIII", 0, 0, index + 1 if index + 1 < slots else NONE, NONE) for index in range(slots)
        )
        os.pwrite(fd, header.ljust(EXTENT, b"\0") + metas, base)
        shift = (slots - 1).bit_length()
        head = struct.pack("=II Q I BB 2x Q", size, slots, 0, 0, shift, 1, base)
        os.pwrite(fd, head, places.classes + number * CLASS)
    for peer in range(places.max_peers):
        rings = [places.ring(peer, to_peer) for to_peer in (0, 1)]
        for ring in rings:
            os.pwrite(fd, struct.pack("=I", places.capacity), ring + 128)
        entry = struct.pack("=HH I QQ QQ II", peer, 0, 0, 0, 0, *rings, 0, 0)
        os.pwrite(fd, entry.ljust(ENTRY, b"\0"), places.entry(peer))
    header = struct.pack(
        "=II HHHH Q II QQQQ", 1 << 16, 0, places.max_peers, 0, 0, 0, places.end, len(CLASSES), places.capacity,
        places.table, places.rings, places.classes, places.extents,
    )  # fmt: skip
    os.pwrite(fd, header, 8)
    os.pwrite(fd, MAGIC, 0)


class Memory:
    """A process's mapping of a hub, in one piece or several."""

    def __init__(self, fd, places, how="whole"):
        self.fd, self.places = os.dup(fd), places
        self.lock = threading.Lock()
        cuts = {
            "whole": [0, places.end],
            # Adjacent in the file, not in memory.
            "parts": [0, mmap.PAGESIZE, up(places.classes, mmap.PAGESIZE), places.end],
            # Neither header nor peer table: those go through the file.
            "rings": [places.rings // mmap.PAGESIZE * mmap.PAGESIZE, places.end],
        }[how]
        self.windows = []
        for begin, end in reversed(list(zip(cuts, cuts[1:]))):
            piece = mmap.mmap(self.fd, end - begin, offset=begin)
            view = memoryview(piece)
            self.windows.append((begin, end, piece, view.cast("Q"), view.cast("I")))
        self.keep = [ctypes.c_char.from_buffer(window[2]) for window in self.windows]

    def window(self, offset):
        return next((window for window in self.windows if window[0] <= offset < window[1]), None)

    def load(self, offset, bits=64):
        found = self.window(offset)
        if not found:
            return int.from_bytes(os.pread(self.fd, bits // 8, offset), "little")
        return found[3][(offset - found[0]) // 8] if bits == 64 else found[4][(offset - found[0]) // 4]

    def store(self, offset, value, bits=64):
        found = self.window(offset)
        if not found:
            os.pwrite(self.fd, value.to_bytes(bits // 8, "little"), offset)
        elif bits == 64:
            found[3][(offset - found[0]) // 8] = value
        else:
            found[4][(offset - found[0]) // 4] = value

    def read(self, offset, size):
        begin, _, piece, _, _ = self.window(offset)
        return piece[offset - begin : offset - begin + size]

    def write(self, offset, data):
        begin, _, piece, _, _ = self.window(offset)
        piece[offset - begin : offset - begin + len(data)] = data

    def futex(self, offset, operation, value, timeout=None):
        begin, _, _, _, _ = found = self.window(offset)
        address = ctypes.addressof(self.keep[self.windows.index(found)]) + offset - begin
        limit = ctypes.byref((ctypes.c_long * 2)(0, int(timeout * 1e9))) if timeout else None
        return LIBC.syscall(SYS_FUTEX, ctypes.c_void_p(address), operation, value, limit, None, 0)

    def bump(self, offset):
        """Counts a futex word up and wakes everybody who sleeps on it."""
        if self.window(offset):
            self.store(offset, (self.load(offset, 32) + 1) & NONE, 32)
            self.futex(offset, 1, 0x7FFF_FFFF)

    def wait_word(self, offset, value, timeout):
        self.futex(offset, 0, value, timeout)

    # There is no compare-and-swap to be had here: a lock on the file serializes the free lists' users.

    def allocate(self, data, owner):
        number = next(number for number, (size, _) in enumerate(CLASSES) if size >= len(data))
        head = self.places.classes + number * CLASS + 8
        with self.lock:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            word = self.load(head)
            index = word & NONE
            if index == NONE:
                raise MemoryError("no free slot")
            meta, place = self.places.slot(number, index)
            self.store(head, ((word >> 32) + 1 & NONE) << 32 | self.load(meta + 8, 32))
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
        generation = self.load(meta, 32) + 1
        for offset, value in ((0, generation), (4, 1), (12, owner)):
            self.store(meta + offset, value, 32)
        self.write(place, data)
        self.store(meta + 4, 2, 32)
        return number << 29 | index, generation

    def release(self, slot):
        number, index = slot >> 29, slot & ((1 << 29) - 1)
        meta, _ = self.places.slot(number, index)
        head = self.places.classes + number * CLASS + 8
        with self.lock:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            self.store(meta + 4, 0, 32)
            self.store(meta + 12, NONE, 32)
            word = self.load(head)
            self.store(meta + 8, word & NONE, 32)
            self.store(head, ((word >> 32) + 1 & NONE) << 32 | index)
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
        self.bump(head + 8)


class Message:
    def __init__(self, msg_id, channel, method, payload=b"", slot=NONE):
        self.msg_id, self.channel, self.method, self.payload, self.slot = msg_id, channel, method, payload, slot


class Ring:
    """One direction of one peer."""

    def __init__(self, memory, peer, to_peer, futexes):
        self.memory, self.peer, self.futexes = memory, peer, futexes
        self.at = memory.places.ring(peer, to_peer)
        self.word = memory.places.entry(peer) + (44 if to_peer else 40)
        self.capacity = memory.places.capacity
        self.lock = threading.Lock()

    def indexes(self):
        return self.memory.load(self.at), self.memory.load(self.at + 64)

    def place(self, index):
        return self.at + RING_HEADER + (index & (self.capacity - 1)) * DESCRIPTOR

    def describe(self, message, owner):
        slot, generation, inline = NONE, 0, message.payload
        if len(inline) > 16:
            slot, generation = self.memory.allocate(inline, owner)
            inline = b""
        return LAYOUT.pack(
            message.msg_id, message.channel, message.method, slot, generation, 0, len(message.payload), DATA | EOS, 0,
            (1 << 64) - 1, inline,
        )  # fmt: skip

    def push(self, message, owner=0):
        """Publishes; False if there is no room."""
        with self.lock:
            head, tail = self.indexes()
            if head - tail >= self.capacity:
                return False
            self.memory.write(self.place(head), self.describe(message, owner))
            self.memory.store(self.at, head + 1)
            return True

    def pop(self, free=True):
        with self.lock:
            head, tail = self.indexes()
            if head == tail:
                return None
            msg_id, channel, method, slot, _, offset, size, _, _, _, inline = LAYOUT.unpack(
                self.memory.read(self.place(tail), DESCRIPTOR)
            )
            self.memory.store(self.at + 64, tail + 1)
        payload = inline[:size]
        if slot != NONE:
            number, index = slot >> 29, slot & ((1 << 29) - 1)
            payload = self.memory.read(self.memory.places.slot(number, index)[1] + offset, size)
            if free:
                self.memory.release(slot)
        if self.futexes:
            self.memory.bump(self.word)
        return Message(msg_id, channel, method, payload, slot)
