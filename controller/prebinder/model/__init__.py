"""Pure values and rules: specs, image names, build events, failures, policy, the catalogue, Binder links.

Nothing in this package does I/O, reads a clock or draws a random number.
"""
