"""The description of a virtual machine: what the emulator is to say about it, and where that comes from.

`model` has the frozen value that everything else of the emulator may import; `presets`, `fields` and `loading` make
one from a preset, from `--set` and from a file. Nothing here knows requests, answers or sockets.
"""
