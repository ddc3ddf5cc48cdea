"""The maths of `experts` written out in plain loops over lists of floats, to check the code against.

Nothing here is fast or guards against overflow, so that each function can be compared with its equation by
eye. Vectors are lists, matrices lists of rows; labels are class names; tasks and rows count from 0.
"""

from collections.abc import Mapping, Sequence
from math import cos, erf, exp, log, pi, sqrt, tanh

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


def normalised(gain: Vector, bias: Vector, values: Vector, epsilon: float = 1e-5) -> Vector:
    """gain (z - mean z) / sqrt(var z + epsilon) + bias, over the units of one row."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [g * (z - mean) / sqrt(variance + epsilon) + b for g, b, z in zip(gain, bias, values, strict=True)]


def activated(word: str, values: Vector) -> Vector:
    """relu: max(0, z); gelu: z Phi(z); silu: z / (1 + exp(-z)); tanh."""
    functions = {
        "relu": lambda z: max(0.0, z),
        "gelu": lambda z: z * (1 + erf(z / sqrt(2))) / 2,
        "silu": lambda z: z / (1 + exp(-z)),
        "tanh": tanh,
    }
    return [functions[word](z) for z in values]


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


def gate_logits(scores: Mapping[str, float], experts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """f_R_i = log sum over c in C_i of exp(s_c); of experts none of whose classes has a score, nothing."""
    return {
        # In one order: experts of the same classes tie exactly, and a sum in another order may differ in its last bit.
        uid: log(sum(exp(scores[name]) for name in sorted(classes) if name in scores))
        for uid, classes in experts.items()
        if any(name in scores for name in classes)
    }


def gate_weights(
    scores: Mapping[str, float], experts: Mapping[str, Sequence[str]], *, tau: float, top_k: int
) -> dict[str, float]:
    """g_i = softmax(f_R / tau)_i 1(i in top-k); ties by uid. Experts none of whose classes has a score get 0."""
    logits = gate_logits(scores, experts)
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


# Architectures of experts


def relu(values: Vector) -> Vector:
    """max(0, x)."""
    return [max(0.0, value) for value in values]


def map_of(features: Vector, channels: int, height: int, width: int) -> list[Matrix]:
    """X[k][y][x] = h at ((k height) + y) width + x: channel by channel, row by row."""
    return [
        [[features[(k * height + y) * width + x] for x in range(width)] for y in range(height)] for k in range(channels)
    ]


def convolved(filters: Sequence[Sequence[Matrix]], bias: Vector, image: Sequence[Matrix]) -> list[Matrix]:
    """r[f][y][x] = b_f + sum over k, i, j of F[f][k][i][j] X[k][y + i - 1][x + j - 1], X = 0 outside; F is 3 x 3."""
    height, width = len(image[0]), len(image[0][0])
    responses = [[[b for _ in range(width)] for _ in range(height)] for b in bias]
    for f, kernels in enumerate(filters):
        for k, kernel in enumerate(kernels):
            for y in range(height):
                for x in range(width):
                    for i in range(3):
                        for j in range(3):
                            if 0 <= y + i - 1 < height and 0 <= x + j - 1 < width:
                                responses[f][y][x] += kernel[i][j] * image[k][y + i - 1][x + j - 1]
    return responses


def mean_response(response: Matrix) -> float:
    """1/(H W) sum over positions of relu(r)."""
    positive = [value for row in response for value in relu(row)]
    return sum(positive) / len(positive)


def adapted(down: Matrix, bias: Vector, up: Matrix, inputs: Vector) -> Vector:
    """z + P relu(V z + a)."""
    correction = linear(up, [0.0] * len(inputs), relu(linear(down, bias, inputs)))
    return [z + c for z, c in zip(inputs, correction, strict=True)]


# Specialization


def gate_mass(gates: Sequence[Mapping[str, float]], labels: Sequence[str]) -> dict[tuple[str, str], float]:
    """m_ci: the gate weights that the rows of class c give to expert i, summed, by (class, expert)."""
    mass: dict[tuple[str, str], float] = {}
    for row, label in zip(gates, labels, strict=True):
        for uid, weight in row.items():
            mass[label, uid] = mass.get((label, uid), 0.0) + weight
    return mass


def specialization_entropy(mass: Mapping[tuple[str, str], float], expert: str) -> float | None:
    """S(E_i) = -sum_c p(c|E_i) log p(c|E_i), p(c|E_i) = m_ci / sum_c m_ci; None without mass."""
    own = [value for (_, uid), value in mass.items() if uid == expert]
    if sum(own) == 0:
        return None
    return -sum(value / sum(own) * log(value / sum(own)) for value in own if value > 0)


def usage_share(mass: Mapping[tuple[str, str], float], expert: str) -> float:
    """pi_i = sum_c m_ci / sum_ci m_ci."""
    return sum(value for (_, uid), value in mass.items() if uid == expert) / sum(mass.values())


def mutual_information(mass: Mapping[tuple[str, str], float]) -> float:
    """I(E;C) = sum_ci q_ci log(q_ci / (q_c q_i)) with q = m / sum m."""
    total = sum(mass.values())
    information = 0.0
    for (name, uid), value in mass.items():
        if value > 0:
            of_class = sum(other for (c, _), other in mass.items() if c == name) / total
            of_expert = sum(other for (_, i), other in mass.items() if i == uid) / total
            information += value / total * log(value / total / (of_class * of_expert))
    return information


def specialization_loss(
    mass: Mapping[tuple[str, str], float],
    experts: Sequence[str],
    *,
    weighted: bool,
    lambda_s: float,
    lambda_b: float,
) -> float:
    """lambda (N sum_i pi_i S(E_i), or sum_i S(E_i)) + lambda_b N sum_i pi_i log pi_i; S = 0 without mass."""
    loss = 0.0
    for uid in experts:
        share, entropy = usage_share(mass, uid), specialization_entropy(mass, uid) or 0.0
        loss += lambda_s * (len(experts) * share * entropy if weighted else entropy)
        loss += lambda_b * len(experts) * share * log(share) if share > 0 else 0.0
    return loss


# Distillation over rows of several kinds


def distillation_over_rows(
    student: Matrix,
    teachers: Sequence[Sequence[Sequence[float | None]]],
    weights: Vector,
    labels: Sequence[int | None],
    *,
    alpha: float,
    temperature: float,
) -> float:
    """1/B sum_b l_b: alpha CE + (1 - alpha) T^2 KL with label and teacher, the one term with one, 0 with neither.

    teachers[j][b][c] is teacher j's logit, None for a class it does not know. KL_b = sum_j w_jb KL(p_j || p_student),
    both over the classes that j knows, w_jb convex over the teachers that know two or more.
    """
    total = 0.0
    for b, row in enumerate(student):
        label = labels[b]
        taught = any(logit is not None for teacher in teachers for logit in teacher[b])
        heard = [j for j, teacher in enumerate(teachers) if sum(logit is not None for logit in teacher[b]) >= 2]
        kl = 0.0
        for j in heard:
            known = {c: logit for c, logit in enumerate(teachers[j][b]) if logit is not None}
            p_teacher = softmax(list(known.values()), temperature)
            p_student = softmax([row[c] for c in known], temperature)
            kl += weights[j] / sum(weights[i] for i in heard) * kl_divergence(p_teacher, p_student)
        if label is None:
            total += temperature**2 * kl
        elif taught:
            total += alpha * cross_entropy([row], [label]) + (1 - alpha) * temperature**2 * kl
        else:
            total += cross_entropy([row], [label])
    return total / len(student)


def normalised_images(
    images: Sequence[Sequence[Sequence[Sequence[float]]]], mean: Sequence[float], deviation: Sequence[float]
) -> list[list[list[list[float]]]]:
    """(x - mean) / deviation, each channel its own."""
    return [
        [
            [[(value - mean[channel]) / deviation[channel] for value in row] for row in plane]
            for channel, plane in enumerate(image)
        ]
        for image in images
    ]


def cosine_adam(theta: float, gradients: Sequence[float], *, lr: float) -> float:
    """Adam (Kingma and Ba 2015, algorithm 1) on one number, its rate falling to 0 along half a cosine."""
    mean = square = 0.0
    for done, gradient in enumerate(gradients):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased_mean = mean / (1 - 0.9 ** (done + 1))
        unbiased_square = square / (1 - 0.999 ** (done + 1))
        rate = lr * (1 + cos(pi * done / len(gradients))) / 2
        theta -= rate * unbiased_mean / (sqrt(unbiased_square) + 1e-8)
    return theta


# Sections and capabilities


def stitch_loss(outputs: Matrix, section: Matrix, stitch: Matrix, bias: Vector) -> float:
    """1/(B D) sum_b ||A f_b + a - z_b||^2, z = (section - m) / s; s is the deviation plus 1% of that of all."""
    everything = [value for row in section for value in row]
    centre = sum(everything) / len(everything)
    overall = sqrt(sum((value - centre) ** 2 for value in everything) / len(everything))
    total = 0.0
    for d in range(len(section[0])):
        column = [row[d] for row in section]
        mean = sum(column) / len(column)
        deviation = sqrt(sum((value - mean) ** 2 for value in column) / len(column)) + 0.01 * overall
        for output, value in zip(outputs, column, strict=True):
            stitched = linear([stitch[d]], [bias[d]], output)[0]
            total += (stitched - (value - mean) / deviation) ** 2
    return total / (len(section) * len(section[0]))


def capability_probabilities(
    logits: Vector, names: Sequence[str], mesh_name: Mapping[str, str], mesh_classes: Sequence[str]
) -> Vector:
    """p(m) proportional to the sum of p(t) over the teacher's classes t that map to m; the others are left out."""
    p = softmax(logits)
    sums = [sum(p[k] for k, name in enumerate(names) if mesh_name.get(name) == ours) for ours in mesh_classes]
    return [value / sum(sums) for value in sums]


