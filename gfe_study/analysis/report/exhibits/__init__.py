"""Everything a report may hold, in its order. A new kind of exhibit is its file and one line here."""

from gfe_study.analysis.report.exhibits.base import Exhibit, Maker
from gfe_study.analysis.report.exhibits.curves import curves
from gfe_study.analysis.report.exhibits.data_efficiency import data_efficiency
from gfe_study.analysis.report.exhibits.datasets import datasets
from gfe_study.analysis.report.exhibits.entropy import entropy
from gfe_study.analysis.report.exhibits.explore import explore
from gfe_study.analysis.report.exhibits.imputation import imputation
from gfe_study.analysis.report.exhibits.novelty import novelty
from gfe_study.analysis.report.exhibits.paper_tables import table_1, table_2
from gfe_study.analysis.report.exhibits.pareto import pareto
from gfe_study.analysis.report.exhibits.samples import samples
from gfe_study.analysis.report.exhibits.snapshots import snapshots
from gfe_study.analysis.report.exhibits.tuning import tuning
from gfe_study.analysis.report.exhibits.verdict import verdict

MAKERS: tuple[Maker, ...] = (
    verdict,
    table_1,
    table_2,
    entropy,
    novelty,
    curves,
    data_efficiency,
    datasets,
    imputation,
    pareto,
    snapshots,
    samples,
    tuning,
    explore,
)

__all__ = [
    "MAKERS",
    "Exhibit",
    "Maker",
    "curves",
    "data_efficiency",
    "datasets",
    "entropy",
    "explore",
    "imputation",
    "novelty",
    "pareto",
    "samples",
    "snapshots",
    "table_1",
    "table_2",
    "tuning",
    "verdict",
]
