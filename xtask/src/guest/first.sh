#!/bin/busybox sh
# First init of the test guest: loads modules, copies the guest's system to a tmpfs, switches to it.
# What it says goes to the kernel's console, which the host keeps in a log file.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
while read -r module; do
    $b insmod "/guest$module" || echo "ambit-vm: cannot load $module"
done </modules
$b mount -t tmpfs -o mode=755,size=80%,nr_inodes=0 root /new
$b cp -a /guest/. /new/ || echo "ambit-vm: cannot copy the guest's system; is there memory enough?"
for place in dev proc sys; do
    $b mount --move /$place /new/$place
done
exec $b switch_root /new /usr/lib/ambit-vm/init
