"""What the Debian is made to do, as data: each step is a shell line in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One shell line; ``short`` ones are in every run, ``unit`` ones run in a unit of their own."""

    name: str
    command: str
    short: bool = True
    unit: bool = False
    timeout: float = 300


_UNITS = r"""
cat > /etc/systemd/system/odd.service <<'END'
[Service]
ExecStartPre=/bin/true
ExecStart=/bin/sleep 600
DynamicUser=yes
PrivateTmp=yes
PrivateNetwork=yes
ProtectSystem=strict
ProtectHome=yes
StateDirectory=odd
WorkingDirectory=/var/lib/odd
END
cat > /etc/systemd/system/bound.service <<'END'
[Service]
ExecStart=/data/tool 600
BindPaths=/srv/vol/sub:/data
WorkingDirectory=/data
END
mkdir -p /srv/vol/sub /data; cp /bin/busybox /srv/vol/sub/sleep
printf '#!/bin/sh\nexec /data/sleep "$@"\n' > /srv/vol/sub/tool; chmod 755 /srv/vol/sub/tool
systemctl daemon-reload; systemctl start odd bound; sleep 1; systemctl restart odd; systemctl stop odd bound
"""

_IDS = r"""
su tester -c 'id; cd /tmp; /bin/sleep 0.2'
su - tester -c 'sudo -n id; sudo -n -u www-data -g daemon /bin/sleep 0.2; /bin/sleep 0.2'
setpriv --reuid 1234 --regid 2345 --clear-groups /bin/sleep 0.2
setpriv --ruid 1234 --clear-groups /bin/sleep 0.2
setsid --wait /bin/sleep 0.2; runuser -u nobody -- /bin/sleep 0.2
"""

_NAMESPACES = r"""
for what in mount uts ipc net pid user cgroup time; do
    unshare --$what --fork /bin/sh -c '/bin/sleep 0.2; /bin/true'
done
unshare --user --map-root-user /bin/sh -c '/bin/sleep 0.2; id -u'
unshare --user --map-root-user --mount --pid --fork --mount-proc /bin/sh -c 'ps; /bin/sleep 0.2'
unshare --mount --propagation private /bin/sh -c '
    mount -t tmpfs none /mnt; cp /bin/busybox /bin/sleep /mnt; cd /mnt; /mnt/busybox true; /mnt/sleep 0.2
    umount -l /mnt; ./sleep 0.2; ./busybox true; cd /
    mkdir -p /tmp/a /tmp/b; mount -t tmpfs none /tmp/a; mkdir /tmp/a/sub
    cp /bin/sleep /bin/busybox /tmp/a/sub; mount --bind /tmp/a/sub /tmp/b
    cd /tmp/b; /tmp/b/sleep 0.2; /tmp/b/busybox true; cd /; /tmp/a/sub/sleep 0.2
    mkdir -p /tmp/low /tmp/work /tmp/over; mount -t tmpfs none /tmp/work; mkdir /tmp/work/u /tmp/work/w
    cp /bin/sleep /tmp/low
    mount -t overlay -o lowerdir=/tmp/low,upperdir=/tmp/work/u,workdir=/tmp/work/w o /tmp/over
    cd /tmp/over; /tmp/over/sleep 0.2; cp sleep other; ./other 0.2'
"""

_PATHS = r"""
mkdir -p /srv/jail/bin; cp /bin/busybox /srv/jail/bin/sleep; cp /bin/busybox /srv/jail/bin/sh
chroot /srv/jail /bin/sleep 0.2
chroot /srv/jail /bin/sh -c 'cd /bin; /bin/sleep 0.2; exec /bin/sh -c "exec /bin/sleep 0.2"'
cp /bin/sleep /tmp/gone; /tmp/gone 1 & sleep 0.1; rm /tmp/gone; wait
mkdir /tmp/lost; cd /tmp/lost; rmdir /tmp/lost; /bin/sleep 0.2; cd /
odd="/tmp/a b/$(printf 'n\377\nm')"; mkdir -p "$odd"; cd "$odd"; cp /bin/sleep "s p"; "./s p" 0.2; cd /
part=$(printf 'd%.0s' $(seq 200)); mkdir -p /tmp/long; cd /tmp/long
for n in $(seq 12); do mkdir $part; cd $part; done; /bin/sleep 0.2
for n in $(seq 12); do mkdir $part; cd -P $part; done; /bin/sleep 0.2; cd /
"""

