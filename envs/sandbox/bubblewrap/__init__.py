"""Sandboxes without a daemon: the backend, the root that they see, their control groups."""

from sandboxrl.envs.sandbox.bubblewrap.backend import Bubblewrap

__all__ = ["Bubblewrap"]
