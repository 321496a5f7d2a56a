"""Classify scikit-learn's digits by infinitely wide networks, beside a support vector machine.

    python examples/kernel_classifier.py
    python examples/kernel_classifier.py --train 1000 --test 700 --depth 8 --pooling flatten
    python examples/kernel_classifier.py --quick

`NTKClassifier` is an estimator of scikit-learn: here it is searched over like the support vector
machine. The kernel of an MLP takes less than a second for all digits; that of a convolutional
network with global average pooling compares all pairs of positions, so it gets `--train` images
only. All are scored on images that neither fitting nor searching has seen.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC

from torch_ntk import CNTK
from torch_ntk.estimators import NTKClassifier


def contestants(args: argparse.Namespace, convolutional: bool) -> dict[str, Any]:
    """Named classifiers; what is cheap is searched over by cross-validation."""
    search = {"cv": 3}
    grid = {"depth": [2, 3, 5], "diag_reg": [1e-6, 1e-3, 1e-1]}
    found: dict[str, Any] = {
        "SVC, RBF, gamma='scale'": GridSearchCV(
            SVC(kernel="rbf", gamma="scale"), {"C": [0.1, 1.0, 10.0, 100.0]}, **search
        ),
        "NTK of an MLP, depth 3": NTKClassifier(),
        "NTK of an MLP, searched": GridSearchCV(NTKClassifier(), grid, **search),
    }
    if convolutional:
        kernel = CNTK(args.depth, pooling=args.pooling, progress=args.progress)
        name = f"CNTK({args.depth}, pooling={args.pooling!r})"
        found[name] = NTKClassifier(kernel, input_shape=(1, 8, 8))
    return found


def compare(machines: dict[str, Any], x: np.ndarray, y: np.ndarray, split: dict[str, Any]) -> None:
    """Fit each on one split of the data and print what it gets right."""
    x_train, x_test, y_train, y_test = train_test_split(x, y, stratify=y, **split)
    print(f"{len(x_train)} images to learn from, {len(x_test)} to be tested on")
    for name, machine in machines.items():
        start = time.perf_counter()
        score = machine.fit(x_train, y_train).score(x_test, y_test)
        chosen = f"  {machine.best_params_}" if isinstance(machine, GridSearchCV) else ""
        print(f"  {name:27} {score:7.2%}  {time.perf_counter() - start:6.1f} s{chosen}")


def main() -> None:
    """Compare on few images with the convolutional kernel, and on all without."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=400, help="images for the CNTK")
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--depth", type=int, default=5, help="of the convolutional network")
    parser.add_argument("--pooling", choices=("flatten", "gap"), default="gap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action="store_true", help="show a bar for the CNTK")
    parser.add_argument("--quick", action="store_true", help="60 images and depth 3, nothing more")
    args = parser.parse_args()
    if args.quick:
        args.train, args.test, args.depth = 60, 60, 3
    x, y = load_digits(return_X_y=True)
    x = x / 16
    few = {"train_size": args.train, "test_size": args.test, "random_state": args.seed}
    compare(contestants(args, convolutional=True), x, y, few)
    if not args.quick:
        every = {"test_size": 0.25, "random_state": args.seed}
        compare(contestants(args, convolutional=False), x, y, every)


if __name__ == "__main__":
    main()
