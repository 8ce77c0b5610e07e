"""The optimizers: Cells whose `optimizer(gradients, rate)` updates every trained weight once.

The built-in ones of `nn` take ten seconds and more to compile. Here one fused operator does most or all of the work on
a weight; where it is wrong on the CPU of MindSpore 2.7, its neighbour says so.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops


class Optimizer(nn.Cell):
    """What the optimizers share: `groups` is a list of (parameters, weight decay, factor of the learning rate).

    Calling it takes the gradients in the order of `parameters` and the learning rate, a float32 scalar. All that the
    next update depends on, besides the weights, stands in `state`: parameters whose names begin with `optimizer.`.
    """

    def __init__(self, groups):
        super().__init__()
        self.decays = [decay for _, decay, _ in groups]
        self.factors = [factor for _, _, factor in groups]
        self.ends = np.cumsum([0] + [len(parameters) for parameters, _, _ in groups]).tolist()
        self.parameters = ms.ParameterTuple([parameter for parameters, _, _ in groups for parameter in parameters])
        self.map = ops.HyperMap()

    @property
    def state(self):
        return [parameter for parameter in self.get_parameters() if parameter.name.startswith("optimizer.")]

    def make_slot(self, name, initial="zeros"):
        """Return a state parameter beside every weight, of its shape."""
        return self.parameters.clone(f"optimizer.{name}", initial)

    def construct(self, gradients, rate):
        shared = self.count_step()
        done = ()
        for i in range(len(self.factors)):
            own = slice(self.ends[i], self.ends[i + 1])
            done += self.update(i, own, gradients[own], rate * self.factors[i], shared)
        return done

    def count_step(self):
        """Return what the updates of all weights share in this step."""
        return ()

    def update(self, i, own, gradients, rate, shared):
        """Update group `i`, the weights `self.parameters[own]`; return its operators' outputs."""
        raise NotImplementedError


class SGD(Optimizer):
    """Momentum SGD, v = momentum v + g and w -= rate v; Nesterov's w -= rate (g + momentum v).

    Sutskever et al., On the importance of initialization and momentum in deep learning, in the form where the rate is
    no part of the velocity. Weight decay is added to the gradient.
    """

    def __init__(self, groups, momentum, nesterov):
        super().__init__(groups)
        # nn.Momentum's Nesterov option changes nothing on the CPU of MindSpore 2.7.
        self.rules = [ops.SGD(0.0, decay, nesterov) for decay in self.decays]
        self.velocities = self.make_slot("velocity")
        self.fresh = self.make_slot("fresh")  # the kernel's flags of a first step, which zeros need not
        self.momentum = ms.Tensor(momentum, ms.float32)

    def update(self, i, own, gradients, rate, shared):
        rule = ops.partial(update_sgd, self.rules[i], rate, self.momentum)
        return self.map(rule, self.parameters[own], gradients, self.velocities[own], self.fresh[own])


def update_sgd(rule, rate, momentum, weight, gradient, velocity, fresh):
    return rule(weight, gradient, rate, velocity, momentum, fresh)


class RMSProp(Optimizer):
    """TensorFlow's RMSProp: s = rho s + (1 - rho) g^2 from s = 1, v = momentum v + rate g / sqrt(s + epsilon), w -= v.

    Tieleman and Hinton, Lecture 6.5; MnasNet and MobileNetV3 are trained with it. Weight decay is added to the
    gradient.
    """

    def __init__(self, groups, momentum, rho, epsilon):
        super().__init__(groups)
        # The operator of MindSpore 2.7's CPU adds its epsilon outside the root, but for a weight's last elements: it is
        # given none, and the state holds s + epsilon instead, topped up before each update.
        self.mean_squares = self.make_slot("mean_square", 1 + epsilon)
        self.velocities = self.make_slot("velocity")
        self.rule = ops.ApplyRMSProp()
        self.momentum, self.rho, self.shift = momentum, rho, epsilon * (1 - rho) / rho

    def update(self, i, own, gradients, rate, shared):
        rule = ops.partial(update_rmsprop, self.rule, rate, self.decays[i], self.rho, self.momentum, self.shift)
        return self.map(rule, self.parameters[own], gradients, self.mean_squares[own], self.velocities[own])


def update_rmsprop(rule, rate, decay, rho, momentum, shift, weight, gradient, mean_square, velocity):
    if decay > 0:
        gradient = gradient + decay * weight
    ops.assign(mean_square, mean_square + shift)
    return rule(weight, mean_square, velocity, rate, gradient, rho, momentum, 0.0)


