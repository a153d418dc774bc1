"""What each process of ``boxsup predict`` does."""

from dataclasses import dataclass
from typing import Any

from boxsup_cli.console import quiet_libraries
from boxsup_d2.prediction import TrainedNetwork, predict_images, trained_network


@dataclass(frozen=True)
class PredictJob:
    """A prediction.

    Attributes:
        model, weights, names, opts, device: see :func:`boxsup_d2.prediction.trained_network`.
        images, image_root, results, min_score, classes, batch_size, keep_going: see
            :func:`boxsup_d2.prediction.predict_images`.
    """

    model: str
    weights: str | None
    names: str | None
    opts: tuple[Any, ...]
    device: str | None
    images: dict[str, Any]
    image_root: str
    results: str
    min_score: float
    classes: tuple[str, ...]
    batch_size: int
    keep_going: bool

    def network(self) -> TrainedNetwork:
        """The network, as every process finds it."""
        return trained_network(self.model, self.weights, names=self.names, opts=self.opts, device=self.device)


def predict(job: PredictJob) -> None:
    """Predict this process's share of the images; rank 0 writes the files. All ranks call it together."""
    quiet_libraries()
    predict_images(
        job.network(),
        job.images,
        job.image_root,
        job.results,
        min_score=job.min_score,
        classes=job.classes,
        batch_size=job.batch_size,
        keep_going=job.keep_going,
    )
