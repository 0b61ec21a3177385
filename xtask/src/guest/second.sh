#!/bin/sh
# Second init of the test guest: mounts what a host has, runs the command with the second serial
# port as its output, writes the exit code to the first disk, and switches the machine off.
export PATH=/usr/local/bin:/usr/bin:/bin

try() {
    "$@" || echo "ambit-vm: failed: $*"
}

try mkdir -p /dev/pts /dev/shm
try mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
try mount -t tmpfs -o mode=1777 shm /dev/shm
try mount -t tmpfs -o mode=1777 tmp /tmp
try mount -t tmpfs -o mode=755 run /run
try mount -t securityfs securityfs /sys/kernel/security
try mount -t debugfs debugfs /sys/kernel/debug
try mount -t tracefs tracefs /sys/kernel/tracing
try mount -t bpf -o mode=700 bpf /sys/fs/bpf
try mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
echo +pids >/sys/fs/cgroup/cgroup.subtree_control
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
hostname ambit-vm
try ip link set lo up
if [ -b /dev/vdb ]; then
    try mkdir -p /mnt/ext4
    try mount -t ext4 /dev/vdb /mnt/ext4
fi
if [ -b /dev/vdc ]; then
    try mkdir -p /mnt/debian
    try mount -t ext4 /dev/vdc /mnt/debian
fi

# Raw: what the command writes reaches the host byte for byte.
try stty -F /dev/ttyS1 raw -echo
# Kept open: the last one to close a serial port throws away what it has not sent yet if a signal
# comes, an orphan's death for instance.
exec 3>/dev/ttyS1
cd /root || exit
env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/root USER=root LANG=C.UTF-8 TERM=dumb NO_COLOR=1 \
    RUST_BACKTRACE=1 sh /usr/lib/ambit-vm/command </dev/null >/dev/ttyS1 2>&1 3>&-
echo "$?" >/dev/vda
sync
poweroff -f
