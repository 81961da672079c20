"""Pictures of a LeJEPA run: the views that it compares."""

from tc_jepa.data.sources import Captioned
from tc_jepa.experiment.run import TrainedRun
from tc_jepa.report.looks import Figure, Gallery

INPUTS = 6  # images of the first batch


def galleries(run: TrainedRun, source: Captioned) -> list[Gallery]:
    """Returns what the page shows of a run. Held-out images, `source`, are not read."""
    del source
    about = "Images of the first batch, each as the augmented views that training draws to each other."
    views_BxVxHxWx3 = run.experiment.first_batch(INPUTS).views
    rows = [Figure([(f"view {number}", view) for number, view in enumerate(views, 1)]) for views in views_BxVxHxWx3]
    return [Gallery("What the model sees", about, rows, broad=True)]
