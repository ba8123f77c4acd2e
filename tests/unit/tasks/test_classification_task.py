"""What the classification task refuses of a model, and how it reads ahead."""

import numpy as np
import pytest
import torch
from torch import nn

from distsam.errors import ArgumentError
from distsam.tasks.classification import ClassificationTask, ModelFactory
from distsam.tasks.labelled import Labelled, labelled, split_examples
from distsam.tasks.task import TaskContext

EXAMPLES = labelled(np.random.default_rng(0).normal(size=(60, 12)), np.arange(60) % 3, "examples")


def task_of(make_model: ModelFactory, examples: Labelled = EXAMPLES, num_workers: int = 0) -> ClassificationTask:
    part = split_examples(examples, 0.2, 0.2, seed=0)
    return ClassificationTask(TaskContext(), examples, part, make_model, batch_size=12, num_workers=num_workers)


def linear(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Linear(shape[0], num_classes)


def test_a_model_with_another_number_of_classes_is_refused() -> None:
    for make_model, given in (
        (lambda shape, num: nn.Linear(12, 5), r"\(2, 5\)"),
        (lambda *_: nn.Flatten(), r"\(2, 12\)"),
    ):
        with pytest.raises(ArgumentError, match=f"model: gives {given} for 2 inputs; it must be \\(2, 3\\)"):
            task_of(make_model).build_model()


def test_loading_processes_give_the_same_batches_as_none() -> None:
    alone, ahead = task_of(linear), task_of(linear, num_workers=2)
    for step in (0, 1, 7, 8, 2):
        [piece], [loaded] = alone.microbatches(step, 1), ahead.microbatches(step, 1)
        assert torch.equal(piece.inputs, loaded.inputs)
        assert torch.equal(piece.classes, loaded.classes)


def test_inputs_are_standardised_by_the_training_ones_and_a_constant_feature_stays_finite() -> None:
    inputs = EXAMPLES.inputs.copy()
    inputs[:, 4] = 7
    task = task_of(linear, labelled(inputs, EXAMPLES.classes, "examples"))
    pieces = [task.microbatches(step, 1)[0].inputs for step in range(40)]
    seen = torch.cat(pieces)
    assert not seen[:, 4].any()
    others = [k for k in range(12) if k != 4]
    torch.testing.assert_close(seen[:, others].mean(0), torch.zeros(11), rtol=0, atol=0.02)
    torch.testing.assert_close(seen[:, others].std(0), torch.ones(11), rtol=0, atol=0.03)


def test_a_class_without_training_examples_is_said() -> None:
    rare = EXAMPLES.classes.copy()
    rare[rare == 2] = 1
    examples = Labelled(EXAMPLES.inputs, rare, 3)
    assert any("no training example of class 2" in line for line in task_of(linear, examples).warnings())
