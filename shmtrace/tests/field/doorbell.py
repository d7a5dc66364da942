"""Doorbells and the many ways of waiting for one."""

import asyncio
import os
import select
import socket
import threading

import calls

DONTWAIT = socket.MSG_DONTWAIT


class Bell:
    """One end of a doorbell."""

    def __init__(self, fd, send="send", receive="recv"):
        self.fd, self.how_send, self.how_receive = fd, send, receive
        self.socket = socket.socket(fileno=fd)
        self.uring = calls.Uring() if send == "io_uring" else None

    def ring(self):
        try:
            if self.how_send == "write":
                os.write(self.fd, b"\1")
            elif self.how_send == "sendmsg":
                self.socket.sendmsg([b"\1"], [], DONTWAIT)
            elif self.how_send == "sendmmsg":
                calls.sendmmsg(self.fd)
            elif self.how_send == "io_uring":
                self.uring.send(self.fd)
            else:
                self.socket.send(b"\1", DONTWAIT)
        except BlockingIOError:
            pass  # the queue is full: a signal is pending

    def take(self, block=False):
        """Takes one signal; False if there is none."""
        flags = 0 if block else DONTWAIT
        try:
            if self.how_receive == "read":
                if not block and not select.select([self.fd], [], [], 0)[0]:
                    return False
                os.read(self.fd, 64)
            elif self.how_receive == "recvmsg":
                self.socket.recvmsg(64, 0, flags)
            elif self.how_receive == "recvfrom":
                self.socket.recvfrom(64, flags)
            else:
                self.socket.recv(64, flags)
            return True
        except BlockingIOError:
            return False

    def drain(self):
        taken = 0
        while self.take():
            taken += 1
        return taken


class Waiter:
    """Waits for a signal on any of some doorbells, and takes what has come."""

    def __init__(self, how, bells):
        self.how, self.bells = how, list(bells)
        # Something else that nobody ever signals, for those that turn deaf.
        self.other, self.keep = os.pipe()
        if how.startswith("epoll"):
            self.poll = select.epoll()
            edge = select.EPOLLET if how == "epoll-et" else 0
            for bell in self.bells:
                self.poll.register(bell.fd, select.EPOLLIN | edge)
            self.poll.register(self.other, select.EPOLLIN)
        self.deaf = False

    def fds(self):
        return [self.other] if self.deaf else [bell.fd for bell in self.bells] + [self.other]

    def ignore(self):
        """From now on waits for something else only."""
        self.deaf = True
        if self.how.startswith("epoll"):
            for bell in self.bells:
                self.poll.unregister(bell.fd)

    def wait(self):
        if self.how == "recv":
            return os.read(self.other, 1) if self.deaf else self.bells[0].take(block=True)
        if self.how == "select":
            select.select(self.fds(), [], [])
        elif self.how == "poll":
            poll = select.poll()
            for fd in self.fds():
                poll.register(fd, select.POLLIN)
            poll.poll()
        else:
            self.poll.poll()
        return any([bell.drain() for bell in self.bells])


def pair(kind="dgram", blocking=False, inheritable=False):
    """Both ends as bare fds."""
    kind = socket.SOCK_DGRAM if kind == "dgram" else socket.SOCK_SEQPACKET
    ends = socket.socketpair(socket.AF_UNIX, kind)
    for end in ends:
        end.setblocking(blocking)
        end.set_inheritable(inheritable)
    return tuple(end.detach() for end in ends)


def run_async(bells, on_signal, also=None):
    """The same on asyncio: `on_signal` after each batch of signals, `also` a coroutine beside it that ends the loop."""

    async def main():
        loop = asyncio.get_running_loop()

        def ready(bell):
            bell.drain()
            on_signal()

        for bell in bells:
            os.set_blocking(bell.fd, False)
            loop.add_reader(bell.fd, ready, bell)
        on_signal()
        await (also() if also else asyncio.Event().wait())

    asyncio.run(main())


def thread(target, *arguments):
    started = threading.Thread(target=target, args=arguments, daemon=True)
    started.start()
    return started
