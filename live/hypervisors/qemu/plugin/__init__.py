"""Traps from a TCG plugin that a guest was started with: ``-plugin file=pse-trap-....so,socket=PATH``.

The C sources are beside this file; `live.hypervisors.qemu.plugin.build` compiles them.
"""
