"""Kernel-target alignment and CKA, against their definitions in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from torch_ntk.metrics import cka, kernel_alignment

RNG = np.random.default_rng


def gram(n: int, p: int, seed: int = 0) -> np.ndarray:
    features = RNG(seed).standard_normal((n, p))
    return features @ features.T


def matrix_of(kernel: np.ndarray) -> np.ndarray:
    """The matrix with rows (n, i) and columns (m, j), one entry at a time."""
    n, _, o, _ = kernel.shape
    matrix = np.empty((n * o, n * o))
    for a in range(n):
        for b in range(n):
            for i in range(o):
                for j in range(o):
                    matrix[a * o + i, b * o + j] = kernel[a, b, i, j]
    return matrix


def full_kernel(n: int, o: int, seed: int) -> np.ndarray:
    jacobian = RNG(seed).standard_normal((n, o, 30))
    return np.einsum("nip,mjp->nmij", jacobian, jacobian)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def centering(n: int) -> np.ndarray:
    return np.eye(n) - 1.0 / n


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 4)])
def test_real_targets(shape: tuple[int, ...], centered: bool) -> None:
    matrix, y = gram(9, 5), RNG(1).standard_normal(shape)
    columns = y.reshape(9, -1)
    ideal, kernel = columns @ columns.T, matrix
    if centered:
        h = centering(9)
        ideal, kernel = h @ ideal @ h, h @ kernel @ h
    value = kernel_alignment(torch.from_numpy(matrix), torch.from_numpy(y), centered=centered)
    assert value.item() == pytest.approx(cosine(kernel, ideal), rel=1e-12)
    assert value.dtype == torch.float64
    assert value.shape == ()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("zero_centered", [True, False])
def test_class_labels(dtype: torch.dtype, zero_centered: bool) -> None:
    matrix = gram(8, 4, seed=2)
    labels = np.array([0, 2, 1, 1, 0, 2, 2, 0])
    y = np.zeros((8, 3))
    for row, label in enumerate(labels):
        y[row, label] = 1.0
    if zero_centered:
        y -= 1.0 / 3.0
    value = kernel_alignment(
        torch.from_numpy(matrix), torch.from_numpy(labels).to(dtype), zero_centered=zero_centered
    )
    assert value.item() == pytest.approx(cosine(matrix, y @ y.T), rel=1e-12)


def test_default_is_zero_centered_labels_and_an_uncentered_kernel() -> None:
    matrix = torch.from_numpy(gram(6, 4, seed=3))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    explicit = kernel_alignment(matrix, labels, zero_centered=True, centered=False)
    assert kernel_alignment(matrix, labels).item() == explicit.item()
    assert kernel_alignment(matrix, labels, zero_centered=False).item() != explicit.item()
    assert kernel_alignment(matrix, labels, centered=True).item() != explicit.item()


def test_classes_missing_from_the_sample_count_by_num_classes() -> None:
    matrix = torch.from_numpy(gram(6, 4, seed=4))
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    y = np.eye(10)[labels.numpy()] - 0.1
    value = kernel_alignment(matrix, labels, num_classes=10)
    assert value.item() == pytest.approx(cosine(matrix.numpy(), y @ y.T), rel=1e-12)
    assert kernel_alignment(matrix, labels).item() != pytest.approx(value.item(), abs=1e-3)


@pytest.mark.parametrize("centered", [False, True])
def test_full_kernel_aligns_with_the_vector_of_all_targets(centered: bool) -> None:
    kernel, y = full_kernel(5, 3, seed=5), RNG(6).standard_normal((5, 3))
    matrix, vector = matrix_of(kernel), y.reshape(-1)
    if centered:
        h = np.kron(centering(5), np.eye(3))
        matrix, vector = h @ matrix @ h, h @ vector
    value = kernel_alignment(torch.from_numpy(kernel), torch.from_numpy(y), centered=centered)
    assert value.item() == pytest.approx(cosine(matrix, np.outer(vector, vector)), rel=1e-12)


@pytest.mark.parametrize("centered", [False, True])
def test_diagonal_layout_is_the_block_diagonal_full_kernel(centered: bool) -> None:
    blocks = np.stack([gram(6, 8, seed=s) for s in range(3)], axis=-1)
    full = np.einsum("nmi,ij->nmij", blocks, np.eye(3))
    labels = torch.tensor([0, 1, 2, 2, 1, 1])
    diagonal = kernel_alignment(torch.from_numpy(blocks), labels, centered=centered)
    expected = kernel_alignment(torch.from_numpy(full), labels, centered=centered)
    assert diagonal.item() == pytest.approx(expected.item(), rel=1e-12)


def test_kronecker_kernel_relates_the_two_forms() -> None:
    matrix, y = gram(7, 5, seed=7), RNG(8).standard_normal((7, 2))
    full = np.einsum("nm,ij->nmij", matrix, np.eye(2))
    value = kernel_alignment(torch.from_numpy(full), torch.from_numpy(y))
    expected = (matrix * (y @ y.T)).sum() / (
        math.sqrt(2) * np.linalg.norm(matrix) * np.linalg.norm(y) ** 2
    )
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_labels_of_a_full_kernel_take_their_number_from_its_outputs() -> None:
    kernel = torch.from_numpy(full_kernel(4, 3, seed=9))
    labels = torch.tensor([0, 1, 1, 0])  # class 2 is missing
    y = torch.nn.functional.one_hot(labels, 3).double() - 1.0 / 3.0
    assert kernel_alignment(kernel, labels).item() == pytest.approx(
        kernel_alignment(kernel, y).item(), rel=1e-13
    )
    with pytest.raises(ValueError, match="`num_classes` must be 3"):
        kernel_alignment(kernel, labels, num_classes=4)
    with pytest.raises(ValueError, match="class labels from 0 to 2; got labels from 0 to 3"):
        kernel_alignment(kernel, torch.tensor([0, 1, 2, 3]))


def test_alignment_bounds_and_invariances() -> None:
    y = RNG(10).standard_normal(6)
    ideal = torch.from_numpy(np.outer(y, y))
    targets = torch.from_numpy(y)
    assert kernel_alignment(ideal, targets).item() == pytest.approx(1.0, abs=1e-14)
    assert kernel_alignment(ideal, targets).item() <= 1.0
    assert kernel_alignment(-ideal, targets).item() == pytest.approx(-1.0, abs=1e-14)
    orthogonal = scipy.linalg.null_space(y[None])
    assert kernel_alignment(torch.from_numpy(orthogonal @ orthogonal.T), targets).item() == (
        pytest.approx(0.0, abs=1e-14)
    )
    matrix = gram(6, 4, seed=11)
    base = kernel_alignment(torch.from_numpy(matrix), targets).item()
    for scale in (1e-200, 1e-3, 1e200):
        assert kernel_alignment(
            torch.from_numpy(scale * matrix), targets / scale
        ).item() == pytest.approx(base, rel=1e-12)
    rotation = scipy.linalg.qr(RNG(12).standard_normal((6, 6)))[0]
    assert kernel_alignment(
        torch.from_numpy(rotation @ matrix @ rotation.T), torch.from_numpy(rotation @ y)
    ).item() == pytest.approx(base, rel=1e-11)


def test_rounding_below_zero_is_zero() -> None:
    for seed in range(20):
        a, b = RNG(seed).standard_normal((2, 8))
        b -= a * (a @ b) / (a @ a)
        kernel, targets = torch.from_numpy(np.outer(a, a)), torch.from_numpy(b)
        assert 0.0 <= kernel_alignment(kernel, targets).item() <= 1e-15


def test_centered_alignment_is_cka_with_the_ideal_kernel() -> None:
    matrix, y = gram(7, 3, seed=13), RNG(14).standard_normal((7, 2))
    value = kernel_alignment(torch.from_numpy(matrix), torch.from_numpy(y), centered=True)
    expected = cka(torch.from_numpy(matrix), torch.from_numpy(y @ y.T))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("targets", "error", "text"),
    [
        (torch.tensor([0, 1, 0]), ValueError, r"one row for each sample of `kernel`; got .*\(3,\)"),
        (torch.zeros(5), ValueError, r"one row for each sample"),
        (torch.ones(4, 2, 2), ValueError, r"`targets` must be of shape"),
        (torch.tensor(1.0), ValueError, r"`targets` must be of shape"),
        (torch.ones(4, 2, dtype=torch.int64), ValueError, "Integers are class labels"),
        (torch.tensor([2, 2, 2, 2]), ValueError, "at least two classes; got 4 labels .* all 2"),
        (torch.tensor([0, 0, 0, 0]), ValueError, "at least two classes"),
        (torch.tensor([-1, 1, 1, -1]), ValueError, "labels from -1 to 1.*must be floats"),
        (torch.tensor([True, False, True, False]), TypeError, "`targets` must be real targets"),
        (torch.ones(4, dtype=torch.complex64), TypeError, "`targets` must be real targets"),
        (torch.zeros(4), ValueError, "`targets` must be other than zero"),
        (torch.tensor([1.0, math.nan, 0.0, 1.0]), ValueError, "1 NaN and 0 infinite"),
        (torch.ones(4, 0), ValueError, "`targets` must be non-empty"),
        ([0, 1, 0, 1], TypeError, r"`targets` must be a torch\.Tensor"),
    ],
)
def test_bad_targets(targets: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        kernel_alignment(torch.eye(4), targets)  # type: ignore[arg-type]


def test_targets_that_do_not_fit_the_outputs() -> None:
    kernel = torch.from_numpy(full_kernel(4, 3, seed=15))
    for targets in (torch.ones(4), torch.ones(4, 2)):
        with pytest.raises(ValueError, match=r"`targets` must be of shape \[4, 3\]"):
            kernel_alignment(kernel, targets)
    with pytest.raises(ValueError, match="`num_classes` must be None for real targets"):
        kernel_alignment(kernel, torch.ones(4, 3), num_classes=3)
    with pytest.raises(TypeError, match="`num_classes` must be a positive integer"):
        kernel_alignment(torch.eye(2), torch.tensor([0, 1]), num_classes=2.0)  # type: ignore[arg-type]


def test_undefined_angles_are_refused() -> None:
    y = torch.tensor([1.0, 2.0, 4.0])
    with pytest.raises(ValueError, match="`kernel` must be other than zero"):
        kernel_alignment(torch.zeros(3, 3), y)
    with pytest.raises(ValueError, match="`kernel` must be not constant over the samples"):
        kernel_alignment(torch.full((3, 3), 0.1), y, centered=True)
    with pytest.raises(ValueError, match="`targets` must be not constant over the samples"):
        kernel_alignment(torch.eye(3), torch.full((3,), 0.1), centered=True)
    constant = kernel_alignment(torch.full((3, 3), 0.1), torch.ones(3))  # defined uncentered
    assert constant.item() == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("layout", ["matrix", "diagonal", "full"])
def test_cka_is_the_cosine_of_centered_kernels(layout: str) -> None:
    if layout == "matrix":
        a, b = gram(8, 5, seed=16), gram(8, 3, seed=17)
        h, matrix_a, matrix_b = centering(8), a, b
    elif layout == "full":
        a, b = full_kernel(5, 2, seed=18), full_kernel(5, 2, seed=19)
        h, matrix_a, matrix_b = np.kron(centering(5), np.eye(2)), matrix_of(a), matrix_of(b)
    else:
        a = np.stack([gram(5, 4, seed=s) for s in (20, 21)], axis=-1)
        b = np.stack([gram(5, 4, seed=s) for s in (22, 23)], axis=-1)
        h = np.kron(np.eye(2), centering(5))
        matrix_a = scipy.linalg.block_diag(a[..., 0], a[..., 1])
        matrix_b = scipy.linalg.block_diag(b[..., 0], b[..., 1])
    expected = cosine(h @ matrix_a @ h, h @ matrix_b @ h)
    value = cka(torch.from_numpy(a), torch.from_numpy(b))
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert value.item() == pytest.approx(cka(torch.from_numpy(b), torch.from_numpy(a)).item())


def test_linear_cka_of_features() -> None:
    # Kornblith et al.: for linear kernels of centred features, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖).
    x, y = RNG(24).standard_normal((10, 4)), RNG(25).standard_normal((10, 6))
    xc, yc = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(yc.T @ xc) ** 2 / (
        np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc)
    )
    value = cka(torch.from_numpy(x @ x.T), torch.from_numpy(y @ y.T))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_cka_bounds_and_invariances() -> None:
    a, b = gram(7, 4, seed=26), gram(7, 4, seed=27)
    tensor_a, tensor_b = torch.from_numpy(a), torch.from_numpy(b)
    base = cka(tensor_a, tensor_b).item()
    assert 0.0 < base < 1.0
    assert cka(tensor_a, tensor_a).item() == pytest.approx(1.0, abs=1e-14)
    assert cka(tensor_a, 3.0 * tensor_a + 2.0).item() == pytest.approx(1.0, abs=1e-13)
    assert cka(1e-160 * tensor_a, 1e160 * tensor_b).item() == pytest.approx(base, rel=1e-12)
    permutation = torch.from_numpy(RNG(28).permutation(7))
    assert cka(
        tensor_a[permutation][:, permutation], tensor_b[permutation][:, permutation]
    ).item() == pytest.approx(base, rel=1e-12)
    # Kernels of two orthogonal, centred features have nothing in common, and never less.
    u, v = np.array([1.0, -1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0, -1.0]) / 3.0
    assert cka(torch.from_numpy(np.outer(u, u)), torch.from_numpy(np.outer(v, v))).item() == 0.0


def test_less_than_nothing_in_common_is_nothing_to_the_coarser_precision() -> None:
    """HAH and HBH at a cosine of -2⁻²⁵, which float32 cannot tell from 0."""
    u, v = torch.tensor([1.0, -1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, -1.0])
    a = torch.outer(u, u).double()
    b = torch.outer(v, v) - 2.0**-25 * torch.outer(u, u)
    assert cka(a, b.double()).item() == pytest.approx(-(2.0**-25), rel=1e-6, abs=0.0)
    for kernels in ((a, b), (b, a)):
        assert cka(*kernels).item() == 0.0


def test_targets_that_differ_by_rounding_are_constant() -> None:
    kernel = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    y = torch.tensor([1.0, 1.0 + 2.0**-23, 1.0])
    with pytest.raises(ValueError, match="`targets` must be not constant over the samples"):
        kernel_alignment(kernel, y, centered=True)
    kernel_alignment(kernel, y.double(), centered=True)  # here that is a difference


def test_cka_bad_input() -> None:
    eye = torch.eye(3)
    with pytest.raises(
        ValueError, match=r"`kernel_a` must be of the shape of `kernel_b`, \(4, 4\)"
    ):
        cka(eye, torch.eye(4))
    with pytest.raises(ValueError, match="`kernel_a` must be of the shape of `kernel_b`"):
        cka(eye, eye[:, :, None, None])
    with pytest.raises(
        ValueError, match="`kernel_b` must be a kernel that differs between samples"
    ):
        cka(eye, torch.full((3, 3), 0.1))
    with pytest.raises(
        ValueError, match="`kernel_a` must be a kernel that differs between samples"
    ):
        cka(torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"`kernel_b` must be symmetric.*two different sets"):
        cka(eye, torch.arange(9.0).reshape(3, 3))
    with pytest.raises(ValueError, match="`kernel` must be symmetric"):
        kernel_alignment(torch.arange(9.0).reshape(3, 3), torch.ones(3))
