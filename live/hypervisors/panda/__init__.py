"""PANDA (panda.re) by its Python package `pandare`: a guest that runs in this very process.

**Never run in PANDA.**  The package on PyPI has no native library, and nothing here was tried with one.  It
was written from the sources of pandare 1.8.85 and of PANDA's branch ``dev`` (October 2024, QEMU 2.9).  It is
tested over a fake of both, and under pandare's own Python over a stand-in for the library.

The user's own script makes the `Panda` object and runs it in the main thread.  Another thread watches::

    panda = Panda(arch="x86_64", qcow="disk.qcow2", mem="1G", os_version="linux-64-ubuntu")
    guest = live.hypervisors.panda.guest(panda)     # before panda.run()

    def watch():
        with Session(guest) as session:
            for event in Monitor(session).events(): ...

    threading.Thread(target=watch).start()
    panda.run()

There is no scheme: a PANDA in another process cannot be attached to.  Its guest's memory can be read all the
same (`live.hypervisors.process`).  Nothing here imports pandare: it is the user's object that is asked.

Theory of operation
-------------------
PANDA calls back before a write to the page-table root register (``asid_changed``) and, by its plugin
syscalls2, before a system call (``on_all_sys_enter``).  Both run on the one thread that executes all vCPUs,
and QEMU's big lock is held meanwhile: while a trap is held, the whole machine stands, its monitor and its
disks too.  Reading memory and registers takes no lock, so the reader can.

No code address can be trapped, so what is watched is watched in asid mode (`live.core.asids`).  There are no
fences: where a word has moved, the machine stands.

Known warts: syscalls2 takes every system call for one of the first vCPU, so with several vCPUs none can be
trapped; it wants to be told the operating system (``os_version``).  Each callback is Python, and takes
microseconds of the guest's time, and each word that is compared at an asid change takes about three more
(pandare over a stand-in), while the machine stands.  The callback of system calls goes on, doing nothing,
until the first asid change after it is not wanted any more, because PANDA's list of callbacks may be changed
on its own thread only.
"""

from live.hypervisors.panda.guest import PandaGuest, guest

__all__ = ["PandaGuest", "guest"]
