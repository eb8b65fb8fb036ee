"""The server: model, strategy, evaluation and the saved file."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from dropin_torch.task import Net, evaluate, held_out
from flwr_byzasync import AsyncRobust, buffer_names

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, print the result, save the model."""
    settings = context.run_config
    torch.manual_seed(int(settings["seed"]))
    model = Net()
    # The line that changes: AsyncRobust takes FedAvg's arguments, and the names of the batch norm's
    # statistics, which a state_dict does not tell apart.
    arguments = {"fraction_train": 1.0, "fraction_evaluate": 0.5, "min_available_nodes": 2}
    if settings["strategy"] == "async":
        strategy = AsyncRobust(**arguments, buffers=buffer_names(model))
    else:
        strategy = {"fedavg": FedAvg, "fedmedian": FedMedian}[settings["strategy"]](**arguments)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        train_config=ConfigRecord({"lr": float(settings["lr"])}),
        num_rounds=int(settings["num-server-rounds"]),
        evaluate_fn=central_evaluation,
    )
    print(result)
    if settings["save-to"]:
        torch.save(result.arrays.to_torch_state_dict(), str(settings["save-to"]))
        print(f"The final model is in {settings['save-to']}.")


def central_evaluation(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Return loss and accuracy on the server's held-out images."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = evaluate(model, held_out())
    return MetricRecord({"loss": loss, "accuracy": accuracy})
