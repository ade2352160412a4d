"""Sandboxes in containers: the backend, by the Engine API of Docker or Podman."""

from sandboxrl.envs.sandbox.docker.backend import Docker

__all__ = ["Docker"]
