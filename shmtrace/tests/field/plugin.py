"""A plugin: takes requests from its ring and answers them, or does what a faulty one does."""

import os
import queue
import select
import subprocess
import threading
import time

from doorbell import Waiter, run_async, thread
from hubfile import ACTIVE, Message, Ring

# What a request asks for. All but the first are faults, or prepare one.
ECHO, END, NO_RING, RING_FIRST, SWALLOW, DEAF, LEAK, IGNORE, DIE, CLOSE, THIEF, EXHAUST = range(1, 13)
BLOCK = {"nanosleep": 20, "wait4": 21, "read": 22, "futex": 23}


class Plugin:
    def __init__(self, memory, peer, bell, options, say):
        self.memory, self.peer, self.bell, self.options, self.say = memory, peer, bell, options, say
        self.requests = Ring(memory, peer, 1, options.futex)
        self.answers = Ring(memory, peer, 0, options.futex)
        self.mode = set()
        self.sent = 0
        self.work = queue.SimpleQueue()
        self.waiter = None

    def run(self):
        flags = self.memory.places.entry(self.peer) + 4
        self.memory.store(flags, ACTIVE, 32)
        if self.options.plugin_runtime == "asyncio":
            return run_async([self.bell], self.serve)
        self.waiter = Waiter(self.options.plugin_wait, [self.bell])
        if self.options.plugin_runtime == "threads":
            thread(self.loop)
            for _ in range(2):
                thread(self.worker)
            return threading.Event().wait()
        return self.loop()

    def loop(self):
        while True:
            self.serve()
            if "robbed" in self.mode:
                self.mode.discard("robbed")
                time.sleep(0.03)
            self.waiter.wait()
            if "swallow" in self.mode:
                self.mode.discard("swallow")
                self.say("fault", peer=self.peer)
                self.waiter.wait()

    def worker(self):
        while True:
            self.handle(self.work.get())

    def serve(self):
        while message := self.requests.pop(free=False):
            if self.options.plugin_runtime == "threads" and message.method == ECHO:
                self.work.put(message)
            else:
                self.handle(message)

    def handle(self, message):
        if message.slot != 0xFFFF_FFFF and message.method != LEAK:
            self.memory.release(message.slot)
        act = {
            END: lambda: os._exit(0),
            DIE: lambda: (self.say("fault", peer=self.peer), os._exit(1)),
            SWALLOW: lambda: self.mode.add("swallow"),
            DEAF: lambda: self.waiter.ignore(),
            THIEF: self.be_robbed,
        }.get(message.method)
        if message.method == IGNORE:
            return self.say("fault", peer=self.peer)
        if act:
            act()
        if message.method == NO_RING:
            time.sleep(0.03)  # until the host sleeps
        self.answer(message)
        if message.method == CLOSE:
            self.waiter.ignore()
            self.bell.socket.close()
        for name, method in BLOCK.items():
            if method == message.method:
                self.block(name)
        return None

    def answer(self, message):
        self.sent += 1
        payload = message.payload
        answer = Message(self.sent if self.options.channels else message.msg_id, message.channel, message.method, payload)
        if message.method == RING_FIRST:
            self.bell.ring()
            time.sleep(0.03)
        while not self.answers.push(answer, self.peer):
            word = self.answers.word
            self.memory.wait_word(word, self.memory.load(word, 32), 0.1)
        if message.method in (NO_RING, RING_FIRST):
            self.say("fault", peer=self.peer)
            return
        self.bell.ring()
        if self.options.futex:
            self.memory.bump(self.answers.word)

    def be_robbed(self):
        """A second thread takes the next signal while the first one looks away."""

        def steal():
            select.select([self.bell.fd], [], [])
            self.bell.take()
            self.say("fault", peer=self.peer)

        thread(steal)
        self.mode.add("robbed")

    def block(self, how):
        if how == "nanosleep":
            time.sleep(3600)
        elif how == "wait4":
            child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            os.waitpid(child.pid, 0)
        elif how == "read":
            os.read(os.pipe()[0], 1)
        else:
            gate = threading.Lock()
            gate.acquire()
            gate.acquire()
