"""The emulated fleet: real SSH servers on this machine whose devices are only made slower."""
