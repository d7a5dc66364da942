"""Faults, as the host plants them at one peer. Each ends with the host waiting for an answer that does not come."""

import os
import select
import signal
import struct
import time

import plugin
from hubfile import ENTRY, RING_HEADER


def idle(host, peer):
    """Until the plugin has gone back to sleep."""
    time.sleep(0.03)


def stall(host, peer, channel):
    host.wait_for(peer, lambda: channel not in peer.open)


def publish(host, peer, method=plugin.ECHO):
    message = host.message(method, 8)
    peer.open[message.channel] = lambda: None
    peer.publish(message)
    return message.channel


def never_rung(host, peer):
    idle(host, peer)
    channel = publish(host, peer)
    host.say("fault", peer=peer.number)
    stall(host, peer, channel)


def rung_before_publish(host, peer):
    idle(host, peer)
    peer.ring()
    idle(host, peer)
    channel = publish(host, peer)
    host.say("fault", peer=peer.number)
    stall(host, peer, channel)


def masked(host, peer):
    idle(host, peer)
    publish(host, peer)
    host.say("fault", peer=peer.number)
    time.sleep(0.025)
    host.call(peer)


def asked_for(method, then=plugin.ECHO):
    """A plugin that is told to do wrong, and then asked."""

    def fault(host, peer):
        host.call(peer, method)
        time.sleep(0.01)
        channel = host.send(peer, then)
        host.say("asked", peer=peer.number)
        stall(host, peer, channel)

    return fault


def told(method):
    """A plugin whose very answer is wrong, or missing."""

    def fault(host, peer):
        idle(host, peer)
        channel = host.send(peer, method)
        stall(host, peer, channel)

    return fault


def deaf(host, peer):
    host.call(peer, plugin.DEAF)
    idle(host, peer)
    channel = host.send(peer)
    host.say("fault", peer=peer.number)
    stall(host, peer, channel)


def blocked(how):
    def fault(host, peer):
        host.call(peer, plugin.BLOCK[how])
        idle(host, peer)
        channel = host.send(peer)
        host.say("fault", peer=peer.number)
        stall(host, peer, channel)

    return fault


def stolen(host, peer):
    """The host itself takes the signal, from an end that it should have closed."""
    idle(host, peer)
    pid = host.plugins[peer.number]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.05)
    channel = host.send(peer)
    select.select([peer.plugin_end], [], [])
    os.read(peer.plugin_end, 64)
    os.kill(pid, signal.SIGCONT)
    host.say("fault", peer=peer.number)
    stall(host, peer, channel)


def wrong_doorbell(host, peer):
    idle(host, peer)
    other = next(other for other in host.peers.values() if other is not peer)
    channel = publish(host, peer)
    other.ring()
    host.say("fault", peer=peer.number)
    stall(host, peer, channel)


def ring_in_vain(host, peer):
    """Publishes, and rings on a doorbell that does not work."""
    channel = publish(host, peer)
    try:
        peer.ring()
    except OSError as error:
        host.say("fault", peer=peer.number, errno=error.errno)
    stall(host, peer, channel)


def ring_failed(host, peer):
    """The host's end is closed: EBADF."""
    idle(host, peer)
    os.close(peer.bell.fd)
    host.waiter.bells.remove(peer.bell)
    ring_in_vain(host, peer)


def refused(host, peer):
    """The plugin has closed its end: ECONNREFUSED or EPIPE."""
    host.call(peer, plugin.CLOSE)
    idle(host, peer)
    ring_in_vain(host, peer)


def ring_full(host, peer):
    host.call(peer, plugin.BLOCK["nanosleep"])
    idle(host, peer)
    while peer.requests.push(host.message(plugin.ECHO, 8)):
        peer.bell.ring()
    host.say("fault", peer=peer.number)
    peer.publish(host.message(plugin.ECHO, 8))


def head_back(host, peer):
    idle(host, peer)
    head, _ = peer.requests.indexes()
    host.memory.store(peer.requests.at, head - 2)
    host.say("fault", peer=peer.number)
    time.sleep(3600)


def overwritten(host, peer):
    host.call(peer, plugin.DEAF)
    idle(host, peer)
    head, _ = peer.requests.indexes()
    host.send(peer)
    time.sleep(0.4)
    place = peer.requests.place(head)
    host.memory.write(place, struct.pack("=Q", 1 << 40))
    host.say("fault", peer=peer.number)
    time.sleep(3600)


def slots_stuck(host, peer):
    message = host.message(plugin.LEAK, 100)
    peer.open[message.channel] = lambda: None
    peer.publish(message)
    peer.ring()
    stall(host, peer, message.channel)
    host.say("fault", peer=peer.number)
    time.sleep(3600)


def never_enqueued(host, peer):
    host.say("fault", peer=peer.number)
    time.sleep(3600)


ALL = {
    "never-rung": never_rung,
    "rung-before-publish": rung_before_publish,
    "masked": masked,
    "consumed-then-slept": asked_for(plugin.SWALLOW),
    "stolen": stolen,
    "stolen-by-thread": asked_for(plugin.THIEF),
    "wrong-doorbell": wrong_doorbell,
    "ring-failed": ring_failed,
    "refused": refused,
    "not-draining": deaf,
    "blocked-nanosleep": blocked("nanosleep"),
    "blocked-wait4": blocked("wait4"),
    "blocked-read": blocked("read"),
    "blocked-futex": blocked("futex"),
    "ring-full": ring_full,
    "head-back": head_back,
    "overwritten": overwritten,
    "slots-stuck": slots_stuck,
    "peer-died": told(plugin.DIE),
    "answer-never-rung": told(plugin.NO_RING),
    "answer-rung-first": told(plugin.RING_FIRST),
    "unanswered": told(plugin.IGNORE),
    "never-enqueued": never_enqueued,
}
