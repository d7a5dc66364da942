"""The host: calls its plugins in turn and waits for their answers."""

import asyncio
import os
import threading
import time

import plugin
from doorbell import Bell, Waiter, run_async, thread
from faults import ALL
from hubfile import Message, Ring

class Peer:
    def __init__(self, host, number, ends):
        chosen = host.options
        self.number, self.plugin_end = number, ends[1]
        self.bell = Bell(ends[0], chosen.send, chosen.receive)
        self.requests = Ring(host.memory, number, 1, chosen.futex)
        self.answers = Ring(host.memory, number, 0, chosen.futex)
        self.futex = chosen.futex
        self.open = {}
        self.waits = threading.Condition()
        self.waiter = None
        self.ended = False

    def publish(self, message):
        while not self.requests.push(message):
            word = self.requests.word
            self.requests.memory.wait_word(word, self.requests.memory.load(word, 32), 0.1)

    def ring(self):
        self.bell.ring()
        if self.futex:
            self.requests.memory.bump(self.requests.word)

    def collect(self):
        with self.waits:
            while answer := self.answers.pop():
                self.open.pop(answer.channel, lambda: None)()
            self.waits.notify_all()


class Host:
    def __init__(self, options, memory, bells, plugins, say):
        self.options, self.memory, self.plugins, self.say = options, memory, plugins, say
        self.peers = {number: Peer(self, number, ends) for number, ends in bells.items()}
        self.number = 0
        self.lock = threading.Lock()
        self.victim = self.peers[options.victim if options.victim is not None else max(self.peers)]
        self.calls = 0
        self.waiter = None

    def message(self, method=plugin.ECHO, size=None):
        with self.lock:
            self.number += 1
            number = self.number
        channel = 2 * number + 1 if self.options.channels else 2 * number % 2000 + 1
        size = size or (8 if number % 4 else 100)
        return Message(number, channel, method, bytes(size))

    # Calls, one function for each runtime: publish, ring, wait for the answer.

    def send(self, peer, method=plugin.ECHO, answered=lambda: None):
        message = self.message(method)
        peer.open[message.channel] = answered
        peer.publish(message)
        peer.ring()
        return message.channel

    def call(self, peer, method=plugin.ECHO):
        channel = self.send(peer, method)
        self.wait_for(peer, lambda: channel not in peer.open)

    def wait_for(self, peer, done):
        """Until the answer is there; by this thread's own wait, or by the receiver's."""
        if self.options.host_runtime in ("split", "asyncio"):
            with peer.waits:
                peer.waits.wait_for(done)
            return
        waiter = peer.waiter or self.waiter
        while True:
            peer.collect()
            if done():
                return
            waiter.wait()
            if self.options.host_runtime == "loop":
                for other in self.peers.values():
                    other.collect()

    def run(self):
        runtime = self.options.host_runtime
        bells = [peer.bell for peer in self.peers.values()]
        if runtime == "split":
            self.waiter = Waiter(self.options.host_wait, bells)
            thread(self.receive)
        elif runtime == "threads":
            for peer in self.peers.values():
                peer.waiter = Waiter(self.options.host_wait, [peer.bell])
        elif runtime == "loop":
            self.waiter = Waiter(self.options.host_wait, bells)
        self.say("ready")
        if self.options.go:
            os.read(0, 64)
        time.sleep(self.options.delay)
        if runtime == "asyncio":
            run_async(bells, self.collect, self.work_async)
        elif runtime in ("threads", "split"):
            workers = [thread(self.work, [peer]) for peer in self.peers.values()]
            for worker in workers:
                worker.join()
        elif self.options.host_thread:
            thread(self.work, list(self.peers.values())).join()
        else:
            self.work(list(self.peers.values()))
        self.say("done", calls=self.calls)
        for peer in self.peers.values():
            peer.publish(self.message(plugin.END))
            peer.ring()
        for pid in self.plugins.values():
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass

    def collect(self):
        for peer in self.peers.values():
            peer.collect()

    def receive(self):
        while True:
            self.collect()
            self.waiter.wait()

    def due(self, peer):
        """Counts a call; True if it is the one at which the fault comes."""
        with self.lock:
            self.calls += 1
            due = self.options.fault and not self.victim.ended and peer is self.victim
            due = bool(due and self.calls > self.options.after)
            self.victim.ended |= due
            return due

    def work(self, peers):
        while not self.options.calls or self.calls < self.options.calls:
            for peer in peers:
                if self.due(peer):
                    ALL[self.options.fault](self, peer)
                else:
                    self.call(peer)
                time.sleep(self.options.gap)

    async def work_async(self):
        async def caller(peer):
            while not self.options.calls or self.calls < self.options.calls:
                if self.due(peer):
                    await asyncio.to_thread(ALL[self.options.fault], self, peer)
                else:
                    answered = asyncio.Event()
                    self.send(peer, answered=answered.set)
                    await answered.wait()
                await asyncio.sleep(self.options.gap)

        await asyncio.gather(*(caller(peer) for peer in self.peers.values()))
