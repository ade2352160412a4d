"""What a run takes of its GPUs, before one is taken: shapes of a model, memory by formula and by dry run, what fits."""

from sandboxrl.rl.sizes.shapes import Shape, shape_of

__all__ = ["Shape", "shape_of"]
