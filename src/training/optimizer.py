"""The optimizers: Cells whose `optimizer(gradients, rate)` updates every trained weight once.

MindSpore's own optimizers in `nn` take at least ten seconds to compile. Here one fused operator does most of the work
for a weight. Comments say where such an operator is wrong on the CPU in MindSpore 2.7.
"""

import math
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.config.schema import Config
from src.kernels import operators
from src.kernels.convert import library_of
from src.models.classifier import Classifier

Tensors = tuple[ms.Tensor, ...]
Groups = list[tuple[list[ms.Parameter], float, float]]  # (parameters, weight decay, factor of the learning rate)


class Optimizer(nn.Cell):
    """Base class of the optimizers; each group of parameters has a weight decay and a learning rate factor.

    A call takes the gradients in the order of `parameters`, and the learning rate, a float32 scalar. `state` has
    everything that the next update depends on besides the weights: parameters whose names begin with `optimizer.`.
    """

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.decays = [decay for _, decay, _ in groups]
        self.factors = [factor for _, _, factor in groups]
        self.ends = np.cumsum([0] + [len(parameters) for parameters, _, _ in groups]).tolist()
        self.parameters = ms.ParameterTuple([parameter for parameters, _, _ in groups for parameter in parameters])
        self.map = ops.HyperMap()

    @property
    def state(self) -> list[ms.Parameter]:
        """The parameters that a checkpoint stores to resume the optimizer."""
        return [parameter for parameter in self.get_parameters() if parameter.name.startswith("optimizer.")]

    def make_slot(self, name: str, initial: Any = "zeros") -> ms.ParameterTuple:
        """Return a state parameter for every weight, with the shape of the weight; `initial` is its first value."""
        return self.parameters.clone(f"optimizer.{name}", initial)

    def construct(self, gradients: Tensors, rate: ms.Tensor) -> Tensors:
        shared = self.count_step()
        done = ()
        for i in range(len(self.factors)):
            members = slice(self.ends[i], self.ends[i + 1])
            done += self.update(i, members, gradients[members], rate * self.factors[i], shared)
        return done

    def count_step(self) -> Tensors:
        """Return the values that the updates of all weights share in this step."""
        return ()

    def update(self, group: int, members: slice, gradients: Tensors, rate: ms.Tensor, shared: Tensors) -> Tensors:
        """Update the weights `self.parameters[members]` of a group; return the outputs of the operators.

        `gradients` belong to these weights, `rate` is the learning rate of the group, `shared` comes from `count_step`.
        """
        raise NotImplementedError


class SGD(Optimizer):
    """Momentum SGD: v = momentum v + g, w -= rate v; with Nesterov w -= rate (g + momentum v).

    Sutskever et al., On the importance of initialization and momentum in deep learning, in the form whose velocity does
    not contain the learning rate. Weight decay is added to the gradient. `kernels` is the library of native kernels.
    """

    def __init__(self, groups: Groups, momentum: float, nesterov: bool, kernels: Optional[Path] = None) -> None:
        super().__init__(groups)
        # One native operator for all weights: on a CPU, to start an operator for each takes longer than its work.
        rules = [(decay, factor) for parameters, decay, factor in groups for _ in parameters]
        self.native = None if kernels is None else operators.sgd(kernels, momentum, nesterov, rules)
        # nn.Momentum is not used, because its Nesterov option has no effect on the CPU in MindSpore 2.7.
        self.rules = [ops.SGD(0.0, decay, nesterov) for decay in self.decays]
        self.velocities = self.make_slot("velocity")
        self.fresh = self.make_slot("fresh")  # flag of the operator for the first step; zero works for all steps
        self.momentum = ms.Tensor(momentum, ms.float32)

    def construct(self, gradients: Tensors, rate: ms.Tensor) -> Tensors:
        if self.native is not None:
            return (self.native(self.parameters, gradients, self.velocities, rate),)
        return super().construct(gradients, rate)

    def update(self, group: int, members: slice, gradients: Tensors, rate: ms.Tensor, shared: Tensors) -> Tensors:
        rule = ops.partial(update_sgd, self.rules[group], rate, self.momentum)
        return self.map(rule, self.parameters[members], gradients, self.velocities[members], self.fresh[members])


def update_sgd(
    rule: ops.SGD,
    rate: ms.Tensor,
    momentum: ms.Tensor,
    weight: ms.Parameter,
    gradient: ms.Tensor,
    velocity: ms.Parameter,
    fresh: ms.Parameter,
) -> ms.Tensor:
    """Update one weight by `SGD`."""
    return rule(weight, gradient, rate, velocity, momentum, fresh)


