#!/bin/busybox sh
# The first process of a test machine: mounts what the programs need, runs the lines of /steps and says on the second
# serial line how each ended. The first serial line is the kernel's.
export PATH=/bin:/usr/bin HOME=/tmp TERM=dumb
if [ $$ = 1 ]; then
    /bin/busybox mkdir -p /proc /sys /dev /tmp /run /usr/bin /sbin
    /bin/busybox --install -s /bin
    # It mounts what it needs, and starts this file again.
    [ -e /usr/lib/systemd/systemd ] && exec /usr/lib/systemd/systemd
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs dev /dev
    mkdir -p /dev/shm
    mount -t tmpfs shm /dev/shm
    mount -t tmpfs -o mode=1777 tmp /tmp
    mount -t cgroup2 cgroup /sys/fs/cgroup
    echo +memory >/sys/fs/cgroup/cgroup.subtree_control
fi
mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up 2>/dev/null
for module in /modules/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
exec </dev/null >/dev/ttyS1 2>&1
stty raw 2>/dev/null </dev/ttyS1
echo "@@kernel $(uname -r)"
tab=$(printf '\t')
while IFS="$tab" read -r name seconds script; do
    echo "@@begin $name"
    timeout -s KILL "$seconds" sh -c "$script" </dev/null
    status=$?
    echo
    echo "@@end $name $status"
done </steps
echo "@@done"
# Let the line drain.
sleep 0.2
poweroff -f