# Mixtures, the router that is trained, and references


def mixture_cross_entropy(logits: Matrix, likelihoods: Matrix, tau: float) -> float:
    """-1/B sum_b log sum_i softmax(l_b / tau)_i E_i(x_b)_label."""
    total = 0.0
    for row, chances in zip(logits, likelihoods, strict=True):
        total -= log(sum(g * chance for g, chance in zip(softmax(row, tau), chances, strict=True)))
    return total / len(logits)


def router_logits(hidden: tuple[Matrix, Vector], output: tuple[Matrix, Vector], scale: float, h: Vector) -> Vector:
    """f_R = U relu(V (scale h) + a) + b."""
    return linear(*output, relu(linear(*hidden, [scale * value for value in h])))


def energies(logits: Mapping[str, Vector]) -> dict[str, float]:
    """log sum_c exp(logit_c) of each expert."""
    return {uid: log(sum(exp(value) for value in own)) for uid, own in logits.items()}


def adam(parameter: float, gradients: Sequence[float], lr: float) -> float:
    """The parameter after one step for each gradient: b1 = .9, b2 = .999, eps = 1e-8."""
    first = second = 0.0
    for t, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        parameter -= lr * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)) ** 0.5 + 1e-8)
    return parameter


# Features of a trunk and beside it