class RMSProp(Optimizer):
    """TensorFlow's RMSProp: s = rho s + (1 - rho) g^2 from s = 1, v = momentum v + rate g / sqrt(s + epsilon), w -= v.

    Tieleman and Hinton, Lecture 6.5. MnasNet and MobileNetV3 are trained with RMSProp. Weight decay is added to the
    gradient.
    """

    def __init__(self, groups: Groups, momentum: float, rho: float, epsilon: float) -> None:
        super().__init__(groups)
        # On the CPU, the operator of MindSpore 2.7 adds epsilon outside the root, except for the last elements of a
        # weight. So its epsilon is 0, and the state stores s + epsilon. Before each update, `shift` is added to the
        # state, which makes up for the multiplication of epsilon by rho.
        self.mean_squares = self.make_slot("mean_square", 1 + epsilon)
        self.velocities = self.make_slot("velocity")
        self.rule = ops.ApplyRMSProp()
        self.momentum, self.rho, self.shift = momentum, rho, epsilon * (1 - rho) / rho

    def update(self, group: int, members: slice, gradients: Tensors, rate: ms.Tensor, shared: Tensors) -> Tensors:
        rule = ops.partial(update_rmsprop, self.rule, rate, self.decays[group], self.rho, self.momentum, self.shift)
        mean_squares, velocities = self.mean_squares[members], self.velocities[members]
        return self.map(rule, self.parameters[members], gradients, mean_squares, velocities)


def update_rmsprop(
    rule: ops.ApplyRMSProp,
    rate: ms.Tensor,
    decay: float,
    rho: float,
    momentum: float,
    shift: float,
    weight: ms.Parameter,
    gradient: ms.Tensor,
    mean_square: ms.Parameter,
    velocity: ms.Parameter,
) -> ms.Tensor:
    """Update one weight by `RMSProp`."""
    if decay > 0:
        gradient = gradient + decay * weight
    ops.assign(mean_square, mean_square + shift)
    return rule(weight, mean_square, velocity, rate, gradient, rho, momentum, 0.0)


class AdamW(Optimizer):
    """Adam with bias correction and decoupled weight decay: w -= rate (m' / (sqrt(v') + epsilon) + decay w).

    Loshchilov and Hutter, Decoupled Weight Decay Regularization, algorithm 2. As usual, the decay is multiplied by the
    learning rate.
    """

    def __init__(self, groups: Groups, betas: list[float], epsilon: float) -> None:
        super().__init__(groups)
        self.first_moments = self.make_slot("first_moment")
        self.second_moments = self.make_slot("second_moment")
        self.steps = ms.Parameter(ms.Tensor(0, ms.int32), name="optimizer.steps")
        self.rule = ops.AdamWeightDecay()
        self.betas = [ms.Tensor(beta, ms.float32) for beta in betas]
        self.log_betas = [math.log(beta) for beta in betas]
        self.epsilon = epsilon

    def count_step(self) -> Tensors:
        """Return the bias corrections 1 - beta^steps of both moments, float32 scalars."""
        steps = self.steps + 1
        ops.assign(self.steps, steps)
        # expm1 keeps all digits. In float32, the difference 1 - 0.999 has only four correct digits.
        steps = ops.cast(steps, ms.float32)
        return -ops.expm1(steps * self.log_betas[0]), -ops.expm1(steps * self.log_betas[1])

    def update(self, group: int, members: slice, gradients: Tensors, rate: ms.Tensor, shared: Tensors) -> Tensors:
        # The operator has no bias correction, so its learning rate, epsilon and decay contain the correction.
        root = ops.sqrt(shared[1])
        scale = root / shared[0]
        settings = (rate * scale, self.betas[0], self.betas[1], self.epsilon * root, self.decays[group] / scale)
        rule = ops.partial(update_adam, self.rule, settings)
        first_moments, second_moments = self.first_moments[members], self.second_moments[members]
        return self.map(rule, self.parameters[members], gradients, first_moments, second_moments)


def update_adam(
    rule: ops.AdamWeightDecay,
    settings: tuple[Any, ...],
    weight: ms.Parameter,
    gradient: ms.Tensor,
    first_moment: ms.Parameter,
    second_moment: ms.Parameter,
) -> Tensors:
    """Update one weight by `AdamW`."""
    rate, beta1, beta2, epsilon, decay = settings
    return rule(weight, first_moment, second_moment, rate, beta1, beta2, epsilon, decay, gradient)


