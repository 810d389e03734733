"""Our two callbacks in PANDA: registered, enabled while they are wanted, and removed.

Theory of operation
-------------------
PANDA goes through its lists of callbacks without a lock, on the one thread that executes vCPUs.  One that is
added is complete before it can be seen, and to enable or disable it is a single store.  To remove one moves
the others, and frees what may be in use.  So ``asid_changed`` is registered once, disabled, and stays until
pandare removes all callbacks at the end of its `run`; its presence is how we know that the run is not over.
``on_all_sys_enter`` cannot be disabled, only removed: that is done by ``asid_changed``, which runs on the
right thread, and not during another callback of syscalls2.

Sources: panda/src/callbacks.c (``panda_disable_callback``), panda/include/panda/plugin_plugin.h
(``PPP_CB_BOILERPLATE``), pandare/panda.py.
"""

from __future__ import annotations

import itertools
import threading

from live.core.errors import GuestGone
from live.hypervisors.panda.api import AsidChanged, Cpu, Panda, SysEnter

PLUGIN = "syscalls2"


class Callbacks:
    """Registers the one of asid changes, disabled.  At most one listener at a time (`listen`)."""

    def __init__(self, panda: Panda) -> None:
        """Loads syscalls2 where PANDA knows the operating system; without, the plugin ends PANDA."""
        self._panda = panda
        if panda.os is not None and PLUGIN not in panda.plugins:
            panda.load_plugin(PLUGIN)
        names = (f"pse_asid_changed_{number}" for number in itertools.count())
        self._name = next(name for name in names if name not in panda.registered_callbacks)
        self._syscalls_name = self._name.replace("asid_changed", "all_sys_enter")
        self._lock = threading.Lock()
        self._on_asid: AsidChanged | None = None
        self._on_syscall: SysEnter | None = None
        self._asids = self._syscalls = self._registered = False
        self._enabled = panda.ending
        """After a run that was ended pandare disables nothing, until the next one."""
        panda.cb_asid_changed(name=self._name, enabled=False)(self._asid_changed)
        self._entry = panda.registered_callbacks[self._name]

    def registered(self) -> bool:
        """Whether the run that they belong to has not returned; before it has begun, too.  Cheap."""
        return self._panda.registered_callbacks.get(self._name) is self._entry

    def listen(self, on_asid: AsidChanged, on_syscall: SysEnter) -> None:
        """Whom to call; nobody is called before `want`."""
        self._on_asid, self._on_syscall = on_asid, on_syscall

    def want(self, *, asids: bool, syscalls: bool) -> None:
        """What is called from now on.  Raises `GuestGone` if the run is over."""
        with self._lock:
            self._asids, self._syscalls = asids, syscalls
            if syscalls and not self._registered:
                self._panda.ppp(PLUGIN, "on_all_sys_enter", name=self._syscalls_name)(self._sys_enter)
                self._registered = True
            self._enable(asids or self._registered is not syscalls)

    def _enable(self, wanted: bool) -> None:
        if wanted is self._enabled:
            return
        change = self._panda.enable_callback if wanted else self._panda.disable_callback
        try:
            change(self._name)
        except RuntimeError as error:  # no callback of that name
            raise GuestGone("PANDA's run has ended; make a new guest before the next one.") from error
        self._enabled = wanted

    def _asid_changed(self, cpu: Cpu, old: int, new: int) -> bool:
        """On the thread of the vCPUs.  Always lets the change happen."""
        if self._registered is not self._syscalls or not self._asids:
            self._clean_up()
        if self._asids and self._on_asid is not None:
            self._on_asid(cpu, old, new)
        return False

    def _sys_enter(self, cpu: Cpu, pc: int, number: int) -> None:
        if self._syscalls and self._on_syscall is not None:
            self._on_syscall(cpu, pc, number)

    def _clean_up(self) -> None:
        with self._lock:
            if self._registered and not self._syscalls:
                self._panda.disable_ppp(self._syscalls_name)
                self._registered = False
            self._enable(self._asids)
