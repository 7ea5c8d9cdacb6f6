"""The scheduler: one thread that drives all searches of a device and computes for them."""
