#!/usr/bin/env bash
# boot_test.sh - boots the installed units under a real systemd and hurts them; tests/systemd/drive.sh has the cases.
#   boot_test.sh SCRATCH_DIR
#
# The machine is this one's root under an overlay, in namespaces of its own (mount, pid, ipc, uts, cgroup, net: no
# network but loopback), with a private /run, /tmp and /var/lib; it ends with this script. Nothing outside is touched.
# Exit status 77: this kernel or this user cannot do that; the last line says what is missing.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$1"
scratch=$(cd "$1" && pwd)
systemd=/lib/systemd/systemd

skip() {
    echo "skipped: $*"
    exit 77
}

[[ $(id -u) == 0 ]] || skip "not root: namespaces and mounts are needed"
[[ -x $systemd ]] || skip "$systemd is not installed"
command -v systemd-analyze >/dev/null || skip "systemd-analyze is not installed"
for tool in unshare mount pivot_root script; do command -v $tool >/dev/null || skip "$tool is not installed"; done
unshare -m -p -u -i -n -C --fork --kill-child=KILL true 2>/dev/null || skip "unshare is not permitted"
# shellcheck disable=SC2016
unshare -m -C bash -c 'mount --make-rprivate / && mount -t tmpfs tmpfs "$1" && mkdir "$1"/{u,w,r,c} &&
    mount -t overlay overlay -o lowerdir=/,upperdir="$1/u",workdir="$1/w" "$1/r" && mount -t cgroup2 cgroup2 "$1/c"' \
    - "$scratch" 2>/dev/null || skip "overlay or cgroup2 mounts are not permitted"

# ---- the layer above this machine's root: the installed farm, a model, the test ----

layer=$scratch/layer
rm -rf "$layer" "$scratch/result"
mkdir -p "$layer" "$scratch/result"
make -s -C "$root" install DESTDIR="$layer" PREFIX=/usr/local >"$scratch/install.log" || {
    cat "$scratch/install.log"
    exit 1
}
mkdir -p "$layer/srv/cosyfarm" "$layer/srv/out" "$layer/etc/systemd/system"
"$layer/usr/local/bin/cosyfarm" model make "$layer/srv/cosyfarm/model" --size tiny >"$scratch/model.log" 2>&1 || {
    cat "$scratch/model.log"
    exit 1
}
sed -i -e 's|"model": ""|"model": "/srv/cosyfarm/model"|' -e 's|"threads": 0|"threads": 1|' \
    -e 's|"guard": true|"guard": false|' -e 's|"precision": "f32"|"precision": "bf16"|' "$layer/etc/cosyfarm/cosyfarm.json"
install -m 755 "$here/drive.sh" "$layer/srv/drive.sh"
units=$layer/etc/systemd/system
mkdir -p "$units/cosyfarm-orchestrator.service.d"
printf '[Service]\nReadWritePaths=/srv/out\n' >"$units/cosyfarm-orchestrator.service.d/output.conf"
cat >"$units/test.service" <<END
[Unit]
Description=the test
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/srv/drive.sh
TimeoutStartSec=100
END
# What belongs to the hardware or the services of the machine that runs the test.
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-modules-load.service systemd-timesyncd.service \
    systemd-random-seed.service systemd-pstore.service systemd-sysctl.service systemd-remount-fs.service \
    systemd-networkd.service systemd-resolved.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-logind.service systemd-tmpfiles-clean.timer systemd-hwdb-update.service systemd-update-utmp.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount keyboard-setup.service apparmor.service \
    ifupdown-pre.service networking.service swap.target; do
    ln -sf /dev/null "$units/$unit"
done
rm -f "$layer/etc/fstab" && : >"$layer/etc/fstab"

cat >"$scratch/enter.sh" <<'END'
set -eu
scratch=$1
mount --make-rprivate /
mkdir -p "$scratch/mnt"
mount -t tmpfs tmpfs "$scratch/mnt"
cd "$scratch/mnt"
mkdir work root
cp -a "$scratch/layer" upper
mount -t overlay overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" root
new=$PWD/root
mkdir -p "$new/result" "$new/old"
mount --bind "$scratch/result" "$new/result"
mount -t proc proc "$new/proc"
mount -t sysfs -o ro sysfs "$new/sys"
mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup" 2>/dev/null || {
    mount -t tmpfs tmpfs "$new/sys/fs" && mkdir "$new/sys/fs/cgroup" && mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
}
for d in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$new/$d"; done
chmod 1777 "$new/tmp"
for d in null zero random urandom full tty; do
    : >"$new/dev/$d"
    mount --bind "/dev/$d" "$new/dev/$d"
done
mkdir "$new/dev/shm" "$new/dev/pts"
mount -t tmpfs tmpfs "$new/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$new/dev/pts"
ln -s pts/ptmx "$new/dev/ptmx"
ln -s /proc/self/fd "$new/dev/fd"
: >"$new/dev/console"
mount --bind "$(tty)" "$new/dev/console"
cd "$new"
pivot_root . old
umount -l /old
hostname cosyfarm-test
exec env -i container=custom PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    /lib/systemd/systemd --system --unit=test.service --log-level=notice
END

# systemd wants a terminal as its console: script(1) makes one. Its exit code is the test's.
timeout -k 5 110 script -qefc \
    "unshare -m -p -u -i -n -C --fork --kill-child=KILL bash '$scratch/enter.sh' '$scratch'" \
    "$scratch/console.log" </dev/null >/dev/null
status=$?
cat "$scratch/result/report" 2>/dev/null
if [[ $status != 0 || ! -f $scratch/result/passed ]]; then
    echo "the machine ended with $status; console:"
    tail -n 20 "$scratch/console.log"
    tail -n 60 "$scratch/result/journal" 2>/dev/null
    exit 1
fi
