#!/usr/bin/env python3
"""A host with plugins that share nothing with shmtrace but the hub's format, run and broken in many ways.

Says what happens on stdout, one JSON object a line. See --help.
"""

import argparse
import array
import ctypes
import json
import os
import signal
import socket
import sys
import time

import faults
import hubfile
from doorbell import Bell, pair
from host import Host
from plugin import Plugin


def say(event, **fields):
    line = json.dumps({"event": event, "mono_ns": time.monotonic_ns(), **fields})
    os.write(1, line.encode() + b"\n")


def die_with_parent():
    hubfile.LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)


def options(words):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("role", choices=["host", "plugin"])
    add("--plugins", type=int, default=3)
    add("--first-id", type=int, default=0)
    add("--max-peers", type=int, default=32)
    add("--capacity", type=int, default=256)
    add("--hub", default="tmp", help="tmp, shm, memfd or a path")
    add("--unlink", action="store_true", help="remove the hub's name once everybody has mapped it")
    add("--map", default="whole", choices=["whole", "parts", "rings"], help="how plugins map it")
    add("--host-map", default="whole", choices=["whole", "parts"])
    add("--hubs", type=int, default=1, help="hosts of one tree, each with a hub and plugins of its own")
    add("--nested", action="store_true", help="all in a child of the process that was started")
    add("--start", default="exec", choices=["exec", "fork", "grandchild"])
    add("--bell", default="argument", choices=["argument", "silent", "scm"], help="how a plugin learns its fd")
    add("--late", type=float, default=0, help="s from a plugin's start to its doorbell, with scm")
    add("--name", default="dodeca-mod-{}")
    add("--leak", action="store_true", help="every child holds both ends of all doorbells")
    add("--socket", default="dgram", choices=["dgram", "seqpacket"])
    add("--blocking", action="store_true")
    add("--host-runtime", default="loop", choices=["loop", "threads", "split", "asyncio"])
    add("--host-wait", default="epoll", choices=["recv", "poll", "select", "epoll", "epoll-et"])
    add("--plugin-runtime", default="loop", choices=["loop", "threads", "asyncio"])
    add("--plugin-wait", default="epoll", choices=["recv", "poll", "select", "epoll", "epoll-et"])
    add("--host-thread", action="store_true", help="the host's work is not on its main thread")
    add("--send", default="send", choices=["send", "write", "sendmsg", "sendmmsg", "io_uring"])
    add("--receive", default="recv", choices=["recv", "recvfrom", "recvmsg", "read"])
    add("--futex", action="store_true", help="count the rings' futex words up and wake them")
    add("--channels", action="store_true", help="a channel for each call and message ids of its own for each side")
    add("--calls", type=int, default=200, help="in all; 0 for without end")
    add("--gap", type=float, default=0.0005, help="s between calls")
    add("--delay", type=float, default=0, help="s before the first call")
    add("--go", action="store_true", help="no call before a line on stdin")
    add("--fault", choices=sorted(faults.ALL))
    add("--after", type=int, default=30, help="calls before the fault")
    add("--victim", type=int, help="peer of the fault; the last one if not given")
    add("--hub-path")
    add("--hub-fd", type=int)
    add("--peer-id", type=int)
    add("--doorbell-fd", type=int)
    return parser.parse_known_args(words)[0]


def make_hub(chosen):
    """fd and path."""
    if chosen.hub == "memfd":
        fd = os.memfd_create("stranger", 0)
        return fd, f"/proc/{os.getpid()}/fd/{fd}"
    folder = {"tmp": "/tmp/dodeca-hub-{}.shm", "shm": "/dev/shm/hub.{}"}.get(chosen.hub, chosen.hub)
    path = folder.format(os.getpid())
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), path


def run_plugin(chosen, memory, peer, fd, control=None):
    if control is not None:
        channel = socket.socket(fileno=control)
        _, extra, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
        fd = array.array("i", extra[0][2])[0]
    bell = Bell(fd, chosen.send, chosen.receive)
    Plugin(memory, peer, bell, chosen, say).run()


def exec_plugin(chosen, peer, path, hub_fd, fd, control):
    """Becomes the plugin's program."""
    name = chosen.name.format(peer)
    words = ["plugin", *(word for word in sys.argv[2:])]
    keep = [hub_fd] if chosen.hub == "memfd" else []
    words += [f"--hub-fd={hub_fd}"] if keep else [f"--hub-path={path}"]
    if chosen.bell == "argument":
        words += [f"--peer-id={peer}", f"--doorbell-fd={fd}"]
    else:
        # By a way that shmtrace cannot know.
        os.environ["OWN"] = f"{peer},{-1 if fd is None else fd}"
        if control is not None:
            os.environ["CONTROL"] = str(control)
    for number in [*keep, *([fd] if fd is not None else []), *([control] if control is not None else [])]:
        os.set_inheritable(number, True)
    os.execv(sys.executable, [name, __file__, *words])


