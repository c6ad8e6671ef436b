"""The paper's equations as plain loops over numbers; imports nothing of the library."""

import math


def flatten(x):
    """All numbers of nested lists."""
    return [y for part in x for y in flatten(part)] if isinstance(x, list) else [x]


def mean_l1(a, b):
    """The norm of Eq. 5 as a mean over everything."""
    pairs = list(zip(flatten(a), flatten(b), strict=True))
    return math.fsum(abs(x - y) for x, y in pairs) / len(pairs)


def dcr(student, teacher, negatives, weights, eps):
    """Eq. 5: features by level; `negatives[i][j]` is negative j at level i."""
    total = 0.0
    for level, weight in enumerate(weights):
        positive = mean_l1(student[level], teacher[level])
        negative = sum(mean_l1(student[level], other) for other in negatives[level])
        total += weight * positive / (negative + eps)
    return total


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / math.fsum(powers) for p in powers]


def code_distribution(z, codes, temperature=1.0):
    """Eq. 8 with the sign of the released code: softmax over minus squared distances."""
    distances = [math.fsum((a - b) ** 2 for a, b in zip(z, e, strict=True)) for e in codes]
    return softmax([-d / temperature for d in distances])


def dmm(student, teacher, codes, temperature=1.0, released=False):
    """Eqs. 7-9 on latent vectors: lists of tokens, each a list of numbers."""
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        p_s = code_distribution(z_s, codes, temperature)
        p_t = code_distribution(z_t, codes, temperature)
        if released:
            p_s = softmax(p_s)
        total -= math.fsum(t * math.log(s) for s, t in zip(p_s, p_t, strict=True))
    return total / len(student)


def dcr_gradient(student, teacher, negatives, weights, eps):
    """Derivative of Eq. 5 by each of the student's numbers, level by level, flattened."""
    gradients = []
    for level, weight in enumerate(weights):
        s, t = flatten(student[level]), flatten(teacher[level])
        others = [flatten(other) for other in negatives[level]]
        p = mean_l1(s, t)
        n = sum(mean_l1(s, other) for other in others) + eps
        by_number = []
        for i, value in enumerate(s):
            dp = sign(value - t[i]) / len(s)
            dn = sum(sign(value - other[i]) for other in others) / len(s)
            by_number.append(weight * (dp / n - p * dn / n**2))
        gradients.append(by_number)
    return gradients


def dmm_gradient(student, teacher, codes, temperature=1.0):
    """Derivative of the true cross-entropy by each of the student's latent numbers."""
    gradients = []
    for z_s, z_t in zip(student, teacher, strict=True):
        p_s = code_distribution(z_s, codes, temperature)
        p_t = code_distribution(z_t, codes, temperature)
        by_number = []
        for i, value in enumerate(z_s):
            # d(-log p_k)/dz = 2 (z - e_k) - sum_m p_m 2 (z - e_m), over the temperature
            expected = math.fsum(s * 2 * (value - e[i]) for s, e in zip(p_s, codes, strict=True))
            by_number.append(
                math.fsum(
                    t * (2 * (value - e[i]) - expected) for t, e in zip(p_t, codes, strict=True)
                )
                / temperature
                / len(student)
            )
        gradients.append(by_number)
    return gradients


def sign(x):
    return (x > 0) - (x < 0)


def history(start, sources, decay):
    """Eq. 6 unrolled: `decay^n h_0 + (1 - decay) sum_k decay^(n-k) s_k`, number by number."""
    n = len(sources)
    return [
        decay**n * h
        + (1 - decay) * math.fsum(decay ** (n - 1 - k) * s[i] for k, s in enumerate(sources))
        for i, h in enumerate(start)
    ]


def due_steps(steps, interval, growth, every, most):
    """The steps of 1..`steps` after which history moves."""
    return [
        t for t in range(1, steps + 1) if t % min(interval + growth * ((t - 1) // every), most) == 0
    ]
