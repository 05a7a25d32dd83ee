"""Update rules in float64 NumPy, written from the papers; nothing of thalweg is used.

Each function takes arrays and Python numbers and returns the new arrays in the order
in which the rule of that name does.
"""

import numpy as np


def gradient_descent(var, delta, *, alpha):
    return (var - alpha * delta,)


def momentum(var, accum, grad, *, lr, momentum, use_nesterov):
    velocity = momentum * accum + grad
    if use_nesterov:
        return var - lr * grad - lr * momentum * velocity, velocity
    return var - lr * velocity, velocity


def keras_momentum(var, accum, grad, *, lr, momentum, use_nesterov):
    velocity = momentum * accum - lr * grad
    if use_nesterov:
        return var + momentum * velocity - lr * grad, velocity
    return var + velocity, velocity


def adam(
    var,
    m,
    v,
    grad,
    *,
    beta1_power,
    beta2_power,
    lr,
    beta1,
    beta2,
    epsilon,
    use_nesterov,
):
    first = beta1 * m + (1 - beta1) * grad
    second = beta2 * v + (1 - beta2) * grad**2
    rate = lr * np.sqrt(1 - beta2_power) / (1 - beta1_power)
    ahead = beta1 * first + (1 - beta1) * grad if use_nesterov else first
    return var - rate * ahead / (np.sqrt(second) + epsilon), first, second


def adam_with_amsgrad(
    var, m, v, vhat, grad, *, beta1_power, beta2_power, lr, beta1, beta2, epsilon
):
    first = beta1 * m + (1 - beta1) * grad
    second = beta2 * v + (1 - beta2) * grad**2
    largest = np.maximum(vhat, second)
    rate = lr * np.sqrt(1 - beta2_power) / (1 - beta1_power)
    return var - rate * first / (np.sqrt(largest) + epsilon), first, second, largest


def scatter_add(resource, updates):
    return (resource + updates,)


def scatter_sub(resource, updates):
    return (resource - updates,)


def scatter_update(resource, updates):
    return (updates + 0 * resource,)


def decoupled_weight_decay(var, grad, *, lr, weight_decay):
    return (var * (1 - lr * weight_decay) + 0 * grad,)


def scatter_mul(resource, updates):
    return (resource * updates,)


def scatter_div(resource, updates):
    return (resource / updates,)


def scatter_min(resource, updates):
    return (np.where(updates < resource, updates, resource),)


def scatter_max(resource, updates):
    return (np.where(updates > resource, updates, resource),)


def soft_threshold(x, distance):
    return np.where(np.abs(x) > distance, x - np.sign(x) * distance, 0.0)


def proximal_gradient_descent(var, delta, *, alpha, l1, l2, has_l1):
    descended = var - alpha * delta
    return (soft_threshold(descended, alpha * l1 * has_l1) / (1 + alpha * l2),)


def proximal_adagrad(var, accum, grad, *, lr, l1, l2, has_l1):
    total = accum + grad**2
    rate = lr / np.sqrt(total)
    descended = var - rate * grad
    return soft_threshold(descended, rate * l1 * has_l1) / (1 + rate * l2), total


def adagrad(var, accum, grad, *, lr, update_slots):
    total = accum + update_slots * grad**2
    return var - lr * grad / np.sqrt(total), total


def adagrad_v2(var, accum, grad, *, lr, epsilon, update_slots):
    total = accum + update_slots * grad**2
    return var - lr * grad / (np.sqrt(total) + epsilon), total


def adagrad_da(
    var,
    gradient_accumulator,
    gradient_squared_accumulator,
    grad,
    *,
    lr,
    l1,
    l2,
    global_step,
    has_l1,
):
    total = gradient_accumulator + grad
    squares = gradient_squared_accumulator + grad**2
    mean = soft_threshold(total / global_step, l1 * has_l1)
    strength = l2 + np.sqrt(squares) / (global_step * lr)
    return -mean / strength + 0 * var, total, squares


def row_wise_adagrad(var, accumulator, grad, *, lr, epsilon, is_vector, is_matrix):
    axes = () if is_vector else (1,) if is_matrix else tuple(range(1, grad.ndim))
    total = accumulator + np.mean(grad**2, axis=axes, keepdims=True)
    return var - lr * grad / (np.sqrt(total) + epsilon), total


def adadelta(var, accum, accum_update, grad, *, lr, rho, epsilon):
    second = rho * accum + (1 - rho) * grad**2
    step = np.sqrt((accum_update + epsilon) / (second + epsilon)) * grad
    return var - lr * step, second, rho * accum_update + (1 - rho) * step**2


def ada_max(var, m, v, grad, *, beta1_power, lr, beta1, beta2, epsilon):
    first = beta1 * m + (1 - beta1) * grad
    largest = np.maximum(beta2 * v, np.abs(grad))
    return var - lr * first / (1 - beta1_power) / (largest + epsilon), first, largest


def ada_max_with_floor(var, m, v, grad, *, beta1_power, lr, beta1, beta2, epsilon):
    first = beta1 * m + (1 - beta1) * grad
    largest = np.maximum(beta2 * v, np.abs(grad) + epsilon)
    return var - lr * first / (1 - beta1_power) / largest, first, largest