class LAMB(AdamW):
    """AdamW, but the change of each weight with two or more dimensions has the norm of the weight times the rate.

    You et al., Large Batch Optimization for Deep Learning, algorithm 2 with the identity as scaling function. As in the
    authors' code, BatchNorm and biases are updated as in AdamW. The code uses plain operators, because MindSpore's LAMB
    operators do not run on the CPU.
    """

    def __init__(self, groups: Groups, betas: list[float], epsilon: float) -> None:
        super().__init__(groups, betas, epsilon)
        self.adapts = [parameters[0].ndim > 1 for parameters, _, _ in groups]
        self.shares = [1 - beta for beta in betas]

    def update(self, group: int, members: slice, gradients: Tensors, rate: ms.Tensor, shared: Tensors) -> Tensors:
        if not self.adapts[group]:
            return super().update(group, members, gradients, rate, shared)
        settings = (rate, shared[0], shared[1], self.shares[0], self.shares[1], self.epsilon, self.decays[group])
        rule = ops.partial(update_lamb, settings)
        first_moments, second_moments = self.first_moments[members], self.second_moments[members]
        return self.map(rule, self.parameters[members], gradients, first_moments, second_moments)


def update_lamb(
    settings: tuple[Any, ...],
    weight: ms.Parameter,
    gradient: ms.Tensor,
    first_moment: ms.Parameter,
    second_moment: ms.Parameter,
) -> ms.Tensor:
    """Update one weight by `LAMB`."""
    rate, correction1, correction2, share1, share2, epsilon, decay = settings
    mean = ops.assign_add(first_moment, share1 * (gradient - first_moment))
    mean_square = ops.assign_add(second_moment, share2 * (gradient * gradient - second_moment))
    direction = mean / correction1 / (ops.sqrt(mean_square / correction2) + epsilon) + decay * weight
    # ops.L2Loss is not used, because on the CPU it loses four digits on large tensors.
    weight_square, direction_square = ops.reduce_sum(weight * weight), ops.reduce_sum(direction * direction)
    both_above_zero = ops.minimum(weight_square, direction_square) > 0
    ratio = ops.select(both_above_zero, ops.sqrt(weight_square / direction_square), ops.ones_like(weight_square))
    return ops.assign_sub(weight, rate * ratio * direction)


class Lion(Optimizer):
    """Lion: w -= rate (sign(beta1 m + (1 - beta1) g) + decay w), then m = beta2 m + (1 - beta2) g.

    Chen et al., Symbolic Discovery of Optimization Algorithms, algorithm 2. The code uses plain operators, because
    MindSpore has no fused operator for Lion.
    """

    def __init__(self, groups: Groups, betas: list[float]) -> None:
        super().__init__(groups)
        self.momenta = self.make_slot("momentum")
        self.shares = [1 - beta for beta in betas]

    def update(self, group: int, members: slice, gradients: Tensors, rate: ms.Tensor, shared: Tensors) -> Tensors:
        rule = ops.partial(update_lion, rate, self.decays[group], self.shares[0], self.shares[1])
        return self.map(rule, self.parameters[members], gradients, self.momenta[members])


def update_lion(
    rate: ms.Tensor,
    decay: float,
    share1: float,
    share2: float,
    weight: ms.Parameter,
    gradient: ms.Tensor,
    momentum: ms.Parameter,
) -> ms.Tensor:
    """Update one weight by `Lion`."""
    step = gradient - momentum
    direction = ops.sign(momentum + share1 * step)
    if decay > 0:
        direction = direction + decay * weight
    ops.assign_add(momentum, share2 * step)
    return ops.assign_sub(weight, rate * direction)


def create_optimizer(config: Config, classifier: Classifier) -> Optimizer:
    """Return the optimizer of the config for all trainable parameters of `classifier`.

    Weight decay acts on the weights of convolutions and dense layers; with `optimizer.decay_all` it also acts on
    BatchNorm and biases.
    """
    settings: Any = config.optimizer  # the schema has filled in the keys that the optimizer uses
    by_kind: dict[tuple[bool, bool], list[ms.Parameter]] = {}
    for parameter in classifier.trainable_params():
        by_kind.setdefault((parameter.name.startswith("head."), parameter.ndim > 1), []).append(parameter)
    groups: Groups = [
        (
            parameters,
            settings.weight_decay if is_weight or settings.decay_all else 0.0,
            settings.head_lr / settings.lr if in_head and settings.head_lr else 1.0,
        )
        for (in_head, is_weight), parameters in by_kind.items()
    ]
    if settings.name == "sgd":
        return SGD(groups, settings.momentum, settings.nesterov, library_of(classifier))
    if settings.name == "rmsprop":
        return RMSProp(groups, settings.momentum, settings.rho, settings.epsilon)
    if settings.name == "lion":
        return Lion(groups, settings.betas)
    return {"adamw": AdamW, "lamb": LAMB}[settings.name](groups, settings.betas, settings.epsilon)
