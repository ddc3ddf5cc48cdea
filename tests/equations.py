"""The maths of `experts` written out in plain loops over lists of floats, to check the code against.

Nothing here is fast or guards against overflow, so that each function can be compared with its equation by
eye. Vectors are lists, matrices lists of rows; labels are class names; tasks and rows count from 0.
"""

from collections.abc import Mapping, Sequence
from math import exp, log

Vector = list[float]
Matrix = list[list[float]]


# Experts and distillation


def normalised_features(phi: Vector, mean: Vector, deviation: Vector, limit: float = 8.0) -> Vector:
    """h = clip((Phi(x) - m) / s, +-limit)."""
    return [max(-limit, min(limit, (p - m) / s)) for p, m, s in zip(phi, mean, deviation, strict=True)]


def softmax(logits: Vector, temperature: float = 1.0) -> Vector:
    """p_c = exp(l_c / T) / sum_j exp(l_j / T)."""
    total = sum(exp(logit / temperature) for logit in logits)
    return [exp(logit / temperature) / total for logit in logits]


def linear(weights: Matrix, bias: Vector, inputs: Vector) -> Vector:
    """W x + b."""
    return [sum(w * x for w, x in zip(row, inputs, strict=True)) + b for row, b in zip(weights, bias, strict=True)]


def cross_entropy(logits: Matrix, labels: Sequence[int]) -> float:
    """-log p(label), mean over the batch."""
    return -sum(log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)) / len(labels)


def kl_divergence(p: Vector, q: Vector) -> float:
    """sum_c p_c log(p_c / q_c), with 0 log 0 = 0."""
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def softened_kl(teacher: Matrix, student: Matrix, temperature: float) -> float:
    """T^2 KL(p_teacher || p_student) at temperature T, mean over the batch."""
    rows = zip(teacher, student, strict=True)
    total = sum(kl_divergence(softmax(t, temperature), softmax(s, temperature)) for t, s in rows)
    return temperature**2 * total / len(student)


def distillation_loss(
    student: Matrix, teacher: Matrix, labels: Sequence[int], alpha: float, temperature: float
) -> float:
    """alpha CE + (1 - alpha) T^2 KL."""
    task = cross_entropy(student, labels)
    return alpha * task + (1 - alpha) * softened_kl(teacher, student, temperature)


def mean_of(vectors: Sequence[Vector]) -> Vector:
    """theta_new = 1/M sum_j theta_j."""
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


# Router


def class_statistics(features: Matrix, labels: Sequence[str]) -> tuple[dict[str, int], dict[str, Vector], Matrix]:
    """n_c, mu_c and S = sum (h - mu_y)(h - mu_y)^T, each by its definition."""
    dim = len(features[0])
    counts: dict[str, int] = {}
    sums: dict[str, Vector] = {}
    for row, label in zip(features, labels, strict=True):
        counts[label] = counts.get(label, 0) + 1
        sums[label] = [a + b for a, b in zip(sums.get(label, [0.0] * dim), row, strict=True)]
    means = {label: [value / counts[label] for value in sums[label]] for label in counts}
    scatter = [[0.0] * dim for _ in range(dim)]
    for row, label in zip(features, labels, strict=True):
        for i in range(dim):
            for j in range(dim):
                scatter[i][j] += (row[i] - means[label][i]) * (row[j] - means[label][j])
    return counts, means, scatter


def ridge_weights(features: Matrix, labels: Sequence[str], *, ridge: float, prior: Mapping[str, float]) -> Matrix:
    """B = (G + ridge tr(G)/D I)^-1 Q from raw samples; one column per class in sorted order.

    G = [S 0; 0 0] + N sum_c pi_c M_c M_c^T, Q = N M^T diag(pi), M_c = [mu_c, 1].
    """
    _, means, scatter = class_statistics(features, labels)
    classes, dim, total = sorted(means), len(features[0]), len(labels)
    augmented = {name: [*means[name], 1.0] for name in classes}
    gram = [[scatter[i][j] if i < dim and j < dim else 0.0 for j in range(dim + 1)] for i in range(dim + 1)]
    for name in classes:
        for i in range(dim + 1):
            for j in range(dim + 1):
                gram[i][j] += total * prior[name] * augmented[name][i] * augmented[name][j]
    targets = [[total * prior[name] * augmented[name][i] for name in classes] for i in range(dim + 1)]
    return regularised_solution(gram, targets, ridge)


def ridge_regression(features: Matrix, labels: Sequence[str], *, ridge: float) -> Matrix:
    """The normal equations of least squares on one-hot targets: (sum psi psi^T + r I)^-1 sum psi y^T."""
    classes, rows = sorted(set(labels)), [[*row, 1.0] for row in features]
    size = len(rows[0])
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]
    targets = [
        [sum(row[i] for row, label in zip(rows, labels, strict=True) if label == name) for name in classes]
        for i in range(size)
    ]
    return regularised_solution(gram, targets, ridge)


def regularised_solution(gram: Matrix, targets: Matrix, ridge: float) -> Matrix:
    """(G + ridge tr(G)/D I)^-1 Q, where G has a row more than there are features."""
    size = len(gram)
    shift = ridge * sum(gram[i][i] for i in range(size)) / (size - 1)
    shifted = [[gram[i][j] + (shift if i == j else 0.0) for j in range(size)] for i in range(size)]
    return solve(shifted, targets)


def solve(system: Matrix, targets: Matrix) -> Matrix:
    """X with A X = Y, by Gauss-Jordan elimination with row pivoting."""
    size = len(system)
    rows = [[*a, *y] for a, y in zip(system, targets, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for row in range(size):
            if row != column:
                factor = rows[row][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[size:] for row in rows]


def class_scores(weights: Matrix, features: Vector, kappa: float) -> Vector:
    """s_c = kappa psi^T B_c with psi = [h, 1]."""
    psi = [*features, 1.0]
    return [kappa * sum(p * row[c] for p, row in zip(psi, weights, strict=True)) for c in range(len(weights[0]))]


def gate_weights(
    scores: Mapping[str, float], experts: Mapping[str, Sequence[str]], *, tau: float, top_k: int
) -> dict[str, float]:
    """g_i = softmax(f_R / tau)_i 1(i in top-k), f_R_i = log sum over c in C_i of exp(s_c); ties by uid.

    Experts none of whose classes has a score get 0.
    """
    logits = {
        # In one order: experts of the same classes tie exactly, and a sum in another order may differ in its last bit.
        uid: log(sum(exp(scores[name]) for name in sorted(classes) if name in scores))
        for uid, classes in experts.items()
        if any(name in scores for name in classes)
    }
    total = sum(exp(logit / tau) for logit in logits.values())
    chosen = sorted(logits, key=lambda uid: (-logits[uid], uid))[:top_k]
    return {uid: exp(logits[uid] / tau) / total if uid in chosen else 0.0 for uid in experts}


def mixture(
    gates: Mapping[str, float],
    answers: Mapping[str, Mapping[str, float]],
    classes: Sequence[str],
    *,
    renormalise: bool,
) -> tuple[Vector, float]:
    """y_c = sum_i g_i E_i(x)_c over the experts that answered, and the gate mass of those that did not."""
    answered = sum(weight for uid, weight in gates.items() if uid in answers)
    missing = sum(weight for uid, weight in gates.items() if uid not in answers)
    outputs = [sum(gates[uid] * answer.get(name, 0.0) for uid, answer in answers.items()) for name in classes]
    return [value / answered if renormalise else value for value in outputs], missing


# Continual learning


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
