"""Environments for ONNX Runtime on devices that have neither the internet nor pip.

`survey` looks at a device, `planning` chooses an interpreter and the wheels that fit it (`fitting`,
`closure`) out of a folder or from PyPI (`downloading`), checked by `wheels`; `building` pushes them
and has `builder`, a file of its own that runs on the device, put the environment together.
"""
