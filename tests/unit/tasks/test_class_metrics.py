"""Accuracy, top-5, calibration and cross entropy against their definitions, written out."""

import math

import pytest
import torch

from distsam.tasks.class_metrics import COLUMNS, ClassMetric


def metric_of(logits: torch.Tensor, classes: torch.Tensor, *, step: int = 1000) -> dict[str, float | None]:
    metric = ClassMetric(logits.shape[1], lambda sums: sums)
    for start in range(0, len(logits), step):
        metric.update(logits[start : start + step], classes[start : start + step])
    return metric.compute()


def test_scores_are_their_definitions_however_the_examples_are_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 7, generator=generator)
    classes = torch.randint(7, (200,), generator=generator)
    found = metric_of(logits, classes)
    probabilities = logits.double().softmax(1)
    order = probabilities.argsort(1, descending=True)
    right = [int(order[n, 0]) == int(classes[n]) for n in range(200)]
    top5 = [int(classes[n]) in order[n, :5].tolist() for n in range(200)]
    loss = -sum(math.log(float(probabilities[n, classes[n]])) for n in range(200)) / 200
    ece = 0.0
    for k in range(15):
        inside = [n for n in range(200) if k / 15 <= float(probabilities[n].max()) < (k + 1) / 15]
        if inside:
            accuracy = sum(right[n] for n in inside) / len(inside)
            confidence = sum(float(probabilities[n].max()) for n in inside) / len(inside)
            ece += len(inside) / 200 * abs(accuracy - confidence)
    expected = {"accuracy": sum(right) / 200, "top5": sum(top5) / 200, "ece": ece, "cross_entropy": loss}
    assert found == pytest.approx(expected, rel=1e-9)
    assert metric_of(logits, classes, step=13) == pytest.approx(expected, rel=1e-9)


def test_sure_and_right_is_perfect_and_sure_and_wrong_is_worst() -> None:
    classes = torch.arange(6).repeat(5)
    sure = 100 * torch.eye(6)[classes]
    assert metric_of(sure, classes)["accuracy"] == 1
    assert metric_of(sure, classes)["ece"] == pytest.approx(0, abs=1e-12)
    wrong = metric_of(sure, (classes + 1) % 6)
    assert (wrong["accuracy"], wrong["ece"]) == (0, pytest.approx(1))


def test_of_five_classes_there_is_no_top_five_and_of_nothing_no_score() -> None:
    assert metric_of(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))["top5"] is None
    assert ClassMetric(9, lambda sums: sums).compute() == dict.fromkeys(COLUMNS)


def test_a_model_that_diverged_keeps_its_nan() -> None:
    found = metric_of(torch.full((3, 8), float("nan")), torch.zeros(3, dtype=torch.int64))
    assert found["cross_entropy"] is not None
    assert math.isnan(found["cross_entropy"])