def relu_features(features: Vector, weights: Matrix, bias: Vector, start: int, stop: int) -> Vector:
    """psi = [h, relu(h_S W + b)], W a row for each feature of the slice."""
    random = []
    for r, offset in enumerate(bias):
        total = offset
        for s in range(start, stop):
            total += features[s] * weights[s - start][r]
        random.append(max(0.0, total))
    return features + random


def projected_channels(rows: Matrix, image: Sequence[Matrix]) -> list[Matrix]:
    """At every cell, sum_c P_kc a_c."""
    height, width = len(image[0]), len(image[0][0])
    return [
        [[sum(row[c] * image[c][y][x] for c in range(len(image))) for x in range(width)] for y in range(height)]
        for row in rows
    ]


def variance_along(direction: Vector, vectors: Matrix) -> float:
    """Mean squared deviation of the projections on a direction."""
    places = [sum(d * v for d, v in zip(direction, vector, strict=True)) for vector in vectors]
    mean = sum(places) / len(places)
    return sum((place - mean) ** 2 for place in places) / len(places)


# A mixture trained end to end


def warmed_up(value: float, steps_taken: int, warmup_steps: int) -> float:
    """lambda_t = lambda min(1, t / warmup_steps)."""
    return value if steps_taken >= warmup_steps else value * steps_taken / warmup_steps