class AdamW(Optimizer):
    """Adam with bias correction and decoupled weight decay: w -= rate (m' / (sqrt(v') + epsilon) + decay w).

    Loshchilov and Hutter, Decoupled Weight Decay Regularization, algorithm 2, with the decay multiplied by the learning
    rate as is usual.
    """

    def __init__(self, groups, betas, epsilon):
        super().__init__(groups)
        self.first = self.make_slot("first_moment")
        self.second = self.make_slot("second_moment")
        self.steps = ms.Parameter(ms.Tensor(0, ms.int32), name="optimizer.steps")
        self.rule = ops.AdamWeightDecay()
        self.betas = [ms.Tensor(beta, ms.float32) for beta in betas]
        self.log_betas = [math.log(beta) for beta in betas]
        self.epsilon = epsilon

    def count_step(self):
        """Return the bias corrections 1 - beta^steps of both moments, float32 scalars."""
        steps = self.steps + 1
        ops.assign(self.steps, steps)
        # expm1: the difference itself would keep four digits of 1 - 0.999.
        steps = ops.cast(steps, ms.float32)
        return -ops.expm1(steps * self.log_betas[0]), -ops.expm1(steps * self.log_betas[1])

    def update(self, i, own, gradients, rate, shared):
        # The operator knows no bias correction: the rate, epsilon and decay that it is given make up for that.
        root = ops.sqrt(shared[1])
        scale = root / shared[0]
        settings = (rate * scale, self.betas[0], self.betas[1], self.epsilon * root, self.decays[i] / scale)
        rule = ops.partial(update_adam, self.rule, settings)
        return self.map(rule, self.parameters[own], gradients, self.first[own], self.second[own])


def update_adam(rule, settings, weight, gradient, first, second):
    rate, beta1, beta2, epsilon, decay = settings
    return rule(weight, first, second, rate, beta1, beta2, epsilon, decay, gradient)


class LAMB(AdamW):
    """AdamW whose step on each weight of two and more dimensions has the norm of the weight, times the rate.

    You et al., Large Batch Optimization for Deep Learning, algorithm 2 with the identity as scaling function. As in the
    authors' code, BatchNorm and biases are updated as AdamW does. Plain operators: MindSpore's own are not for the CPU.
    """

    def __init__(self, groups, betas, epsilon):
        super().__init__(groups, betas, epsilon)
        self.adapts = [parameters[0].ndim > 1 for parameters, _, _ in groups]
        self.shares = [1 - beta for beta in betas]

    def update(self, i, own, gradients, rate, shared):
        if not self.adapts[i]:
            return super().update(i, own, gradients, rate, shared)
        settings = (rate, shared[0], shared[1], self.shares[0], self.shares[1], self.epsilon, self.decays[i])
        rule = ops.partial(update_lamb, settings)
        return self.map(rule, self.parameters[own], gradients, self.first[own], self.second[own])


def update_lamb(settings, weight, gradient, first, second):
    rate, correction1, correction2, share1, share2, epsilon, decay = settings
    mean = ops.assign_add(first, share1 * (gradient - first))
    mean_square = ops.assign_add(second, share2 * (gradient * gradient - second))
    direction = mean / correction1 / (ops.sqrt(mean_square / correction2) + epsilon) + decay * weight
    # Not ops.L2Loss, which loses four digits on large tensors of the CPU.
    old, new = ops.reduce_sum(weight * weight), ops.reduce_sum(direction * direction)
    ratio = ops.select(ops.minimum(old, new) > 0, ops.sqrt(old / new), ops.ones_like(old))
    return ops.assign_sub(weight, rate * ratio * direction)


class Lion(Optimizer):
    """w -= rate (sign(beta1 m + (1 - beta1) g) + decay w), then m = beta2 m + (1 - beta2) g.

    Chen et al., Symbolic Discovery of Optimization Algorithms, algorithm 2. Plain operators: there is no fused one.
    """

    def __init__(self, groups, betas):
        super().__init__(groups)
        self.momenta = self.make_slot("momentum")
        self.shares = [1 - beta for beta in betas]

    def update(self, i, own, gradients, rate, shared):
        rule = ops.partial(update_lion, rate, self.decays[i], self.shares[0], self.shares[1])
        return self.map(rule, self.parameters[own], gradients, self.momenta[own])


def update_lion(rate, decay, share1, share2, weight, gradient, momentum):
    step = gradient - momentum
    direction = ops.sign(momentum + share1 * step)
    if decay > 0:
        direction = direction + decay * weight
    ops.assign_add(momentum, share2 * step)
    return ops.assign_sub(weight, rate * direction)


def create_optimizer(config, classifier):
    """Return the config's optimizer over all trainable parameters of `classifier`.

    Weight decay acts on convolution and dense weights, with `optimizer.decay_all` also on BatchNorm and biases.
    """
    settings = config.optimizer
    groups = {}
    for parameter in classifier.trainable_params():
        groups.setdefault((parameter.name.startswith("head."), parameter.ndim > 1), []).append(parameter)
    groups = [
        (
            parameters,
            settings.weight_decay if is_weight or settings.decay_all else 0.0,
            settings.head_lr / settings.lr if in_head and settings.head_lr else 1.0,
        )
        for (in_head, is_weight), parameters in groups.items()
    ]
    if settings.name == "sgd":
        return SGD(groups, settings.momentum, settings.nesterov)
    if settings.name == "rmsprop":
        return RMSProp(groups, settings.momentum, settings.rho, settings.epsilon)
    if settings.name == "lion":
        return Lion(groups, settings.betas)
    return {"adamw": AdamW, "lamb": LAMB}[settings.name](groups, settings.betas, settings.epsilon)
