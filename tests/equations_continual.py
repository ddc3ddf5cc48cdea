"""What is measured of continual learning, and methods that ours are compared with, in plain loops as `equations`."""

from collections.abc import Sequence
from math import exp, log

from equations import Matrix, Vector, class_statistics, cross_entropy, mean_of, softened_kl, softmax, solve

# Measuring


def average_accuracy(matrix: Matrix) -> float:
    """1/T sum_i a[T][i]."""
    return sum(matrix[-1]) / len(matrix)


def forgetting(matrix: Matrix) -> float:
    """1/(T-1) sum_{i<T} (max_{t<=T} a[t][i] - a[T][i])."""
    last = len(matrix) - 1
    return sum(max(row[i] for row in matrix) - matrix[last][i] for i in range(last)) / last


def retention(matrix: Matrix) -> Vector:
    """a[T][i] / a[i][i] for i < T."""
    return [matrix[-1][i] / matrix[i][i] for i in range(len(matrix) - 1)]


def backward_transfer(matrix: Matrix) -> float:
    """1/(T-1) sum_{i<T} (a[T][i] - a[i][i])."""
    last = len(matrix) - 1
    return sum(matrix[last][i] - matrix[i][i] for i in range(last)) / last


def forward_transfer(matrix: Matrix, untrained: Vector) -> float:
    """1/(T-1) sum_{i>=2} (a[i-1][i] - b_i)."""
    return sum(matrix[i - 1][i] - untrained[i] for i in range(1, len(matrix))) / (len(matrix) - 1)


def excess_forgetting(matrix: Matrix, joint: Matrix) -> float:
    """1/(T-1) sum_{i<T} (max_{i<=t<=T} e[t][i] - e[T][i]), e[t][i] = a[t][i] - joint a[t][i]."""
    last = len(matrix) - 1
    total = 0.0
    for i in range(last):
        best = -2.0
        for t in range(i, last + 1):
            best = max(best, matrix[t][i] - joint[t][i])
        total += best - (matrix[last][i] - joint[last][i])
    return total / last


def mean_and_deviation(values: Vector) -> tuple[float, float]:
    """Mean, and the square root of sum (v - mean)^2 / (n - 1)."""
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def masked_accuracy(scores: Matrix, classes: Sequence[str], labels: Sequence[str], allowed: Sequence[str]) -> float:
    """Share of rows whose best column among the allowed classes is the true class; the first of equal ones."""
    right = 0
    for row, label in zip(scores, labels, strict=True):
        best = None
        for column, name in enumerate(classes):
            if name in allowed and (best is None or row[column] > row[best]):
                best = column
        right += best is not None and classes[best] == label
    return right / len(labels)


def relative_mahalanobis(features: Matrix, labels: Sequence[str], h: Vector, ridge: float) -> float:
    """min_c (h - mu_c)^T S_w^-1 (h - mu_c) - (h - mu)^T S_t^-1 (h - mu), both S with ridge tr(S)/D I added."""
    dim, total = len(h), len(features)
    _, means, scatter = class_statistics(features, labels)
    _, overall, total_scatter = class_statistics(features, ["all"] * total)

    def distance(mean: Vector, matrix: Matrix) -> float:
        shift = ridge * sum(matrix[i][i] for i in range(dim)) / dim
        shifted = [[(matrix[i][j] + (shift if i == j else 0.0)) / total for j in range(dim)] for i in range(dim)]
        away = [a - b for a, b in zip(h, mean, strict=True)]
        solved = solve(shifted, [[value] for value in away])
        return sum(a * row[0] for a, row in zip(away, solved, strict=True))

    own = min(distance(mean, scatter) for mean in means.values())
    return own - distance(overall["all"], total_scatter)


# Methods to compare with


def derpp_loss(
    new: tuple[Matrix, Sequence[int]],
    of_logits: tuple[Matrix, Matrix],
    of_labels: tuple[Matrix, Sequence[int]],
    alpha: float,
    beta: float,
) -> float:
    """CE(f(x), y) + alpha mean |f(x') - z'|^2 / C + beta CE(f(x''), y''): outputs first, what they are held against."""
    rows = zip(*of_logits, strict=True)
    squares = [(f - z) ** 2 for outputs, kept in rows for f, z in zip(outputs, kept, strict=True)]
    return cross_entropy(*new) + alpha * sum(squares) / len(squares) + beta * cross_entropy(*of_labels)


def ewc_penalty(strength: float, fisher: Vector, weights: Vector, held: Vector) -> float:
    """lambda / 2 sum_w F_w (w - w*)^2."""
    return strength / 2 * sum(f * (w - h) ** 2 for f, w, h in zip(fisher, weights, held, strict=True))


def lwf_loss(
    outputs: tuple[Matrix, Matrix],
    labels: Sequence[int],
    old: Sequence[int],
    seen: Sequence[int],
    strength: float,
    t: float,
) -> float:
    """CE over the classes seen + lambda_o T^2 KL(p_old || p) over those learned before, for outputs now and then."""
    among = [[row[column] for column in seen] for row in outputs[0]]
    task = cross_entropy(among, [list(seen).index(label) for label in labels])
    now, then = ([[row[column] for column in old] for row in rows] for rows in outputs)
    return task + strength * softened_kl(then, now, t)


def icarl_loss(outputs: Matrix, said: Matrix, labels: Sequence[int], old: Sequence[int]) -> float:
    """mean of -q log sigma(f) - (1 - q) log(1 - sigma(f)), q the old network's sigma for old classes, else [y = c]."""
    total = 0.0
    for row, before, label in zip(outputs, said, labels, strict=True):
        for column, logit in enumerate(row):
            q = 1 / (1 + exp(-before[column])) if column in old else float(column == label)
            p = 1 / (1 + exp(-logit))
            total -= q * log(p) + (1 - q) * log(1 - p)
    return total / (len(outputs) * len(outputs[0]))


def nearest_mean(features: Matrix, labels: Sequence[str], h: Vector) -> dict[str, float]:
    """-|h - mu_c|^2 of each class."""
    _, means, _ = class_statistics(features, labels)
    return {name: -sum((a - b) ** 2 for a, b in zip(h, mean, strict=True)) for name, mean in means.items()}


def lda_scores(features: Matrix, labels: Sequence[str], h: Vector, epsilon: float) -> dict[str, float]:
    """mu_c^T L h - mu_c^T L mu_c / 2, L = ((1 - epsilon) S / N + epsilon I)^-1."""
    _, means, scatter = class_statistics(features, labels)
    size = len(h)
    shape = [
        [(1 - epsilon) * scatter[i][j] / len(features) + (epsilon if i == j else 0.0) for j in range(size)]
        for i in range(size)
    ]
    scores = {}
    for name, mean in means.items():
        weights = [row[0] for row in solve(shape, [[value] for value in mean])]
        scores[name] = sum(w * (x - m / 2) for w, x, m in zip(weights, h, mean, strict=True))
    return scores


def balanced_mixture_loss(gate: Matrix, outputs: Sequence[Matrix], labels: Sequence[int], balance: float) -> float:
    """-mean log sum_i g_i E_i(x)_y + lambda_b N sum_i pi_i log pi_i; outputs hold each row's experts' logits."""
    gates = [softmax(row) for row in gate]
    loss = 0.0
    for g, experts, label in zip(gates, outputs, labels, strict=True):
        loss -= log(sum(weight * softmax(logits)[label] for weight, logits in zip(g, experts, strict=True)))
    usage = mean_of(gates)
    return loss / len(gates) + balance * len(usage) * sum(share * log(share) for share in usage)
