"""Fashion-MNIST: 60,000 and 10,000 grey images of clothes, 28x28.

Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747.
"""

from functools import partial

from apps.train.tasks import idx
from apps.train.tasks.networks import Standardise, cnn, mlp
from apps.train.tasks.task import Task

PIXELS = Standardise(mean=(0.2860,), deviation=(0.3530,))

TASK = Task(
    "fashion-mnist",
    classes=10,
    read=idx.read,
    files=idx.files("FashionMNIST"),
    models={"cnn": partial(cnn, PIXELS, side=28), "mlp": partial(mlp, PIXELS, side=28)},
)
