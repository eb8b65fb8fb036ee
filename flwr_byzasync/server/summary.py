"""The settings of a strategy in the log."""

from logging import getLogger

from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.core.contribution import Models
from flwr_byzasync.server.settings import StrategySettings

logger = getLogger("flwr")


def log_summary(
    settings: StrategySettings,
    updates_per_round: int | None,
    min_available_nodes: int,
    checkpoints: Checkpoints | None,
) -> None:
    """Log the settings, as a tree."""
    quorum, liveness = settings.policy.quorum, settings.policy.liveness
    payload, size = settings.policy.payload, updates_per_round
    logger.info("\t├──> Aggregation:")
    logger.info("\t│\t├── Rule: %s", settings.aggregator)
    logger.info("\t│\t├── Weights: %s", settings.weights)
    logger.info("\t│\t├── Rows of departed nodes: %s", liveness.departed)
    logger.info("\t│\t├── Optimizer: %s", settings.optimizer)
    if isinstance(payload, Models):
        logger.info("\t│\t├── Delay compensation: %g", payload.delay_compensation)
    logger.info("\t│\t└── Device: %s", settings.device)
    logger.info("\t├──> Arrivals:")
    logger.info("\t│\t├── Replies in a round: %s", size or "number of initial nodes")
    logger.info("\t│\t├── First query when connected: %d nodes", min_available_nodes)
    logger.info("\t│\t├── Quorum: %s", quorum.nodes or "all initial nodes")
    logger.info("\t│\t├── When nodes are lost: %s", quorum.on_loss)
    logger.info("\t│\t├── Rate limit: %s", _rate(liveness.max_rate))
    logger.info("\t│\t├── Reply timeout: %g s at most", liveness.reply_timeout)
    logger.info("\t│\t└── Quarantine after: %d faults in a row", liveness.max_consecutive_faults)
    logger.info("\t├──> Evaluation by nodes: fraction (%.2f)", settings.evaluation.fraction)
    logger.info("\t│\t└── Minimum nodes: %d", settings.evaluation.min_nodes)
    logger.info("\t├──> Checkpoints: %s", checkpoints)
    logger.info("\t└──> Messages:")
    logger.info("\t\t├── Payload: %s", payload)
    logger.info("\t\t├── ArrayRecord key: '%s'", settings.message_format.arrayrecord_key)
    logger.info("\t\t└── ConfigRecord key: '%s'", settings.message_format.configrecord_key)


def _rate(most: float | None) -> str:
    return "none" if most is None else f"{most:g} times the median node's"
