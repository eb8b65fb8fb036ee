"""MNIST: 60,000 and 10,000 grey images of handwritten digits, 28x28."""

from functools import partial

from apps.train.tasks import idx
from apps.train.tasks.networks import Standardise, cnn, mlp
from apps.train.tasks.task import Task

PIXELS = Standardise(mean=(0.1307,), deviation=(0.3081,))

TASK = Task(
    "mnist",
    classes=10,
    read=idx.read,
    files=idx.files("MNIST"),
    models={"cnn": partial(cnn, PIXELS, side=28), "mlp": partial(mlp, PIXELS, side=28)},
)