def rms_prop(var, ms, mom, grad, *, lr, rho, momentum, epsilon):
    second = rho * ms + (1 - rho) * grad**2
    step = momentum * mom + lr * grad / np.sqrt(second + epsilon)
    return var - step, second, step


def centered_rms_prop(var, ms, mom, mg, grad, *, lr, rho, momentum, epsilon):
    second = rho * ms + (1 - rho) * grad**2
    first = rho * mg + (1 - rho) * grad
    step = momentum * mom + lr * grad / np.sqrt(second - first**2 + epsilon)
    return var - step, second, step, first


# In exact arithmetic TensorFlow's sparse ops do what its dense ones do.
rms_prop_of_rows = rms_prop
centered_rms_prop_of_rows = centered_rms_prop


def rms_prop_without_momentum(var, rms, grad, *, lr, rho, epsilon):
    second = rho * rms + (1 - rho) * grad**2
    return var - lr * grad / (np.sqrt(second) + epsilon), second


def centered_rms_prop_without_momentum(var, rms, mg, grad, *, lr, rho, epsilon):
    second = rho * rms + (1 - rho) * grad**2
    first = rho * mg + (1 - rho) * grad
    return var - lr * grad / (np.sqrt(second - first**2) + epsilon), second, first


def rms_prop_then_momentum(var, rms, mom, grad, *, lr, rho, momentum, epsilon):
    second = rho * rms + (1 - rho) * grad**2
    direction = momentum * mom + grad / (np.sqrt(second) + epsilon)
    return var - lr * direction, second, direction


def centered_rms_prop_then_momentum(
    var, rms, mom, mg, grad, *, lr, rho, momentum, epsilon
):
    second = rho * rms + (1 - rho) * grad**2
    first = rho * mg + (1 - rho) * grad
    deviation = np.sqrt(second - first**2)
    direction = momentum * mom + grad / (deviation + epsilon)
    return var - lr * direction, second, direction, first


def ftrl(
    var,
    accum,
    linear,
    grad,
    *,
    lr,
    l1,
    l2,
    lr_power,
    is_square_root,
    multiply_linear_by_lr,
):
    return ftrl_v2(
        var,
        accum,
        linear,
        grad,
        lr=lr,
        l1=l1,
        l2=l2,
        l2_shrinkage=0.0,
        lr_power=lr_power,
        is_square_root=is_square_root,
        multiply_linear_by_lr=multiply_linear_by_lr,
    )


def ftrl_v2(
    var,
    accum,
    linear,
    grad,
    *,
    lr,
    l1,
    l2,
    l2_shrinkage,
    lr_power,
    is_square_root,
    multiply_linear_by_lr,
):
    unit = lr if multiply_linear_by_lr else 1.0
    power = 0.5 if is_square_root else -lr_power
    total = accum + grad**2
    slope = (total**power - accum**power) / lr
    pull = linear / unit + grad + 2 * l2_shrinkage * var - slope * var
    new = -soft_threshold(pull, l1) / (total**power / lr + 2 * l2)
    return new, total, pull * unit


def add_sign(var, m, grad, *, lr, alpha, sign_decay, beta):
    mean = beta * m + (1 - beta) * grad
    agreement = np.sign(grad * mean)
    return var - lr * grad * (alpha + sign_decay * agreement), mean


def power_sign(var, m, grad, *, lr, logbase, sign_decay, beta):
    mean = beta * m + (1 - beta) * grad
    agreement = np.sign(grad * mean)
    return var - lr * grad * np.exp(logbase) ** (sign_decay * agreement), mean


def nadam(
    var,
    m,
    v,
    grad,
    *,
    lr,
    beta1,
    beta2,
    beta2_power,
    epsilon,
    momentum,
    momentum_next,
    momentum_product,
):
    first = beta1 * m + (1 - beta1) * grad
    second = beta2 * v + (1 - beta2) * grad**2
    gradient_hat = grad / (1 - momentum_product)
    first_hat = first / (1 - momentum_product * momentum_next)
    second_hat = second / (1 - beta2_power)
    direction = (1 - momentum) * gradient_hat + momentum_next * first_hat
    return var - lr * direction / (np.sqrt(second_hat) + epsilon), first, second


def lion(var, m, grad, *, lr, beta1, beta2):
    mixed = beta1 * m + (1 - beta1) * grad
    return var - lr * np.sign(mixed), beta2 * m + (1 - beta2) * grad


def lamb(var, m, v, grad, *, beta1_power, beta2_power, lr, beta1, beta2, epsilon):
    first = beta1 * m + (1 - beta1) * grad
    second = beta2 * v + (1 - beta2) * grad**2
    root = np.sqrt(second / (1 - beta2_power)) + epsilon
    direction = first / (1 - beta1_power) / root
    size, length = np.sqrt(np.sum(var**2)), np.sqrt(np.sum(direction**2))
    ratio = size / length if size > 0 and length > 0 else 1.0
    return var - ratio * lr * direction, first, second
