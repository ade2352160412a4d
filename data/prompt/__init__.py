"""Prompt arms: one YAML file each, and how one puts a task to a model."""

from sandboxrl.data.prompt.arms import Arm, load_arm, render

__all__ = ["Arm", "load_arm", "render"]
