"""The server: model, strategy, evaluation and the saved file."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from dropin_sklearn.task import evaluate, held_out, initial
from flwr_byzasync import AsyncRobust

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, print the result, save the model."""
    settings = context.run_config
    # The line that changes: FedAvg(...) becomes AsyncRobust(...), with the same arguments.
    choices = {"fedavg": FedAvg, "fedmedian": FedMedian, "async": AsyncRobust}
    strategy = choices[settings["strategy"]](
        fraction_train=1.0, fraction_evaluate=0.5, min_available_nodes=2
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(initial()),
        num_rounds=int(settings["num-server-rounds"]),
        evaluate_fn=central_evaluation,
    )
    print(result)
    if settings["save-to"]:
        coefficients, intercepts = result.arrays.to_numpy_ndarrays()
        np.savez(str(settings["save-to"]), coefficients=coefficients, intercepts=intercepts)
        print(f"The final model is in {settings['save-to']}.")


def central_evaluation(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Return loss and accuracy on the server's held-out images."""
    loss, accuracy = evaluate(arrays.to_numpy_ndarrays(), held_out())
    return MetricRecord({"loss": loss, "accuracy": accuracy})
