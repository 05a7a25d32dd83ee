"""Keras's name for where the loss scale optimizer is."""

from thalweg.optimizers.loss_scale_optimizer import LossScaleOptimizer

__all__ = ["LossScaleOptimizer"]