def start(chosen, peer, path, hub_fd, fd, control, close):
    """Forks a plugin; its pid."""
    if chosen.start == "grandchild":
        told, tell = os.pipe()
    child = os.fork()
    if child:
        if chosen.start == "grandchild":
            return int(os.read(told, 32))
        return child
    die_with_parent()
    if chosen.start == "grandchild":
        inner = os.fork()
        if inner:
            os.write(tell, str(inner).encode())
            os.waitpid(inner, 0)
            os._exit(0)
        die_with_parent()
    for number in close:
        os.close(number)
    if chosen.start == "fork":
        places = hubfile.Places(chosen.max_peers, chosen.capacity, chosen.map == "rings")
        run_plugin(chosen, hubfile.Memory(hub_fd, places, chosen.map), peer, fd, control)
        os._exit(0)
    exec_plugin(chosen, peer, path, hub_fd, fd, control)


def host(chosen):
    hub_fd, path = make_hub(chosen)
    places = hubfile.Places(chosen.max_peers, chosen.capacity, chosen.map == "rings")
    hubfile.create(hub_fd, places)
    peers = range(chosen.first_id, chosen.first_id + chosen.plugins)
    bells, plugins, controls = {}, {}, {}
    if chosen.bell != "scm":
        for peer in peers:
            bells[peer] = pair(chosen.socket, chosen.blocking, chosen.leak)
    for peer in peers:
        os.pwrite(hub_fd, hubfile.RESERVED.to_bytes(4, "little"), places.entry(peer) + 4)
        mine = control = theirs = None
        close = []
        if chosen.bell == "scm":
            ours, control = socket.socketpair()
            control = control.detach()
            controls[peer] = ours
            close = [channel.fileno() for channel in controls.values()]
        else:
            mine, theirs = bells[peer]
            if not chosen.leak:
                close = [fd for other, ends in bells.items() for fd in ends if fd != theirs and fd >= 0]
        plugins[peer] = start(chosen, peer, path, hub_fd, theirs, control, close)
        if chosen.bell != "scm" and not chosen.leak:
            os.close(theirs)
            bells[peer] = (mine, -1)
        if control is not None:
            os.close(control)
        say("plugin", peer=peer, pid=plugins[peer], name=chosen.name.format(peer))
    memory = hubfile.Memory(hub_fd, places, chosen.host_map)
    say("host", pid=os.getpid(), hub=path)
    if chosen.bell == "scm":
        time.sleep(chosen.late)
        for peer in peers:
            mine, theirs = pair(chosen.socket, chosen.blocking)
            bells[peer] = (mine, theirs if chosen.fault == "stolen" else -1)
            rights = array.array("i", [theirs])
            controls[peer].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            if chosen.fault != "stolen":
                os.close(theirs)
    while any(memory.load(places.entry(peer) + 4, 32) != hubfile.ACTIVE for peer in peers):
        time.sleep(0.01)
    if chosen.unlink:
        os.unlink(path)
    try:
        Host(chosen, memory, bells, plugins, say).run()
    finally:
        if chosen.hub != "memfd" and os.path.exists(path):
            os.unlink(path)


def main():
    chosen = options(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if chosen.role == "plugin":
        die_with_parent()
        own = os.environ.get("OWN", f"{chosen.peer_id},{chosen.doorbell_fd}")
        peer, fd = (int(word) for word in own.split(","))
        control = os.environ.get("CONTROL")
        hub_fd = chosen.hub_fd if chosen.hub_fd is not None else os.open(chosen.hub_path, os.O_RDWR)
        places = hubfile.Places(chosen.max_peers, chosen.capacity, chosen.map == "rings")
        memory = hubfile.Memory(hub_fd, places, chosen.map)
        return run_plugin(chosen, memory, peer, fd, int(control) if control else None)
    if chosen.nested or chosen.hubs > 1:
        for _ in range(chosen.hubs):
            if os.fork() == 0:
                die_with_parent()
                host(chosen)
                os._exit(0)
        for _ in range(chosen.hubs):
            os.wait()
        return None
    return host(chosen)


if __name__ == "__main__":
    main()
