"""A router's statistics as exact sums, and in eight bits, written out as in `equations`."""

from collections.abc import Mapping, Sequence

from equations import Matrix, Vector, solve


def raw_moments(features: Matrix, labels: Sequence[str]) -> tuple[dict[str, int], dict[str, Vector], Matrix]:
    """n_c, s_c = sum h of class c, and T = sum h h^T over all samples: what adds up without a correction."""
    counts = {label: labels.count(label) for label in labels}
    dim = len(features[0])
    sums = {name: [0.0] * dim for name in counts}
    moment = [[0.0] * dim for _ in range(dim)]
    for row, label in zip(features, labels, strict=True):
        for i in range(dim):
            sums[label][i] += row[i]
            for j in range(dim):
                moment[i][j] += row[i] * row[j]
    return counts, sums, moment


def statistics_of_moments(
    counts: Mapping[str, int], sums: Mapping[str, Vector], moment: Matrix
) -> tuple[dict[str, Vector], Matrix]:
    """mu_c = s_c / n_c and S = T - sum_c n_c mu_c mu_c^T."""
    means = {name: [value / counts[name] for value in sums[name]] for name in counts}
    scatter = [list(row) for row in moment]
    for name, mean in means.items():
        for i in range(len(moment)):
            for j in range(len(moment)):
                scatter[i][j] -= counts[name] * mean[i] * mean[j]
    return means, scatter


def cholesky(matrix: Matrix) -> Matrix:
    """Lower triangular L with L L^T the matrix."""
    size = len(matrix)
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = rest**0.5 if i == j else rest / factor[j][j]
    return factor


def whitening_factor(scatter: Matrix, samples: int, ridge: float = 3e-3) -> Matrix:
    """L of L L^T = S_ref + ridge tr(S_ref)/D I, with S_ref the scatter per sample."""
    size = len(scatter)
    shift = ridge * sum(scatter[i][i] for i in range(size)) / samples / size
    return cholesky([[scatter[i][j] / samples + (shift if i == j else 0.0) for j in range(size)] for i in range(size)])


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def product(left: Matrix, right: Matrix) -> Matrix:
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in transposed(right)] for row in left]


def whitened(scatter: Matrix, factor: Matrix) -> Matrix:
    """Z = L^-1 S L^-T: twice L^-1 from the left, since S is symmetric."""
    return transposed(solve(factor, transposed(solve(factor, scatter))))


def eight_bit_scatter(scatter: Matrix, factor: Matrix) -> Matrix:
    """S after whitening, correlations clipped at 8 standard deviations, 127 steps to either side, and back.

    For features that all vary, and rounding that leaves the correlations positive semi-definite.
    """
    z, size = whitened(scatter, factor), len(scatter)
    deviations = [z[i][i] ** 0.5 for i in range(size)]
    r = [[z[i][j] / deviations[i] / deviations[j] for j in range(size)] for i in range(size)]
    pairs = [r[i][j] for i in range(size) for j in range(size) if i != j]
    limit = min(8 * (sum(value * value for value in pairs) / len(pairs)) ** 0.5, 1.0)
    rounded = [[float(i == j) for j in range(size)] for i in range(size)]
    for i in range(size):
        for j in range(size):
            if i != j:
                rounded[i][j] = round(127 * max(-limit, min(limit, r[i][j])) / limit) * limit / 127
    z = [[rounded[i][j] * deviations[i] * deviations[j] for j in range(size)] for i in range(size)]
    return product(product(factor, z), transposed(factor))