_WORDS = r"""
/bin/true '' 'a b' "$(printf '\377\n')" '"' \\ "$(printf 'w%.0s' $(seq 5000))" ''
/bin/true $(seq 3000)
/bin/true $(seq 20000)
(exec -a "$(printf 'x\377y')" /bin/sleep 0.2)
(exec -a '' /bin/sleep 0.2)
env -i /bin/sleep 0.2
printf '#!/bin/sh -e\n/bin/true "$@"\n' > /tmp/script; chmod 755 /tmp/script; /tmp/script 1 2
"""

_CORE = r"""
printf '#!/bin/sh\ncat > /tmp/core.$1\n' > /usr/local/bin/keep-core; chmod 755 /usr/local/bin/keep-core
echo '|/usr/local/bin/keep-core %p %e' > /proc/sys/kernel/core_pattern
ulimit -c unlimited; /bin/sh -c 'kill -SEGV $$'; /bin/sh -c 'kill -KILL $$'; /bin/sh -c 'exit 3'; true
"""

_PACKAGE = r"""
mkdir -p /tmp/pkg/DEBIAN /tmp/pkg/usr/bin; cp /bin/true /tmp/pkg/usr/bin/hello-lab
cat > /tmp/pkg/DEBIAN/control <<'END'
Package: hello-lab
Version: 1
Architecture: all
Maintainer: lab <lab@example.org>
Description: a small package
END
printf '#!/bin/sh\nset -e\nldconfig\n/usr/bin/hello-lab "$@"\n' > /tmp/pkg/DEBIAN/postinst
chmod 755 /tmp/pkg/DEBIAN/postinst
dpkg-deb -b /tmp/pkg /tmp/hello.deb && dpkg -i /tmp/hello.deb && dpkg -r hello-lab
"""

_COMPILE = r"""
mkdir -p /tmp/src; cd /tmp/src; printf 'int f(void){return 1;}' > a.c
printf 'int f(void);int main(void){return f()-1;}' > b.c
printf 'all: a.o b.o\n\tcc -o prog $^ && ./prog\n' > Makefile; make
"""

_BOX = r"""
for each in bin proc dev sys etc run tmp data; do mkdir -p /srv/box/$each; done
cp /bin/busybox /srv/box/bin/busybox
for each in sh sleep id cat true; do ln -sf busybox /srv/box/bin/$each; done
mkdir -p /srv/vol/sub; cp /bin/busybox /srv/vol/sub/sleep
podman run --rm --network none -v /srv/vol/sub:/data -w /data --rootfs /srv/box /data/sleep 1 &&
podman run --rm --network none --user 1000:1000 --rootfs /srv/box /bin/sh -c 'id; /bin/sleep 0.3'
"""

_IMAGE = r"""
set -e
tar -C /srv/box -c . | podman import - box
podman run --rm --network none --read-only -v /srv/vol/sub:/data -w /data box /data/sleep 1
maps="--uidmap 0:100000:65536 --gidmap 0:100000:65536"
podman run --rm --network none $maps box /bin/sh -c 'id; /bin/sleep 0.3'
podman run -d --network none --name held box /bin/sh -c 'while :; do /bin/sleep 1; done'
podman exec held /bin/id; podman pause held; sleep 1; podman unpause held; podman rm -f -t 1 held
"""

_STRESS = r"""
cd /tmp; export TMPDIR=/tmp
stress-ng --fork 1 --fork-ops 100 --vfork 1 --vfork-ops 100 --clone 1 --clone-ops 50 \
    --daemon 1 --daemon-ops 50 --zombie 1 --zombie-ops 50 --timeout 20
sudo -n -u tester stress-ng --temp-path /tmp --exec 1 --exec-ops 30 --timeout 8
"""

STEPS = (
    Step(name="services", command="systemctl restart cron; systemctl stop cron; systemctl start cron"),
    Step(name="units", command=_UNITS),
    Step(name="su and sudo", command=_IDS, unit=True),
    Step(
        name="nginx",
        command="systemctl reload nginx; sleep 1; nginx -s reopen; systemctl restart nginx; sleep 1",
    ),
    Step(name="namespaces", command=_NAMESPACES),
    Step(name="paths", command=_PATHS),
    Step(name="words", command=_WORDS),
    Step(name="core dump", command=_CORE),
    Step(name="dpkg", command=_PACKAGE, short=False),
    Step(name="gcc", command=_COMPILE, short=False),
    Step(name="podman", command=_BOX, short=False),
    Step(name="podman image", command=_IMAGE, short=False),
    Step(name="stress-ng", command=_STRESS, short=False, unit=True),
    Step(name="cron", command="sleep $((61 - $(date +%-S)))", short=False),
)


def steps(*, short: bool) -> list[Step]:
    """Those of a run."""
    return [step for step in STEPS if step.short or not short]
